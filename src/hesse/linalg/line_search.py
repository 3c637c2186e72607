"""Backtracking along a descent direction until a function has fallen enough."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least

__all__ = ["LineSearch", "armijo"]


@dataclass(frozen=True, slots=True)
class LineSearch:
    """Where a line search stopped."""

    step: float  # t; 0 if no step was acceptable
    value: float  # φ(t)
    converged: bool
    num_steps: int  # values of φ taken


def armijo(
    value_fn: Callable[[float], Tensor | float],
    value: Tensor | float,
    slope: Tensor | float,
    *,
    initial_step: float = 1.0,
    shrink: float = 0.5,
    decrease: float = 1e-4,
    slack: float = 0.0,
    max_steps: int = 50,
) -> LineSearch:
    """Find t in {t₀, t₀ρ, t₀ρ², …} with φ(t) <= φ(0) + c t φ'(0), the first one.

    Parameters
    ----------
    value_fn : callable
        φ, the objective as a function of the step; a NaN or infinite value counts as too long a step.
    value : Tensor of one element or float
        φ(0).
    slope : Tensor of one element or float
        φ'(0) < 0: the gradient times the direction.
    initial_step : float, default 1.0
        t₀ > 0; one is Newton's. A caller that lets steps grow passes the last one times its growth.
    shrink : float, default 0.5
        ρ in (0, 1).
    decrease : float, default 1e-4
        c in (0, 1); small, so that nearly every decrease is accepted. At most 1/2 if Newton's step is to pass.
    slack : float, default 0.0
        Increase of φ that is put down to rounding and forgiven, in the units of φ. Near a minimum, where differences
        of φ drown, about ``eps · |φ(0)|``.
    max_steps : int, default 50
        Values taken at most; fifty halvings are a factor 1e-15.

    Returns
    -------
    LineSearch
        With ``step=0`` and ``converged=False`` if no step was found: the direction is no descent direction, or φ(0) is
        already minimal to rounding.

    Raises
    ------
    ArgumentError
        If φ(0) is not finite, the slope is not negative, or an argument is out of range.

    References
    ----------
    L. Armijo (1966), Pacific J. Math. 16(1).
    """
    start, rate = _number(value), _number(slope)
    if not math.isfinite(start):
        raise ArgumentError(f"armijo: expected a finite value at step 0, got {start}")
    if not (rate < 0 and math.isfinite(rate)):
        raise ArgumentError(
            f"armijo: expected slope < 0, a descent direction, got {rate}; at a stationary point do not search"
        )
    if not (initial_step > 0 and math.isfinite(initial_step)):
        raise ArgumentError(f"armijo: expected initial_step > 0, got {initial_step}")
    if not 0 < shrink < 1:
        raise ArgumentError(f"armijo: expected 0 < shrink < 1, got {shrink}")
    if not 0 < decrease < 1:
        raise ArgumentError(f"armijo: expected 0 < decrease < 1, got {decrease}")
    at_least("armijo", "slack", slack, 0)
    at_least("armijo", "max_steps", max_steps, 1)
    step = float(initial_step)
    for count in range(1, max_steps + 1):
        reached = _number(value_fn(step))
        if reached <= start + decrease * step * rate + slack:
            if reached == -math.inf:
                raise ArgumentError(f"armijo: the function is -inf at step {step:.3e}: it is unbounded below")
            return LineSearch(step, reached, True, count)
        step *= shrink
    return LineSearch(0.0, start, False, max_steps)


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)
