"""`hesse influence plan`: what a run will take, before it starts."""

from typing import Annotated

import typer

from hesse.cli._report import console, emit_json, say

__all__ = ["plan_influence"]


def plan_influence(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or a config.json: no weights are read.")],
    sequences: Annotated[int, typer.Option("--sequences", "-n", min=1, help="Sequences to score.")],
    length: Annotated[float, typer.Option("--length", min=1, help="Mean tokens a sequence.")] = 512,
    queries: Annotated[int, typer.Option("--queries", "-q", min=1, help="Queries at once.")] = 1,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Rank of the queries; 0 for full.")] = 32,
    max_sequences: Annotated[int, typer.Option(min=1, help="Sequences to fit on, at most.")] = 100_000,
    modules: Annotated[str, typer.Option("--modules", help="Layers to track.")] = "mlp",
    strategy: Annotated[str, typer.Option("--strategy", help="ekfac, kfac, diagonal or identity.")] = "ekfac",
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Diagonal blocks of the factors.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float64.")] = "float32",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what time, memory and disk a run takes on this machine, within a factor of two as a rule.

    Measures for a few seconds on random numbers of the model's shapes.

    Example: hesse influence plan meta-llama/Llama-3.1-8B -n 1000000 --queries 32 --blocks 4 --dtype bfloat16
    """  # noqa: DOC501 - it is the help text
    from hesse.curvature.layers import select_layers
    from hesse.errors import ArgumentError
    from hesse.influence.huggingface import load_skeleton
    from hesse.influence.plan import Workload, plan_stages

    if strategy not in ("ekfac", "kfac", "diagonal", "identity"):
        raise ArgumentError(f"strategy: expected ekfac, kfac, diagonal or identity, got {strategy!r}")
    network = load_skeleton(model, dtype=dtype)
    layers = select_layers(network, modules)
    fitted_on = min(sequences, max_sequences)
    workload = Workload(sequences, length, queries, rank or None, fitted_on, batch_tokens)
    found = plan_stages(network, layers, workload, strategy=strategy, blocks=blocks)
    if as_json:
        emit_json({"model": model, "layers": len(layers), **found.to_dict()})
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for header in ("stage", "time", "memory", "disk"):
        table.add_column(header, justify="left" if header == "stage" else "right", no_wrap=True)
    for stage in found.stages:
        table.add_row(stage.name, _time(stage.seconds), _size(stage.memory + found.model_bytes), _size(stage.disk))
    table.add_section()
    table.add_row("in all", _time(found.seconds), _size(found.memory), _size(found.disk))
    console().print(table)
    say(f"{len(layers):,} layers, {sequences:,} sequences of {length:g} tokens, {queries:,} queries")


def _time(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:,.3g} d"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB"
