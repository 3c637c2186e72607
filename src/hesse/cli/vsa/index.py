"""`hesse vsa index`: a vector for every record of a JSON Lines file, kept in a folder for `hesse vsa search`."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from hesse.cli._report import emit_json, say
from hesse.cli.vsa.records import RECORDS_NAME, read_records, record_id

__all__ = ["index"]

FamilyName = Literal["signed_permutation", "hadamard", "haar"]
PrecisionName = Literal["float32", "int8", "sign"]
NumberName = Literal["log", "linear", "exact"]

_BATCH = 256  # records in memory at a time
_CACHE_NUMBERS = 32 << 20  # of codes of texts kept: 128 MiB


def index(
    data: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines, one record a line.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the index. Default: FILE.index.")] = None,
    dim: Annotated[int, typer.Option(min=2, help="Length of vectors; 2048 for more than 50 leaves.")] = 1024,
    precision: Annotated[PrecisionName, typer.Option(help="What is kept: 4 bytes, 1 byte or 1 bit a number.")] = (
        "float32"
    ),
    family: Annotated[FamilyName, typer.Option(help="Matrices of keys.")] = "signed_permutation",
    number: Annotated[NumberName, typer.Option(help="Which numbers are alike; linear reads the file twice.")] = "log",
    dates: Annotated[bool, typer.Option("--dates", help="ISO dates are numbers, not texts.")] = False,
    idf: Annotated[bool, typer.Option("--idf", help="Rare keys weigh more; reads the file twice.")] = False,
    id_key: Annotated[str | None, typer.Option("--id", help="Key of ids. Default: numbers of lines, from 1.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Index the records of a file, so that the most similar to any other can be found.

    Example: hesse vsa index records.jsonl --precision int8
    """  # noqa: DOC501 - it is the help text
    from hesse._progress import progress
    from hesse.errors import ArgumentError
    from hesse.io import atomic_writer, make_folder
    from hesse.vsa import JSONEncoder, JSONIndex

    folder = out if out is not None else data.with_name(f"{data.name}.index")
    encoder = JSONEncoder(
        dim,
        family=family,
        number=number,
        dates=dates,
        key_weights="idf" if idf else None,
        cache_size=_CACHE_NUMBERS // dim,
    )
    if idf or number == "linear":
        encoder.fit(document for _, _, document in read_records(data))
    made = JSONIndex(encoder, precision)
    make_folder(folder)
    records = read_records(data)
    with (
        atomic_writer(folder / RECORDS_NAME) as texts,
        progress("indexing", data.stat().st_size, unit="bytes") as advance,
    ):
        while batch := list(islice(records, _BATCH)):
            made.add([each for _, _, each in batch], [record_id(each, line, id_key) for line, _, each in batch])
            kept = "".join(f"{text}\n" for _, text, _ in batch).encode()
            texts.write(kept)
            advance(len(kept))
        if not len(made):
            raise ArgumentError(f"{data}: holds no record")
    made.save(folder, also={RECORDS_NAME: texts.entry})
    if as_json:
        emit_json({"index": str(folder), "records": len(made), "dim": dim, "precision": precision})
    else:
        say(f"{len(made):,} records, {dim} numbers each; wrote {folder}")
