"""Keep derivatives of a head out of a surrounding autocast, whose half precision would drown their differences."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["without_autocast"]

P = ParamSpec("P")
R = TypeVar("R")
_KINDS = ("cpu", "cuda", "xpu", "mps")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with autocast off on every kind of device.

    Parameters
    ----------
    function : callable
        Any.

    Returns
    -------
    callable
        The same function; where autocast is off already it costs a test a kind.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        active = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
        if not active:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for kind in active:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return call
