"""`hesse compress prune`: single weights, or whole channels and heads, taken out of a model."""

import copy
import re
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hesse.cli._report import emit_json, say
from hesse.cli._units import parse_size
from hesse.cli.compress.options import (
    AsJson,
    Data,
    HeldOut,
    Layers,
    MaxExamples,
    MaxHeldOut,
    MaxLength,
    Model,
    OutFolder,
    Overwrite,
    Revision,
    Seed,
)

if TYPE_CHECKING:
    from hesse.cli.compress.groups import Training
    from hesse.cli.compress.subject import Quality, Subject
    from hesse.cli.compress.surgeon import Surgery
    from hesse.compress import Pattern

__all__ = ["prune"]

Method = Literal["obs", "hesso"]
Scope = Literal["auto", "global", "layer"]


def _sparsity(value: float) -> float:
    if not 0 < value < 1:
        raise typer.BadParameter(f"expected a share between 0 and 1, as in 0.5; got {value:g}")
    return value


def _pattern(text: str) -> str:
    if text != "unstructured" and re.fullmatch(r"[1-9]\d*[:x][1-9]\d*", text) is None:
        raise typer.BadParameter(
            f"expected unstructured, N:M as in 2:4, or blocks of rows x columns as in 1x4; got {text!r}"
        )
    return text


def _memory(text: str) -> str:
    parse_size(text)
    return text


def prune(
    model: Model,
    sparsity: Annotated[float, typer.Option(callback=_sparsity, help="Share of the weights that goes, as in 0.5.")],
    out: OutFolder,
    data: Data = None,
    method: Annotated[
        Method, typer.Option(help="obs: single weights become zero; hesso: channels and heads are cut out.")
    ] = "obs",
    pattern: Annotated[
        str, typer.Option(callback=_pattern, help="obs: unstructured; 2:4, at most 2 of 4; 1x4, blocks of 1 x 4.")
    ] = "unstructured",
    scope: Annotated[
        Scope, typer.Option(help="obs: rank all weights together, or the same share of each. auto: layer for texts.")
    ] = "auto",
    gradients: Annotated[
        int | None, typer.Option(min=1, help="Gradients of single examples. Default: 256; of a language model, 32.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="obs: with new gradients each. Default: 16; of a language model, 4.")
    ] = None,
    damping: Annotated[float, typer.Option(min=0.0, help="obs: times the mean squared entry of the gradients.")] = 0.01,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="obs: ignore correlations beyond so many weights. Default: none ignored.")
    ] = None,
    memory: Annotated[
        str, typer.Option(callback=_memory, help="obs: for gradients; more are worked off in parts.")
    ] = "4GB",
    epochs: Annotated[int, typer.Option(min=0, help="hesso: train so long while groups fade out; 0: cut at once.")] = 0,
    lr: Annotated[float, typer.Option(help="hesso: of AdamW, with --epochs.")] = 1e-3,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="hesso: of training. Default: the loader's; 4 sequences.")
    ] = None,
    held_out: HeldOut = None,
    layers: Layers = None,
    max_examples: MaxExamples = None,
    max_held_out: MaxHeldOut = None,
    max_length: MaxLength = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="obs: measure pruning by magnitude, too.")
    ] = True,
    seed: Seed = 0,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Prune a model, and measure loss and accuracy or perplexity on held-out examples before and after.

    obs (Optimal Brain Surgeon) needs no training: weights become zero and the others make up for them. hesso cuts whole
    channels and heads, which makes the model smaller and faster but needs training: give --epochs, or train the result.
    OUT gets the weights with their zeros in the model's own format, and compression.json; with hesso also
    smaller.safetensors, the cut network's.

    Example: hesse compress prune runs/model --data train.jsonl --sparsity 0.5 --out runs/model-half
    """  # noqa: DOC501 - it is the help text
    from hesse.cli.compress.groups import Training
    from hesse.cli.compress.output import check_folder_target, show_table, whole_folder, write_model, write_report
    from hesse.cli.compress.subject import announce, baseline, load_subject
    from hesse.cli.compress.surgeon import Surgery
    from hesse.errors import ArgumentError
    from hesse.io import save_tensors

    if method == "hesso" and pattern != "unstructured":
        raise ArgumentError(f"pattern: {pattern} is of single weights, and hesso cuts whole channels; leave it out")
    if method == "obs" and epochs:
        raise ArgumentError("epochs: obs does not train; take --method hesso, or leave --epochs out")
    if not 0 < lr < float("inf"):
        raise ArgumentError(f"lr: expected a finite number > 0, got {lr}")
    if not 0 < damping < float("inf"):
        raise ArgumentError(f"damping: expected a finite number > 0, got {damping}")
    check_folder_target(out, overwrite=overwrite)
    units = _read_pattern(pattern)
    if sparsity > units.max_sparsity:
        raise ArgumentError(f"sparsity: {pattern} allows at most {units.max_sparsity:g}, got {sparsity:g}")
    subject = load_subject(
        model,
        data,
        held_out,
        layers=layers,
        max_examples=max_examples,
        max_held_out=max_held_out,
        max_length=max_length,
        revision=revision,
        seed=seed,
    )
    announce(subject)
    before = baseline(subject)
    many = gradients or (32 if subject.is_language_model else 256)
    if method == "obs":
        outcome = _single_weights(
            subject,
            before,
            sparsity,
            Surgery(
                units,
                ("layer" if subject.is_language_model else "global") if scope == "auto" else scope,
                many,
                rounds or (4 if subject.is_language_model else 16),
                damping,
                block_size,
                seed,
            ),
            parse_size(memory),
            compare=compare,
        )
    else:
        training = Training(epochs, lr, batch_size or subject.batch_size, seed) if epochs else None
        outcome = _channels(subject, before, sparsity, many, seed, training)
    report = {
        "command": "prune",
        "model": model,
        "out": str(out),
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "held_out": subject.held_out_from,
        "before": before.to_dict(),
        **outcome.fields,
    }
    with whole_folder(out) as folder:
        write_model(subject, folder)
        if outcome.smaller is not None:
            state = {name: tensor.detach() for name, tensor in outcome.smaller.state_dict().items()}
            save_tensors(folder / "smaller.safetensors", state)
        write_report(folder, report)
    if as_json:
        emit_json(report)
        return
    show_table("Held-out examples, before and after pruning", outcome.head, outcome.rows)
    say(f"wrote {out}")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a method did, for the report and for the table."""

    fields: dict[str, Any]
    head: list[str]
    rows: list[list[str]]
    smaller: Any = None  # the cut network, where there is one


