"""The trade of size against loss as `hesse compress plan` shows it: a table, and a picture."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from hesse.cli.compress.output import megabytes, show_table
from hesse.compress import BitPlan, ParetoFrontier, PlanLosses, SensitivityTable
from hesse.io import atomic_write_bytes

__all__ = ["draw_frontier", "frontier_rows", "listed_plans", "plan_bops", "show_frontier"]

_POINTS = 9  # of the frontier, its ends among them


def listed_plans(table: SensitivityTable, frontier: ParetoFrontier) -> list[BitPlan]:
    """Pick what is worth a row: every single width, and points of the frontier at equal steps between its ends.

    Parameters
    ----------
    table : SensitivityTable
        Of weights, or of weights and inputs.
    frontier : ParetoFrontier
        Of the table.

    Returns
    -------
    list of BitPlan
        With their predictions.
    """
    steps = np.linspace(frontier.cost[0], frontier.cost[-1], _POINTS)[1:-1]
    places = sorted({int(i) for i in np.searchsorted(frontier.cost, steps * (1 + 1e-9), side="right") - 1})
    numel = dict(zip(table.names, table.numel.tolist(), strict=True))
    even: list[BitPlan] = []
    for option, omega in zip(table.options, table.omega.T, strict=True):
        width, inputs = (option, {}) if isinstance(option, int) else (option[0], dict(table.inputs))
        rounded = {} if isinstance(option, int) else dict.fromkeys(inputs, option[1])
        even.append(BitPlan(dict.fromkeys(table.names, width), rounded, numel | inputs, float(omega.sum())))
    return [*even, *(frontier.plan(i) for i in places)]


def frontier_rows(
    table: SensitivityTable, frontier: ParetoFrontier, chosen: BitPlan, measured: PlanLosses | None
) -> list[dict[str, Any]]:
    """Set the listed plans and the chosen one side by side.

    Parameters
    ----------
    table, frontier : SensitivityTable and ParetoFrontier
        As of `listed_plans`.
    chosen : BitPlan
        The plan that is written.
    measured : PlanLosses, optional
        Losses that are known.

    Returns
    -------
    list of dict
        plan, average_bits, average_activation_bits (None where inputs are not rounded), bytes, bops (of one example),
        predicted_rise and measured_rise of the loss (None where not known or not finite), by rising size.
    """
    known: dict[tuple[int, ...], float] = {}
    if measured is not None:
        for plan, loss in zip(measured.plans, measured.losses.tolist(), strict=True):
            known[_widths(plan)] = loss - measured.dense
    rows: list[dict[str, Any]] = []
    for plan in [*listed_plans(table, frontier), chosen]:
        rise = known.get(_widths(plan), math.nan)
        rows.append(
            {
                "plan": "chosen" if plan is chosen else _kind(plan),
                "average_bits": plan.average_bits,
                "average_activation_bits": plan.average_activation_bits if plan.activations else None,
                "bytes": plan.size_bits / 8,
                "bops": plan_bops(table, plan),
                "predicted_rise": plan.omega / 2,
                "measured_rise": rise if math.isfinite(rise) else None,
            }
        )
    return sorted(rows, key=lambda row: (row["bytes"], row["bops"], row["predicted_rise"]))


def plan_bops(table: SensitivityTable, plan: BitPlan) -> float:
    """Add up a plan's bit operations.

    Parameters
    ----------
    table : SensitivityTable
        With "bitops" among its costs.
    plan : BitPlan
        Of the table.

    Returns
    -------
    float
        Of one example: multiplications times the bits of both factors.
    """
    layers = [layer for layer, _ in table.inputs]
    options = list(plan.weights.values())
    picked = [(w, plan.activations[a]) for w, a in zip(options, layers, strict=True)] if layers else options
    return float(sum(table.costs["bitops"][i, table.options.index(option)] for i, option in enumerate(picked)))


def _widths(plan: BitPlan) -> tuple[int, ...]:
    return (*plan.weights.values(), *plan.activations.values())


def _kind(plan: BitPlan) -> str:
    widths, inputs = set(plan.weights.values()), set(plan.activations.values())
    if len(widths) > 1 or len(inputs) > 1:
        return "frontier"
    return f"all {min(widths)} bits" + (f", inputs {min(inputs)}" if inputs else "")


def show_frontier(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table.

    Parameters
    ----------
    rows : list of dict
        From `frontier_rows`.
    """
    cells = [
        [
            row["plan"],
            f"{row['average_bits']:.3f}",
            "" if row["average_activation_bits"] is None else f"{row['average_activation_bits']:.3f}",
            megabytes(row["bytes"]),
            f"{row['bops']:.3g}",
            f"{row['predicted_rise']:.3g}",
            "" if row["measured_rise"] is None else f"{row['measured_rise']:.3g}",
        ]
        for row in rows
    ]
    head = ["plan", "bits a weight", "an input", "size", "BOPs", "predicted", "measured"]
    show_table("Rise of the loss on the calibration examples", head, cells)


def draw_frontier(table: SensitivityTable, frontier: ParetoFrontier, rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the frontier, one width for all weights, and the chosen plan; hollow where the loss was measured.

    Parameters
    ----------
    table, frontier : SensitivityTable and ParetoFrontier
        As of `listed_plans`.
    rows : list of dict
        From `frontier_rows`.
    path : Path
        Its suffix is the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    by_work = frontier.constraint == "bitops"
    entries = table.numel.sum() if frontier.constraint == "size" else 1
    axes.step(
        frontier.cost / entries, frontier.omega / 2, where="post", color="#2a6f97", label="Pareto frontier, predicted"
    )

    def mark(start: str, what: str, marker: str, color: str, size: int) -> None:
        for key, face in (("predicted_rise", color), ("measured_rise", "white")):
            here = [row for row in rows if row["plan"].startswith(start) and (row[key] or 0) > 0]
            if here:
                word = key.removesuffix("_rise")
                spent = [row["bops" if by_work else "average_bits"] for row in here]
                rise = [row[key] for row in here]
                axes.scatter(
                    spent,
                    rise,
                    size,
                    marker=marker,
                    edgecolors=color,
                    facecolors=face,
                    label=f"{what}, {word}",
                    zorder=3,
                )

    mark("frontier", "on the frontier", "o", "#2a6f97", 28)
    mark("all", "one width for all", "s", "#b56727", 36)
    mark("chosen", "chosen", "*", "#9e2a2b", 150)
    axes.set(
        yscale="log",
        xlabel="bit operations an example" if by_work else "bits a weight",
        ylabel="rise of the loss on the calibration examples",
    )
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    atomic_write_bytes(path, buffer.getvalue())
