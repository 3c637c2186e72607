"""Arguments of an entropic transport problem, checked once.   Shapes: B problems, n sources, m targets."""

import warnings
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.transport.problem import Problem

__all__ = ["check_problem", "check_tolerance"]


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
