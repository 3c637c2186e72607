"""Activation patterns of a hidden layer: which rows of X a neuron h can leave switched on together, 1[X h >= 0].

Shapes: N rows of X, D columns, P patterns.
"""

import itertools
import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["all_patterns", "distinct_patterns", "feasible_patterns", "sample_patterns", "scenario_size"]

_STALLED = 20  # rounds of draws without a new pattern after which the supply counts as exhausted


def sample_patterns(X: Tensor, num_patterns: int, *, generator: Generator | None = None) -> Tensor:
    """Draw h ~ N(0, I) and keep distinct patterns 1[X h >= 0] until there are enough.

    The all-zero pattern is dropped: its neuron is silent. A row of zeros counts as switched on.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows are samples; append a column of ones for a bias.
    num_patterns : int
        P wanted; min(2 N, 200) is a good start, `scenario_size` tells what a guarantee takes.
    generator : torch.Generator, optional
        On the device of ``X``. Default: torch's global generator.

    Returns
    -------
    Tensor of bool, shape (N, P)
        In order of appearance. Fewer than asked for where twenty rounds of draws brought nothing new.

    Raises
    ------
    ArgumentError
        If ``num_patterns < 1`` or X has NaN or Inf.
    ShapeError
        If X is not a matrix with a row and a column.

    Notes
    -----
    O(N D) a draw. With `scenario_size` (N, ψ, ξ) patterns, one more independent draw lowers the optimum of the convex
    programme with probability at most ψ; that statement fails with probability at most ξ.
    """
    _require_matrix("sample_patterns", X)
    if num_patterns < 1:
        raise ArgumentError(f"sample_patterns: expected num_patterns >= 1, got {num_patterns}")
    found: dict[bytes, Tensor] = {}
    stalled = 0
    while len(found) < num_patterns and stalled < _STALLED:
        before = len(found)
        directions = torch.randn(X.shape[1], max(64, num_patterns), generator=generator, dtype=X.dtype, device=X.device)
        _collect(found, X @ directions >= 0, num_patterns)
        stalled = stalled + 1 if len(found) == before else 0
    if not found:  # every neuron is silent on negative rows of one column, and 1 is as good as any other
        return torch.ones(len(X), 1, dtype=torch.bool, device=X.device)
    return torch.stack(list(found.values()), 1)


def distinct_patterns(D: Tensor) -> Tensor:
    """Drop repeated and all-zero columns, in order of first appearance.

    Parameters
    ----------
    D : Tensor, shape (N, P)
        Patterns, of any dtype; nonzero counts as switched on.

    Returns
    -------
    Tensor of bool, shape (N, P')
        P' <= P.

    Raises
    ------
    ShapeError
        If D is not a matrix.
    """
    if D.ndim != 2:
        raise ShapeError(f"distinct_patterns: expected patterns of shape (N, P), got {tuple(D.shape)}")
    found: dict[bytes, Tensor] = {}
    _collect(found, D != 0, D.shape[1])
    return torch.stack(list(found.values()), 1) if found else D[:, :0] != 0


def all_patterns(X: Tensor) -> Tensor:
    """Enumerate every pattern that an open set of neurons has; for few columns only.

    Walks the extreme rays of the arrangement {h : x_k·h = 0}. There are at most 2 Σ_{k<r} C(N - 1, k) patterns, r the
    rank of X. Patterns that only a lower-dimensional set of h has add nothing: their cone lies in a neighbour's.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Of rank 3 at most (two features and a bias).

    Returns
    -------
    Tensor of bool, shape (N, P)
        Without the all-zero pattern.

    Raises
    ------
    ArgumentError
        If the rank of X is above 3 (sample then), or X has NaN or Inf, or is all zero.
    ShapeError
        If X is not a matrix with a row and a column.

    Notes
    -----
    O(N^(r-1)) rays and O(N) work at each; in NumPy on the CPU.
    """
    _require_matrix("all_patterns", X)
    rows = X.detach().cpu().double().numpy()
    rows = rows[np.linalg.norm(rows, axis=1) > 0]
    if not len(rows):
        raise ArgumentError("all_patterns: X is all zero")
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    basis = vectors[values > 1e-10 * values[0]].T
    if basis.shape[1] > 3:
        raise ArgumentError(f"all_patterns: X has rank {basis.shape[1]}, enumeration stops at 3; use sample_patterns")
    reduced = rows @ basis
    directions = np.stack(_cells(reduced), 1)
    patterns = np.ones((len(X), directions.shape[1]), dtype=bool)
    patterns[(X != 0).any(1).cpu().numpy()] = reduced @ directions > 0
    return distinct_patterns(torch.as_tensor(patterns, device=X.device))


