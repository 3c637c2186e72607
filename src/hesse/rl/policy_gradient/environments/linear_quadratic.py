"""The linear-quadratic regulator: linear dynamics, quadratic cost, and the best gain from the Riccati equation.

Shapes: N episodes, S state, A action.
"""

import numpy as np
import scipy.linalg
import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.rl.policy_gradient.draws import normal
from hesse.rl.policy_gradient.environments.protocol import Continuous, EnvStep

__all__ = ["LinearQuadratic"]


class LinearQuadratic:
    """s' = A s + B a, reward -(sᵀQs + aᵀRa), s_0 ~ N(0, I), for ever: the horizon of `collect` cuts episodes off.

    Parameters
    ----------
    dynamics : Tensor, shape (S, S)
        A.
    control : Tensor, shape (S, A)
        B.
    state_cost : Tensor, shape (S, S)
        Q, symmetric positive semi-definite.
    action_cost : Tensor, shape (A, A)
        R, symmetric positive definite.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """

    def __init__(self, dynamics: Tensor, control: Tensor, state_cost: Tensor, action_cost: Tensor) -> None:
        if control.ndim != 2:
            raise ShapeError(f"LinearQuadratic: expected control of shape (S, A), got {tuple(control.shape)}")
        states, actions = control.shape
        wanted = {"dynamics": (states, states), "state_cost": (states, states), "action_cost": (actions, actions)}
        given = {"dynamics": dynamics, "state_cost": state_cost, "action_cost": action_cost}
        for name, shape in wanted.items():
            if tuple(given[name].shape) != shape:
                raise ShapeError(f"LinearQuadratic: expected {name} of shape {shape}, got {tuple(given[name].shape)}")
        self.dynamics, self.control, self.state_cost, self.action_cost = dynamics, control, state_cost, action_cost
        self.observation_size = states
        self.action_space = Continuous(actions)
        self.state = dynamics.new_zeros(0, states)

    def reset(self, num_episodes: int, generator: Generator | None = None) -> Tensor:
        """Draw s_0 ~ N(0, I).

        Parameters
        ----------
        num_episodes : int
            How many, N.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (N, S)
            The states.

        Raises
        ------
        ArgumentError
            If ``num_episodes < 1``.
        """
        if num_episodes < 1:
            raise ArgumentError(f"LinearQuadratic.reset: expected num_episodes >= 1, got {num_episodes}")
        shape = (num_episodes, self.observation_size)
        self.state = normal(shape, self.dynamics.dtype, self.dynamics.device, generator)
        return self.state

    def step(self, actions: Tensor) -> EnvStep:
        """Act once; the cost is that of the state before the action.

        Parameters
        ----------
        actions : Tensor, shape (N, A)
            Any real numbers.

        Returns
        -------
        EnvStep
            Never terminated.
        """
        cost = ((self.state @ self.state_cost) * self.state).sum(1)
        cost = cost + ((actions @ self.action_cost) * actions).sum(1)
        self.state = self.state @ self.dynamics.mT + actions @ self.control.mT
        never = torch.zeros(len(cost), dtype=torch.bool, device=cost.device)
        return EnvStep(self.state, -cost, never, never)

    def optimal_gain(self, discount: float) -> Tensor:
        """Return K of the best policy a = K s for the discounted cost without end.

        Parameters
        ----------
        discount : float
            In (0, 1].

        Returns
        -------
        Tensor, shape (A, S)
            From `scipy.linalg.solve_discrete_are` with A and B scaled by √discount.

        Raises
        ------
        ArgumentError
            If ``discount`` is out of range.
        """
        if not 0 < discount <= 1:
            raise ArgumentError(f"LinearQuadratic.optimal_gain: expected discount in (0, 1], got {discount}")
        root = discount**0.5
        a, b, q, r = (
            m.cpu().double().numpy() for m in (self.dynamics, self.control, self.state_cost, self.action_cost)
        )
        p = scipy.linalg.solve_discrete_are(root * a, root * b, q, r)
        gain = -np.linalg.solve(r + discount * b.T @ p @ b, discount * b.T @ p @ a)
        return torch.from_numpy(gain).to(self.dynamics)

    def cost(self, gain: Tensor, discount: float) -> float:
        """Return E Σ_h discount^h (sᵀQs + aᵀRa) of the policy a = K s, exactly; infinite if it does not converge.

        Parameters
        ----------
        gain : Tensor, shape (A, S)
            K.
        discount : float
            In (0, 1].

        Returns
        -------
        float
            The trace of the solution of a discrete Lyapunov equation, since s_0 ~ N(0, I).
        """
        k = gain.detach().cpu().double().numpy()
        a, b, q, r = (
            m.cpu().double().numpy() for m in (self.dynamics, self.control, self.state_cost, self.action_cost)
        )
        closed = discount**0.5 * (a + b @ k)
        if not np.isfinite(closed).all() or np.abs(np.linalg.eigvals(closed)).max() >= 1:
            return float("inf")
        return float(np.trace(scipy.linalg.solve_discrete_lyapunov(closed.T, q + k.T @ r @ k)))

    def _arrays(self) -> list[np.ndarray]:
        matrices = (self.dynamics, self.control, self.state_cost, self.action_cost)
        return [matrix.cpu().double().numpy() for matrix in matrices]
