"""What `Influence` refuses before any work: arguments of the wrong kind, models and data that do not fit together."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.layers import TrackedLayer
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.examples import Examples, TokenExamples
from hesse.influence.mapped import Extremes, MappedExamples
from hesse.influence.objective import CausalLMLoss, Loss
from hesse.influence.streams import StreamExamples

__all__ = [
    "check_batching",
    "check_dtype",
    "check_loss",
    "check_ranking",
    "check_supervised",
    "check_tokens",
    "of_kind",
    "one_of",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def one_of(argument: str, value: str, allowed: Items[str]) -> None:
    """Refuse an unknown option.

    Parameters
    ----------
    argument : str
        What to call it.
    value : str
        As given.
    allowed : sequence of str
        All there are.

    Raises
    ------
    ArgumentError
        Naming them.
    """
    if value not in allowed:
        raise ArgumentError(f"{argument}: expected one of {', '.join(allowed)}, got {value!r}")


def of_kind(argument: str, value: object, kind: Any, words: str) -> None:
    """Refuse a value of another type.

    Parameters
    ----------
    argument : str
        What to call it.
    value : object
        As given.
    kind : type or tuple of types
        What it must be an instance of.
    words : str
        The same in words.

    Raises
    ------
    ArgumentTypeError
        With the type that came.
    """
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{argument}: expected {words}, got {type(value).__name__}")


def check_loss(loss: object, fisher: str) -> None:
    """Refuse what lacks a method of `Loss` that will be called.

    Parameters
    ----------
    loss : object
        As given.
    fisher : str
        "sampled" draws labels, "exact" needs the output Hessian.

    Raises
    ------
    ArgumentTypeError
        Naming the first that it lacks.
    """
    more = {"sampled": ("sample", "uniforms_per_position"), "exact": ("cotangents",)}
    for method in ("__call__", "positions", *more.get(fisher, ())):
        if not hasattr(loss, method):
            raise ArgumentTypeError(f"loss: expected a Loss, got {type(loss).__name__}, which has no {method}")


def check_dtype(dtype: torch.dtype, layers: Mapping[str, TrackedLayer]) -> None:
    """Refuse float16, whose range is too small for squared gradients, and tracked weights of several dtypes.

    Parameters
    ----------
    dtype : dtype
        Of the model's first parameter.
    layers : mapping of str to TrackedLayer
        All that are tracked.

    Raises
    ------
    ArgumentError
        Naming the dtype, or the first layer that differs.
    """
    if dtype not in _DTYPES:
        raise ArgumentError(f"model: expected float32, bfloat16 or float64, got {str(dtype).removeprefix('torch.')}")
    for name, layer in layers.items():
        weight = layer.module.weight
        if isinstance(weight, Tensor) and weight.dtype != dtype:
            raise ArgumentError(f"model: {name!r} is in {weight.dtype}, the model's first parameter in {dtype}")


def check_tokens(model: nn.Module, examples: Examples, argument: str) -> None:
    """Refuse token sequences that a model of transformers cannot look up.

    Parameters
    ----------
    model : nn.Module
        Others than those of transformers do not say what they know, and pass.
    examples : Examples
        Others than token sequences pass.
    argument : str
        What an error calls them.

    Raises
    ------
    ArgumentError
        Naming the first sequence with an unknown token, or with more tokens than the model has positions.
    """
    embeddings: Any = getattr(model, "get_input_embeddings", None)
    # a vision model has the method too, and raises from it
    if embeddings is None or not isinstance(examples, TokenExamples | MappedExamples | StreamExamples):
        return
    size = getattr(embeddings(), "num_embeddings", None)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(examples, TokenExamples):
        _check_extremes(examples.extremes(), size, positions, argument)
        return
    for sequence in examples.sequences:
        low, high = int(sequence.input_ids.min()), int(sequence.input_ids.max())
        if size is not None and not 0 <= low <= high < size:
            unknown = high if high >= size else low
            raise ArgumentError(
                f"{argument}: sequence {sequence.id!r} holds token {unknown}, but the model knows 0 to {size - 1}; was "
                "it cut by another model's tokenizer?"
            )
        if positions is not None and len(sequence) > positions:
            raise ArgumentError(
                f"{argument}: sequence {sequence.id!r} has {len(sequence)} tokens, more than the model's {positions} "
                "positions; cut it with tokenize_rows(..., max_length)"
            )


def _check_extremes(seen: Extremes | None, size: int | None, positions: int | None, argument: str) -> None:
    if seen is None:
        return
    if size is not None and not 0 <= seen.lowest <= seen.highest < size:
        raise ArgumentError(
            f"{argument}: it holds tokens {seen.lowest} to {seen.highest}, but the model knows 0 to {size - 1}; was it "
            "cut by another model's tokenizer?"
        )
    if positions is not None and seen.longest > positions:
        raise ArgumentError(
            f"{argument}: it holds a sequence of {seen.longest} tokens, more than the model's {positions} positions"
        )


def check_supervised(queries: Examples, loss: Loss) -> None:
    """Refuse an empty completion: its log-probability is 0 whatever the weights, and so would be its scores.

    Parameters
    ----------
    queries : Examples
        With ``labels``; those of a regression, which are floating, all count.
    loss : Loss
        Of a causal language model a first token never counts.

    Raises
    ------
    ArgumentError
        Naming the first query without a supervised token.
    """
    for number, name in enumerate(queries.ids):
        labels = queries.batch([number])["labels"]
        if labels.is_floating_point():
            continue
        counted = labels[:, 1:] if isinstance(loss, CausalLMLoss) else labels
        if not bool((counted != -100).any()):
            raise ArgumentError(f"queries: {name!r} has no supervised token, its completion is empty")


def check_ranking(query: int | str, k: int, sign: int, ids: Items[str]) -> int:
    """Find a query whose strongest rows are asked for, and refuse a list of nothing.

    Parameters
    ----------
    query : int or str
        Number or id.
    k : int
        Length of the list.
    sign : {1, -1}
        Proponents or opponents.
    ids : sequence of str
        Of all queries.

    Returns
    -------
    int
        Its number.

    Raises
    ------
    ArgumentError
        If the query is unknown, ``k < 1`` or the sign is neither.
    """
    if k < 1 or sign not in (1, -1):
        raise ArgumentError(f"topk: expected k >= 1 and sign 1 or -1, got k={k}, sign={sign}")
    if isinstance(query, str):
        if query not in ids:
            raise ArgumentError(f"query: no {query!r} among {', '.join(ids[:5])}")
        return ids.index(query)
    if not 0 <= query < len(ids):
        raise ArgumentError(f"query: expected 0 to {len(ids) - 1}, got {query}")
    return query


def check_batching(batch_tokens: int, batch_size: int | None, unit_size: int) -> None:
    """Refuse batches and units of nothing.

    Parameters
    ----------
    batch_tokens : int
        At least 1.
    batch_size : int, optional
        At least 1.
    unit_size : int
        At least 1.

    Raises
    ------
    ArgumentError
        With all three.
    """
    if batch_tokens < 1 or unit_size < 1 or (batch_size is not None and batch_size < 1):
        raise ArgumentError(
            f"batch_tokens, batch_size, unit_size: expected >= 1, got {batch_tokens}, {batch_size}, {unit_size}"
        )
