"""Neighbour graphs and the thinning of clouds."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.gp import furthest_point_sampling
from hesse.gp.rvgp.graph import attach, neighbour_graph
from tests.gp.rvgp.clouds import seeded, sphere


def test_furthest_points_are_those_of_the_definition():
    """Oracle: a loop over all pairs."""
    X = torch.rand(60, 3, dtype=torch.float64, generator=seeded(0))
    chosen = [4]
    for _ in range(19):
        gaps = torch.cdist(X, X[chosen]).amin(1)
        chosen.append(int(gaps.argmax()))
    assert furthest_point_sampling(X, 20, start=4).tolist() == chosen


def test_spacing_stops_the_thinning():
    """Oracle: chosen points keep the distance, and cover the cloud within it."""
    X = torch.rand(500, 2, dtype=torch.float64, generator=seeded(1))
    kept = X[furthest_point_sampling(X, spacing=0.1)]
    least = 0.1 * float((X.amax(0) - X.amin(0)).norm())
    gaps = torch.cdist(kept, kept).fill_diagonal_(math.inf)
    assert float(gaps.min()) >= least
    assert float(torch.cdist(X, kept).amin(1).max()) < least


def test_equal_points_are_chosen_once():
    """Oracle: the number of distinct points."""
    assert len(furthest_point_sampling(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), 4)) == 2


@pytest.mark.parametrize("kind", ["gaussian", "paper"])
def test_graph_is_that_of_the_formula(kind):
    """Oracle: dense matrices of all pairs."""
    X, k, n = torch.rand(40, 3, dtype=torch.float64, generator=seeded(2)), 6, 40
    graph = neighbour_graph(X, k, kind)
    squares = torch.cdist(X, X).square().fill_diagonal_(math.inf)
    nearest = squares.argsort(1)[:, :k]
    joined = torch.zeros(n, n, dtype=torch.bool).scatter(1, nearest, True)
    joined = joined | joined.T
    h = squares.sort(1).values[:, k // 2 - 1].sqrt()
    W = joined.double() if kind == "paper" else joined * torch.exp(-squares / (h[:, None] * h))
    if kind == "gaussian":
        q = W.sum(1)
        W = W / (q[:, None] * q)
    found = torch.zeros(n, n, dtype=torch.float64)
    found[graph.rows, graph.cols] = graph.weights
    torch.testing.assert_close(found, W, rtol=1e-12, atol=0)
    torch.testing.assert_close(graph.degrees, W.sum(1), rtol=1e-12, atol=0)
    assert (graph.masses == 1).all() == (kind == "paper")


def test_attached_weights_are_those_of_a_node():
    """Oracle: the rows of the graph itself, up to the factor of a row that cancels."""
    X = sphere(200)
    graph = neighbour_graph(X, 12, "gaussian")
    new = X[:1] * (1 + 1e-9)
    neighbours, distances, weights = attach(graph, new)
    assert int(neighbours[0, 0]) == 0
    assert float(distances[0, 0]) < 1e-8
    mine = graph.rows == 0
    known = dict(zip(graph.cols[mine].tolist(), graph.weights[mine].tolist(), strict=True))
    # the node itself is among its own neighbours here, so that its bandwidth is one neighbour short
    own = distances[0, graph.num_neighbors // 2 - 1]
    for node, distance, weight in zip(neighbours[0, 1:].tolist(), distances[0, 1:], weights[0, 1:], strict=True):
        exact = distance.square() / graph.bandwidths[node]
        expected = known[node] * graph.density[0] * torch.exp(exact / graph.bandwidths[0] - exact / own)
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    X = torch.rand(5, 2)
    with pytest.raises(ArgumentError, match="num_points, spacing"):
        furthest_point_sampling(X)
    with pytest.raises(ArgumentError, match="num_points"):
        furthest_point_sampling(X, 6)
    with pytest.raises(ArgumentError, match="spacing"):
        furthest_point_sampling(X, spacing=0.0)
    with pytest.raises(ArgumentError, match="start"):
        furthest_point_sampling(X, 2, start=5)
    with pytest.raises(ShapeError, match="X"):
        furthest_point_sampling(X[0], 1)
    with pytest.raises(NumericalError, match="X has NaN"):
        furthest_point_sampling(X / 0, 1)
