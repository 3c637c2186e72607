"""CRIC: settle which groups are redundant along several trial trajectories, before any of them is cut."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

from hesse.compress.hesso.slices import GroupSlices
from hesse.errors import ArgumentError, NumericalError

if TYPE_CHECKING:
    from hesse.compress.hesso.optimizer import HESSO

__all__ = ["CRIC", "CricRun", "marginal_losses"]

LossTerm = Literal["marginal", "family"]


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
    trial_sparsities : tuple of float, default (0.25, 0.5, 0.75, 0.9)
        Parts of a family zeroed in turn, rising; each costs one step without training. Published: the first three,
        which say nothing about what the last groups of a family are worth.
    loss_weight : float, default 1.0
        Weight of what these trials tell, in the score.
    loss_term : {"marginal", "family"}, default "marginal"
        "marginal": a group bears its share of the loss that its own stretch of the family adds, see `marginal_losses`,
        divided by the L2 norm over all groups as the criteria are. "family", the published rule: all groups of a family
        bear its mean relative loss over its size, as it is. Where the loss before is small, that is far larger than the
        criteria; families are then emptied one after the other.

    Raises
    ------
    ArgumentError
        If an option is out of range.
    """

    sampling_steps: int = 20
    max_cycles: int = 10
    tolerance: int = 0
    trial_sparsities: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    loss_weight: float = 1.0
    loss_term: LossTerm = "marginal"

    def __post_init__(self) -> None:
        for name, low in (("sampling_steps", 1), ("max_cycles", 1), ("tolerance", 0)):
            if getattr(self, name) < low:
                raise ArgumentError(f"CRIC: expected {name} >= {low}, got {getattr(self, name)}")
        shares = (0, *self.trial_sparsities, 1)
        if not all(low < high for low, high in pairwise(shares)):
            raise ArgumentError(f"CRIC: expected rising trial_sparsities in (0, 1), got {self.trial_sparsities}")
        if not (self.loss_weight >= 0 and math.isfinite(self.loss_weight)):
            raise ArgumentError(f"CRIC: expected loss_weight >= 0, got {self.loss_weight}")
        if self.loss_term not in ("marginal", "family"):
            raise ArgumentError(f'CRIC: loss_term must be "marginal" or "family", got {self.loss_term!r}')


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
        self._ratios = torch.zeros(families, len(options.trial_sparsities), dtype=torch.float64)
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
            # a loss that overflows is as bad as can be; 1e6 keeps the scores finite
            ratio = min(value / self._first_loss, 1e6) if math.isfinite(value) else 1e6
            self._ratios.view(-1)[self._probed] = ratio
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
        scores = optimizer.score()  # before the step: weights and gradients of the same point
        optimizer.base.step()
        left = steps - self._sampled
        slices = GroupSlices(optimizer.graph, self._trial)
        slices.scale_((left - 1) / left)
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
        if self._ratios.numel() == 0:
            return mean
        family_of = self._optimizer.graph.family_of
        if self.options.loss_term == "family":
            term = (self._ratios.mean(1) / torch.bincount(family_of, minlength=len(self._ratios)))[family_of]
        else:
            term = marginal_losses(self._first_scores, self._ratios, family_of, self.options.trial_sparsities)
            term = term / (torch.linalg.vector_norm(term) + 1e-8)
        return mean + self.options.loss_weight * term.to(mean)

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


def marginal_losses(scores: Tensor, ratios: Tensor, family_of: Tensor, trial_sparsities: tuple[float, ...]) -> Tensor:
    """Share the rise of the loss out among the groups of each stretch of a family that is zeroed from the lowest score.

    With trials at k_0 = 0 < k_1 < ... of a family's groups and relative losses 1 = r_0, r_1, ..., made not to fall:
    groups from k_(j-1) to k_j in the order of scores bear (r_j - r_(j-1)) / (k_j - k_(j-1)) each; those beyond the last
    trial bear as much as the stretch before.

    Parameters
    ----------
    scores : Tensor, shape (G,)
        By which the trials zeroed groups, lowest first.
    ratios : Tensor, shape (F, T)
        Loss under each trial over the loss before.
    family_of : Tensor, shape (G,)
        Family of every group.
    trial_sparsities : tuple of float
        T parts of a family, rising; as many groups are meant as fit in whole.

    Returns
    -------
    Tensor, shape (G,)
        float64, on the CPU, none negative. Their sum over the groups up to the last trial is its rise of the loss.
    """
    found = torch.zeros(len(scores), dtype=torch.float64)
    for family, row in enumerate(ratios.tolist()):
        members = (family_of == family).nonzero().squeeze(1).cpu()
        order = members[torch.argsort(scores.cpu()[members], stable=True)]
        last, ratio, each = 0, 1.0, 0.0
        for share, value in zip(trial_sparsities, row, strict=True):
            count, high = math.floor(share * len(members)), max(ratio, value)
            if count > last:
                each = (high - ratio) / (count - last)
                found[order[last:count]] = each
                last, ratio = count, high
        found[order[last:]] = each
    return found


_NUMBERS = ("_first_loss", "_probed", "_num_scores", "_cycle", "_sampled")
_TENSORS = ("_ratios", "_first_scores", "_score_sum", "_trial", "_next", "_history")


def _mean_over_ranks(loss: Any) -> float:
    # ranks see other batches; the choice must be one
    if not (dist.is_available() and dist.is_initialized()):
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    value = torch.as_tensor(loss, dtype=torch.float64).detach().clone()
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()
