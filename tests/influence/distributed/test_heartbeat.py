"""Signs of life in a store that is a dictionary."""

import threading
import time

import pytest

from hesse.errors import RankError
from hesse.influence.distributed import Heartbeat


class Shared:
    """A store of torch, as far as it is used."""

    def __init__(self):
        self.values, self.lock, self.gone = {}, threading.Lock(), False

    def _check(self):
        if self.gone:
            raise RuntimeError("Connection reset by peer")

    def set(self, key, value):
        self._check()
        self.values[key] = value.encode()

    def get(self, key):
        self._check()
        return self.values[key]

    def add(self, key, value):
        self._check()
        with self.lock:
            self.values[key] = str(int(self.values.get(key, b"0")) + value).encode()
            return int(self.values[key])

    def delete_key(self, key):
        self._check()
        return self.values.pop(key, None) is not None

    def check(self, keys):
        self._check()
        return all(key in self.values for key in keys)


@pytest.fixture
def pair():
    store = Shared()
    beats = [Heartbeat(store, store, rank, 2, beat_seconds=0.05, patience=0.4) for rank in (0, 1)]
    yield store, beats
    for beat in beats:
        beat.stop()


def test_a_late_rank_is_waited_for(pair):
    """Oracle: the clock; the other beats, and comes long after the patience for silence."""
    _, (first, second) = pair
    timer = threading.Timer(1.5, second.meet)
    timer.start()
    begun = time.monotonic()
    first.meet()
    assert time.monotonic() - begun >= 1.4
    timer.join()


def test_meetings_are_forgotten(pair):
    """Oracle: the keys of the store after many meetings: those of the last three at most."""
    store, (first, second) = pair
    other = threading.Thread(target=lambda: [second.meet() for _ in range(20)])
    other.start()
    for _ in range(20):
        first.meet()
    other.join()
    assert sum(key.startswith("hesse/meeting/") for key in store.values) <= 3


def test_a_silent_rank_is_named(pair):
    """Oracle: which rank stopped to beat; the time is patience and a look or two."""
    _, (first, second) = pair
    second.stop()
    begun = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 of 2 .* resumes"):
        first.meet()
    assert time.monotonic() - begun < 5


def test_a_rank_that_hangs_in_an_exchange_is_named(pair):
    """Oracle: as above; the exchange itself never ends."""
    _, (first, second) = pair
    second.stop()
    with pytest.raises(RankError, match="rank 1 of 2"):
        first.during(threading.Event().wait)


def test_a_failure_is_told(pair):
    """Oracle: the text that the failing rank left."""
    _, (first, second) = pair
    second.fail("NumericalError: the loss of sequence 's3' is NaN")
    with pytest.raises(RankError, match=r"rank 1 failed: NumericalError: .*'s3'"):
        first.meet()


def test_an_exchange_that_breaks_is_explained(pair):
    """Oracle: the silent rank, or torch's own words if all are alive."""
    _, (first, second) = pair
    with pytest.raises(RankError, match="all are alive: gloo: connection closed"):
        first.explain(RuntimeError("gloo: connection closed"))
    second.stop()
    with pytest.raises(RankError, match="rank 1 of 2"):
        first.explain(RuntimeError("gloo: connection closed"))


def test_a_store_that_is_gone_is_said(pair):
    """Oracle: the message; meeting and explaining alike."""
    store, (first, _) = pair
    store.gone = True
    with pytest.raises(RankError, match="cannot reach the store"):
        first.meet()
    with pytest.raises(RankError, match="cannot reach the store"):
        first.explain(RuntimeError("x"))
    first.fail("no matter")


def test_an_error_of_an_exchange_is_passed_on(pair):
    """Oracle: the error raised in it."""
    with pytest.raises(ZeroDivisionError):
        pair[1][0].during(lambda: 1 / 0)
