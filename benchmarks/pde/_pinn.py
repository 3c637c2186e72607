"""Physics-informed networks as baselines: a tanh network, with random Fourier features or without, trained by Adam.

The loss is mean (F[u] - f)² over the collocation points + weight · mean (u - g)² over the boundary points.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Network", "PinnRun", "derivative", "laplacian", "train_pinn"]

ResidualFn = Callable[[nn.Module, Tensor], Tensor]


class Network(nn.Module):
    """(M, d) points of a box -> (M,) values: random Fourier features of deviation ``bandwidth`` if given, then tanh."""

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        generator: torch.Generator,
        *,
        width: int = 64,
        depth: int = 3,
        bandwidth: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        low, high = torch.tensor(domain, dtype=dtype).T
        self.low, self.span = low, high - low
        features = None
        if bandwidth is not None:
            features = bandwidth * torch.randn(len(domain), width // 2, generator=generator, dtype=dtype)
        self.features = features
        sizes = [len(domain) if features is None else 2 * (width // 2), *[width] * depth, 1]
        layers = [nn.Linear(m, n, dtype=dtype) for m, n in pairwise(sizes)]
        self.layers = nn.Sequential(*(module for layer in layers for module in (layer, nn.Tanh())))[:-1]
        with torch.no_grad():
            for layer in layers:
                m, n = layer.in_features, layer.out_features
                layer.weight.copy_(torch.randn(n, m, generator=generator, dtype=dtype) * math.sqrt(2 / (m + n)))
                layer.bias.zero_()

    def forward(self, points: Tensor) -> Tensor:
        x = (points - self.low) / self.span
        if self.features is None:
            x = 2 * x - 1
        else:
            phase = x @ self.features  # in [0, 1] coordinates a bandwidth is in radians over the box
            x = torch.cat([phase.sin(), phase.cos()], -1)
        return self.layers(x).squeeze(-1)


@dataclass(frozen=True, slots=True)
class PinnRun:
    """What a training cost and left."""

    loss: float
    num_steps: int
    seconds: float


def derivative(values: Tensor, points: Tensor, axis: int) -> Tensor:
    """The partial derivative of pointwise values (M,) along an axis of their points (M, d), differentiable again."""
    (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return gradient[:, axis]


def laplacian(network: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """The values (M,) and the Laplacian (M,) of a network at points (M, d) that require gradients."""
    values = network(points)
    (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    second = [derivative(gradient[:, axis], points, axis) for axis in range(points.shape[1])]
    return values, torch.stack(second).sum(0)


def train_pinn(
    network: nn.Module,
    residual_fn: ResidualFn,
    points: Tensor | Callable[[], Tensor],
    boundary_points: Tensor,
    boundary_values: Tensor,
    *,
    boundary_weight: float,
    num_steps: int,
    learning_rate: float = 1e-3,
    scale: float = 1.0,
) -> PinnRun:
    """Train in place by Adam with cosine decay.

    ``residual_fn(network, points)`` is F[u] - f; ``points`` are fixed, or drawn anew by a function in each step. The
    residual is divided by ``scale`` (the root mean square of f, say), so that a weight means the same everywhere.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    loss, start = torch.tensor(math.nan), time.perf_counter()
    for _ in range(num_steps):
        here = (points() if callable(points) else points).detach().requires_grad_()
        optimizer.zero_grad()
        inside = (residual_fn(network, here) / scale).square().mean()
        loss = inside + boundary_weight * (network(boundary_points) - boundary_values).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return PinnRun(float(loss.detach()), num_steps, time.perf_counter() - start)
