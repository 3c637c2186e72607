"""`hesse influence select`: write the training rows that a choice by influence leaves."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hesse.cli._report import emit_json, say

__all__ = ["select"]


def select(
    run: Annotated[Path, typer.Argument(help="A scored run.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines of the rows that stay.")],
    drop_opponents: Annotated[
        float | None, typer.Option("--drop-opponents", metavar="P", help="Leave out the P % that harm most.")
    ] = None,
    keep_top: Annotated[
        float | None, typer.Option("--keep-top", metavar="P", help="Keep the P % that help most.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="The rows that were scored. Default: what the run was given.")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", help="Id of a query that counts; may be repeated. Default: all.")
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option("--ensemble", help="Another checkpoint or seed, to average with; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier choice.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Choose training rows by their mean score over the queries; ids and reasons of all go to OUT.reasons.jsonl.

    Each line of OUT is a row as it was given: its id, its text or prompt and completion, its further keys.

    Example: hesse influence select runs/demo --drop-opponents 5 --out kept.jsonl
    """  # noqa: DOC501 - it is the help text
    from hesse.errors import ArgumentError
    from hesse.influence.curation import mean_scores, select_rows
    from hesse.influence.rows import read_rows
    from hesse.influence.scores import open_scores
    from hesse.io import atomic_write_bytes

    if (drop_opponents is None) == (keep_top is None):
        raise ArgumentError("select: give either --drop-opponents P or --keep-top P")
    reasons = out.with_name(f"{out.name}.reasons.jsonl")
    if not out.parent.is_dir():
        raise ArgumentError(f"out: there is no folder {out.parent}")
    for path in (out, reasons):
        if path.exists() and not overwrite:
            raise ArgumentError(f"out: {path} exists; choose another name, or pass --overwrite")
    scores = open_scores(run)
    source = data or scores.state.get("info", {}).get("data") or scores.run.manifest.config.get("info", {}).get("data")
    if source is None:
        raise ArgumentError(f"data: {run} does not say where its rows came from; pass --data")
    rows = {str(row["id"]): row for row in read_rows(source)}
    ids, values = mean_scores([scores, *(open_scores(other) for other in ensemble or [])], queries=query or None)
    if strangers := [name for name in ids if name not in rows]:
        raise ArgumentError(f"data: {source} has no row {strangers[0]!r}, which was scored; pass the rows that were")
    rule, percent = ("drop-opponents", drop_opponents) if keep_top is None else ("keep-top", keep_top)
    chosen = select_rows(ids, values, rule=rule, percent=0.0 if percent is None else percent)
    told = [
        {"id": name, "kept": bool(chosen.kept[i]), "score": float(values[i]), "reason": chosen.reason(i)}
        for i, name in enumerate(ids)
    ]
    kept = [rows[name] for i, name in enumerate(ids) if chosen.kept[i]]
    atomic_write_bytes(reasons, _lines(told))
    atomic_write_bytes(out, _lines(kept))
    result = {"run": str(run), "out": str(out), "reasons": str(reasons)}
    result |= {"rows": len(ids), "kept": len(kept), "rule": chosen.rule}
    if as_json:
        emit_json(result)
    else:
        say(f"kept {len(kept):,} of {len(ids):,} rows: {out}; why: {reasons}")


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
