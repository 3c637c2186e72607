"""`hesse curvature report`: spectrum, trace, layers, noise, learning rates and stability of a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hesse.cli._report import emit_json, say

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    if ":" in model and not Path(model).exists():
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


def from_factory(name: str) -> "tuple[nn.Module, Any, Any, Any]":
    """Call the user's factory.

    Parameters
    ----------
    name : str
        "package.module:function"; modules of the working folder are found too.

    Returns
    -------
    tuple
        Model in evaluation mode, loss_fn(model, batch), loader, and the loss's name where its stability can be judged.

    Raises
    ------
    ArgumentError
        If there is no such function, or it does not return a model, a loss and a loader.
    ModuleNotFoundError
        If the module is there, but one that it imports is not.
    """
    import sys
    from importlib import import_module

    from torch import nn

    from hesse.errors import ArgumentError

    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but not what it imports
        raise ArgumentError(f"model: there is no module {module_name!r}, nor a file of that name") from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        raise ArgumentError(f"model: {module_name} has no function {function_name!r}")
    made = factory()
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ArgumentError(f"model: {name} must return (model, loss, loader), got {type(made).__name__}")
    network, loss, loader = made
    named = None
    if isinstance(loss, nn.MSELoss) and loss.reduction == "mean":
        named = "mse"
    if isinstance(loss, nn.CrossEntropyLoss) and loss.reduction == "mean" and loss.weight is None:
        named = "cross_entropy" if loss.label_smoothing == 0 else None

    def loss_fn(model: Any, batch: Any) -> "Tensor":
        return loss(model(batch[0]), batch[1])

    return network.eval(), loss_fn, loader, named


def _language_model(
    model: str, data: str, max_sequences: int, max_length: int | None, dtype: str, revision: str | None
) -> tuple[Any, Any, list[Any]]:
    # the mean over sequences of their mean loss a token: every sequence is an example
    from torch.nn import functional

    from hesse.cli._model import cut, load, local_or_id
    from hesse.errors import ArgumentError
    from hesse.influence.sequences import collate, read_rows

    rows = read_rows(data)
    network, tokenizer = load(
        {"model": local_or_id(model), "revision": revision, "dtype": dtype}, trust_remote_code=False
    )
    every, _ = cut(rows, network, tokenizer, max_length)
    ignored = -100
    sequences = [sequence for sequence in every if (sequence.labels[1:] != ignored).any()]
    if len(sequences) < len(every):
        say(f"{len(every) - len(sequences):,} sequences hold no token to predict, and are left out")
    if not sequences:
        raise ArgumentError(f"data: {data} holds no sequence with a token to predict")
    sequences = sequences[:max_sequences]

    def loss_fn(model: Any, batch: dict[str, "Tensor"]) -> "Tensor":
        # padding is on the right, where causal attention never looks: no mask is needed
        logits, labels = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
        terms = functional.cross_entropy(logits.mT, labels, ignore_index=ignored, reduction="none")
        return (terms.sum(1) / (labels != ignored).sum(1)).mean()

    batches: list[Any] = []
    for start in range(0, len(sequences), 8):
        padded = collate(sequences[start : start + 8])
        batches.append({"input_ids": padded["input_ids"], "labels": padded["labels"]})
    return network, loss_fn, batches
