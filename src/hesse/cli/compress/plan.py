"""`hesse compress plan`: bits for every weight of a model, and for what it meets, by the curvature of the loss."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hesse.cli._report import emit_json, say
from hesse.cli.compress.budget import parse_budget
from hesse.cli.compress.options import (
    AsJson,
    Data,
    HeldOut,
    Layers,
    MaxExamples,
    MaxHeldOut,
    MaxLength,
    Model,
    Overwrite,
    Revision,
    Seed,
    parse_widths,
)

if TYPE_CHECKING:
    from hesse.cli.compress.subject import Subject
    from hesse.compress import BitPlan, SensitivityTable, Solver, UniformQuantizer

__all__ = ["plan"]

Sensitivity = Literal["auto", "trace", "fisher", "quadratic"]
Matrix = Literal["hessian", "ggn"]

_FLOAT_BITS = 32  # of an input that is not rounded
_MANY = 40  # weights from which holding each at every width in turn takes minutes


def _budget(text: str | None) -> str | None:
    if text is not None:
        parse_budget(text)  # a typing mistake is worth knowing before a model is loaded
    return text


def _widths(text: str | None) -> str | None:
    if text is not None:
        parse_widths(text)
    return text


def plan(
    model: Model,
    budget: Annotated[
        str,
        typer.Option(
            callback=_budget,
            help="Bits a weight on average (3.5), a size of all (40MB), or bit operations an example (30GBOPs).",
        ),
    ],
    data: Data = None,
    bits: Annotated[str, typer.Option(callback=_widths, help="Widths to choose from.")] = "2,3,4,6,8",
    activations: Annotated[
        str | None,
        typer.Option(callback=_widths, help="Widths of layers' inputs, as in 4,6,8. Default: not rounded, 32 bits."),
    ] = None,
    limit: Annotated[
        str | None, typer.Option(callback=_budget, help="A second bound, of another kind than --budget.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The plan, as JSON.")] = Path("plan.json"),
    held_out: HeldOut = None,
    layers: Layers = None,
    sensitivity: Annotated[
        Sensitivity,
        typer.Option(
            help="trace: HAWQ-V2's average traces; quadratic: products with the rounding errors; fisher: the Fisher "
            "matrix's diagonal, one backward pass. auto: fisher for a language model, else trace."
        ),
    ] = "auto",
    matrix: Annotated[Matrix, typer.Option(help="Of trace and quadratic. ggn: never negative.")] = "hessian",
    probes: Annotated[int, typer.Option(min=2, help="Products behind the traces.")] = 50,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="One scale a weight, not one a channel.")] = False,
    candidates: Annotated[
        int, typer.Option(min=0, help="Plans whose true loss is measured, the best is taken; 0: trust the prediction.")
    ] = 10,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the frontier: .svg, .png or .pdf; replaced if it exists.")
    ] = None,
    max_examples: MaxExamples = None,
    max_held_out: MaxHeldOut = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose bits for every weight so that the loss rises least within a budget (HAWQ-V2), without training.

    With --activations the inputs of layers get bits, too; these cost bit operations, and no size.

    The model is left as it is; "hesse compress quantize" carries the plan out. Held-out examples are not looked at.

    Example: hesse compress plan runs/model --data train.jsonl --bits 2,4,8 --budget 4 --out plan.json
    """  # noqa: DOC501 - it is the help text
    from hesse._optional import require
    from hesse.cli.compress.frontier import draw_frontier, frontier_rows, listed_plans, plan_bops, show_frontier
    from hesse.cli.compress.output import check_file_target, spoken_warnings
    from hesse.cli.compress.subject import announce, batches, load_subject
    from hesse.compress import UniformQuantizer, allocate_bits, pareto_frontier, plan_losses
    from hesse.errors import ArgumentError
    from hesse.io import atomic_write_json

    amount, constraint = parse_budget(budget)
    bound, limited = (None, None) if limit is None else parse_budget(limit)
    if limited is not None and (limited == constraint or "bitops" not in {constraint, limited}):
        raise ArgumentError("limit: must bound something else than --budget, and one of the two bit operations")
    limits = {} if bound is None or limited is None else {limited: bound}
    widths, input_widths = parse_widths(bits), None if activations is None else parse_widths(activations)
    if constraint == "average_bits" and amount < widths[0]:
        raise ArgumentError(f"budget: {amount:g} bits a weight are fewer than the fewest of --bits, {widths[0]}")
    check_file_target(out, overwrite=overwrite)
    if plot is not None:
        require("matplotlib", extra="plot", feature="--plot")
        check_file_target(plot, overwrite=True, name="plot")
        if plot.suffix not in (".svg", ".png", ".pdf"):
            raise ArgumentError(f"plot: expected a name that ends in .svg, .png or .pdf, got {plot}")
    choices = {
        "layers": layers,
        "max_examples": max_examples,
        "max_held_out": max_held_out,
        "max_length": max_length,
        "revision": revision,
        "seed": seed,
    }
    subject = load_subject(model, data, held_out, **choices)
    announce(subject)
    quantizer = UniformQuantizer(per_channel=not per_tensor)
    kind = sensitivity if sensitivity != "auto" else "fisher" if subject.is_language_model else "trace"
    with spoken_warnings():
        table = _table(subject, widths, quantizer, kind, matrix, probes, seed)
        table = _with_work(subject, table, input_widths, probes, seed)
        frontier = pareto_frontier(table, constraint, max_points=20_000 if input_widths is None else 2_000)
        losses = None
        if candidates:
            plans = _candidates(table, amount, constraint, limits, candidates)
            listed = [] if subject.is_language_model else listed_plans(table, frontier)  # there a pass takes minutes
            say(f"measuring {len(plans)} plans on the calibration examples")
            held = batches(subject.calibration, subject.batch_size)
            losses = plan_losses(subject.module, subject.loss_fn, held, [*plans, *listed], quantizer)
            chosen = plans[int(losses.losses[: len(plans)].argmin())]
        else:
            chosen = allocate_bits(table, amount, constraint=constraint, limits=limits, solver=_solver(table, limits))
    rows = frontier_rows(table, frontier, chosen, losses)
    record = {
        "model": model,
        "data": data,
        "held_out": held_out,
        **choices,
        "sensitivity": kind,
        "matrix": matrix if kind in ("trace", "quadratic") else None,
        "budget": budget,
        "limit": limit,
        "bits": list(widths),
        "activations": None if input_widths is None else list(input_widths),
        "quantizer": {"per_channel": quantizer.per_channel, "scale": quantizer.scale},
        "average_bits": chosen.average_bits,
        "average_activation_bits": chosen.average_activation_bits if chosen.activations else None,
        "bytes": chosen.size_bits / 8,
        "bops": plan_bops(table, chosen),
        "frontier": rows,
    }
    atomic_write_json(out, {**chosen.to_dict(), "made_by": record})
    if plot is not None:
        draw_frontier(table, frontier, rows, plot)
    if as_json:
        emit_json({"out": str(out), **record, "weights": dict(chosen.weights), "inputs": dict(chosen.activations)})
        return
    show_frontier(rows)
    counts = [
        f"{n} {what} at {b} bits"
        for what, bits_of in (("weights", chosen.weights), ("inputs", chosen.activations))
        for b, n in sorted(Counter(bits_of.values()).items())
    ]
    say(f"wrote {out}: " + ", ".join(counts))


