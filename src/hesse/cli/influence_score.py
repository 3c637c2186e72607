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
    """
    from hesse.cli._scoring import load_of, score_queries
    from hesse.influence.query import read_queries
    from hesse.influence.sequences import read_rows

    asked = read_queries(queries)
    rows = None if data is None else read_rows(data)
    folder, network, tokenizer = load_of(run, needs_texts=data is None, trust_remote_code=trust_remote_code)
    scores = score_queries(
        folder,
        network,
        tokenizer,
        asked,
        rows,
        rank=None if rank == "full" else int(rank),
        refine_topk=refine_topk,
        per_layer=per_layer,
        per_token=per_token,
        per_query_token=per_query_token,
        batch_tokens=batch_tokens,
        info={"data": data or folder.manifest.config["info"].get("data")},
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
