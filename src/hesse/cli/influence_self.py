"""`hesse influence self`: how much each training row rests on itself."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hesse.cli._report import console, emit_json, say, visible

__all__ = ["self_influence"]


def self_influence(
    run: Annotated[Path, typer.Argument(help="A fitted run.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many rows to list.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", help="All rows, as JSON lines; replaced if it exists.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the sequences that nothing but themselves explains: outliers, and labels that the other data contradict.

    The score is by how much a sequence's own loss falls, in nats, with one more copy of it; "a token" is the score by
    predicted token. Long sequences have large scores, so look at both.

    Example: hesse influence self runs/demo -k 50 --out self.jsonl
    """  # noqa: DOC501 - it is the help text
    from hesse.cli._model import build
    from hesse.cli._scoring import load_of
    from hesse.errors import ArgumentError
    from hesse.influence.corpus import open_corpus
    from hesse.influence.sequences import IGNORED
    from hesse.io import atomic_write_bytes

    if out is not None and not out.parent.is_dir():
        raise ArgumentError(f"out: there is no folder {out.parent}")
    folder, network, _tokenizer = load_of(run, needs_texts=True, trust_remote_code=trust_remote_code)
    config = folder.manifest.config
    sequences = open_corpus(run, "train").sequences()
    values = build(network, config, config["info"]["modules"]).self_influence(sequences, run, batch_tokens=batch_tokens)
    rows = [
        {
            "id": sequence.id,
            "row": sequence.row,
            "score": float(value),
            "per_token": float(value) / max(1, int((sequence.labels != IGNORED).sum())),
            "text": sequence.text,
        }
        for sequence, value in zip(sequences, values.tolist(), strict=True)
    ]
    rows.sort(key=lambda row: -row["score"])
    if out is not None:
        atomic_write_bytes(out, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    listed = [{"rank": i, **row} for i, row in enumerate(rows[:count], 1)]
    if as_json:
        emit_json({"run": str(run), "units": "nats", "sequences": len(rows), "top": listed})
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True)
    for header in ("#", "nats", "a token"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("sequence", overflow="fold", max_width=24)
    table.add_column("text", ratio=1, overflow="fold")
    for row in listed:
        text = visible((row["text"] or "(the run keeps no text)")[:240])
        cells = (str(row["rank"]), f"{row['score']:.3g}", f"{row['per_token']:.3g}")
        table.add_row(*cells, Text(visible(row["id"])), Text(text))
    console().print(table)
    if out is not None:
        say(f"wrote {len(rows):,} sequences: {out}")
