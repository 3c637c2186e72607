"""Plans against their formulas and a search over all of them."""

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.optim.diff2 import GaussianAccountant, LocalReleases, NoisePlan, best_interval, best_split, plan_noise

COMMON = {"epsilon": 1.0, "delta": 1e-5, "clip_grad": 1.0, "clip_diff": 0.1}


@pytest.mark.parametrize(("rounds", "interval"), [(150, 75), (7, 3), (10, 1), (5, 5)])
def test_multipliers_share_the_budget(rounds, interval):
    """Oracle: m₁ = √(R₁/(2sρ)), m₂ = √(R₂/(2(1-s)ρ)), counts by a loop, the spend by the accountant."""
    plan = plan_noise(rounds, restart_interval=interval, split=0.3, **COMMON)
    restarts = sum(r % interval == 0 for r in range(rounds))
    assert [plan.is_restart(r) for r in range(rounds)] == [r % interval == 0 for r in range(rounds)]
    assert (plan.num_restarts, plan.num_differences) == (restarts, rounds - restarts)
    spent = GaussianAccountant().add(plan.restart_multiplier, restarts)
    if plan.num_differences:
        first = spent.rho()
        spent = spent.add(plan.difference_multiplier, plan.num_differences)
        assert first / spent.rho() == pytest.approx(0.3)
    assert 0.99 <= spent.epsilon(1e-5) <= 1.0


def test_automatic_choices_are_the_best_of_all():
    """Oracle: the noise model evaluated for every interval and 2,000 splits."""
    rounds, step = 60, 2.0
    shares = np.linspace(1e-3, 1 - 1e-3, 2000)
    table = []
    for interval in range(1, rounds + 1):
        restarts = -(-rounds // interval)
        a, b = 1.0 * restarts, (0.1 * step) ** 2 * (rounds - restarts) * interval / 2
        table.append((a / shares + b / (1 - shares)).min() if b else a)
    best = best_interval(rounds, 1.0, 0.1, step)
    assert best == int(np.argmin(table)) + 1
    restarts = -(-rounds // best)
    a, b = 1.0 * restarts, (0.1 * step) ** 2 * (rounds - restarts) * best / 2
    assert best_split(rounds, best, 1.0, 0.1, step) == pytest.approx(
        shares[(a / shares + b / (1 - shares)).argmin()], abs=1e-3
    )
    assert plan_noise(rounds, step_length=step, **COMMON).restart_interval == best
    assert plan_noise(rounds, **COMMON).restart_interval == 30


def test_local_releases_are_in_the_budget():
    """Oracle: the accountant on all three kinds."""
    plan = plan_noise(20, local=LocalReleases(80, 0.05), **COMMON)
    spent = GaussianAccountant().add(plan.restart_multiplier, 2).add(plan.difference_multiplier, 18)
    assert spent.epsilon(1e-5) < 0.95
    assert 0.99 <= spent.add(plan.local_multiplier, 80, 0.05).epsilon(1e-5) <= 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"restart_interval": 0},
        {"restart_interval": 21},
        {"restart_interval": "never"},
        {"split": 1.0},
        {"epsilon": -1.0},
        {"clip_grad": 0.0},
        {"clip_diff": float("inf")},
        {"step_length": 0.0},
        {"local": LocalReleases(5, share=1.0)},
    ],
)
def test_bad_input_is_refused(options):
    """Oracle: the documented errors."""
    options = {"rounds": 20, **COMMON, **options}
    with pytest.raises(ArgumentError):
        plan_noise(options.pop("rounds"), **options)


def test_a_plan_needs_finite_multipliers():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="noise_multipliers"):
        NoisePlan(5, 2, -1.0, 0.0)
