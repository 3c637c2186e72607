"""Who of a job is alive: every rank beats in the store that started the job, and looks at the others while it waits.

A rank that is slow still beats, and is waited for however long it takes; one that was killed, or was stopped, does not.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, Protocol

from hesse.errors import RankError

__all__ = ["Heartbeat", "Store"]

_LOOK_SECONDS = 1.0  # between two looks at the others, of one that waits


class Store(Protocol):
    """The part of `torch.distributed.Store` that is used: keys and values that all ranks see."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def get(self, key: str) -> bytes:
        """Read a value."""
        ...

    def add(self, key: str, value: int) -> int:
        """Add to a counter, which begins at 0, and return it."""
        ...

    def delete_key(self, key: str) -> bool:
        """Forget a key, and tell whether it was there."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Tell whether all keys are there, without waiting."""
        ...


class Heartbeat:
    """Beats for this rank in a thread of its own; `meet` waits for the others as long as they beat.

    Parameters
    ----------
    store, beating : Store
        Two connections to one store: that of the thread must not wait for those of the work.
    rank, size : int
        Of this process, and of the job.
    beat_seconds : float, default 1
        Between two beats.
    patience : float, default 10
        Seconds without a beat after which a rank counts as dead: many beats, for a loaded machine, and well under the
        half minute in which the death is to be known.
    """

    def __init__(
        self, store: Store, beating: Store, rank: int, size: int, *, beat_seconds: float = 1.0, patience: float = 10.0
    ) -> None:
        self.rank, self.size = rank, size
        self.patience = patience
        self._store, self._beating = store, beating
        self._meetings = 0
        self._ended = threading.Event()
        self._beat_seconds = beat_seconds
        self._last = {other: ("", time.monotonic()) for other in range(size) if other != rank}
        self._thread = threading.Thread(target=self._beat, name="hesse-heartbeat", daemon=True)
        self._thread.start()

    def meet(self) -> None:
        """Wait until every rank has come here, the same number of times.

        Raises
        ------
        RankError
            Naming a rank that has failed, or those that no longer beat.
        """
        key = f"hesse/meeting/{self._meetings}"
        self._meetings += 1
        pause, looked = 0.0005, time.monotonic()
        try:
            if self.rank == 0 and self._meetings > 2:  # all have come to the last one, and so have left that before
                self._store.delete_key(f"hesse/meeting/{self._meetings - 3}")
            arrived = self._store.add(key, 1)
            while arrived < self.size:
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
                if time.monotonic() - looked >= _LOOK_SECONDS:
                    self._look()
                    looked = time.monotonic()
                arrived = self._store.add(key, 0)
        except RuntimeError as error:  # of the store: its server is gone
            self._lost_store(error)

    def during(self, call: Callable[[], object]) -> None:
        """Make an exchange between ranks, and look at the others while it lasts: one that stops in it is noticed too.

        Parameters
        ----------
        call : callable
            Blocks until the exchange is done.

        Raises
        ------
        RankError
            Naming a rank that has failed, or those that no longer beat. The call is then left to itself.
        """
        errors: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:  # raised again below, where it belongs
                errors.append(error)

        thread = threading.Thread(target=run, name="hesse-exchange", daemon=True)
        thread.start()
        thread.join(_LOOK_SECONDS)
        while thread.is_alive():
            self._look()
            thread.join(_LOOK_SECONDS)
        if errors:
            raise errors[0]

    def fail(self, text: str) -> None:
        """Tell the others why this rank ends; they raise it at their next meeting.

        Parameters
        ----------
        text : str
            What went wrong.
        """
        with suppress(RuntimeError):  # a store that is gone tells them too
            self._store.set("hesse/failed", f"rank {self.rank} failed: {text}")

    def explain(self, error: BaseException) -> NoReturn:
        """Find out which rank made an exchange between ranks fail, and name it.

        Parameters
        ----------
        error : BaseException
            As torch raised it.

        Raises
        ------
        RankError
            Naming a rank that has failed or no longer beats within ``patience``, or with torch's own words.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < self.patience + 3 * self._beat_seconds:
            try:
                self._look()
            except RuntimeError as lost:
                self._lost_store(lost)
            time.sleep(self._beat_seconds / 2)
        raise RankError(f"an exchange between the {self.size} ranks failed, though all are alive: {error}") from error

    def leave(self) -> None:
        """Stop beating; the rank that may hold the store waits a moment until the others have left."""
        with suppress(RuntimeError):
            left = self._store.add("hesse/left", 1)
            begun = time.monotonic()
            while self.rank == 0 and left < self.size and time.monotonic() - begun < 5:
                time.sleep(0.01)
                left = self._store.add("hesse/left", 0)
        self.stop()

    def stop(self) -> None:
        """Stop beating at once."""
        self._ended.set()
        self._thread.join(self.patience)

    def _beat(self) -> None:
        count = 0
        with suppress(RuntimeError):  # the store is gone: the work finds out by itself
            while not self._ended.is_set():
                self._beating.set(f"hesse/beat/{self.rank}", str(count))
                count += 1
                self._ended.wait(self._beat_seconds)

    def _look(self) -> None:
        if self._store.check(["hesse/failed"]):
            raise RankError(self._store.get("hesse/failed").decode())
        now, silent = time.monotonic(), []
        for other, (seen, since) in self._last.items():
            key = f"hesse/beat/{other}"
            beat = self._store.get(key).decode() if self._store.check([key]) else ""
            if beat != seen:
                self._last[other] = (beat, now)
            elif now - since > self.patience:
                silent.append(other)
        if silent:
            names = ", ".join(f"rank {other}" for other in silent)
            raise RankError(
                f"{names} of {self.size} has given no sign of life for {self.patience:.0f} s: killed, or stopped. What "
                "was committed is kept: start the job again, with as many processes as you like, and it resumes"
            )

    def _lost_store(self, error: BaseException) -> NoReturn:
        raise RankError(
            f"rank {self.rank} cannot reach the store of the job any more: the process that holds it, rank 0 or its "
            "launcher, has ended. What was committed is kept: start the job again, and it resumes"
        ) from error
