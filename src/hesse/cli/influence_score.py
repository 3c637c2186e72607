"""`hesse influence score`: score training data, or other texts, against queries."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hesse.cli._report import emit_json, say

__all__ = ["score"]

Solver = Literal["pcg", "cg", "lissa"]
Filter = Literal["bm25", "tfidf_paper"]


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
            help="Score this many of each sign again at full rank, a query, their shares with them. Default: 500; 0 "
            "with --per-token or --per-layer, since shares at full rank take longer.",
        ),
    ] = None,
    per_token: Annotated[bool, typer.Option("--per-token", help="Keep the share of every token.")] = False,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Keep the share of every matrix.")] = False,
    per_query_token: Annotated[
        bool, typer.Option("--per-query-token", help="Score each token of a completion by itself as well.")
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Keep this many of each sign, a query, instead of all scores."),
    ] = None,
    prefilter: Annotated[
        Filter | None, typer.Option(help="Score only rows that share rare tokens with a query, and a random slice.")
    ] = None,
    prefilter_top: Annotated[int, typer.Option(min=1, help="Of --prefilter: sequences kept a query.")] = 10_000,
    prefilter_random: Annotated[
        int, typer.Option(min=0, help="Of --prefilter: other rows drawn, to estimate what was missed.")
    ] = 1_000,
    strategy: Annotated[
        Solver | None,
        typer.Option(help="Solve each query with the curvature itself. Default: as fitted, which is far quicker."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Of --strategy, at most. Default: 20, 50 and 300.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score texts against queries, in nats of the completion's log-probability. The same command again resumes.

    Example: hesse influence score runs/demo --queries queries.jsonl --per-token
    """  # noqa: DOC501 - it is the help text
    from hesse.cli._scoring import load_of, score_queries
    from hesse.errors import ArgumentError
    from hesse.influence.distributed import join_team
    from hesse.influence.prefilter import Prefilter, estimate_missed
    from hesse.influence.query import read_queries
    from hesse.influence.sequences import read_rows
    from hesse.influence.solvers import solver_named

    if steps is not None and strategy is None:
        raise ArgumentError("steps: they are those of a solver; pass --strategy pcg, cg or lissa")
    if strategy is not None:
        solver_named(strategy, steps=steps)  # a typing mistake is worth knowing before a model is loaded
    with join_team() as team:  # of one process, unless torchrun started it
        asked = read_queries(queries)
        rows = None if data is None else read_rows(data)
        folder, network, tokenizer = load_of(run, needs_texts=data is None, trust_remote_code=trust_remote_code)
        fitted = folder.manifest.config["strategy"]
        solver = None if strategy is None else solver_named(strategy, steps=steps, factors=fitted)
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
            top_k=top_k,
            team=team,
            solver=solver,
            prefilter=None if prefilter is None else Prefilter(prefilter, prefilter_top, prefilter_random),
            info={"data": data or folder.manifest.config["info"].get("data")},
        )
        result = {
            "run": str(run),
            "units": "nats",
            "queries": len(scores.query_ids),
            "rows": len(scores.train_ids),
            "sequences": scores.state["sequences"],
            "rank": rank if rank == "full" else int(rank),
            "refine_topk": scores.state["refine_topk"],
            "top_k": scores.top_k,
            "strategy": strategy or fitted,
        }
        residuals = scores.state.get("residual")
        if residuals:
            result["residual"] = max(residuals)
        if not team.is_first:
            return
        missed = None if prefilter is None or top_k is not None else estimate_missed(scores)
        if missed is not None:
            result["missed"] = missed.to_dict()
        if as_json:
            emit_json(result)
        else:
            rows = f"{result['rows']:,} rows" if top_k is None else f"{result['sequences']:,} sequences"
            say(f"scored {rows} against {result['queries']:,} queries: {run}")
            if top_k is not None:
                say(f"kept {top_k:,} rows of each sign, a query")
            if missed is not None:
                say(missed.summary())
            if residuals:
                say(f"relative residual of the solves: {max(residuals):.2g} at most")
