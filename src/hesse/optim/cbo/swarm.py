"""What consensus-based optimisation and hopping share: runs side by side, their randomness, state and results.

Shapes: M runs, N particles, d coordinates, K steps. Results of a single run have no run axis.
"""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from hesse._values import check_count, check_finite
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim.cbo.consensus import consensus_point, ess_alpha
from hesse.optim.cbo.objective import BoundedBox, MapFunction, Objective
from hesse.optim.cbo.schedules import Schedule

__all__ = ["Alpha", "Bounds", "OptimHistory", "OptimResult", "Swarm"]

Alpha = float | Literal["ess"]
Bounds = tuple[float | Tensor, float | Tensor]

DEFAULT_PARTICLES = 100


@dataclass(frozen=True, slots=True)
class OptimHistory:
    """One entry a step of the last call of ``run``.

    Attributes
    ----------
    best : Tensor, shape (K,) or (K, M)
        Least energy seen up to then.
    residual : Tensor, shape (K,) or (K, M)
        What is compared with ``tol``.
    consensus : Tensor, shape (K, d) or (K, M, d), or None
        Where the particles met, if ``keep_path`` was set.
    """

    best: Tensor
    residual: Tensor
    consensus: Tensor | None


@dataclass(frozen=True, slots=True)
class OptimResult:
    """Where a run ended.

    Attributes
    ----------
    x : Tensor, shape (d,) or (M, d)
        The last consensus.
    fun : Tensor, shape () or (M,)
        Its energy, evaluated for this result.
    best_x, best_fun : Tensor, shapes as ``x`` and ``fun``
        The best point evaluated on the way, the last consensus among them.
    num_evaluations : int
        Of the objective in one run since the start.
    num_invalid : int
        How many of all runs' energies were NaN; they counted as +inf.
    num_steps : int
        Since the start.
    converged : Tensor of bool, shape () or (M,)
        Whether the residual is at most ``tol``.
    collapsed : Tensor of bool, shape () or (M,)
        Whether all particles are the same point: noise is zero there, and the run stays where it is, minimum or not.
    particles : Tensor, shape (N, d) or (M, N, d)
        The cloud.
    history : OptimHistory
        Step by step.
    """

    x: Tensor
    fun: Tensor
    best_x: Tensor
    best_fun: Tensor
    num_evaluations: int
    num_invalid: int
    num_steps: int
    converged: Tensor
    collapsed: Tensor
    particles: Tensor
    history: OptimHistory


