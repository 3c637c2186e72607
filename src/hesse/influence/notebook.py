"""What scores, factors and plans look like in a notebook: small tables of plain HTML, every text of a run escaped.

No script, no style sheet and nothing from the network; control characters are shown as glyphs.
"""

import html
import re
from typing import TYPE_CHECKING

from hesse.influence.corpus import find_corpus
from hesse.influence.report import ReportEntry, collect, token_scale, token_window

if TYPE_CHECKING:
    from hesse.influence.factors import Factors
    from hesse.influence.plan import Plan
    from hesse.influence.scores import Scores

__all__ = ["escaped", "factors_html", "plan_html", "scores_html"]

_QUERIES, _ROWS, _CHARS = 4, 5, 220
_BLUE, _ORANGE = "33,102,172", "208,92,12"  # the report's, safe for colour-blind eyes
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_CELL = 'style="text-align:left;vertical-align:top"'


def escaped(text: str) -> str:
    """Make a text that acts on nothing: markup by its entities, control and bidirectional characters by their codes.

    Parameters
    ----------
    text : str
        Anything.

    Returns
    -------
    str
        HTML of the text alone.
    """
    return html.escape(_ACTING.sub(lambda match: f"⟨{ord(match[0]):04X}⟩", text))


def scores_html(scores: "Scores") -> str:
    """Show the strongest rows of the first queries.

    Parameters
    ----------
    scores : Scores
        Of a run.

    Returns
    -------
    str
        HTML. Tokens are coloured where their terms were kept: blue raises the completion, orange lowers it.
    """
    queries, rows = scores.values.shape
    parts = [f"<p><b>Scores</b>: {queries:,} queries × {rows:,} rows, {escaped(scores.state.get('units', 'nats'))}</p>"]
    latest = scores.run.stage("score").get("latest") == scores.folder
    if latest and find_corpus(scores.run.path, scores.state["data"]) is not None:
        data = collect(scores.run.path, k=_ROWS, queries=scores.query_ids[:_QUERIES])
        for query in data.queries:
            parts.append(f"<p>{escaped(query.prompt)}<b>{escaped(query.completion or query.id)}</b></p>")
            scale = token_scale(query.proponents)
            parts.append(_table(["nats", "row"], [[f"{e.score:+.3g}", _text(e, scale)] for e in query.proponents]))
    else:
        for number, name in enumerate(scores.query_ids[:_QUERIES]):
            lines = [[f"{item.score:+.3g}", escaped(item.id)] for item in scores.topk(number, _ROWS)]
            parts += [f"<p><b>{escaped(name)}</b></p>", _table(["nats", "row"], lines)]
    if queries > _QUERIES:
        parts.append(f"<p>… and {queries - _QUERIES:,} more queries</p>")
    return "".join(parts)


def factors_html(factors: "Factors") -> str:
    """Show the fitted layers with their damping.

    Parameters
    ----------
    factors : Factors
        Of a run.

    Returns
    -------
    str
        HTML.
    """
    head = f"<p><b>Factors</b>: {escaped(str(factors.config.get('strategy', '?')))}, {len(factors.layers)} layers, "
    head += f"fitted on {factors.num_sequences:,} sequences</p>"
    lines = []
    for name, layer in factors.layers.items():
        if layer.table is None:
            lines.append([escaped(name), "", "", ""])
            continue
        shape = " × ".join(str(size) for size in layer.table.shape)
        lines.append([escaped(name), shape, f"{float(layer.table.mean()):.3g}", f"{layer.damping:.3g}"])
    return head + _table(["layer", "shape", "mean eigenvalue", "damping"], lines)


def plan_html(plan: "Plan") -> str:
    """Show what every stage of a run takes.

    Parameters
    ----------
    plan : Plan
        From `plan_stages`.

    Returns
    -------
    str
        HTML. Memory includes the model's.
    """

    def line(name: str, seconds: float, memory: float, disk: float) -> list[str]:
        return [name, f"{seconds:,.3g}", f"{memory / 2**30:,.3g}", f"{disk / 2**30:,.3g}"]

    lines = [line(s.name, s.seconds, s.memory + plan.model_bytes, s.disk) for s in plan.stages]
    lines.append(line("in all", plan.seconds, plan.memory, plan.disk))
    work = plan.workload
    head = f"<p><b>Plan</b>: {work.num_sequences:,} sequences of {work.mean_length:g} tokens, "
    head += f"{work.num_queries:,} queries</p>"
    return head + _table(["stage", "seconds", "memory, GiB", "disk, GiB"], lines)


def _text(entry: ReportEntry, scale: float) -> str:
    if entry.text is None:
        return escaped(entry.id)
    if not entry.tokens or not entry.values:
        return escaped(entry.text[:_CHARS]) + (" …" if len(entry.text) > _CHARS else "")
    start, stop = token_window([len(token) for token in entry.tokens], entry.values, _CHARS)
    shown = ["… " if start else ""]
    for token, value in zip(entry.tokens[start:stop], entry.values[start:stop], strict=True):
        share = max(-1.0, min(1.0, value / scale)) if scale else 0.0
        colour = f"rgba({_BLUE if share > 0 else _ORANGE},{abs(share) * 0.6:.2f})"
        shown.append(f'<span style="background:{colour}" title="{value:+.3g}">{escaped(token)}</span>')
    return "".join(shown) + (" …" if stop < len(entry.tokens) else "")


def _table(columns: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th {_CELL}>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
