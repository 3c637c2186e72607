"""The processes that share one job, as seen by one of them: what they tell each other, and how their sums meet.

    torchrun --nproc-per-node 2 -m hesse influence fit runs/model --data train.jsonl --run runs/demo

Every exchange begins with a meeting that watches for the dead, so that a rank that was killed is named by the others
and not waited for. All ranks must see the folder of the run.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from hesse.errors import ArgumentError, HesseError, RankError
from hesse.influence.distributed.heartbeat import Heartbeat

__all__ = ["ALONE", "Team", "join_team"]

_STRIP = 512  # rows of a triangle that are exchanged at a time

Result = TypeVar("Result")


@dataclass(frozen=True)
class Team:
    """One process among those that share a job; by itself, if it is made without arguments.

    Every method but the properties is called by all ranks, in the same order.
    """

    rank: int = 0
    size: int = 1
    heartbeat: Heartbeat | None = None
    group: Any = None  # of gloo, for tensors on the CPU and for everything that is no tensor

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes manifests and talks."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait for all others.

        Raises
        ------
        RankError
            If one of them has died or failed; names it.
        """
        if self.heartbeat is not None:
            self.heartbeat.meet()

    def gather(self, value: Result) -> list[Result]:
        """Tell all others something.

        Parameters
        ----------
        value : object
            Anything that can be pickled, small.

        Returns
        -------
        list
            What each rank said, by rank.
        """
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(out, value, group=self.group))
        return out

    def merge(self, values: Mapping[str, Result]) -> dict[str, Result]:
        """Join what each rank has by name.

        Parameters
        ----------
        values : mapping of str
            Of this rank; where two have a name, the higher rank's is taken.

        Returns
        -------
        dict
            Of all, by rank.
        """
        return {name: value for part in self.gather(dict(values)) for name, value in part.items()}

    def first(self, function: Callable[[], Result]) -> Result:
        """Let rank 0 do something, and give all what it returned.

        Parameters
        ----------
        function : callable
            Without arguments; its result can be pickled.

        Returns
        -------
        object
            That of rank 0.

        Raises
        ------
        HesseError
            On every rank, if rank 0 raised it.
        """
        if self.size == 1:
            return function()
        value, refused = None, None
        if self.is_first:
            try:
                value = function()
            except HesseError as error:
                refused = error
        value, refused = self.gather((value, refused))[0]
        if refused is not None:
            raise refused
        return value  # pyright: ignore[reportReturnType]  # rank 0 has put it there

    def agree(self, values: Mapping[str, Any]) -> None:
        """Refuse to go on if ranks were given different things.

        Parameters
        ----------
        values : mapping of str to object
            By what an error calls them.

        Raises
        ------
        ArgumentError
            Naming what differs, and the first rank where it does.
        """
        for rank, theirs in enumerate(self.gather(dict(values))):
            for name, value in values.items():
                if theirs.get(name) != value:
                    raise ArgumentError(
                        f"{name}: rank {rank} was given another one than rank {self.rank} ({theirs.get(name)!r} there, "
                        f"{value!r} here); start all processes with the same command"
                    )

    def add_up_(self, total: Tensor, owner: int, *, triangle: bool = False) -> None:
        """Sum a tensor over all ranks, in one fixed order, into that of its owner; the others' becomes zero.

        Parameters
        ----------
        total : Tensor
            Of one shape and dtype on all ranks; changed in place.
        owner : int
            Rank that keeps the sum.
        triangle : bool, default False
            Only the upper triangle of a square matrix counts: half as much is sent.
        """
        if self.size == 1:
            return
        group = None if total.is_cuda else self.group

        def reduce() -> None:
            if not triangle:
                dist.reduce(total, owner, group=group)
                return
            for first in range(0, len(total), _STRIP):
                strip = total[first : first + _STRIP, first:]
                packed = strip.contiguous()
                dist.reduce(packed, owner, group=group)
                strip.copy_(packed)

        self._exchange(reduce)
        if self.rank != owner:
            total.zero_()

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor on the CPU over all ranks.

        Parameters
        ----------
        values : Tensor
            Of one shape and dtype on all ranks; changed in place.

        Returns
        -------
        Tensor
            The same tensor, on every rank.
        """
        if self.size > 1:
            self._exchange(lambda: dist.all_reduce(values, group=self.group))
        return values

    def _exchange(self, call: Callable[[], object]) -> None:
        if self.heartbeat is not None:
            self.heartbeat.meet()
            with self.watching():
                self.heartbeat.during(call)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn torch's error about a broken connection into one that names the rank.

        Yields
        ------
        None
            Nothing.

        Raises
        ------
        RankError
            Naming the rank that has died or failed.
        RuntimeError
            Any other error of the block, as it is.
        """
        try:
            yield
        except RuntimeError as error:
            if self.heartbeat is None or (not isinstance(error, dist.DistError) and not _is_of_exchange(error)):
                raise
            self.heartbeat.explain(error)


ALONE = Team()
"""A process that shares its job with nobody."""


def _is_of_exchange(error: RuntimeError) -> bool:
    # gloo's errors are plain RuntimeErrors that begin with the place in its sources
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection closed", "connection reset", "nccl", "timed out"))


@contextmanager
def join_team(*, timeout_seconds: float = 60.0, patience: float = 10.0) -> Iterator[Team]:
    """Take part in the job that ``torchrun`` started, or that the caller joined by ``init_process_group``.

    Parameters
    ----------
    timeout_seconds : float, default 60
        For one exchange between ranks that are all there. Work may take as long as it likes: a rank that is late is
        waited for as long as it shows signs of life.
    patience : float, default 10
        Seconds without a sign of life after which a rank counts as dead.

    Yields
    ------
    Team
        To be given to `Influence.fit` and `Influence.score` as ``team``. A process that was started by itself is a team
        of one.

    Raises
    ------
    ArgumentError
        If a number is not positive.
    RankError
        If another rank has died or failed; names it.

    Examples
    --------
    >>> with join_team() as team:
    ...     team.rank, team.size
    (0, 1)
    """
    if timeout_seconds <= 0 or patience <= 0:
        raise ArgumentError(f"timeout_seconds, patience: expected > 0, got {timeout_seconds}, {patience}")
    joined = dist.is_available() and dist.is_initialized()
    if not joined and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    timeout = timedelta(seconds=timeout_seconds)
    if not joined:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=timeout)
    store: Any = dist.distributed_c10d._get_default_store()  # the type lacks clone
    heartbeat = Heartbeat(store.clone(), store.clone(), rank, size, patience=patience)
    try:
        yield Team(rank, size, heartbeat, group)
        heartbeat.meet()
        heartbeat.leave()
    except RankError:
        heartbeat.stop()
        raise  # an exchange may still wait for the dead: there is no group to take apart
    except BaseException as error:
        heartbeat.fail(f"{type(error).__name__}: {error}")
        heartbeat.stop()
        raise
    if not joined:
        dist.destroy_process_group()
