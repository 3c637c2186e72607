"""Bits for every layer under a budget: a multiple-choice knapsack, solved exactly or by its relaxations.

    min Σ_i Ω_i(b_i)    subject to   Σ_i cost_i(b_i) <= budget

Shapes: L rows (layers, or groups that must agree), M options, F points of the frontier.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hesse.compress.hawq.knapsack import (
    SLACK,
    Choices,
    Floats,
    Row,
    Sums,
    lower_hull,
    milp_choices,
    ordered_sums,
    pareto_sums,
)
from hesse.compress.hawq.plan import BitPlan
from hesse.compress.hawq.sensitivity import Bits, SensitivityTable
from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least

__all__ = ["ParetoFrontier", "Solver", "allocate_bits", "candidate_plans", "floor_plans", "pareto_frontier"]

Solver = Literal["auto", "exact", "lagrangian", "milp", "ordered"]
_AVERAGE = "average_bits"
_MAX_POINTS = 20_000


@dataclass(frozen=True, slots=True)
class ParetoFrontier:
    """Every trade that is not beaten in both cost and Ω.   Shapes: F points, by rising cost and falling Ω."""

    table: SensitivityTable
    constraint: str
    cost: Floats  # (F,), in the units of the constraint
    omega: Floats  # (F,)
    choices: Choices  # (F, L): the column of the table for each layer
    is_exact: bool  # False where points were left out to bound memory, or only the convex hull was asked for

    def plan(self, index: int) -> BitPlan:
        """Read one point as a plan.

        Parameters
        ----------
        index : int
            Of the point.

        Returns
        -------
        BitPlan
            With its Ω.
        """
        return _plan(self.table, self.choices[index])

    def best(self, budget: float) -> BitPlan:
        """Find the plan of least Ω within a budget.

        Parameters
        ----------
        budget : float
            In the units of the constraint.

        Returns
        -------
        BitPlan
            The rightmost point that fits.

        Raises
        ------
        ArgumentError
            If none fits; the message has the least budget.
        """
        fitting = int(np.searchsorted(self.cost, budget * (1 + SLACK), side="right"))
        if fitting == 0:
            raise ArgumentError(f"budget: {budget:g} {self.constraint} is below the least possible, {self.cost[0]:g}")
        return self.plan(fitting - 1)


def pareto_frontier(
    table: SensitivityTable,
    constraint: str = "size",
    *,
    ties: Iterable[Iterable[str]] = (),
    max_points: int = _MAX_POINTS,
) -> ParetoFrontier:
    """Compute the whole frontier of (cost, Ω), a layer at a time, dropping what is beaten as soon as it is.

    Parameters
    ----------
    table : SensitivityTable
        Ω and costs.
    constraint : str, default "size"
        A cost of the table, or "average_bits": size over entries.
    ties : iterable of groups of names
        Layers of a group get the same bits, as branches that are added must.
    max_points : int, default 20,000
        Partial sums kept after each layer. Where there are more, the best of equal steps of cost are kept: plans stay
        within every budget, and Ω may miss the least by what a step is worth. Equal sizes of layers, the rule in
        transformers, keep the number of different sums far below.

    Returns
    -------
    ParetoFrontier
        ``is_exact`` says whether nothing was left out.

    Raises
    ------
    ArgumentError
        If the constraint is not a cost of the table, or a tie names an unknown layer.

    Notes
    -----
    O(L M F log(M F)) time and O(L F) memory. Without equal sizes F may grow as M^L, hence ``max_points``.
    """
    at_least("pareto_frontier", "max_points", max_points, 2)
    groups = _groups(table, ties)
    sums, is_exact = pareto_sums(_rows(table, constraint, groups), max_points)
    return _frontier(table, constraint, groups, sums, is_exact=is_exact)


def allocate_bits(
    table: SensitivityTable,
    budget: float,
    *,
    constraint: str = "size",
    ties: Iterable[Iterable[str]] = (),
    limits: Mapping[str, float] | None = None,
    solver: Solver = "auto",
) -> BitPlan:
    """Choose the bits of least Ω within a budget.

    Parameters
    ----------
    table : SensitivityTable
        Ω and costs.
    budget : float
        In the units of the constraint.
    constraint : str, default "size"
        "size" in bits, "average_bits" (size over entries), "bitops", or a cost added by `SensitivityTable.with_cost`.
    ties : iterable of groups of names
        Layers of a group get the same bits.
    limits : mapping of str to float, optional
        Further constraints, by cost; they need "milp".
    solver : {"auto", "exact", "lagrangian", "milp", "ordered"}, default "auto"
        "exact": the best point of `pareto_frontier`. "lagrangian": the best point of the frontier's convex hull, found
        in O(L M log(L M)) for any number of layers. "milp": `scipy.optimize.milp`. "ordered": the paper's search, where
        bits never rise as the average trace falls; never better. "auto": "milp" if there are limits, else "exact".

    Returns
    -------
    BitPlan
        Exact for "exact" (see `pareto_frontier` for many layers of unequal sizes) and "milp".

    Raises
    ------
    ArgumentError
        If nothing fits the budget (the message has the least), or the constraint, a tie or the solver is unknown.
    NumericalError
        If "milp" finds no plan.

    Examples
    --------
    >>> table = SensitivityTable(
    ...     "weight", ("a", "b"), (2, 8), np.array([10, 10]), np.array([[1.0, 0.0], [5.0, 0.1]]),
    ...     np.ones((2, 2)), np.ones(2), {"size": np.array([[20.0, 80.0], [20.0, 80.0]])},
    ... )
    >>> dict(allocate_bits(table, 5, constraint="average_bits").weights)
    {'a': 2, 'b': 8}
    """
    call = "allocate_bits"
    if solver not in ("auto", "exact", "lagrangian", "milp", "ordered"):
        raise ArgumentError(f"{call}: solver must be auto, exact, lagrangian, milp or ordered; got {solver!r}")
    if limits and solver not in ("auto", "milp"):
        raise ArgumentError(f"{call}: several constraints need solver='milp', got {solver!r}")
    groups = _groups(table, ties)
    rows = _rows(table, constraint, groups)
    least = sum(float(row.cost.min()) for row in rows)
    if not budget * (1 + SLACK) >= least:
        raise ArgumentError(f"{call}: budget {budget:g} {constraint} is below the least possible, {least:g}")
    if limits or solver == "milp":
        bounds = {constraint: budget, **(limits or {})}
        chosen = milp_choices({name: _rows(table, name, groups) for name in bounds}, bounds)
        return _plan(table, _spread(chosen[None, :], groups, len(table.names))[0])
    if solver == "lagrangian":
        return _frontier(table, constraint, groups, lower_hull(rows)).best(budget)
    if solver == "ordered":
        if len(groups) != len(table.names):
            raise ArgumentError(f"{call}: solver='ordered' cannot tie layers")
        order = [int(i) for i in np.argsort(-table.average, kind="stable")]
        sums = ordered_sums([rows[i] for i in order], len(table.options))
        return _frontier(table, constraint, [[i] for i in order], sums).best(budget)
    return _frontier(table, constraint, groups, pareto_sums(rows, _MAX_POINTS)[0]).best(budget)


def candidate_plans(
    table: SensitivityTable,
    budget: float,
    *,
    constraint: str = "size",
    ties: Iterable[Iterable[str]] = (),
    num_plans: int = 10,
) -> list[BitPlan]:
    """List plans worth measuring: the best that fits, and the best for every choice that it did not make.

    Where quantisation errors leave the range in which the loss is quadratic, the plan of least Ω may be a ruinous one,
    and so may its neighbours on the frontier, which share its mistake. Hence one layer at a time is held at another
    width and the rest chosen anew.

    Parameters
    ----------
    table : SensitivityTable
        Ω and costs.
    budget : float
        In the units of the constraint.
    constraint : str, default "size"
        As in `allocate_bits`.
    ties : iterable of groups of names
        As in `allocate_bits`.
    num_plans : int, default 10
        How many at most.

    Returns
    -------
    list of BitPlan
        Different ones, by rising Ω. One place goes to the widest single width that fits, where there is one.

    Raises
    ------
    ArgumentError
        If nothing fits the budget.

    Notes
    -----
    At most L M frontiers are computed: seconds for tens of layers, minutes for hundreds.
    """
    at_least("candidate_plans", "num_plans", num_plans, 1)
    groups = _groups(table, ties)
    rows = _rows(table, constraint, groups)
    first = allocate_bits(table, budget, constraint=constraint, ties=ties)
    found = {_key(first): first}
    for i, row in enumerate(rows):
        for j in range(len(table.options)):
            held = [*rows[:i], row.only(j), *rows[i + 1 :]]
            if sum(float(r.cost.min()) for r in held) <= budget * (1 + SLACK):
                plan = _frontier(table, constraint, groups, pareto_sums(held, _MAX_POINTS)[0]).best(budget)
                found.setdefault(_key(plan), plan)
    ranked = sorted(found.values(), key=lambda plan: plan.omega)[:num_plans]
    totals = [float(total) for total in _costs(table, constraint).sum(0)]
    even = [j for j, total in enumerate(totals) if total <= budget * (1 + SLACK)]
    if even:
        widest = max(even, key=lambda j: totals[j])
        uniform = _plan(table, np.full(len(table.names), widest, dtype=np.int16))
        if _key(uniform) not in {_key(plan) for plan in ranked} and num_plans > 1:
            ranked = [*ranked[: num_plans - 1], uniform]
    return ranked


def floor_plans(
    table: SensitivityTable,
    budget: float,
    *,
    constraint: str = "size",
    ties: Iterable[Iterable[str]] = (),
    limits: Mapping[str, float] | None = None,
    solver: Solver = "auto",
) -> list[BitPlan]:
    """List the best plans with no width below a floor, for every floor that the budget allows.

    Fewer and coarser candidates than `candidate_plans`, for models of hundreds of layers: what the quadratic model gets
    wrong is the harm of few bits. The highest floor is one width for all, where the budget is one.

    Parameters
    ----------
    table : SensitivityTable
        Ω and costs. Where its options are pairs, so are the floors.
    budget : float
        In the units of the constraint.
    constraint : str, default "size"
        As in `allocate_bits`.
    ties : iterable of groups of names
        As in `allocate_bits`.
    limits : mapping of str to float, optional
        As in `allocate_bits`.
    solver : str, default "auto"
        As in `allocate_bits`; "milp" is the fast one where hundreds of rows have pairs to choose from.

    Returns
    -------
    list of BitPlan
        Different ones, by rising floor.

    Raises
    ------
    ArgumentError
        If nothing fits the budget.
    """
    tied = [list(tie) for tie in ties]

    def best(part: SensitivityTable) -> BitPlan:
        return allocate_bits(part, budget, constraint=constraint, ties=tied, limits=limits, solver=solver)

    first = best(table)
    found = {_key(first): first}
    for floor in table.options[1:]:
        try:
            plan = best(_above(table, floor))
        except ArgumentError:  # all arguments served the first plan: nothing that high fits
            continue
        found.setdefault(_key(plan), plan)
    return list(found.values())


def _above(table: SensitivityTable, floor: Bits) -> SensitivityTable:
    keep = [j for j, option in enumerate(table.options) if np.all(np.array(option) >= np.array(floor))]
    return replace(
        table,
        options=tuple(table.options[j] for j in keep),
        omega=table.omega[:, keep],
        error=table.error[:, keep],
        costs={name: cost[:, keep] for name, cost in table.costs.items()},
    )


def _key(plan: BitPlan) -> tuple[int, ...]:
    return (*plan.weights.values(), *plan.activations.values())


def _plan(table: SensitivityTable, choices: NDArray[np.int16]) -> BitPlan:
    picked = [table.options[int(j)] for j in choices]
    omega = float(table.omega[np.arange(len(picked)), choices].sum())
    numel = dict(zip(table.names, (int(n) for n in table.numel), strict=True))
    bits = dict(zip(table.names, picked, strict=True))
    if table.kind == "activation":
        return BitPlan({}, {n: b for n, b in bits.items() if isinstance(b, int)}, numel, omega)
    weights = {n: b if isinstance(b, int) else b[0] for n, b in bits.items()}
    inputs = {layer: b[1] for (layer, _), b in zip(table.inputs, bits.values(), strict=False) if not isinstance(b, int)}
    return BitPlan(weights, inputs, numel | dict(table.inputs), omega)


def _costs(table: SensitivityTable, constraint: str) -> Floats:
    if constraint == _AVERAGE and "size" in table.costs:
        return table.costs["size"] / table.numel.sum()
    if constraint not in table.costs:
        known = [*table.costs, *([_AVERAGE] if "size" in table.costs else [])]
        raise ArgumentError(f"constraint must be one of {', '.join(known)}; got {constraint!r}")
    return table.costs[constraint]


def _groups(table: SensitivityTable, ties: Iterable[Iterable[str]]) -> list[list[int]]:
    group_of = list(range(len(table.names)))
    for tie in ties:
        members = list(tie)
        if unknown := [name for name in members if name not in table.names]:
            raise ArgumentError(f"ties: the table has no {', '.join(unknown)}; there are {', '.join(table.names)}")
        joined = {group_of[table.names.index(name)] for name in members}
        group_of = [min(joined) if group in joined else group for group in group_of]
    return [[i for i, group in enumerate(group_of) if group == wanted] for wanted in dict.fromkeys(group_of)]


def _rows(table: SensitivityTable, constraint: str, groups: Sequence[Sequence[int]]) -> list[Row]:
    costs = _costs(table, constraint)
    columns = np.arange(len(table.options), dtype=np.int16)
    return [Row(costs[group].sum(0), table.omega[group].sum(0), columns) for group in map(list, groups)]


def _frontier(
    table: SensitivityTable,
    constraint: str,
    groups: Sequence[Sequence[int]],
    sums: Sums,
    *,
    is_exact: bool = False,
) -> ParetoFrontier:
    choices = _spread(sums.choices, groups, len(table.names))
    return ParetoFrontier(table, constraint, sums.cost, sums.omega, choices, is_exact)


def _spread(choices: Choices, groups: Sequence[Sequence[int]], num_layers: int) -> Choices:
    found = np.zeros((len(choices), num_layers), dtype=np.int16)
    for column, group in enumerate(groups):
        found[:, list(group)] = choices[:, [column]]
    return found
