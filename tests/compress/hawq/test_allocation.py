import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesse.compress.hawq import SensitivityTable, allocate_bits, candidate_plans, floor_plans, pareto_frontier
from hesse.errors import ArgumentError


def random_table(seed: int, layers: int = 6, bits: tuple[int, ...] = (2, 3, 4, 6, 8), equal: bool = False):
    """Errors that fall about four-fold a bit, traces over three decades, sizes of all kinds."""
    rng = np.random.default_rng(seed)
    numel = np.full(layers, 64) if equal else rng.integers(10, 9000, layers)
    error = numel[:, None] * 4.0 ** -np.array(bits) * rng.uniform(0.5, 2, (layers, len(bits)))
    average = 10 ** rng.uniform(-3, 0, layers)
    table = SensitivityTable(
        "weight", tuple(f"l{i}.weight" for i in range(layers)), bits, numel, average[:, None] * error, error, average
    )
    return table.with_cost("size", numel[:, None] * np.array(bits, dtype=float))


def brute_force(table: SensitivityTable, cost: np.ndarray, budget: float) -> float:
    """All M^L choices."""
    best = np.inf
    rows = range(len(table.names))
    for choice in product(range(len(table.options)), repeat=len(table.names)):
        if cost[rows, choice].sum() <= budget * (1 + 1e-12):
            best = min(best, table.omega[rows, choice].sum())
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", [2.2, 3.0, 5.5])
def test_exact_and_milp_find_the_brute_force_optimum(seed, average):
    """Oracle: all 5^6 plans. Identical Ω; the ordered search and the hull are never better."""
    table = random_table(seed)
    budget = average * table.numel.sum()
    best = brute_force(table, table.costs["size"], budget)
    exact = allocate_bits(table, average, constraint="average_bits")
    assert exact.omega == pytest.approx(best, rel=1e-12)
    assert exact.size_bits <= budget * (1 + 1e-9)
    assert allocate_bits(table, budget, solver="milp").omega == pytest.approx(best, rel=1e-9)
    for solver in ("ordered", "lagrangian"):
        plan = allocate_bits(table, budget, solver=solver)
        assert plan.omega >= best * (1 - 1e-12)
        assert plan.size_bits <= budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_milp_is_exact_where_the_best_omega_is_tiny_beside_the_largest(seed):
    """Oracle: all 5^6 plans, where the best Ω is 1e-5 of the largest: below the solver's absolute gap."""
    table = random_table(seed)
    omega = table.omega * (1e-5 ** np.linspace(0, 1, table.omega.shape[1]))
    steep = dataclasses.replace(table, omega=omega)
    budget = 7.0 * table.numel.sum()
    best = brute_force(steep, steep.costs["size"], budget)
    assert allocate_bits(steep, budget, solver="milp").omega == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ordered_search_is_the_best_of_all_ordered_plans(seed):
    """Oracle: all plans whose bits do not rise as the average trace falls."""
    table = random_table(seed, layers=5, bits=(2, 4, 8))
    order = np.argsort(-table.average)
    budget = 3.5 * table.numel.sum()
    best = np.inf
    for choice in product(range(3), repeat=5):
        picked = np.array(choice)
        if (np.diff(picked[order]) <= 0).all() and table.costs["size"][range(5), picked].sum() <= budget:
            best = min(best, table.omega[range(5), picked].sum())
    assert allocate_bits(table, budget, solver="ordered").omega == pytest.approx(best, rel=1e-12)


def test_frontier_is_all_that_is_not_beaten():
    """Oracle: all plans, filtered pair by pair."""
    table = random_table(4, layers=4, bits=(2, 4, 8))
    rows = range(4)
    points = [(table.costs["size"][rows, c].sum(), table.omega[rows, c].sum()) for c in product(range(3), repeat=4)]
    kept = sorted(p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points))
    frontier = pareto_frontier(table)
    assert frontier.is_exact
    np.testing.assert_allclose(np.stack([frontier.cost, frontier.omega], 1), kept, rtol=1e-12)
    for index in range(len(frontier.cost)):
        plan = frontier.plan(index)
        assert plan.size_bits == pytest.approx(frontier.cost[index])
        assert plan.omega == pytest.approx(frontier.omega[index])


