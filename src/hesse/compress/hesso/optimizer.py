"""HESSO: train once with any optimiser, and end with a network from which whole groups can be cut."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from hesse.compress.graph import DependencyGraph, SlimReport, slim_report
from hesse.compress.hesso.compaction import become, old_groups, retarget
from hesse.compress.hesso.cric import CRIC, CricRun
from hesse.compress.hesso.scores import Normalization, check_criteria, check_options, group_scores
from hesse.compress.hesso.selection import select_groups
from hesse.compress.hesso.slices import GroupSlices
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["HESSO"]

Direction = Literal["gradient", "update"]
Budget = Literal["groups", "parameters", "flops"]


class HESSO(Optimizer):
    """Wrap an optimiser so that it takes the most redundant groups of a network to zero while it trains.

    Warm-up, then P periods of τ steps, then plain training with the zeros held. A period begins with the choice of the
    groups of lowest score (`group_scores`) among those left; all parameters then take the wrapped optimiser's steps,
    and after step t of the period the chosen groups are multiplied by (τ - t - 1) / (τ - t), which takes them to
    exactly zero along a straight line. There is no penalty and no threshold. `hesse.compress.slim` cuts the zeros out.

    Parameters
    ----------
    graph : DependencyGraph
        Of the module that is trained.
    base : Optimizer, or callable
        An optimiser of the module's parameters, or a class or function that makes one from them.
    target_sparsity : float, default 0.5
        Share of the budget to cut, in [0, 1).
    start_step : int, default 0
        Steps of warm-up; 10 to 20 % of all are usual.
    pruning_steps : int, default 100
        Steps of all periods together, up to half of all; τ = pruning_steps // periods.
    periods : int, default 5
        P. More of them spread the cut; the published code has 1.
    group_divisible : int, default 1
        What stays of a family is a multiple of it (8 or 16 suit hardware). Less may be cut on that account.
    min_keep : int, default 1
        Groups that stay of every family.
    criteria : mapping of str to float, optional
        Weights of the criteria. Default: 0.2 each of the five of `group_scores`, and of those in ``extra_scores``.
    normalize : {"family", "global"}, default "family"
        How scores of different layers are compared, see `combine_scores`; "global" is the published rule.
    cosine_sign : {1, -1}, default 1
        Sign of the cosine in the score, see `group_scores`.
    direction : {"gradient", "update"}, default "gradient"
        What the scores take for v: the gradient, or the wrapped optimiser's step over its lr, momentum and all.
    score_ema : float, default 0.0
        β in [0, 1): scores are averaged, s ← β s + (1 - β) s_now, over all steps. 0: those of the moment, which are
        then computed at the beginning of a period only.
    budget : {"groups", "parameters", "flops"}, default "groups"
        What ``target_sparsity`` is a share of, see `DependencyGraph.costs`.
    extra_scores : mapping of str to callable, optional
        Criteria of your own, () -> Tensor of shape (G,), called whenever scores are computed; for instance `obs_scores`
        on gradients kept aside.
    cric : CRIC, optional
        Settles the scores along several trial trajectories before anything is cut; all periods then cut by them. It
        begins at ``start_step``, lasts as long as it takes, and needs ``step(loss=...)``.

    Attributes
    ----------
    base : Optimizer
        What makes the steps; its ``param_groups`` and ``state`` are this optimiser's own.
    pruned : Tensor, shape (G,)
        bool: groups held at zero.

    Raises
    ------
    ArgumentError
        If an option is out of range, ``pruning_steps < periods``, or the optimiser has none of the graph's parameters.
    ArgumentTypeError
        If ``base`` is neither an optimiser nor makes one.

    Notes
    -----
    Schedulers and `torch.amp.GradScaler` take it for what it wraps; a step that a scaler leaves out does not count.
    Under data parallelism all ranks choose alike, since gradients and weights are equal. Momentum and the like of
    groups at zero are zeroed with them, so that weight decay and momentum have no hold. A step costs O(entries of the
    groups in question) beside the wrapped one; scoring O(P).

    References
    ----------
    T. Chen et al. (2024), arXiv 2409.09085.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> graph = DependencyGraph(net, torch.zeros(1, 4))
    >>> optimizer = HESSO(graph, torch.optim.SGD(net.parameters(), lr=0.1), pruning_steps=4, periods=2)
    >>> for _ in range(4):
    ...     net(torch.ones(3, 4)).square().sum().backward()
    ...     optimizer.step()
    >>> optimizer.sparsity, int(graph.zero_groups().sum())
    (0.5, 4)
    """

    def __init__(
        self,
        graph: DependencyGraph,
        base: Optimizer | Callable[[Iterable[Tensor]], Optimizer],
        target_sparsity: float = 0.5,
        start_step: int = 0,
        pruning_steps: int = 100,
        periods: int = 5,
        group_divisible: int = 1,
        min_keep: int = 1,
        criteria: Mapping[str, float] | None = None,
        normalize: Normalization = "family",
        cosine_sign: int = 1,
        direction: Direction = "gradient",
        score_ema: float = 0.0,
        budget: Budget = "groups",
        extra_scores: Mapping[str, Callable[[], Tensor]] | None = None,
        cric: CRIC | None = None,
    ) -> None:
        if not 0 <= target_sparsity < 1:
            raise ArgumentError(f"HESSO: expected target_sparsity in [0, 1), got {target_sparsity}")
        least = (("start_step", start_step, 0), ("periods", periods, 1), ("min_keep", min_keep, 1))
        for name, value, low in (*least, ("group_divisible", group_divisible, 1)):
            if not isinstance(value, int) or value < low:
                raise ArgumentError(f"HESSO: expected {name} >= {low}, an integer, got {value}")
        if not isinstance(pruning_steps, int) or pruning_steps < periods:
            raise ArgumentError(f"HESSO: expected pruning_steps >= periods = {periods}, got {pruning_steps}")
        if not 0 <= score_ema < 1:
            raise ArgumentError(f"HESSO: expected score_ema in [0, 1), got {score_ema}")
        if direction not in ("gradient", "update"):
            raise ArgumentError(f'HESSO: direction must be "gradient" or "update", got {direction!r}')
        check_options("HESSO", normalize, cosine_sign)
        self._extra = dict(extra_scores or {})
        self._criteria = check_criteria("HESSO", criteria, self._extra)
        self._costs = graph.costs(budget)
        self._total_cost, self._cost_gone = float(self._costs.sum()), 0.0  # of all groups; of those cut out for good
        self._whole = budget == "groups"
        self.base = _make_base(graph, base)
        super().__init__(self.base.param_groups, self.base.defaults)
        self._link()
        self.graph = graph
        self.target_sparsity, self.start_step, self.periods = target_sparsity, start_step, periods
        self.min_keep, self.group_divisible = min_keep, group_divisible
        self._normalize: Normalization = normalize
        self._cosine_sign, self._direction, self._ema_decay = cosine_sign, direction, score_ema
        self._period_steps = pruning_steps // periods
        self._step_count = 0
        self._begin = start_step if cric is None else None  # step at which the first period begins, once known
        device = next((p.device for _, p in graph.producers()), torch.device("cpu"))
        self.pruned = torch.zeros(graph.num_groups, dtype=torch.bool, device=device)
        self._active = torch.zeros_like(self.pruned)
        self._ema: Tensor | None = None
        self._settled: Tensor | None = None  # CRIC's scores
        self._cric = None if cric is None else CricRun(cric, self)
        self._find_slices()

    @property
    def sparsity(self) -> float:
        """Share of the budget that is at zero now."""
        return (self._cost_gone + float(self._costs[self.pruned.cpu()].sum())) / self._total_cost

    @property
    def total_budget(self) -> float:
        """What shall be cut in the end, in units of the budget."""
        total = self.target_sparsity * self._total_cost
        return math.floor(total + 1e-9) if self._whole else total

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimiser.

        Parameters
        ----------
        param_group : dict
            As of any torch optimiser. Groups of the graph are not changed by it.
        """
        if getattr(self, "_linked", False):
            self.base.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Make one step of the wrapped optimiser, and one of the schedule.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss anew and returns it, after `zero_grad` and with `backward`; called once.
        loss : float or Tensor, optional
            Loss at the present parameters; CRIC needs it (or a closure) while it probes.

        Returns
        -------
        float or Tensor, optional
            What the closure returned.

        Raises
        ------
        ArgumentError
            If CRIC probes and no loss is given.
        """
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
            loss = returned if loss is None else loss
        with torch.no_grad():
            if self._cric is not None and self._begin is None and self._step_count >= self.start_step:
                self._settled = self._cric.step(loss)
                if self._settled is not None:
                    self._begin = self._step_count + 1
            else:
                self._train()
        self._step_count += 1
        return returned

    def _train(self) -> None:
        at = None if self._begin is None else self._step_count - self._begin
        within = at is not None and 0 <= at < self._period_steps * self.periods
        begins = within and at is not None and at % self._period_steps == 0 and self.target_sparsity > 0
        scores = self._base_step(score=self._ema_decay > 0 or (begins and self._settled is None))
        if begins and at is not None:
            self._choose(scores, 1 + at // self._period_steps)
        if within and at is not None:
            left = self._period_steps - at % self._period_steps
            self._active_slices.scale_((left - 1) / left)
            if left == 1:
                self.pruned |= self._active
                self._active = torch.zeros_like(self.pruned)
                self._find_slices()
        self._hold_zeros()

    def _base_step(self, *, score: bool) -> Tensor | None:
        # let the wrapped optimiser make its step; scores of the parameters before it, if wanted
        if not score:
            self.base.step()
            return None
        before = {axis.name: p.detach() for axis, p in self.graph.producers()}
        if self._direction == "update":
            before = {name: p.clone() for name, p in before.items()}
            self.base.step()
            scores = self.score(self._updates(before), before)
        else:
            scores = self.score()
            self.base.step()
        if self._ema_decay == 0:
            return scores
        self._ema = scores if self._ema is None else torch.lerp(scores, self._ema, self._ema_decay)
        return self._ema

    def score(
        self, directions: Mapping[str, Tensor] | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Scores of all groups now, by this optimiser's options.

        Parameters
        ----------
        directions : mapping of str to Tensor, optional
            v by parameter name. Default: the gradients.
        weights : mapping of str to Tensor, optional
            w by parameter name. Default: the module's parameters.

        Returns
        -------
        Tensor, shape (G,)
            Low is redundant.
        """
        if directions is None:
            directions = {axis.name: p.grad for axis, p in self.graph.producers() if p.grad is not None}
        extra = {name: function() for name, function in self._extra.items()}
        return group_scores(
            self.graph,
            directions,
            self._criteria,
            weights=weights,
            normalize=self._normalize,
            cosine_sign=self._cosine_sign,
            extra=extra,
        ).to(self.pruned.device)

    def select(self, scores: Tensor, budget: float) -> Tensor:
        """Choose groups of lowest score that fill a budget, those at zero among them.

        Parameters
        ----------
        scores : Tensor, shape (G,)
            Low is redundant.
        budget : float
            In units of the budget; what `compact` took away counts.

        Returns
        -------
        Tensor, shape (G,)
            bool.
        """
        return select_groups(
            scores,
            self.pruned,
            self.graph.family_of,
            self._costs,
            budget - self._cost_gone,
            min_keep=self.min_keep,
            group_divisible=self.group_divisible,
        )

    def _updates(self, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # what the optimiser took off, over its step length
        lengths = {id(p): float(group.get("lr", 1.0)) or 1.0 for group in self.param_groups for p in group["params"]}
        return {
            axis.name: (before[axis.name] - p.detach()) / lengths[id(p)]
            for axis, p in self.graph.producers()
            if id(p) in lengths
        }

    def _choose(self, scores: Tensor | None, period: int) -> None:
        total = self.total_budget
        share = total * period / self.periods
        if self._whole and period < self.periods:
            share = int(total) // self.periods * period  # the last period takes the remainder
        scores = scores if self._settled is None else self._settled
        if scores is not None:
            self._active = self.select(scores, share) & ~self.pruned
        self._find_slices()

    def _find_slices(self) -> None:
        self._active_slices = GroupSlices(self.graph, self._active)
        self._pruned_slices = GroupSlices(self.graph, self.pruned)

    def _hold_zeros(self) -> None:
        self._pruned_slices.scale_(0.0)
        self._pruned_slices.zero_state_(self.state)

    @torch.no_grad()
    def finalize(self) -> None:
        """Take groups that are still on their way to zero there at once; for a training that ended before its schedule.

        Warns
        -----
        UserWarning
            If a group was on its way, or the schedule had not come so far as to choose all groups.
        """
        if bool(self._active.any()):
            warnings.warn(
                f"HESSO: training ended in the middle of a period; {int(self._active.sum())} groups were cut off "
                "before they had faded out. Make start_step + pruning_steps fit into the training.",
                stacklevel=2,
            )
            self.pruned |= self._active
            self._active = torch.zeros_like(self.pruned)
            self._find_slices()
        end = None if self._begin is None else self._begin + self._period_steps * (self.periods - 1)
        if self.target_sparsity > 0 and (end is None or self._step_count <= end):
            warnings.warn(
                f"HESSO: training ended after {self._step_count} steps, before the last period began; the sparsity is "
                f"{self.sparsity:.3f} instead of {self.target_sparsity}.",
                stacklevel=2,
            )
        self._hold_zeros()

    @torch.no_grad()
    def compact(self) -> SlimReport:
        """Cut the groups that are at zero out of the network now, and train on with the smaller one.

        The module stays the same object, with smaller parameters; momentum and the like are cut with them, and
        ``graph`` is made anew. Outputs and gradients are as they would have been; scores are too, but for columns that
        read what is gone, which groups no longer hold. The end of a period is the time for it.
        Whoever holds a submodule or a parameter must fetch it again.

        Returns
        -------
        SlimReport
            Whose module is the network itself.

        Raises
        ------
        ArgumentError
            If CRIC is under way, or the smaller network cannot be run.
        NumericalError
            If its outputs differ, or its groups.
        """
        if self._cric is not None and self._begin is None and self._step_count > self.start_step:
            raise ArgumentError("HESSO.compact: CRIC is under way and would go back to the larger network")
        graph, module = self.graph, self.graph.module
        pruned = self.pruned.cpu()
        report = slim_report(graph, groups=pruned)
        new = DependencyGraph(report.module, graph.example_inputs, graph.skip, graph.head_mode)
        places = old_groups(graph, new, report)
        parameters = dict(module.named_parameters())
        become(module, report.module)
        new.module = module
        retarget(self.base, parameters, module, report)
        self._link()
        self.graph = new
        self._cost_gone += float(self._costs[pruned].sum())
        self._costs = self._costs[places]
        places = places.to(self.pruned.device)
        self.pruned, self._active = self.pruned[places], self._active[places]
        self._ema = None if self._ema is None else self._ema[places]
        self._settled = None if self._settled is None else self._settled[places]
        self._find_slices()
        return replace(report, module=module)

    def state_dict(self) -> dict[str, Any]:
        """Give the wrapped optimiser's state, and under "hesso" the place in the schedule, down to the step.

        Returns
        -------
        dict
            Tensors, numbers and lists.
        """
        own: dict[str, Any] = {
            "step": self._step_count,
            "begin": self._begin,
            "cost_gone": self._cost_gone,
            "pruned": self.pruned.clone(),
            "active": self._active.clone(),
            "ema": None if self._ema is None else self._ema.clone(),
            "settled": None if self._settled is None else self._settled.clone(),
            "cric": None if self._cric is None else self._cric.state_dict(),
        }
        return self.base.state_dict() | {"hesso": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another optimiser of the same network and options was.

        Parameters
        ----------
        state_dict : dict
            From `state_dict`; the parameters must be restored by the caller, as with any optimiser.

        Raises
        ------
        ArgumentError
            If it is of another kind, or of a network with other groups.
        """
        own = state_dict.get("hesso")
        if own is None:
            raise ArgumentError('HESSO.load_state_dict: no entry "hesso"; this is the state of a plain optimiser')
        if own["pruned"].shape != self.pruned.shape:
            raise ArgumentError(
                f"HESSO.load_state_dict: the state is of {len(own['pruned'])} groups, the graph has {len(self.pruned)}"
            )
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "hesso"})
        self._link()
        self._step_count, self._begin, self._cost_gone = own["step"], own["begin"], own["cost_gone"]
        self.pruned, self._active = (own[key].to(self.pruned.device, copy=True) for key in ("pruned", "active"))
        self._ema, self._settled = (
            None if own[key] is None else own[key].to(self.pruned.device, copy=True) for key in ("ema", "settled")
        )
        if self._cric is not None and own["cric"] is not None:
            self._cric.load_state_dict(own["cric"])
        self._find_slices()

    def _link(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._linked = True


def _make_base(graph: DependencyGraph, base: Any) -> Optimizer:
    if not isinstance(base, Optimizer):
        if not callable(base):
            raise ArgumentTypeError(f"HESSO: base must be an optimiser or make one, got {type(base).__name__}")
        base = base(p for p in graph.module.parameters() if p.requires_grad)
        if not isinstance(base, Optimizer):
            raise ArgumentTypeError(f"HESSO: base made a {type(base).__name__}, not an optimiser")
    held = {id(p) for group in base.param_groups for p in group["params"]}
    if not any(id(p) in held for _, p in graph.producers()):
        raise ArgumentError("HESSO: base has none of the parameters that the graph could cut")
    return base
