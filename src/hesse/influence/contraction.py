"""How the gradients of many candidates meet the preconditioned gradients of many queries, layer by layer.

    c(q, n) = <P_q, D_n>,   D_n = Σ_t δ_t ã_tᵀ,   P_q = U_q V_qᵀ when it is kept at low rank

Three orders, of which the cheapest in flops is taken for each layer and batch:
    token      Σ_t (δ_tᵀ U_q)·(ã_tᵀ V_q)          2r(m + p) a token and query; gives per-token scores
    sequence   D_n first, one product with all P_q  2mp a token, 2mp a sequence and query (2mpr a query to expand P_q)
    dense      δ_tᵀ P_q ã_t                         2mp a token and query; exact per-token scores
Shapes: B sequences, T positions, Q queries, r rank, p outputs, m columns (bias counted).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from hesse.curvature.capture import BLOCK_ENTRIES, Captured
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
    "contract",
    "contract_tokens",
    "empty_queries",
    "put",
    "put_rows",
    "takes_rows",
]

_OVERSAMPLING = 8  # columns of the random block beyond the rank

_BLOCK_BYTES = 64 << 20  # low-rank queries are expanded this much at a time


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
    """Make room for the queries of one layer: at low rank in bfloat16, in full if the rank is no less than the matrix.

    In a float64 run the low-rank halves are float64 too.

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
    kept = torch.float64 if dtype == torch.float64 else torch.bfloat16
    left, right = (torch.empty(count, n, rank, dtype=kept, device=device) for n in (p, m))
    return LowRankQueries(left, right, torch.empty(count, dtype=torch.float32, device=device))


def put(
    queries: QueryMatrices,
    first: int,
    matrices: Tensor,
    *,
    bases: tuple[Tensor, Tensor] | None,
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
    bases : (Tensor, Tensor), shapes (p, p) and (m, m), optional
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
        left, right = bases[0].to(left.dtype) @ left, bases[1].to(right.dtype) @ right
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


def contract(rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    """<P_q, D_n> for every query and sequence: (Q, B) in ``dtype``, or wider.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.
    queries : QueryMatrices
        All queries, for that layer.
    dtype : dtype
        Of the products.
    scratch : Scratch
        Room for D.

    Returns
    -------
    Tensor, shape (Q, B)
        Unscaled.
    """
    batch, positions, outputs = rows.grads.shape
    columns = rows.layer.columns
    if isinstance(queries, DenseQueries):
        return _by_sequence(rows, queries, dtype, scratch)
    rank, count = queries.left.shape[-1], len(queries)
    by_token = rank * (columns + outputs) * count * positions
    by_sequence = columns * outputs * (positions + count + rank * count / batch)
    if by_token < by_sequence:
        return contract_tokens(rows, queries, dtype).sum(-1)
    return _by_sequence(rows, queries, dtype, scratch)


def contract_tokens(rows: Captured, queries: QueryMatrices, dtype: torch.dtype) -> Tensor:
    """δ_tᵀ P_q ã_t, the terms of <P_q, D_n> before the sum over t; exact for the queries as they are kept.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.
    queries : QueryMatrices
        All queries, for that layer.
    dtype : dtype
        Of the products.

    Returns
    -------
    Tensor, shape (Q, B, T)
        Unscaled.
    """
    d, x = rows.grads.to(dtype), rows.inputs.to(dtype)
    m = rows.layer.in_features
    if isinstance(queries, DenseQueries):
        terms = torch.stack([((d @ matrix) * x).sum(-1) for matrix in queries.weight.to(dtype)])
        return terms if queries.bias is None else terms + torch.einsum("btp,qp->qbt", d, queries.bias.to(dtype))
    out = []
    for left, right in _query_blocks(queries, d.shape[0] * d.shape[1] * d.element_size()):
        rank = left.shape[-1]
        du = d @ _side_by_side(left.to(dtype))
        right = right.to(dtype)
        xv = x @ _side_by_side(right[:, :m])
        if rows.layer.has_bias:
            xv = xv + right[:, m].reshape(-1)
        out.append((du * xv).view(*d.shape[:2], -1, rank).sum(-1).permute(2, 0, 1))
    return torch.cat(out)


def _by_sequence(rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    parts = [_block_by_sequence(block, queries, dtype, scratch) for block in rows.blocks(BLOCK_ENTRIES)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _block_by_sequence(rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    d, x = rows.grads.to(dtype), rows.inputs.to(dtype)
    gradient = scratch.take("gradient", (len(d), d.shape[2], x.shape[2]), d)
    gradient = torch.bmm(d.transpose(1, 2), x, out=gradient).flatten(1)
    bias = d.sum(1) if rows.layer.has_bias else None
    blocks = [queries] if isinstance(queries, DenseQueries) else _expanded(queries, rows.layer.has_bias, dtype, scratch)
    out = []
    for block in blocks:
        part = block.weight.to(dtype).flatten(1) @ gradient.T
        if block.bias is not None and bias is not None:
            part += block.bias.to(dtype) @ bias.T
        out.append(part)
    return out[0] if len(out) == 1 else torch.cat(out)


def _expanded(queries: LowRankQueries, has_bias: bool, dtype: torch.dtype, scratch: Scratch) -> Iterator[DenseQueries]:
    # P_q in full again, a few queries at a time
    step = max(1, _BLOCK_BYTES // (queries.left.shape[1] * queries.right.shape[1] * dtype.itemsize))
    for left, right in zip(queries.left.split(step), queries.right.split(step), strict=True):
        left, right = left.to(dtype), right.to(dtype)
        inputs = right[:, : right.shape[1] - has_bias].transpose(1, 2)
        room = scratch.take("expanded", (len(left), left.shape[1], inputs.shape[2]), left)
        bias = torch.einsum("qpr,qr->qp", left, right[:, -1]) if has_bias else None
        yield DenseQueries(torch.bmm(left, inputs, out=room), bias)


def _query_blocks(queries: LowRankQueries, bytes_per_column: int) -> list[tuple[Tensor, Tensor]]:
    step = max(1, _BLOCK_BYTES // max(1, bytes_per_column * queries.left.shape[-1]))
    return list(zip(queries.left.split(step), queries.right.split(step), strict=True))


def _side_by_side(stack: Tensor) -> Tensor:
    # (Q, n, r) to (n, Q·r)
    return stack.transpose(0, 1).flatten(1)


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
