"""Equal frequencies found and their coefficients added.   Shapes: N terms with repetitions, S terms without, D axes."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["group_rows", "largest_first", "merge_terms", "smallest_first"]

_KEY_LIMIT = 2**62


def group_rows(columns: Iterable[Tensor], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Find the distinct rows of an integer table given column by column.

    Columns are packed into one int64 key in mixed radix. Before a key would overflow it is replaced by its rank among
    the N keys seen, so the numbering is exact for any number of columns and the table itself is never built.

    Parameters
    ----------
    columns : iterable of Tensor, shape (N,)
        int64.
    count : int
        N.
    device : torch.device
        Of the columns.

    Returns
    -------
    first : Tensor, shape (S,)
        One row of each kind.
    group : Tensor, shape (N,)
        The kind of each row.
    """
    key = torch.zeros(count, dtype=torch.int64, device=device)
    if count == 0:
        return key, key
    size = 1
    for column in columns:
        low, high = (int(bound) for bound in torch.aminmax(column))
        span = high - low + 1
        if span == 1:
            continue
        if size > _KEY_LIMIT // span:
            kinds, key = torch.unique(key, return_inverse=True)
            size = len(kinds)
        key = key * span + (column - low)
        size *= span
    kinds, group = torch.unique(key, return_inverse=True)
    first = torch.zeros(len(kinds), dtype=torch.int64, device=device)
    return first.scatter_(0, group, torch.arange(count, device=device)), group


def merge_terms(freqs: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
    # (S, D) and (S,), in lexicographic order, from (N, D) and (N,) by adding coefficients of equal rows
    first, group = group_rows(freqs.unbind(1), len(freqs), freqs.device)
    return freqs[first], coef.new_zeros(len(first)).index_add(0, group, coef)


def smallest_first(group: Tensor, mass: Tensor, tol: float) -> Tensor:
    # which terms stay when the lightest groups go while all that goes has a mass within tol, shape (S,)
    total = mass.new_zeros(_count(group)).index_add(0, group, mass)
    order = torch.argsort(total)
    keep = torch.empty(len(total), dtype=torch.bool, device=mass.device)
    keep[order] = total[order].cumsum(0) > tol
    return keep[group]


def largest_first(group: Tensor, mass: Tensor, most: int) -> Tensor:
    # which terms stay when the heaviest groups are kept that have `most` terms together, shape (S,)
    total = mass.new_zeros(_count(group)).index_add(0, group, mass)
    order = torch.argsort(total, descending=True, stable=True)
    size = torch.bincount(group, minlength=len(total))
    keep = torch.empty(len(total), dtype=torch.bool, device=mass.device)
    keep[order] = size[order].cumsum(0) <= most
    return keep[group]


def _count(group: Tensor) -> int:
    return int(group.max()) + 1 if len(group) else 0
