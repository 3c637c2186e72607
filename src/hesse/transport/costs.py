"""What it costs to move a unit of mass from x to y.   Shapes: N points x, M points y, D coordinates.

Each cost knows c between all pairs and between points of the same row. Those of the form c(x, y) = h(x - y) with h
strictly convex also know ∇h*, which turns the gradient of a potential into the displacement of the optimal map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["Cost", "CostLike", "Euclidean", "FunctionCost", "Geodesic", "PNorm", "SquaredEuclidean", "as_cost"]


class Cost(Protocol):
    """A ground cost, differentiable in both points."""

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return c(x_i, y_j), shape (N, M), from shapes (N, D) and (M, D)."""
        ...

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Return c(x_i, y_i), shape (N,), from two of shape (N, D)."""
        ...

    def conjugate_gradient(self, z: Tensor) -> Tensor:
        """Return ∇h*(z), shape (N, D); an ArgumentError where the cost is no strictly convex function of x - y."""
        ...


CostLike = str | Cost | Callable[[Tensor, Tensor], Tensor]
"""A cost, the name of one ("sqeuclidean", "euclidean", "geodesic"), or a function c(x, y) over the last axis."""


@dataclass(frozen=True, slots=True)
class SquaredEuclidean:
    """c = |x - y|², without the factor 1/2 (SciPy's "sqeuclidean")."""

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return |x_i - y_j|², by differences: no cancellation far from the origin, gradient zero where points meet.

        Returns
        -------
        Tensor, shape (N, M)
            One row to a point of x.
        """
        return _distances(x, y, 2.0).square()

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Return |x_i - y_i|².

        Returns
        -------
        Tensor, shape (N,)
            One to a row.
        """
        return (x - y).square().sum(-1)

    def conjugate_gradient(self, z: Tensor) -> Tensor:
        """Return z / 2.

        Returns
        -------
        Tensor, shape (N, D)
            ∇h*(z).
        """
        return z / 2


@dataclass(frozen=True, slots=True)
class Euclidean:
    """c = |x - y|, a distance: its optimal maps are never unique, rays of one may be cut and joined anew."""

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return |x_i - y_j|; the gradient is taken as zero where points meet.

        Returns
        -------
        Tensor, shape (N, M)
            One row to a point of x.
        """
        return _distances(x, y, 2.0)

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Return |x_i - y_i|; the gradient is taken as zero where points meet.

        Returns
        -------
        Tensor, shape (N,)
            One to a row.
        """
        return torch.linalg.vector_norm(x - y, dim=-1)

    def conjugate_gradient(self, z: Tensor) -> Tensor:
        """Refused: |z| is not strictly convex.

        Raises
        ------
        ArgumentError
            Always.
        """
        raise ArgumentError(
            f"Euclidean: |z| is not strictly convex, so that ∇h* of shape {tuple(z.shape)} does not exist; "
            "use the residual form of the map"
        )


@dataclass(frozen=True, slots=True)
class PNorm:
    """c = Σ_d |x_d - y_d|^p / p, for p > 1; p = 2 is half the squared distance.

    Parameters
    ----------
    p : float
        Exponent. ∇h*(z) = sign(z) |z|^(1/(p-1)), coordinate by coordinate.
    """

    p: float

    def __post_init__(self) -> None:
        if not 1 < self.p < float("inf"):
            raise ArgumentError(f"PNorm: expected a finite p > 1, got {self.p}; for |x - y| use Euclidean")

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return Σ_d |x_id - y_jd|^p / p; the gradient is zero where points meet.

        Returns
        -------
        Tensor, shape (N, M)
            One row to a point of x.
        """
        if self.p == 2:
            return _distances(x, y, 2.0).square() / 2
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).abs().pow(self.p).sum(-1) / self.p

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Return Σ_d |x_id - y_id|^p / p.

        Returns
        -------
        Tensor, shape (N,)
            One to a row.
        """
        return (x - y).abs().pow(self.p).sum(-1) / self.p

    def conjugate_gradient(self, z: Tensor) -> Tensor:
        """Return sign(z) |z|^(q - 1) with 1/p + 1/q = 1.

        Returns
        -------
        Tensor, shape (N, D)
            ∇h*(z).
        """
        return z.sign() * z.abs().pow(1 / (self.p - 1))


@dataclass(frozen=True, slots=True)
class Geodesic:
    """c = arccos(<x, y>)² / 2 on the unit sphere, in squared radians; points must have length one.

    Parameters
    ----------
    squared : bool, default True
        False: the angle itself, in radians.

    Notes
    -----
    The angle is computed as 2 atan2(|x - y|, |x + y|), which keeps all digits at 0 and π, where arccos loses half of
    them and has an infinite derivative. That of the square is smooth at 0; at π, the cut locus, no gradient exists.
    """

    squared: bool = True

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cost of all pairs.

        Returns
        -------
        Tensor, shape (N, M)
            One row to a point of x.
        """
        return self._of_angle(2 * torch.atan2(_distances(x, y, 2.0), _distances(x, -y, 2.0)))

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cost of points of the same row.

        Returns
        -------
        Tensor, shape (N,)
            One to a row.
        """
        lengths = (torch.linalg.vector_norm(z, dim=-1) for z in (x - y, x + y))
        return self._of_angle(2 * torch.atan2(*lengths))

    def conjugate_gradient(self, z: Tensor) -> Tensor:
        """Refused: the sphere has no differences.

        Raises
        ------
        ArgumentError
            Always.
        """
        raise ArgumentError(
            f"Geodesic: no function of x - y, so that ∇h* of shape {tuple(z.shape)} does not exist; "
            "use the sphere form of the map"
        )

    def _of_angle(self, angle: Tensor) -> Tensor:
        return angle.square() / 2 if self.squared else angle


@dataclass(frozen=True, slots=True)
class FunctionCost:
    """Any c(x, y) given as a function of tensors that broadcast, with the coordinates on the last axis.

    Parameters
    ----------
    function : callable
        From shapes (..., D) and (..., E) to (...). O(N M D) memory for all pairs.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cost of all pairs, by broadcasting (N, 1, D) against (1, M, E).

        Returns
        -------
        Tensor, shape (N, M)
            One row to a point of x.
        """
        return self._checked(x.unsqueeze(-2), y.unsqueeze(-3), (*x.shape[:-1], y.shape[-2]))

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cost of points of the same row.

        Returns
        -------
        Tensor, shape (N,)
            One to a row.
        """
        return self._checked(x, y, tuple(x.shape[:-1]))

    def conjugate_gradient(self, z: Tensor) -> Tensor:
        """Refused: nothing is known of its form.

        Raises
        ------
        ArgumentError
            Always.
        """
        raise ArgumentError(
            f"FunctionCost: nothing is known of its form, so that ∇h* of shape {tuple(z.shape)} is not either; "
            "write a class with the methods of Cost"
        )

    def _checked(self, x: Tensor, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        values = self.function(x, y)
        if values.shape != shape:
            raise ShapeError(
                f"cost: from shapes {tuple(x.shape)} and {tuple(y.shape)} expected {shape}, got {tuple(values.shape)}; "
                "the function must broadcast and reduce the last axis only"
            )
        return values


NAMED: dict[str, Cost] = {"sqeuclidean": SquaredEuclidean(), "euclidean": Euclidean(), "geodesic": Geodesic()}


def as_cost(cost: CostLike) -> Cost:
    """Turn a name or a function into a `Cost`.

    Parameters
    ----------
    cost : str, Cost or callable
        "sqeuclidean" (|x - y|²), "euclidean" (|x - y|), "geodesic" (angle² / 2 on the unit sphere), an instance, or a
        function of two tensors that broadcast.

    Returns
    -------
    Cost
        The cost itself where it is one already.

    Raises
    ------
    ArgumentError
        If no cost has that name.
    ArgumentTypeError
        If it is none of these.
    """
    if isinstance(cost, str):
        if cost not in NAMED:
            raise ArgumentError(f"cost: expected one of {', '.join(NAMED)}, an instance or a function, got {cost!r}")
        return NAMED[cost]
    if callable(cost) and not isinstance(cost, type):
        return FunctionCost(cost)
    if isinstance(cost, type) or not all(hasattr(cost, name) for name in ("pairwise", "paired", "conjugate_gradient")):
        raise ArgumentTypeError(f"cost: expected a name, an instance of a Cost or a function, got {cost!r}")
    return cost


def _distances(x: Tensor, y: Tensor, p: float) -> Tensor:
    return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")
