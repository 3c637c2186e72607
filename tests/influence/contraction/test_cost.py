"""The estimate that picks an order: what it must say where one order does a subset of the work of another."""

import pytest
import torch

from hesse.curvature.scratch import Scratch
from hesse.influence.contraction import cheapest_order, contract, order_costs, orders
from tests.influence.contraction._rows import F64, matrices_of, rows_of, stored


def costs(batch, positions, count, rank, *, inputs=64, outputs=128, dtype=torch.float32):
    rows = rows_of(batch, positions, inputs=inputs, outputs=outputs, bias=False)
    return order_costs(rows, stored(rows, matrices_of(rows, count), rank), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_where_one_order_must_win(dtype):
    """Oracle: the flops, where they are apart by a factor of four or more, whatever memory costs."""
    many_tokens_many_queries = costs(2, 64, 12, 40, dtype=dtype)
    assert min(many_tokens_many_queries, key=many_tokens_many_queries.get) == "sequence"
    tiny_rank = costs(4, 8, 2, 1, dtype=dtype)
    assert min(tiny_rank, key=tiny_rank.get) == "token"
    one_position = costs(8, 1, 1, None, dtype=dtype)
    assert min(one_position, key=one_position.get) == "dense"


def test_costs_rise_with_the_work():
    """Oracle: monotony in queries, positions and rank."""
    base = costs(2, 8, 3, 4)
    for more in (costs(2, 8, 6, 4), costs(2, 16, 3, 4), costs(2, 8, 3, 8)):
        assert more["token"] > base["token"]
    assert costs(2, 8, 6, 4)["sequence"] > base["sequence"]
    assert costs(4, 8, 3, 4)["dense"] > base["dense"]


@pytest.mark.parametrize("rank", [1, 4, None])
def test_the_chosen_order_is_the_one_that_runs(rank, monkeypatch):
    """Oracle: the least of the costs, and the function that a contraction then calls."""
    rows = rows_of(3, 5)
    queries = stored(rows, matrices_of(rows, 4), rank)
    chosen, costs_of = cheapest_order(rows, queries, F64), order_costs(rows, queries, F64)
    assert costs_of[chosen] == min(costs_of.values())
    names = {"token": "_by_token", "sequence": "_by_sequence", "dense": "_dense"}
    wanted, called = contract(rows, queries, F64, Scratch(), chosen), []
    for order, name in names.items():
        run = getattr(orders, name)
        monkeypatch.setattr(orders, name, lambda *args, order=order, run=run: called.append(order) or run(*args))
    assert torch.equal(contract(rows, queries, F64, Scratch()), wanted)
    assert called == [chosen]
