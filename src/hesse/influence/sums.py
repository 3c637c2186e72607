"""Sums over sequences that the factors are made from: of outer products, and of squared gradients in an eigenbasis."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis
from hesse.curvature.block_factors import FactorBlocks
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import second_moment, sequence_gradients
from hesse.curvature.kfac import InputFactor, OutputFactor
from hesse.curvature.layers import TrackedLayer
from hesse.curvature.scratch import Scratch
from hesse.curvature.shampoo import add_gradient_moments_
from hesse.errors import ArgumentError

__all__ = ["CovarianceSums", "EigenvalueSums", "check_shared"]


@dataclass(slots=True)
class CovarianceSums:
    """Sums of one generation: an input factor "A" for every distinct input, an output factor "S" for every layer.

    Shampoo's are of whole gradients, so that every layer has both, each in one block.
    """

    layers: Mapping[str, TrackedLayer]
    dtype: torch.dtype
    device: torch.device
    blocks: int = 1
    shampoo: bool = False
    factors: dict[tuple[str, str], FactorBlocks] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    count_rows: bool = True  # false for further columns of the exact Fisher: same positions again
    muted: bool = False  # a batch that is run for the sake of other ranks

    def factor(self, name: str, which: str) -> FactorBlocks:
        """Look up a sum, which begins at zero.

        Parameters
        ----------
        name : str
            Layer.
        which : {"A", "S"}
            Of its inputs, or of its output gradients.

        Returns
        -------
        FactorBlocks
            To be added to.
        """
        if (name, which) not in self.factors:
            layer = self.layers[name]
            order = layer.columns if which == "A" else layer.out_features
            self.factors[name, which] = FactorBlocks.zeros(order, self.blocks, dtype=self.dtype, device=self.device)
        return self.factors[name, which]

    def names(self) -> Iterator[tuple[str, str]]:
        """Name all factors, in the order of layers, once it is known who shares an input.

        Yields
        ------
        (str, str)
            Layer, and "A" or "S".
        """
        for name in self.layers:
            if self.shared[name] == name:
                yield name, "A"
            yield name, "S"

    def consume(self, rows: Captured) -> None:
        """Add what one layer saw in one batch."""
        if self.muted:
            return
        name = rows.layer.name
        source = name if self.shampoo else rows.shared_with
        check_shared(name, self.shared.setdefault(name, source), source)
        outputs = self.factor(name, "S")
        if self.shampoo:
            inputs = self.factor(name, "A")
            right = InputFactor(inputs.totals[0], inputs.count)
            left = OutputFactor(outputs.totals[0], outputs.count)
            add_gradient_moments_(right, left, rows, count=self.count_rows)
            inputs.count, outputs.count = right.count, left.count
            return
        if source == name and self.count_rows:
            self.factor(name, "A").add_inputs_(rows)
        outputs.add_grads_(rows, count=self.count_rows)


@dataclass(slots=True)
class EigenvalueSums:
    """Running Σ (Q_Sᵀ D Q_A)²; rotated inputs are kept for the next layer that has the same input."""

    layers: Mapping[str, TrackedLayer]
    bases: Mapping[str, tuple[Basis, Basis] | None]
    dtype: torch.dtype
    device: torch.device
    tables: dict[str, Tensor] = field(default_factory=dict)
    muted: bool = False  # a batch that is run for the sake of other ranks
    last: tuple[Basis, str, Tensor] | None = None  # the basis, what was rotated into it, and how it came out
    scratch: Scratch = field(default_factory=Scratch)

    def table(self, name: str) -> Tensor:
        """Look up a sum, which begins at zero.

        Parameters
        ----------
        name : str
            Layer.

        Returns
        -------
        Tensor, shape (p, m)
            To be added to.
        """
        if name not in self.tables:
            shape = (self.layers[name].out_features, self.layers[name].columns)
            self.tables[name] = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return self.tables[name]

    def consume(self, rows: Captured) -> None:
        """Add what one layer saw in one batch."""
        if self.muted:
            return
        name = rows.layer.name
        table, basis = self.table(name), self.bases[name]
        if basis is None:
            for block in rows.blocks(BLOCK_ENTRIES):
                table += sequence_gradients(block).to(self.dtype).square_().sum(0)
            return
        known = None
        if self.last is not None and self.last[0] is basis[1] and self.last[1] == rows.shared_with:
            known = self.last[2]
        rotated = second_moment(rows, *basis, table, self.scratch, known)
        self.last = None if rotated is None else (basis[1], rows.shared_with, rotated)


def check_shared(name: str, leader: str, other: str) -> None:
    """Refuse layers that read one input in some batches only: they have one factor, or two.

    Parameters
    ----------
    name : str
        Layer.
    leader, other : str
        With whose input its own was identical, in two batches.

    Raises
    ------
    ArgumentError
        If they differ.
    """
    if leader != other:
        raise ArgumentError(
            f"modules: {name!r} and {leader!r} read the same input in one batch but not in another; track only "
            "one of them a run"
        )