class Swarm(abc.ABC):
    """Book-keeping of M runs. A method says how a step moves them, and when they have converged.

    Parameters
    ----------
    call : str
        The method, for messages.
    f : callable
        The objective, as `CBO` takes it.
    like : Tensor, optional
        Start, whose dtype and device are taken. Default: float64 on the generator's device.
    dim : int
        d.
    num_particles : int
        N >= 2.
    num_runs : int, optional
        M. Default: one run, without a run axis.
    sigma : float
        Width of the noise, >= 0.
    alpha : float or "ess"
        Sharpness of the consensus.
    bounds, at_bounds, projection, schedule, vectorize, map_fn, generator, dtype
        As of `CBO`.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ArgumentTypeError
        If the dtype is not float32 or float64.
    """

    _state_tensors = ("x", "consensus", "alpha", "best_x", "best_fun")
    _state_numbers = ("sigma", "num_steps")

    def __init__(
        self,
        call: str,
        f: Callable[[Tensor], Any],
        *,
        like: Tensor | None,
        dim: int,
        num_particles: int,
        num_runs: int | None,
        sigma: float,
        alpha: Alpha,
        bounds: Bounds | None,
        at_bounds: Literal["reflect", "clip"],
        projection: Callable[[Tensor], Tensor] | None,
        schedule: Schedule | None,
        vectorize: bool,
        map_fn: MapFunction | None,
        generator: Generator | None,
        dtype: torch.dtype | None,
    ) -> None:
        if like is not None:
            check_finite(call, "x0", like)
        check_count(call, "dim", dim)
        check_count(call, "num_particles", num_particles, low=2)
        if num_runs is not None:
            check_count(call, "num_runs", num_runs)
        if not (sigma >= 0 and math.isfinite(sigma)):
            raise ArgumentError(f"{call}: expected sigma >= 0, got {sigma}")
        if isinstance(alpha, str) and alpha != "ess":
            raise ArgumentError(f'{call}: alpha must be a number or "ess", got {alpha!r}')
        if not isinstance(alpha, str) and not alpha >= 0:
            raise ArgumentError(f"{call}: expected alpha >= 0, got {alpha}")
        chosen = dtype or (torch.float64 if like is None else like.dtype)
        if chosen not in (torch.float32, torch.float64):
            raise ArgumentTypeError(f"{call}: expected float32 or float64, got {chosen}; pass dtype=")
        self.dim, self.num_particles, self.num_runs = dim, num_particles, num_runs
        self.sigma = float(sigma)
        self.num_steps = 0
        self.objective = Objective(
            f, batched=num_runs is not None, vectorize=vectorize, map_fn=map_fn, projection=projection
        )
        self._call = call
        self._boundary = None if bounds is None else BoundedBox(*bounds, at_bounds)
        self._schedule = schedule
        if like is not None:
            self._device = like.device
        else:
            self._device = torch.device("cpu") if generator is None else generator.device
        self._dtype = chosen
        if generator is None:  # a source of its own, so that its state can be kept
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(self._device).manual_seed(seed)
        self.generator = generator
        runs = num_runs or 1
        self._by_size = alpha == "ess"
        start = 1.0 if isinstance(alpha, str) else alpha  # "ess" finds its own before the first use
        self.alpha = torch.full((runs,), start, dtype=chosen, device=self._device)
        self.x = torch.zeros((runs, num_particles, dim), dtype=chosen, device=self._device)
        self.consensus = torch.full((runs, dim), math.nan, dtype=chosen, device=self._device)
        self.best_x = self.consensus.clone()
        self.best_fun = torch.full((runs,), math.inf, dtype=chosen, device=self._device)

    @abc.abstractmethod
    def _advance(self) -> None: ...

    @abc.abstractmethod
    def _residual(self) -> Tensor: ...  # (M,)

    def step(self) -> None:
        """Evaluate N particles, find the consensus, move, and let the schedule change α and σ."""
        with torch.no_grad():
            self._advance()
            self.num_steps += 1
            if self._schedule is not None:
                self.alpha, self.sigma = self._schedule(self.num_steps, self.alpha, self.sigma)

    def run(
        self,
        max_steps: int = 1000,
        tol: float = 1e-12,
        *,
        keep_path: bool = False,
        callback: Callable[["Swarm"], object] | None = None,
    ) -> OptimResult:
        """Step until every run has converged, or for so many steps.

        Parameters
        ----------
        max_steps : int, default 1000
            >= 1, counted from here.
        tol : float, default 1e-12
            >= 0, for the residual: of `CBO` the largest variance of a coordinate over the particles, of
            `ConsensusHopping` the largest change of a coordinate of the consensus.
        keep_path : bool, default False
            Whether the history keeps every consensus: K M d numbers.
        callback : callable, optional
            Called with this object after every step; what it returns is not used.

        Returns
        -------
        OptimResult
            A call costs one evaluation a run more than its steps.

        Raises
        ------
        ArgumentError
            If a limit is out of range.
        """
        if max_steps < 1 or not tol >= 0:
            raise ArgumentError(f"{self._call}.run: expected max_steps >= 1 and tol >= 0, got {max_steps} and {tol}")
        best: list[Tensor] = []
        residuals: list[Tensor] = []
        path: list[Tensor] = []
        for _ in range(max_steps):
            self.step()
            residual = self._residual()
            best.append(self.best_fun)
            residuals.append(residual)
            if keep_path:
                path.append(self.consensus)
            if callback is not None:
                callback(self)
            if bool((residual <= tol).all()):
                break
        return self._result(best, residuals, path, tol)

    def _result(self, best: list[Tensor], residuals: list[Tensor], path: list[Tensor], tol: float) -> OptimResult:
        with torch.no_grad():
            energy = self.objective(self.consensus.unsqueeze(1))
            self._observe(self.consensus.unsqueeze(1), energy)
        single = self.num_runs is None

        def shown(tensor: Tensor, axis: int = 0) -> Tensor:
            return tensor.squeeze(axis) if single else tensor

        return OptimResult(
            x=shown(self.objective.place(self.consensus)),
            fun=shown(energy.squeeze(1)),
            best_x=shown(self.objective.place(self.best_x)),
            best_fun=shown(self.best_fun),
            num_evaluations=self.objective.num_evaluations,
            num_invalid=self.objective.num_invalid,
            num_steps=self.num_steps,
            converged=shown(residuals[-1] <= tol),
            collapsed=shown((self.x == self.x[:, :1]).all(-1).all(-1)),
            particles=shown(self.x),
            history=OptimHistory(
                best=shown(torch.stack(best), 1),
                residual=shown(torch.stack(residuals), 1),
                consensus=shown(torch.stack(path), 1) if path else None,
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """Copy everything that a run needs to go on bit for bit, the generator's state among it.

        Returns
        -------
        dict
            Tensors and numbers, copies.
        """
        tensors = {name: getattr(self, name).clone() for name in self._state_tensors}
        numbers = {name: getattr(self, name) for name in self._state_numbers}
        counts = {"num_evaluations": self.objective.num_evaluations, "num_invalid": self.objective.num_invalid}
        return tensors | numbers | counts | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of an object made with the same options.

        Parameters
        ----------
        state : mapping
            As `state_dict` gives.

        Raises
        ------
        ArgumentError
            If entries are missing or unknown.
        ShapeError
            If it is of another number of runs or coordinates.
        """
        expected = {*self._state_tensors, *self._state_numbers, "num_evaluations", "num_invalid", "generator"}
        if set(state) != expected:
            odd = ", ".join(sorted(set(state) ^ expected))
            raise ArgumentError(f"{self._call}.load_state_dict: entries missing or unknown: {odd}")
        shape = tuple(state["x"].shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (self.x.shape[0], self.dim):
            raise ShapeError(
                f"{self._call}.load_state_dict: expected particles ({self.x.shape[0]}, N, {self.dim}), got {shape}"
            )
        for name in self._state_tensors:
            setattr(self, name, state[name].to(dtype=self._dtype, device=self._device, copy=True))
        for name in self._state_numbers:
            setattr(self, name, state[name])
        self.num_particles = shape[1]
        self.objective.num_evaluations = state["num_evaluations"]
        self.objective.num_invalid = state["num_invalid"]
        self.generator.set_state(state["generator"])

    def _normal(self, *shape: int) -> Tensor:
        source = self.generator
        if self._dtype == torch.float32 or source.device.type != "cpu":
            return torch.randn(shape, generator=source, dtype=self._dtype, device=source.device).to(self._device)
        # float64 on a CPU: inverting the distribution is vectorised, unlike randn there, and three times as fast.
        # Half a unit in the last place keeps the 53 random bits away from 0 and 1
        drawn = torch.rand(shape, generator=source, dtype=self._dtype)
        return drawn.mul_(2).sub_(1 - 2.0**-53).erfinv_().mul_(math.sqrt(2)).to(self._device)

    def _uniform(self, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=self.generator, dtype=self._dtype, device=self.generator.device)
        return drawn.to(self._device)

    def _within(self, x: Tensor) -> Tensor:
        return x if self._boundary is None else self._boundary(x)

    def _scattered(self, *shape: int) -> Tensor:
        # evenly over the box; without one, standard normal
        if self._boundary is None:
            return self._normal(*shape)
        low, high = self._boundary.low.to(self.x), self._boundary.high.to(self.x)
        return low + (high - low) * self._uniform(*shape)

    def _observe(self, x: Tensor, energy: Tensor) -> None:
        value, at = energy.min(1)
        better = value < self.best_fun
        found = x.gather(1, at[:, None, None].expand(-1, 1, self.dim)).squeeze(1)
        self.best_x = torch.where(better.unsqueeze(-1), found, self.best_x)
        self.best_fun = torch.where(better, value, self.best_fun)

    def _meet(self, x: Tensor, energy: Tensor) -> Tensor:
        if self._by_size:
            self.alpha = ess_alpha(energy)
        consensus = consensus_point(x, energy, self.alpha)
        if not bool(torch.isfinite(consensus).all()):
            raise NumericalError(
                f"{self._call}: particles have left all bounds after {self.num_steps} steps; lower sigma or dt, or set "
                "bounds"
            )
        self.consensus = consensus
        return consensus


def dimension(call: str, x0: Tensor | None, dim: int | None, bounds: Bounds | None) -> int:
    """Find the number of coordinates from whatever tells it.

    Parameters
    ----------
    call : str
        The method, for messages.
    x0 : Tensor, optional
        Start, (..., d).
    dim : int, optional
        d as given.
    bounds : tuple, optional
        Of which each may be a tensor (d,).

    Returns
    -------
    int
        d.

    Raises
    ------
    ArgumentError
        If nothing tells it.
    ShapeError
        If they contradict each other.
    """
    told = set() if dim is None else {dim}
    if x0 is not None and x0.ndim:
        told.add(x0.shape[-1])
    told |= {len(b) for b in bounds or () if isinstance(b, Tensor) and b.ndim == 1}
    if len(told) > 1:
        raise ShapeError(f"{call}: x0, dim and bounds disagree on the number of coordinates: {sorted(told)}")
    if not told:
        raise ArgumentError(f"{call}: expected x0, dim or bounds with tensors (d,), to know the number of coordinates")
    return told.pop()
