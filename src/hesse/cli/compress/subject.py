"""What the compress commands work on: a model, its loss, examples to calibrate on, and others held out to judge by.

Shapes: N examples, B of them in a batch, T tokens.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hesse.cli._factory import from_factory, names_function, result_of
from hesse.cli._model import cut, load, local_or_id, predictable, sequence_loss, token_losses
from hesse.cli._report import say
from hesse.compress import quantizable_weights
from hesse.curvature.batches import as_batches, to_device
from hesse.curvature.fisher import Likelihood
from hesse.errors import ArgumentError, NumericalError

if TYPE_CHECKING:
    from hesse.influence.sequences import Row

__all__ = ["Quality", "Subject", "announce", "baseline", "batches", "load_subject", "num_examples", "quality", "take"]

_EXAMPLES = 512  # what HAWQ-V2 calibrates on
_SEQUENCES = 128  # of a language model, whose products take a hundred times longer
_HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what it is measured on.

    Attributes
    ----------
    name : str
        As typed.
    module : nn.Module
        In evaluation mode.
    loss_fn : callable
        (model, batch) -> scalar, the mean over examples; of a language model, over sequences.
    calibration, held_out : (inputs, targets), or dict of Tensor
        Tensors with a leading axis of examples, on the module's device.
    held_out_from : str
        In words.
    weights : tuple of str
        Names of the weights that may be compressed.
    batch_size : int
        Examples to a batch.
    likelihood : str, optional
        What the outputs parametrise, where the loss says so.
    tokenizer : object, optional
        Of a language model; None for a factory's.
    """

    name: str
    module: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    calibration: Any
    held_out: Any
    held_out_from: str
    weights: tuple[str, ...]
    batch_size: int
    likelihood: Likelihood | None
    tokenizer: Any = None

    @property
    def is_language_model(self) -> bool:
        """Whether it reads tokens."""
        return self.tokenizer is not None

    def outputs(self, model: Any, batch: Any) -> Tensor:
        """Call the model.

        Parameters
        ----------
        model : callable
            The module, or what stands in for it.
        batch : object
            Of the data.

        Returns
        -------
        Tensor
            Logits of the tokens that are predicted, (positions, vocabulary); or what the factory's model returns.
        """
        if not self.is_language_model:
            return model(batch[0])
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        return logits[batch["labels"][:, 1:] != _ignored()]

    def example(self) -> Any:
        """Make the arguments of one small call, as tracing needs them.

        Returns
        -------
        Tensor or dict
            One example.
        """
        if self.is_language_model:
            return {"input_ids": self.calibration["input_ids"][:1, :8], "use_cache": False}
        return self.calibration[0][:1]


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a model does on held-out examples."""

    loss: float  # nats a token for language models, else what the loss is
    accuracy: float | None = None  # share of labels told right, where targets are labels
    perplexity: float | None = None  # of language models

    def to_dict(self) -> dict[str, float | None]:
        """Lay it out for JSON.

        Returns
        -------
        dict
            What was measured; None where it is not finite.
        """
        found = {"loss": self.loss, "accuracy": self.accuracy, "perplexity": self.perplexity}
        return {k: v if math.isfinite(v) else None for k, v in found.items() if v is not None}


def load_subject(
    model: str,
    data: str | None,
    held_out: str | None,
    *,
    layers: str | None,
    max_examples: int | None,
    max_held_out: int | None,
    max_length: int | None,
    revision: str | None,
    seed: int,
) -> Subject:
    """Read model and data as the command line names them.

    Parameters
    ----------
    model : str
        "module:factory", or a language model's folder, file or hub id.
    data : str, optional
        Texts, for a language model.
    held_out : str, optional
        Other texts, or "module:function" that returns a loader. Default: a random fifth of the data.
    layers : str, optional
        Regular expression; weights whose name it is found in. Default: all but a language model's head.
    max_examples, max_held_out : int, optional
        How many at most, a random subset. Default: 512 and all; of a language model's sequences 128 each.
    max_length : int, optional
        Tokens a sequence.
    revision : str, optional
        On the hub.
    seed : int
        Of what is held out and which subset is used.

    Returns
    -------
    Subject
        On the device that the model is on.

    Raises
    ------
    ArgumentError
        If an argument does not fit, or there are too few examples to hold any out.
    """
    pattern = _compiled(layers)
    draw = torch.Generator().manual_seed(seed)
    if names_function(model):
        if data is not None:
            raise ArgumentError("data: a factory brings its own loader; leave --data out")
        return _from_factory(model, held_out, pattern, max_examples, max_held_out, draw)
    if data is None:
        raise ArgumentError("data: a language model needs --data, the texts to measure its loss on")
    return _from_texts(model, data, held_out, pattern, max_examples, max_held_out, max_length, revision, draw)


def _compiled(layers: str | None) -> re.Pattern[str] | None:
    try:
        return None if layers is None else re.compile(layers)
    except re.error as error:
        raise ArgumentError(f"layers: {layers!r} is no regular expression ({error})") from error


def _from_factory(
    model: str,
    held_out: str | None,
    pattern: re.Pattern[str] | None,
    max_examples: int | None,
    max_held_out: int | None,
    draw: torch.Generator,
) -> Subject:
    module, loss_fn, loader, named = from_factory(model)
    examples, size = _joined("the loader of the factory", loader)
    if held_out is None:
        order = torch.randperm(num_examples(examples), generator=draw)
        kept, others = _split(order, "examples")
        fresh, origin = take(examples, others), "a random fifth of the loader's examples"
        examples = take(examples, kept)
    else:
        if not names_function(held_out):
            raise ArgumentError(f"held_out: expected module:function that returns a loader, got {held_out!r}")
        fresh, _ = _joined(held_out, result_of(held_out, "held_out"))
        origin = held_out
    device = next(iter(module.parameters()), torch.empty(0)).device
    kinds: dict[str | None, Likelihood] = {"cross_entropy": "categorical", "mse": "gaussian"}
    return Subject(
        model,
        module,
        loss_fn,
        to_device(_subset(examples, max_examples or _EXAMPLES, draw), device),
        to_device(_subset(fresh, max_held_out, draw), device),
        origin,
        _weights(module, pattern, ()),
        size,
        kinds.get(named),
    )


def _joined(where: str, loader: Any) -> tuple[Any, int]:
    # all examples of a loader as one (inputs, targets), and the size of its batches
    listed = list(as_batches(where, loader))
    for batch in listed:
        if not (
            isinstance(batch, tuple | list)
            and len(batch) == 2
            and all(isinstance(part, Tensor) and part.ndim for part in batch)
        ):
            raise ArgumentError(f"model: {where} must give batches (inputs, targets) of tensors")
        if len(batch[0]) != len(batch[1]):
            raise ArgumentError(f"model: {where} gives {len(batch[0])} inputs with {len(batch[1])} targets")
    if len({(tuple(x.shape[1:]), tuple(y.shape[1:])) for x, y in listed}) != 1:
        raise ArgumentError(f"model: {where} gives examples of different shapes, which cannot be drawn anew")
    return (torch.cat([x for x, _ in listed]), torch.cat([y for _, y in listed])), len(listed[0][0])


def _from_texts(
    model: str,
    data: str,
    held_out: str | None,
    pattern: re.Pattern[str] | None,
    max_examples: int | None,
    max_held_out: int | None,
    max_length: int | None,
    revision: str | None,
    draw: torch.Generator,
) -> Subject:
    from hesse.influence.sequences import read_rows

    rows = read_rows(data)
    if held_out is None:  # whole documents, before they are cut into sequences
        kept, others = _split(torch.randperm(len(rows), generator=draw), "rows")
        fresh, origin = [rows[i] for i in others.tolist()], f"a random fifth of the rows of {data}"
        rows = [rows[i] for i in kept.tolist()]
    else:
        if names_function(held_out):
            raise ArgumentError(f"held_out: a language model needs a file of texts, got {held_out!r}")
        fresh, origin = read_rows(held_out), held_out
    info = {"model": local_or_id(model), "revision": revision, "dtype": "float32"}
    module, tokenizer = load(info, trust_remote_code=False)
    if getattr(module, "quantization_method", None) == "gguf":
        # its weights are plain numbers by now, and transformers would not save what says that it is quantised
        module.hf_quantizer, module.is_quantized = None, False
        del module.config.quantization_config
    device = next(module.parameters()).device
    parts = [
        _sequences(chosen, where, module, tokenizer, max_length, most or _SEQUENCES, draw)
        for chosen, where, most in ((rows, data, max_examples), (fresh, origin, max_held_out))
    ]
    head = module.get_output_embeddings()
    return Subject(
        model,
        module,
        lambda m, batch: sequence_loss(m, _trimmed(batch)),
        to_device(parts[0], device),
        to_device(parts[1], device),
        origin,
        _weights(module, pattern, () if head is None else (head,)),
        4,
        "categorical",
        tokenizer,
    )


def _sequences(
    rows: "list[Row]",
    where: str,
    module: Any,
    tokenizer: Any,
    max_length: int | None,
    most: int,
    draw: torch.Generator,
) -> dict[str, Tensor]:
    from hesse.influence.sequences import collate

    every, _ = cut(rows, module, tokenizer, max_length)
    found = predictable(every, where)
    order = torch.randperm(len(found), generator=draw)[:most]
    padded = collate([found[i] for i in sorted(order.tolist())])
    return {"input_ids": padded["input_ids"], "labels": padded["labels"]}


def _trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    # without the columns on the right where nothing is predicted any more
    used = int((batch["labels"] != _ignored()).any(0).nonzero().max()) + 1
    return {name: tensor[:, :used] for name, tensor in batch.items()}


def _ignored() -> int:
    from hesse.influence.sequences import IGNORED

    return IGNORED


def _weights(module: nn.Module, pattern: re.Pattern[str] | None, heads: Sequence[nn.Module]) -> tuple[str, ...]:
    # the names of a model's weights, without those that its head shares or owns unless they are asked for
    spared = {id(parameter) for head in heads for parameter in head.parameters()}
    parameters = dict(module.named_parameters())
    names = [w.name for w in quantizable_weights(module)]
    if pattern is None:
        names = [name for name in names if id(parameters[name]) not in spared]
        if not names:
            raise ArgumentError("model: it has no weight to compress beside its head; name that one by --layers")
        return tuple(names)
    found = tuple(name for name in names if pattern.search(name))
    if not found:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise ArgumentError(f"layers: {pattern.pattern!r} is found in none of the weights: {shown}")
    return found


def _split(order: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if len(order) < 2:
        raise ArgumentError(f"data: {len(order)} {what} leave none to hold out; give others as --held-out")
    count = max(1, round(_HELD_OUT_SHARE * len(order)))
    return order[count:].sort().values, order[:count].sort().values


def _subset(examples: Any, most: int | None, draw: torch.Generator) -> Any:
    n = num_examples(examples)
    if most is None or n <= most:
        return examples
    return take(examples, torch.randperm(n, generator=draw)[:most].sort().values)


def take(examples: Any, index: Tensor) -> Any:
    """Pick examples.

    Parameters
    ----------
    examples : tuple or dict of Tensor
        Of a `Subject`.
    index : Tensor of int64, shape (B,)
        Which.

    Returns
    -------
    tuple or dict of Tensor
        Of the same structure.
    """
    return tree_map(lambda leaf: leaf[index.to(leaf.device)], examples)


def num_examples(examples: Any) -> int:
    """Count examples.

    Parameters
    ----------
    examples : tuple or dict of Tensor
        Of a `Subject`.

    Returns
    -------
    int
        N.
    """
    return len(tree_leaves(examples)[0])


def batches(examples: Any, size: int) -> list[Any]:
    """Cut examples into batches, in order.

    Parameters
    ----------
    examples : tuple or dict of Tensor
        Of a `Subject`.
    size : int
        B; the last batch may be smaller.

    Returns
    -------
    list
        Of the same structure. Of language models, without the padding that a batch does not need.
    """
    pieces = [
        tree_map(lambda leaf, i=start: leaf[i : i + size], examples) for start in range(0, num_examples(examples), size)
    ]
    return [_trimmed(piece) for piece in pieces] if isinstance(examples, dict) else pieces


@torch.no_grad()
def quality(subject: Subject, model: Any) -> Quality:
    """Measure a model on the held-out examples.

    Parameters
    ----------
    subject : Subject
        Whose examples.
    model : callable
        The subject's module, or a compressed one.

    Returns
    -------
    Quality
        Means over examples, or over tokens.
    """
    loss, right, count, labels = 0.0, 0, 0, 0
    for batch in batches(subject.held_out, subject.batch_size):
        if subject.is_language_model:
            losses, counted = token_losses(model, batch)
            loss, count = loss + float(losses.double().sum()), count + int(counted.sum())
            continue
        outputs = model(batch[0])
        here = len(batch[0])
        loss, count = loss + float(subject.loss_fn(lambda _, known=outputs: known, batch)) * here, count + here
        targets = batch[1]
        if (
            not (targets.is_floating_point() or targets.is_complex())
            and isinstance(outputs, Tensor)
            and outputs.shape[:1] + outputs.shape[2:] == targets.shape
        ):
            right, labels = right + int((outputs.argmax(1) == targets).sum()), labels + targets.numel()
    mean = loss / count
    if subject.is_language_model:
        return Quality(mean, perplexity=math.exp(mean) if mean < 700 else math.inf)
    return Quality(mean, accuracy=right / labels if labels else None)


def baseline(subject: Subject) -> Quality:
    """Measure the model as it is, before anything is done to it.

    Parameters
    ----------
    subject : Subject
        As loaded.

    Returns
    -------
    Quality
        On the held-out examples.

    Raises
    ------
    NumericalError
        If the loss is not finite.
    """
    found = quality(subject, subject.module)
    if not math.isfinite(found.loss):
        raise NumericalError(f"model: its loss on held-out examples is {found.loss}: look at model and data first")
    return found


def announce(subject: Subject) -> None:
    """Say what is measured on what.

    Parameters
    ----------
    subject : Subject
        As loaded.
    """
    parameters = dict(subject.module.named_parameters())
    entries = sum(parameters[name].numel() for name in subject.weights)
    what = "sequences" if subject.is_language_model else "examples"
    say(
        f"{len(subject.weights):,} weights of {entries:,} entries; {num_examples(subject.calibration):,} {what} to "
        f"calibrate on, {num_examples(subject.held_out):,} held out: {subject.held_out_from}"
    )
