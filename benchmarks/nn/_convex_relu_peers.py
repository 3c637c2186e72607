"""cvxpy models of the convex programmes, Adam on the nonconvex one, the dense step of the paper, and the instances."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.nn.convex_relu import adversarial_network, convex_objective, sample_patterns

__all__ = [
    "ConvexRun",
    "DenseStep",
    "adam_objectives",
    "cvxpy_relu",
    "cvxpy_robust_hinge",
    "generator",
    "grid_outputs",
    "random_problem",
    "robust_instance",
    "trained_by_attacks",
]

F64 = torch.float64


@dataclass(frozen=True, slots=True)
class ConvexRun:
    """What cvxpy with Clarabel found."""

    V: Tensor | None
    objective: float
    solver_seconds: float
    cpu_seconds: float
    status: str


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**31)


def random_problem(seed: int, n: int, d: int, num_patterns: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian rows and targets, and sampled patterns."""
    source = generator(seed)
    X = scale * torch.randn(n, d, generator=source, dtype=F64)
    y = torch.randn(n, generator=source, dtype=F64)
    return X, y, sample_patterns(X, num_patterns, generator=source)


def cvxpy_relu(X: Tensor, y: Tensor, D: Tensor, beta: float, limit: float = 300.0) -> ConvexRun:
    """Squared loss. Stops the solver after ``limit`` seconds."""
    cp = require_peer("cvxpy")
    rows, gates = X.numpy(), D.numpy().astype(float)
    v, w = cp.Variable((gates.shape[1], X.shape[1])), cp.Variable((gates.shape[1], X.shape[1]))
    outputs = cp.sum(cp.multiply(gates, rows @ (v - w).T), axis=1)
    norms = cp.sum(cp.norm(v, 2, axis=1)) + cp.sum(cp.norm(w, 2, axis=1))
    signs = 2 * gates - 1
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(outputs - y.numpy()) + beta * norms),
        [cp.multiply(signs, rows @ v.T) >= 0, cp.multiply(signs, rows @ w.T) >= 0],
    )
    start = time.process_time()
    try:
        problem.solve(solver="CLARABEL", time_limit=limit)
    except cp.error.SolverError as error:  # at the limit there may be no point to report
        return ConvexRun(None, float("nan"), limit, time.process_time() - start, str(error)[:60])
    spent = time.process_time() - start
    seconds = float(problem.solver_stats.solve_time)
    if v.value is None:
        return ConvexRun(None, float("nan"), seconds, spent, problem.status)
    V = torch.stack([torch.as_tensor(v.value), torch.as_tensor(w.value)])
    return ConvexRun(V, float(convex_objective(V, X, y, D, beta)), seconds, spent, problem.status)


def cvxpy_robust_hinge(X: Tensor, y: Tensor, D: Tensor, eps: float, beta: float) -> float:
    """Optimum of the robust programme; the last column of X is the bias."""
    cp = require_peer("cvxpy")
    rows, labels, gates = X.numpy(), y.numpy(), D.numpy().astype(float)
    v, w = cp.Variable((gates.shape[1], X.shape[1])), cp.Variable((gates.shape[1], X.shape[1]))
    slopes = gates @ (v - w)
    margins = cp.multiply(labels, cp.sum(cp.multiply(rows, slopes), axis=1))
    reach = eps * cp.norm(slopes[:, :-1], 1, axis=1)
    norms = cp.sum(cp.norm(v, 2, axis=1)) + cp.sum(cp.norm(w, 2, axis=1))
    constraints = []
    for i in range(gates.shape[1]):
        for block in (v, w):
            constraints.append(cp.multiply(2 * gates[:, i] - 1, rows @ block[i]) >= eps * cp.norm(block[i, :-1], 1))
    loss = cp.sum(cp.pos(1 - margins + reach)) / len(rows)
    return float(cp.Problem(cp.Minimize(loss + beta * norms), constraints).solve(solver="CLARABEL"))


