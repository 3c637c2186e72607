"""The units that cost least, within limits.   Shapes: U units, C groups of M units."""

import torch
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["choose_units"]


def choose_units(
    scores_U: Tensor,
    alive_U: Tensor,
    count: int | None,
    *,
    groups: tuple[Tensor, int] | None = None,
    protected_U: Tensor | None = None,
) -> Tensor:
    """Choose the units to drop: those with the smallest scores, the first of equals.

    Parameters
    ----------
    scores_U : Tensor, shape (U,)
        What each costs.
    alive_U : Tensor of bool, shape (U,)
        Units not dropped before.
    count : int, optional
        How many. Default: as many as the groups allow.
    groups : tuple of Tensor, shape (C, M), and int, optional
        Numbers of units, and how many of each group may be dropped in all, earlier ones included. Default: no limit.
    protected_U : Tensor of bool, shape (U,), optional
        Units that must stay. Default: none.

    Returns
    -------
    Tensor of bool, shape (U,)
        True for those to drop now. O(U log U).

    Raises
    ------
    ArgumentError
        If the limits leave fewer than ``count``.
    """
    allowed = alive_U.clone() if protected_U is None else alive_U & ~protected_U
    if groups is not None:
        members, limit = groups
        room = (limit - (~alive_U[members]).sum(1)).clamp(min=0)
        ranks = torch.where(allowed, scores_U, torch.inf)[members].argsort(dim=1, stable=True).argsort(1)
        cheap = torch.zeros_like(allowed)
        cheap[members.flatten()] = (ranks < room.unsqueeze(1)).flatten()
        allowed &= cheap
    available = int(allowed.sum())
    count = available if count is None else count
    if count > available:
        raise ArgumentError(
            f"choose_units: {count} units must go to reach the sparsity, but only {available} may; lower the sparsity "
            "or min_keep"
        )
    numbers = allowed.nonzero().squeeze(1)
    chosen = torch.zeros_like(allowed)
    chosen[numbers[scores_U[numbers].argsort(stable=True)[:count]]] = True
    return chosen
