"""`hesse vsa search`: the records of an index that are most like a JSON document."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from hesse.cli._report import console, emit_json, visible
from hesse.cli.vsa.records import RECORDS_NAME, read_records

__all__ = ["search"]

_SHOWN = 200  # characters of a record in the table: about three lines
_REASONS = 5  # fields named for a record


def search(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="From `hesse vsa index`.")],
    query: Annotated[str | None, typer.Argument(help="A JSON document; parts of records suffice.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", exists=True, dir_okay=False, help="JSON Lines: a query a line.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many records a query.")] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Say which fields make each record similar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the records most like a query, by the cosine of their vectors.

    Example: hesse vsa search records.jsonl.index '{"name": "chevrolet malibu", "horsepower": 130}' -k 5
    """  # noqa: DOC501 - it is the help text
    from hesse.errors import ArgumentError
    from hesse.io import check_file, read_manifest
    from hesse.vsa import JSONIndex, parse_json

    if (query is None) == (file is None):
        raise ArgumentError("search: pass a query, or --file with one query a line")
    queries = [parse_json(query)] if query is not None else []
    queries += [document for _, _, document in read_records(file)] if file is not None else []
    index = JSONIndex.load(folder)
    files = read_manifest(folder).files
    if RECORDS_NAME not in files:
        raise ArgumentError(f"search: {folder} keeps no records; it was not made by `hesse vsa index`")
    check_file(folder / RECORDS_NAME, files[RECORDS_NAME])
    hits = [index.search(document, count) for document in queries]
    wanted = {hit.id for found in hits for hit in found}
    places = {name: place for place, name in enumerate(index.ids) if name in wanted}
    texts = _texts(folder / RECORDS_NAME, set(places.values()))
    answers: list[dict[str, Any]] = []
    for document, found in zip(queries, hits, strict=True):
        rows: list[dict[str, Any]] = []
        for hit in found:
            record = texts[places[hit.id]]
            row: dict[str, Any] = {"id": hit.id, "score": hit.score, "record": record}
            if explain:
                contributions = index.encoder.explain(document, record).contributions
                row["because"] = dict(list(contributions.items())[:_REASONS])
            rows.append(row)
        answers.append({"query": document, "hits": rows})
    if as_json:
        emit_json({"index": str(folder), "answers": _finite(answers)})
    else:
        for answer in answers:
            _show(answer, explain=explain)


def _texts(path: Path, places: set[int]) -> dict[int, Any]:
    if not places:
        return {}
    reached = islice(read_records(path), max(places) + 1)
    return {place: document for place, (_, _, document) in enumerate(reached) if place in places}


def _finite(value: Any) -> Any:
    # records may hold NaN, which JSON on stdout may not
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return repr(value)
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    return [_finite(below) for below in value] if isinstance(value, list) else value


def _show(answer: dict[str, Any], *, explain: bool) -> None:
    import json

    from rich.table import Table

    def clipped(document: Any) -> str:
        text = visible(json.dumps(document, ensure_ascii=False))
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

    table = Table("cosine", "id", "record", *(["because"] if explain else []), title=clipped(answer["query"]))
    for row in answer["hits"]:
        cells = [f"{row['score']:.3f}", visible(row["id"]), clipped(row["record"])]
        if explain:
            cells.append("\n".join(f"{visible(name)} {share:.3f}" for name, share in row["because"].items()))
        table.add_row(*cells)
    console().print(table)