def _cells(rows: np.ndarray) -> list[np.ndarray]:
    # a point inside each cell of a central arrangement of full rank, some cells more than once
    rank = rows.shape[1]
    if rank == 1:
        return [np.ones(1), -np.ones(1)]
    points = []
    for chosen in itertools.combinations(range(len(rows)), rank - 1):
        _, values, vectors = np.linalg.svd(rows[list(chosen)])
        if values[-1] < 1e-10:
            continue
        ray, across = vectors[-1], vectors[:-1].T
        heights = rows @ ray
        touching = np.abs(heights) < 1e-10
        margin = np.abs(heights[~touching]).min(initial=1.0)
        for point in _cells(rows[touching] @ across):
            small = 0.5 * margin / max(np.linalg.norm(point), 1e-300)
            points += [sign * ray + small * (across @ point) for sign in (1.0, -1.0)]
    return points


def feasible_patterns(X: Tensor, D: Tensor, eps: float, *, intercept: bool = True) -> Tensor:
    """Which patterns some neuron keeps while every row moves by up to eps in each feature.

    One linear programme a pattern: max t with (2 d_k - 1) x_k·v - eps ‖v‖₁ >= t and |v_j| <= 1; feasible if t > 0.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows; see ``intercept``.
    D : Tensor, shape (N, P)
        Patterns.
    eps : float
        Radius of the l∞ ball, in units of X.
    intercept : bool, default True
        Whether the last column of X is the bias, which is not perturbed.

    Returns
    -------
    Tensor of bool, shape (P,)
        A robust model can use the patterns marked, and no others.

    Raises
    ------
    ArgumentError
        If ``eps`` is negative, or X has NaN or Inf.
    ShapeError
        If D does not fit X.
    NumericalError
        If a linear programme was not solved.

    Notes
    -----
    A few milliseconds a pattern, in SciPy's HiGHS on the CPU.
    """
    _require_matrix("feasible_patterns", X)
    if not eps >= 0:
        raise ArgumentError(f"feasible_patterns: expected eps >= 0, got {eps}")
    if D.ndim != 2 or len(D) != len(X):
        raise ShapeError(f"feasible_patterns: expected patterns of shape ({len(X)}, P), got {tuple(D.shape)}")
    rows = X.detach().cpu().double().numpy()
    reach = np.full(rows.shape[1], float(eps))
    reach[rows.shape[1] - int(intercept) :] = 0
    objective = np.zeros(2 * rows.shape[1] + 1)
    objective[-1] = -1
    bounds = [(0, 1)] * (2 * rows.shape[1]) + [(None, 1)]
    verdicts = []
    for signs in np.where(D.detach().cpu().numpy() != 0, 1.0, -1.0).T:
        signed = signs[:, None] * rows
        # v = a - b with a, b >= 0, so that ‖v‖₁ <= Σ a + b, with equality where it matters
        matrix = np.hstack([reach - signed, reach + signed, np.ones((len(rows), 1))])
        outcome = linprog(objective, A_ub=matrix, b_ub=np.zeros(len(rows)), bounds=bounds, method="highs")
        if outcome.status != 0:
            raise NumericalError(f"feasible_patterns: a linear programme failed: {outcome.message}")
        verdicts.append(-outcome.fun > 1e-9)
    return torch.tensor(verdicts, dtype=torch.bool, device=X.device)


def scenario_size(num_rows: int, psi: float, xi: float) -> int:
    """Count the random patterns (or neurons) after which one more seldom helps, by scenario theory.

    ⌈min{(N + 1)/(ψ ξ) - 1, (2/ψ)(N + 1 - ln ξ)}⌉: linear in N, although there are exponentially many patterns.

    Parameters
    ----------
    num_rows : int
        N, the dimension of the dual variable.
    psi : float
        Probability ψ in (0, 1) that one more draw lowers the optimum.
    xi : float
        Probability ξ in (0, 1) that the statement fails.

    Returns
    -------
    int
        Draws to make.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    Y. Bai, T. Gautam, S. Sojoudi (2023), SIAM J. Math. Data Sci., arXiv 2201.01965. The second bound is the standard
    one of scenario optimisation. G. Calafiore, M. C. Campi (2006), IEEE Trans. Autom. Control 51(5).
    """
    if num_rows < 1 or not 0 < psi < 1 or not 0 < xi < 1:
        raise ArgumentError(f"scenario_size: expected num_rows >= 1 and psi, xi in (0, 1), got {num_rows}, {psi}, {xi}")
    return math.ceil(min((num_rows + 1) / (psi * xi) - 1, 2 / psi * (num_rows + 1 - math.log(xi))))


def _collect(found: dict[bytes, Tensor], patterns: Tensor, limit: int) -> None:
    packed = np.packbits(patterns.cpu().numpy(), axis=0).T
    alive = patterns.any(0).tolist()
    for index, (key, on) in enumerate(zip(packed, alive, strict=True)):
        if len(found) == limit:
            return
        if on:
            found.setdefault(key.tobytes(), patterns[:, index])


def _require_matrix(call: str, X: Tensor) -> None:
    if X.ndim != 2 or not X.numel():
        raise ShapeError(f"{call}: expected X of shape (N, D), N and D positive, got {tuple(X.shape)}")
    if not bool(torch.isfinite(X).all()):
        raise ArgumentError(f"{call}: X has NaN or Inf")
