"""Complete a rectangular low-rank matrix of which entries are missing and entries are wrong."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.subgm.descent import RecoveryResult, recover_psd
from hesse.optim.subgm.measurements import EntryMeasurements
from hesse.optim.subgm.steps import StepRule

__all__ = ["Completion", "robust_matrix_completion"]


@dataclass(frozen=True, slots=True)
class Completion:
    """M ≈ LRᵀ."""

    left: Tensor  # (p, k)
    right: Tensor  # (q, k)
    result: RecoveryResult  # of [L; R]

    @property
    def matrix(self) -> Tensor:
        """LRᵀ, of shape (p, q)."""
        return self.left @ self.right.mT


def robust_matrix_completion(
    indices: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    *,
    rank: int | None = None,
    init_scale: float = 1e-8,
    rule: StepRule | None = None,
    max_steps: int = 3000,
    tol: float = 1e-8,
    generator: Generator | None = None,
) -> Completion:
    """Minimise the mean of |M_ij - (LRᵀ)_ij| over the entries seen, from tiny L and R.

    This is `recover_psd` for U = [L; R], of whose UUᵀ only the off-diagonal block is measured. Single entries do not
    meet the condition of that method's theory, as Gaussian measurements do: with many columns beyond the rank, entries
    that were not seen are over-fitted. Give a bound of the rank that is not far from it.

    Parameters
    ----------
    indices : Tensor of int, shape (m, 2)
        Row and column of each entry seen; an entry may come more than once.
    values : Tensor, shape (m,)
        The entries, float32 or float64; some may be grossly wrong.
    shape : (int, int)
        (p, q).
    rank : int, optional
        Columns k of L and R. Default: min(p, q).
    init_scale : float, default 1e-8
        ‖[L_0; R_0]‖₂, in units of the data.
    rule : StepRule, optional
        Default: ``StepRule()``, the plateau rule.
    max_steps : int, default 3000
        Steps at most.
    tol : float, default 1e-8
        Stop when a step moves [L; R] by no more than this, relative to its length.
    generator : torch.Generator, optional
        Of the start, where the entries give none. Default: torch's global generator.

    Returns
    -------
    Completion
        The factors; O((p + q)²) time and memory a step, for Q.

    Raises
    ------
    ShapeError
        If ``indices`` and ``values`` do not fit each other.
    ArgumentError
        If an index lies outside ``shape``, or an option is out of range.
    """
    if indices.ndim != 2 or indices.shape[1] != 2 or values.shape != (len(indices),) or len(values) == 0:
        raise ShapeError(
            "robust_matrix_completion: expected indices (m, 2) and values (m,), got "
            f"{tuple(indices.shape)} and {tuple(values.shape)}"
        )
    if indices.is_floating_point() or indices.dtype == torch.bool or not values.is_floating_point():
        raise ShapeError(
            f"robust_matrix_completion: expected integer indices and floating values, got {indices.dtype} and "
            f"{values.dtype}"
        )
    p, q = shape
    rows, columns = indices.long().unbind(1)
    if bool((indices < 0).any()) or bool((rows >= p).any()) or bool((columns >= q).any()):
        raise ArgumentError(f"robust_matrix_completion: indices lie outside the shape ({p}, {q})")
    rank = min(p, q) if rank is None else rank
    if rank > min(p, q):
        raise ArgumentError(f"robust_matrix_completion: expected rank <= {min(p, q)}, got {rank}")
    measurements = EntryMeasurements(rows, columns, (p, q), values.new_empty(0))
    result = recover_psd(
        measurements, values, rank=rank, init_scale=init_scale, rule=rule, max_steps=max_steps, tol=tol,
        generator=generator,
    )  # fmt: skip
    return Completion(result.factor[:p], result.factor[p:], result)
