"""From the command line's strings to a model and an `Influence`; shared by fit and score."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesse.cli._report import say

if TYPE_CHECKING:
    from torch import Tensor

    from hesse.influence.engine import Influence
    from hesse.influence.sequences import Row, Sequence

__all__ = ["build", "cut", "load", "local_or_id", "predictable", "sequence_loss", "token_losses"]


def local_or_id(name: str) -> str:
    """Return the absolute path of a model that is here, and a hub id as it is.

    Parameters
    ----------
    name : str
        As typed.

    Returns
    -------
    str
        What another command, started elsewhere, can load.
    """
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def load(info: Mapping[str, Any], *, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load the model and tokenizer that a run is about, without bars when stderr is no terminal.

    Parameters
    ----------
    info : mapping
        With ``model``, ``revision`` and ``dtype``, as fit stores them.
    trust_remote_code : bool
        From this command's own flag, never from a file.

    Returns
    -------
    tuple
        Model in eval mode, and tokenizer.
    """
    from hesse._optional import require
    from hesse.influence.huggingface import load_model

    if not sys.stderr.isatty():
        require("transformers.utils.logging", extra="hf", feature="loading a model").disable_progress_bar()
    return load_model(
        info["model"], dtype=info["dtype"], revision=info.get("revision"), trust_remote_code=trust_remote_code
    )


def cut(rows: "list[Row]", model: Any, tokenizer: Any, max_length: int | None) -> "tuple[list[Sequence], int]":
    """Tokenise rows, cut to a length that the model can take, and say how many there are.

    Parameters
    ----------
    rows : list of dict
        From `hesse.influence.read_rows`.
    model : PreTrainedModel
        Knows its positions.
    tokenizer : PreTrainedTokenizer
        Of the model.
    max_length : int, optional
        Tokens a sequence. Default: 512, or the model's positions if fewer.

    Returns
    -------
    sequences : list of Sequence
        In order.
    length : int
        What they were cut to.

    Raises
    ------
    ArgumentError
        If the model has fewer positions.
    """
    from hesse.errors import ArgumentError
    from hesse.influence.huggingface import default_max_length
    from hesse.influence.sequences import tokenize_rows

    length = max_length or default_max_length(model)
    most = default_max_length(model, length)
    if length > most:
        raise ArgumentError(f"max_length: the model has {most:,} positions, got {length:,}")
    sequences = tokenize_rows(rows, tokenizer, length)
    say(f"{len(rows):,} rows, {len(sequences):,} sequences of at most {length:,} tokens")
    return sequences, length


def predictable(sequences: "list[Sequence]", data: str) -> "list[Sequence]":
    """Leave out sequences without a token to predict, whose mean loss is not defined, and say how many.

    Parameters
    ----------
    sequences : list of Sequence
        From `cut`.
    data : str
        Where they are from, for the message.

    Returns
    -------
    list of Sequence
        In order, at least one.

    Raises
    ------
    ArgumentError
        If none is left.
    """
    from hesse.errors import ArgumentError
    from hesse.influence.sequences import IGNORED

    kept = [sequence for sequence in sequences if (sequence.labels[1:] != IGNORED).any()]
    if len(kept) < len(sequences):
        say(f"{len(sequences) - len(kept):,} sequences hold no token to predict, and are left out")
    if not kept:
        raise ArgumentError(f"data: {data} holds no sequence with a token to predict")
    return kept


def token_losses(model: Any, batch: "Mapping[str, Tensor]") -> "tuple[Tensor, Tensor]":
    """Loss of every token that is predicted.   Shapes: B sequences of T tokens.

    Parameters
    ----------
    model : callable
        A causal language model, or what stands in for it.
    batch : mapping of str to Tensor, shape (B, T)
        ``input_ids`` and ``labels``, padded on the right, where causal attention never looks: no mask is needed.

    Returns
    -------
    losses : Tensor, shape (B, T - 1)
        Nats; 0 where nothing is predicted.
    counted : Tensor of bool, shape (B, T - 1)
        Where something is.
    """
    from torch.nn import functional

    from hesse.influence.sequences import IGNORED

    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.mT, labels, ignore_index=IGNORED, reduction="none")
    return losses, labels != IGNORED


def sequence_loss(model: Any, batch: "Mapping[str, Tensor]") -> "Tensor":
    """Mean over sequences of their mean loss a token: every sequence is an example.

    Parameters
    ----------
    model : callable
        As of `token_losses`.
    batch : mapping of str to Tensor
        As of `token_losses`.

    Returns
    -------
    Tensor, shape ()
        Nats.
    """
    losses, counted = token_losses(model, batch)
    return (losses.sum(1) / counted.sum(1)).mean()


def build(model: Any, settings: Mapping[str, Any], modules: str) -> "Influence":
    """Make an `Influence` from settings as a run's manifest spells them.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    settings : mapping
        ``strategy``, ``fisher``, ``damping`` (as text), ``positions``, ``blocks`` and ``seed``; of strategy "source"
        also ``segments``, and under ``info`` the folder of the record.
    modules : str
        Which layers.

    Returns
    -------
    Influence
        With the loss of a causal language model.
    """
    from hesse.influence.engine import Influence
    from hesse.influence.factors import parse_damping
    from hesse.influence.strategy import Source

    strategy = settings["strategy"]
    if strategy == "source":
        strategy = Source(settings["info"]["record"], settings["segments"])
    return Influence(
        model,
        modules=modules,
        strategy=strategy,
        fisher=settings["fisher"],
        blocks=settings["blocks"],
        damping=parse_damping(settings["damping"]),
        positions=settings["positions"],
        seed=settings["seed"],
    )
