"""The choice of groups against a loop that takes the lowest one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.compress.hesso import select_groups


def greedy(scores, pruned, family_of, budget, min_keep):
    """Take the lowest score whose family has more than enough left, until the budget is spent."""
    chosen = set(pruned.nonzero().squeeze(1).tolist())
    for g in scores.argsort(stable=True).tolist():
        family = (family_of == family_of[g]).nonzero().squeeze(1).tolist()
        left = len(family) - len(chosen & set(family))
        if g not in chosen and left > min_keep and len(chosen) < budget:
            chosen.add(g)
    return chosen


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 3), st.floats(0, 1))
def test_the_lowest_are_taken_and_families_survive(seed, count, min_keep, share):
    """Oracle: a greedy loop."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator)
    family_of = torch.randint(3, (count,), generator=generator).sort().values
    family_of = torch.unique(family_of, return_inverse=True)[1]
    pruned = torch.zeros(count, dtype=torch.bool)
    budget = int(share * count)
    first = select_groups(scores, pruned, family_of, torch.ones(count), budget // 2, min_keep=min_keep)
    assert set(first.nonzero().squeeze(1).tolist()) == greedy(scores, pruned, family_of, budget // 2, min_keep)
    again = torch.rand(count, generator=generator)
    second = select_groups(again, first, family_of, torch.ones(count), budget, min_keep=min_keep)
    assert set(second.nonzero().squeeze(1).tolist()) == greedy(again, first, family_of, budget, min_keep)
    assert not (first & ~second).any()


@pytest.mark.parametrize("divisible", [2, 4])
def test_what_stays_is_a_multiple(divisible):
    """Oracle: counting, over three periods."""
    family_of = torch.arange(3).repeat_interleave(torch.tensor([16, 9, 3]))
    pruned = torch.zeros(28, dtype=torch.bool)
    for period in range(3):
        scores = torch.rand(28, generator=torch.Generator().manual_seed(period))
        found = select_groups(scores, pruned, family_of, torch.ones(28), 7 * (period + 1), group_divisible=divisible)
        assert not (pruned & ~found).any()
        assert int(found.sum()) <= 7 * (period + 1)
        for f, size in enumerate((16, 9, 3)):
            left = size - int(found[family_of == f].sum())
            assert left == size or left % divisible == 0
            assert left >= min(divisible, size)
        pruned = found
    assert int(pruned.sum()) >= 16


def test_budgets_in_units_of_cost():
    """Oracle: by hand: lowest scores first, until the next would not fit."""
    scores, costs = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([5.0, 1.0, 2.0, 4.0])
    none = torch.zeros(4, dtype=torch.bool)
    found = select_groups(scores, none, torch.zeros(4, dtype=torch.int64), costs, 7.5)
    assert found.tolist() == [True, True, False, False]


def test_infinite_scores_and_ties():
    """Oracle: by hand: what has no score is never taken, equals are taken in order."""
    scores = torch.tensor([torch.inf, 1.0, 1.0, 1.0, torch.inf])
    none, one = torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64)
    assert select_groups(scores, none, one, torch.ones(5), 2).tolist() == [False, True, True, False, False]
    assert select_groups(scores, none, one, torch.ones(5), 5).tolist() == [False, True, True, True, False]
