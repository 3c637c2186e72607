"""A pytree of tensors <-> one flat vector: solvers work on vectors, users write their losses on what they like.

Shapes: P entries in all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.layout import ParameterLayout

__all__ = ["Tree", "TreeLayout"]

Tree = Any
"""A tensor, or nested dictionaries, lists and tuples of tensors."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Where each tensor of a pytree lies in a flat vector.

    Attributes
    ----------
    name : str
        What the variable is called in messages.
    spec : TreeSpec
        The nesting.
    layout : ParameterLayout
        Shapes and offsets; its names are the leaves' numbers.
    dtype : torch.dtype
        Of every tensor.
    device : torch.device
        Of every tensor.
    """

    name: str
    spec: TreeSpec
    layout: ParameterLayout
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, name: str, tree: Tree) -> "TreeLayout":
        """Read the layout off a pytree, and refuse what cannot be a variable.

        Parameters
        ----------
        name : str
            What the variable is called in messages.
        tree : pytree of Tensor
            Real floating tensors of one dtype and device.

        Returns
        -------
        TreeLayout
            It keeps shapes only.

        Raises
        ------
        ArgumentTypeError
            If a leaf is no tensor, or not real and floating.
        ArgumentError
            If there is no leaf, or no entry.
        ShapeError
            If dtypes or devices differ.
        """
        leaves, spec = tree_flatten(tree)
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ArgumentTypeError(f"{name}: expected real floating tensors, got {kind}")
        if sum(leaf.numel() for leaf in leaves) == 0:
            raise ArgumentError(f"{name}: expected at least one tensor with an entry, got {tree!r}")
        first = leaves[0]
        for leaf in leaves:
            if leaf.dtype != first.dtype or leaf.device != first.device:
                raise ShapeError(
                    f"{name}: expected one dtype and device, got {first.dtype} on {first.device} and {leaf.dtype} on "
                    f"{leaf.device}"
                )
        layout = ParameterLayout.of({str(i): leaf for i, leaf in enumerate(leaves)})
        return cls(name, spec, layout, first.dtype, first.device)

    @property
    def size(self) -> int:
        """P, the length of the vector."""
        return self.layout.size

    def flatten(self, tree: Tree) -> Tensor:
        """Lay the tensors end to end.

        Parameters
        ----------
        tree : pytree of Tensor
            Of this layout.

        Returns
        -------
        Tensor, shape (P,)
            A copy, without a graph.

        Raises
        ------
        ShapeError
            If nesting, a shape, the dtype or the device differs.
        """
        leaves, spec = tree_flatten(tree)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        if spec != self.spec or shapes != self.layout.shapes:
            raise ShapeError(f"{self.name}: expected tensors of shapes {self.layout.shapes} nested alike, got {shapes}")
        for leaf in leaves:
            if leaf.dtype != self.dtype or leaf.device != self.device:
                raise ShapeError(
                    f"{self.name}: expected {self.dtype} on {self.device}, got {leaf.dtype} on {leaf.device}"
                )
        return torch.cat([leaf.detach().reshape(-1) for leaf in leaves])

    def unflatten(self, vector: Tensor) -> Tree:
        """Cut a vector into the tree.

        Parameters
        ----------
        vector : Tensor, shape (P,)
            As `flatten` gives.

        Returns
        -------
        pytree of Tensor
            Views, differentiable.
        """
        if self.spec.is_leaf():  # the usual case, at a fraction of the time
            return vector.reshape(self.layout.shapes[0])
        return tree_unflatten(list(self.layout.unflatten(vector).values()), self.spec)
