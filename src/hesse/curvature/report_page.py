"""A curvature report as one HTML file that needs nothing else: numbers, a table of layers, and four pictures."""

import io
from html import escape
from pathlib import Path
from typing import Any

from hesse._optional import require
from hesse.curvature.diagnostics import CurvatureReport
from hesse.curvature.spectrum_plot import plot_density
from hesse.io import FileEntry, atomic_write_bytes

__all__ = ["write_curvature_page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --paper: #fff; --line: #d5dde5; --soft: #5a6b7b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #10171e; --line: #2b3947; --soft: #9fb0c0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .soft { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
dl div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } pre { overflow-x: auto; }
figure { margin: 1rem 0; background: #fff; border-radius: .5rem; } svg { width: 100%; height: auto; display: block; }
"""


def write_curvature_page(report: CurvatureReport, path: Path, *, title: str) -> FileEntry:
    """Write the page, whole or not at all.

    Parameters
    ----------
    report : CurvatureReport
        From `curvature_report`.
    path : Path
        The HTML file; replaced if it exists.
    title : str
        What the report is about. Escaped, as every name in the page.

    Returns
    -------
    FileEntry
        Size and checksum.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    facts = {
        "sharpness λ₁": f"{report.sharpness:.4g}",
        "trace": f"{report.trace:.4g} ± {report.trace_error:.1g}",
        "loss": f"{report.loss:.4g}",
        "gradient norm": f"{report.gradient_norm:.3g}",
        "critical batch": "not measured" if report.critical_batch is None else f"{report.critical_batch:.3g}",
        "parameters": f"{report.num_parameters:,}",
        "examples": f"{report.num_examples:,}",
    }
    cards = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    stability = f"<pre>{escape(str(report.stability))}</pre>" if report.stability is not None else ""
    note = f'<p class="soft">{escape(report.stability_note)}</p>' if report.stability_note else ""
    warning = "" if report.converged else "<p><strong>The eigenvalues have not all converged.</strong></p>"
    edge = ""
    if report.lr is not None:
        word = "stable" if report.stable_at_edge else "unstable"
        edge = (
            f"<p>At learning rate {report.lr:g}, momentum {report.momentum:g}, full-batch gradient descent is "
            f"<strong>{word}</strong>: η λ₁ = {report.lr * report.sharpness:.4g}.</p>"
        )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{_MATRIX[report.matrix]} of the mean loss, at the present parameters.</p>',
        f"<dl>{cards}</dl>{warning}",
        "<h2>Spectrum</h2>",
        _figure(_spectrum(report)),
        _figure(_eigenvalues(report)),
    ]
    if report.rates:
        body += ["<h2>Learning rates of SGD</h2>", _figure(_rates(report))]
    body += ["<h2>Stability</h2>", edge, stability, note]
    if report.layers:
        body += ["<h2>Layers</h2>", _figure(_layers(report)), _table(report)]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    return atomic_write_bytes(path, page.encode())


_MATRIX = {"hessian": "The Hessian", "ggn": "The Gauss-Newton matrix"}


def _axes(height: float) -> Any:
    figure = require("matplotlib.figure", extra="plot", feature="the curvature page").Figure(
        figsize=(8, height), layout="constrained"
    )
    return figure.add_subplot()


def _figure(axes: Any) -> str:
    target = io.StringIO()
    axes.figure.savefig(target, format="svg", metadata={"Date": None})
    drawing = target.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}</figure>"  # without the XML head, which HTML does not take


def _spectrum(report: CurvatureReport) -> Any:
    axes = _axes(3.6)
    plot_density(report.density, order=report.num_parameters, axes=axes)
    return axes


def _eigenvalues(report: CurvatureReport) -> Any:
    axes = _axes(2.6)
    values = report.eigenvalues.tolist()
    colors = ["#2a6f97" if value >= 0 else "#d1495b" for value in values]
    axes.bar(range(1, len(values) + 1), values, color=colors)
    axes.axhline(0, color="#555", linewidth=0.8)
    axes.set(xlabel="rank", ylabel="eigenvalue", title="largest in magnitude")
    return axes


def _rates(report: CurvatureReport) -> Any:
    axes = _axes(3.0)
    sizes, limits = zip(*((rate.batch_size, rate.learning_rate) for rate in report.rates), strict=True)
    axes.loglog(sizes, limits, "o-", color="#2a6f97", label="largest stable")
    if report.lr is not None:
        axes.plot([report.batch_size], [report.lr], "*", color="#d1495b", markersize=12, label="in use")
    if report.critical_batch is not None and report.critical_batch >= 1:
        axes.axvline(report.critical_batch, color="#555", linestyle=":", label="critical batch size")
    axes.set(xlabel="batch size", ylabel="learning rate")
    axes.legend(frameon=False)
    return axes


def _layers(report: CurvatureReport) -> Any:
    shown = sorted(report.layers, key=lambda layer: -abs(layer.trace))[:20]
    axes = _axes(0.8 + 0.28 * len(shown))
    names = [layer.name or "(top level)" for layer in shown]
    axes.barh(names, [layer.trace for layer in shown], xerr=[layer.trace_error for layer in shown], color="#2a6f97")
    axes.invert_yaxis()
    axes.set(xlabel="trace of the layer's block" + (", the 20 largest" if len(report.layers) > 20 else ""))
    return axes


def _table(report: CurvatureReport) -> str:
    head = (
        "<tr><th>layer</th><th>parameters</th><th>trace</th><th>error</th><th>per parameter</th><th>largest</th></tr>"
    )
    rows = []
    for layer in report.layers:
        largest = "" if layer.largest is None else f"{layer.largest:.4g}"
        cells = (
            layer.name or "(top level)",
            f"{layer.num_parameters:,}",
            f"{layer.trace:.4g}",
            f"{layer.trace_error:.2g}",
            f"{layer.trace / layer.num_parameters:.3g}",
            largest,
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
