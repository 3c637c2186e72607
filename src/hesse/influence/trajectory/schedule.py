"""What a training run did, step by step: optimizer, learning rates, and which sequences each step saw.

With the first weights this decides the last ones, so the run can be made again, and differentiated.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.trajectory.optimizers import Optimizer

__all__ = ["TrainingSchedule"]


@dataclass(frozen=True)
class TrainingSchedule:
    """T steps of an optimizer; step t lowers Σ_{n in batch t} w_n L_n / D_t, L_n a sum over tokens.

    Attributes
    ----------
    optimizer : SGD or AdamW
        With betas, decay and clipping.
    learning_rates : tuple of float
        η of every step.
    batches : tuple of tuple of int
        Numbers of the sequences of every step, all gradient accumulation included. A sequence may occur more than once.
    per : {"sequences", "tokens"}, default "sequences"
        D_t: how many sequences, or supervised tokens, the step has. The second is what the Trainer of transformers
        does. The weights w do not enter it.
    shares : tuple of tuple of float, optional
        What stands in the place of 1 / D_t, for every sequence of every step. Default: 1 / D_t. A mean over small
        batches of their means, as loops with accumulated gradients have it, gives sequences of a smaller batch more.
    """

    optimizer: Optimizer
    learning_rates: tuple[float, ...]
    batches: tuple[tuple[int, ...], ...]
    per: Literal["sequences", "tokens"] = "sequences"
    shares: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.per not in ("sequences", "tokens"):
            raise ArgumentError(f"per: expected 'sequences' or 'tokens', got {self.per!r}")
        if not self.batches or len(self.batches) != len(self.learning_rates):
            raise ArgumentError(
                f"batches: expected one for each of the {len(self.learning_rates)} learning rates, got "
                f"{len(self.batches)}"
            )
        for t, (rate, batch) in enumerate(zip(self.learning_rates, self.batches, strict=True)):
            if not 0 <= rate < float("inf"):
                raise ArgumentError(f"learning_rates: expected >= 0, got {rate} at step {t}")
            if not batch:
                raise ArgumentError(f"batches: step {t} has no sequence")
        if self.shares is not None and list(map(len, self.shares)) != list(map(len, self.batches)):
            raise ArgumentError("shares: expected one for every sequence of every step")

    def __len__(self) -> int:
        return len(self.batches)

    @classmethod
    def shuffled(
        cls,
        num_sequences: int,
        batch_size: int,
        optimizer: Optimizer,
        learning_rates: Items[float],
        *,
        seed: int = 0,
        per: Literal["sequences", "tokens"] = "sequences",
    ) -> "TrainingSchedule":
        """Lay out epochs in random order, as many as the learning rates have steps for.

        Parameters
        ----------
        num_sequences : int
            N.
        batch_size : int
            Sequences a step; the last step of an epoch may have fewer.
        optimizer : SGD or AdamW
            Makes the steps.
        learning_rates : sequence of float
            One a step.
        seed : int, default 0
            Of the order.
        per : {"sequences", "tokens"}, default "sequences"
            What a step's loss is divided by.

        Returns
        -------
        TrainingSchedule
            Each epoch a permutation of its own.

        Raises
        ------
        ArgumentError
            If ``num_sequences`` or ``batch_size`` is below 1.
        """
        if num_sequences < 1 or batch_size < 1:
            raise ArgumentError(f"num_sequences, batch_size: expected >= 1, got {num_sequences} and {batch_size}")
        generator = np.random.default_rng(seed)
        batches: list[tuple[int, ...]] = []
        while len(batches) < len(learning_rates):
            order = generator.permutation(num_sequences).tolist()
            batches += [tuple(order[first : first + batch_size]) for first in range(0, num_sequences, batch_size)]
        return cls(optimizer, _floats(learning_rates), tuple(batches[: len(learning_rates)]), per)

    def check_size(self, num_sequences: int) -> None:
        """Refuse a data set that lacks a sequence which a step needs.

        Parameters
        ----------
        num_sequences : int
            N.

        Raises
        ------
        ArgumentError
            Naming the first step.
        """
        for t, batch in enumerate(self.batches):
            if min(batch) < 0 or max(batch) >= num_sequences:
                raise ArgumentError(
                    f"dataset: it has {num_sequences} sequences, but step {t} of the schedule used number "
                    f"{max(batch) if min(batch) >= 0 else min(batch)}"
                )


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
