"""`hesse influence export`: all scores as a table for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from hesse.cli._report import emit_json, say

__all__ = ["export"]


def _format(path: Path) -> Path:
    if path.suffix not in (".parquet", ".npz"):
        raise typer.BadParameter(f"expected a name that ends in .parquet or .npz, got {str(path)!r}")
    return path


def export(
    run: Annotated[Path, typer.Argument(help="A scored run.")],
    out: Annotated[Path, typer.Option("--out", callback=_format, help="scores.parquet or scores.npz.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write query_id, train_id and score (nats): a row a pair as .parquet, a matrix with its ids as .npz.

    Example: hesse influence export runs/demo --out scores.parquet
    """  # noqa: DOC501 - it is the help text
    from hesse.errors import ArgumentError
    from hesse.influence.scores import open_scores

    if not out.parent.is_dir():
        raise ArgumentError(f"out: there is no folder {out.parent}")
    scores = open_scores(run)
    if out.suffix == ".npz":
        scores.to_npz(out)
    else:
        scores.to_parquet(out)
    pairs = len(scores.query_ids) * len(scores.train_ids)
    if as_json:
        emit_json({"run": str(run), "out": str(out), "units": "nats", "pairs": pairs})
    else:
        say(f"wrote {pairs:,} scores: {out}")
