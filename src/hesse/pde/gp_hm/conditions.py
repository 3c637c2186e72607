"""Conditions on the boundary of a box and data inside it, as rows of the whitened system.

Shapes: grids (N_j,) an axis, points (M, d).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.pde.gp_hm.kernels import SpectralMixture1d
from hesse.pde.gp_hm.system import AxisFactors, Conditions, Rows

__all__ = ["Boundary", "BoundaryValue", "Face", "Observations", "Periodic", "build_conditions", "kernel_rows"]

BoundaryValue = float | Tensor | Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Face:
    """α u + β ∂u/∂n = g on one face of the box, n pointing outwards.

    Parameters
    ----------
    axis : int
        The axis that the face is normal to.
    side : {"low", "high"}
        Which end of it.
    value : float, Tensor or callable, default 0.0
        g: one number, the values at the face's grid points, row-major, or a function of the d coordinates.
    alpha, beta : float, default 1.0 and 0.0
        (1, 0) is Dirichlet's condition, (0, 1) Neumann's, others are Robin's.
    """

    axis: int
    side: Literal["low", "high"]
    value: BoundaryValue = 0.0
    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True, slots=True)
class Periodic:
    """u and ∂u/∂x_axis agree on the two faces normal to ``axis``."""

    axis: int


@dataclass(frozen=True, slots=True)
class Observations:
    """Values of u at points anywhere in the box: (M, d) and (M,)."""

    points: Tensor
    values: Tensor


Boundary = BoundaryValue | Sequence[Face | Periodic | Observations]
"""One value for u on all faces, or a list of conditions."""


def kernel_rows(
    kernels: Sequence[SpectralMixture1d],
    grids: Sequence[Tensor],
    axes: Sequence[AxisFactors],
    coordinates: Sequence[Tensor],
    orders: Sequence[int],
) -> list[Tensor]:
    """Evaluate k⁽ᵖ⁾(x, X_j) L_j⁻ᵀ, axis by axis: the posterior mean's row at new coordinates.

    Parameters
    ----------
    kernels : sequence of SpectralMixture1d
        One an axis.
    grids : sequence of Tensor, shapes (N_j,)
        Their points.
    axes : sequence of AxisFactors
        Their factors.
    coordinates : sequence of Tensor, shapes (M_j,)
        New coordinates.
    orders : sequence of int
        Derivatives, one an axis.

    Returns
    -------
    list of Tensor, shapes (M_j, N_j)
        The rows.
    """
    return [
        torch.linalg.solve_triangular(axis.lower, kernel.matrix(x, grid, p).mT, upper=False).mT
        for kernel, grid, axis, x, p in zip(kernels, grids, axes, coordinates, orders, strict=True)
    ]


def build_conditions(boundary: Boundary, grids: Sequence[Tensor], kernels: Sequence[SpectralMixture1d]) -> Conditions:
    """Turn what a user writes into rows and values; corners are asked once by each face that has them.

    Parameters
    ----------
    boundary : float, Tensor, callable, or sequence of Face, Periodic and Observations
        A single value is Dirichlet's condition on all faces; a tensor then lists the faces' values one after the
        other: low and high of axis 0, of axis 1, ….
    grids : sequence of Tensor, shapes (N_j,)
        The axes.
    kernels : sequence of SpectralMixture1d
        Theirs, for observations between the grid's points.

    Returns
    -------
    Conditions
        M rows.

    Raises
    ------
    ShapeError
        If values do not fit their points.
    ArgumentError
        If an axis or side does not exist, a value is not finite, or nothing is asked.
    """
    blocks = [
        _block(item, grids, kernels)
        for item in (boundary if _is_list(boundary) else _all_faces(boundary, grids))  # pyright: ignore
    ]
    if not blocks:
        raise ArgumentError("GPHM: boundary is an empty list; the equation alone does not determine u")
    values = torch.cat([values for _, values, _ in blocks])
    if not bool(torch.isfinite(values).all()):
        raise ArgumentError("GPHM: a boundary value is NaN or infinite")
    orders = tuple(frozenset().union(*(needs[j] for _, _, needs in blocks)) for j in range(len(grids)))

    def rows_fn(axes: Sequence[AxisFactors]) -> Rows:
        found = [build(axes) for build, _, _ in blocks]
        return Rows(tuple(torch.cat([rows[j] for rows in found]) for j in range(len(axes))))

    return Conditions(rows_fn, values, orders)


_Block = tuple[Callable[[Sequence[AxisFactors]], Sequence[Tensor]], Tensor, Sequence[frozenset[int]]]


def _is_list(boundary: Boundary) -> bool:
    return isinstance(boundary, (list, tuple))


def _all_faces(value: BoundaryValue, grids: Sequence[Tensor]) -> list[Face]:
    places: list[tuple[int, Literal["low", "high"]]] = [
        (axis, side) for axis in range(len(grids)) for side in ("low", "high")
    ]
    if not isinstance(value, Tensor) or value.ndim == 0:
        return [Face(axis, side, value) for axis, side in places]
    sizes = [torch.Size(len(g) for j, g in enumerate(grids) if j != axis).numel() for axis, _ in places]
    if value.shape != (sum(sizes),):
        raise ShapeError(
            f"GPHM: boundary has shape {tuple(value.shape)}, the {len(places)} faces have {sum(sizes)} points"
        )
    return [Face(axis, side, part) for (axis, side), part in zip(places, value.split(sizes), strict=True)]


def _block(item: object, grids: Sequence[Tensor], kernels: Sequence[SpectralMixture1d]) -> _Block:
    if isinstance(item, Face):
        return _face(item, grids)
    if isinstance(item, Periodic):
        return _periodic(item, grids)
    if isinstance(item, Observations):
        return _observations(item, grids, kernels)
    raise ArgumentError(f"GPHM: boundary lists Face, Periodic and Observations, got {type(item).__name__}")


def _face_index(axis: int, place: int, grids: Sequence[Tensor]) -> list[Tensor]:
    # of the points of one face, row-major
    if not 0 <= axis < len(grids):
        raise ArgumentError(f"GPHM: a boundary condition names axis {axis}, the domain has {len(grids)}")
    ranges = [torch.tensor([place]) if j == axis else torch.arange(len(g)) for j, g in enumerate(grids)]
    return [index.reshape(-1) for index in torch.meshgrid(*ranges, indexing="ij")]


def _face(face: Face, grids: Sequence[Tensor]) -> _Block:
    if face.side not in ("low", "high"):
        raise ArgumentError(f"GPHM: a face has side 'low' or 'high', got {face.side!r}")
    index = _face_index(face.axis, 0 if face.side == "low" else len(grids[face.axis]) - 1, grids)
    outward = -face.beta if face.side == "low" else face.beta
    values = face.value
    if callable(values):
        values = values(*(g[i] for g, i in zip(grids, index, strict=True)))
    values = torch.as_tensor(values, dtype=grids[0].dtype, device=grids[0].device)
    if values.ndim and values.shape != index[0].shape:
        raise ShapeError(
            f"GPHM: the {face.side} face of axis {face.axis} has {len(index[0])} points, got values of shape "
            f"{tuple(values.shape)}"
        )

    def build(axes: Sequence[AxisFactors]) -> list[Tensor]:
        rows = [axis.lower[i] for axis, i in zip(axes, index, strict=True)]
        if face.beta:
            slope = axes[face.axis].orders[1][index[face.axis]]
            rows[face.axis] = face.alpha * rows[face.axis] + outward * slope
        elif face.alpha != 1:
            rows[face.axis] = face.alpha * rows[face.axis]
        return rows

    needs = [frozenset({1} if face.beta and j == face.axis else ()) for j in range(len(grids))]
    return build, values.expand(index[0].shape), needs


def _periodic(item: Periodic, grids: Sequence[Tensor]) -> _Block:
    index = _face_index(item.axis, 0, grids)

    def build(axes: Sequence[AxisFactors]) -> list[Tensor]:
        rows = [axis.lower[i].repeat(2, 1) for axis, i in zip(axes, index, strict=True)]
        own, count = axes[item.axis], len(index[0])
        rows[item.axis] = torch.cat([(a[0] - a[-1]).expand(count, -1) for a in (own.lower, own.orders[1])])
        return rows

    needs = [frozenset({1} if j == item.axis else ()) for j in range(len(grids))]
    return build, grids[0].new_zeros(2 * len(index[0])), needs


def _observations(item: Observations, grids: Sequence[Tensor], kernels: Sequence[SpectralMixture1d]) -> _Block:
    points, dim = item.points.to(grids[0]), len(grids)
    if points.ndim != 2 or points.shape[1] != dim or item.values.shape != points.shape[:1]:
        raise ShapeError(
            f"GPHM: observations need points (M, {dim}) and values (M,), got {tuple(points.shape)} and "
            f"{tuple(item.values.shape)}"
        )

    def build(axes: Sequence[AxisFactors]) -> list[Tensor]:
        return kernel_rows(kernels, grids, axes, list(points.T), [0] * dim)

    return build, item.values.to(grids[0]), [frozenset[int]()] * dim
