"""Peers on the same problems: ott-jax's Monge gap and its estimator of maps, and the dual with convex networks.

Importing JAX is left to the functions; XLA is held to one thread, as torch is, so that CPU seconds compare.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from benchmarks.peers import require_peer
from benchmarks.transport._monge_gap_problems import GaussianPair, Pair

__all__ = ["fit_icnn", "fit_ott_estimator", "ott_gap"]

Mapper = Callable[[Tensor], Tensor]


def _jax() -> Any:
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    return require_peer("jax")


def ott_gap(x: Tensor, Tx: Tensor, eps: float) -> float:
    """The value of its `monge_gap_from_samples` in float64, for the squared distance."""
    jax = _jax()
    module = require_peer("ott.neural.methods.monge_gap")
    with jax.enable_x64(True):
        arrays = (jax.numpy.asarray(t.double().numpy()) for t in (x, Tx))
        return float(module.monge_gap_from_samples(*arrays, epsilon=eps, threshold=1e-10, max_iterations=20_000))


def _mapper(function: Callable[[Any], Any]) -> Mapper:
    return lambda points: torch.as_tensor(np.array(function(points.numpy())))


def _batches(pair: Pair, size: int, seed: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(abs(seed))
    source, target = pair.source.numpy(), pair.target.numpy()
    return lambda: (source[random.integers(len(source), size=size)], target[random.integers(len(target), size=size)])


def fit_ott_estimator(pair: GaussianPair, steps: int, seed: int, *, lam: float, batch: int) -> tuple[Mapper, float]:
    """`MongeGapEstimator` with our network, losses, units and learning rates; CPU seconds without compilation."""
    jax = _jax()
    optax, linen = require_peer("optax"), require_peer("flax.linen")
    gaps = require_peer("ott.neural.methods.monge_gap")
    pointcloud = require_peer("ott.geometry.pointcloud")
    sinkdiv = require_peer("ott.tools.sinkhorn_divergence").sinkdiv
    potentials = require_peer("ott.neural.networks.potentials")
    draw = _batches(pair, batch, seed)
    some, others = pair.source[:1000].numpy(), pair.target[:1000].numpy()
    unit = float(pointcloud.PointCloud(others).mean_cost_matrix)
    gap_unit = float(pointcloud.PointCloud(some, others).mean_cost_matrix)

    def fit_loss(mapped: Any, y: Any) -> Any:
        value, _ = sinkdiv(mapped, y, epsilon=0.05 * unit, static_b=True)
        return value / unit, None

    def regularizer(x: Any, mapped: Any) -> Any:
        return gaps.monge_gap_from_samples(x, mapped, epsilon=0.01 * gap_unit) / gap_unit, None

    solver = gaps.MongeGapEstimator(
        dim_data=some.shape[1],
        model=potentials.PotentialMLP(dim_hidden=[64, 64], is_potential=False, act_fn=linen.gelu),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
        fitting_loss=fit_loss,
        regularizer=regularizer,
        regularizer_strength=lam,
        num_train_iters=steps,
        rng=jax.random.key(abs(seed)),
    )
    state = solver.state_neural_net

    def step(state: Any, number: int) -> Any:
        x, y = draw()
        return solver.step_fn(state, {"source": x, "target": y}, None, False, number)[0]

    jax.block_until_ready(step(state, 0).params)  # compiles; its result is dropped
    start = time.process_time()
    for number in range(steps):
        state = step(state, number)
    jax.block_until_ready(state.params)
    seconds = time.process_time() - start
    return _mapper(lambda x: state.apply_fn({"params": state.params}, x)), seconds


class ConvexNetwork(nn.Module):
    """|x|²/2 plus a network that is convex in x: weights between its layers are made positive by softplus."""

    def __init__(self, d: int, width: int, generator: Generator) -> None:
        super().__init__()

        def drawn(rows: int, columns: int, shift: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / columns**0.5 + shift)

        self.skips = nn.ParameterList([drawn(width, d), drawn(width, d), drawn(1, d)])
        self.biases = nn.ParameterList([torch.zeros(width), torch.zeros(width), torch.zeros(1)])
        self.between = nn.ParameterList([drawn(width, width, -4.0), drawn(1, width, -4.0)])

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.softplus(x @ self.skips[0].mT + self.biases[0])
        z = nn.functional.softplus(
            z @ nn.functional.softplus(self.between[0]).mT + x @ self.skips[1].mT + self.biases[1]
        )
        z = z @ nn.functional.softplus(self.between[1]).mT + x @ self.skips[2].mT + self.biases[2]
        return z.squeeze(1) + x.square().sum(1) / 2

    def transport(self, x: Tensor, *, create_graph: bool = False) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self(x).sum(), x, create_graph=create_graph)[0]


def fit_icnn(pair: GaussianPair, seconds: float, seed: int, *, batch: int) -> tuple[Mapper, int]:
    """The dual as a min-max of two convex networks f and g, four steps of g to one of f, Adam 1e-3 (0.5, 0.9).

    max over f, min over g of E_x[f(∇g(x)) - <x, ∇g(x)>] - E_y f(y); ∇g carries the source to the target. As in
    A. Makkuva, A. Taghvaei, S. Oh, J. Lee (2020), ICML; trained for so many CPU seconds; also the steps of f.
    """
    draw, generator = _batches(pair, batch, seed), Generator().manual_seed(abs(seed))
    f, g = (ConvexNetwork(pair.source.shape[1], 64, generator) for _ in range(2))
    first, second = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9)) for net in (f, g))
    start, steps = time.process_time(), 0
    while time.process_time() - start < seconds:
        for _ in range(4):
            x = torch.as_tensor(draw()[0])
            image = g.transport(x, create_graph=True)
            second.zero_grad()
            (f(image) - (x * image).sum(1)).mean().backward()
            second.step()
        x, y = (torch.as_tensor(points) for points in draw())
        image = g.transport(x)
        first.zero_grad()
        (f(y).mean() - f(image).mean()).backward()
        first.step()
        steps += 1
    return g.transport, steps
