"""Semismooth Newton for a quadratic plus weighted squared hinges: what projections and support vectors come down to.

    min_u  Σ_j ridge_j (u_j - center_j)²/2 + Σ_i weights_i max(0, offsets_i - rows_i·u)²/2

Shapes: D unknowns, n rows.
"""

import math

import torch
from torch import Tensor

from hesse.errors import ConvergenceError

__all__ = ["minimize_hinge_squares"]

_HALVINGS = 40
_FLAT_STEPS = 3  # without a fall of the objective, until rounding is taken to have the last word


def minimize_hinge_squares(
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor,
    center: Tensor,
    ridge: Tensor,
    *,
    start: Tensor | None = None,
    always: Tensor | None = None,
    max_steps: int = 200,
) -> Tensor:
    """Minimise the quadratic of the hinges that are active, until they stay the same.

    Parameters
    ----------
    rows : Tensor, shape (n, D)
        Gradients of the hinges, sign turned.
    offsets, weights : Tensor, shape (n,)
        Where each hinge begins, and its factor >= 0.
    center, ridge : Tensor, shape (D,)
        Middle and factor >= 0 of the quadratic; a zero leaves an unknown to the hinges.
    start : Tensor, shape (D,), optional
        Default: the center.
    always : Tensor of bool, shape (n,), optional
        Rows that are squares on both sides, no hinges: penalties of equations. Default: none.
    max_steps : int, default 200
        Newton steps; from a near start, two to eight are usual.

    Returns
    -------
    Tensor, shape (D,)
        Exact up to rounding: a full step that leaves the active set as it was lands on the minimum. No graph.

    Raises
    ------
    ConvergenceError
        If ``max_steps`` do not suffice, or the data are not finite.

    Notes
    -----
    O(n D²) a step for n >= D, else O(n² D) by Woodbury's identity where no ridge is zero. Steps are halved until the
    objective falls (it is convex and once differentiable, so that Newton's direction always descends).
    """
    rows, offsets, weights, center, ridge = (t.detach() for t in (rows, offsets, weights, center, ridge))

    def look(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gap = offsets - rows @ u
        active = gap > 0 if always is None else (gap > 0) | always
        pull = torch.where(active, gap, 0)
        value = (ridge * (u - center).square()).sum() + (weights * pull.square()).sum()
        return active, pull, value / 2

    u = center if start is None else start.detach()
    active, pull, value = look(u)
    eps = torch.finfo(u.dtype).eps
    flat, best = 0, (math.inf, u)
    for _ in range(max_steps):
        gradient = ridge * (u - center) - (weights * pull) @ rows
        best = min(best, (float(gradient.norm()), u), key=lambda pair: pair[0])
        if flat == _FLAT_STEPS:
            return best[1]
        direction = -_solve(rows[active], weights[active], ridge, gradient)
        slope, step = float(gradient @ direction), 1.0
        for _ in range(_HALVINGS):
            moved = u + step * direction
            now, pull_now, value_now = look(moved)
            if float(value_now) <= float(value) + 1e-4 * step * slope + 8 * eps * abs(float(value)):
                break
            step /= 2
        else:  # Newton's direction descends: where no step does, rounding hides the descent, or there is a NaN
            if math.isfinite(float(value)):
                return best[1]
            break
        settled = step == 1.0 and bool((now == active).all())
        # rows that lie on their hinge may switch for ever by rounding, which the objective does not see
        flat += not bool(value_now < value)
        u, active, pull, value = moved, now, pull_now, value_now
        if settled:
            return u
    raise ConvergenceError(
        f"semismooth Newton: active rows still change after {max_steps} steps; are all data finite and of like size?"
    )


def _solve(rows: Tensor, weights: Tensor, ridge: Tensor, vector: Tensor) -> Tensor:
    # (diag(ridge) + rowsᵀ diag(weights) rows)⁻¹ vector
    if not len(rows) and bool((ridge > 0).all()):
        return vector / ridge
    if len(rows) < len(ridge) and bool((ridge > 0).all()) and bool((weights > 0).all()):
        scaled = rows / ridge
        inner = torch.diag(1 / weights) + scaled @ rows.mT
        return vector / ridge - torch.linalg.solve(inner, scaled @ vector) @ scaled
    matrix = torch.diag(ridge) + (rows.mT * weights) @ rows
    # an unknown without ridge that no active row holds: any finite step will do, the line search judges it
    slack = torch.finfo(ridge.dtype).eps * matrix.diagonal().max().clamp_min(torch.finfo(ridge.dtype).tiny)
    return torch.linalg.solve(matrix + torch.diag(torch.where(ridge > 0, 0, slack)), vector)
