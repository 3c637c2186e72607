"""`hesse curvature report`: spectrum, trace, layers, noise, learning rates and stability of a trained model."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hesse.cli._factory import from_factory, names_function
from hesse.cli._report import emit_json, say

__all__ = ["report"]

Matrix = Literal["hessian", "ggn"]
Dtype = Literal["float32", "float64"]


def report(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file or hub id of a language model; or module:factory.")],
    data: Annotated[
        str | None, typer.Argument(help="For a language model: .jsonl, .txt, .parquet, or a data set's folder or id.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The HTML file; replaced if it exists.")] = Path("curvature.html"),
    matrix: Annotated[Matrix, typer.Option(help="ggn: the Gauss-Newton matrix, better with ReLU.")] = "hessian",
    eigenvalues: Annotated[int, typer.Option(min=1, help="How many, of largest magnitude.")] = 10,
    probes: Annotated[int, typer.Option(min=2, help="Products behind the traces.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="Lanczos steps behind the density.")] = 60,
    samples: Annotated[int, typer.Option(min=0, help="Examples looked at one by one for the noise; 0: none.")] = 400,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Largest eigenvalue of every layer.")] = True,
    lr: Annotated[float | None, typer.Option(help="Learning rate in use, to be judged.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size in use.")] = 32,
    momentum: Annotated[float, typer.Option(min=0.0, help="Momentum in use, of torch's SGD.")] = 0.0,
    max_sequences: Annotated[int, typer.Option(min=1, help="Sequences of the data to use, the first ones.")] = 256,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a sequence. Default: 512, or the model's positions if fewer.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the products of a language model.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    run: Annotated[Path | None, typer.Option("--run", help="Keep eigenpairs and density here, to resume.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure the curvature of a trained model's loss, and what follows for training. Writes an HTML page.

    "module:factory" names a function that returns (model, loss, loader): loss(outputs, targets), averaged over
    examples, and a loader of (inputs, targets) that does not shuffle. It is your code, and it is run.

    Example: hesse curvature report runs/model train.jsonl --eigenvalues 5 --out curvature.html
    """  # noqa: DOC501 - it is the help text
    from hesse._optional import require
    from hesse.curvature.diagnostics import curvature_report
    from hesse.curvature.report_page import write_curvature_page
    from hesse.errors import ArgumentError

    require("matplotlib", extra="plot", feature="hesse curvature report")  # before hours of work, not after
    if names_function(model):
        if data is not None:
            raise ArgumentError("data: a factory brings its own loader; leave DATA out")
        network, loss_fn, batches, named = from_factory(model)
    else:
        if data is None:
            raise ArgumentError("data: a language model needs DATA, the texts to measure its loss on")
        network, loss_fn, batches = _language_model(model, data, max_sequences, max_length, dtype, revision)
        named = None
    found = curvature_report(
        loss_fn,
        network,
        batches,
        matrix=matrix,
        num_eigenvalues=eigenvalues,
        num_probes=probes,
        density_steps=steps,
        num_samples=samples,
        layer_eigenvalues=layers,
        lr=lr,
        batch_size=batch_size,
        momentum=momentum,
        stability_loss=named,
        seed=seed,
        run=run,
    )
    entry = write_curvature_page(found, out, title=f"Curvature of {model}")
    if as_json:
        emit_json({"model": model, "out": str(out), **found.to_dict()})
    else:
        typer.echo(str(found))
        say(f"wrote {out} ({entry.size / 1024:,.0f} KiB)")


def _language_model(
    model: str, data: str, max_sequences: int, max_length: int | None, dtype: str, revision: str | None
) -> tuple[Any, Any, list[Any]]:
    from hesse.cli._model import cut, load, local_or_id, predictable, sequence_loss
    from hesse.influence.sequences import collate, read_rows

    rows = read_rows(data)
    network, tokenizer = load(
        {"model": local_or_id(model), "revision": revision, "dtype": dtype}, trust_remote_code=False
    )
    every, _ = cut(rows, network, tokenizer, max_length)
    sequences = predictable(every, data)[:max_sequences]
    batches: list[Any] = []
    for start in range(0, len(sequences), 8):
        padded = collate(sequences[start : start + 8])
        batches.append({"input_ids": padded["input_ids"], "labels": padded["labels"]})
    return network, sequence_loss, batches
