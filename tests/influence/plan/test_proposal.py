"""Proposals of settings: arithmetic by hand under stated rates, limits met, nothing given up without need."""

from dataclasses import replace

import pytest

from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError
from hesse.influence import Budget, StatedRates, Workload, plan_stages, propose_plan
from tests.influence._tiny import gpt2

RATES = StatedRates(1e9, 1e8, 1e7)


@pytest.fixture(scope="module")
def network():
    model = gpt2()
    return model, select_layers(model, "mlp")


def test_stated_rates_by_hand():
    """Oracle: the counted multiplications of one layer, 6 + 1 columns to 5 outputs, over the rates."""
    cost = RATES.layer(5, 6, True, "ekfac", Workload(10, 4.0, num_queries=3, rank=2))
    assert cost.gram == pytest.approx(2 * (25 + 49) / 1e8)
    assert cost.moment == pytest.approx(min(2 * 74 + 70, 70 + 70 * 12 / 4) / 1e8)
    assert cost.score == pytest.approx(min(2 * 2 * 3 * 12, 70 * (1 + 3 / 4)) / 1e8)
    assert cost.prepare == pytest.approx((4 * 35 * 12 + 12 * 35 * 10) / 1e8)
    assert RATES.eigh(20) == pytest.approx(9 * 8000 / 1e7)
    assert RATES.layer(5, 6, True, "identity", Workload(10, 4.0)).gram == 0
    assert RATES.layer(5, 6, True, "shampoo", Workload(10, 4.0)).gram == pytest.approx((70 + 70 * 12 / 4) / 1e8)


def test_processes_share_passes(network):
    """Oracle: proportion; a pass takes a quarter on four processes, an eigendecomposition no less than the largest."""
    alone, four = (plan_stages(*network, Workload(4000, 20), processes=k, rates=RATES) for k in (1, 4))
    of_one, of_four = ({stage.name: stage.seconds for stage in plan.stages} for plan in (alone, four))
    for name in ("covariance", "eigenvalues", "scores"):
        assert of_four[name] == pytest.approx(of_one[name] / 4)
    widest = max(max(layer.out_features, layer.columns) for layer in network[1].values())
    assert RATES.eigh(widest) <= of_four["eigendecomposition"] < of_one["eigendecomposition"]


def test_enough_changes_nothing(network):
    """Oracle: the plan as asked."""
    workload = Workload(1000, 20, 4)
    asked = plan_stages(*network, workload, rates=RATES)
    found = propose_plan(*network, workload, Budget(asked.seconds, asked.memory, asked.disk), rates=RATES)
    assert found.plan.stages == asked.stages
    assert (found.changed, found.exceeded) == ({}, ())


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05])
def test_time_is_kept_with_no_more_than_needed(network, share):
    """Oracle: the budget; and one level up of what was lowered last, the sequences to score, breaks it."""
    workload = Workload(64_000, 128, 4)
    budget = Budget(seconds=share * plan_stages(*network, workload, rates=RATES).seconds)
    found = propose_plan(*network, workload, budget, rates=RATES)
    assert not found.exceeded
    assert found.plan.seconds <= budget.seconds
    now = found.plan.workload
    for name in ("fitted_on", "num_sequences"):
        if name in found.changed:
            higher = replace(now, **{name: 2 * getattr(now, name)})
            assert plan_stages(*network, higher, blocks=found.blocks, rates=RATES).seconds > budget.seconds
    assert {"fitted_on", "num_sequences"} & set(found.changed)


def test_what_cannot_fit_is_named(network):
    """Oracle: a byte of memory holds nothing."""
    found = propose_plan(*network, Workload(100, 20), Budget(memory=1), rates=RATES)
    assert found.exceeded == ("memory",)
    assert found.to_dict()["exceeded"] == ["memory"]


def test_batches_are_cut_before_anything_that_changes_scores(network):
    """Oracle: activations and logits of a large batch alone break the limit, so smaller batches alone keep it."""
    workload = Workload(1000, 128, batch_tokens=65_536)
    small = plan_stages(*network, Workload(1000, 128, batch_tokens=16_384), rates=RATES)
    found = propose_plan(*network, workload, Budget(memory=small.memory), rates=RATES)
    assert set(found.changed) == {"batch_tokens"}
    assert found.plan.workload.batch_tokens == 16_384


def test_refused(network):
    """Oracle: errors that name the bad argument."""
    for name in ("seconds", "memory", "disk"):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            Budget(**{name: 0})
    for name in ("rate", "factor_rate", "eigen_rate"):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            StatedRates(**({"rate": 1.0, "factor_rate": 1.0, "eigen_rate": 1.0} | {name: 0.0}))
    for name in ("blocks", "processes"):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            plan_stages(*network, Workload(10, 5), rates=RATES, **{name: 0})
