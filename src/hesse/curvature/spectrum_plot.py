"""The picture of a spectrum: eigenvalue density on a logarithmic axis, with the band that sampling leaves."""

from typing import Any

import torch

from hesse._optional import require
from hesse.errors import ArgumentError
from hesse.linalg.eigen.slq import SpectralDensity

__all__ = ["plot_density"]


def plot_density(
    density: SpectralDensity, *, order: int | None = None, floor: float | None = None, axes: Any = None
) -> Any:
    """Draw a density of eigenvalues, one standard error to either side, and the extreme Ritz values.

    Parameters
    ----------
    density : SpectralDensity
        From `eigenvalue_density`.
    order : int, optional
        N, the order of the matrix. Given, the axis is in eigenvalues per unit of λ, so that the area is N; otherwise
        the area is one.
    floor : float, optional
        Lower end of the logarithmic axis. Default: a tenth of what one eigenvalue in N (or 10⁻⁵ without ``order``)
        contributes at its peak.
    axes : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure, made without pyplot, so that nothing is left open.

    Returns
    -------
    matplotlib.figure.Figure
        With labels; save it with ``savefig``.

    Raises
    ------
    ArgumentError
        If ``order < 1`` or ``floor <= 0``.
    MissingDependencyError
        If matplotlib is not installed.
    """
    if order is not None and order < 1:
        raise ArgumentError(f"plot_density: expected order >= 1, got {order}")
    if floor is not None and not floor > 0:
        raise ArgumentError(f"plot_density: expected floor > 0, got {floor}")
    if axes is None:
        figure = require("matplotlib.figure", extra="plot", feature="plot_density").Figure(
            figsize=(7, 4), layout="constrained"
        )
        axes = figure.add_subplot()
    scale = 1.0 if order is None else float(order)
    peak = 1.0 / (density.sigma * (2 * torch.pi) ** 0.5)  # what an eigenvalue of weight one adds at its own place
    low = floor if floor is not None else 0.1 * peak * (1e-5 if order is None else 1.0)
    grid, middle, error = (
        t.cpu() * s for t, s in ((density.grid, 1), (density.density, scale), (density.standard_error, scale))
    )
    axes.fill_between(
        grid, (middle - error).clamp_min(low), (middle + error).clamp_min(low), color="#2a6f97", alpha=0.25, linewidth=0
    )
    axes.plot(grid, middle.clamp_min(low), color="#2a6f97")
    for value in (density.smallest, density.largest):
        axes.axvline(float(value), color="#9e2a2b", linewidth=0.8, linestyle=":")
    ends = f"λ from {float(density.smallest):.3g} to {float(density.largest):.3g}"
    axes.set_title(ends, loc="right", color="#9e2a2b", fontsize="small")  # outside, where no curve or line runs
    axes.set(yscale="log", ylim=(low, None), xlabel="eigenvalue λ")
    axes.set_ylabel("density of eigenvalues" if order is None else "eigenvalues per unit of λ")
    return axes.figure
