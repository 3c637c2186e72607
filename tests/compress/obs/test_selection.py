"""The choice of units against brute force."""

from itertools import combinations

import pytest
import torch

from hesse.compress.obs.selection import choose_units
from hesse.errors import ArgumentError
from tests.compress.obs.cases import seeded

GROUPS = torch.arange(12).reshape(3, 4)


def cheapest(scores, alive, count, groups=None, protected=()):
    """Try every set of units."""
    best, found = float("inf"), None
    for units in combinations(range(len(scores)), count):
        gone = set(units) | {i for i in range(len(scores)) if not alive[i]}
        if any(not alive[i] or i in protected for i in units):
            continue
        if groups is not None and any(len(gone & set(g.tolist())) > groups[1] for g in groups[0]):
            continue
        cost = sum(float(scores[i]) for i in units)
        if cost < best:
            best, found = cost, set(units)
    return found


@pytest.mark.parametrize("limit", [None, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_cheapest_allowed_set_is_chosen(limit, count):
    """Oracle: all sets, tried out; some units are gone, one is protected."""
    scores = torch.rand(12, generator=seeded())
    alive = torch.ones(12, dtype=torch.bool)
    alive[[1, 4]] = False
    protected = torch.zeros(12, dtype=torch.bool)
    protected[int(scores.argmin())] = True
    groups = None if limit is None else (GROUPS, limit)
    wanted = cheapest(scores, alive, count, groups, {int(scores.argmin())})
    if wanted is None:
        with pytest.raises(ArgumentError):
            choose_units(scores, alive, count, groups=groups, protected_U=protected)
        return
    found = choose_units(scores, alive, count, groups=groups, protected_U=protected)
    assert set(found.nonzero().squeeze(1).tolist()) == wanted


def test_groups_are_filled_up_without_a_count():
    """Oracle: two left of every four, the larger ones; a group that is over its limit already gives nothing."""
    scores = torch.tensor([4.0, 1, 3, 2, 1, 2, 3, 4, 9, 8, 7, 6])
    alive = torch.ones(12, dtype=torch.bool)
    alive[[8, 9, 10]] = False
    found = choose_units(scores, alive, None, groups=(GROUPS, 2))
    assert found.nonzero().squeeze(1).tolist() == [1, 3, 4, 5]


def test_the_first_of_equals_goes():
    """Oracle: the order promised."""
    assert choose_units(torch.zeros(5), torch.ones(5, dtype=torch.bool), 2).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_too_many_are_refused():
    """Oracle: counting."""
    with pytest.raises(ArgumentError, match="only 3 may"):
        choose_units(torch.zeros(12), torch.ones(12, dtype=torch.bool), 4, groups=(GROUPS, 1))
