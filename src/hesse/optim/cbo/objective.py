"""An objective as particles see it: counted, its output checked, NaN turned into walls, the best point kept.

Shapes: M runs, N particles, d coordinates.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

__all__ = ["BoundedBox", "MapFunction", "Objective"]


class MapFunction(Protocol):
    """What evaluates points one by one, in any order or place, as ``Executor.map`` does."""

    def __call__(self, function: Callable[[Tensor], Any], points: Iterable[Tensor], /) -> Iterable[Any]:
        """Return the values in the order of the points.

        Parameters
        ----------
        function : callable
            One point (d,) to a number.
        points : iterable of Tensor
            N of them.

        Returns
        -------
        iterable of numbers
            N of them.
        """
        ...


class BoundedBox:
    """Keep points in {low <= x <= high}: by reflection at the walls, or by moving them to the nearest point.

    Parameters
    ----------
    low, high : float or Tensor that broadcasts to (d,)
        Finite, ``low < high``.
    at_bounds : {"reflect", "clip"}
        Reflection keeps the density of the cloud at a wall; clipping puts particles on the wall itself, where the
        minimum may lie.

    Raises
    ------
    ArgumentError
        If a bound is not finite, the bounds cross, or the rule is unknown.
    """

    def __init__(self, low: float | Tensor, high: float | Tensor, at_bounds: str) -> None:
        if at_bounds not in ("reflect", "clip"):
            raise ArgumentError(f'bounds: at_bounds must be "reflect" or "clip", got {at_bounds!r}')
        self.low, self.high = torch.as_tensor(low), torch.as_tensor(high)
        width = self.high - self.low
        if not bool(((width > 0) & torch.isfinite(width)).all()):
            raise ArgumentError(f"bounds: expected finite low < high in every coordinate, got {low} and {high}")
        self._reflects = at_bounds == "reflect"

    def __call__(self, x: Tensor) -> Tensor:
        """Bring points back.

        Parameters
        ----------
        x : Tensor, shape (..., d)
            Points.

        Returns
        -------
        Tensor, shape (..., d)
            All of them within the bounds.
        """
        low, high = self.low.to(x), self.high.to(x)
        if self._reflects:
            width = high - low
            x = high - (torch.remainder(x - low, 2 * width) - width).abs()
        return torch.minimum(torch.maximum(x, low), high)


class Objective:
    """E on clouds (M, N, d), with what a run must know of its evaluations.

    Parameters
    ----------
    f : callable
        Particles (N, d) to energies (N,), or with a run axis (M, N, d) to (M, N).
    batched : bool
        Whether ``f`` gets the run axis.
    vectorize : bool
        Whether ``f`` takes one point (d,) and is to be mapped by `torch.vmap`.
    map_fn : MapFunction, optional
        Evaluates ``f`` point by point instead.
    projection : callable, optional
        Applied to points before ``f`` sees them.

    Raises
    ------
    ArgumentError
        If both ways of mapping are asked for.
    ArgumentTypeError
        If ``f`` is not callable.
    """

    def __init__(
        self,
        f: Callable[[Tensor], Any],
        *,
        batched: bool,
        vectorize: bool,
        map_fn: MapFunction | None,
        projection: Callable[[Tensor], Tensor] | None,
    ) -> None:
        if not callable(f):
            raise ArgumentTypeError(f"objective: expected a callable, got {type(f).__name__}")
        if vectorize and map_fn is not None:
            raise ArgumentError("objective: vectorize and map_fn are two ways of doing the same; give one")
        self._f = f
        self._vmapped = torch.vmap(f) if vectorize else None
        self._batched = batched
        self._map = map_fn
        self._projection = projection
        self.num_evaluations = 0  # of one run; all runs make as many
        self.num_invalid = 0  # NaN among them, over all runs

    def place(self, x: Tensor) -> Tensor:
        """Say where ``f`` sees a point.

        Parameters
        ----------
        x : Tensor, shape (..., d)
            Points.

        Returns
        -------
        Tensor, shape (..., d)
            Their projections, or themselves.
        """
        return x if self._projection is None else self._projection(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate.

        Parameters
        ----------
        x : Tensor, shape (M, N, d)
            Particles.

        Returns
        -------
        Tensor, shape (M, N)
            Energies in the dtype of x; NaN has become +inf.

        Raises
        ------
        ShapeError
            If ``f`` does not return one number a particle.
        NumericalError
            If a whole cloud is NaN or +inf.
        """
        runs, count, dim = x.shape
        energy = self._raw(x)
        self.num_evaluations += count
        wrong = torch.isnan(energy)
        invalid = int(wrong.sum())
        if invalid:
            self.num_invalid += invalid
            energy = torch.where(wrong, math.inf, energy)
        if bool((energy == math.inf).all(-1).any()):
            raise NumericalError(
                f"objective: all {count} energies of a cloud are NaN or +inf ({runs} runs, d = {dim}). Start where the "
                "objective is finite, or lower sigma"
            )
        return energy

    def _raw(self, x: Tensor) -> Tensor:
        runs, count, dim = x.shape
        seen = self.place(x)
        if self._map is not None:
            values = list(self._map(self._f, seen.reshape(runs * count, dim).unbind(0)))
            if len(values) != runs * count:
                raise ShapeError(f"objective: map_fn gave {len(values)} values for {runs * count} points")
            return torch.tensor([float(value) for value in values], dtype=x.dtype, device=x.device).reshape(runs, count)
        if self._vmapped is not None:
            energy = self._vmapped(seen.reshape(runs * count, dim))
            expected = (runs * count,)
            what = "a scalar for a point (d,)"
        else:
            energy = self._f(seen if self._batched else seen[0])
            expected = (runs, count) if self._batched else (count,)
            what = f"(N,) = ({count},) for each cloud (N, d) = ({count}, {dim})"
        if not isinstance(energy, Tensor) or tuple(energy.shape) != expected:
            got = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
            raise ShapeError(
                f"objective: expected one energy a particle, {what}, in all a tensor of shape {expected}; got {got}. "
                "For an objective of one point set vectorize=True"
            )
        return energy.to(x).reshape(runs, count)

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate, and differentiate every particle's energy.

        Parameters
        ----------
        x : Tensor, shape (M, N, d)
            Particles.

        Returns
        -------
        energy : Tensor, shape (M, N)
            As from the call.
        gradient : Tensor, shape (M, N, d)
            Zero where the energy is not finite.

        Raises
        ------
        ArgumentError
            If autograd finds no way from the energies to the particles.
        """
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            energy = self(points)
            if not energy.requires_grad:
                raise ArgumentError("objective: gradient_drift needs an objective that autograd can differentiate")
            finite = torch.isfinite(energy)
            (gradient,) = torch.autograd.grad(energy[finite].sum(), points)
        return energy.detach(), torch.where(finite.unsqueeze(-1), gradient, 0.0)
