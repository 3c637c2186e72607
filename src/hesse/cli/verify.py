"""`hesse verify`: hold every file of a run against its manifest."""

from pathlib import Path
from typing import Annotated

import typer

from hesse.cli._report import emit_json, say, visible

__all__ = ["verify"]


def verify(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    sha256: Annotated[bool, typer.Option("--sha256", help="Compare SHA-256 too, where it was recorded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a run file by file; exit 3 if anything is missing, damaged or foreign.

    Example: hesse verify runs/demo
    """  # noqa: DOC501 - it is the help text
    from hesse.io import verify_run

    problems = verify_run(run, sha256=sha256)
    if as_json:
        found = [{"path": problem.path, "reason": problem.reason} for problem in problems]
        emit_json({"run": str(run), "ok": not problems, "problems": found})
    else:
        for problem in problems:
            typer.echo(f"{visible(problem.path)}: {visible(problem.reason)}")
        say(f"{run}: {f'{len(problems):,} problems' if problems else 'all files are as the manifest says'}")
    if problems:
        raise typer.Exit(3)
