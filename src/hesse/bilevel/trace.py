"""What a run leaves: the solution, and a row of figures for every step that was looked at."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesse.bilevel.counts import OracleCounts
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError
from hesse.io.atomic import atomic_write_bytes

__all__ = ["BilevelResult", "TraceRow"]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One look at a run.

    Attributes
    ----------
    iteration : int
        Steps made so far.
    seconds : float
        Spent in steps so far.
    counts : OracleCounts
        Derivatives so far.
    upper_value : float
        f(x, y) at the present pair, on all data.
    estimate_norm : float
        Norm of the solver's last hypergradient estimate; NaN before the first step.
    exact_norm : float or None
        ‖∇Φ(x)‖ where the problem knows it.
    metrics : dict of float
        The problem's own.
    """

    iteration: int
    seconds: float
    counts: OracleCounts
    upper_value: float
    estimate_norm: float
    exact_norm: float | None
    metrics: dict[str, float]

    def figures(self) -> dict[str, float]:
        """Flatten the row.

        Returns
        -------
        dict of float
            Every count and metric by its name, and ``calls``; NaN for an exact norm that is not known.
        """
        exact = float("nan") if self.exact_norm is None else self.exact_norm
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "calls": self.counts.calls,
            **self.counts.as_dict(),
            "upper_value": self.upper_value,
            "estimate_norm": self.estimate_norm,
            "exact_norm": exact,
            **self.metrics,
        }


@dataclass(frozen=True, slots=True)
class BilevelResult:
    """The outcome of a run.

    Attributes
    ----------
    x, y : pytree of Tensor
        The last pair, finite even where the run ended in NaN.
    trace : tuple of TraceRow
        The first row is of the start, the last of the end.
    converged : bool
        Whether the estimate fell to the tolerance asked for.
    message : str
        Why the run stopped.
    counts : OracleCounts
        Of the solver, from its very beginning.
    extra : mapping
        What only this solver has to tell, by name; see its `extra`.
    """

    x: Tree
    y: Tree
    trace: tuple[TraceRow, ...]
    converged: bool
    message: str
    counts: OracleCounts
    extra: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> list[float]:
        """Read one figure along the trace.

        Parameters
        ----------
        name : str
            "iteration", "seconds", "calls", "upper_value", "estimate_norm", "exact_norm", a count or a metric.

        Returns
        -------
        list of float
            One a row.

        Raises
        ------
        ArgumentError
            If there is no such figure.
        """
        rows = [row.figures() for row in self.trace]
        if rows and name not in rows[0]:
            raise ArgumentError(f"BilevelResult.column: no figure {name!r}; there are {', '.join(rows[0])}")
        return [row[name] for row in rows]

    def write_csv(self, path: str | Path) -> None:
        """Write the trace as a table, one row a look, in one step.

        Parameters
        ----------
        path : str or Path
            Replaced if it exists.
        """
        text = io.StringIO()
        rows = [row.figures() for row in self.trace]
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_bytes(path, text.getvalue().encode())
