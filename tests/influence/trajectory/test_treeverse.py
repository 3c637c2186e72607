"""Tests of hesse.influence.trajectory.treeverse."""

import weakref
from functools import cache

import pytest

from hesse.influence.trajectory.treeverse import default_checkpoints, reversed_states


@cache
def fewest(length: int, free: int) -> int:
    """Steps needed to reverse ``length`` of them with the first state at hand and ``free`` more to keep."""
    if length <= 1:
        return 0
    if free == 0:
        return length * (length - 1) // 2
    return min(k + fewest(length - k, free - 1) + fewest(k, free) for k in range(1, length))


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 18, 36])
def test_visits_every_state_backwards_with_the_fewest_steps(num_steps, checkpoints):
    """Oracle: the states themselves (a count of steps), and the least number of steps by dynamic programming."""
    calls = []

    def advance(state, t):
        assert state == t
        calls.append(t)
        return state + 1

    seen = list(reversed_states(0, num_steps, advance, checkpoints))
    assert seen == [(t, t) for t in range(num_steps - 1, -1, -1)]
    assert len(calls) == fewest(num_steps, checkpoints - 1)


@pytest.mark.parametrize("checkpoints", [1, 3, 6])
def test_keeps_no_more_than_it_says(checkpoints):
    """Oracle: the number of states alive: those kept, and the one in hand while the next is made."""
    alive = weakref.WeakSet()

    class State:
        def __init__(self):
            alive.add(self)

    def advance(_state, _t):
        after = State()
        most.append(len(alive))
        return after

    most = []
    for _t, _state in reversed_states(State(), 40, advance, checkpoints):
        del _state
    assert max(most) <= checkpoints + 2


def test_logarithmic_memory_costs_logarithmic_work():
    """Oracle: the binomial bound: T <= C(c + r, c) steps are each advanced over r times at most."""
    for num_steps in (1, 2, 10, 300, 5000):
        kept, calls = default_checkpoints(num_steps), [0] * num_steps
        assert kept <= num_steps.bit_length() + 1

        def advance(state, t, calls=calls):
            calls[t] += 1
            return state

        assert sum(1 for _ in reversed_states(None, num_steps, advance, kept)) == num_steps
        assert max(calls) <= max(1, kept - 1)
