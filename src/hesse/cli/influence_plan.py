"""`hesse influence plan`: what a run will take, before it starts, and settings that make it fit."""

from typing import TYPE_CHECKING, Annotated

import typer

from hesse.cli._report import console, emit_json, say
from hesse.cli._units import parse_duration, parse_size, show_duration, show_size

if TYPE_CHECKING:
    from hesse.influence.plan import Plan, Proposal

__all__ = ["plan_influence"]


def plan_influence(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or a config.json: no weights are read.")],
    sequences: Annotated[int, typer.Option("--sequences", "-n", min=1, help="Sequences to score.")],
    length: Annotated[float, typer.Option("--length", min=1, help="Mean tokens a sequence.")] = 512,
    queries: Annotated[int, typer.Option("--queries", "-q", min=1, help="Queries at once.")] = 1,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Rank of the queries; 0 for full.")] = 32,
    max_sequences: Annotated[int, typer.Option(min=1, help="Sequences to fit on, at most.")] = 100_000,
    modules: Annotated[str, typer.Option("--modules", help="Layers to track.")] = "mlp",
    strategy: Annotated[str, typer.Option("--strategy", help="ekfac, kfac, shampoo, diagonal or identity.")] = "ekfac",
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Diagonal blocks of the factors.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float64.")] = "float32",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    max_time: Annotated[str | None, typer.Option(help="Propose settings for so long: 30min, 12h, 7d.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Propose settings for so much memory: 16GiB.")] = None,
    max_disk: Annotated[str | None, typer.Option(help="Propose settings for so much disk: 200GB.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    rates: Annotated[
        str | None,
        typer.Option(help="FLOP/s of another machine, three numbers: model, factors, eigendecomposition."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what time, memory and disk a run takes on this machine, within a factor of two as a rule.

    Measures for a few seconds on random numbers of the model's shapes. Given a limit, proposes settings that keep it.

    Example: hesse influence plan meta-llama/Llama-3.1-8B -n 1000000 --queries 32 --dtype bfloat16 --max-memory 80GB
    """  # noqa: DOC501 - it is the help text
    from hesse.curvature.layers import select_layers
    from hesse.errors import ArgumentError
    from hesse.influence.huggingface import load_skeleton
    from hesse.influence.plan import Budget, StatedRates, Workload, plan_stages, propose_plan, rates_here

    if strategy not in ("ekfac", "kfac", "shampoo", "diagonal", "identity"):
        raise ArgumentError(f"strategy: expected ekfac, kfac, shampoo, diagonal or identity, got {strategy!r}")
    stated = None if rates is None else StatedRates(*_three(rates))
    budget = Budget(
        None if max_time is None else parse_duration(max_time),
        None if max_memory is None else parse_size(max_memory),
        None if max_disk is None else parse_size(max_disk),
    )
    network = load_skeleton(model, dtype=dtype)
    layers = select_layers(network, modules)
    workload = Workload(sequences, length, queries, rank or None, min(sequences, max_sequences), batch_tokens)
    speed = stated or rates_here(network)
    asked = plan_stages(network, layers, workload, strategy=strategy, blocks=blocks, processes=processes, rates=speed)
    proposal = None
    if budget != Budget():
        proposal = propose_plan(
            network, layers, workload, budget, strategy=strategy, blocks=blocks, processes=processes, rates=speed
        )
    if as_json:
        found = asked if proposal is None else proposal
        emit_json({"model": model, "layers": len(layers), **found.to_dict()})
    else:
        _show(asked if proposal is None else proposal.plan)
        say(f"{len(layers):,} layers, {sequences:,} sequences of {length:g} tokens, {queries:,} queries")
        if proposal is not None:
            _explain(proposal)
    if proposal is not None and proposal.exceeded:
        raise typer.Exit(1)


def _three(text: str) -> tuple[float, float, float]:
    from hesse.errors import ArgumentError

    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"rates: expected three numbers, as in 4e14,4e13,1e12, got {text!r}") from None
    return first, second, third


def _show(plan: "Plan") -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for header in ("stage", "time", "memory", "disk"):
        table.add_column(header, justify="left" if header == "stage" else "right", no_wrap=True)
    for stage in plan.stages:
        memory = show_size(stage.memory + plan.model_bytes)
        table.add_row(stage.name, show_duration(stage.seconds), memory, show_size(stage.disk))
    table.add_section()
    table.add_row("in all", show_duration(plan.seconds), show_size(plan.memory), show_size(plan.disk))
    console().print(table)


def _explain(proposal: "Proposal") -> None:
    names = {
        "batch_tokens": "--batch-tokens",
        "blocks": "--blocks",
        "length": "--max-length",
        "rank": "--rank",
        "fitted_on": "--max-sequences",
    }
    for name, (asked, now) in proposal.changed.items():
        if name == "num_sequences":
            say(f"score {now:,.0f} of {asked:,.0f} sequences, chosen by a filter")
        else:
            say(f"{names[name]} {now:g} for {'full' if name == 'rank' and not asked else f'{asked:g}'}")
    if proposal.exceeded:
        say(f"no settings fit: {', '.join(proposal.exceeded)} still above the limit")
    elif not proposal.changed:
        say("fits as asked")
