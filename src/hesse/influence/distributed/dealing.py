"""What each rank does: contiguous runs of units from one checkpoint to the next, and the factors it owns.

A unit is a contiguous run of sequences that depends on the data alone, and what is on disk after a checkpoint is the
work on the first n sequences. So neither knows how many ranks there were, and any number of them can go on.
"""

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TypeVar

from hesse.influence.distributed.team import Team

__all__ = ["Share", "contiguous", "deal_spans", "in_step", "owners"]

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass(slots=True)
class Share:
    """The units of one rank between two checkpoints."""

    units: list[range]
    stop: int  # where the units of all ranks together end
    begun: float = field(default_factory=time.monotonic)
    took: float | None = None  # seconds of work, without the checkpoint after it

    def finish(self) -> None:
        """Note that the work is done, before it is written down."""
        self.took = time.monotonic() - self.begun


def contiguous(items: Items[Item], team: Team) -> Items[Item]:
    """Cut items into as many contiguous runs as there are ranks, of lengths that differ by one at most.

    Parameters
    ----------
    items : sequence
        The same on every rank.
    team : Team
        Who shares them.

    Returns
    -------
    sequence
        The run of this rank, perhaps empty.
    """
    return items[len(items) * team.rank // team.size : len(items) * (team.rank + 1) // team.size]


def deal_spans(units: Items[range], team: Team, seconds: float) -> Iterator[Share]:
    """Deal out units, checkpoint by checkpoint; when the caller comes back for more, its share is done and kept.

    It says so by `Share.finish` before it writes the checkpoint, which else counts as work. The first span is a unit a
    rank. Each further one is as long as the slowest rank needs to fill ``seconds``, no more than twice the last.

    Parameters
    ----------
    units : sequence of range
        What is left to do, in order, the same on every rank.
    team : Team
        Who shares them.
    seconds : float
        From one checkpoint to the next, about.

    Yields
    ------
    Share
        This rank's part of the next span.
    """
    done, length = 0, 1
    while done < len(units):
        span = units[done : done + length * team.size]
        share = Share(list(contiguous(span, team)), span[-1].stop)
        yield share
        done += len(span)
        if done < len(units):
            if share.took is None:
                share.finish()
            slowest = max(team.gather(share.took or 0.0)) / length
            length = max(1, min(2 * length, int(seconds / max(slowest, 1e-9))))


def owners(costs: Mapping[Key, float], team: Team) -> dict[Key, int]:
    """Deal out factors, largest first, in turn: those of one round are of like size, so that nobody waits long.

    Parameters
    ----------
    costs : mapping
        What each costs, in any unit; the same on every rank.
    team : Team
        Who shares them.

    Returns
    -------
    dict
        The rank that owns each, in the order of dealing.
    """
    order = sorted(costs, key=lambda key: -costs[key])
    return {key: place % team.size for place, key in enumerate(order)}


def in_step(steps: Iterable[Item], spare: Item, team: Team) -> Iterator[tuple[Item, bool]]:
    """Give every rank as many steps as the one that has most: ranks that share one model must run it together.

    Parameters
    ----------
    steps : iterable
        Of this rank.
    spare : object
        A step to run for the sake of the others.
    team : Team
        Who runs.

    Yields
    ------
    step : object
        Its own, then spare ones.
    counts : bool
        Whether it is its own.
    """
    mine = list(steps)
    most = max(team.gather(len(mine)))
    for step in mine:
        yield step, True
    for _ in range(most - len(mine)):
        yield spare, False
