"""Episodes of a policy, side by side, and the weights with which REINFORCE counts their steps.

Shapes: N episodes, T <= horizon steps, D observation, A action, P parameters.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError
from hesse.rl.policy_gradient.environments.protocol import VectorEnv
from hesse.rl.policy_gradient.policies import Policy, flat_parameters

__all__ = ["TrajectoryBatch", "check_discount", "collect"]


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """N trajectories drawn from one policy, padded to the longest of them.

    Phi = Σ_t weights_t log π(a_t | s_t) is the function whose gradient is REINFORCE's estimate. Without a baseline
    weights_t = Σ_{h>=t} discount^h r_h, rewards up to the horizon or the end of the episode; `with_baseline` and
    `with_gae` change them.
    """

    observations: Tensor  # (N, T, D)
    actions: Tensor  # (N, T) or (N, T, A)
    rewards: Tensor  # (N, T), 0 after the end
    mask: Tensor  # (N, T) bool: the step happened
    terminated: Tensor  # (N,) bool: ended by the task, not by a clock
    final_observations: Tensor  # (N, D), after the last step
    weights: Tensor  # (N, T), 0 after the end
    parameters: Tensor  # (P,), of the policy that drew the actions
    discount: float

    @property
    def num_trajectories(self) -> int:
        """N."""
        return len(self.rewards)

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, shape (N,)."""
        return self.mask.sum(1)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.mask.sum())

    @property
    def returns(self) -> Tensor:
        """Undiscounted sum of rewards of each episode, shape (N,)."""
        return self.rewards.sum(1)


@torch.no_grad()
def collect(
    env: VectorEnv,
    policy: Policy,
    num_episodes: int,
    *,
    horizon: int,
    discount: float = 0.99,
    generator: Generator | None = None,
) -> TrajectoryBatch:
    """Run episodes side by side until all have ended or ``horizon`` steps have passed.

    Parameters
    ----------
    env : VectorEnv
        Where.
    policy : Policy
        Its parameters are noted in the batch.
    num_episodes : int
        N >= 1.
    horizon : int
        H >= 1, steps; the objective counts rewards up to it.
    discount : float, default 0.99
        In (0, 1].
    generator : torch.Generator, optional
        Of starts, transitions and actions. Default: torch's global generator.

    Returns
    -------
    TrajectoryBatch
        Without baseline. Holds O(N T (D + A)) numbers.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    ArgumentTypeError
        If ``env`` is no VectorEnv or ``policy`` no Policy.
    NumericalError
        If an observation or a reward is not finite.
    """
    check_discount("collect", discount)
    if num_episodes < 1 or horizon < 1:
        raise ArgumentError(f"collect: expected num_episodes, horizon >= 1, got {num_episodes} and {horizon}")
    if not isinstance(env, VectorEnv):
        raise ArgumentTypeError(f"collect: expected env with reset and step (a VectorEnv), got {type(env).__name__}")
    if not isinstance(policy, Policy):
        raise ArgumentTypeError(f"collect: expected a Policy, got {type(policy).__name__}")
    parameters = flat_parameters(policy)
    seen = env.reset(num_episodes, generator)
    final = seen.clone()
    alive = torch.ones(num_episodes, dtype=torch.bool, device=seen.device)
    terminated = torch.zeros_like(alive)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(horizon):
        actions = policy.sample(seen, generator)
        outcome = env.step(actions)
        columns.append((seen, actions, torch.where(alive, outcome.rewards, 0), alive))
        final = torch.where(alive.unsqueeze(1), outcome.observations, final)
        terminated = terminated | (alive & outcome.terminated)
        alive = alive & ~(outcome.terminated | outcome.truncated)
        seen = outcome.observations
        if not alive.any():
            break
    observations, actions, rewards, mask = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    if not bool(rewards.isfinite().all()) or not bool(observations[mask].isfinite().all()):
        raise NumericalError("collect: the environment returned an observation or a reward that is not finite")
    powers = discount ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
    to_go = (powers * rewards).flip(1).cumsum(1).flip(1)
    return TrajectoryBatch(
        observations, actions, rewards, mask, terminated, final, to_go * mask, parameters, float(discount)
    )


def check_discount(call: str, discount: float) -> None:
    """Refuse a discount outside (0, 1].

    Parameters
    ----------
    call : str
        For the message.
    discount : float
        What came.

    Raises
    ------
    ArgumentError
        If it is out of range.
    """
    if not 0 < discount <= 1:
        raise ArgumentError(f"{call}: expected discount in (0, 1], got {discount}")
