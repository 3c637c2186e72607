"""The same model and batches in four libraries: what each claim of curvature_core calls, one function an arm.

pyhessian 0.1 was written for an older torch. It is run as it is but for two things: its vectors take torch's default
dtype, which is set to that of the model, and ``torch.eig``, which its density calls and torch has dropped, is put back
for the call.   Shapes: P parameters.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from benchmarks.data import digits
from benchmarks.peers import require_peer
from hesse.curvature import CurvatureOperator, fisher, ggn, hessian

__all__ = [
    "OPERATORS",
    "PEERS",
    "Problem",
    "Rule",
    "as_pyhessian_expects",
    "curvlinops_operator",
    "eigenthings_operator",
    "loss_fn",
    "make_problem",
    "mean_curvature",
    "ours",
    "outputs_fn",
    "peer_density",
    "peer_eigenpairs",
    "peer_product",
    "peer_trace",
    "pyhessian_operator",
]

PEERS = ("curvlinops", "eigenthings", "pyhessian")
Rule = tuple[Tensor, Tensor]
"""Ritz values and weights of one run each, (runs, steps)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A classifier, its mean cross-entropy, and batches (inputs, labels)."""

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def order(self) -> int:
        return sum(p.numel() for p in self.parameters)


def make_problem(
    width: int, *, num_examples: int, num_batches: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Problem:
    """A tanh network 64 - width - width - 10 on pictures of digits, trained for 60 steps so that it has outliers."""
    split = digits(num_examples, seed=seed, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
        model = nn.Sequential(*layers).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(split.train_x), split.train_y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    pieces = zip(split.train_x.chunk(num_batches), split.train_y.chunk(num_batches), strict=True)
    return Problem(model, list(pieces))


def loss_fn(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def outputs_fn(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Logits of a batch."""
    return model(batch[0])


