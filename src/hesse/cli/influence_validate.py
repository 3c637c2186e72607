"""`hesse influence validate pbrf|loo|lds`: are the scores of this model true?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hesse.cli._report import console, emit_json, visible

__all__ = ["validate"]

Kind = Literal["pbrf", "loo", "lds"]
Optimizer = Literal["sgd", "adamw"]


def validate(
    kind: Annotated[
        Kind,
        typer.Argument(help="pbrf: what scores approximate. lds: training on halves. loo: leaving out, gap by gap."),
    ],
    run: Annotated[Path, typer.Argument(help="A fitted run.")],
    queries: Annotated[Path, typer.Option("--queries", help="JSON lines of id, prompt and completion.")],
    budget: Annotated[float, typer.Option("--budget", min=0.01, help="Minutes that it may take, roughly.")] = 10.0,
    start: Annotated[
        str | None,
        typer.Option(help="The model before fine-tuning, where lds and loo train from. Default: train on."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of each training.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="On the mean over a batch of summed token losses.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences an update.")] = 16,
    optimizer: Annotated[Optimizer, typer.Option(help="SGD with momentum 0.9, or AdamW.")] = "sgd",
    runs: Annotated[int, typer.Option(min=1, help="Data orders of lds and loo, averaged.")] = 2,
    at_once: Annotated[int, typer.Option(min=1, help="Trainings at a time; memory grows with it.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of subsets, sequences and data orders.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare a run's scores with what really happens to this model, as far as the time allowed reaches.

    A pilot measures what one training or response costs; how many are made follows from --budget. Train as the model
    was trained: another recipe asks another question.

    Example: hesse influence validate lds runs/demo --queries queries.jsonl --start base-model --budget 30
    """
    from hesse.cli._model import build, load
    from hesse.cli._scoring import load_of
    from hesse.influence.corpus import open_corpus
    from hesse.influence.evaluate.validation import FineTuning
    from hesse.influence.evaluate.validation import validate as compare
    from hesse.influence.factors import load_factors
    from hesse.influence.query import read_queries, tokenize_query

    asked = read_queries(queries)
    folder, network, tokenizer = load_of(run, needs_texts=True, trust_remote_code=trust_remote_code)
    config, info = folder.manifest.config, folder.manifest.config["info"]
    origin = None
    if start is not None:
        origin = load(info | {"model": start, "revision": None}, trust_remote_code=trust_remote_code)[0]
    found = compare(
        kind,
        build(network, config, info["modules"]),
        load_factors(folder.path, folder.manifest),
        run,
        open_corpus(run, "train").sequences(),
        [tokenize_query(query, tokenizer, info["max_length"]) for query in asked],
        budget=60 * budget,
        start=origin,
        fine_tuning=FineTuning(steps, learning_rate, batch_size, optimizer, seed),
        runs=runs,
        at_once=at_once,
        seed=seed,
    )
    result = {"run": str(run), "kind": kind, "units": "nats", "seconds": round(found.seconds, 1), **found.figures}
    if as_json:
        emit_json(result)
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in result.items():
        for label, cell in _lines(str(name), value):
            table.add_row(visible(label), visible(cell))
    console().print(table)


def _lines(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [line for key, part in value.items() for line in _lines(f"{name}: {key}", part)]
    if isinstance(value, list):
        return [(name, " to ".join(f"{part:.4g}" for part in value))]
    return [(name, f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value))]
