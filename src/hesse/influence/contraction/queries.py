"""Preconditioned gradients of the queries as they are kept: whole, or at low rank, in the dtype of the model.

Shapes: B sequences, T positions, Q queries, r rank, p outputs, m columns (bias counted).
"""

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis, left_times
from hesse.curvature.capture import Captured
from hesse.curvature.ekfac import rotate_back
from hesse.curvature.layers import TrackedLayer
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import wide_dtype
from hesse.linalg.orthonormal import thin_qr
from hesse.linalg.rsvd import rsvd

__all__ = [
    "DenseQueries",
    "LowRankQueries",
    "QueryMatrices",
    "check_rank",
    "empty_queries",
    "put",
    "put_rows",
    "takes_rows",
]

_OVERSAMPLING = 8  # columns of the random block beyond the rank


@dataclass(frozen=True, slots=True)
class DenseQueries:
    """P_q in full; the bias column apart, so that neither part is copied again for every batch."""

    weight: Tensor  # (Q, p, inputs)
    bias: Tensor | None  # (Q, p)

    def __len__(self) -> int:
        return len(self.weight)


@dataclass(frozen=True, slots=True)
class LowRankQueries:
    """P_q ≈ U_q V_qᵀ, the singular values split evenly so that both halves survive bfloat16.

    ``captured`` is ‖UVᵀ‖² / ‖P‖².
    """

    left: Tensor  # (Q, p, r)
    right: Tensor  # (Q, m, r)
    captured: Tensor  # (Q,)

    def __len__(self) -> int:
        return len(self.left)


QueryMatrices = DenseQueries | LowRankQueries


def empty_queries(
    layer: TrackedLayer, count: int, rank: int | None, dtype: torch.dtype, device: torch.device
) -> QueryMatrices:
    """Make room for the queries of one layer: at low rank, or in full if the rank is no less than the matrix.

    The halves are kept in full precision too. In bfloat16 a last bit of a factor, which depends on the number of
    processes that summed it, crosses a rounding here and there, and a score moves by some 2e-4 of the largest; in
    float32 by some 1e-5. Their bytes are few beside those of everything else that scoring holds.

    Parameters
    ----------
    layer : TrackedLayer
        Gives p and m.
    count : int
        Q.
    rank : int, optional
        r; None for full rank.
    dtype : dtype
        Of the products.
    device : device
        Of the products.

    Returns
    -------
    QueryMatrices
        To be filled by `put`.
    """
    p, m = layer.out_features, layer.columns
    if rank is None or rank >= min(p, m):
        bias = torch.empty(count, p, dtype=dtype, device=device) if layer.has_bias else None
        return DenseQueries(torch.empty(count, p, layer.in_features, dtype=dtype, device=device), bias)
    left, right = (torch.empty(count, n, rank, dtype=dtype, device=device) for n in (p, m))
    return LowRankQueries(left, right, torch.empty(count, dtype=torch.float32, device=device))


def put(
    queries: QueryMatrices,
    first: int,
    matrices: Tensor,
    *,
    bases: tuple[Basis, Basis] | None,
    scratch: Scratch,
    seed: int,
) -> None:
    """Store preconditioned gradients P_q = Q_S N_q Q_Aᵀ from row ``first`` on, at the rank there is room for.

    At low rank N_q is truncated by a randomised SVD (two power iterations, oversampling 8) and only its halves are
    rotated, r(p² + m²) products a query in place of pm(p + m). The SVD comes after the division by Λ, which does not
    keep the rank of the raw gradient.

    Parameters
    ----------
    queries : QueryMatrices
        From `empty_queries`.
    first : int
        Row.
    matrices : Tensor, shape (B, p, m)
        N_q.
    bases : (Tensor or BlockBasis) twice, shapes (p, p) and (m, m), optional
        Q_S and Q_A in the dtype of ``matrices``. None: N_q is P_q.
    scratch : Scratch
        Room for what is computed on the way.
    seed : int
        Of the test matrix, the same for every query, so that a query's factors do not depend on its company.
    """
    rows = slice(first, first + len(matrices))
    if isinstance(queries, DenseQueries):
        if bases is not None:
            in_place = queries.bias is None and queries.weight.dtype == matrices.dtype
            room = queries.weight[rows] if in_place else scratch.take("rotated back", tuple(matrices.shape), matrices)
            matrices = rotate_back(matrices, *bases, out=room, scratch=scratch)
            if in_place:
                return
        queries.weight[rows] = matrices[..., : queries.weight.shape[-1]]
        if queries.bias is not None:
            queries.bias[rows] = matrices[..., -1]
        return
    generator = torch.Generator(device=matrices.device).manual_seed(seed)
    wide = matrices.to(wide_dtype(matrices.dtype))
    rank = queries.left.shape[-1]
    result = rsvd(wide, rank, num_power_steps=2, oversampling=_OVERSAMPLING, generator=generator)
    left, right = result.U, result.V
    if bases is not None:
        left, right = left_times(bases[0].to(left.dtype), left), left_times(bases[1].to(right.dtype), right)
    _keep(queries, rows, left, result.S, right)
    queries.captured[rows] = result.captured.to(queries.captured.dtype)


