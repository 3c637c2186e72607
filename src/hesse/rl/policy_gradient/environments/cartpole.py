"""CartPole-v1 for many episodes at once: gymnasium's equations and thresholds, as tensor operations."""

import math

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.rl.policy_gradient.draws import uniform
from hesse.rl.policy_gradient.environments.protocol import Discrete, EnvStep

__all__ = ["CartPole"]

# metres, kilograms, newtons, seconds, as in gymnasium's CartPole-v1
GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, TIME_STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MAX_POSITION, MAX_ANGLE = 2.4, 12 * 2 * math.pi / 360


class CartPole:
    """A pole on a cart, pushed left (0) or right (1); reward 1 a step until the pole leans 12 degrees or the cart ends.

    The episode has no clock of its own: the horizon of `collect` is it (500 in gymnasium's registration).

    Parameters
    ----------
    dtype : torch.dtype, default torch.float32
        Of states and rewards; in float64 the steps agree with gymnasium's to rounding.
    device : torch.device or str, default "cpu"
        Where states live.
    """

    observation_size = 4  # position (m), velocity (m/s), angle (rad), angular velocity (rad/s)
    action_space = Discrete(2)

    def __init__(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.state = torch.zeros(0, 4, dtype=dtype, device=self.device)

    def reset(self, num_episodes: int, generator: Generator | None = None) -> Tensor:
        """Start near upright: every coordinate uniform in [-0.05, 0.05].

        Parameters
        ----------
        num_episodes : int
            How many, N.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (N, 4)
            Position, velocity, angle, angular velocity.

        Raises
        ------
        ArgumentError
            If ``num_episodes < 1``.
        """
        if num_episodes < 1:
            raise ArgumentError(f"CartPole.reset: expected num_episodes >= 1, got {num_episodes}")
        self.state = 0.1 * uniform((num_episodes, 4), self.dtype, self.device, generator) - 0.05
        return self.state

    def step(self, actions: Tensor) -> EnvStep:
        """Push every cart for 0.02 s (explicit Euler).

        Parameters
        ----------
        actions : Tensor, shape (N,)
            0 or 1.

        Returns
        -------
        EnvStep
            Reward 1 each, the step that ends the episode included.
        """
        position, velocity, angle, spin = self.state.unbind(1)
        force = (2 * actions.to(self.dtype) - 1) * FORCE
        total, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
        cos, sin = angle.cos(), angle.sin()
        push = (force + moment * spin.square() * sin) / total
        spin_rate = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cos.square() / total))
        rate = push - moment * spin_rate * cos / total
        change = torch.stack((velocity, rate, spin, spin_rate), dim=1)
        self.state = self.state + TIME_STEP * change
        fallen = (self.state[:, 0].abs() > MAX_POSITION) | (self.state[:, 2].abs() > MAX_ANGLE)
        return EnvStep(self.state, torch.ones_like(position), fallen, torch.zeros_like(fallen))
