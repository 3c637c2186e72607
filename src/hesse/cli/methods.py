"""`hesse methods`: what hesse contains, from its catalogue."""

from typing import Annotated

import typer

from hesse.cli._report import console, emit_json

__all__ = ["methods"]


def methods(
    family: Annotated[str | None, typer.Option(help="One subpackage only, such as influence.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the methods with their papers and where to import them.

    Example: hesse methods --family influence
    """  # noqa: DOC501 - it is the help text
    from dataclasses import asdict

    from hesse._catalogue import METHODS

    families = sorted({method.family for method in METHODS})
    if family is not None and family not in families:
        raise typer.BadParameter(f"expected one of {', '.join(families)}, got {family!r}", param_hint="--family")
    chosen = [method for method in METHODS if family in (None, method.family)]
    if as_json:
        emit_json({"methods": [asdict(method) for method in chosen]})
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, expand=True)
    for name, ratio in (("family", None), ("method", 3), ("paper", 2), ("import", 2)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for method in chosen:
        first = method.papers[0] if method.papers else None
        paper = "" if first is None else f"{first.authors} {first.year}" + (f", {first.arxiv}" if first.arxiv else "")
        table.add_row(method.family, method.title, paper, method.import_path)
    console().print(table)