def takes_rows(queries: QueryMatrices, rows: Captured) -> TypeGuard[LowRankQueries]:
    """Tell whether `put_rows` is the cheaper way to keep gradients as they are, without preconditioning.

    Parameters
    ----------
    queries : QueryMatrices
        From `empty_queries`.
    rows : Captured
        Of one layer.

    Returns
    -------
    bool
        If low rank is asked for, of sequences with no more positions than a randomised SVD takes columns.
    """
    return isinstance(queries, LowRankQueries) and rows.grads.shape[1] <= queries.left.shape[-1] + _OVERSAMPLING


def put_rows(queries: LowRankQueries, first: int, rows: Captured, dtype: torch.dtype) -> None:
    """Store raw gradients D_n = Σ_t δ_t ã_tᵀ from row ``first`` on, without forming them.

    With δ = Q_δ R_δ and ã = Q_a R_a (columns are positions) the singular values are those of R_δ R_aᵀ, of order T: the
    best approximation of that rank, D_n itself where T <= r, for O((p + m)T²) in place of products with p × m matrices.

    Parameters
    ----------
    queries : LowRankQueries
        From `empty_queries`.
    first : int
        Row.
    rows : Captured
        Inputs and output gradients of one layer; B rows of ``queries`` are filled.
    dtype : dtype
        To compute in; float32 for half precision.

    Raises
    ------
    NumericalError
        If a gradient holds NaN or Inf.
    """
    wide = wide_dtype(dtype)
    grads, inputs = rows.grads.to(wide), rows.inputs.to(wide)
    if rows.layer.has_bias:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], 2)
    left, left_triangle = thin_qr(grads.mT)
    right, right_triangle = thin_qr(inputs.mT)
    core = left_triangle @ right_triangle.mT
    if not bool(torch.isfinite(core.sum())):
        raise NumericalError(f"score: the gradient of a query in {rows.layer.name!r} holds NaN or Inf")
    U, S, Vh = torch.linalg.svd(core)
    kept = min(queries.left.shape[-1], S.shape[-1])
    place = slice(first, first + len(grads))
    queries.left[place] = 0
    queries.right[place] = 0
    _keep(queries, place, left @ U[..., :kept], S[..., :kept], right @ Vh.mT[..., :kept])
    total = S.square().sum(-1)
    share = S[..., :kept].square().sum(-1) / torch.where(total > 0, total, torch.ones_like(total))
    queries.captured[place] = torch.where(total > 0, share, torch.ones_like(share)).to(queries.captured.dtype)


def _keep(queries: LowRankQueries, rows: slice, left: Tensor, values: Tensor, right: Tensor) -> None:
    root = values.sqrt()[:, None, :]  # split evenly, so that both halves survive bfloat16
    kept = values.shape[-1]
    queries.left[rows, :, :kept] = (left * root).to(queries.left.dtype)
    queries.right[rows, :, :kept] = (right * root).to(queries.right.dtype)


def check_rank(rank: int | None) -> None:
    """Refuse a rank that is not positive.

    Parameters
    ----------
    rank : int, optional
        As the user gave it.

    Raises
    ------
    ArgumentError
        If it is less than 1.
    """
    if rank is not None and rank < 1:
        raise ArgumentError(f"rank: expected >= 1 or None for full rank, got {rank}")
