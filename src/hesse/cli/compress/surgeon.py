"""Optimal Brain Surgeon on a model whose gradients may not fit in memory: then some weights at a time."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from hesse.cli.compress.subject import Subject, num_examples
from hesse.compress import OBSPruner, Pattern
from hesse.curvature import gradient_rows
from hesse.errors import ArgumentError, MemoryLimitError, ShapeError

__all__ = ["Surgery", "by_magnitude", "check_pattern", "memory_parts", "operate"]

_BYTES, _BYTES_OF_BLOCKS = 8, 24  # an entry of a gradient, and what OBSPruner keeps beside it
_CHUNK = 64  # examples to a vectorised pass
_SAMPLE = 8  # gradients that tell the scale of the damping


@dataclass(frozen=True, slots=True)
class Surgery:
    """How to prune: the options of `OBSPruner`, damping in units of the gradients' mean squared entry."""

    pattern: Pattern
    scope: Literal["global", "layer"]
    num_grads: int  # m, of single examples
    rounds: int
    damping: float
    block_size: int | None
    seed: int


def check_pattern(subject: Subject, pattern: Pattern) -> None:
    """Refuse, before any work, a pattern that a weight cannot be cut into.

    Parameters
    ----------
    subject : Subject
        Whose weights.
    pattern : Pattern
        What goes together.

    Raises
    ------
    ArgumentError
        If a shape does not fit.
    """
    parameters = dict(subject.module.named_parameters())
    for name in subject.weights:
        shape = tuple(parameters[name].shape)
        try:
            pattern.units(name, shape)
            pattern.groups(name, shape)
        except ShapeError as error:
            raise ArgumentError(
                f"pattern: {pattern} does not fit {name}, of shape {shape}; choose the weights that it fits by --layers"
            ) from error


def memory_parts(subject: Subject, surgery: Surgery, limit: int) -> list[list[str]]:
    """Cut the list of weights into runs whose gradients fit.

    Parameters
    ----------
    subject : Subject
        Whose weights, in the order of the model.
    surgery : Surgery
        How many gradients of each.
    limit : int
        Bytes for the gradients of a run.

    Returns
    -------
    list of list of str
        Each at least one.

    Raises
    ------
    MemoryLimitError
        If a single weight does not fit.
    """
    parameters = dict(subject.module.named_parameters())
    each = surgery.num_grads * (_BYTES if surgery.pattern.unit_size == 1 else _BYTES_OF_BLOCKS)
    parts: list[list[str]] = []
    room = 0
    for name in subject.weights:
        need = parameters[name].numel() * each
        if need > limit:
            raise MemoryLimitError(
                f"memory: {surgery.num_grads} gradients of {name} take {need / 1e9:.2f} GB, and the limit is "
                f"{limit / 1e9:.2f} GB; raise --memory, lower --gradients, or leave it out by --layers"
            )
        if need > room:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= need
    return parts


def operate(subject: Subject, sparsity: float, parts: Sequence[Sequence[str]], surgery: Surgery) -> None:
    """Prune the subject's module in place, a part after the other, each with gradients at what is left so far.

    Parameters
    ----------
    subject : Subject
        Whose module.
    sparsity : float
        Of every part.
    parts : sequence of sequence of str
        From `memory_parts`.
    surgery : Surgery
        How.

    Raises
    ------
    ArgumentError
        If there are fewer examples than gradients.
    """
    if num_examples(subject.calibration) < surgery.num_grads:
        raise ArgumentError(
            f"gradients: {surgery.num_grads} of single examples need as many, and there are "
            f"{num_examples(subject.calibration)}; lower --gradients, or give more data"
        )
    trained = {name: p.requires_grad for name, p in subject.module.named_parameters()}
    draw = torch.Generator().manual_seed(surgery.seed)
    try:
        for part in parts:
            _only(subject.module, part)  # no other gradient is computed, let alone kept
            sample = gradient_rows(
                subject.module,
                subject.loss_fn,
                subject.calibration,
                min(_SAMPLE, surgery.num_grads),
                1,
                generator=draw,
            )
            scale = float(sample.double().square().mean()) or 1.0
            _pruner(subject.module, subject, part, surgery, surgery.damping * scale, draw).prune(
                sparsity, subject.calibration
            )
    finally:
        for name, parameter in subject.module.named_parameters():
            parameter.requires_grad_(trained[name])


def by_magnitude(subject: Subject, sparsity: float, surgery: Surgery) -> nn.Module:
    """Prune a copy by the size of weights alone, which is what the surgeon does under a damping beyond all gradients.

    Parameters
    ----------
    subject : Subject
        Whose module; left as it is.
    sparsity : float
        Of all weights.
    surgery : Surgery
        Its pattern and scope.

    Returns
    -------
    nn.Module
        In evaluation mode.
    """
    module = copy.deepcopy(subject.module)
    _only(module, subject.weights)
    once = replace(surgery, num_grads=1, rounds=1, block_size=None)
    draw = torch.Generator().manual_seed(surgery.seed)
    _pruner(module, subject, subject.weights, once, 1e12, draw).prune(sparsity, subject.calibration)
    return module


def _only(module: nn.Module, names: Sequence[str]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def _pruner(
    module: nn.Module,
    subject: Subject,
    names: Sequence[str],
    surgery: Surgery,
    damping: float,
    draw: torch.Generator,
) -> OBSPruner:
    wanted = set(names)
    return OBSPruner(
        module,
        subject.loss_fn,
        num_grads=surgery.num_grads,
        batch_size=1 if subject.is_language_model else _CHUNK,
        per_sample=not subject.is_language_model,
        damping=damping,
        block_size=surgery.block_size,
        recompute=surgery.rounds,
        pattern=surgery.pattern,
        scope=surgery.scope,
        include=lambda name, _parameter: name in wanted,
        generator=draw,
    )
