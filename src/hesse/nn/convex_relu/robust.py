"""Two-layer ReLU networks trained against every l∞ move of their inputs, as one convex programme.

The inner maximum is in closed form: (2 D_i - I) X v_i >= eps ‖v_i‖₁ keeps each pattern through the whole ball, where
the network is linear; its slope at row k is q_k = Σ_i d_ik (v_i - w_i). ‖·‖₁ leaves the bias out.
Shapes: X (N, D) with E features and perhaps a bias, patterns (N, P), V (2, P, D).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg import safe_cholesky
from hesse.nn.convex_relu.admm import _check
from hesse.nn.convex_relu.interior_point import solve_conic
from hesse.nn.convex_relu.losses import LossName, curvature, loss_value, require_targets, slope

__all__ = ["RobustResult", "robust_loss", "robust_relu"]


@dataclass(frozen=True, slots=True)
class RobustResult:
    """Cone variables at the optimum of the robust programme."""

    V: Tensor  # (2, P, D)
    dual: Tensor  # (N,), slope of the loss at the worst-case margins; for hinge its multipliers
    objective: float  # worst-case loss and group norms
    gap: float
    converged: bool
    num_steps: int


def robust_loss(
    V: Tensor, X: Tensor, y: Tensor, D: Tensor, eps: float, kind: LossName = "hinge", *, intercept: bool = True
) -> Tensor:
    """Worst loss over each row's l∞ ball, exact where every pattern keeps through it.

    With m_k = y_k f_k - eps ‖q_k‖₁: the mean of max(0, 1 - m_k) or of log(1 + exp(-m_k)); squared:
    ½ Σ (|f_k - y_k| + eps ‖q_k‖₁)².

    Parameters
    ----------
    V : Tensor, shape (2, P, D)
        Cone variables.
    X : Tensor, shape (N, D)
        Rows.
    y : Tensor, shape (N,)
        Targets, or labels -1 and 1.
    D : Tensor, shape (N, P)
        Patterns.
    eps : float
        Radius, in units of X; 0 is the plain loss.
    kind : {"squared", "hinge", "bce"}, default "hinge"
        The loss.
    intercept : bool, default True
        Whether the last column of X is the bias, which is not perturbed.

    Returns
    -------
    Tensor, shape ()
        Differentiable.

    Raises
    ------
    ArgumentError
        If ``eps`` is negative, the loss is unknown, or labels are not -1 and 1.
    """
    require_targets("robust_loss", kind, y)
    if not eps >= 0:
        raise ArgumentError(f"robust_loss: expected eps >= 0, got {eps}")
    slopes = D.to(X.dtype) @ (V[0] - V[1])
    f = (X * slopes).sum(-1)
    free = slopes[:, : slopes.shape[1] - int(intercept)]
    reach = eps * free.abs().sum(-1)
    if kind == "squared":
        return ((f - y).abs() + reach).square().sum() / 2
    return loss_value(kind, y * f - reach, torch.ones_like(y))


def robust_relu(
    X: Tensor,
    y: Tensor,
    D: Tensor,
    *,
    eps: float,
    beta: float = 1e-4,
    loss: LossName = "hinge",
    intercept: bool = True,
    tol: float = 1e-8,
    max_steps: int = 100,
) -> RobustResult:
    """Train for the worst case over l∞ balls of radius eps, to the global optimum for the given patterns.

    The objective equals the worst-case loss of the recovered network plus weight decay, and so bounds the optimum of
    the nonconvex robust problem from above.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    y : Tensor, shape (N,)
        Targets, or labels -1 and 1.
    D : Tensor, shape (N, P)
        Patterns; keep those that `feasible_patterns` marks, the others only cost time. The all-ones pattern makes the
        model at worst a robust linear one.
    eps : float
        Radius, in units of X.
    beta : float, default 1e-4
        Weight decay, positive.
    loss : {"squared", "hinge", "bce"}, default "hinge"
        As for `robust_loss`.
    intercept : bool, default True
        Whether the last column of X is the bias.
    tol : float, default 1e-8
        Relative gap.
    max_steps : int, default 100
        Newton steps at most.

    Returns
    -------
    RobustResult
        In the dtype of X, without a graph.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    ShapeError
        If shapes do not fit.

    Notes
    -----
    A dense Newton matrix of 2 P (2 D + 1) + N D unknowns, on the CPU in float64: seconds up to some 3000 of them.

    References
    ----------
    Y. Bai, T. Gautam, S. Sojoudi (2023), SIAM J. Math. Data Sci., arXiv 2201.01965.
    """
    _check(X, y.reshape(len(y)), D, loss)
    if not eps >= 0 or not beta > 0:
        raise ArgumentError(f"robust_relu: expected eps >= 0 and beta > 0, got {eps} and {beta}")
    problem = _build(X, y, D, eps, beta, loss, intercept)
    found = solve_conic(problem, tol=tol, max_steps=max_steps)
    blocks = found.x[: problem.cones.numel()].view(2, D.shape[1], -1)[..., 1:]
    value, _ = problem.objective(found.x)
    if loss == "hinge":  # the multipliers of e_k + m_k >= 1 come last
        dual = -y.double().cpu() * found.multipliers[-len(X) :]
    else:
        dual = problem.y * slope(loss, problem.measured(found.x), problem.target)
    return RobustResult(blocks.to(X), dual.to(X), value, found.gap, found.converged, found.num_steps)


@dataclass(frozen=True, slots=True)
class _SparseProgramme:
    """min c·x + l(M x) subject to A x - h >= 0 and blocks of x in cones; the first unknowns are those blocks."""

    cost: Tensor
    A: sparse.csr_array
    h: Tensor
    cones: Tensor  # (C, D + 1), indices into x
    M: sparse.csr_array
    loss: LossName | None
    target: Tensor  # of l
    y: Tensor

    def measured(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.M @ x.numpy())

    def start(self) -> Tensor:
        return torch.zeros_like(self.cost)

    def objective(self, x: Tensor) -> tuple[float, Tensor]:
        value = float(self.cost @ x)
        if self.loss is None:
            return value, self.cost
        m = self.measured(x)
        gradient = self.cost + torch.from_numpy(self.M.T @ slope(self.loss, m, self.target).numpy())
        return value + float(loss_value(self.loss, m, self.target)), gradient

    def slack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.A @ x.numpy()), x[self.cones]

    def adjoint(self, linear: Tensor, cones: Tensor) -> Tensor:
        back = torch.from_numpy(self.A.T @ linear.numpy())
        back[: cones.numel()] += cones.flatten()
        return back

    def offset(self) -> Tensor:
        return self.h

    def factor(self, x: Tensor, linear: Tensor, cones: Tensor) -> Callable[[Tensor], Tensor]:
        hessian = self.A.T @ (sparse.diags_array(linear.numpy()) @ self.A)
        if self.loss is not None:
            bend = curvature(self.loss, self.measured(x), self.target).numpy()
            hessian = hessian + self.M.T @ (sparse.diags_array(bend) @ self.M)
        dense = torch.from_numpy(hessian.toarray())
        dense[self.cones.unsqueeze(2), self.cones.unsqueeze(1)] += cones
        lower = safe_cholesky(dense, jitter=1e-15, max_jitter=1e-6).L
        return lambda right: torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)


def _build(
    X: Tensor, y: Tensor, D: Tensor, eps: float, beta: float, loss: LossName, intercept: bool
) -> _SparseProgramme:
    # unknowns: (t_i, u_i) of all blocks; a_i >= |u_i| and b_k >= |q_k|, both without bias and if eps > 0; e_k
    rows, labels = X.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()
    gates = (D.detach().cpu().numpy() != 0).astype(float)
    n, d = rows.shape
    free = d - int(intercept) if eps > 0 else 0
    blocks = 2 * gates.shape[1]
    sizes = (blocks * (d + 1), blocks * free, n * free, 0 if loss == "bce" else n)
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def columns(part: int) -> sparse.csr_array:
        # picks one of the four kinds of unknowns out of x
        return sparse.csr_array(
            (np.ones(sizes[part]), (np.arange(sizes[part]), starts[part] + np.arange(sizes[part]))),
            shape=(sizes[part], starts[-1]),
        )

    select = sparse.csr_array(sparse.eye_array(d))
    drop_t = sparse.csr_array(sparse.eye_array(d + 1))[1:]
    U = sparse.kron(sparse.eye_array(blocks), drop_t, format="csr") @ columns(0)
    a, b, e = columns(1), columns(2), columns(3)
    q = sparse.kron(sparse.csr_array(np.hstack([gates, -gates])), select, format="csr") @ U
    f = sparse.block_diag([row[None] for row in rows], format="csr") @ q
    signs = np.tile(2 * gates - 1, 2).T
    nonzero = np.abs(rows).sum(1) > 0  # 0·v >= 0 has no inside
    keep = sparse.block_diag([sign[nonzero, None] * rows[nonzero] for sign in signs], format="csr") @ U
    parts = [keep]
    if free:
        ones = np.full((int(nonzero.sum()), free), eps)
        parts[0] = keep - sparse.kron(sparse.eye_array(blocks), ones, format="csr") @ a
        U_free = sparse.kron(sparse.eye_array(blocks), select[:free], format="csr") @ U
        q_free = sparse.kron(sparse.eye_array(n), select[:free], format="csr") @ q
        parts += [a - U_free, a + U_free, b - q_free, b + q_free]
    reach = eps * (sparse.kron(sparse.eye_array(n), np.ones((1, max(free, 1)))[:, :free], format="csr") @ b)
    worst = sparse.diags_array(labels) @ f - reach
    offsets = [np.zeros(sum(part.shape[0] for part in parts))]
    cost = np.zeros(starts[-1])
    cost[: sizes[0] : d + 1] = beta
    smooth, M, target = loss, worst, np.ones(n)
    if loss == "hinge":
        parts += [e, e + worst]
        offsets += [np.zeros(n), np.ones(n)]
        cost[starts[3] :] = 1 / n
        smooth = None
    elif loss == "squared":
        parts += [e + f - reach, e - f - reach]
        offsets += [labels, -labels]
        M, target = e, np.zeros(n)
    return _SparseProgramme(
        torch.from_numpy(cost),
        sparse.csr_array(sparse.vstack(parts)),
        torch.from_numpy(np.concatenate(offsets)),
        torch.arange(sizes[0]).view(blocks, d + 1),
        sparse.csr_array(M),
        smooth,
        torch.from_numpy(target),
        torch.from_numpy(labels),
    )
