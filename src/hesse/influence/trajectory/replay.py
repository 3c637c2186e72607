"""Makes a training run again, with every sequence's loss carrying a weight.

The run is a chain of states (θ, what the optimizer remembers); one step is a pure function of a state and of how much
each of its sequences counts.   Shapes: N sequences, P weights, B sequences of a step.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse._progress import progress as progress_bar
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.checks import check_tokens
from hesse.influence.examples import Examples, as_examples
from hesse.influence.objective import CausalLMLoss, Loss, LossOutput
from hesse.influence.passes import check_model
from hesse.influence.swapping import call_with, differentiable_attention
from hesse.influence.trajectory.optimizers import clip_gradient, decay_mask
from hesse.influence.trajectory.schedule import TrainingSchedule
from hesse.linalg.layout import ParameterLayout

__all__ = ["Replay", "State", "open_replay", "replay"]


@dataclass(frozen=True, slots=True)
class State:
    """Weights and the optimizer's memory between two steps."""

    weights: Tensor  # (P,)
    memory: tuple[Tensor, ...]  # (P,) each


@dataclass(frozen=True)
class Replay:
    """A run ready to be made again."""

    model: nn.Module
    loss: Loss
    examples: Examples
    schedule: TrainingSchedule
    layout: ParameterLayout
    first: Tensor  # (P,) weights before step 0
    counts: Tensor  # (N,) how much each sequence counts
    decays: Tensor | None  # (P,) 1 where a weight decays, 0 where not; None if all do

    def start(self) -> State:
        """Take the state before the first step.

        Returns
        -------
        State
            With an optimizer that remembers nothing.
        """
        return State(self.first, self.schedule.optimizer.start(self.first))

    def call(self, function: Callable[[nn.Module, Any], Any], weights: Tensor, batch: Mapping[str, Any]) -> Any:
        """Evaluate a function of model and batch at other weights than the model's.

        Parameters
        ----------
        function : callable
            A loss or a measurement.
        weights : Tensor, shape (P,)
            θ.
        batch : mapping
            As the function takes it.

        Returns
        -------
        object
            What it returns, differentiable in the weights.
        """
        with differentiable_attention():
            return call_with(self.model, function, self.layout.unflatten(weights), batch)

    def losses(self, weights: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum the loss of every sequence of a batch, at other weights than the model's.

        Parameters
        ----------
        weights : Tensor, shape (P,)
            θ.
        batch : mapping
            As the loss takes it.

        Returns
        -------
        losses : Tensor, shape (B,)
            In nats.
        num_tokens : Tensor, shape ()
            Supervised positions.
        """
        output: LossOutput = self.call(self.loss, weights, batch)
        return output.per_token.sum(tuple(range(1, output.per_token.dim()))), output.valid.sum()

    def objective(self, weights: Tensor, number: int, counts: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Compute what a step lowers: Σ w_n L_n / D_t over its batch, or with the shares of the schedule.

        Parameters
        ----------
        weights : Tensor, shape (P,)
            θ.
        number : int
            t.
        counts : Tensor, shape (B,)
            w, how much each sequence of this step counts.
        batch : mapping
            Its sequences, from `batch`.

        Returns
        -------
        Tensor, shape ()
            Differentiable in weights and counts.

        Raises
        ------
        ShapeError
            If the loss does not tell sequences apart.
        """
        losses, num_tokens = self.losses(weights, batch)
        if losses.shape != counts.shape:
            raise ShapeError(
                f"dataset: a batch of {len(counts)} sequences has losses of shape {tuple(losses.shape)}; do not pack"
            )
        shares = self.schedule.shares
        if shares is not None:
            return (counts * losses) @ torch.tensor(shares[number], dtype=losses.dtype, device=losses.device)
        return (counts * losses).sum() / (len(losses) if self.schedule.per == "sequences" else num_tokens.clamp(min=1))

    def batch(self, indices: Items[int], examples: Examples | None = None) -> dict[str, Tensor]:
        """Collate sequences, on the model's device.

        Parameters
        ----------
        indices : sequence of int
            Which.
        examples : Examples, optional
            Of which data. Default: the training set.

        Returns
        -------
        dict of str to Tensor
            As the loss takes it.
        """
        data = self.examples if examples is None else examples
        return {key: value.to(self.first.device) for key, value in data.batch(indices).items()}

    def step(self, state: State, number: int, counts: Tensor, *, create_graph: bool = False) -> State:
        """Make one step.

        Parameters
        ----------
        state : State
            Before it; its weights require a gradient.
        number : int
            t.
        counts : Tensor, shape (B,)
            How much each sequence of this step counts.
        create_graph : bool, default False
            Whether the new state shall be differentiable in the old one and in the counts.

        Returns
        -------
        State
            After it.

        Raises
        ------
        NumericalError
            If the loss is NaN or Inf.
        """
        schedule = self.schedule
        total = self.objective(state.weights, number, counts, self.batch(schedule.batches[number]))
        if not bool(torch.isfinite(total.detach())):
            raise NumericalError(f"schedule: the loss of step {number} is NaN or Inf; the training run diverged")
        (grad,) = torch.autograd.grad(total, state.weights, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            grad = clip_gradient(grad, schedule.optimizer.clip_norm)
            rate = schedule.learning_rates[number]
            return State(*schedule.optimizer.step(state.weights, state.memory, grad, rate, number, self.decays))

    def advance(self, state: State, number: int) -> State:
        """Make one step without a graph.

        Parameters
        ----------
        state : State
            Before it.
        number : int
            t.

        Returns
        -------
        State
            After it.
        """
        leaf = State(state.weights.detach().requires_grad_(), state.memory)
        after = self.step(leaf, number, self.counts[list(self.schedule.batches[number])])
        return State(after.weights.detach(), after.memory)


def open_replay(
    model: nn.Module,
    dataset: Any,
    schedule: TrainingSchedule,
    *,
    initial: Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
    counts: Tensor | None = None,
) -> Replay:
    """Check that model, data and schedule fit together.

    Parameters
    ----------
    model, dataset, schedule, initial, loss, counts : see `replay`
        As there.

    Returns
    -------
    Replay
        Ready.

    Raises
    ------
    ArgumentError
        If they do not.
    ShapeError
        If the first weights or the counts have another shape.
    """
    check_model(model)
    examples = as_examples(dataset)
    check_tokens(model, examples, "dataset")
    schedule.check_size(len(examples))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ArgumentError("model: no parameter requires a gradient, so nothing was trained")
    dtypes = {p.dtype for p in trained.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ArgumentError(f"model: expected weights in float32 or in float64, got {sorted(map(str, dtypes))}")
    layout = ParameterLayout.of(trained)
    source = trained if initial is None else {name: initial[name] for name in _checked(initial, trained)}
    first = layout.flatten({name: t.detach().to(trained[name]) for name, t in source.items()})
    if counts is None:
        counts = torch.ones(len(examples))
    if counts.shape != (len(examples),):
        raise ShapeError(f"counts: expected one for each of the {len(examples)} sequences, got {tuple(counts.shape)}")
    objective: Loss = CausalLMLoss() if loss is None else loss
    decays = decay_mask(schedule.optimizer, layout, first)
    return Replay(model, objective, examples, schedule, layout, first, counts.to(first), decays)


def replay(
    model: nn.Module,
    dataset: Any,
    schedule: TrainingSchedule,
    *,
    initial: Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
    counts: Tensor | None = None,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """Train: make every step of a schedule, exactly as `magic` differentiates it.

    Parameters
    ----------
    model : nn.Module
        In eval mode, since dropout cannot be replayed; in float32 or float64. Parameters that require no gradient are
        not trained. Not changed.
    dataset : Examples, or anything `as_examples` takes
        The training set, in the order that the schedule's numbers mean.
    schedule : TrainingSchedule
        Steps.
    initial : mapping of str to Tensor, optional
        Weights before the first step, such as ``TrainingRecord.weights(0)``. Default: the model's own.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.
    counts : Tensor, shape (N,), optional
        How often each sequence counts: 0 leaves it out, 2 is one more copy. Default: once.
    progress : bool, optional
        Show a bar on stderr. Default: if it is a terminal.

    Returns
    -------
    dict of str to Tensor
        Weights after the last step, by name.

    Raises
    ------
    ArgumentError
        If model, data and schedule do not fit together.
    NumericalError
        If the training diverges.
    """
    run = open_replay(model, dataset, schedule, initial=initial, loss=loss, counts=counts)
    state = run.start()
    with progress_bar("training", len(schedule), unit="steps", enabled=progress) as shown:
        for t in range(len(schedule)):
            state = run.advance(state, t)
            shown(1)
    return {name: value.clone() for name, value in run.layout.unflatten(state.weights).items()}


def _checked(initial: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> list[str]:
    for name, parameter in trained.items():
        if name not in initial:
            raise ArgumentError(f"initial: it has no {name!r}, which the model trains")
        if initial[name].shape != parameter.shape:
            raise ShapeError(
                f"initial: {name!r} has shape {tuple(initial[name].shape)}, the model's {tuple(parameter.shape)}"
            )
    return list(trained)
