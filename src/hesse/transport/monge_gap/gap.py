"""How far a map is from optimal for a cost, read off pairs (x, T(x)).   Shapes: N pairs, D coordinates."""

from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hesse.errors import ArgumentError, ConvergenceError, NumericalError
from hesse.transport.costs import Cost, CostLike, as_cost
from hesse.transport.monge_gap._checks import paired_points
from hesse.transport.monge_gap._entropic import check_finite, check_scale, entropic_plan

__all__ = ["Entropy", "Optimality", "monge_gap", "optimality_ratio"]

Entropy = Literal["kl", "shannon"]
"""Which entropy the transport cost is lowered by, for the value of the gap; the gradient is the same."""


@dataclass(frozen=True, slots=True)
class Optimality:
    """What the pairs cost against what the best pairing of the same points would."""

    map_cost: float  # (1/N) Σ c(x_i, T(x_i))
    optimal_cost: float  # the same for the cheapest permutation of the T(x_i), exact
    ratio: float  # map_cost / optimal_cost - 1 >= 0; 0 for an optimal map


@overload
def monge_gap(
    x: Tensor,
    Tx: Tensor,
    cost: CostLike = ...,
    eps: float | None = ...,
    relative_eps: float = ...,
    entropy: Entropy | None = ...,
    return_plan: Literal[False] = ...,
    *,
    tol: float = ...,
    max_steps: int = ...,
    strict: bool = ...,
) -> Tensor: ...


@overload
def monge_gap(
    x: Tensor,
    Tx: Tensor,
    cost: CostLike = ...,
    eps: float | None = ...,
    relative_eps: float = ...,
    entropy: Entropy | None = ...,
    *,
    return_plan: Literal[True],
    tol: float = ...,
    max_steps: int = ...,
    strict: bool = ...,
) -> tuple[Tensor, Tensor]: ...


