"""A transport problem, checked once: weights, costs in units of the regularisation, and what P says about them.

P_ij = exp(u_i + v_j - M_ij / reg).   Shapes: B problems, n sources, m targets.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "Problem",
    "check_problem",
    "check_tolerance",
    "cost_spread",
    "kernel",
    "marginal_error",
    "marginals",
    "times",
    "times_transposed",
]

EXPONENT_LIMIT = 50.0  # trial points of a line search may be absurd; their plans must still be numbers


@dataclass(frozen=True, slots=True)
class Problem:
    """B problems of one shape without a graph. Forbidden pairs, and all pairs of a point without weight, cost +inf."""

    cost: Tensor  # (B, n, m), in the user's units
    a: Tensor  # (B, n)
    b: Tensor  # (B, m)
    reg: float
    batched: bool  # whether the user's cost had a batch dimension

    @property
    def scaled(self) -> Tensor:
        """M / reg, shape (B, n, m)."""
        return self.cost / self.reg

    def take(self, which: Tensor) -> "Problem":
        """Pick some of the problems.

        Parameters
        ----------
        which : Tensor of int64 or bool, shape (k,) or (B,)
            Their places in the batch, or a mask.

        Returns
        -------
        Problem
            A copy of them.
        """
        return Problem(self.cost[which], self.a[which], self.b[which], self.reg, self.batched)


def kernel(scaled: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Compute the plan of two potentials in logarithmic units, exponents clipped at 50.

    Parameters
    ----------
    scaled : Tensor, shape (B, n, m)
        M / reg.
    u : Tensor, shape (B, n)
        Of the sources.
    v : Tensor, shape (B, m)
        Of the targets.

    Returns
    -------
    Tensor, shape (B, n, m)
        P_ij = exp(u_i + v_j - M_ij / reg).
    """
    exponent = u.unsqueeze(-1) - scaled
    return exponent.add_(v.unsqueeze(-2)).clamp_(max=EXPONENT_LIMIT).exp_()


def cost_spread(problem: Problem) -> float:
    """Measure how far the allowed costs lie apart.

    Parameters
    ----------
    problem : Problem
        All of a batch count together.

    Returns
    -------
    float
        max(M) - min(M), in units of the cost.
    """
    allowed = problem.cost[problem.cost < torch.inf]
    return float(allowed.max() - allowed.min())


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply each matrix by its vector; a batch of one takes the matrix-vector routine, nine times as fast on a CPU.

    Parameters
    ----------
    matrix : Tensor, shape (B, n, m)
        B matrices.
    x : Tensor, shape (B, m)
        B vectors.

    Returns
    -------
    Tensor, shape (B, n)
        The products.
    """
    if len(matrix) == 1:
        return (matrix[0] @ x[0]).unsqueeze(0)
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def times_transposed(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply the transpose of each matrix by its vector.

    Parameters
    ----------
    matrix : Tensor, shape (B, n, m)
        B matrices.
    x : Tensor, shape (B, n)
        B vectors.

    Returns
    -------
    Tensor, shape (B, m)
        The products.
    """
    return times(matrix.mT, x)


def marginals(plan: Tensor) -> tuple[Tensor, Tensor]:
    """Sum each plan along both sides.

    Parameters
    ----------
    plan : Tensor, shape (B, n, m)
        P.

    Returns
    -------
    tuple of (Tensor, Tensor)
        Row sums (B, n) and column sums (B, m).
    """
    ones = plan.new_ones(len(plan), plan.shape[1])
    return plan.sum(-1), times_transposed(plan, ones)


