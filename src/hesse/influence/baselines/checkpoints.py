"""A model at several points of its training, one after the other."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sized

from torch import Tensor, nn

from hesse.errors import ArgumentError

__all__ = ["each_checkpoint"]


def each_checkpoint(
    model: nn.Module, checkpoints: Iterable[Mapping[str, Tensor]], count: int | None = None
) -> Iterator[nn.Module]:
    """Load one state after the other into a copy of the model.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    checkpoints : iterable of mappings
        State dictionaries.
    count : int, optional
        How many there must be.

    Yields
    ------
    nn.Module
        The same copy each time, in the model's mode.

    Raises
    ------
    ArgumentError
        If a state does not fit the model, or there are more or fewer than ``count``, or none.
    """
    wanted = "at least one" if count is None else f"{count}, as many as learning rates"
    if isinstance(checkpoints, Sized) and (len(checkpoints) != count if count is not None else not len(checkpoints)):
        raise ArgumentError(f"checkpoints: expected {wanted}, got {len(checkpoints)}")
    at, found = copy.deepcopy(model), 0
    for state in checkpoints:
        found += 1
        if count is not None and found > count:
            raise ArgumentError(f"checkpoints: expected {wanted}, and there are more")
        try:
            at.load_state_dict(dict(state))
        except (RuntimeError, KeyError, AttributeError) as error:
            raise ArgumentError(f"checkpoints: number {found} does not fit the model: {error}") from error
        yield at
    if found < (count or 1):
        raise ArgumentError(f"checkpoints: expected {wanted}, got {found}")
