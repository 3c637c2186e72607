"""The three orders of <P_q, D_n> = Σ_t δ_tᵀ P_q ã_t, for every query q and sequence n of a batch.

    token      Σ_t (δ_tᵀ U_q)·(ã_tᵀ V_q)   for P_q = U_q V_qᵀ; gives per-token scores
    sequence   D_n = Σ_t δ_t ã_tᵀ first, then one product with all P_q
    dense      (δ_tᵀ P_q) · ã_t             exact per-token scores

`cheapest_order` picks among them; all give the same numbers up to rounding.
Shapes: B sequences, T positions, Q queries, r rank, p outputs, m columns (bias counted).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError
from hesse.influence.contraction.cost import Order, cheapest_order, orders_of
from hesse.influence.contraction.queries import DenseQueries, LowRankQueries, QueryMatrices
from hesse.linalg._arguments import wide_dtype

__all__ = ["contract", "contract_tokens"]

_BLOCK_BYTES = 64 << 20  # room that a block of queries may take on the way


def contract(
    rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch, order: Order | None = None
) -> Tensor:
    """<P_q, D_n> for every query and sequence.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.
    queries : QueryMatrices
        All queries, for that layer.
    dtype : dtype
        Of the products.
    scratch : Scratch
        Room for D_n and for expanded queries.
    order : {"token", "sequence", "dense"}, optional
        Default: the cheapest for this layer and batch. It depends on shapes, dtype and kind of device alone, so that
        a restart rounds alike.

    Returns
    -------
    Tensor, shape (Q, B)
        In ``dtype`` or wider, unscaled.

    Raises
    ------
    ArgumentError
        If ``order`` is unknown, or "token" for queries that are kept in full.
    """
    if order is None:
        order = cheapest_order(rows, queries, dtype)
    elif order not in orders_of(queries):
        raise ArgumentError(f"order: expected one of {orders_of(queries)} for these queries, got {order!r}")
    if order == "sequence":
        parts = [_by_sequence(block, queries, dtype, scratch) for block in rows.blocks(BLOCK_ENTRIES)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    if order == "token" and isinstance(queries, LowRankQueries):
        return torch.cat([_sum_of_terms(block) for block in _by_token(rows, queries, dtype)])
    return _dense(rows, queries, dtype, scratch).sum(-1)


def contract_tokens(rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    """δ_tᵀ P_q ã_t, the terms of <P_q, D_n> before the sum over t; exact for the queries as they are kept.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.
    queries : QueryMatrices
        All queries, for that layer.
    dtype : dtype
        Of the products.
    scratch : Scratch
        Room for the products of whole matrices.

    Returns
    -------
    Tensor, shape (Q, B, T)
        In ``dtype``, unscaled.
    """
    if isinstance(queries, LowRankQueries):
        return torch.cat([block.sum(-1).permute(2, 0, 1) for block in _by_token(rows, queries, dtype)])
    return _dense(rows, queries, dtype, scratch)


def _by_token(rows: Captured, queries: LowRankQueries, dtype: torch.dtype) -> Iterator[Tensor]:
    # (δ_tᵀ U_q)∘(ã_tᵀ V_q), shape (B, T, q, r), for a block of queries at a time
    d, x = rows.grads.to(dtype), rows.inputs.to(dtype)
    m, rank = rows.layer.in_features, queries.left.shape[-1]
    step = max(1, _BLOCK_BYTES // (2 * rank * d.shape[0] * d.shape[1] * d.element_size()))
    for left, right in zip(queries.left.split(step), queries.right.split(step), strict=True):
        terms = d @ _side_by_side(left.to(dtype))
        right = right.to(dtype)
        xv = x @ _side_by_side(right[:, :m])
        if rows.layer.has_bias:
            xv += right[:, m].reshape(-1)
        terms *= xv
        yield terms.unflatten(-1, (-1, rank))


def _sum_of_terms(terms: Tensor) -> Tensor:
    # (B, T, q, r) to (q, B); over T first, as sums of whole rows are several times as fast as those of r neighbours
    return terms.sum(1, dtype=wide_dtype(terms.dtype)).sum(-1).T


def _by_sequence(rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    d, x = rows.grads.to(dtype), rows.inputs.to(dtype)
    gradient = scratch.take("gradient", (len(d), d.shape[2], x.shape[2]), d)
    gradient = torch.bmm(d.transpose(1, 2), x, out=gradient).flatten(1)
    bias = d.sum(1) if rows.layer.has_bias else None
    out = []
    for block in _whole(queries, rows.layer.has_bias, dtype, scratch):
        part = block.weight.flatten(1) @ gradient.T
        if block.bias is not None and bias is not None:
            part += block.bias @ bias.T
        out.append(part)
    return out[0] if len(out) == 1 else torch.cat(out)


def _dense(rows: Captured, queries: QueryMatrices, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    d, x = rows.grads.flatten(0, 1).to(dtype), rows.inputs.flatten(0, 1).to(dtype)
    out = []
    for whole in _whole(queries, rows.layer.has_bias, dtype, scratch):
        step = max(1, _BLOCK_BYTES // (x.numel() * x.element_size()))
        biases = [None] * len(whole) if whole.bias is None else whole.bias.split(step)
        for weight, bias in zip(whole.weight.split(step), biases, strict=False):
            room = scratch.take("meeting", (len(weight), *x.shape), x)
            # one row a position: its product with ã is a sum of m terms, not a matrix
            terms = torch.matmul(d, weight, out=room).mul_(x).sum(-1)
            out.append(terms if bias is None else terms.addmm_(bias, d.T))
    return (out[0] if len(out) == 1 else torch.cat(out)).unflatten(-1, rows.grads.shape[:2])


def _whole(queries: QueryMatrices, has_bias: bool, dtype: torch.dtype, scratch: Scratch) -> Iterator[DenseQueries]:
    # P_q in full and in the dtype of the products, a block of queries at a time unless they are there already
    if isinstance(queries, DenseQueries):
        yield DenseQueries(queries.weight.to(dtype), None if queries.bias is None else queries.bias.to(dtype))
        return
    step = max(1, _BLOCK_BYTES // (queries.left.shape[1] * queries.right.shape[1] * dtype.itemsize))
    for left, right in zip(queries.left.split(step), queries.right.split(step), strict=True):
        left, right = left.to(dtype), right.to(dtype)
        inputs = right[:, : right.shape[1] - has_bias].transpose(1, 2)
        room = scratch.take("expanded", (len(left), left.shape[1], inputs.shape[2]), left)
        bias = torch.einsum("qpr,qr->qp", left, right[:, -1]) if has_bias else None
        yield DenseQueries(torch.bmm(left, inputs, out=room), bias)


def _side_by_side(stack: Tensor) -> Tensor:
    # (Q, n, r) to (n, Q·r)
    return stack.transpose(0, 1).flatten(1)
