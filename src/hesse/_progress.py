"""One progress bar for the whole house: on stderr, with rate and time left, silent when stderr is not a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "progress"]

Advance = Callable[[int], None]
"""Call it with the number of units just finished."""


@contextmanager
def progress(title: str, total: int, *, unit: str = "it", enabled: bool | None = None) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Parameters
    ----------
    title : str
        What is being done, three words at most.
    total : int
        Number of units in all.
    unit : str, default "it"
        Name of a unit, for the rate.
    enabled : bool, optional
        Default: whether stderr is a terminal.

    Yields
    ------
    Advance
        A function that moves the bar on by a number of units.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
