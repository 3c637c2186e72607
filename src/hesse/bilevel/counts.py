"""What a run has asked of the two objectives, and when it shall stop."""

import math
from dataclasses import asdict, dataclass, replace

from hesse.errors import ArgumentError

__all__ = ["Budget", "OracleCounts"]


@dataclass(slots=True)
class OracleCounts:
    """Derivatives taken so far, each counted once a sample: the batch's size, or 1 where there is no batch.

    Attributes
    ----------
    upper_gradients, lower_gradients : int
        Gradients of f and g with respect to x, y or both: one call a sample.
    hessian_products : int
        g_yy v: two calls a sample.
    jacobian_products : int
        g_xy v: two calls a sample.
    constraint_products : int
        Jᵀλ with the Jacobian J of the lower level's constraints by x, y or both: one call each.
    samples : int
        Examples drawn for them.
    """

    upper_gradients: int = 0
    lower_gradients: int = 0
    hessian_products: int = 0
    jacobian_products: int = 0
    constraint_products: int = 0
    samples: int = 0

    @property
    def calls(self) -> int:
        """One a gradient and two a product: the currency in which solvers are compared."""
        gradients = self.upper_gradients + self.lower_gradients + self.constraint_products
        return gradients + 2 * (self.hessian_products + self.jacobian_products)

    def copy(self) -> "OracleCounts":
        """Freeze the present figures.

        Returns
        -------
        OracleCounts
            Of its own.
        """
        return replace(self)

    def as_dict(self) -> dict[str, int]:
        """Give the figures by name.

        Returns
        -------
        dict of int
            Without ``calls``.
        """
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may cost; the first limit that is reached stops it.

    Parameters
    ----------
    iterations : int, optional
        Steps of the upper variable.
    oracle_calls : int, optional
        See `OracleCounts.calls`; a step that is under way is finished.
    seconds : float, optional
        Time in steps: callbacks, metrics and the exact hypergradient of the trace are not counted.

    Raises
    ------
    ArgumentError
        If no limit is given, or one is negative.
    """

    iterations: int | None = None
    oracle_calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        limits = (self.iterations, self.oracle_calls, self.seconds)
        if all(limit is None for limit in limits):
            raise ArgumentError("Budget: expected at least one of iterations, oracle_calls and seconds")
        if any(limit is not None and (limit < 0 or math.isnan(limit)) for limit in limits):
            raise ArgumentError(f"Budget: expected limits >= 0, got {limits}")

    def exhausted(self, iterations: int, calls: int, seconds: float) -> str | None:
        """Say which limit is reached.

        Parameters
        ----------
        iterations, calls : int
            Used so far.
        seconds : float
            Used so far.

        Returns
        -------
        str or None
            Name of the limit.
        """
        used = {"iterations": iterations, "oracle_calls": calls, "seconds": seconds}
        for name, value in used.items():
            limit = getattr(self, name)
            if limit is not None and value >= limit:
                return name
        return None

    def fraction(self, iterations: int, calls: int, seconds: float) -> float:
        """Say how much of the budget is used: what schedules of step sizes run by.

        Parameters
        ----------
        iterations, calls : int
            Used so far.
        seconds : float
            Used so far.

        Returns
        -------
        float
            Of the limit that is nearest, between 0 and 1.
        """
        pairs = ((iterations, self.iterations), (calls, self.oracle_calls), (seconds, self.seconds))
        return max(min(used / limit, 1.0) if limit else 1.0 for used, limit in pairs if limit is not None)
