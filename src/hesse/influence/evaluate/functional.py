"""A model evaluated at many sets of weights at once.   Shapes: K sets of weights, B sequences of a batch, Q queries."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError
from hesse.influence.checks import check_supervised
from hesse.influence.examples import Examples, as_examples, plan_batches
from hesse.influence.objective import Loss, LossOutput
from hesse.influence.passes import Measurement
from hesse.influence.swapping import call_with, differentiable_attention

__all__ = ["Weights", "batches_of", "measure_many", "measure_tokens"]

Weights = dict[str, Tensor]
"""Parameter name to tensor; a stack of K sets has one more dimension in front."""


def batches_of(
    examples: Examples, model: nn.Module, batch_tokens: int = 4096
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Cut a data set into batches of sequences of like length, on the model's device.

    Parameters
    ----------
    examples : Examples
        The data set.
    model : nn.Module
        Tells the device.
    batch_tokens : int, default 4096
        Padded tokens a batch.

    Yields
    ------
    indices : list of int
        Which sequences.
    batch : dict of str to Tensor
        Collated.
    """
    device = next(model.parameters()).device
    for indices in plan_batches(examples.lengths, range(len(examples)), batch_tokens):
        yield indices, {key: value.to(device) for key, value in examples.batch(indices).items()}


def measure_many(
    model: nn.Module,
    stack: Mapping[str, Tensor],
    queries: Any,
    loss: Loss,
    *,
    measurement: Measurement | None = None,
    at_once: int = 64,
    batch_tokens: int = 4096,
) -> Tensor:
    """f_q of every query at every set of weights.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    stack : mapping of str to Tensor
        K sets of weights; those not named are the model's.
    queries : Examples, or anything `as_examples` takes
        Labels on the completion only.
    loss : Loss
        Of the training.
    measurement : callable, optional
        (model, batch) -> (B,). Default: minus the loss, the log-probability of the labels in nats.
    at_once : int, default 64
        Sets evaluated by one vectorised call; memory grows with it.
    batch_tokens : int, default 4096
        Padded tokens a batch.

    Returns
    -------
    Tensor, shape (K, Q)
        float64, on the CPU.
    """
    asked = as_examples(queries, argument="queries")
    if measurement is None:
        check_supervised(asked, loss)
    function = _log_probability(loss) if measurement is None else measurement
    values = torch.zeros(len(next(iter(stack.values()))), len(asked), dtype=torch.float64)
    for indices, batch in batches_of(asked, model, batch_tokens):
        for rows, found in _vectorised(model, function, stack, batch, at_once):
            values[rows, indices] = found.double().cpu()
    return values


def measure_tokens(
    model: nn.Module, stack: Mapping[str, Tensor], queries: Any, loss: Loss, *, at_once: int = 64
) -> list[Tensor]:
    """Log-probability of every supervised token of every query, at every set of weights.

    Parameters
    ----------
    model, stack, queries, loss, at_once : see `measure_many`
        As there.

    Returns
    -------
    list of Tensor, shapes (K, tokens)
        One a query, float64, in nats; the sum over tokens is f.
    """
    asked = as_examples(queries, argument="queries")
    check_supervised(asked, loss)
    out: list[Tensor] = [torch.zeros(0)] * len(asked)
    for number in range(len(asked)):
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in asked.batch([number]).items()}
        valid = loss(model, batch).valid[0]
        found = [part for _rows, part in _vectorised(model, _token_log_probabilities(loss), stack, batch, at_once)]
        out[number] = torch.cat(found)[:, 0, valid].double().cpu()
    return out


@torch.no_grad()
def _vectorised(
    model: nn.Module, function: Any, stack: Mapping[str, Tensor], batch: Any, at_once: int
) -> list[tuple[slice, Tensor]]:
    count = len(next(iter(stack.values())))
    if at_once < 1:
        raise ArgumentError(f"at_once: expected >= 1, got {at_once}")
    out = []
    for start in range(0, count, at_once):
        rows = slice(start, min(start + at_once, count))
        part = {name: tensor[rows] for name, tensor in stack.items()}
        with differentiable_attention():  # the only kernel that vectorises over weights
            out.append((rows, torch.vmap(lambda weights: call_with(model, function, weights, batch))(part)))
    return out


def _token_log_probabilities(loss: Loss) -> Measurement:
    return lambda model, batch: -loss(model, batch).per_token


def _log_probability(loss: Loss) -> Measurement:
    def measure(model: nn.Module, batch: Any) -> Tensor:
        output: LossOutput = loss(model, batch)
        return -output.per_token.sum(1)

    return measure
