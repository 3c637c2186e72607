"""`hesse influence score`: score training data, or other texts, against queries."""

from pathlib import Path
from typing import Annotated

import typer

from hesse.cli._report import emit_json, say

__all__ = ["score"]


def _rank(text: str) -> str:
    if text != "full" and not (text.isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"expected a number >= 1, or 'full', got {text!r}")
    return text


def score(
    run: Annotated[Path, typer.Argument(help="A fitted run.")],
    queries: Annotated[Path, typer.Option("--queries", help="JSON lines of id, prompt and completion.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Score these texts instead: the effect of adding them.")
    ] = None,
    rank: Annotated[
        str, typer.Option(callback=_rank, metavar="N|full", help="Rank at which each query's gradient is kept.")
    ] = "32",
    refine_topk: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Score this many of each sign again at full rank, a query. Default: 500; 0 with --per-token or "
            "--per-layer, whose shares add up to the scores of the first pass.",
        ),
    ] = None,
    per_token: Annotated[bool, typer.Option("--per-token", help="Keep the share of every token.")] = False,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Keep the share of every matrix.")] = False,
    per_query_token: Annotated[
        bool, typer.Option("--per-query-token", help="Score each token of a completion by itself as well.")
    ] = False,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score texts against queries, in nats of the completion's log-probability. The same command again resumes.

    Example: hesse influence score runs/demo --queries queries.jsonl --per-token
    """  # noqa: DOC501 - it is the help text
    from hesse.cli._model import build, load
    from hesse.errors import ArgumentError, ArtifactError
    from hesse.influence.corpus import keep_corpus, open_corpus
    from hesse.influence.huggingface import tokenizer_hash
    from hesse.influence.query import read_queries, tokenize_query
    from hesse.influence.run import open_folder
    from hesse.influence.sequences import fingerprint, read_rows, tokenize_rows

    folder = open_folder(run)
    config, info = folder.manifest.config, folder.manifest.config["info"]
    if "model" not in info:
        raise ArgumentError(f"run: {run} does not say which model it is of; it was not made by `hesse influence fit`")
    if data is None and "train" not in folder.stage("corpus"):
        raise ArgumentError(f"run: {run} keeps no training texts; finish `hesse influence fit`, or pass --data")
    asked = read_queries(queries)
    rows = None if data is None else read_rows(data)
    network, tokenizer = load(info, trust_remote_code=trust_remote_code)
    if info.get("tokenizer") not in (None, tokenizer_hash(tokenizer)):
        raise ArtifactError(
            f"run: {run} was fitted on texts cut by another tokenizer than {info['model']} has now; fit again"
        )
    length = info["max_length"]
    questions = [tokenize_query(query, tokenizer, length) for query in asked]
    if rows is None:
        sequences = open_corpus(run, "train").sequences()
    else:
        sequences = tokenize_rows(rows, tokenizer, length)
        keep_corpus(run, f"data-{fingerprint(sequences)[:12]}", sequences)
    keep_corpus(run, f"queries-{fingerprint(questions)[:12]}", questions)
    scores = build(network, config, info["modules"]).score(
        questions,
        sequences,
        run,
        rank=None if rank == "full" else int(rank),
        refine_topk=refine_topk,
        per_layer=per_layer,
        per_token=per_token,
        per_query_token=per_query_token,
        batch_tokens=batch_tokens,
        info={"data": data or info.get("data")},
    )
    result = {
        "run": str(run),
        "units": "nats",
        "queries": len(scores.query_ids),
        "rows": len(scores.train_ids),
        "sequences": len(scores.sequence_ids),
        "rank": rank if rank == "full" else int(rank),
        "refine_topk": scores.state["refine_topk"],
    }
    if as_json:
        emit_json(result)
    else:
        say(f"scored {result['rows']:,} rows against {result['queries']:,} queries: {run}")
