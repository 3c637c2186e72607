"""The convex programme of a two-layer ReLU network to full accuracy: interior points with a Newton step of its own.

Each block (t_i, u_i) has a small matrix, and the loss couples all blocks through N outputs: a Newton step costs P small
factors and one of N x N, not one of 2 P (D + 1). Shapes: X (N, D), patterns (N, P), C = 2 P blocks (t, u) of D + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg import safe_cholesky
from hesse.nn.convex_relu.admm import _check
from hesse.nn.convex_relu.interior_point import solve_conic
from hesse.nn.convex_relu.losses import LossName, curvature, loss_value, slope
from hesse.nn.convex_relu.robust import robust_relu

__all__ = ["ExactResult", "exact_relu"]


@dataclass(frozen=True, slots=True)
class ExactResult:
    """Cone variables at the optimum."""

    V: Tensor  # (2, P, D)
    dual: Tensor  # (N,), a subgradient of the loss at the outputs
    gap: float  # bound of what is left to gain, in the units of the objective
    converged: bool
    num_steps: int


def exact_relu(
    X: Tensor,
    y: Tensor,
    D: Tensor,
    *,
    beta: float = 1e-2,
    loss: LossName = "squared",
    tol: float = 1e-8,
    max_steps: int = 100,
    monitor: Callable[[int, Tensor], bool] | None = None,
) -> ExactResult:
    """Train on given patterns to (nearly) machine accuracy.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows; the work is done in float64.
    y : Tensor, shape (N,)
        Targets, or labels -1 and 1.
    D : Tensor, shape (N, P)
        Distinct patterns.
    beta : float, default 1e-2
        Weight decay, positive: without it the optimum need not be attained.
    loss : {"squared", "hinge", "bce"}, default "squared"
        As for `admm_relu`. Hinge has corners and goes through `robust_relu` with ``eps=0``, which is for small P.
    tol : float, default 1e-8
        Relative gap.
    max_steps : int, default 100
        Newton steps at most.
    monitor : callable, optional
        (step, V) -> whether to stop.

    Returns
    -------
    ExactResult
        In the dtype of X, without a graph.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or X or y are not finite.
    ShapeError
        If shapes do not fit, or y has more than one column.

    Notes
    -----
    O(P N² D + P N D² + N³) a step and O(P N D) memory; some thirty steps.

    References
    ----------
    M. Pilanci, T. Ergen (2020), ICML, arXiv 2002.10553.
    """
    _check(X, y.reshape(len(y)), D, loss)
    if not beta > 0:
        raise ArgumentError(f"exact_relu: expected beta > 0, got {beta}")
    if loss == "hinge":
        found = robust_relu(X, y, D, eps=0.0, beta=beta, loss=loss, intercept=False, tol=tol, max_steps=max_steps)
        return ExactResult(found.V, found.dual, found.gap, found.converged, found.num_steps)
    problem = _Programme.build(X.detach().double(), y.detach().double(), D, beta, loss)

    def blocks(x: Tensor) -> Tensor:
        return x.unflatten(0, (2, -1))[..., 1:]

    watch = None if monitor is None else lambda step, x: monitor(step, blocks(x))
    found = solve_conic(problem, tol=tol, max_steps=max_steps, monitor=watch)
    dual = slope(loss, problem.outputs(found.x), problem.y)
    return ExactResult(blocks(found.x).to(X), dual.to(X), found.gap, found.converged, found.num_steps)


@dataclass(frozen=True, slots=True)
class _Programme:
    X: Tensor  # (N, D)
    y: Tensor  # (N,)
    gates: Tensor  # (C, N): d_i of v_i, then -d_i of w_i
    signed: Tensor  # (C, N'): 2 d_i - 1 on the rows that are not zero
    rows: Tensor  # (N', D): those rows, since 0·v >= 0 has no inside
    products: Tensor  # (N', D²): their outer products
    beta: float
    loss: LossName

    @classmethod
    def build(cls, X: Tensor, y: Tensor, D: Tensor, beta: float, loss: LossName) -> "_Programme":
        gates = D.mT.to(X)
        nonzero = (X != 0).any(1)
        rows = X[nonzero]
        signed = (2 * gates - 1)[:, nonzero].repeat(2, 1)
        products = (rows.unsqueeze(2) * rows.unsqueeze(1)).flatten(1)
        return cls(X, y, torch.cat([gates, -gates]), signed, rows, products, beta, loss)

    def outputs(self, x: Tensor) -> Tensor:
        return ((x[:, 1:] @ self.X.mT) * self.gates).sum(0)

    def start(self) -> Tensor:
        return self.X.new_zeros(len(self.gates), self.X.shape[1] + 1)

    def objective(self, x: Tensor) -> tuple[float, Tensor]:
        f = self.outputs(x)
        gradient = torch.cat([torch.full_like(x[:, :1], self.beta), self._spread(slope(self.loss, f, self.y))], 1)
        return float(loss_value(self.loss, f, self.y) + self.beta * x[:, 0].sum()), gradient

    def slack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return ((x[:, 1:] @ self.rows.mT) * self.signed).flatten(), x

    def adjoint(self, linear: Tensor, cones: Tensor) -> Tensor:
        back = (linear.view_as(self.signed) * self.signed) @ self.rows
        return torch.cat([cones[:, :1], cones[:, 1:] + back], 1)

    def offset(self) -> Tensor:
        return self.X.new_zeros(self.signed.numel())

    def factor(self, x: Tensor, linear: Tensor, cones: Tensor) -> Callable[[Tensor], Tensor]:
        d = self.X.shape[1]
        small = cones.clone()
        small[:, 1:, 1:] += (linear.view_as(self.signed) @ self.products).unflatten(1, (d, d))
        lower = safe_cholesky(small, jitter=1e-15, max_jitter=1e-6).L
        # t comes first, so the first row of L⁻¹ [0; Xᵀ D_i] is zero and the rest needs the D x D corner alone
        coupling = self.gates.unsqueeze(1) * self.X.mT
        half = torch.linalg.solve_triangular(lower[:, 1:, 1:], coupling, upper=False).flatten(0, 1)  # (C D, N)
        core = half.mT @ half
        core.diagonal().add_(1 / curvature(self.loss, self.outputs(x), self.y).clamp_min(1e-12))
        core_lower = safe_cholesky(core, jitter=1e-15, max_jitter=1e-6).L

        def solve(right: Tensor) -> Tensor:
            z = torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)
            c = torch.cholesky_solve(self.outputs(z).unsqueeze(-1), core_lower).squeeze(-1)
            back = torch.cat([torch.zeros_like(x[:, :1]), self._spread(c)], 1)
            return z - torch.cholesky_solve(back.unsqueeze(-1), lower).squeeze(-1)

        return solve

    def _spread(self, c: Tensor) -> Tensor:
        return (c * self.gates) @ self.X
