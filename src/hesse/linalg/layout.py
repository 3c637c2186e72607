"""Named tensors <-> one flat vector, in a fixed order.   Shapes: P entries in all, flat (..., P)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["ParameterLayout"]


@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """Where each named tensor lies in a flat vector: row-major, one after the other.

    Attributes
    ----------
    names : tuple of str
        In the order of the vector.
    shapes : tuple of tuple of int
        One a name.
    offsets : tuple of int
        Start of each; one more entry than names, the last being P.

    Examples
    --------
    >>> layout = ParameterLayout.of({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    >>> layout.size, layout.slice("bias")
    (8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "ParameterLayout":
        """Read the layout off named tensors, as ``dict(module.named_parameters())``.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            In the order that the vector shall have.

        Returns
        -------
        ParameterLayout
            It keeps names and shapes only.
        """
        shapes = tuple(tuple(t.shape) for t in tensors.values())
        offsets = [0]
        for shape in shapes:
            offsets.append(offsets[-1] + math.prod(shape))
        return cls(tuple(tensors), shapes, tuple(offsets))

    @property
    def size(self) -> int:
        """P, the length of the vector."""
        return self.offsets[-1]

    def slice(self, name: str) -> slice:
        """Find one tensor's range.

        Parameters
        ----------
        name : str
            One of ``names``.

        Returns
        -------
        slice
            Into the flat vector.

        Raises
        ------
        ArgumentError
            If there is no such name.
        """
        if name not in self.names:
            raise ArgumentError(f"ParameterLayout: no tensor named {name!r}; there are {', '.join(self.names)}")
        i = self.names.index(name)
        return slice(self.offsets[i], self.offsets[i + 1])

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate named tensors, or stacks of them.

        Parameters
        ----------
        tensors : mapping of str to Tensor, shapes ``(*batch, *shape)``
            One a name, all with the same leading batch, dtype and device; in any order.

        Returns
        -------
        Tensor, shape ``(*batch, P)``
            A copy, differentiable.

        Raises
        ------
        ArgumentError
            If names are missing or unknown.
        ShapeError
            If a shape does not fit.
        """
        if set(tensors) != set(self.names):
            odd = sorted(set(tensors) ^ set(self.names))
            raise ArgumentError(f"ParameterLayout.flatten: names missing or unknown: {', '.join(odd)}")
        parts: list[Tensor] = []
        batch: torch.Size | None = None
        for name, shape in zip(self.names, self.shapes, strict=True):
            t = tensors[name]
            lead = t.shape[: t.ndim - len(shape)]
            batch = lead if batch is None else batch
            if tuple(t.shape[t.ndim - len(shape) :]) != shape or t.ndim < len(shape) or lead != batch:
                raise ShapeError(
                    f"ParameterLayout.flatten: {name} is {tuple(t.shape)}, expected {(*batch, *shape)} as the others"
                )
            parts.append(t.reshape(*lead, math.prod(shape)))
        if not parts:
            return torch.zeros(0)
        return torch.cat(parts, dim=-1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector, or a stack of them, into named tensors.

        Parameters
        ----------
        vector : Tensor, shape ``(*batch, P)``
            As `flatten` gives.

        Returns
        -------
        dict of str to Tensor, shapes ``(*batch, *shape)``
            Views where the memory allows.

        Raises
        ------
        ShapeError
            If the last dimension is not P.
        """
        if vector.ndim == 0 or vector.shape[-1] != self.size:
            raise ShapeError(f"ParameterLayout.unflatten: expected (..., {self.size}), got {tuple(vector.shape)}")
        pieces = vector.split([b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False)], dim=-1)
        return {
            name: piece.reshape((*vector.shape[:-1], *shape))  # a tuple: reshape() without arguments is an error
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }
