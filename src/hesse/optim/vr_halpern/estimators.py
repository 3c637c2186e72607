"""Estimates of F(u_k) along a path from a few components a step: PAGE, SVRG and SAGA.

Each is a frozen value: ``refreshed`` reads all components at a point, ``updated`` a sample of B, and both give the next
one. Shapes: D entries of u, n components.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from hesse.optim.vr_halpern.finite_sum import FiniteSumOperator

__all__ = ["ESTIMATORS", "EstimatorName", "OperatorEstimate", "PageEstimate", "SagaEstimate", "SvrgEstimate"]

EstimatorName = Literal["page", "svrg", "saga"]


class OperatorEstimate(Protocol):
    """An estimate of F at the last point of a path."""

    @property
    def value(self) -> Tensor:
        """g_k, shape (D,)."""
        ...

    @classmethod
    def refreshed(cls, op: FiniteSumOperator, u: Tensor) -> "OperatorEstimate":
        """Begin, or begin anew, with F(u) itself: n evaluations."""
        ...

    @staticmethod
    def cost(batch_size: int) -> int:
        """Bound the evaluations of an update."""
        ...

    def updated(self, op: FiniteSumOperator, u: Tensor, index: Tensor, weights: Tensor | None) -> "OperatorEstimate":
        """Move on to the next point of the path by a sample."""
        ...

    def copied(self) -> "OperatorEstimate":
        """Share nothing that an update changes in place."""
        ...


@dataclass(frozen=True, slots=True)
class PageEstimate:
    """g_k = g_{k-1} + mean over the sample of F_i(u_k) - F_i(u_{k-1}).

    Its error grows with every update, in proportion to the steps made, until the next refresh: small where steps
    become small. Its mean given the path is F(u_k) only if the path does not depend on the samples.
    """

    value: Tensor  # (D,)
    point: Tensor  # (D,): u_k

    @classmethod
    def refreshed(cls, op: FiniteSumOperator, u: Tensor) -> "PageEstimate":
        """Begin, or begin anew, with F(u) itself.

        Parameters
        ----------
        op : FiniteSumOperator
            F.
        u : Tensor, shape (D,)
            The point.

        Returns
        -------
        PageEstimate
            After n evaluations.
        """
        return cls(op.full(u), u)

    @staticmethod
    def cost(batch_size: int) -> int:
        """Count the evaluations of an update.

        Parameters
        ----------
        batch_size : int
            B.

        Returns
        -------
        int
            2B.
        """
        return 2 * batch_size

    def updated(self, op: FiniteSumOperator, u: Tensor, index: Tensor, weights: Tensor | None) -> "PageEstimate":
        """Follow the path to its next point.

        Parameters
        ----------
        op : FiniteSumOperator
            F.
        u : Tensor, shape (D,)
            The next point.
        index : Tensor of int64, shape (B,)
            The sample.
        weights : Tensor, shape (B,), optional
            Its factors. Default: one.

        Returns
        -------
        PageEstimate
            At u.
        """
        change = op.mean(u, index, weights) - op.mean(self.point, index, weights)
        return PageEstimate(self.value + change, u)

    def copied(self) -> "PageEstimate":
        """Give the estimate itself: nothing in it is ever changed in place.

        Returns
        -------
        PageEstimate
            The same.
        """
        return self


@dataclass(frozen=True, slots=True)
class SvrgEstimate:
    """g_k = F(w) + mean over the sample of F_i(u_k) - F_i(w), with w the point of the last refresh: unbiased."""

    value: Tensor  # (D,)
    snapshot: Tensor  # (D,): w
    snapshot_value: Tensor  # (D,): F(w)

    @classmethod
    def refreshed(cls, op: FiniteSumOperator, u: Tensor) -> "SvrgEstimate":
        """Move the snapshot here.

        Parameters
        ----------
        op : FiniteSumOperator
            F.
        u : Tensor, shape (D,)
            The point.

        Returns
        -------
        SvrgEstimate
            After n evaluations.
        """
        value = op.full(u)
        return cls(value, u, value)

    @staticmethod
    def cost(batch_size: int) -> int:
        """Count the evaluations of an update.

        Parameters
        ----------
        batch_size : int
            B.

        Returns
        -------
        int
            2B.
        """
        return 2 * batch_size

    def updated(self, op: FiniteSumOperator, u: Tensor, index: Tensor, weights: Tensor | None) -> "SvrgEstimate":
        """Estimate at another point from the same snapshot.

        Parameters
        ----------
        op : FiniteSumOperator
            F.
        u : Tensor, shape (D,)
            The point.
        index : Tensor of int64, shape (B,)
            The sample.
        weights : Tensor, shape (B,), optional
            Its factors. Default: one.

        Returns
        -------
        SvrgEstimate
            At u.
        """
        change = op.mean(u, index, weights) - op.mean(self.snapshot, index, weights)
        return replace(self, value=self.snapshot_value + change)

    def copied(self) -> "SvrgEstimate":
        """Give the estimate itself: nothing in it is ever changed in place.

        Returns
        -------
        SvrgEstimate
            The same.
        """
        return self


@dataclass(frozen=True, slots=True)
class SagaEstimate:
    """g_k = mean of a table + mean over the sample of F_i(u_k) - table_i, which then take those entries' place.

    Unbiased; an update costs half of the others', at the price of the table's n D numbers.
    """

    value: Tensor  # (D,)
    table: Tensor  # (n, D): each F_i where it was last evaluated; changed in place
    table_mean: Tensor  # (D,)

    @classmethod
    def refreshed(cls, op: FiniteSumOperator, u: Tensor) -> "SagaEstimate":
        """Fill the table here.

        Parameters
        ----------
        op : FiniteSumOperator
            F, whose ``chunk_size`` bounds what is evaluated at a time.
        u : Tensor, shape (D,)
            The point.

        Returns
        -------
        SagaEstimate
            After n evaluations.
        """
        chunks = torch.arange(op.n, device=u.device).split(op.chunk_size or op.n)
        table = torch.cat([op.each(u, index) for index in chunks])
        mean = table.mean(0)
        return cls(mean, table, mean)

    @staticmethod
    def cost(batch_size: int) -> int:
        """Count the evaluations of an update.

        Parameters
        ----------
        batch_size : int
            B.

        Returns
        -------
        int
            B, if all in the sample are different.
        """
        return batch_size

    def updated(self, op: FiniteSumOperator, u: Tensor, index: Tensor, weights: Tensor | None) -> "SagaEstimate":
        """Estimate at another point, and renew the sample's entries of the table.

        Parameters
        ----------
        op : FiniteSumOperator
            F.
        u : Tensor, shape (D,)
            The point.
        index : Tensor of int64, shape (B,)
            The sample; a component that it names twice is evaluated once.
        weights : Tensor, shape (B,), optional
            Its factors. Default: one.

        Returns
        -------
        SagaEstimate
            At u, with the same table.
        """
        seen, position = index.unique(return_inverse=True)
        rows = op.each(u, seen)
        change = rows - self.table[seen]
        self.table[seen] = rows
        sample = change[position]
        step = sample.mean(0) if weights is None else weights @ sample / len(index)
        return SagaEstimate(self.table_mean + step, self.table, self.table_mean + change.sum(0) / op.n)

    def copied(self) -> "SagaEstimate":
        """Copy the table.

        Returns
        -------
        SagaEstimate
            Of its own.
        """
        return replace(self, table=self.table.clone())


ESTIMATORS: dict[EstimatorName, type[PageEstimate] | type[SvrgEstimate] | type[SagaEstimate]] = {
    "page": PageEstimate,
    "svrg": SvrgEstimate,
    "saga": SagaEstimate,
}