def marginal_error(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Measure how far a plan is from its marginals: ‖P 1 - a‖₁ + ‖Pᵀ1 - b‖₁.

    Parameters
    ----------
    plan : Tensor, shape (n, m) or (batch, n, m)
        P.
    a : Tensor, shape (n,) or (batch, n)
        Source weights.
    b : Tensor, shape (m,) or (batch, m)
        Target weights.

    Returns
    -------
    Tensor, shape () or (batch,)
        In units of mass.
    """
    return (plan.sum(-1) - a).abs().sum(-1) + (plan.sum(-2) - b).abs().sum(-1)


def check_problem(name: str, a: Any, b: Any, M: Any, reg: float) -> tuple[Tensor, Tensor, Tensor, Problem]:
    """Refuse what cannot be solved, and bring the rest into one form.

    Parameters
    ----------
    name : str
        The caller, for messages.
    a : Tensor, array or None, shape (n,) or (batch, n)
        Source weights >= 0; None or empty means uniform.
    b : Tensor, array or None, shape (m,) or (batch, m)
        Target weights of the same total.
    M : Tensor or array, shape (n, m) or (batch, n, m)
        Costs; +inf forbids a pair.
    reg : float
        Weight of the entropy, in units of the cost.

    Returns
    -------
    tuple of (Tensor, Tensor, Tensor, Problem)
        Weights and costs as tensors of the cost's batch, with their graph, and the problem without it.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a weight is negative, the totals differ, a cost is NaN or -inf, or a point with weight has no finite cost.
    """
    cost = torch.as_tensor(M)
    if cost.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"{name}: expected M in float32 or float64, got {cost.dtype}; half precision is too coarse")
    if cost.ndim not in (2, 3) or 0 in cost.shape:
        raise ShapeError(f"{name}: expected M of shape (n, m) or (batch, n, m), got {tuple(cost.shape)}")
    if not 0 < reg < float("inf"):
        raise ArgumentError(f"{name}: expected reg > 0, got {reg}")
    source = _weights(name, "a", a, cost, cost.shape[-2])
    target = _weights(name, "b", b, cost, cost.shape[-1])
    batched = cost.ndim == 3
    plain = cost.detach() if batched else cost.detach().unsqueeze(0)
    rows, columns = (w.detach() if batched else w.detach().unsqueeze(0) for w in (source, target))
    if bool(plain.isnan().any()) or bool((plain == -torch.inf).any()):
        raise ArgumentError(f"{name}: M has NaN or -inf; +inf is allowed and forbids a pair")
    totals = rows.sum(-1), columns.sum(-1)
    slack = 100 * torch.finfo(cost.dtype).eps * max(cost.shape[-2:]) ** 0.5
    if bool(((totals[0] - totals[1]).abs() > slack * totals[0].abs()).any()):
        worst = int((totals[0] - totals[1]).abs().argmax())
        raise ArgumentError(
            f"{name}: a and b must have the same total, got {float(totals[0][worst])!r} and "
            f"{float(totals[1][worst])!r}; rescale one of them"
        )
    if bool((totals[0] <= 0).any()):
        raise ArgumentError(f"{name}: a and b have no mass")
    # a point without weight takes no part; its pairs are forbidden, which keeps every other formula as it is
    live = (rows > 0).unsqueeze(-1) & (columns > 0).unsqueeze(-2)
    closed = plain if bool(live.all()) else torch.where(live, plain, torch.inf)
    open_pairs = closed < torch.inf
    for label, weights, dim in (("a", rows, -1), ("b", columns, -2)):
        stranded = (weights > 0) & ~open_pairs.any(dim)
        if bool(stranded.any()):
            at = stranded.nonzero()[0].tolist()[-1]
            raise ArgumentError(f"{name}: {label}[{at}] has weight, but every pair it could use is forbidden (+inf)")
    return source, target, cost, Problem(closed, rows, columns, float(reg), batched)


def _weights(name: str, label: str, given: Any, cost: Tensor, size: int) -> Tensor:
    shape = (*cost.shape[:-2], size)
    if given is None or len(given) == 0:
        return cost.new_full(shape, 1 / size)
    weights = torch.as_tensor(given)
    if weights.dtype != cost.dtype or weights.device != cost.device:
        raise ShapeError(
            f"{name}: {label} is {weights.dtype} on {weights.device}, M {cost.dtype} on {cost.device}; convert by .to"
        )
    if weights.shape not in (torch.Size((size,)), torch.Size(shape)):
        raise ShapeError(f"{name}: expected {label} of shape {shape}, got {tuple(weights.shape)}")
    if not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ArgumentError(f"{name}: expected finite weights {label} >= 0")
    return weights.expand(shape)


def check_tolerance(name: str, tol: float | None, dtype: torch.dtype, default: float) -> float:
    """Settle the tolerance on the marginal error.

    Parameters
    ----------
    name : str
        The caller, for messages.
    tol : float or None
        As given.
    dtype : torch.dtype
        Of the costs.
    default : float
        In double precision.

    Returns
    -------
    float
        In single precision 1e-5 at least: sums of a plan carry no more digits, and a warning says so.

    Raises
    ------
    ArgumentError
        If ``tol`` is negative.
    """
    if tol is not None and not tol >= 0:
        raise ArgumentError(f"{name}: expected tol >= 0, got {tol}")
    if dtype == torch.float64:
        return default if tol is None else tol
    floor = 1e-5
    if tol is not None and tol < floor:
        warnings.warn(
            f"{name}: tol={tol:g} is out of reach in float32, using {floor:g}; pass M in float64", stacklevel=3
        )
    return max(floor, default if tol is None else tol)
