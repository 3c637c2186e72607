"""Pictures of scores and factors, for notebooks and papers: each takes matplotlib axes or makes them; returns them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hesse._optional import require
from hesse.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hesse.influence.factors import Factors
    from hesse.influence.scores import Scores

__all__ = ["axes_or_new", "draw_cells", "plot_layers", "plot_pair", "plot_scores", "plot_spectra"]

BLUE, ORANGE = "#2166ac", "#d05c0c"


def plot_scores(scores: "Scores", query: int | str = 0, *, ax: "Axes | None" = None) -> "Axes":
    """Draw all scores of a query by rank, either sign on a logarithmic scale: how thinly influence is spread.

    Parameters
    ----------
    scores : Scores
        Of a run.
    query : int or str, default 0
        Number or id.
    ax : Axes, optional
        Default: new ones.

    Returns
    -------
    Axes
        With one line a sign. The numbers are ``scores.ranked_by(query)``.

    Raises
    ------
    ArgumentError
        If the query is unknown.
    MissingDependencyError
        Without the extra ``plot``.
    """
    values = scores.ranked_by(query)
    axes = axes_or_new(ax)
    for sign, colour, label in ((1, BLUE, "proponents"), (-1, ORANGE, "opponents")):
        chosen = np.sort(sign * values[sign * values > 0])[::-1]
        if len(chosen):
            axes.loglog(np.arange(1, len(chosen) + 1), chosen, color=colour, label=f"{len(chosen):,} {label}")
    axes.set(xlabel="rank", ylabel="nats a copy, size")
    axes.legend(frameon=False)
    return axes


def plot_layers(
    scores: "Scores", query: int | str = 0, *, k: int = 30, sign: int = 1, ax: "Axes | None" = None
) -> "Axes":
    """Draw the terms of the strongest rows by layer, zero white.

    Parameters
    ----------
    scores : Scores
        Scored with ``per_layer=True``.
    query : int or str, default 0
        Number or id.
    k : int, default 30
        Rows.
    sign : {1, -1}, default 1
        Proponents or opponents.
    ax : Axes, optional
        Default: new ones.

    Returns
    -------
    Axes
        One line of cells a row. The numbers are those of ``scores.layer_terms``.

    Raises
    ------
    ArgumentError
        If the terms of layers were not kept, or the query is unknown.
    MissingDependencyError
        Without the extra ``plot``.
    """
    ranked = scores.topk(query, k, sign)
    terms = [scores.layer_terms(query, item.id) for item in ranked]
    kept = [part for part in terms if part is not None]
    if not kept:
        raise ArgumentError("plot_layers: there are no terms of layers; score with per_layer=True")
    axes = axes_or_new(ax)
    draw_cells(axes, np.stack(kept))
    axes.set(xlabel="weight matrix, first layer left", yticks=range(len(ranked)), yticklabels=[r.id for r in ranked])
    return axes


def plot_pair(scores: "Scores", query: int | str, sequence_id: str, *, ax: "Axes | None" = None) -> "Axes":
    """Draw which word of a completion each token of a sequence moved, zero white.

    Parameters
    ----------
    scores : Scores
        Scored with ``per_token=True, per_query_token=True``.
    query : int or str
        Number or id.
    sequence_id : str
        One of ``scores.sequence_ids``.
    ax : Axes, optional
        Default: new ones.

    Returns
    -------
    Axes
        A row a word, a column a token. The numbers are ``scores.pairs(query, sequence_id)``.

    Raises
    ------
    ArgumentError
        If the terms were not kept, or an id is unknown.
    MissingDependencyError
        Without the extra ``plot``.
    """
    pairs, targets = scores.pairs(query, sequence_id), scores.targets(query)
    if pairs is None or targets is None:
        raise ArgumentError("plot_pair: there are no terms of tokens; score with per_token=True, per_query_token=True")
    axes = axes_or_new(ax)
    draw_cells(axes, pairs)
    axes.set(xlabel="token of the sequence", ylabel="token of the query", yticks=range(len(targets)))
    axes.set_yticklabels([str(place) for place in targets])
    return axes


def plot_spectra(factors: "Factors", *, layers: list[str] | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draw the eigenvalues of layers, largest first; a dot where each line meets its damping.

    Parameters
    ----------
    factors : Factors
        Of a run.
    layers : list of str, optional
        Default: the first eight.
    ax : Axes, optional
        Default: new ones.

    Returns
    -------
    Axes
        On logarithmic scales, in units of the Gauss-Newton matrix. The numbers are ``factors.eigenvalues(name)``.

    Raises
    ------
    ArgumentError
        If a layer is unknown, or the strategy has no eigenvalues.
    MissingDependencyError
        Without the extra ``plot``.
    """
    axes = axes_or_new(ax)
    for name in layers or list(factors.layers)[:8]:
        values = np.sort(factors.eigenvalues(name).double().flatten().cpu().numpy())[::-1]
        values = values[values > 0]
        (line,) = axes.loglog(np.arange(1, len(values) + 1), values, label=name)
        left = int((values > factors[name].damping).sum())
        if 0 < left < len(values):
            axes.plot([left], [values[left - 1]], "o", color=line.get_color())
    axes.set(xlabel="number", ylabel="eigenvalue")
    axes.legend(frameon=False, fontsize="small")
    return axes


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return the axes given, or make some.

    Parameters
    ----------
    ax : Axes, optional
        Of the caller.

    Returns
    -------
    Axes
        To draw on.

    Raises
    ------
    MissingDependencyError
        Without the extra ``plot``.
    """
    if ax is not None:
        return ax
    pyplot: Any = require("matplotlib.pyplot", extra="plot", feature="a picture")
    return pyplot.subplots(layout="constrained")[1]


def draw_cells(axes: "Axes", values: np.ndarray, *, label: str = "nats") -> None:
    """Draw a matrix, positive blue, negative orange, zero white; the strongest hundredth of the cells may saturate.

    Parameters
    ----------
    axes : Axes
        To draw on.
    values : ndarray, shape (R, C)
        One scale for all.
    label : str, default "nats"
        Of the scale.
    """
    size = float(np.quantile(np.abs(values), 0.99)) or float(np.abs(values).max()) or 1.0
    colours: Any = require("matplotlib.colors", extra="plot", feature="a picture")
    cmap = colours.LinearSegmentedColormap.from_list("nats", [ORANGE, "white", BLUE])
    picture = axes.imshow(values, cmap=cmap, vmin=-size, vmax=size, aspect="auto")
    axes.figure.colorbar(picture, ax=axes, label=label)