def test_hull_points_lie_on_the_frontier_and_bound_it_from_below():
    """Oracle: the exact frontier. A plan of least Ω + λ size is a corner of the hull, for 50 values of λ."""
    table = random_table(5)
    for weight in np.logspace(-9, -2, 50):
        choice = (table.omega + weight * table.costs["size"]).argmin(1)
        size = table.costs["size"][range(6), choice].sum()
        plan = allocate_bits(table, size, solver="lagrangian")
        assert plan.omega == pytest.approx(table.omega[range(6), choice].sum())
        assert plan.omega == pytest.approx(allocate_bits(table, size).omega)


@given(st.integers(0, 500))
def test_thinned_frontier_loses_no_more_than_its_steps(seed):
    """Oracle: the exact optimum at the budget less one step of cost a layer, which the thinned plan must not exceed."""
    table = random_table(seed, layers=8)
    thin = pareto_frontier(table, max_points=60)
    assert not thin.is_exact
    budget = 4.0 * table.numel.sum()
    plan = thin.best(budget)
    assert plan.size_bits <= budget * (1 + 1e-9)
    sizes = table.costs["size"]
    step = (sizes.max(1) - sizes.min(1)).sum() / 59
    assert plan.omega <= allocate_bits(table, budget - 8 * step).omega * (1 + 1e-12)


def test_many_layers_of_equal_size_are_solved_exactly():
    """Oracle: milp, on 60 layers."""
    table = random_table(6, layers=60, equal=True)
    assert pareto_frontier(table).is_exact
    exact = allocate_bits(table, 3.2, constraint="average_bits")
    assert exact.omega == pytest.approx(allocate_bits(table, 3.2, constraint="average_bits", solver="milp").omega)


@pytest.mark.parametrize("solver", ["exact", "milp", "lagrangian"])
def test_ties_give_equal_bits(solver):
    """Oracle: brute force over plans that respect the tie (chained ties join)."""
    table = random_table(7, layers=5, bits=(2, 4, 8))
    ties = [["l0.weight", "l2.weight"], ["l2.weight", "l4.weight"]]
    budget, rows = 4.2 * table.numel.sum(), range(5)
    best = min(
        table.omega[rows, c].sum()
        for c in product(range(3), repeat=5)
        if c[0] == c[2] == c[4] and table.costs["size"][rows, c].sum() <= budget
    )
    plan = allocate_bits(table, budget, ties=ties, solver=solver)
    assert plan.weights["l0.weight"] == plan.weights["l2.weight"] == plan.weights["l4.weight"]
    assert plan.omega >= best * (1 - 1e-9)
    if solver != "lagrangian":
        assert plan.omega == pytest.approx(best, rel=1e-9)


def test_several_limits_hold_together():
    """Oracle: brute force under both bounds."""
    table = random_table(8, layers=5, bits=(2, 4, 8))
    latency = np.random.default_rng(8).uniform(1, 3, (5, 1)) * np.array([1.0, 1.4, 2.0])
    table = table.with_cost("latency", latency)
    budget, slow = 4.0 * table.numel.sum(), 0.5 * (latency.min(1).sum() + latency.max(1).sum())
    rows = range(5)
    best = min(
        table.omega[rows, c].sum()
        for c in product(range(3), repeat=5)
        if table.costs["size"][rows, c].sum() <= budget and latency[rows, c].sum() <= slow
    )
    plan = allocate_bits(table, budget, limits={"latency": slow})
    assert plan.omega == pytest.approx(best, rel=1e-9)
    with pytest.raises(ArgumentError, match="together"):
        allocate_bits(table, budget, limits={"latency": 1.0})