def _read_pattern(text: str) -> "Pattern":
    from hesse.compress import Blocks, NOfM, Unstructured

    if text == "unstructured":
        return Unstructured()
    first, second = map(int, re.split("[:x]", text))
    return NOfM(first, second) if ":" in text else Blocks(first, second)


def _single_weights(
    subject: "Subject", before: "Quality", sparsity: float, surgery: "Surgery", memory: int, *, compare: bool
) -> _Outcome:
    from hesse.cli.compress.output import quality_rows, spoken_warnings
    from hesse.cli.compress.subject import quality
    from hesse.cli.compress.surgeon import by_magnitude, check_pattern, memory_parts, operate
    from hesse.errors import ArgumentError

    check_pattern(subject, surgery.pattern)
    parts = memory_parts(subject, surgery, memory)
    if len(parts) > 1:
        if surgery.scope == "global":
            raise ArgumentError(
                f"memory: the gradients fit in {len(parts)} parts only, whose weights cannot be ranked together; "
                "take --scope layer, more --memory, or fewer --gradients"
            )
        say(f"the gradients do not fit together: {len(parts)} parts, one after the other")
    with spoken_warnings():
        plain = quality(subject, by_magnitude(subject, sparsity, surgery)) if compare else None
        operate(subject, sparsity, parts, surgery)
        after = quality(subject, subject.module)
    parameters = dict(subject.module.named_parameters())
    total = sum(parameters[name].numel() for name in subject.weights)
    left = sum(int(parameters[name].count_nonzero()) for name in subject.weights)
    columns = [before, after, *([] if plain is None else [plain])]
    rows = quality_rows(columns)
    rows.append(["weights left", f"{total:,}", f"{left:,}", *([] if plain is None else ["as many"])])
    fields = {
        "after": after.to_dict(),
        "magnitude": None if plain is None else plain.to_dict(),
        "weights": {"before": total, "after": left},
        "parts": len(parts),
    }
    return _Outcome(fields, ["", "before", "after", *([] if plain is None else ["by magnitude"])], rows)


def _channels(
    subject: "Subject", before: "Quality", sparsity: float, num_grads: int, seed: int, training: "Training | None"
) -> _Outcome:
    from hesse.cli.compress.groups import cut_at_once, fade_out, group_graph
    from hesse.cli.compress.output import quality_rows, spoken_warnings
    from hesse.cli.compress.subject import quality
    from hesse.compress import slim_report

    original = copy.deepcopy(subject.module)
    graph = group_graph(subject)
    with spoken_warnings():
        if training is None:
            cut_at_once(subject, graph, sparsity, num_grads=num_grads, seed=seed)
        else:
            fade_out(subject, graph, sparsity, training)
        found = slim_report(graph)
    after = quality(subject, found.module)
    seconds = _seconds(subject, (original, found.module))
    groups = {"before": graph.num_groups, "after": graph.num_groups - int(graph.zero_groups().sum())}
    if training is None:
        say("cut without training: to get the loss back, train the result, or cut while training with --epochs")
    rows = quality_rows([before, after])
    rows.append(["channels and heads", *(f"{count:,}" for count in groups.values())])
    rows.append(["parameters", *(f"{count:,}" for count in found.num_parameters)])
    rows.append(["multiply-adds, 1 example", *(f"{count // 2:,}" for count in found.flops)])
    rows.append(["milliseconds a batch", *(f"{1e3 * value:.3g}" for value in seconds)])
    fields = {
        "after": after.to_dict(),
        "trained": None if training is None else {"epochs": training.epochs, "lr": training.lr},
        "groups": groups,
        "parameters": dict(zip(("before", "after"), found.num_parameters, strict=True)),
        "flops": dict(zip(("before", "after"), found.flops, strict=True)),
        "seconds": dict(zip(("before", "after"), seconds, strict=True)),
        "output_difference": found.difference,
    }
    return _Outcome(fields, ["", "before", "after"], rows, found.module)


def _seconds(subject: "Subject", models: tuple[Any, Any]) -> list[float]:
    # median times of one batch, the two models in turn so that a busy machine slows both alike
    import torch

    from hesse.cli.compress.subject import batches

    batch = batches(subject.held_out, subject.batch_size)[0]
    clocks: list[list[float]] = [[], []]
    with torch.no_grad():
        for _ in range(7):
            for model, clock in zip(models, clocks, strict=True):
                start = time.perf_counter()
                subject.outputs(model, batch)
                clock.append(time.perf_counter() - start)
    return [statistics.median(clock) for clock in clocks]
