"""Three orders of one contraction: the same products."""

import pytest
import torch

from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError
from hesse.influence.contraction import contract, contract_tokens, orders
from hesse.influence.contraction.cost import orders_of
from tests.influence.contraction._rows import F64, matrices_of, rows_of, stored


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "positions", "count"), [(1, 1, 1), (2, 50, 3), (6, 2, 4)])
@pytest.mark.parametrize("rank", [1, 2, None])
def test_every_order_gives_the_same_products(rank, batch, positions, count, bias):
    """Oracle: <P_q, D_n> entry by entry in float64, with P of that very rank; terms of tokens add up to it."""
    rows = rows_of(batch, positions, bias=bias)
    matrices = matrices_of(rows, count, rank)
    queries = stored(rows, matrices, rank)
    wanted = torch.einsum("qpm,npm->qn", matrices, sequence_gradients(rows))
    terms = contract_tokens(rows, queries, F64, Scratch())
    assert terms.shape == (count, batch, positions)
    for order in (None, *orders_of(queries)):
        found = contract(rows, queries, F64, Scratch(), order)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.sum(-1), wanted, rtol=1e-10, atol=1e-10)


def test_a_token_s_term_is_its_own_outer_product():
    """Oracle: δ_tᵀ P ã_t in a loop."""
    rows = rows_of(2, 3)
    matrices = matrices_of(rows, 2)
    terms = contract_tokens(rows, stored(rows, matrices, None), F64, Scratch())
    one = torch.ones(1, dtype=F64)
    for q in range(2):
        for n in range(2):
            for t in range(3):
                wanted = rows.grads[n, t] @ matrices[q] @ torch.cat([rows.inputs[n, t], one])
                torch.testing.assert_close(terms[q, n, t], wanted)


@pytest.mark.parametrize("rank", [2, None])
def test_blocks_change_nothing(rank, monkeypatch):
    """Oracle: the products of one large block."""
    rows = rows_of(5, 4)
    queries = stored(rows, matrices_of(rows, 3, rank), rank)
    known = orders_of(queries)
    whole = {order: contract(rows, queries, F64, Scratch(), order) for order in known}
    monkeypatch.setattr(orders, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(orders, "BLOCK_ENTRIES", 150)
    for order in known:
        torch.testing.assert_close(contract(rows, queries, F64, Scratch(), order), whole[order])


def test_orders_that_are_not_there_are_refused():
    """Oracle: an error that lists those there are; queries in full have no halves to meet a token with."""
    rows = rows_of(2, 3)
    with pytest.raises(ArgumentError, match=r"order: expected one of \('sequence', 'dense'\)"):
        contract(rows, stored(rows, matrices_of(rows, 2), None), F64, Scratch(), "token")
    with pytest.raises(ArgumentError, match="'backwards'"):
        contract(rows, stored(rows, matrices_of(rows, 2), 2), F64, Scratch(), "backwards")
