"""`hesse influence top`: list the training rows that moved each query most."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesse.cli._report import console, emit_json, say, visible

if TYPE_CHECKING:
    from rich.text import Text

    from hesse.influence.report import ReportEntry, ReportQuery

__all__ = ["highlighted", "top"]

_SHOWN = 280  # characters of a text in the table: about three lines
_STYLES = {
    (1, True): "white on rgb(33,102,172) underline",
    (1, False): "black on rgb(178,209,236)",
    (-1, True): "black on rgb(224,116,38) underline",
    (-1, False): "black on rgb(250,214,178)",
}


def top(
    run: Annotated[Path, typer.Argument(help="A scored run.")],
    query: Annotated[str | None, typer.Option("--query", help="Id of one query. Default: all.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many rows.")] = 20,
    opponents: Annotated[
        bool, typer.Option("--opponents", help="Rows that lower the completion's probability.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the training rows that raised (or lowered) each completion most, in nats a copy.

    Example: hesse influence top runs/demo --query q1 -k 10 --json
    """
    from hesse.influence.report import collect

    data = collect(run, k=count, queries=None if query is None else [query], collapse=False)
    if as_json:
        found = [_as_dict(item, opponents=opponents) for item in data.queries]
        emit_json({"run": str(run), "units": "nats", "queries": found})
        return
    if data.settings.get("strategy") == "identity":
        say("no curvature: nats after one gradient step of learning rate 1 on the row's share of the objective")
    out = console()
    for item in data.queries:
        out.print(_table(item, opponents=opponents))


def _as_dict(item: "ReportQuery", *, opponents: bool) -> dict[str, Any]:
    entries = item.opponents if opponents else item.proponents
    listed = [
        {"rank": i, "id": entry.id, "score": entry.score, "text": entry.text} for i, entry in enumerate(entries, 1)
    ]
    return {"id": item.id, "prompt": item.prompt, "completion": item.completion, "top": listed}


def _table(item: "ReportQuery", *, opponents: bool) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hesse.influence.report import token_scale

    entries = item.opponents if opponents else item.proponents
    title = Text.assemble(visible(item.prompt), (visible(item.completion), "bold"))
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, expand=True)
    table.add_column("#", justify="right", style="dim")
    table.add_column("nats", justify="right")
    table.add_column("row", overflow="fold", max_width=24)
    table.add_column("opponents" if opponents else "proponents", ratio=1, overflow="fold")
    scale = token_scale(entries)
    if not entries:
        table.add_row("", "", "", f"no row {'lowers' if opponents else 'raises'} it")
    for i, entry in enumerate(entries, 1):
        table.add_row(str(i), f"{entry.score:+.3g}", Text(visible(entry.id)), highlighted(entry, scale))
    return table


def highlighted(entry: "ReportEntry", scale: float) -> "Text":
    """Render a text for the terminal, its tokens on blue where they raised the answer and on orange where they
    lowered it.

    Parameters
    ----------
    entry : ReportEntry
        With token values, or without: then plain.
    scale : float
        The value of full colour, one for a whole list.

    Returns
    -------
    Text
        Control characters as glyphs.
    """
    from rich.text import Text

    from hesse.influence.report import token_window

    if entry.text is None:
        return Text("(the run keeps no text)", style="dim")
    if not entry.tokens or not entry.values:
        return Text(visible(entry.text[:_SHOWN]) + (" …" if len(entry.text) > _SHOWN else ""))
    start, stop = token_window([len(token) for token in entry.tokens], entry.values, _SHOWN)
    shown = Text("… " if start else "")
    for token, value in zip(entry.tokens[start:stop], entry.values[start:stop], strict=True):
        share = value / scale if scale else 0.0
        style = "" if abs(share) < 0.2 else _STYLES[1 if share > 0 else -1, abs(share) > 0.6]
        shown.append(visible(token), style=style)
    return shown.append(" …") if stop < len(entry.tokens) else shown
