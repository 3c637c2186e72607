"""From the command line's strings to a model and an `Influence`; shared by fit and score."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesse.cli._report import say

if TYPE_CHECKING:
    from hesse.influence.engine import Influence
    from hesse.influence.sequences import Row, Sequence

__all__ = ["build", "cut", "load", "local_or_id"]


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


def build(model: Any, settings: Mapping[str, Any], modules: str) -> "Influence":
    """Make an `Influence` from settings as a run's manifest spells them.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    settings : mapping
        ``strategy``, ``fisher``, ``damping`` (as text), ``positions`` and ``seed``.
    modules : str
        Which layers.

    Returns
    -------
    Influence
        With the loss of a causal language model.
    """
    from hesse.influence.engine import Influence
    from hesse.influence.factors import parse_damping

    return Influence(
        model,
        modules=modules,
        strategy=settings["strategy"],
        fisher=settings["fisher"],
        blocks=settings.get("blocks", 1),
        damping=parse_damping(settings["damping"]),
        positions=settings["positions"],
        seed=settings["seed"],
    )
