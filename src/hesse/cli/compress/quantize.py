"""`hesse compress quantize`: round a model as a plan says, and measure what that costs on held-out examples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesse.cli._report import emit_json, say
from hesse.cli.compress.options import (
    AsJson,
    Data,
    HeldOut,
    MaxExamples,
    MaxHeldOut,
    MaxLength,
    Model,
    OutFolder,
    Overwrite,
    Revision,
)

if TYPE_CHECKING:
    from hesse.cli.compress.subject import Quality, Subject
    from hesse.compress import BitPlan, UniformQuantizer

__all__ = ["quantize"]


def quantize(
    model: Model,
    plan: Annotated[Path, typer.Option("--plan", help="From hesse compress plan.")],
    out: OutFolder,
    data: Data = None,
    held_out: HeldOut = None,
    max_examples: MaxExamples = None,
    max_held_out: MaxHeldOut = None,
    max_length: MaxLength = None,
    compare: Annotated[bool, typer.Option("--compare/--no-compare", help="Measure one width for all, too.")] = True,
    packed: Annotated[
        bool, typer.Option("--packed", help="Write packed.safetensors too: whole numbers in as few bits as planned.")
    ] = False,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Round a model's weights to the widths of a plan, and measure loss and accuracy or perplexity before and after.

    OUT gets the rounded weights in the model's own format and precision ("fake-quantised": it loads like the model and
    is as large and as fast; --packed adds the small file), the plan, and compression.json with what was measured.
    Held out are the same examples as in planning. No training. Where the plan rounds inputs of layers, their ranges are
    taken from the calibration examples, and activations.json says bits and range of each.

    Example: hesse compress quantize runs/model --plan plan.json --data train.jsonl --out runs/model-4bit
    """
    from hesse.cli.compress.output import check_folder_target, spoken_warnings, whole_folder, write_model, write_report
    from hesse.cli.compress.subject import announce, baseline, load_subject, quality
    from hesse.compress import quantize_model
    from hesse.io import atomic_write_json, save_tensors

    check_folder_target(out, overwrite=overwrite)
    bits, quantizer, seed = _read_plan(plan)
    subject = load_subject(
        model,
        data,
        held_out,
        layers=None,
        max_examples=max_examples,
        max_held_out=max_held_out,
        max_length=max_length,
        revision=revision,
        seed=seed,
    )
    _check_plan(plan, bits, subject)
    announce(subject)
    with spoken_warnings():
        before = baseline(subject)
        even = _even(subject, bits, quantizer) if compare else None
        rounded = quantize_model(subject.module, bits, quantizer)
        if bits.activations:
            rounded.calibrate(subject.loss_fn, _calibration(subject))
        sizes = {"before": _bytes(subject.module), "after": rounded.storage_bytes()}
        if bits.activations:
            say("the plan rounds inputs of layers, too: measured; their ranges are in activations.json")
        after = quality(subject, rounded)
        subject.module.load_state_dict(rounded.dequantized_state_dict())
        report = {
            "command": "quantize",
            "model": model,
            "out": str(out),
            "average_bits": bits.average_bits,
            "average_activation_bits": bits.average_activation_bits if bits.activations else None,
            "bytes": sizes,
            "before": before.to_dict(),
            "after": after.to_dict(),
            "one_width": None if even is None else {"bits": even[0], **even[1].to_dict()},
            "held_out": subject.held_out_from,
        }
        with whole_folder(out) as folder:
            write_model(subject, folder)
            bits.save(folder / "plan.json")
            if bits.activations:
                atomic_write_json(folder / "activations.json", rounded.activation_ranges())
            if packed:
                save_tensors(folder / "packed.safetensors", rounded.freeze().state_dict())
            write_report(folder, report)
    if as_json:
        emit_json(report)
        return
    _show(before, after, even, sizes, bits)
    say(f"wrote {out}")


def _read_plan(path: Path) -> "tuple[BitPlan, UniformQuantizer, int]":
    from hesse.compress import BitPlan, UniformQuantizer
    from hesse.errors import ArgumentError, ArtifactError
    from hesse.io import read_json

    if not path.is_file():
        raise ArgumentError(f"plan: there is no file {path}; hesse compress plan writes one")
    value: Any = read_json(path)
    bits = BitPlan.from_dict(value)
    if not bits.weights and not bits.activations:
        raise ArtifactError(f"plan: {path} gives bits to nothing")
    made_by = value.get("made_by", {})
    try:
        quantizer = UniformQuantizer(**made_by.get("quantizer", {}))
        seed = made_by.get("seed", 0)
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ArgumentError(f"seed must be a whole number from 0, got {seed!r}")
    except (TypeError, AttributeError, ArgumentError) as error:
        raise ArtifactError(f"plan: {path}: made_by does not say how to round ({error})") from error
    return bits, quantizer, seed


def _check_plan(path: Path, bits: "BitPlan", subject: "Subject") -> None:
    from hesse.errors import ArtifactError

    numel = {name: parameter.numel() for name, parameter in subject.module.named_parameters()}
    for name in bits.weights:
        if numel.get(name) != bits.numel[name]:
            there = f"has {numel[name]:,} entries there" if name in numel else "is not there"
            raise ArtifactError(
                f"plan: {path} is not of this model: {name}, of {bits.numel[name]:,} entries in the plan, {there}"
            )


def _calibration(subject: "Subject") -> list[Any]:
    from hesse.cli.compress.subject import batches

    return batches(subject.calibration, subject.batch_size)


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _even(subject: "Subject", bits: "BitPlan", quantizer: "UniformQuantizer") -> "tuple[int, Quality] | None":
    # the widest single width that is no larger, where there is one and the plan is not it
    from hesse.cli.compress.subject import quality
    from hesse.compress import BitPlan, quantize_model, uniform_plan

    width = int(bits.average_bits + 1e-9) if bits.weights else 0
    if width < 2 or set(bits.weights.values()) == {width}:
        return None
    even = uniform_plan({name: bits.numel[name] for name in bits.weights}, width)
    if bits.activations:
        inputs = dict.fromkeys(bits.activations, max(2, int(bits.average_activation_bits + 1e-9)))
        even = even.merge(BitPlan({}, inputs, {name: bits.numel[name] for name in inputs}))
    rounded = quantize_model(subject.module, even, quantizer)
    if even.activations:
        rounded.calibrate(subject.loss_fn, _calibration(subject))
    return width, quality(subject, rounded)


def _show(
    before: "Quality", after: "Quality", even: "tuple[int, Quality] | None", sizes: dict[str, int], bits: "BitPlan"
) -> None:
    from hesse.cli.compress.output import megabytes, quality_rows, show_table

    columns = [before, after, *([] if even is None else [even[1]])]
    head = ["", "before", "after", *([] if even is None else [f"all {even[0]} bits"])]
    rows = quality_rows(columns)
    blank = [""] * (len(columns) - 2)
    rows.append(["bits a weight", "", f"{bits.average_bits:.3f}", *([] if even is None else [str(even[0])])])
    if bits.activations:
        inputs = bits.average_activation_bits
        rows.append(
            ["bits an input", "", f"{inputs:.3f}", *([] if even is None else [str(max(2, int(inputs + 1e-9)))])]
        )
    rows.append(["size, packed", megabytes(sizes["before"]), megabytes(sizes["after"]), *blank])
    show_table("Held-out examples, before and after rounding", head, rows)