def monge_gap(
    x: Tensor,
    Tx: Tensor,
    cost: CostLike = "sqeuclidean",
    eps: float | None = None,
    relative_eps: float = 0.01,
    entropy: Entropy | None = "kl",
    return_plan: bool = False,
    *,
    tol: float = 1e-3,
    max_steps: int = 2000,
    strict: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """M = (1/N) Σ c(x_i, T(x_i)) - W(ρ, T#ρ): what the pairs cost beyond the best transport of x to T(x).

    At eps = 0 it is at least zero, and zero if and only if the pairing is optimal; it says nothing about where T(x)
    ought to lie. With eps > 0 the transport cost is the entropic one, and the zero moves by what the entropy is worth.

    Parameters
    ----------
    x : Tensor, shape (N, D)
        Points of the reference measure, all of weight 1/N.
    Tx : Tensor, shape (N, E)
        Their images, row by row. E may differ from D only for a cost that is defined on such pairs.
    cost : str, Cost or callable, default "sqeuclidean"
        c; see `hesse.transport.as_cost`.
    eps : float, optional
        Strength of the entropy, in units of the cost. Zero: exact, by an assignment (O(N³) time, with uniform weights
        the optimal plan is a permutation). Default: ``relative_eps`` times the mean of all c(x_i, T(x_j)).
    relative_eps : float, default 0.01
        Small enough for the plan to see the pairing, large enough for some hundred sweeps to find it.
    entropy : {"kl", "shannon"} or None, default "kl"
        The value reported. "kl": W = min <P, C> + eps KL(P | 1/N²), and M >= -eps log N, so that an optimal map may
        come out **negative**. "shannon": W = min <P, C> - eps H(P), which is 2 eps log N lower, and M >= eps log N.
        None: the plan's own cost, W = <P, C>, biased towards zero from above: M may be slightly negative. At eps = 0
        all three agree.
    return_plan : bool, default False
        Also return the plan, shape (N, N), which carries no gradient.
    tol : float, default 1e-3
        Bound on the L1 error of the plan's first marginal. Enough for training; use 1e-9 and float64 for values.
    max_steps : int, default 2000
        Sweeps of Sinkhorn's iteration at most.
    strict : bool, default False
        Raise where the sweeps did not reach ``tol``. Training does better with the plan it has.

    Returns
    -------
    Tensor, shape ()
        In units of the cost, differentiable in both x and Tx by the envelope theorem: the plan is held fixed, so that
        the gradient in T(x_j) is ∇c(x_j, T_j)/N - Σ_i P_ij ∇c(x_i, T_j). Exact for "kl" and "shannon" up to ``tol``;
        for None it is their gradient too, not that of <P, C>.
    Tensor, shape (N, N)
        Only with ``return_plan``.

    Raises
    ------
    ShapeError
        If x and Tx are not two matrices of as many rows, or differ in dtype or device.
    ArgumentTypeError
        If they are no floating-point tensors.
    ArgumentError
        If eps is negative or below the resolution of the dtype, or ``entropy`` is none of those.
    NumericalError
        If a cost is NaN or infinite.
    ConvergenceError
        With ``strict``, if ``tol`` was not reached.

    Notes
    -----
    O(N²) memory; O(N²) work a sweep. Half precision is refused: C / eps needs more digits than it has.

    References
    ----------
    T. Uscidda, M. Cuturi (2023), ICML, arXiv 2302.04953.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(float(monge_gap(x, 5 - x, eps=0.0)), 4)  # the order is reversed: 35/3, where 9 would do
    2.6667
    """
    paired_points("monge_gap", x, Tx)
    if entropy not in ("kl", "shannon", None):
        raise ArgumentError(f'monge_gap: expected entropy "kl", "shannon" or None, got {entropy!r}')
    ground, n = as_cost(cost), len(x)
    matrix = ground.pairwise(x, Tx)
    strength = relative_eps * float(matrix.detach().mean()) if eps is None else eps
    if eps == 0:
        check_finite("monge_gap", matrix.detach())
        plan = _permutation_plan(matrix.detach())
        transport = (plan * matrix).sum()
    else:
        check_scale("monge_gap", matrix.detach(), strength)
        weights = x.new_full((n,), 1 / n)
        found = entropic_plan(matrix.detach(), strength, weights, weights, tol=tol, max_steps=max_steps)
        if strict and not found.converged:
            raise ConvergenceError(
                f"monge_gap: marginal error {found.residual:.1e} > tol={tol:.1e} after {found.num_steps} sweeps; "
                "raise eps or max_steps"
            )
        plan = found.plan
        transport = (plan * matrix).sum()
        if entropy is not None:
            value = (found.f.mean() + found.g.mean()) - (entropy == "shannon") * 2 * strength * np.log(n)
            transport = transport + (value - transport.detach())
    gap = ground.paired(x, Tx).mean() - transport
    return (gap, plan) if return_plan else gap


def optimality_ratio(x: Tensor, Tx: Tensor, cost: CostLike = "sqeuclidean") -> Optimality:
    """Ratio = (mean c(x_i, T(x_i)) - OT) / OT with the exact transport cost OT of x to T(x): a certificate of a map.

    Parameters
    ----------
    x : Tensor, shape (N, D)
        Points that training did not see, best of all; their number is the resolution of the answer.
    Tx : Tensor, shape (N, E)
        Their images, row by row.
    cost : str, Cost or callable, default "sqeuclidean"
        c; see `hesse.transport.as_cost`. It must be positive somewhere, or the ratio has no meaning.

    Returns
    -------
    Optimality
        An optimal map has ratio 0 on every sample, however small: a subset of an optimal pairing is optimal. So the
        ratio cannot accuse an optimal map; it may miss, on few points, what a map does wrong between them.

    Raises
    ------
    ShapeError
        If x and Tx are not two matrices of as many rows, or differ in dtype or device.
    ArgumentTypeError
        If they are no floating-point tensors.
    NumericalError
        If a cost is NaN or infinite, or the optimal cost is not positive (nothing moves).

    Notes
    -----
    O(N³) time at worst, O(N²) memory: a second or two for 2000 points.
    """
    paired_points("optimality_ratio", x, Tx)
    ground: Cost = as_cost(cost)
    with torch.no_grad():
        matrix = ground.pairwise(x, Tx).double()
        map_cost = float(ground.paired(x, Tx).double().mean())
        check_finite("optimality_ratio", matrix)
        optimal = float((_permutation_plan(matrix) * matrix).sum())
    if not optimal > 0:
        raise NumericalError(
            f"optimality_ratio: the optimal cost is {optimal:.1e}: a map that moves nothing has no ratio"
        )
    return Optimality(map_cost, optimal, map_cost / optimal - 1)


def _permutation_plan(matrix: Tensor) -> Tensor:
    # the cheapest pairing, with entries 1/N
    rows, columns = linear_sum_assignment(matrix.cpu().numpy())
    plan = torch.zeros_like(matrix)
    plan[torch.as_tensor(rows), torch.as_tensor(columns)] = 1 / len(matrix)
    return plan
