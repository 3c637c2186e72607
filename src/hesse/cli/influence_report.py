"""`hesse influence report`: one HTML file that opens anywhere."""

from pathlib import Path
from typing import Annotated

import typer

from hesse.cli._report import emit_json, say

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="A scored run.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; replaced if it exists. Default: RUN.html.")
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Ids and numbers only, no texts.")] = False,
    max_chars: Annotated[int, typer.Option(min=1, help="Cut longer texts around their strongest token.")] = 2000,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Rows of each sign, a query.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write a self-contained HTML report: queries, rows, token and layer shares. It quotes training texts.

    Example: hesse influence report runs/demo --out report.html
    """
    from hesse.influence.report import write_report

    out = out or run.resolve().with_name(f"{run.resolve().name}.html")  # beside the run: inside, every file is verified
    entry = write_report(run, out, k=count, redact=redact, max_chars=max_chars)
    if as_json:
        emit_json({"run": str(run), "out": str(out), "bytes": entry.size, "redacted": redact})
    else:
        say(f"wrote {out} ({entry.size / 1024:,.0f} KiB)")
