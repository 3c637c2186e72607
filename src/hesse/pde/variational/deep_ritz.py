"""The deep Ritz method: the energy of a network at random points, minimised by Adam.   Shapes: N points, D axes."""

import time
from collections.abc import Callable
from typing import Self

import torch
from torch import Generator, Tensor, nn

from hesse._estimator import Estimator
from hesse._progress import progress
from hesse.errors import ArgumentError, NumericalError
from hesse.pde.barron import SineSeries
from hesse.pde.variational._transforms import analyse
from hesse.pde.variational.energy import EllipticEnergy

__all__ = ["DeepRitz"]

Sampler = Callable[[int, Generator | None], Tensor]


class DeepRitz(Estimator):
    """Minimise the mean of L(u, ∇u) - f u over fresh uniform points, u = net(x) or net(x) Π 4 x_i (1 - x_i).

    The baseline for `PreconditionedDescent` on the same energy. Its error is that of the training, some percent with a
    small network; it has no certificate of its own, but `project` brings it to a series whose error bound can be had.

    Parameters
    ----------
    net : nn.Module
        (N, D) to (N,) or (N, 1); for the torus it should be periodic by itself. It is trained in place.
    energy : EllipticEnergy
        What to minimise; its source may be a series or a function.
    boundary_penalty : float, optional
        Weight of the mean of u² on the faces. Default: none, and for Dirichlet values the factor Π 4 x_i (1 - x_i).
    sampler : callable, optional
        ``sampler(N, generator)`` gives points (N, D). Default: uniform in the unit cube.
    num_points : int, default 512
        N a step.
    learning_rate : float, default 1e-3
        Adam's, lowered to zero along half a cosine over the steps.
    max_steps : int, default 2000
        Steps at most.
    time_limit : float, optional
        Seconds after which training stops. Default: none.
    generator : torch.Generator, optional
        Source of the points. Default: torch's global generator.

    Attributes
    ----------
    n_iter_ : int
        Steps taken.
    history_ : list of float
        Loss of every step.

    References
    ----------
    W. E, B. Yu (2018), Commun. Math. Stat. 6, arXiv 1710.00211.
    """

    def __init__(
        self,
        net: nn.Module,
        energy: EllipticEnergy,
        *,
        boundary_penalty: float | None = None,
        sampler: Sampler | None = None,
        num_points: int = 512,
        learning_rate: float = 1e-3,
        max_steps: int = 2000,
        time_limit: float | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.net = net
        self.energy = energy
        self.boundary_penalty = boundary_penalty
        self.sampler = sampler
        self.num_points = num_points
        self.learning_rate = learning_rate
        self.max_steps = max_steps
        self.time_limit = time_limit
        self.generator = generator

    def fit(self, X: object = None, y: object = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X, y : object, optional
            Ignored: the energy is the data.

        Returns
        -------
        DeepRitz
            Itself.

        Raises
        ------
        ArgumentError
            If a number is out of range, or a penalty is given on the torus.
        NumericalError
            If the loss stops being finite.
        """
        del X, y
        self._check()
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_steps)
        self.history_: list[float] = []
        started = time.perf_counter()
        with progress("deep Ritz", self.max_steps, unit="steps") as advance:
            for _ in range(self.max_steps):
                if self.time_limit is not None and time.perf_counter() - started > self.time_limit:
                    break
                optimizer.zero_grad()
                loss = self._loss()
                loss.backward()
                optimizer.step()
                schedule.step()
                self.history_.append(float(loss.detach()))
                if self.history_[-1] != self.history_[-1]:
                    raise NumericalError(f"DeepRitz: the loss is NaN after {len(self.history_)} steps; lower the rate")
                advance(1)
        self.n_iter_ = len(self.history_)
        return self

    def predict(self, X: Tensor) -> Tensor:
        """Evaluate u.

        Parameters
        ----------
        X : Tensor, shape (N, D)
            Points of the unit cube.

        Returns
        -------
        Tensor, shape (N,)
            Without gradient.
        """
        with torch.no_grad():
            return self._field(X)

    def project(self, num_modes: int = 32) -> SineSeries:
        """Project onto the sines of frequencies 1..K in each axis, on a grid: Dirichlet values, D <= 3.

        Parameters
        ----------
        num_modes : int, default 32
            K. The grid has 2 (K + 1) intervals an axis.

        Returns
        -------
        SineSeries
            A start for `PreconditionedDescent`, whose first record then bounds this network's H¹ error up to the part
            that was projected away.

        Raises
        ------
        ArgumentError
            On the torus, in more than three axes, or if ``num_modes < 1``.
        """
        dim = self.energy.dim
        if self.energy.boundary != "dirichlet" or dim > 3 or num_modes < 1:
            raise ArgumentError("DeepRitz.project: needs Dirichlet values, at most 3 axes and num_modes >= 1")
        like = next(self.net.parameters())
        nodes = torch.linspace(0, 1, 2 * (num_modes + 1) + 1, dtype=like.dtype, device=like.device)
        points = torch.stack(torch.meshgrid([nodes] * dim, indexing="ij"), dim=-1)
        values = self.predict(points.reshape(-1, dim)).reshape(points.shape[:-1])
        coefs = analyse(values, [True] * dim)[(slice(0, num_modes),) * dim]
        found = coefs.nonzero()
        return SineSeries(found + 1, coefs[tuple(found.T)])

    def _check(self) -> None:
        for name, low in (("num_points", 1), ("max_steps", 1)):
            if getattr(self, name) < low:
                raise ArgumentError(f"DeepRitz: expected {name} >= {low}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ArgumentError(f"DeepRitz: expected learning_rate > 0, got {self.learning_rate}")
        if self.boundary_penalty is not None and (self.energy.boundary == "periodic" or self.boundary_penalty < 0):
            raise ArgumentError("DeepRitz: boundary_penalty >= 0 is for Dirichlet values")

    def _field(self, x: Tensor) -> Tensor:
        values = self.net(x).reshape(-1)
        if self.energy.boundary == "periodic" or self.boundary_penalty is not None:
            return values
        return values * (4 * x * (1 - x)).prod(dim=1)

    def _loss(self) -> Tensor:
        like = next(self.net.parameters())
        x = (self.sampler or self._uniform)(self.num_points, self.generator).to(like.dtype).requires_grad_()
        u = self._field(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        loss = self.energy.density(u, slope, x.detach()).mean()
        if self.boundary_penalty is not None:
            face = self._uniform(self.num_points, self.generator)
            axis = torch.randint(self.energy.dim, (len(face), 1), generator=self.generator, device=face.device)
            side = torch.randint(2, (len(face), 1), generator=self.generator, device=face.device)
            face = face.scatter(1, axis, side.to(face.dtype))
            loss = loss + self.boundary_penalty * self._field(face).square().mean()
        return loss

    def _uniform(self, count: int, generator: Generator | None) -> Tensor:
        like = next(self.net.parameters())
        return torch.rand(count, self.energy.dim, dtype=like.dtype, device=like.device, generator=generator)
