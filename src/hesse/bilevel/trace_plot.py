"""The picture of several runs: how far each got for what it spent."""

from collections.abc import Mapping
from typing import Any

from hesse._optional import require
from hesse.bilevel.trace import BilevelResult
from hesse.errors import ArgumentError

__all__ = ["plot_traces"]

_LABELS = {
    "calls": "oracle calls (a gradient 1, a product 2)",
    "seconds": "seconds in steps",
    "iteration": "iteration",
    "exact_norm": "‖∇Φ(x)‖",
    "estimate_norm": "norm of the estimate",
    "upper_value": "f(x, y)",
}
_COLOURS = ("#2a6f97", "#e09f3e", "#5aa469", "#9e2a2b", "#7b5ea7", "#4a4a4a", "#c97b84", "#14746f")


def plot_traces(
    results: Mapping[str, BilevelResult],
    *,
    against: str = "calls",
    figure_of: str = "exact_norm",
    log: bool = True,
    axes: Any = None,
) -> Any:
    """Draw one figure of the traces against what was spent.

    Parameters
    ----------
    results : mapping of str to BilevelResult
        Runs by name.
    against : str, default "calls"
        Horizontal axis: "calls", "seconds" or "iteration".
    figure_of : str, default "exact_norm"
        Vertical axis: any column of the traces.
    log : bool, default True
        Whether the vertical axis is logarithmic.
    axes : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure, made without pyplot, so that nothing is left open.

    Returns
    -------
    matplotlib.figure.Figure
        With labels and legend; save it with ``savefig``.

    Raises
    ------
    ArgumentError
        If there is no run, or ``against`` is no measure of effort.
    MissingDependencyError
        If matplotlib is not installed.
    """
    if not results:
        raise ArgumentError("plot_traces: expected at least one run")
    if against not in ("calls", "seconds", "iteration"):
        raise ArgumentError(f"plot_traces: against must be calls, seconds or iteration; got {against!r}")
    if axes is None:
        module = require("matplotlib.figure", extra="plot", feature="plot_traces")
        axes = module.Figure(figsize=(7, 4), layout="constrained").add_subplot()
    for i, (name, result) in enumerate(results.items()):
        axes.plot(result.column(against), result.column(figure_of), label=name, color=_COLOURS[i % len(_COLOURS)])
    axes.set(xlabel=_LABELS[against], ylabel=_LABELS.get(figure_of, figure_of), yscale="log" if log else "linear")
    axes.legend(frameon=False)
    return axes.figure
