"""What an environment must offer: N episodes side by side, reset and stepped together.

Shapes: N episodes, D numbers an observation.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

__all__ = ["ActionSpace", "Continuous", "Discrete", "EnvStep", "Mixed", "VectorEnv"]


@dataclass(frozen=True, slots=True)
class Discrete:
    """Actions 0, ..., ``num_actions`` - 1, as int64 of shape (N,)."""

    num_actions: int


@dataclass(frozen=True, slots=True)
class Continuous:
    """Real actions of shape (N, ``size``)."""

    size: int


@dataclass(frozen=True, slots=True)
class Mixed:
    """A discrete choice and real numbers: floating actions (N, 1 + ``size``), the choice in the first column."""

    num_actions: int
    size: int


ActionSpace = Discrete | Continuous | Mixed


@dataclass(frozen=True, slots=True)
class EnvStep:
    """What N episodes answer to N actions."""

    observations: Tensor  # (N, D)
    rewards: Tensor  # (N,)
    terminated: Tensor  # (N,) bool: the task itself has ended
    truncated: Tensor  # (N,) bool: cut off by the environment's own clock


@runtime_checkable
class VectorEnv(Protocol):
    """N episodes that run in lockstep; finished ones go on being stepped, and what they answer is not read.

    ``reset`` starts ``num_episodes`` new episodes, with randomness from ``generator`` alone, and returns their first
    observations; ``step`` takes one action an episode.
    """

    observation_size: int

    @property
    def action_space(self) -> ActionSpace:
        """What `step` takes."""
        ...

    def reset(self, num_episodes: int, generator: Generator | None = None) -> Tensor:
        """Start new episodes."""
        ...

    def step(self, actions: Tensor) -> EnvStep:
        """Act once in every episode."""
        ...
