"""Visits the states of a long computation from last to first while keeping few of them: binomial checkpointing.

With c states kept, every step is made again r times at the most, r the least number with C(c + r, c) >= T: 4 times for
T = 300 and c = 10, 7 times for T = 10⁶ and c = 21.
"""

from collections.abc import Callable, Iterator
from math import comb
from typing import TypeVar

__all__ = ["default_checkpoints", "reversed_states"]

S = TypeVar("S")


def default_checkpoints(num_steps: int) -> int:
    """Return ⌈log₂ T⌉ + 1, at least 1: memory grows with the logarithm of the run's length, and so does the work.

    Parameters
    ----------
    num_steps : int
        T.

    Returns
    -------
    int
        States kept at once, the first one included.
    """
    return max(1, (num_steps - 1).bit_length() + 1)


def reversed_states(
    initial: S, num_steps: int, advance: Callable[[S, int], S], checkpoints: int
) -> Iterator[tuple[int, S]]:
    """Yield (t, state before step t) for t = T - 1, ..., 0, at the least possible number of calls of ``advance``.

    Parameters
    ----------
    initial : object
        State before step 0.
    num_steps : int
        T >= 1.
    advance : callable
        (state, t) -> state after step t; must not change what it is given.
    checkpoints : int
        States kept at once, the first one included and the one in hand not: 1 replays everything from the start each
        time, T keeps everything.

    Yields
    ------
    (int, object)
        Step and the state it starts from.

    References
    ----------
    A. Griewank, A. Walther (2000), ACM Trans. Math. Softw. 26(1), Algorithm 799.
    """
    kept: list[tuple[int, S]] = [(0, initial)]
    for last in range(num_steps - 1, -1, -1):
        if kept[-1][0] > last:
            kept.pop()
        place, state = kept[-1]
        while place < last:
            free = checkpoints - len(kept)
            target = place + _split(last + 1 - place, free + 1) if free > 0 else last
            for t in range(place, target):
                state = advance(state, t)
            place = target
            if free > 0:
                kept.append((place, state))
        yield last, state


def _split(length: int, slots: int) -> int:
    # how far to go before the next state is kept: the left part may be gone over r - 1 times more, the right r times
    repeats = 0
    while comb(slots + repeats, slots) < length:
        repeats += 1
    least = comb(slots + repeats - 2, slots) if repeats >= 2 else 1
    return max(1, least, length - comb(slots + repeats - 1, slots - 1))
