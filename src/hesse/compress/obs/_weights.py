"""The weights of a module that may be pruned, laid out flat, cut into units, and how many units a round drops.

Shapes: P weights in all, D of them alive, U units of S weights, K parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hesse.compress.obs.masks import plain_parameters
from hesse.compress.obs.patterns import Pattern
from hesse.compress.obs.selection import choose_units
from hesse.linalg import ParameterLayout

__all__ = ["PrunableWeights", "Scope"]

Scope = Literal["global", "layer"]


@dataclass(frozen=True, slots=True)
class PrunableWeights:
    """Where every weight lies, and with which others it goes."""

    parameters: dict[str, nn.Parameter]
    layout: ParameterLayout
    alive: Tensor  # (P,)
    units_US: Tensor  # places in the flat vector
    unit_slices: dict[str, slice]  # the units of a parameter
    groups: dict[str, tuple[Tensor, int]]  # its limits, in numbers of units from the parameter's first

    @classmethod
    def of(cls, module: nn.Module, masks: Mapping[str, Tensor], pattern: Pattern) -> "PrunableWeights":
        """Lay out the parameters that have a mask, in the order the module has them now.

        Parameters
        ----------
        module : nn.Module
            With or without attached masks, which change the order of its parameters.
        masks : mapping of str to bool Tensor
            True where a weight is alive, by plain name.
        pattern : Pattern
            Cuts parameters into units.

        Returns
        -------
        PrunableWeights
            O(P) integers.
        """
        parameters = {name: p for name, p in plain_parameters(module).items() if name in masks}
        layout = ParameterLayout.of(parameters)
        units: list[Tensor] = []
        slices: dict[str, slice] = {}
        groups: dict[str, tuple[Tensor, int]] = {}
        done = 0
        for name, p in parameters.items():
            own = pattern.units(name, tuple(p.shape)).to(p.device)
            limits = pattern.groups(name, tuple(p.shape))
            if limits is not None:
                groups[name] = (limits[0].to(p.device), limits[1])
            units.append(own + layout.slice(name).start)
            slices[name] = slice(done, done + len(own))
            done += len(own)
        return cls(parameters, layout, layout.flatten(masks), torch.cat(units), slices, groups)

    @property
    def alive_U(self) -> Tensor:
        """Whether a unit has a weight left."""
        return self.alive[self.units_US].any(1)

    @property
    def numbered_US(self) -> Tensor:
        """Units in numbers among the weights alive, -1 where one is gone."""
        return torch.where(self.alive, self.alive.cumsum(0) - 1, -1)[self.units_US]

    def segments(self, scope: Scope) -> list[slice]:
        """Ranges of units among which costs are compared.

        Parameters
        ----------
        scope : {"global", "layer"}
            All units, or those of each parameter.

        Returns
        -------
        list of slice
            One or K.
        """
        return [slice(0, len(self.units_US))] if scope == "global" else list(self.unit_slices.values())

    def targets(self, sparsity: float, progress: float, scope: Scope) -> list[int]:
        """Units to be left at a point between here and a sparsity, by segment.

        Parameters
        ----------
        sparsity : float
            At the end.
        progress : float
            From 0 to 1: the density falls geometrically with it.
        scope : {"global", "layer"}
            As of `segments`.

        Returns
        -------
        list of int
            Never more than are alive.
        """
        found = []
        for segment in self.segments(scope):
            present = int(self.alive_U[segment].sum())
            left = (1 - sparsity) * (segment.stop - segment.start)
            found.append(present if left >= present else round(present * (left / present) ** progress))
        return found

    def choose(self, scores_U: Tensor, left: list[int | None], scope: Scope, min_keep: int) -> Tensor:
        """Choose the units to drop.

        Parameters
        ----------
        scores_U : Tensor, shape (U,)
            What each costs.
        left : list of int or None
            Units to be left, by segment; None for as few as the limits of the pattern allow.
        scope : {"global", "layer"}
            As of `segments`.
        min_keep : int
            Weights that every parameter keeps.

        Returns
        -------
        Tensor of bool, shape (U,)
            True for those that go.

        Raises
        ------
        ArgumentError
            If so many cannot go.
        """
        alive = self.alive_U
        protected = torch.zeros_like(alive)
        keep = -(-min_keep // self.units_US.shape[1])
        for own in self.unit_slices.values():
            costs = torch.where(alive[own], scores_U[own], -torch.inf)
            protected[own][costs.argsort(descending=True, stable=True)[:keep]] = True
        pieces = []
        for segment, target in zip(self.segments(scope), left, strict=True):
            count = None if target is None else max(0, int(alive[segment].sum()) - target)
            limits = self._limits(segment)
            pieces.append(
                choose_units(scores_U[segment], alive[segment], count, groups=limits, protected_U=protected[segment])
            )
        return torch.cat(pieces)

    def _limits(self, segment: slice) -> tuple[Tensor, int] | None:
        # in numbers of units from the first of the segment
        members = [
            (self.groups[name][0] + own.start - segment.start, self.groups[name][1])
            for name, own in self.unit_slices.items()
            if name in self.groups and segment.start <= own.start < segment.stop
        ]
        return (torch.cat([places for places, _ in members]), members[0][1]) if members else None

    def cut(self, flat: Tensor, fill: bool | float = 0) -> dict[str, Tensor]:
        """Bring values of the weights alive into the shapes of the parameters.

        Parameters
        ----------
        flat : Tensor, shape (D,)
            One value a weight alive.
        fill : bool or float, default 0
            For the others.

        Returns
        -------
        dict of str to Tensor
            By plain name.
        """
        whole = torch.full((self.layout.size,), fill, dtype=flat.dtype, device=flat.device)
        whole[self.alive] = flat
        return self.layout.unflatten(whole)