def scaled_losses_fn(problem: Problem) -> Callable[[Any, tuple[Tensor, Tensor]], Tensor]:
    """Cross-entropy of each example over √N, so that the sum of outer products of its gradients is a mean."""
    count = sum(len(y) for _, y in problem.batches)

    def losses(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") / count**0.5

    return losses


def mean_curvature(outputs: Tensor, tangent: Tensor, _batch: Any) -> Tensor:
    """The output Hessian of the mean cross-entropy."""
    p = outputs.softmax(-1)
    return p * (tangent - (p * tangent).sum(-1, keepdim=True)) / len(outputs)


def ours(problem: Problem, kind: str = "hessian", **options: Any) -> CurvatureOperator:
    """The mean over all examples, by hesse; "fisher" is the empirical one."""
    if kind == "hessian":
        return hessian(loss_fn, problem.model, problem.batches, reduction="weighted_mean", **options)
    if kind == "fisher":
        return fisher(scaled_losses_fn(problem), problem.model, problem.batches, **options)
    return ggn(outputs_fn, problem.model, problem.batches, mean_curvature, reduction="weighted_mean", **options)


def curvlinops_operator(problem: Problem, kind: str = "hessian") -> Any:
    """By curvlinops; its check of determinism is left out, since it costs products."""
    curvlinops = require_peer("curvlinops")
    make = {
        "hessian": curvlinops.HessianLinearOperator,
        "ggn": curvlinops.GGNLinearOperator,
        "fisher": curvlinops.EFLinearOperator,
    }[kind]
    return make(problem.model, nn.CrossEntropyLoss(), problem.parameters, problem.batches, check_deterministic=False)


def eigenthings_operator(problem: Problem, kind: str = "hessian") -> Any:
    """By hessian-eigenthings, which averages over batches: they must be of equal size."""
    things = require_peer("hessian_eigenthings")
    if kind == "hessian":
        return things.HessianOperator(problem.model, problem.batches, loss_fn)
    if kind == "fisher":
        per_sample = things.supervised_per_sample_loss(nn.functional.cross_entropy)
        return things.EmpiricalFisherOperator(problem.model, problem.batches, per_sample)
    return things.GGNOperator(
        problem.model,
        problem.batches,
        things.supervised_forward,
        things.supervised_loss_of_output(nn.functional.cross_entropy),
    )


def pyhessian_operator(problem: Problem) -> Any:
    """By pyhessian: the gradient's graph is built here if there is one batch, and in every product otherwise."""
    pyhessian = require_peer("pyhessian")
    problem.model.zero_grad(set_to_none=True)
    data = {"data": problem.batches[0]} if len(problem.batches) == 1 else {"dataloader": problem.batches}
    return pyhessian.hessian(problem.model, nn.CrossEntropyLoss(), cuda=False, **data)


@contextmanager
def as_pyhessian_expects(dtype: torch.dtype) -> Iterator[None]:
    """Let pyhessian's vectors have the model's dtype, and give it back the ``torch.eig`` it knows."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.eig = _eig  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward.*create_graph=True")  # a cycle it never breaks
            yield
    finally:
        torch.set_default_dtype(before)
        del torch.eig  # pyright: ignore[reportAttributeAccessIssue]


def _eig(matrix: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)  # its matrices are symmetric
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors if eigenvectors else matrix[:0]


def peer_product(peer: str, operator: Any, vector: Tensor) -> Tensor:
    """A v, flat, by a peer's operator."""
    if peer == "curvlinops":
        return operator @ vector
    if peer == "eigenthings":
        return operator.matvec(vector)
    parts = vector.split([p.numel() for p in operator.params])
    shaped = [part.view_as(p) for part, p in zip(parts, operator.params, strict=True)]
    if operator.full_dataset:
        product = operator.dataloader_hv_product(shaped)[1]
    else:
        product = torch.autograd.grad(operator.gradsH, operator.params, shaped, retain_graph=True)
    return torch.cat([part.reshape(-1) for part in product]).detach()


def peer_eigenpairs(peer: str, operator: Any, k: int, effort: float, seed: int) -> tuple[Tensor, Tensor]:
    """K eigenvalues of largest magnitude and their vectors (P, K); the effort is a tolerance, or steps for Lanczos."""
    if peer == "curvlinops":
        start = np.random.default_rng(abs(seed)).standard_normal(operator.shape[0])
        eigsh: Any = scipy.sparse.linalg.eigsh  # its stub takes the tolerance for an integer
        values, vectors = eigsh(operator.to_scipy(), k, which="LM", tol=effort, v0=start)
        return torch.from_numpy(values), torch.from_numpy(vectors)
    if peer == "eigenthings":
        lanczos = require_peer("hessian_eigenthings").lanczos
        found = lanczos(operator, k=k, max_iter=int(effort), reorthogonalize=True, which="LM", seed=seed)
        return found.eigenvalues, found.eigenvectors.T
    values, vectors = operator.eigenvalues(maxIter=2000, tol=effort, top_n=k)
    flat = torch.stack([torch.cat([part.reshape(-1) for part in vector]) for vector in vectors], dim=1)
    return torch.tensor(values, dtype=flat.dtype), flat.detach()


def peer_trace(peer: str, operator: Any, num_probes: int, seed: int) -> tuple[float, float]:
    """Hutchinson's estimate and its standard error (NaN from curvlinops, which gives none)."""
    torch.manual_seed(seed)
    if peer == "curvlinops":
        return float(require_peer("curvlinops").hutchinson_trace(operator, num_probes)), float("nan")
    if peer == "eigenthings":
        trace = require_peer("hessian_eigenthings").trace
        found = trace(operator, num_matvecs=num_probes, method="hutchinson", seed=seed)
        return found.estimate, found.stderr
    samples = np.asarray(operator.trace(maxIter=num_probes, tol=-1.0))  # a negative tolerance uses all probes
    return float(samples.mean()), float(samples.std(ddof=1) / len(samples) ** 0.5)


def peer_density(peer: str, operator: Any, num_probes: int, num_steps: int, seed: int) -> Rule:
    """Ritz values and weights of each run of stochastic Lanczos quadrature."""
    torch.manual_seed(seed)
    if peer == "curvlinops":
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        runs = [fast_lanczos(operator, num_steps) for _ in range(num_probes)]
        return torch.stack([values for values, _ in runs]), torch.stack([vectors[0] ** 2 for _, vectors in runs])
    if peer == "eigenthings":
        density = require_peer("hessian_eigenthings").spectral_density
        found = density(operator, num_runs=num_probes, lanczos_steps=num_steps, num_grid_points=512, seed=seed)
        return found.raw_eigenvalues, found.raw_weights
    values, weights = operator.density(iter=num_steps, n_v=num_probes)
    return torch.tensor(np.array(values)), torch.tensor(np.array(weights))


PeerOperator = Callable[[Problem], Any]
OPERATORS: dict[str, PeerOperator] = {
    "curvlinops": curvlinops_operator,
    "eigenthings": eigenthings_operator,
    "pyhessian": pyhessian_operator,
}
