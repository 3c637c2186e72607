"""Who does what: the shares of all ranks together are the work, once each, whatever the number of ranks."""

import threading
import time

import pytest

from hesse.influence.distributed import ALONE, Team, contiguous, deal_spans, in_step, owners
from hesse.influence.examples import plan_units


class Talking(Team):
    """A rank in a thread of this process: `gather` passes values by a list and a barrier."""

    def __init__(self, rank, size, said, barrier):
        super().__init__(rank, size)
        object.__setattr__(self, "said", said)
        object.__setattr__(self, "barrier", barrier)

    def gather(self, value):
        self.said[self.rank] = value
        self.barrier.wait()
        out = list(self.said)
        self.barrier.wait()
        return out


def together(size, task):
    said, barrier, out = [None] * size, threading.Barrier(size), [None] * size

    def run(rank):
        out[rank] = task(Talking(rank, size, said, barrier))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_contiguous_runs_are_the_whole(size, count):
    """Oracle: the list itself; lengths differ by one at most."""
    parts = [contiguous(list(range(count)), Team(rank, size)) for rank in range(size)]
    assert [n for part in parts for n in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_spans_cover_the_units_in_order(size, seconds):
    """Oracle: all units, each once, every span before the next; all ranks agree where it ends."""
    units = plan_units(50, 4)
    shares = together(size, lambda team: list(deal_spans(units, team, seconds)))
    assert len({len(of_rank) for of_rank in shares}) == 1
    done = []
    for span in zip(*shares, strict=True):
        done += [unit for share in span for unit in share.units]
        assert {share.stop for share in span} == {done[-1].stop}
    assert done == units
    if seconds == 0:
        assert all(len(share.units) <= 1 for of_rank in shares for share in of_rank)
    else:
        assert len(shares[0]) <= 4  # twice as long each time


def test_writing_does_not_count_as_work():
    """Oracle: by hand; a checkpoint that takes longer than the work does not make spans shorter."""
    spans = []
    for share in deal_spans(plan_units(100, 1), ALONE, 0.02):
        share.finish()
        time.sleep(0.03)  # writes
        spans.append(len(share.units))
    assert spans[:4] == [1, 2, 4, 8]


def test_owners_are_dealt_largest_first():
    """Oracle: by hand."""
    costs = {"a": 1.0, "b": 8.0, "c": 4.0, "d": 2.0}
    assert owners(costs, Team(0, 2)) == {"b": 0, "c": 1, "d": 0, "a": 1}
    assert list(owners(costs, ALONE)) == ["b", "c", "d", "a"]


def test_in_step_all_ranks_run_as_often():
    """Oracle: the longest list; what is added does not count."""
    steps = together(3, lambda team: list(in_step(range(team.rank), 9, team)))
    assert steps == [[(9, False), (9, False)], [(0, True), (9, False)], [(0, True), (1, True)]]