def _table(
    subject: "Subject",
    widths: tuple[int, ...],
    quantizer: "UniformQuantizer",
    kind: str,
    matrix: Matrix,
    probes: int,
    seed: int,
) -> "SensitivityTable":
    import torch

    from hesse.cli.compress.subject import batches
    from hesse.compress import fisher_table, layer_traces, quadratic_table, sensitivity_table
    from hesse.errors import ArgumentError

    data = batches(subject.calibration, subject.batch_size)
    if kind == "fisher":
        if subject.likelihood is None:
            raise ArgumentError(
                "sensitivity: fisher draws labels from the model, and needs a factory whose loss is a plain "
                "CrossEntropyLoss or MSELoss; take trace or quadratic"
            )
        return fisher_table(
            subject.module,
            subject.outputs,
            # the smaller the batches, the more samples of the diagonal
            batches(subject.calibration, 1 if subject.is_language_model else subject.batch_size),
            widths,
            quantizer,
            likelihood=subject.likelihood,
            layers=subject.weights,
            generator=torch.Generator().manual_seed(seed),
        )
    if kind == "quadratic":
        return quadratic_table(
            subject.module, subject.loss_fn, data, widths, quantizer, layers=subject.weights, matrix=matrix
        )
    device = next(subject.module.parameters()).device
    traces = layer_traces(
        subject.module,
        subject.loss_fn,
        data,
        layers=subject.weights,
        num_probes=probes,
        matrix=matrix,
        chunk_size=1 if subject.is_language_model else 5,
        generator=torch.Generator(device).manual_seed(seed),
    )
    if loose := traces.unsettled(0.2):
        say(f"{len(loose)} of {len(traces.names)} traces are known to no better than 20 %; more --probes would tell")
    return sensitivity_table(subject.module, traces, widths, quantizer)


def _with_work(
    subject: "Subject", table: "SensitivityTable", input_widths: tuple[int, ...] | None, probes: int, seed: int
) -> "SensitivityTable":
    # the table with bit operations, and paired with the widths of inputs where these are asked for
    import numpy as np
    import torch

    from hesse.cli._model import sequence_loss
    from hesse.cli.compress.subject import num_examples, take
    from hesse.compress import activation_table, activation_traces, count_macs, joint_table

    # inputs of one size: with all of the padding, which the subject's own loss would cut off
    loss_fn = sequence_loss if subject.is_language_model else subject.loss_fn
    order = torch.arange(num_examples(subject.calibration))
    data = [take(subject.calibration, part) for part in order.split(subject.batch_size)]
    macs = count_macs(subject.module, loss_fn, data[0], layers=subject.weights)
    if input_widths is None:
        times = np.array([macs[name] for name in table.names], dtype=np.float64)
        return table.with_cost("bitops", times[:, None] * np.array(table.options, dtype=np.float64) * _FLOAT_BITS)
    device = next(subject.module.parameters()).device
    traces = activation_traces(
        subject.module,
        loss_fn,
        data,
        layers=subject.weights,
        num_probes=probes,
        generator=torch.Generator(device).manual_seed(seed + 1),
    )
    inputs = activation_table(subject.module, loss_fn, data, traces, input_widths)
    return joint_table(subject.module, table, inputs, macs)


def _solver(table: "SensitivityTable", limits: Mapping[str, float]) -> "Solver":
    # pairs of widths make partial sums too many for an exact frontier
    return "milp" if limits or table.kind == "joint" else "auto"


def _candidates(
    table: "SensitivityTable", amount: float, constraint: str, limits: Mapping[str, float], count: int
) -> "list[BitPlan]":
    from hesse.compress import candidate_plans, floor_plans

    solver = _solver(table, limits)
    if len(table.names) <= _MANY and solver == "auto":
        return candidate_plans(table, amount, constraint=constraint, num_plans=count)
    return floor_plans(table, amount, constraint=constraint, limits=limits, solver=solver)[:count]
