"""What all bilevel solvers share: state as flat vectors, budgets, traces, checkpoints.   Shapes: x (N,), y (M,)."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from hesse.bilevel.counts import Budget, OracleCounts
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.trace import BilevelResult, TraceRow
from hesse.curvature.batches import batch_size
from hesse.errors import ArgumentError, ArtifactError, NumericalError, ShapeError
from hesse.io.tensors import load_tensors, save_tensors, tensor_metadata
from hesse.linalg._arguments import at_least

__all__ = ["BilevelSolver", "positive"]


class BilevelSolver(ABC):
    """A solver makes steps of the upper variable; everything else is here.

    A subclass lists in ``tensors`` the names of the attributes that live from step to step, and writes `step`, which
    replaces them rather than changing them in place.

    Parameters
    ----------
    problem : BilevelProblem
        Where to start, and the losses.
    seed : int, default 0
        Of the solver's own random choices; batches come from the problem's samplers. These belong to the problem: two
        solvers that shall see the same batches each need a problem of their own.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y")

    def __init__(self, problem: BilevelProblem, *, seed: int = 0) -> None:
        self.problem = problem
        self.oracle = Oracle(problem)
        self.x: Tensor = problem.x_layout.flatten(problem.x0)
        self.y: Tensor = problem.y_layout.flatten(problem.y0)
        self.iteration = 0
        self.seconds = 0.0
        self.generator = Generator().manual_seed(seed)

    @abstractmethod
    def step(self) -> Tensor:
        """Move x once.

        Returns
        -------
        Tensor, shape (N,)
            The estimate of the hypergradient that was followed.
        """

    def lower_variable(self) -> Tensor:
        """Give y as traces and results show it.

        Returns
        -------
        Tensor, shape (M,)
            ``self.y``, unless a solver keeps it in another form.
        """
        return self.y

    def is_finite(self, estimate: Tensor) -> bool:
        """Look at what a step left.

        Parameters
        ----------
        estimate : Tensor, shape (N,)
            Of the hypergradient.

        Returns
        -------
        bool
            Whether x, y and the estimate are free of NaN and Inf. If not, the step is taken back.
        """
        return all(bool(torch.isfinite(t).all()) for t in (self.x, self.y, estimate))

    def draw_lower(self) -> Any:
        """Draw a batch of the lower level and count its samples.

        Returns
        -------
        object
            A batch, or None where there is no sampler.
        """
        return self._draw(self.problem.lower_sampler)

    def draw_upper(self) -> Any:
        """Draw a batch of the upper level and count its samples.

        Returns
        -------
        object
            A batch, or None where there is no sampler.
        """
        return self._draw(self.problem.upper_sampler)

    def run(
        self,
        budget: Budget,
        callback: Callable[[TraceRow], bool | None] | None = None,
        *,
        tol: float = 0.0,
        trace_every: int = 1,
    ) -> BilevelResult:
        """Make steps until the budget is spent; calling it again goes on.

        Parameters
        ----------
        budget : Budget
            Counted from the solver's beginning, not from this call.
        callback : callable, optional
            Given every row of the trace; True stops the run.
        tol : float, default 0.0
            Stop where the estimate's norm is at most this. Default: never.
        trace_every : int, default 1
            Steps between two rows; a row costs one pass over the upper data, and whatever the metrics do.

        Returns
        -------
        BilevelResult
            If a step gave NaN or Inf, the state before it; the message says so.

        Raises
        ------
        ArgumentError
            If ``trace_every < 1`` or ``tol < 0``.
        """
        at_least("run", "trace_every", trace_every, 1)
        at_least("run", "tol", tol, 0)
        trace, norm = [self._row(math.nan)], math.nan
        converged, message = False, None
        if callback is not None and callback(trace[0]):
            message = "stopped by the callback"
        while message is None:
            spent = budget.exhausted(self.iteration, self.oracle.counts.calls, self.seconds)
            if spent is not None:
                message = f"budget of {spent} spent"
                break
            before = [(name, getattr(self, name)) for name in self.tensors]
            start = time.perf_counter()
            try:
                estimate = self.step()
            except NumericalError as error:
                self._go_back(before)
                message = f"step {self.iteration + 1} failed: {error}"
                break
            finally:
                self.seconds += time.perf_counter() - start
            if not self.is_finite(estimate):
                self._go_back(before)
                message = f"step {self.iteration + 1} gave NaN or Inf; lower the step sizes"
                break
            self.iteration += 1
            norm = float(estimate.norm())
            converged = tol > 0 and norm <= tol  # a first estimate of zero, as from v = 0, is no solution
            if converged:
                message = "converged"
                break
            if self.iteration % trace_every == 0:
                trace.append(self._row(norm))
                if callback is not None and callback(trace[-1]):
                    message = "stopped by the callback"
        if trace[-1].iteration != self.iteration:
            trace.append(self._row(norm))
        return BilevelResult(
            x=self.problem.x_layout.unflatten(self.x.clone()),
            y=self.problem.y_layout.unflatten(self.lower_variable().clone()),
            trace=tuple(trace),
            converged=converged,
            message=message or "",
            counts=self.oracle.counts.copy(),
            extra=self.extra(),
        )

    def extra(self) -> dict[str, Any]:
        """Give what only this solver has to tell of its present state.

        Returns
        -------
        dict
            Becomes `BilevelResult.extra`; empty for most.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Save all that the next step depends on.

        Returns
        -------
        dict
            Tensors by name (those of the samplers with a prefix) under "tensors", plain numbers and names beside.
        """
        tensors = {name: getattr(self, name) for name in self.tensors}
        tensors["generator"] = self.generator.get_state()
        for level, sampler in self._samplers():
            tensors.update({f"{level}_sampler.{key}": value for key, value in sampler.state_dict().items()})
        return {
            "solver": type(self).__name__,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "counts": self.oracle.counts.as_dict(),
            "tensors": {name: t.detach().clone() for name, t in tensors.items() if t is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another solver of the same kind and problem stood.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Raises
        ------
        ArgumentError
            If it is another solver's, or lacks a tensor.
        ShapeError
            If it is of a problem of another size.
        """
        call = type(self).__name__
        if state["solver"] != call:
            raise ArgumentError(f"{call}.load_state_dict: the state is of {state['solver']}")
        tensors = state["tensors"]
        for name in ("x", "y"):
            if name not in tensors or tensors[name].shape != getattr(self, name).shape:
                found, own = tuple(tensors[name].shape) if name in tensors else None, tuple(getattr(self, name).shape)
                raise ShapeError(f"{call}.load_state_dict: {name} has shape {found}, this problem's {own}")
        for name in self.tensors:
            held = tensors.get(name)
            setattr(self, name, None if held is None else held.clone().to(self.x.device))
        self.generator.set_state(tensors["generator"].cpu())
        for level, sampler in self._samplers():
            prefix = f"{level}_sampler."
            kept = {key.removeprefix(prefix): value.cpu() for key, value in tensors.items() if key.startswith(prefix)}
            sampler.load_state_dict(kept)
        self.iteration, self.seconds = int(state["iteration"]), float(state["seconds"])
        self.oracle.counts = OracleCounts(**state["counts"])

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, one safetensors file, in one step.

        Parameters
        ----------
        path : str or Path
            Replaced if it exists.
        """
        state = self.state_dict()
        tensors = state.pop("tensors")
        save_tensors(path, tensors, {"state": json.dumps(state)})

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint.

        Parameters
        ----------
        path : str or Path
            Written by `save` of a solver of the same kind, problem and settings.

        Raises
        ------
        ArtifactError
            If the file is no checkpoint of a solver.
        """
        metadata = tensor_metadata(path)
        if "state" not in metadata:
            raise ArtifactError(f"{path}: no checkpoint of a bilevel solver")
        self.load_state_dict({**json.loads(metadata["state"]), "tensors": load_tensors(path)})

    def _go_back(self, before: list[tuple[str, Any]]) -> None:
        for name, value in before:
            setattr(self, name, value)

    def _samplers(self) -> list[tuple[str, Any]]:
        levels = (("upper", self.problem.upper_sampler), ("lower", self.problem.lower_sampler))
        return [(level, sampler) for level, sampler in levels if sampler is not None]

    def _draw(self, sampler: Any) -> Any:
        if sampler is None:
            return None
        batch = sampler.draw()
        self.oracle.counts.samples += batch_size(batch)
        return batch

    def _row(self, estimate_norm: float) -> TraceRow:
        problem = self.problem
        flat = self.lower_variable()
        x, y = problem.x_layout.unflatten(self.x), problem.y_layout.unflatten(flat)
        exact = problem.exact_hypergradient
        with torch.no_grad():
            value = float(self.oracle.value(self.x, flat))
        return TraceRow(
            iteration=self.iteration,
            seconds=self.seconds,
            counts=self.oracle.counts.copy(),
            upper_value=value,
            estimate_norm=estimate_norm,
            exact_norm=None if exact is None else float(problem.x_layout.flatten(exact(x)).norm()),
            metrics={name: float(metric(x, y)) for name, metric in problem.metrics.items()},
        )


def positive(call: str, **values: float) -> None:
    """Refuse settings that are not positive and finite.

    Parameters
    ----------
    call : str
        Name of the solver, for the message.
    **values : float
        Settings by name.

    Raises
    ------
    ArgumentError
        Naming the first that is not.
    """
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{call}: expected {name} > 0, got {value}")
