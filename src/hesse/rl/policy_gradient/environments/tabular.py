"""Small Markov decision processes whose expected return, and hence gradient and Hessian, is known exactly.

Shapes: S states, A actions, N episodes, P parameters.
"""

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from hesse._values import check_present
from hesse.curvature import hessian
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import LinearOperator, ParameterLayout
from hesse.rl.policy_gradient.draws import uniform
from hesse.rl.policy_gradient.environments.protocol import Discrete, EnvStep

__all__ = ["TabularMDP"]


class TabularMDP:
    """A finite decision process; observations are one-hot states, rewards r(s, a) certain, episodes end at the horizon.

    Parameters
    ----------
    transitions : Tensor, shape (S, A, S)
        Probabilities of the next state.
    rewards : Tensor, shape (S, A)
        Of acting.
    start : Tensor, shape (S,)
        Probabilities of the first state.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    ArgumentTypeError
        If a table is neither float32 nor float64.
    ArgumentError
        If the probabilities are negative or do not add up to one.
    """

    def __init__(self, transitions: Tensor, rewards: Tensor, start: Tensor) -> None:
        if rewards.ndim != 2 or transitions.shape != (*rewards.shape, len(rewards)) or start.shape != (len(rewards),):
            raise ShapeError(
                "TabularMDP: expected transitions (S, A, S), rewards (S, A) and start (S,), got "
                f"{tuple(transitions.shape)}, {tuple(rewards.shape)} and {tuple(start.shape)}"
            )
        for name, table in (("transitions", transitions), ("rewards", rewards), ("start", start)):
            if table.dtype not in (torch.float32, torch.float64):
                raise ArgumentTypeError(f"TabularMDP: expected {name} in float32 or float64, got {table.dtype}")
            check_present("TabularMDP", name, table)
        for name, table in (("transitions", transitions), ("start", start)):
            if bool((table < 0).any()) or not torch.allclose(table.sum(-1), table.new_ones(()), atol=1e-5):
                raise ArgumentError(f"TabularMDP: {name} must be probabilities that add up to one")
        self.transitions, self.rewards, self.start = transitions, rewards, start
        self.observation_size, num_actions = rewards.shape
        self.action_space = Discrete(num_actions)
        self._cumulated = transitions.cumsum(-1)
        self._one_hot = torch.eye(self.observation_size, dtype=rewards.dtype, device=rewards.device)
        self.state = torch.zeros(0, dtype=torch.long, device=rewards.device)
        self._generator: Generator | None = None

    def reset(self, num_episodes: int, generator: Generator | None = None) -> Tensor:
        """Draw first states.

        Parameters
        ----------
        num_episodes : int
            How many, N.
        generator : torch.Generator, optional
            Of the first states and of all transitions until the next reset. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (N, S)
            One-hot.

        Raises
        ------
        ArgumentError
            If ``num_episodes < 1``.
        """
        if num_episodes < 1:
            raise ArgumentError(f"TabularMDP.reset: expected num_episodes >= 1, got {num_episodes}")
        self._generator = generator
        self.state = self._draw(self.start.cumsum(0).expand(num_episodes, -1))
        return self._one_hot[self.state]

    def step(self, actions: Tensor) -> EnvStep:
        """Move on.

        Parameters
        ----------
        actions : Tensor, shape (N,)
            One a state.

        Returns
        -------
        EnvStep
            Never terminated.
        """
        rewards = self.rewards[self.state, actions]
        self.state = self._draw(self._cumulated[self.state, actions])
        never = torch.zeros_like(self.state, dtype=torch.bool)
        return EnvStep(self._one_hot[self.state], rewards, never, never)

    def _draw(self, cumulated: Tensor) -> Tensor:
        draws = uniform((len(cumulated), 1), self.rewards.dtype, self.rewards.device, self._generator)
        return (draws >= cumulated).sum(-1).clamp(max=self.observation_size - 1)  # rounding may leave the sum below 1

    def expected_return(self, probabilities: Tensor, horizon: int, discount: float) -> Tensor:
        """Return J = E Σ_{h<H} discount^h r_h of a stationary policy by backward induction, differentiable.

        Parameters
        ----------
        probabilities : Tensor, shape (S, A)
            Of the actions.
        horizon : int
            H >= 1, steps an episode.
        discount : float
            In (0, 1].

        Returns
        -------
        Tensor, shape ()
            Exact, in O(H S² A).
        """
        value = torch.zeros_like(self.start)
        for _ in range(horizon):
            value = (probabilities * (self.rewards + discount * (self.transitions @ value))).sum(1)
        return self.start @ value

    def optimal_return(self, horizon: int, discount: float) -> float:
        """Return the largest J that a policy reaches which may look at the clock: an upper bound for stationary ones.

        Parameters
        ----------
        horizon : int
            H >= 1.
        discount : float
            In (0, 1].

        Returns
        -------
        float
            By value iteration.
        """
        value = torch.zeros_like(self.start)
        for _ in range(horizon):
            value = (self.rewards + discount * (self.transitions @ value)).amax(1)
        return float(self.start @ value)

    def objective(self, policy: nn.Module, parameters: Tensor, horizon: int, discount: float) -> Tensor:
        """Return J of a policy at a flat vector of its parameters, differentiable in it.

        Parameters
        ----------
        policy : nn.Module
            Such as `CategoricalPolicy`.
        parameters : Tensor, shape (P,)
            Where.
        horizon : int
            H >= 1.
        discount : float
            In (0, 1].

        Returns
        -------
        Tensor, shape ()
            As `expected_return`.
        """
        named = ParameterLayout.of(dict(policy.named_parameters())).unflatten(parameters)
        states, actions = self.rewards.shape
        every = torch.arange(actions, device=self.rewards.device).repeat(states)
        log_probs = functional_call(policy, named, (self._one_hot.repeat_interleave(actions, 0), every))
        return self.expected_return(log_probs.exp().reshape(states, actions), horizon, discount)

    def gradient(self, policy: nn.Module, parameters: Tensor, horizon: int, discount: float) -> Tensor:
        """Return ∇J; arguments as of `objective`.

        Parameters
        ----------
        policy : nn.Module
            Such as `CategoricalPolicy`.
        parameters : Tensor, shape (P,)
            Where.
        horizon : int
            H >= 1.
        discount : float
            In (0, 1].

        Returns
        -------
        Tensor, shape (P,)
            Exact.
        """
        leaf = parameters.detach().requires_grad_()
        return torch.autograd.grad(self.objective(policy, leaf, horizon, discount), leaf)[0]

    def hessian(self, policy: nn.Module, parameters: Tensor, horizon: int, discount: float) -> LinearOperator:
        """Return ∇²J as an operator; arguments as of `objective`.

        Parameters
        ----------
        policy : nn.Module
            Such as `CategoricalPolicy`.
        parameters : Tensor, shape (P,)
            Where.
        horizon : int
            H >= 1.
        discount : float
            In (0, 1].

        Returns
        -------
        LinearOperator, shape (P, P)
            Exact products.
        """
        return hessian(
            lambda vector, _: self.objective(policy, vector["parameters"], horizon, discount),
            {"parameters": parameters.detach()},
            [None],
        )