def adam_objectives(X: Tensor, y: Tensor, width: int, beta: float, seed: int, steps: int) -> Tensor:
    """Best objective along Adam's way, for a batch of squared-loss problems X (B, N, D); it is eps = 0 attacks."""
    best = torch.full((len(X),), torch.inf, dtype=F64)
    source = generator(seed)
    hidden = (torch.randn(len(X), width, X.shape[2], generator=source, dtype=F64) * X.shape[2] ** -0.5).requires_grad_()
    output = (torch.randn(len(X), width, generator=source, dtype=F64) * width**-0.5).requires_grad_()
    optimizer = torch.optim.Adam([hidden, output], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        f = ((X @ hidden.mT).clamp_min(0) * output.unsqueeze(1)).sum(-1)
        decay = beta / 2 * (hidden.square().sum((1, 2)) + output.square().sum(1))
        objective = (f - y).square().sum(1) / 2 + decay
        best = torch.minimum(best, objective.detach())
        optimizer.zero_grad()
        objective.sum().backward()
        optimizer.step()
        schedule.step()
    return best


class DenseStep:
    """The paper's exact step: one factor of the whole I + FᵀF/ρ + GᵀG, of order 2 D P."""

    def __init__(self, X: Tensor, D: Tensor, rho: float) -> None:
        gates = D.mT.to(X)
        n, d = X.shape
        F = (gates.unsqueeze(2) * X).permute(1, 0, 2).reshape(n, -1)
        F = torch.cat([F, -F], 1)
        matrix = F.mT @ F / rho
        gram = X.mT @ X + torch.eye(d, dtype=X.dtype)
        for start in range(0, len(matrix), d):
            matrix[start : start + d, start : start + d] += gram
        self.lower = torch.linalg.cholesky(matrix)

    def solve(self, b: Tensor) -> Tensor:
        return torch.cholesky_solve(b.reshape(-1, 1), self.lower).view_as(b)


def robust_instance(seed: int, n: int, eps: float) -> tuple[Tensor, Tensor]:
    """n points of [-1, 1]², 2.2 eps apart in l∞, a column of ones, and labels by a wave."""
    source = generator(seed)
    points: list[Tensor] = []
    while len(points) < n:
        point = 2 * torch.rand(2, generator=source, dtype=F64) - 1
        if all(float((point - other).abs().max()) >= 2.2 * eps for other in points):
            points.append(point)
    X = torch.stack(points)
    y = torch.where(0.9 * torch.sin(6 * X[:, 0]) + X[:, 1] >= 0, 1.0, -1.0).to(F64)
    return torch.cat([X, torch.ones(n, 1, dtype=F64)], 1), y


def grid_outputs(X: Tensor, hidden: Tensor, output: Tensor, eps: float, side: int = 17) -> Tensor:
    """Outputs at the points of a grid over every row's ball, (..., N, side²)."""
    ticks = torch.linspace(-eps, eps, side, dtype=X.dtype)
    shifts = torch.cartesian_prod(ticks, ticks)
    shifts = torch.cat([shifts, torch.zeros(len(shifts), 1, dtype=X.dtype)], 1)
    points = (X.unsqueeze(-2) + shifts).flatten(-3, -2)
    return ((points @ hidden.mT).clamp_min(0) @ output.unsqueeze(-1)).squeeze(-1).unflatten(-1, (X.shape[-2], -1))


def trained_by_attacks(
    X: Tensor, y: Tensor, eps: float, seed: int, *, repeats: int, steps: int, beta: float = 1e-4
) -> list[tuple[Tensor, Tensor]]:
    """PGD-adversarial training of width 100 from ``repeats`` starts; small products run faster singly than batched."""
    starts = [generator(seed + 1000 * k) for k in range(repeats)]
    return [adversarial_network(X, y, eps, num_steps=steps, beta=beta, generator=start) for start in starts]
