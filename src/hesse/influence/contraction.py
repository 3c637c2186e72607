"""How the gradients of many candidates meet the preconditioned gradients of many queries, layer by layer.

    c(q, n) = <P_q, D_n>,   D_n = Σ_t δ_t ã_tᵀ,   P_q = U_q V_qᵀ when it is kept at low rank

Three orders, of which the cheapest in flops is taken for each layer and batch:
    token      Σ_t (δ_tᵀ U_q)·(ã_tᵀ V_q)          2r(m + p) a token and query; gives per-token scores
    sequence   D_n first, one product with all P_q  2mp a token, 2mp a sequence and query (and 2mpr a query to expand P_q)
    dense      δ_tᵀ P_q ã_t                         2mp a token and query; exact per-token scores
Shapes: B sequences, T positions, Q queries, r rank, p outputs, m columns (bias counted).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.capture import Captured
from hesse.errors import ArgumentError
from hesse.linalg.rsvd import rsvd

__all__ = ["DenseQueries", "LowRankQueries", "QueryMatrices", "compress", "contract", "contract_tokens"]

_BLOCK_BYTES = 64 << 20  # low-rank queries are expanded this much at a time


@dataclass(frozen=True, slots=True)
class DenseQueries:
    """P_q in full; the bias column apart, so that neither part is copied again for every batch."""

    weight: Tensor  # (Q, p, inputs)
    bias: Tensor | None  # (Q, p)

    @classmethod
    def split(cls, matrices: Tensor, has_bias: bool, dtype: torch.dtype) -> "DenseQueries":
        """Take matrices (Q, p, m) apart."""
        if not has_bias:
            return cls(matrices.to(dtype).contiguous(), None)
        return cls(matrices[..., :-1].to(dtype).contiguous(), matrices[..., -1].to(dtype).contiguous())

    def __len__(self) -> int:
        return len(self.weight)


@dataclass(frozen=True, slots=True)
class LowRankQueries:
    """P_q ≈ U_q V_qᵀ, the singular values split evenly so that both halves survive bfloat16; ``captured`` is ‖UVᵀ‖² / ‖P‖²."""

    left: Tensor  # (Q, p, r)
    right: Tensor  # (Q, m, r)
    captured: Tensor  # (Q,)

    def __len__(self) -> int:
        return len(self.left)


QueryMatrices = DenseQueries | LowRankQueries


def compress(matrices: Tensor, rank: int, *, dtype: torch.dtype, seed: int) -> LowRankQueries:
    """Truncate P_q by a randomised SVD after preconditioning (two power iterations, oversampling 8).

    Parameters
    ----------
    matrices : Tensor, shape (Q, p, m)
        Preconditioned gradients.
    rank : int
        r < min(p, m).
    dtype : dtype
        Of what is kept; bfloat16 halves memory at no visible loss beside that of the truncation.
    seed : int
        Of the test matrix, the same for every query, so that a query's factors do not depend on its company.

    Returns
    -------
    LowRankQueries
        With the captured Frobenius fraction of every query.
    """
    generator = torch.Generator(device=matrices.device).manual_seed(seed)
    result = rsvd(matrices, rank, num_power_steps=2, oversampling=8, generator=generator)
    root = result.S.sqrt()[:, None, :]
    return LowRankQueries((result.U * root).to(dtype), (result.V * root).to(dtype), result.captured)


def contract(rows: Captured, queries: QueryMatrices, dtype: torch.dtype) -> Tensor:
    """<P_q, D_n> for every query and sequence: (Q, B) in ``dtype``, or wider.

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
    Tensor, shape (Q, B)
        Unscaled.
    """
    batch, positions, outputs = rows.grads.shape
    columns = rows.layer.columns
    if isinstance(queries, DenseQueries):
        return _by_sequence(rows, queries, dtype)
    rank, count = queries.left.shape[-1], len(queries)
    by_token = rank * (columns + outputs) * count * positions
    by_sequence = columns * outputs * (positions + count + rank * count / batch)
    if by_token < by_sequence:
        return contract_tokens(rows, queries, dtype).sum(-1)
    return _by_sequence(rows, queries, dtype)


def contract_tokens(rows: Captured, queries: QueryMatrices, dtype: torch.dtype) -> Tensor:
    """The terms of Σ_t: (Q, B, T), exact for the queries as they are kept."""
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


def _by_sequence(rows: Captured, queries: QueryMatrices, dtype: torch.dtype) -> Tensor:
    d, x = rows.grads.to(dtype), rows.inputs.to(dtype)
    gradient = torch.bmm(d.transpose(1, 2), x).flatten(1)
    bias = d.sum(1) if rows.layer.has_bias else None
    blocks = [queries] if isinstance(queries, DenseQueries) else _expanded(queries, rows.layer.has_bias, dtype)
    out = []
    for block in blocks:
        part = block.weight.to(dtype).flatten(1) @ gradient.T
        if block.bias is not None and bias is not None:
            part += block.bias.to(dtype) @ bias.T
        out.append(part)
    return out[0] if len(out) == 1 else torch.cat(out)


def _expanded(queries: LowRankQueries, has_bias: bool, dtype: torch.dtype) -> Iterator[DenseQueries]:
    """P_q in full again, a few queries at a time."""
    step = max(1, _BLOCK_BYTES // (queries.left.shape[1] * queries.right.shape[1] * dtype.itemsize))
    for left, right in zip(queries.left.split(step), queries.right.split(step), strict=True):
        left, right = left.to(dtype), right.to(dtype)
        if has_bias:
            bias = torch.einsum("qpr,qr->qp", left, right[:, -1])
            yield DenseQueries(left @ right[:, :-1].transpose(1, 2), bias)
        else:
            yield DenseQueries(left @ right.transpose(1, 2), None)


def _query_blocks(queries: LowRankQueries, bytes_per_column: int) -> list[tuple[Tensor, Tensor]]:
    step = max(1, _BLOCK_BYTES // max(1, bytes_per_column * queries.left.shape[-1]))
    return list(zip(queries.left.split(step), queries.right.split(step), strict=True))


def _side_by_side(stack: Tensor) -> Tensor:
    """(Q, n, r) to (n, Q·r)."""
    return stack.transpose(0, 1).flatten(1)


def check_rank(rank: int | None) -> None:
    """Refuse a rank that is not positive."""
    if rank is not None and rank < 1:
        raise ArgumentError(f"rank: expected >= 1 or None for full rank, got {rank}")
