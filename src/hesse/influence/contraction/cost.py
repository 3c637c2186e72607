"""Which order of a contraction is the cheapest, from its arithmetic and its memory traffic.

    cost = flops + β·bytes         β: flops of a machine in the time that it takes to move one byte

β is measured once for a kind of device and dtype, not by a clock at run time, which could choose otherwise after a
restart, and then round otherwise.
Shapes: B sequences, T positions, Q queries, r rank, p outputs, m columns (bias counted).
"""

from typing import Literal

import torch

from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.influence.contraction.queries import DenseQueries, QueryMatrices

__all__ = ["Order", "cheapest_order", "order_costs", "orders_of"]

Order = Literal["token", "sequence", "dense"]

# Processors: the values with the fewest wrong choices over 285 shapes (one thread of an EPYC with bfloat16 units).
# Others: peak rates over memory bandwidth of an 80 GB accelerator, without tensor units for float32 and float64.
_FLOPS_PER_BYTE = {
    "cpu": {torch.float64: 4.0, torch.float32: 8.0, torch.bfloat16: 16.0},
    "other": {torch.float64: 10.0, torch.float32: 20.0, torch.bfloat16: 150.0},
}


def cheapest_order(rows: Captured, queries: QueryMatrices, dtype: torch.dtype) -> Order:
    """Choose the order of a contraction for one layer and batch.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of the layer.
    queries : QueryMatrices
        All queries, for that layer.
    dtype : dtype
        Of the products.

    Returns
    -------
    {"token", "sequence", "dense"}
        A function of shapes, dtype and kind of device alone.
    """
    costs = order_costs(rows, queries, dtype)
    return min(costs, key=lambda order: costs[order])


def orders_of(queries: QueryMatrices) -> tuple[Order, ...]:
    """List the orders that queries can be contracted in.

    Parameters
    ----------
    queries : QueryMatrices
        At low rank, or in full: these have no "token".

    Returns
    -------
    tuple of str
        Two or three.
    """
    return ("sequence", "dense") if isinstance(queries, DenseQueries) else ("token", "sequence", "dense")


def order_costs(rows: Captured, queries: QueryMatrices, dtype: torch.dtype) -> dict[Order, float]:
    """Estimate what each order costs.

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
    dict of str to float
        In flops, memory traffic converted to them.
    """
    batch, positions, p = rows.grads.shape
    m, count, tokens = rows.layer.columns, len(queries), batch * positions
    device = "cpu" if rows.grads.device.type == "cpu" else "other"
    per_entry = dtype.itemsize * _FLOPS_PER_BYTE[device][dtype]
    read = count * m * p * per_entry  # whole queries, once
    sequence = 2.0 * m * p * (tokens + count * batch) + per_entry * (2 * batch * m * p + tokens * (m + p)) + read
    dense = 2.0 * m * p * count * tokens + per_entry * 4 * count * tokens * m + read
    if isinstance(queries, DenseQueries):
        return {"sequence": sequence, "dense": dense}
    rank = queries.left.shape[-1]
    expanded = 2.0 * m * p * rank * count + 2 * read  # P_q = U_q V_qᵀ in full, anew for every block of sequences
    blocks = -(-batch * m * p // BLOCK_ENTRIES)
    token = 2.0 * rank * (m + p) * count * tokens + per_entry * 5 * count * rank * tokens
    return {"token": token, "sequence": sequence + blocks * expanded, "dense": dense + expanded}
