"""Gradual pruning: a little at a time, with training in between under attached masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from hesse.compress.obs.pruner import OBSPruner
from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least

__all__ = ["GradualStep", "TrainEpoch", "cubic_sparsities", "geometric_sparsities", "gradual_prune"]

TrainEpoch = Callable[[nn.Module, float], None]
"""(module, factor on the learning rate): trains for one epoch."""


@dataclass(frozen=True, slots=True)
class GradualStep:
    """One pruning step and the training after it."""

    sparsity: float
    predicted_increase: float  # by pruning, summed over its rounds, in the units of the loss
    num_epochs: int


def geometric_sparsities(final: float, num_steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """Sparsities whose densities fall by the same factor at every step.

    Parameters
    ----------
    final : float
        The last one, below 1.
    num_steps : int
        How many.
    initial : float, default 0.0
        Where pruning starts; not among the result.

    Returns
    -------
    tuple of float
        1 - (1 - initial) ((1 - final) / (1 - initial))^(j / num_steps), j = 1, ..., num_steps.

    Raises
    ------
    ArgumentError
        Unless 0 <= initial < final < 1 and ``num_steps >= 1``.
    """
    _check("geometric_sparsities", final, num_steps, initial)
    ratio = (1 - final) / (1 - initial)
    return (*(1 - (1 - initial) * ratio ** (j / num_steps) for j in range(1, num_steps)), final)


def cubic_sparsities(final: float, num_steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """Sparsities that rise fast while weights are plenty and level off towards the end.

    Parameters
    ----------
    final : float
        The last one, below 1.
    num_steps : int
        How many.
    initial : float, default 0.0
        Where pruning starts; not among the result.

    Returns
    -------
    tuple of float
        final - (final - initial) (1 - j / num_steps)³, j = 1, ..., num_steps.

    Raises
    ------
    ArgumentError
        Unless 0 <= initial < final < 1 and ``num_steps >= 1``.

    References
    ----------
    M. Zhu, S. Gupta (2017), arXiv 1710.01878.
    """
    _check("cubic_sparsities", final, num_steps, initial)
    return tuple(final - (final - initial) * (1 - j / num_steps) ** 3 for j in range(1, num_steps + 1))


def gradual_prune(
    pruner: OBSPruner,
    sparsities: Sequence[float],
    data: Any,
    train_epoch_fn: TrainEpoch,
    *,
    prune_every: int = 10,
    last_epoch_factor: float = 0.1,
) -> list[GradualStep]:
    """Prune to each sparsity in turn and train in between; masks are attached from the first step on.

    Parameters
    ----------
    pruner : OBSPruner
        Around the module.
    sparsities : sequence of float
        Rising; see `geometric_sparsities` and `cubic_sparsities`.
    data : tensor, or tuples, lists and dictionaries of tensors
        For the gradients, as of `OBSPruner.prune`.
    train_epoch_fn : callable
        (module, factor) -> None: trains for one epoch at ``factor`` times its learning rate. An optimiser made before
        the call goes on: the parameters stay the same objects.
    prune_every : int, default 10
        Epochs after every step.
    last_epoch_factor : float, default 0.1
        The factor in the last of them, 1 before: pruning relies on a model of the loss around a minimum, so the weights
        should have come to rest.

    Returns
    -------
    list of GradualStep
        One a sparsity. The masks stay attached; ``pruner.remove_masks()`` leaves plain weights.

    Raises
    ------
    ArgumentError
        If the sparsities do not rise, or a number is out of range; nothing is pruned then.
    """
    call = "gradual_prune"
    at_least(call, "prune_every", prune_every, 1)
    if not 0 < last_epoch_factor <= 1:
        raise ArgumentError(f"{call}: expected 0 < last_epoch_factor <= 1, got {last_epoch_factor}")
    wanted = list(sparsities)
    most, present = pruner.pattern.max_sparsity, pruner.sparsity
    rising = bool(wanted) and all(low < high for low, high in pairwise([present, *wanted]))
    if not rising or wanted[-1] > most or wanted[-1] >= 1:
        raise ArgumentError(
            f"{call}: expected sparsities that rise from {present:g} and end {'at' if most < 1 else 'below'} {most:g}, "
            f"got {wanted}"
        )
    steps = []
    for sparsity in wanted:
        done = len(pruner.rounds)
        pruner.prune(sparsity, data)
        pruner.attach_masks()
        for epoch in range(prune_every):
            train_epoch_fn(pruner.module, 1.0 if epoch < prune_every - 1 else last_epoch_factor)
        increase = sum(pruned.predicted_increase for pruned in pruner.rounds[done:])
        steps.append(GradualStep(pruner.sparsity, increase, prune_every))
    return steps


def _check(call: str, final: float, num_steps: int, initial: float) -> None:
    at_least(call, "num_steps", num_steps, 1)
    if not 0 <= initial < final < 1:
        raise ArgumentError(f"{call}: expected 0 <= initial < final < 1, got initial={initial}, final={final}")
