"""`hesse influence index` and `ask`: keep projected gradients of a corpus once, then answer queries from them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hesse.cli._report import emit_json, say, visible

__all__ = ["ask", "index_gradients"]

_RUN = typer.Argument(help="A fitted run.")
_REMOTE = typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
_JSON = typer.Option("--json", help="One JSON object on stdout.")


def index_gradients(
    run: Annotated[Path, _RUN],
    data: Annotated[str | None, typer.Option("--data", help="Index these texts instead of the training data.")] = None,
    k_in: Annotated[int, typer.Option("--k-in", min=1, help="Directions kept of a matrix's inputs.")] = 16,
    k_out: Annotated[int, typer.Option("--k-out", min=1, help="Directions kept of a matrix's outputs.")] = 16,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32", "float64"], typer.Option(help="Of the numbers stored.")
    ] = "float16",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index of other data or settings.")] = False,
    trust_remote_code: Annotated[bool, _REMOTE] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Keep the projected gradient of every text in the run, for `ask`. The same command again resumes.

    Example: hesse influence index runs/demo --k-in 32 --k-out 32
    """
    from hesse.cli._model import build
    from hesse.cli._scoring import load_of
    from hesse.influence.corpus import keep_corpus, open_corpus
    from hesse.influence.sequences import fingerprint, read_rows, tokenize_rows

    rows = None if data is None else read_rows(data)
    folder, network, tokenizer = load_of(run, needs_texts=data is None, trust_remote_code=trust_remote_code)
    config = folder.manifest.config
    if rows is None:
        sequences = open_corpus(run, "train").sequences()
    else:
        sequences = tokenize_rows(rows, tokenizer, config["info"]["max_length"])
        keep_corpus(run, f"data-{fingerprint(sequences)[:12]}", sequences)
    index = build(network, config, config["info"]["modules"]).index(
        sequences, run, k_in=k_in, k_out=k_out, dtype=dtype, batch_tokens=batch_tokens, overwrite=overwrite
    )
    result = {
        "run": str(run),
        "sequences": len(index),
        "bytes": index.num_bytes,
        "bytes_a_sequence": index.num_bytes / len(index),
        "k_in": k_in,
        "k_out": k_out,
        "dtype": dtype,
    }
    if as_json:
        emit_json(result)
    else:
        say(f"indexed {len(index):,} sequences, {result['bytes_a_sequence']:,.0f} bytes each: {run}")


def ask(
    run: Annotated[Path, typer.Argument(help="A run with an index.")],
    queries: Annotated[Path, typer.Option("--queries", help="JSON lines of id, prompt and completion.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many rows.")] = 20,
    opponents: Annotated[
        bool, typer.Option("--opponents", help="Rows that lower the completion's probability.")
    ] = False,
    check: Annotated[
        int | None, typer.Option("--check", min=3, help="Score so many random rows in full, and correlate.")
    ] = None,
    trust_remote_code: Annotated[bool, _REMOTE] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Answer queries from the index of a run: one backward pass a query, and none over the corpus.

    Example: hesse influence ask runs/demo --queries queries.jsonl -k 10 --check 200
    """  # noqa: DOC501 - it is the help text
    from hesse.cli._model import build
    from hesse.cli._scoring import load_of
    from hesse.errors import ArgumentError
    from hesse.influence.corpus import find_corpus
    from hesse.influence.prefilter import open_projected
    from hesse.influence.query import read_queries, tokenize_query

    asked = read_queries(queries)
    corpus = find_corpus(run, open_projected(run / "projected").manifest.parents["scored"])
    if corpus is None and check is not None:
        raise ArgumentError(f"check: {run} keeps no texts of what was indexed, so nothing can be scored in full")
    folder, network, tokenizer = load_of(run, needs_texts=False, trust_remote_code=trust_remote_code)
    config = folder.manifest.config
    questions = [tokenize_query(query, tokenizer, config["info"]["max_length"]) for query in asked]
    influence = build(network, config, config["info"]["modules"])
    sequences = corpus.sequences() if corpus is not None and check is not None else None
    found = influence.ask(questions, run, check=sequences, sample=check or 200)
    listed = []
    for number, name in enumerate(found.query_ids):
        best = found.topk(number, count, -1 if opponents else 1)
        entry = {
            "id": name,
            "top": [
                {"rank": i, "id": row, "score": score, "text": None if corpus is None else corpus.row_text(row)}
                for i, (row, score) in enumerate(best, 1)
            ],
        }
        agreement = None if found.agreement is None else float(found.agreement[number])
        listed.append(
            entry | ({} if agreement is None else {"correlation": agreement if agreement == agreement else None})
        )
    if as_json:
        emit_json({"run": str(run), "units": "nats", "queries": listed})
        return
    for entry in listed:
        typer.echo(visible(entry["id"]))
        for item in entry["top"]:
            text = visible((item["text"] or "(the run keeps no text)")[:80])
            typer.echo(f"{item['rank']:>4} {item['score']:+.3g}  {visible(item['id'])}  {text}")
        if "correlation" in entry:
            say(f"{entry['id']}: correlation with full scores over {check} random rows: {entry['correlation']}")
