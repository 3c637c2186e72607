"""The training loop of `hesse.pde.dcdm`, which can be stopped, saved as plain tensors, and continued to the same bits.

Shapes: N cells, K right-hand sides a batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Generator, Tensor, nn

from hesse._progress import progress
from hesse.errors import ArgumentError, ConvergenceError
from hesse.linalg.operator import LinearOperator
from hesse.linalg.stencil import PoissonStencil
from hesse.pde.dcdm.network import DCDMNet, direction_on_grid
from hesse.pde.dcdm.training import RitzSet, dcdm_loss, ritz_training_set

__all__ = ["OperatorFunction", "Training", "TrainingPlan"]

OperatorFunction = Callable[[Generator], PoissonStencil]
"""Draws the operator of one training step, for instance with obstacles in random places."""

_CHECK_AT = 600  # steps after which a network that has learnt nothing is thrown away
_DEAD_LOSS = 0.99
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The numbers that decide a training run; see `DeepConjugateDirection.fit`."""

    num_steps: int
    batch_size: int
    learning_rate: float
    num_ritz: int
    margin: int
    noise: float

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises
        ------
        ArgumentError
            If a number is out of range.
        """
        if self.num_steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ArgumentError(
                "fit: expected num_steps >= 1, batch_size >= 1 and learning_rate > 0, "
                f"got {self.num_steps}, {self.batch_size}, {self.learning_rate}"
            )
        if not 0 <= self.noise <= 1:
            raise ArgumentError(f"fit: expected 0 <= noise <= 1, got {self.noise}")

    def rate(self, step: int) -> float:
        """Fall by a cosine from ``learning_rate`` to a hundredth of it.

        Parameters
        ----------
        step : int
            From 0 to ``num_steps``.

        Returns
        -------
        float
            The learning rate of that step.
        """
        low = self.learning_rate / 100
        return low + (self.learning_rate - low) * (1 + math.cos(math.pi * step / self.num_steps)) / 2


class Training:
    """A network on its way, with everything that continuing needs.

    Parameters
    ----------
    plan : TrainingPlan
        How to train.
    network : nn.Module
        Trained in place, in its own dtype and on its own device.
    operator : LinearOperator, shape (N, N)
        A.
    grid : tuple of int
        Shape of the grid.
    generator : torch.Generator
        The run's own, on the CPU.
    operator_fn : callable, optional
        Draws another operator each step. Default: A itself.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        network: nn.Module,
        operator: LinearOperator,
        grid: tuple[int, ...],
        generator: Generator,
        operator_fn: OperatorFunction | None = None,
    ) -> None:
        weights = next(network.parameters())
        self.plan, self.network, self.grid, self.generator = plan, network, grid, generator
        self.operator_fn = operator_fn
        self.ritz_source = generator.get_state()
        self.ritz: RitzSet = ritz_training_set(
            operator, plan.num_ritz, margin=plan.margin, dtype=weights.dtype, generator=generator
        )
        self.operator = operator.to(dtype=weights.dtype)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
        self.step = 0
        self.attempts = 1
        self.losses: list[float] = []

    def run(self, stop_at: int) -> None:
        """Train until a step.

        Parameters
        ----------
        stop_at : int
            At most ``plan.num_steps``.

        Raises
        ------
        ConvergenceError
            If the network has learnt nothing in three attempts.
        """
        with progress("Training the network", stop_at - self.step, unit="steps") as advance:
            while self.step < stop_at:
                self.losses.append(self._one_step())
                self.step += 1
                advance(1)
                if self.step == _CHECK_AT:
                    recent = self.losses[-50:]
                    if not sum(recent) / len(recent) < _DEAD_LOSS:  # NaN counts as dead
                        self._restart()

    def _one_step(self) -> float:
        operator, mask = self.operator, None
        if self.operator_fn is not None:
            drawn = self.operator_fn(self.generator)
            operator, mask = drawn.to(dtype=self.operator.dtype), drawn.fluid
        b = self._batch(mask)
        direction = direction_on_grid(self.network, self.grid, mask)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        self.optimizer.zero_grad()
        # a batch of single columns: contiguous grids, which the stencil likes better than interleaved ones
        loss = dcdm_loss(operator, direction, b.T.contiguous().unsqueeze(-1))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _batch(self, mask: Tensor | None) -> Tensor:
        size, like = self.plan.batch_size, self.ritz.vectors
        num_noise = round(self.plan.noise * size)
        parts: list[Tensor] = []
        if size > num_noise:
            parts.append(self.ritz.sample(size - num_noise, generator=self.generator))
        if num_noise:
            parts.append(torch.randn(like.shape[0], num_noise, generator=self.generator).to(like))
        b = torch.cat(parts, dim=1)
        if mask is not None:
            b = torch.where(mask.reshape(-1, 1), b, 0)
        return b / torch.linalg.vector_norm(b, dim=0).clamp_min(torch.finfo(b.dtype).tiny)

    def _restart(self) -> None:
        if self.attempts >= _ATTEMPTS or not isinstance(self.network, DCDMNet):
            raise ConvergenceError(
                f"fit: the loss is still {self.losses[-1]:.3f} after {_CHECK_AT} steps in attempt {self.attempts}; "
                "lower learning_rate, or check that the operator is scaled to entries near one"
            )
        fresh = self.network.fresh(self.generator)
        self.network.load_state_dict(fresh.state_dict())
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.plan.learning_rate)
        self.step, self.losses = 0, []
        self.attempts += 1

    def tensors(self) -> dict[str, Tensor]:
        """Collect what continuing needs beside the network.

        Returns
        -------
        dict of str to Tensor
            Copies, fit for a safetensors file.
        """
        found: dict[str, Tensor] = {
            "plan": torch.tensor(astuple(self.plan), dtype=torch.float64),
            "grid": torch.tensor(self.grid),
            "step": torch.tensor([self.step, self.attempts]),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "generator": self.generator.get_state(),
            "ritz_source": self.ritz_source.clone(),
        }
        for name, weight in self.network.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                found[f"adam.{key}.{name}"] = torch.as_tensor(value).clone()
        return found

    @classmethod
    def resumed(
        cls,
        tensors: Mapping[str, Tensor],
        network: nn.Module,
        operator: LinearOperator,
        operator_fn: OperatorFunction | None = None,
    ) -> "Training":
        """Put a run together again.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            From `tensors`.
        network : nn.Module
            With the weights of that moment.
        operator : LinearOperator, shape (N, N)
            The same A.
        operator_fn : callable, optional
            The same as before.

        Returns
        -------
        Training
            Continues as if it had not been stopped.
        """
        values = tensors["plan"].tolist()
        plan = TrainingPlan(int(values[0]), int(values[1]), values[2], int(values[3]), int(values[4]), values[5])
        generator = torch.Generator()
        generator.set_state(tensors["ritz_source"].cpu())
        grid = tuple(int(length) for length in tensors["grid"])
        run = cls(plan, network, operator, grid, generator, operator_fn)
        generator.set_state(tensors["generator"].cpu())
        run.step, run.attempts = (int(value) for value in tensors["step"])
        run.losses = tensors["losses"].tolist()
        moments = [(*name.split(".", 2)[1:], value) for name, value in tensors.items() if name.startswith("adam.")]
        for name, weight in network.named_parameters():
            saved = {key: value.clone() for key, owner, value in moments if owner == name}
            if saved:
                run.optimizer.state[weight] = {
                    key: value if key == "step" else value.to(weight) for key, value in saved.items()
                }
        return run
