"""How many threads torch uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block.

    For steps of a few milliseconds, where a second thread gains a tenth when its core is idle and loses far more when
    it is not, and for CPU seconds that are to be those of the work.

    Yields
    ------
    None
        Nothing; the number of threads is put back on leaving.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
