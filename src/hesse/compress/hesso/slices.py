"""Slices of parameters that are held at zero or taken there, with the momentum that belongs to them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hesse.compress.graph import DependencyGraph

__all__ = ["GroupSlices"]


class GroupSlices:
    """The parts of the parameters that some groups make up, found once and used at every step.

    Parameters
    ----------
    graph : DependencyGraph
        Whose producers are meant.
    groups : Tensor, shape (G,)
        bool: which groups.
    """

    def __init__(self, graph: DependencyGraph, groups: Tensor) -> None:
        marked = torch.cat([groups, groups.new_zeros(1)])
        self._parts: list[tuple[Tensor, Tensor, int]] = []  # parameter, places, dimension
        for axis, parameter in graph.producers():
            places = marked[axis.groups.to(marked.device)].nonzero().squeeze(1).to(parameter.device)
            if len(places):
                self._parts.append((parameter, places, axis.dim))

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply the slices; by 0 they become exact zeros, whatever they held.

        Parameters
        ----------
        factor : float
            In [0, 1].
        """
        for parameter, places, dim in self._parts:
            if factor == 0:
                parameter.index_fill_(dim, places, 0)
            else:
                parameter.index_copy_(dim, places, parameter.index_select(dim, places) * factor)

    @torch.no_grad()
    def zero_state_(self, state: Any) -> None:
        """Zero whatever an optimiser keeps an entry a parameter for (momentum, squares).

        Parameters
        ----------
        state : mapping of Tensor to dict
            ``Optimizer.state``.
        """
        for parameter, places, dim in self._parts:
            for value in _alike(state, parameter):
                value.index_fill_(dim, places, 0)


def _alike(state: Any, parameter: Tensor) -> Iterator[Tensor]:
    if parameter in state:
        for value in state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield value