def test_candidates_are_the_best_plans_with_one_choice_held():
    """Oracle: brute force for every (layer, width); different plans, by Ω, the widest uniform one among them."""
    table = random_table(9, layers=4, bits=(2, 4, 8))
    budget, rows = 4.5 * table.numel.sum(), range(4)
    held = set()
    for i, j in product(range(4), range(3)):
        fits = [
            (table.omega[rows, c].sum(), c)
            for c in product(range(3), repeat=4)
            if c[i] == j and table.costs["size"][rows, c].sum() <= budget
        ]
        if fits:
            held.add(min(fits)[1])
    plans = candidate_plans(table, budget, num_plans=50)
    found = {tuple(table.options.index(b) for b in plan.weights.values()) for plan in plans}
    assert found == held | {(1, 1, 1, 1)}
    assert plans[0].omega == allocate_bits(table, budget).omega
    assert len(candidate_plans(table, budget, num_plans=3)) == 3


def test_floors_are_the_best_plans_above_them():
    """Oracle: brute force over plans without the narrower widths; at a budget of 4 bits the last is 4 for all."""
    table = random_table(10, layers=4, bits=(2, 3, 4, 8))
    budget, rows = 4.0 * table.numel.sum(), range(4)
    plans = floor_plans(table, budget)
    wanted = [
        min(
            (table.omega[rows, c].sum(), c)
            for c in product(range(floor, 4), repeat=4)
            if table.costs["size"][rows, c].sum() <= budget
        )
        for floor in range(3)
    ]
    assert {tuple(table.options.index(b) for b in plan.weights.values()) for plan in plans} == {c for _, c in wanted}
    assert set(plans[-1].weights.values()) == {4}


def test_floors_of_pairs_keep_two_bounds():
    """Oracle: brute force over all pairs of widths at or above each floor, within both bounds."""
    table = random_table(11, layers=3, bits=(2, 4))
    rng, pairs = np.random.default_rng(11), ((2, 4), (2, 8), (4, 4), (4, 8))
    omega = np.repeat(table.omega, 2, axis=1) + rng.uniform(0, 0.1, (3, 4))
    macs = rng.integers(10, 99, (3, 1))
    joint = SensitivityTable(
        "joint", table.names, pairs, table.numel, omega, omega, table.average,
        {"size": np.repeat(table.costs["size"], 2, axis=1), "bitops": macs * np.prod(pairs, axis=1).astype(float)},
        tuple((f"l{i}", 5) for i in range(3)),
    )  # fmt: skip
    size, work, rows = 3.2 * table.numel.sum(), 18.0 * macs.sum(), range(3)
    wanted = set()
    for floor in pairs:
        allowed = [j for j, pair in enumerate(pairs) if pair[0] >= floor[0] and pair[1] >= floor[1]]
        fitting = [
            c
            for c in product(allowed, repeat=3)
            if joint.costs["size"][rows, c].sum() <= size and joint.costs["bitops"][rows, c].sum() <= work
        ]
        if fitting:
            wanted.add(min(fitting, key=lambda c: omega[rows, c].sum()))
    plans = floor_plans(joint, size, limits={"bitops": work})
    found = {tuple(pairs.index(p) for p in zip(q.weights.values(), q.activations.values(), strict=True)) for q in plans}
    assert found == wanted


def test_bad_input_is_refused():
    """Oracle: the documented errors; a budget below the least names it."""
    table = random_table(0)
    with pytest.raises(ArgumentError, match="least possible, 2"):
        allocate_bits(table, 1.5, constraint="average_bits")
    with pytest.raises(ArgumentError, match="least possible"):
        allocate_bits(table, float("nan"))
    with pytest.raises(ArgumentError, match="bitops"):
        allocate_bits(table, 1e9, constraint="bitops")
    with pytest.raises(ArgumentError, match="nothere"):
        allocate_bits(table, 1e9, ties=[["nothere"]])
    with pytest.raises(ArgumentError, match="solver"):
        allocate_bits(table, 1e9, solver="greedy")
    with pytest.raises(ArgumentError, match="several constraints"):
        allocate_bits(table, 1e9, limits={"size": 1e9}, solver="exact")
    with pytest.raises(ArgumentError, match="cannot tie"):
        allocate_bits(table, 1e9, ties=[["l0.weight", "l1.weight"]], solver="ordered")
    with pytest.raises(ArgumentError, match="least possible"):
        pareto_frontier(table).best(0.0)
