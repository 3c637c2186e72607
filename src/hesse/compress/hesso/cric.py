"""CRIC: settle which groups are redundant along several trial trajectories, before any of them is cut."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from hesse.compress.hesso.slices import GroupSlices
from hesse.errors import ArgumentError, NumericalError

if TYPE_CHECKING:
    from hesse.compress.hesso.optimizer import HESSO

__all__ = ["CRIC", "CricRun"]


@dataclass(frozen=True, slots=True)
class CRIC:
    """Options of the corrective cycle.

    A score taken at one point judges groups by a straight line through it; once the wrong ones are gone, others look
    redundant. The cycle therefore fades the chosen groups out on trial, scores all groups on the way, goes back, and
    tries those that came to look redundant meanwhile, until no new ones do. Before that each family is probed by the
    loss when a part of it is zero.

    Parameters
    ----------
    sampling_steps : int, default 20
        Training steps of each cycle.
    max_cycles : int, default 10
        Cycles at most.
    tolerance : int, default 0
        A cycle that finds no more new groups than this is the last.
    trial_sparsities : tuple of float, default (0.25, 0.5, 0.75)
        Parts of a family zeroed in turn; each costs one step without training.
    loss_weight : float, default 1.0
        Weight of the family's mean relative loss under these trials, divided by the size of the family, in the score.

    Raises
    ------
    ArgumentError
        If an option is out of range.
    """

    sampling_steps: int = 20
    max_cycles: int = 10
    tolerance: int = 0
    trial_sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (("sampling_steps", 1), ("max_cycles", 1), ("tolerance", 0)):
            if getattr(self, name) < low:
                raise ArgumentError(f"CRIC: expected {name} >= {low}, got {getattr(self, name)}")
        if not all(0 < share < 1 for share in self.trial_sparsities):
            raise ArgumentError(f"CRIC: expected trial_sparsities between 0 and 1, got {self.trial_sparsities}")
        if not (self.loss_weight >= 0 and math.isfinite(self.loss_weight)):
            raise ArgumentError(f"CRIC: expected loss_weight >= 0, got {self.loss_weight}")


class CricRun:
    """The cycle under way: one call a training step, until it returns the scores to cut by.

    Parameters
    ----------
    options : CRIC
        How to go about it.
    optimizer : HESSO
        Whose scores, steps and budget are meant.
    """

    def __init__(self, options: CRIC, optimizer: "HESSO") -> None:
        self.options, self._optimizer = options, optimizer
        graph = optimizer.graph
        families = len(graph.families)
        self._probes = [(family, share) for family in range(families) for share in options.trial_sparsities]
        self._saved: dict[str, Tensor] = {}
        self._first_loss = 0.0
        self._probed = -1  # probes whose loss is known; -1: not begun
        self._ratios = torch.zeros(families, dtype=torch.float64)
        self._first_scores = self._score_sum = torch.zeros(graph.num_groups)
        self._num_scores = 0
        self._cycle = self._sampled = 0
        self._trial = self._next = self._history = torch.zeros_like(optimizer.pruned)

    def step(self, loss: Any) -> Tensor | None:
        """Do one training step's worth of the cycle.

        Parameters
        ----------
        loss : float or Tensor
            At the present parameters; read while families are probed.

        Returns
        -------
        Tensor or None
            Shape (G,): the scores to cut by, once settled; the parameters are then those from before the cycle.

        Raises
        ------
        ArgumentError
            If families are probed and ``loss`` is None.
        NumericalError
            If the loss before the probes is not finite, or zero.
        """
        if self._probed < len(self._probes):
            self._probe(loss)
            return None
        return self._sample()

    def _probe(self, loss: Any) -> None:
        if loss is None:
            raise ArgumentError("HESSO: CRIC is probing families and needs the loss: call step(loss=loss)")
        value = _mean_over_ranks(loss)
        if self._probed < 0:
            if not math.isfinite(value) or value == 0:
                raise NumericalError(f"HESSO: CRIC compares losses with the one before, which is {value}")
            self._first_loss = value
            self._first_scores = self._optimizer.score()
            self._save()
        else:
            family, _ = self._probes[self._probed]
            # a loss that overflows is as bad as can be; 1e6 keeps the scores finite
            ratio = min(value / self._first_loss, 1e6) if math.isfinite(value) else 1e6
            self._ratios[family] += ratio / len(self.options.trial_sparsities)
            self._restore()
        self._probed += 1
        if self._probed < len(self._probes):
            GroupSlices(self._optimizer.graph, self._lowest_of_family(*self._probes[self._probed])).scale_(0.0)
        else:
            self._begin_cycle(self._lowest(self._first_scores))

    def _lowest_of_family(self, family: int, share: float) -> Tensor:
        scores = self._first_scores
        members = (self._optimizer.graph.family_of == family).nonzero().squeeze(1).to(scores.device)
        chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        order = torch.argsort(scores[members], stable=True)
        chosen[members[order[: math.floor(share * len(members))]]] = True
        return chosen

    def _lowest(self, scores: Tensor) -> Tensor:
        return self._optimizer.select(scores, self._optimizer.total_budget)

    def _begin_cycle(self, trial: Tensor) -> None:
        self._trial = trial
        self._history = trial.clone() if self._cycle == 0 else self._history | trial
        self._next = torch.zeros_like(trial)
        self._cycle += 1
        self._sampled = 0

    def _sample(self) -> Tensor | None:
        optimizer, steps = self._optimizer, self.options.sampling_steps
        optimizer.base.step()
        left = steps - self._sampled
        slices = GroupSlices(optimizer.graph, self._trial)
        slices.scale_((left - 1) / left)
        scores = optimizer.score()
        self._score_sum = scores.clone() if self._num_scores == 0 else self._score_sum + scores
        self._num_scores += 1
        self._next |= self._lowest(scores) & ~self._trial & ~self._history
        self._sampled += 1
        if self._sampled < steps:
            return None
        self._restore()
        if int(self._next.sum()) > self.options.tolerance and self._cycle < self.options.max_cycles:
            self._begin_cycle(self._next)
            return None
        self._saved = {}
        return self._final_scores()

    def _final_scores(self) -> Tensor:
        mean = self._score_sum / self._num_scores
        family_of = self._optimizer.graph.family_of
        penalty = self._ratios / torch.bincount(family_of, minlength=len(self._ratios))
        return mean + self.options.loss_weight * penalty[family_of].to(mean)

    def _live(self) -> dict[str, Tensor]:
        # all that training changes: parameters, buffers and the wrapped optimiser's tensors
        module = self._optimizer.graph.module
        found = {f"module.{name}": t for name, t in [*module.named_parameters(), *module.named_buffers()]}
        place = 0
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        found[f"state.{place}.{key}"] = value
                place += 1
        return found

    def _save(self) -> None:
        self._saved = {name: tensor.detach().clone() for name, tensor in self._live().items()}

    def _restore(self) -> None:
        for name, tensor in self._live().items():
            if name in self._saved:
                tensor.copy_(self._saved[name])
            else:
                tensor.zero_()  # state that the optimiser made on the way

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run in the middle of the cycle needs to go on.

        Returns
        -------
        dict
            Tensors and numbers.
        """
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        return {name: getattr(self, name) for name in _NUMBERS} | tensors | {"_saved": dict(self._saved)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state : dict
            Of a run on the same network.
        """
        device = self._optimizer.pruned.device
        for name in (*_NUMBERS, *_TENSORS):
            value = state[name]
            setattr(self, name, value.to(device, copy=True) if isinstance(value, Tensor) else value)
        self._ratios = self._ratios.cpu()
        self._saved = {name: tensor.to(device, copy=True) for name, tensor in state["_saved"].items()}


_NUMBERS = ("_first_loss", "_probed", "_num_scores", "_cycle", "_sampled")
_TENSORS = ("_ratios", "_first_scores", "_score_sum", "_trial", "_next", "_history")


def _mean_over_ranks(loss: Any) -> float:
    # ranks see other batches; the choice must be one
    if not (dist.is_available() and dist.is_initialized()):
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    value = torch.as_tensor(loss, dtype=torch.float64).detach().clone()
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()
