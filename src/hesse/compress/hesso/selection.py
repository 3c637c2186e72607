"""Which groups to cut for a given budget: lowest scores first, no family emptied.   Shapes: G groups, F families."""

import torch
from torch import Tensor

__all__ = ["select_groups"]


def select_groups(
    scores: Tensor,
    pruned: Tensor,
    family_of: Tensor,
    costs: Tensor,
    budget: float,
    *,
    min_keep: int = 1,
    group_divisible: int = 1,
) -> Tensor:
    """Choose groups of lowest score until their costs fill the budget; groups already cut stay so, and count.

    Parameters
    ----------
    scores : Tensor, shape (G,)
        Low is redundant; infinite: never.
    pruned : Tensor, shape (G,)
        bool: cut already.
    family_of : Tensor, shape (G,)
        Family of every group.
    costs : Tensor, shape (G,)
        What each saves, in units of the budget.
    budget : float
        Savings wanted in all; as much of it is used as fits.
    min_keep : int, default 1
        Groups that stay in every family.
    group_divisible : int, default 1
        What stays in a family is a multiple of it, or the whole family. The last few chosen are given up for that.

    Returns
    -------
    Tensor, shape (G,)
        bool: cut now, the former ones included.

    Notes
    -----
    Sorting only, O(G log G), on the device of ``scores``; equal scores are taken in the order of the groups, so that
    every rank of a data-parallel job chooses alike.
    """
    family_of, costs = family_of.to(scores.device), costs.to(scores.device)
    size = torch.bincount(family_of)
    least = -(-max(min_keep, 1) // group_divisible) * group_divisible
    room = (size - least).clamp_min(0)
    keys = scores.masked_fill(pruned, -torch.inf)
    rank = _rank_in_family(keys, family_of)
    allowed = pruned | ((rank < room[family_of]) & (scores < torch.inf))
    order = torch.argsort(keys.masked_fill(~allowed, torch.inf), stable=True)
    spent = torch.cumsum(costs[order].masked_fill(~allowed[order], torch.inf), 0)
    chosen = torch.zeros_like(pruned)
    chosen[order] = spent <= budget * (1 + 1e-12)
    chosen |= pruned
    count = torch.bincount(family_of[chosen], minlength=len(size))
    kept = -torch.div(count - size, group_divisible, rounding_mode="floor") * group_divisible
    before = torch.bincount(family_of[pruned], minlength=len(size))
    return rank < torch.maximum((size - kept).clamp_min(0), before)[family_of]


def _rank_in_family(keys: Tensor, family_of: Tensor) -> Tensor:
    # place of every group among those of its family, lowest key first
    order = torch.argsort(keys, stable=True)
    order = order[torch.argsort(family_of[order], stable=True)]
    size = torch.bincount(family_of)
    start = torch.cumsum(size, 0) - size
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start[family_of[order]]
    return rank
