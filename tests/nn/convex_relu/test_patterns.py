"""Patterns against counting formulas, dense sampling, and geometry."""

from math import comb

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.convex_relu import all_patterns, distinct_patterns, feasible_patterns, sample_patterns, scenario_size
from tests.nn.convex_relu.cases import F64, problem, seeded, wave


def columns(D):
    return {tuple(column) for column in D.mT.tolist()}


@pytest.mark.parametrize(("n", "d"), [(7, 1), (8, 2), (9, 3)])
def test_all_patterns_are_as_many_as_cells(n, d):
    """Oracle: 2 Σ_{k<d} C(n-1, k) cells of n hyperplanes in general position, those of sampling among them."""
    X = torch.randn(n, d, generator=seeded(n), dtype=F64)
    D = all_patterns(X)
    cells = 2 * sum(comb(n - 1, k) for k in range(d))
    assert D.shape[1] in (cells, cells - 1)  # the silent one is left out, if there is one
    assert columns(sample_patterns(X, 10_000, generator=seeded(1))) <= columns(D)


def test_all_patterns_of_degenerate_rows():
    """Oracle: a dense sample of directions; three rows meet in a line, one is repeated, one opposed, one zero."""
    X = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=F64)
    assert columns(all_patterns(X)) == columns(sample_patterns(X, 1000, generator=seeded(0)))
    flat = torch.cat([X[:, :2], X[:, :2]], 1)  # rank two in four columns
    assert columns(all_patterns(flat)) == columns(sample_patterns(flat, 1000, generator=seeded(0)))


def test_samples_are_distinct_and_alive():
    """Oracle: the definition; repeated with the same seed."""
    X, _, D = problem()
    assert len(columns(D)) == D.shape[1] == 12
    assert bool(D.any(0).all())
    assert torch.equal(sample_patterns(X, 12, generator=seeded(3)), sample_patterns(X, 12, generator=seeded(3)))


def test_few_patterns_exhaust():
    """Oracle: one column has two signs; a column of negative numbers and h < 0 leave one pattern that is alive."""
    assert sample_patterns(torch.tensor([[1.0], [2.0], [-1.0]]), 50, generator=seeded(0)).shape == (3, 2)
    assert sample_patterns(torch.tensor([[-1.0]]), 50, generator=seeded(0)).tolist() == [[True]]


def test_distinct_keeps_first_and_drops_silent():
    """Oracle: by hand."""
    D = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]])
    assert distinct_patterns(D).tolist() == [[True, True], [False, True]]
    assert distinct_patterns(D[:, :1]).shape == (2, 0)


def test_feasible_at_zero_radius_and_not_at_large():
    """Oracle: every sampled pattern has an interior; two points closer than 2 eps cannot be told apart."""
    X, _ = wave()
    D = sample_patterns(X, 40, generator=seeded(0))
    assert bool(feasible_patterns(X, D, 0.0).all())
    pair = torch.tensor([[0.0, 0.0, 1.0], [0.1, 0.0, 1.0]], dtype=F64)
    kinds = torch.tensor([[True, True], [False, True]])
    assert feasible_patterns(pair, kinds, 0.049).tolist() == [True, True]
    assert feasible_patterns(pair, kinds, 0.051).tolist() == [False, True]


def test_scenario_size_by_hand():
    """Oracle: the formula; linear in the number of rows."""
    assert scenario_size(9, 0.5, 0.5) == 39  # the first branch: 10 / 0.25 - 1
    assert scenario_size(99, 0.1, 1e-6) == 2277  # the second: 20 (100 + 13.8155)
    assert scenario_size(1999, 0.1, 1e-6) < 21 * scenario_size(99, 0.1, 1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_patterns(torch.ones(2, 2), 0),
        lambda: sample_patterns(torch.tensor([[float("nan")]]), 1),
        lambda: all_patterns(torch.eye(4)),
        lambda: all_patterns(torch.zeros(2, 2)),
        lambda: feasible_patterns(torch.ones(2, 2), torch.ones(2, 1), -1.0),
        lambda: scenario_size(5, 0.0, 0.5),
    ],
)
def test_refused_values(call):
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError):
        call()


def test_refused_shapes():
    """Oracle: the documented errors."""
    for call in (
        lambda: sample_patterns(torch.ones(0, 2), 1),
        lambda: feasible_patterns(torch.ones(2, 2), torch.ones(3, 1), 0.1),
        lambda: distinct_patterns(torch.ones(3)),
    ):
        with pytest.raises(ShapeError):
            call()
