"""Settings that make a run fit a budget, those given up first that cost the least accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from hesse.curvature.layers import TrackedLayer
from hesse.errors import ArgumentError
from hesse.influence.plan.rates import Rates
from hesse.influence.plan.stages import plan_stages, rates_here
from hesse.influence.plan.workload import Plan, Workload

__all__ = ["Budget", "Proposal", "propose_plan"]

# From what changes no score to what changes most. Levels are tried in order; each halves or quarters its cost.
_KNOBS: tuple[str, ...] = ("batch_tokens", "blocks", "length", "rank", "fitted_on", "num_sequences")
_FEWEST_TOKENS, _MOST_BLOCKS, _SHORTEST, _LOWEST_RANK, _FEWEST_FITTED = 256, 16, 128, 8, 1000


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may take: seconds in all, bytes of memory at the peak, bytes of disk. None: any amount.

    Raises
    ------
    ArgumentError
        If a limit is not positive.
    """

    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and not limit > 0:
                raise ArgumentError(f"{field.name}: expected > 0, got {limit}")

    def exceeded(self, plan: Plan) -> tuple[str, ...]:
        """Name the limits that a plan breaks.

        Parameters
        ----------
        plan : Plan
            What a run takes.

        Returns
        -------
        tuple of str
            Of "seconds", "memory", "disk".
        """
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return tuple(name for name, limit in limits.items() if limit is not None and getattr(plan, name) > limit)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings, what they take, and what was changed for it.

    ``exceeded`` names the limits that no settings meet; it is empty when the plan fits. ``num_sequences`` below the
    number asked for means: score a share of them, chosen by a filter.
    """

    plan: Plan
    blocks: int
    max_length: float
    changed: Mapping[str, tuple[float, float]]  # name: as asked, as proposed
    exceeded: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values.

        Returns
        -------
        dict
            For JSON.
        """
        changed = {name: list(pair) for name, pair in self.changed.items()}
        settings = {"blocks": self.blocks, "max_length": self.max_length, "changed": changed}
        return self.plan.to_dict() | settings | {"exceeded": list(self.exceeded)}


def propose_plan(
    model: nn.Module,
    layers: Mapping[str, TrackedLayer],
    workload: Workload,
    budget: Budget,
    *,
    strategy: str = "ekfac",
    blocks: int = 1,
    processes: int = 1,
    rates: Rates | None = None,
) -> Proposal:
    """Find settings under which a run fits a budget.

    Settings are lowered in this order, each only as long as it helps a limit that is broken: tokens a batch (changes no
    score), blocks of the factors, tokens a sequence (longer rows are cut into pieces), rank of the queries, sequences
    of the fit, sequences that are scored. Then each is raised again, the last first, as far as the budget lets it.

    Parameters
    ----------
    model : nn.Module
        On any device.
    layers : mapping of str to TrackedLayer
        Those that will be tracked.
    workload : Workload
        What is wanted.
    budget : Budget
        What it may take.
    strategy : {"ekfac", "kfac", "shampoo", "diagonal", "identity"}, default "ekfac"
        Never changed.
    blocks : int, default 1
        The fewest blocks of the factors.
    processes : int, default 1
        That share the work.
    rates : Rates, default rates_here(model)
        How fast the machine is.

    Returns
    -------
    Proposal
        With ``exceeded`` empty if it fits; otherwise the settings that come closest.
    """
    rates = rates_here(model) if rates is None else rates
    levels = _levels(workload, blocks)
    at = dict.fromkeys(_KNOBS, 0)

    def plan_at(at: Mapping[str, int]) -> Plan:
        chosen = {name: levels[name][at[name]] for name in _KNOBS}
        pieces = workload.mean_length / chosen["length"]
        settled = replace(
            workload,
            mean_length=chosen["length"],
            batch_tokens=int(max(chosen["batch_tokens"], chosen["length"])),
            rank=None if workload.rank is None and not at["rank"] else int(chosen["rank"]),
            fitted_on=round(chosen["fitted_on"] * pieces),
            num_sequences=round(chosen["num_sequences"] * pieces),
        )
        split = int(chosen["blocks"])
        return plan_stages(model, layers, settled, strategy=strategy, blocks=split, processes=processes, rates=rates)

    plan = plan_at(at)
    for name in _KNOBS:
        while (broken := budget.exceeded(plan)) and at[name] + 1 < len(levels[name]):
            lower = at | {name: at[name] + 1}
            tried = plan_at(lower)
            if not any(getattr(tried, limit) < getattr(plan, limit) for limit in broken):
                break
            at, plan = lower, tried
    for name in reversed(_KNOBS):
        while at[name] and not budget.exceeded(plan):
            higher = at | {name: at[name] - 1}
            tried = plan_at(higher)
            if budget.exceeded(tried):
                break
            at, plan = higher, tried
    final = {name: levels[name][at[name]] for name in _KNOBS}
    changed = {name: (levels[name][0], final[name]) for name in _KNOBS if at[name]}
    return Proposal(plan, int(final["blocks"]), final["length"], changed, budget.exceeded(plan))


def _levels(workload: Workload, blocks: int) -> dict[str, Sequence[float]]:
    rank = workload.rank
    return {
        "batch_tokens": _halved(workload.batch_tokens, _FEWEST_TOKENS),
        "blocks": [blocks] + [c for c in (2, 4, 8, _MOST_BLOCKS) if c > blocks],
        "length": _halved(workload.mean_length, _SHORTEST),
        "rank": [0.0, *_halved(32, _LOWEST_RANK)] if rank is None else _halved(rank, _LOWEST_RANK),
        "fitted_on": _halved(workload.fitted, _FEWEST_FITTED),
        "num_sequences": _halved(workload.num_sequences, 1),
    }


def _halved(value: float, least: float) -> list[float]:
    found = [value]
    while found[-1] / 2 >= least:
        found.append(found[-1] // 2)
    return found
