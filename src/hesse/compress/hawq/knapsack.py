"""Multiple-choice knapsack: one option of every row, the least value, a bound on the cost.

    min Σ_i value_i(j_i)    subject to   Σ_i cost_i(j_i) <= budget

Shapes: L rows, F partial choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hesse.errors import ArgumentError, NumericalError

__all__ = ["SLACK", "Choices", "Floats", "Row", "Sums", "lower_hull", "milp_choices", "ordered_sums", "pareto_sums"]

Floats = NDArray[np.float64]
Choices = NDArray[np.int16]

SLACK = 1e-9
"""Of a budget: sums of costs are rounded."""
_ZOOM, _GAIN = 1e-4, 1e-12  # share of the answer that is the unit of the next question; gain that asks for another


@dataclass(frozen=True, slots=True)
class Row:
    """The options of one row: a layer, or layers that must agree."""

    cost: Floats
    omega: Floats
    columns: Choices  # what each option is called in an answer

    def only(self, column: int) -> "Row":
        """Hold the row at one option.

        Parameters
        ----------
        column : int
            One of ``columns``.

        Returns
        -------
        Row
            With that option alone.
        """
        keep = self.columns == column
        return Row(self.cost[keep], self.omega[keep], self.columns[keep])


@dataclass(frozen=True, slots=True)
class Sums:
    """Choices for the first rows, and what they add up to."""

    cost: Floats
    omega: Floats
    choices: Choices  # (F, rows so far)

    @classmethod
    def nothing(cls) -> "Sums":
        """Begin, before the first row.

        Returns
        -------
        Sums
            One choice of nothing, which costs nothing.
        """
        return cls(np.zeros(1), np.zeros(1), np.zeros((1, 0), dtype=np.int16))

    @classmethod
    def joined(cls, parts: Sequence["Sums"]) -> "Sums":
        """Put several sets of choices for the same rows into one.

        Parameters
        ----------
        parts : sequence of Sums
            At least one.

        Returns
        -------
        Sums
            All of them.
        """
        return cls(
            np.concatenate([part.cost for part in parts]),
            np.concatenate([part.omega for part in parts]),
            np.concatenate([part.choices for part in parts]),
        )

    def extended(self, row: Row) -> "Sums":
        """Combine every choice with every option of a further row.

        Parameters
        ----------
        row : Row
            The row.

        Returns
        -------
        Sums
            As many times more as the row has options.
        """
        points, options = len(self.cost), len(row.cost)
        last = np.tile(row.columns, points)[:, None]
        return Sums(
            (self.cost[:, None] + row.cost).ravel(),
            (self.omega[:, None] + row.omega).ravel(),
            np.concatenate([np.repeat(self.choices, options, axis=0), last], axis=1),
        )

    def pruned(self) -> "Sums":
        """Drop what another beats in both cost and value.

        Returns
        -------
        Sums
            By rising cost and falling value.
        """
        order = np.lexsort((self.omega, self.cost))
        sorted_omega = self.omega[order]
        before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_omega)[:-1]])
        return self._at(order[sorted_omega < before])

    def thinned(self, max_points: int) -> "Sums":
        """Keep the best of equal steps of cost.

        Parameters
        ----------
        max_points : int
            How many steps, at least 2.

        Returns
        -------
        Sums
            At most one more than that.
        """
        # the last of each step of cost has its least Ω; the first of all stays, without which nothing small would fit
        step = (self.cost[-1] - self.cost[0]) / (max_points - 1)
        bucket = np.floor((self.cost - self.cost[0]) / step)
        keep = np.append(bucket[1:] != bucket[:-1], True)
        keep[0] = True
        return self._at(np.flatnonzero(keep))

    def _at(self, index: NDArray[np.intp]) -> "Sums":
        return Sums(self.cost[index], self.omega[index], self.choices[index])


def pareto_sums(rows: Sequence[Row], max_points: int) -> tuple[Sums, bool]:
    """Compute every trade that is not beaten, a row at a time.

    Parameters
    ----------
    rows : sequence of Row
        All of them.
    max_points : int
        Partial choices kept after each row.

    Returns
    -------
    sums : Sums
        By rising cost and falling value.
    is_exact : bool
        Whether none had to be left out.
    """
    state, is_exact = Sums.nothing(), True
    for row in rows:
        state = state.extended(row).pruned()
        if len(state.cost) > max_points:
            state, is_exact = state.thinned(max_points), False
    return state, is_exact


def lower_hull(rows: Sequence[Row]) -> Sums:
    """Compute the corners of the frontier's convex hull: argmin value + λ cost of every row, for falling λ.

    Parameters
    ----------
    rows : sequence of Row
        All of them.

    Returns
    -------
    Sums
        By rising cost and falling value.
    """
    # along the hull of a row the value falls ever more slowly per unit of cost, so that the steps of all rows, sorted
    # by what they gain, make the hull of the sum
    steps: list[tuple[float, int, int, int]] = []
    start: list[int] = []
    for i, row in enumerate(rows):
        corners = _corners(row)
        start.append(corners[0])
        for a, b in pairwise(corners):
            steps.append((float((row.omega[b] - row.omega[a]) / (row.cost[b] - row.cost[a])), i, a, b))
    steps.sort(key=lambda step: step[0])  # stable: steps of a row keep their order
    current = np.array([row.columns[a] for row, a in zip(rows, start, strict=True)], dtype=np.int16)
    cost = [sum(float(row.cost[a]) for row, a in zip(rows, start, strict=True))]
    omega = [sum(float(row.omega[a]) for row, a in zip(rows, start, strict=True))]
    choices = [current.copy()]
    for _, i, a, b in steps:
        current[i] = rows[i].columns[b]
        cost.append(cost[-1] + float(rows[i].cost[b] - rows[i].cost[a]))
        omega.append(omega[-1] + float(rows[i].omega[b] - rows[i].omega[a]))
        choices.append(current.copy())
    return Sums(np.array(cost), np.array(omega), np.stack(choices))


def _corners(row: Row) -> list[int]:
    # options on the lower convex hull of (cost, Ω), by rising cost and falling Ω
    corners: list[int] = []
    for k in np.lexsort((row.omega, row.cost)).tolist():
        if corners and (row.omega[k] >= row.omega[corners[-1]]):
            continue
        while len(corners) > 1:
            a, b = corners[-2:]
            first = (row.omega[a] - row.omega[b]) * (row.cost[k] - row.cost[a])
            if first > (row.omega[a] - row.omega[k]) * (row.cost[b] - row.cost[a]):
                break
            corners.pop()
        corners.append(k)
    return corners


def ordered_sums(rows: Sequence[Row], num_columns: int) -> Sums:
    """Compute the frontier of choices whose column never rises from one row to the next.

    Parameters
    ----------
    rows : sequence of Row
        In the order that matters.
    num_columns : int
        Columns are 0 ... num_columns - 1 in every row.

    Returns
    -------
    Sums
        By rising cost and falling value.
    """
    ending = [Sums.nothing()] * num_columns  # choices whose last column is this one
    for step, row in enumerate(rows):
        ending = [
            Sums.joined(ending[:1] if step == 0 else ending[j:]).extended(row.only(j)).pruned()
            for j in range(num_columns)
        ]
    return Sums.joined(ending).pruned()


def milp_choices(rows: Mapping[str, Sequence[Row]], limits: Mapping[str, float]) -> Choices:
    """Solve with several bounds at once by `scipy.optimize.milp`.

    Parameters
    ----------
    rows : mapping of str to sequence of Row
        For every cost the same rows, with the same options and values.
    limits : mapping of str to float
        The bound on each cost.

    Returns
    -------
    ndarray of int16, shape (L,)
        The option of every row.

    Raises
    ------
    ArgumentError
        If nothing meets the bounds together.
    NumericalError
        If the solver stops without an answer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    first = next(iter(rows.values()))
    omega = np.concatenate([row.omega for row in first])
    m = len(first[0].columns)
    constraints = [LinearConstraint(np.kron(np.eye(len(first)), np.ones(m)), 1, 1)]
    for name, limit in limits.items():
        costs = np.concatenate([row.cost for row in rows[name]])
        unit = float(costs.max()) or 1.0
        constraints.append(LinearConstraint(costs[None, :] / unit, -np.inf, limit * (1 + SLACK) / unit))
    asked = ", ".join(f"{name} <= {limit:g}" for name, limit in limits.items())
    # the solver stops at a gap of 1e-6, absolute. So it is asked again in units of what it found, and without the
    # options that are worse than all of that by themselves, until it finds nothing better
    best, scale, barred = np.inf, float(np.abs(omega).max()) or 1.0, np.zeros(len(omega))
    choices = np.zeros((len(first), m))
    while True:
        answer = milp(
            np.where(barred > 0, 0, omega) / scale,
            integrality=np.ones(len(omega)),
            bounds=Bounds(0, 1),
            constraints=[*constraints, LinearConstraint(barred[None, :], -np.inf, 0)],
            options={"mip_rel_gap": 0.0},
        )
        if answer.x is None and np.isinf(best):
            if answer.status == 2:
                raise ArgumentError(f"limits: no plan meets {asked} together")
            raise NumericalError(f"milp found no plan for {asked}: {answer.message}")
        value = np.inf if answer.x is None else float((omega * answer.x.round()).sum())
        if answer.x is None or not value < best * (1 - _GAIN):
            return choices.argmax(1).astype(np.int16)
        best, choices = value, answer.x.reshape(len(first), m)
        if best <= 0:
            return choices.argmax(1).astype(np.int16)
        scale, barred = best * _ZOOM, (omega > best).astype(float)
