"""Losses over blocks, one by one: what torch 2.6 needs, where a traced number cannot index data."""

import torch

from hesse.bilevel._over_blocks import one_by_one, over_blocks

F64 = torch.float64


def blocks():
    g = torch.Generator().manual_seed(0)
    data, x = (torch.randn(shape, generator=g, dtype=F64) for shape in ((5, 3), (3,)))
    y = {"w": torch.randn(5, 3, generator=g, dtype=F64), "b": torch.randn(5, generator=g, dtype=F64)}
    rows = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 2], [0, 2]])

    def loss(x, y, i, rows):
        return (data[i] * y["w"] * x.exp())[rows].square().sum() * y["b"]

    by_hand = torch.stack([(data[k] * y["w"][k] * x.exp())[rows[k]].square().sum() * y["b"][k] for k in range(5)])
    return loss, (x, y, torch.arange(5), rows), by_hand


def test_both_ways_are_the_loop():
    """Oracle: the blocks written out by hand."""
    loss, arguments, by_hand = blocks()
    for mapping in (over_blocks, one_by_one):
        torch.testing.assert_close(mapping(loss, (None, 0, 0, 0), 5)(*arguments), by_hand, rtol=1e-14, atol=0)


def test_second_derivatives_go_through_the_loop():
    """Oracle: the Hessian in x of the sum over blocks written out by hand: x enters as exp(2x)."""
    loss, (x, y, index, rows), _ = blocks()
    found = torch.func.hessian(lambda x: one_by_one(loss, (None, 0, 0, 0), 5)(x, y, index, rows).sum())(x)
    slope = torch.func.grad(lambda x: one_by_one(loss, (None, 0, 0, 0), 5)(x, y, index, rows).sum())(x)
    torch.testing.assert_close(found, torch.diag(2 * slope), rtol=1e-13, atol=1e-13)
