"""PPO and A2C of stable-baselines3 on gymnasium's CartPole, cut off at the same horizon, for a budget of steps."""

import numpy as np
import torch

from benchmarks.peers import require_peer

__all__ = ["peer_return"]


def peer_return(algorithm: str, env_steps: int, horizon: int, seed: int) -> float:
    """Mean return of the last 60 training episodes, the peer's own defaults, 15 environments as in our batches.

    PPO is given rollouts of 128 steps an environment instead of 2048: 2048 times 15 would pass the budget in one.
    """
    peers, gymnasium = require_peer("stable_baselines3"), require_peer("gymnasium")
    monitor = require_peer("stable_baselines3.common.monitor").Monitor
    vector = require_peer("stable_baselines3.common.vec_env").DummyVecEnv
    world = vector([lambda: monitor(gymnasium.make("CartPole-v1", max_episode_steps=horizon)) for _ in range(15)])
    state = torch.get_rng_state()
    options = {"n_steps": 128, "batch_size": 128} if algorithm == "PPO" else {}
    agent = getattr(peers, algorithm)("MlpPolicy", world, seed=seed, device="cpu", **options)
    agent.learn(env_steps)
    torch.set_rng_state(state)
    ended = [moment for env in world.envs for moment in np.cumsum(env.get_episode_lengths())]
    returns = [value for env in world.envs for value in env.get_episode_rewards()]
    return float(np.asarray(returns)[np.argsort(ended)[-60:]].mean())
