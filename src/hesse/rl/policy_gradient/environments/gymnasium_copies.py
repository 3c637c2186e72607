"""Gymnasium environments as a VectorEnv: one copy an episode, stepped in a loop on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from hesse._optional import require
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.rl.policy_gradient.environments.protocol import ActionSpace, Continuous, Discrete, EnvStep

__all__ = ["GymnasiumEnv"]


class GymnasiumEnv:
    """Copies of one gymnasium environment, made as they are needed and reset from one generator.

    Box observations are flattened, Discrete ones become one-hot. Box actions are clipped to their bounds on the way to
    the environment alone: log-probabilities stay those of the action that was drawn. The clock of gymnasium's
    registration cuts episodes off too (``truncated``); give `collect` the same horizon or a smaller one.

    Parameters
    ----------
    env : str or callable
        An id such as "Pendulum-v1", or a function without arguments that makes one environment.
    dtype : torch.dtype, default torch.float32
        Of observations and rewards.

    Attributes
    ----------
    name : str
        The id of the environment, or its class where it has none.

    Raises
    ------
    ArgumentError
        If gymnasium does not know the id, or lacks what it takes to make it.
    ArgumentTypeError
        If an observation space is neither Box nor Discrete, or an action space neither Discrete nor one-axis Box.
    MissingDependencyError
        If gymnasium is not installed.
    """

    def __init__(self, env: str | Callable[[], Any], *, dtype: torch.dtype = torch.float32) -> None:
        gymnasium = require("gymnasium", extra="rl", feature="hesse.rl.GymnasiumEnv")
        self._make: Callable[[], Any] = (lambda: gymnasium.make(env)) if isinstance(env, str) else env
        try:
            self._copies: list[Any] = [self._make()]
        except gymnasium.error.Error as error:
            raise ArgumentError(f"GymnasiumEnv: gymnasium cannot make {env!r}: {error}") from error
        made = self._copies[0]
        spec = getattr(made, "spec", None)
        self.name: str = spec.id if spec is not None else type(getattr(made, "unwrapped", made)).__name__
        self._running: list[bool] = []
        self._last: list[np.ndarray] = []
        self.dtype = dtype
        spaces, seen, acts = gymnasium.spaces, self._copies[0].observation_space, self._copies[0].action_space
        if isinstance(seen, spaces.Discrete):
            self._num_states: int | None = int(seen.n)
            self.observation_size = int(seen.n)
        elif isinstance(seen, spaces.Box):
            self._num_states = None
            self.observation_size = int(np.prod(seen.shape))
        else:
            raise ArgumentTypeError(f"GymnasiumEnv: observations must be Box or Discrete, got {type(seen).__name__}")
        self._first_action, self._bounds = 0, None
        if isinstance(acts, spaces.Discrete):
            self._first_action = int(acts.start)
            self.action_space: ActionSpace = Discrete(int(acts.n))
        elif isinstance(acts, spaces.Box) and len(acts.shape) == 1:
            self._bounds = (acts.low, acts.high)
            self.action_space = Continuous(int(acts.shape[0]))
        else:
            raise ArgumentTypeError(f"GymnasiumEnv: actions must be Discrete or a Box of one axis, got {acts}")

    def reset(self, num_episodes: int, generator: Generator | None = None) -> Tensor:
        """Reset one copy an episode, each with a seed of its own.

        Parameters
        ----------
        num_episodes : int
            How many, N.
        generator : torch.Generator, optional
            Source of the seeds. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (N, D)
            First observations, on the CPU.

        Raises
        ------
        ArgumentError
            If ``num_episodes < 1``.
        """
        if num_episodes < 1:
            raise ArgumentError(f"GymnasiumEnv.reset: expected num_episodes >= 1, got {num_episodes}")
        while len(self._copies) < num_episodes:
            self._copies.append(self._make())
        home = "cpu" if generator is None else generator.device
        seeds = torch.randint(2**31 - 1, (num_episodes,), generator=generator, device=home).tolist()
        self._running = [True] * num_episodes
        self._last = [
            self._flat(env.reset(seed=seed)[0]) for env, seed in zip(self._copies[:num_episodes], seeds, strict=True)
        ]
        return self._observations()

    def step(self, actions: Tensor) -> EnvStep:
        """Act in every episode that still runs.

        Parameters
        ----------
        actions : Tensor, shape (N,) or (N, A)
            As ``action_space`` says.

        Returns
        -------
        EnvStep
            Finished episodes keep their last observation and earn nothing.
        """
        moves = actions.detach().cpu().numpy()
        rewards = np.zeros(len(moves))
        terminated, truncated = np.zeros(len(moves), dtype=bool), np.zeros(len(moves), dtype=bool)
        for i, move in enumerate(moves):
            if not self._running[i]:
                continue
            action = int(move) + self._first_action if self._bounds is None else np.clip(move, *self._bounds)
            seen, rewards[i], terminated[i], truncated[i], _ = self._copies[i].step(action)
            self._last[i] = self._flat(seen)
            self._running[i] = not (terminated[i] or truncated[i])
        return EnvStep(
            self._observations(),
            torch.as_tensor(rewards, dtype=self.dtype),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
        )

    def close(self) -> None:
        """Close all copies."""
        for env in self._copies:
            env.close()

    def _flat(self, seen: Any) -> np.ndarray:
        if self._num_states is None:
            return np.asarray(seen, dtype=np.float64).reshape(-1)
        return np.eye(self._num_states)[int(seen)]

    def _observations(self) -> Tensor:
        return torch.as_tensor(np.stack(self._last), dtype=self.dtype)
