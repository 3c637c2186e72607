"""Apply one block's loss to every block: traced once where torch can, block by block where it cannot."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["over_blocks"]


@cache
def _numbers_index() -> bool:
    # whether a loss may write data[i] with a traced number i; torch 2.6 asks for the number's value, which it lacks
    try:
        torch.vmap(lambda i: torch.zeros(2)[i])(torch.arange(2))
    except RuntimeError:
        return False
    return True


def over_blocks(loss: Callable[..., Tensor], in_dims: tuple[int | None, ...], count: int) -> Callable[..., Tensor]:
    """Map a loss over blocks that lie along the first axis.

    Parameters
    ----------
    loss : callable
        (*arguments of one block) -> scalar.
    in_dims : tuple of int or None
        One an argument: 0 where blocks lie along the first axis, None where all blocks share it.
    count : int
        Blocks, at least one.

    Returns
    -------
    callable
        (*arguments of all blocks) -> (count,). One call of the loss where a traced number can index a tensor, else
        ``count`` calls with the same values.
    """
    return torch.vmap(loss, in_dims=in_dims) if _numbers_index() else one_by_one(loss, in_dims, count)


def one_by_one(loss: Callable[..., Tensor], in_dims: tuple[int | None, ...], count: int) -> Callable[..., Tensor]:
    """Do as `over_blocks` does without a trace; its arguments.

    Parameters
    ----------
    loss : callable
        (*arguments of one block) -> scalar.
    in_dims : tuple of int or None
        As there.
    count : int
        As there.

    Returns
    -------
    callable
        (*arguments of all blocks) -> (count,).
    """

    def block(argument: Any, dim: int | None, k: int) -> Any:
        return argument if dim is None else tree_map(lambda leaf: leaf[k], argument)

    def mapped(*arguments: Any) -> Tensor:
        pairs = list(zip(arguments, in_dims, strict=True))
        return torch.stack([loss(*(block(argument, dim, k) for argument, dim in pairs)) for k in range(count)])

    return mapped
