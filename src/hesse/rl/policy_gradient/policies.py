"""Policies: modules whose forward pass is log π(a | s), so that every derivative of torch applies to them.

Shapes: (...) any batch, D observation, A action, P parameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import ParameterLayout
from hesse.rl.policy_gradient.draws import normal, uniform
from hesse.rl.policy_gradient.environments.protocol import ActionSpace, Continuous, Discrete, Mixed

__all__ = [
    "CategoricalPolicy",
    "GaussianPolicy",
    "MixedPolicy",
    "Policy",
    "flat_parameters",
    "load_parameters",
    "make_policy",
]


class Policy(nn.Module, ABC):
    """A module that returns log π(a | s) when called, twice differentiable in its parameters, and draws actions.

    Memory between steps (recurrent policies) is not supported: log π must depend on the present observation alone.
    """

    @abstractmethod
    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return log π(a | s).

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States as the policy sees them.
        actions : Tensor, shape (...) or (..., A)
            As `sample` draws them.

        Returns
        -------
        Tensor, shape (...)
            In nats.
        """

    @abstractmethod
    def sample(self, observations: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw actions.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (...) or (..., A)
            One an observation.
        """

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return log π(a | s), as calling the policy does; arguments as of `forward`.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States.
        actions : Tensor, shape (...) or (..., A)
            As `sample` draws them.

        Returns
        -------
        Tensor, shape (...)
            In nats.
        """
        return self(observations, actions)


class CategoricalPolicy(Policy):
    """Softmax over the outputs of a tanh network.

    Parameters
    ----------
    observation_size : int
        D.
    num_actions : int
        A >= 2.
    hidden : sequence of int, default (32, 32)
        Widths of the layers in between; () is a linear softmax, which on one-hot observations is the tabular one.
    bias : bool, default True
        Whether layers have a bias.
    generator : torch.Generator, optional
        Of the first weights. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a size is too small.
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        hidden: Sequence[int] = (32, 32),
        *,
        bias: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if num_actions < 2:
            raise ArgumentError(f"CategoricalPolicy: expected num_actions >= 2, got {num_actions}")
        self.logits = _network((observation_size, *hidden, num_actions), bias, generator)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return log π(a | s).

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States as the policy sees them.
        actions : Tensor, shape (...)
            Integers below A.

        Returns
        -------
        Tensor, shape (...)
            In nats.
        """
        return _log_softmax_at(self.logits(observations), actions)

    @torch.no_grad()
    def sample(self, observations: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw actions.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (...)
            int64.
        """
        return _draw_index(self.logits(observations), generator)


class GaussianPolicy(Policy):
    """Normal actions: mean from a tanh network, standard deviations min_std + exp(ρ) that no state changes.

    The floor keeps scores, which grow as 1/std, bounded when the policy would become deterministic.

    Parameters
    ----------
    observation_size : int
        D.
    action_size : int
        A >= 1.
    hidden : sequence of int, default (64, 64)
        Widths of the layers in between; () makes the mean linear in the observation.
    std : float, default 1.0
        First standard deviation, in units of the action.
    min_std : float, default 0.01
        Floor; > 0.
    learn_std : bool, default True
        Whether ρ is a parameter; otherwise a buffer.
    bias : bool, default True
        Whether layers have a bias.
    generator : torch.Generator, optional
        Of the first weights. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a size is too small, or not 0 < min_std < std.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (64, 64),
        *,
        std: float = 1.0,
        min_std: float = 0.01,
        learn_std: bool = True,
        bias: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < min_std < std:
            raise ArgumentError(f"GaussianPolicy: expected 0 < min_std < std, got min_std {min_std} and std {std}")
        self.mean = _network((observation_size, *hidden, action_size), bias, generator)
        self.min_std = min_std
        rho = torch.full((action_size,), math.log(std - min_std))
        if learn_std:
            self.rho = nn.Parameter(rho)
        else:
            self.register_buffer("rho", rho)

    @property
    def std(self) -> Tensor:
        """Standard deviations, shape (A,)."""
        return self.min_std + self.rho.exp()

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return log π(a | s), a density.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States as the policy sees them.
        actions : Tensor, shape (..., A)
            Real.

        Returns
        -------
        Tensor, shape (...)
            In nats.
        """
        return _log_normal(self.mean(observations), self.std, actions)

    @torch.no_grad()
    def sample(self, observations: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw actions.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (..., A)
            Not clipped.
        """
        mean = self.mean(observations)
        return mean + self.std * normal(tuple(mean.shape), mean.dtype, mean.device, generator)


class MixedPolicy(Policy):
    """A discrete choice and real numbers, independent given the state: two heads on one tanh network.

    Actions are floating, (..., 1 + A): the choice in the first column.

    Parameters
    ----------
    observation_size : int
        D.
    num_actions : int
        Choices, >= 2.
    action_size : int
        A, real numbers.
    hidden : sequence of int, default (64, 64)
        Widths of the shared layers.
    std : float, default 1.0
        First standard deviation of the real numbers.
    min_std : float, default 0.01
        Its floor; see `GaussianPolicy`.
    generator : torch.Generator, optional
        Of the first weights. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a size is too small, or not 0 < min_std < std.
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        action_size: int,
        hidden: Sequence[int] = (64, 64),
        *,
        std: float = 1.0,
        min_std: float = 0.01,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if num_actions < 2 or action_size < 1:
            raise ArgumentError(
                f"MixedPolicy: expected num_actions >= 2 and action_size >= 1, got {num_actions} and {action_size}"
            )
        if not 0 < min_std < std:
            raise ArgumentError(f"MixedPolicy: expected 0 < min_std < std, got min_std {min_std} and std {std}")
        self.heads = _network((observation_size, *hidden, num_actions + action_size), True, generator)
        self.rho = nn.Parameter(torch.full((action_size,), math.log(std - min_std)))
        self.num_actions, self.min_std = num_actions, min_std

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return log π(a | s): the log-probability of the choice plus the log-density of the numbers.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States.
        actions : Tensor, shape (..., 1 + A)
            The choice first.

        Returns
        -------
        Tensor, shape (...)
            In nats.
        """
        heads = self.heads(observations)
        choice = _log_softmax_at(heads[..., : self.num_actions], actions[..., 0].long())
        std = self.min_std + self.rho.exp()
        return choice + _log_normal(heads[..., self.num_actions :], std, actions[..., 1:])

    @torch.no_grad()
    def sample(self, observations: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw actions.

        Parameters
        ----------
        observations : Tensor, shape (..., D)
            States.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (..., 1 + A)
            The choice first.
        """
        heads = self.heads(observations)
        choice = _draw_index(heads[..., : self.num_actions], generator)
        mean = heads[..., self.num_actions :]
        noise = normal(tuple(mean.shape), mean.dtype, mean.device, generator)
        return torch.cat((choice.unsqueeze(-1).to(mean.dtype), mean + (self.min_std + self.rho.exp()) * noise), dim=-1)


def make_policy(
    observation_size: int,
    action_space: ActionSpace,
    hidden: Sequence[int] | None = None,
    *,
    generator: Generator | None = None,
) -> CategoricalPolicy | GaussianPolicy | MixedPolicy:
    """Make the policy that fits an action space.

    Parameters
    ----------
    observation_size : int
        D.
    action_space : Discrete, Continuous or Mixed
        As an environment states it.
    hidden : sequence of int, optional
        Widths of the layers in between. Default: (32, 32) for discrete actions, (64, 64) otherwise, as in the official
        experiments.
    generator : torch.Generator, optional
        Of the first weights. Default: torch's global generator.

    Returns
    -------
    CategoricalPolicy, GaussianPolicy or MixedPolicy
        In torch's default dtype, on the CPU.
    """
    wide = (64, 64) if hidden is None else hidden
    match action_space:
        case Discrete(num_actions):
            return CategoricalPolicy(
                observation_size, num_actions, (32, 32) if hidden is None else hidden, generator=generator
            )
        case Continuous(size):
            return GaussianPolicy(observation_size, size, wide, generator=generator)
        case Mixed(num_actions, size):
            return MixedPolicy(observation_size, num_actions, size, wide, generator=generator)


def flat_parameters(policy: nn.Module) -> Tensor:
    """Copy the parameters that require a gradient into one vector.

    Parameters
    ----------
    policy : nn.Module
        Whose.

    Returns
    -------
    Tensor, shape (P,)
        In the order of ``named_parameters``, detached.
    """
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters() if p.requires_grad])


def load_parameters(policy: nn.Module, vector: Tensor) -> None:
    """Write a vector into the parameters that require a gradient, in place; the inverse of `flat_parameters`.

    Parameters
    ----------
    policy : nn.Module
        Whose.
    vector : Tensor, shape (P,)
        The values.

    Raises
    ------
    ShapeError
        If the vector has another length.
    """
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    layout = ParameterLayout.of(named)
    if vector.shape != (layout.size,):
        raise ShapeError(f"load_parameters: expected a vector of {layout.size} numbers, got {tuple(vector.shape)}")
    with torch.no_grad():
        for name, value in layout.unflatten(vector).items():
            named[name].copy_(value)


def _network(sizes: Sequence[int], bias: bool, generator: Generator | None) -> nn.Sequential:
    if min(sizes) < 1:
        raise ArgumentError(f"policy: every layer needs at least one unit, got sizes {tuple(sizes)}")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs, bias=bias)
        limit = math.sqrt(6 / (inputs + outputs))  # Glorot's, as in the official experiments
        with torch.no_grad():
            layer.weight.copy_(
                limit * (2 * uniform((outputs, inputs), layer.weight.dtype, layer.weight.device, generator) - 1)
            )
            if bias:
                layer.bias.zero_()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _log_softmax_at(logits: Tensor, actions: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _draw_index(logits: Tensor, generator: Generator | None) -> Tensor:
    # the largest of logits plus Gumbel noise; 1 - u lies in (0, 1], and the outer minimum keeps log 0 out
    u = uniform(tuple(logits.shape), logits.dtype, logits.device, generator)
    tiny = torch.finfo(logits.dtype).tiny
    exponential = -torch.log1p(-u)
    return (logits - exponential.clamp(min=tiny).log()).argmax(-1)


def _log_normal(mean: Tensor, std: Tensor, actions: Tensor) -> Tensor:
    z = (actions - mean) / std
    return -(z.square() / 2 + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
