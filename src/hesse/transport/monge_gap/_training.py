"""What one step of training sees: batches of points, and the loss on them.   Shapes: B points a batch."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from hesse._points import Array, points_of
from hesse.errors import NumericalError, ShapeError
from hesse.transport.costs import Cost, SquaredEuclidean
from hesse.transport.monge_gap._module import MapModule
from hesse.transport.monge_gap.conservative import conservative_penalty
from hesse.transport.monge_gap.divergence import half_divergence
from hesse.transport.monge_gap.gap import monge_gap

__all__ = ["Batches", "FitLoss", "Objective", "Sampler"]

FitLoss = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[int, Generator], Tensor]

MAX_SWEEPS = 100  # of each transport problem of a step; what is left of its error is far below the noise of a batch
SCALE_POINTS = 1000  # of either side, for the mean costs that losses and eps are relative to


class Batches:
    """Points of source, target and, where it is not the source, reference, drawn with replacement.

    Parameters
    ----------
    clouds : pair of Tensor, shapes (N, D) and (M, E)
        Source and target.
    weights : pair of Tensor, shapes (N,) and (M,)
        To draw in proportion to.
    size : int
        B.
    reference : array or callable, optional
        Rows, or a function of B and the generator. Default: the source's batch itself.
    generator : torch.Generator
        On the CPU.
    """

    def __init__(
        self,
        clouds: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        size: int,
        reference: Array | Sampler | None,
        generator: Generator,
    ) -> None:
        self.clouds, self.size, self.generator = clouds, size, generator
        self.weights = [column.cpu() for column in weights]
        if reference is None or callable(reference):
            self.reference = reference
        else:
            self.reference = points_of("MongeMap.fit", "reference", reference).to(clouds[0])
            if self.reference.shape[1] != clouds[0].shape[1]:
                raise ShapeError(
                    f"MongeMap.fit: reference has {self.reference.shape[1]} columns, X {clouds[0].shape[1]}"
                )

    def draw(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return points of source, target and reference, or None where that is the source.

        Returns
        -------
        tuple of Tensor
            B rows each.
        """
        x, y = (self._rows(*pair) for pair in zip(self.clouds, self.weights, strict=True))
        if callable(self.reference):
            return x, y, self.reference(self.size, self.generator).to(x)
        if self.reference is None:
            return x, y, None
        return x, y, self._rows(self.reference, torch.ones(len(self.reference)))

    def _rows(self, points: Tensor, weights: Tensor) -> Tensor:
        # by the inverse of the distribution function: torch.multinomial stops at 2^24 categories
        levels = torch.rand(self.size, dtype=torch.float64, generator=self.generator)
        steps = weights.double().cumsum(0)
        index = torch.searchsorted(steps, levels * steps[-1], right=True).clamp(max=len(points) - 1)
        return points[index.to(points.device)]


class Objective:
    """Δ / mean |y - y'|² + lam M / mean c(x, y) + conservative penalty, the means measured once on the data.

    Parameters
    ----------
    cost : Cost
        c.
    module : MapModule
        T.
    source, target : Tensor, shapes (N, D) and (M, E)
        For the means.
    lam, eps_fit, eps_gap, conservative, fit_loss
        As in `MongeMap`; ``fit_loss`` None is the Sinkhorn divergence.
    generator : torch.Generator
        Of the probes, on the device of the source.
    """

    def __init__(
        self,
        cost: Cost,
        module: MapModule,
        source: Tensor,
        target: Tensor,
        *,
        lam: float,
        fit_loss: FitLoss | None,
        eps_fit: float,
        eps_gap: float,
        conservative: float,
        generator: Generator,
    ) -> None:
        self.cost, self.module, self.lam, self.fit_loss = cost, module, lam, fit_loss
        self.conservative, self.generator = conservative, generator
        self.squared = SquaredEuclidean()
        some = target[:SCALE_POINTS]
        self.fit_unit = _mean_cost("target", self.squared, some, some) if fit_loss is None else 1.0
        self.gap_unit = _mean_cost("source and target", cost, source[:SCALE_POINTS], some) if lam > 0 else 1.0
        self.eps_fit, self.eps_gap = eps_fit * self.fit_unit, eps_gap * self.gap_unit
        self.own: Tensor | None = None  # half the target's cost to itself: a constant, for the record only

    def __call__(self, x: Tensor, y: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, Δ and the gap on a batch.

        Returns
        -------
        tuple of Tensor, shape ()
            The loss is relative to the mean costs, Δ and the gap are in units of theirs.
        """
        mapped = self.module(x)
        fit = self._divergence(mapped, y) if self.fit_loss is None else self.fit_loss(mapped, y)
        total, gap = fit / self.fit_unit, mapped.new_zeros(())
        if self.lam > 0:
            places, images = (x, mapped) if reference is None else (reference, self.module(reference))
            gap = monge_gap(places, images, self.cost, eps=self.eps_gap, max_steps=MAX_SWEEPS)
            total = total + self.lam * gap / self.gap_unit
        if self.conservative > 0:
            penalty = conservative_penalty(self.module.field, x, generator=self.generator)
            total = total + self.conservative * penalty
        return total, fit, gap

    def _divergence(self, mapped: Tensor, y: Tensor) -> Tensor:
        half = self._half(mapped, y)
        if self.own is None:
            self.own = self._half(y, y)
        return half - self.own

    def _half(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), 1 / len(y))
        return half_divergence(x, y, self.eps_fit, self.squared, a, b, tol=1e-3, max_steps=MAX_SWEEPS)


def _mean_cost(name: str, cost: Cost, x: Tensor, y: Tensor) -> float:
    mean = float(cost.pairwise(x, y).mean())
    if not 0 < mean < float("inf"):
        raise NumericalError(f"MongeMap.fit: the mean cost within {name} is {mean}, expected a positive number")
    return mean
