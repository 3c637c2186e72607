"""Consistency bounds against brute force over distributions and scores, infima against a convex solver."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.comp_sum import (
    comp_sum_loss,
    consistency_bound,
    consistency_transform,
    minimizability_gap,
    phi,
    pointwise_infimum,
)

F64 = torch.float64
TAUS = [0.0, 0.5, 1.0, 1.5, 1.8, 1.99, 2.0, 3.0]


def distributions(rows, n, seed=0):
    weights = -torch.rand(rows, n, generator=torch.Generator().manual_seed(seed), dtype=F64).log()
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("n", [2, 3, 10])
def test_zero_one_regret_stays_below_the_bound(n, tau):
    """Oracle: brute force, random distributions with random scores and with scores near their logarithms."""
    p = distributions(1000, n)
    noise = torch.randn(1000, n, generator=torch.Generator().manual_seed(1), dtype=F64)
    for h in (2 * noise, p.log() + 0.1 * noise):
        zero_one = p.amax(-1) - p.gather(-1, h.argmax(-1, keepdim=True)).squeeze(-1)
        regret = (comp_sum_loss(h, p, tau, reduction="none") - pointwise_infimum(p, tau)).clamp(min=0)
        assert bool((zero_one <= consistency_bound(regret, tau, n) + 1e-9).all())
        assert bool((zero_one <= consistency_bound(regret, tau, n, method="closed") + 1e-9).all())


@pytest.mark.parametrize("tau", TAUS)
def test_transform_is_the_regret_of_a_tie(tau):
    """Oracle: two classes of probability (1 ± β)/2 with equal scores, where the bound is met."""
    beta = torch.linspace(0, 1, 41, dtype=F64)
    p = torch.stack([(1 + beta) / 2, (1 - beta) / 2], -1)
    tie = phi(torch.ones((), dtype=F64), tau)
    regret = tie - pointwise_infimum(p, tau)
    if tau <= 2:
        torch.testing.assert_close(consistency_transform(beta, tau, 2), regret, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("n", [2, 5])
def test_bound_inverts_the_transform(n, tau):
    """Oracle: the identity Γ(T(β)) = β; the closed form is larger; the transform rises and is convex."""
    beta = torch.linspace(1e-3, 1, 200, dtype=F64)
    t = consistency_transform(beta, tau, n)
    torch.testing.assert_close(consistency_bound(t, tau, n), beta, rtol=1e-6, atol=1e-9)
    assert bool((consistency_bound(t, tau, n, method="closed") >= beta - 1e-12).all())
    assert bool((t.diff() > 0).all())
    assert bool((t.diff().diff() > -1e-12).all())
    assert float(consistency_bound(torch.tensor(1e9), tau, n)) == 1
    assert float(consistency_bound(torch.tensor(0.0), tau, n)) < 1e-7


def test_transform_is_differentiable():
    """Oracle: central differences."""
    beta = torch.tensor([0.1, 0.5, 0.9], dtype=F64, requires_grad=True)
    for tau in TAUS:
        assert torch.autograd.gradcheck(lambda b, tau=tau: consistency_transform(b, tau, 3), beta)


@pytest.mark.parametrize("tau", TAUS)
def test_unbounded_infimum(tau):
    """Oracle: no random scores do better; BFGS reaches it where τ < 2, one score far ahead where τ >= 2."""
    p = distributions(4, 4)
    infima = pointwise_infimum(p, tau)
    for row, infimum in zip(p, infima, strict=True):
        if tau >= 1.99:
            far = torch.zeros(4, dtype=F64)
            far[row.argmax()] = 2000.0
            reached = float(comp_sum_loss(far, row, tau))
            slack = 1e-9 if tau >= 2 else 1e-3  # the optimum of τ = 1.99 is nearly one-hot, not quite
        else:
            reached, slack = _minimised(row, tau, None), 1e-7
        assert float(infimum) - 1e-9 <= reached <= float(infimum) + slack


def _minimised(p, tau, bound):
    def value(h):
        scores = torch.tensor(h, dtype=F64, requires_grad=True)
        loss = comp_sum_loss(scores, p, tau)
        (slope,) = torch.autograd.grad(loss, scores)
        return float(loss.detach()), slope.numpy()

    limits = None if bound is None else [(-bound, bound)] * len(p)
    starts = np.random.default_rng(0).uniform(-1, 1, (5, len(p))) * (1 if bound is None else bound)
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
    return min(minimize(value, x, jac=True, method="L-BFGS-B", bounds=limits, options=options).fun for x in starts)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("bound", [0.2, 1.0, 3.0])
def test_bounded_infimum(tau, bound):
    """Oracle: L-BFGS-B over the box from five starts and all its corners; the closed form of deterministic labels."""
    corners = bound * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=F64)
    for row in distributions(4, 4, seed=3):
        found = float(pointwise_infimum(row, tau, bound=bound))
        best_corner = float(comp_sum_loss(corners, row.expand(16, 4), tau, reduction="none").min())
        assert abs(found - min(best_corner, _minimised(row, tau, bound))) < 1e-6
    certain = torch.eye(4, dtype=F64)[0]
    wanted = phi(torch.tensor(3 * math.exp(-2 * bound), dtype=F64), tau)
    torch.testing.assert_close(pointwise_infimum(certain, tau, bound=bound), wanted, rtol=1e-9, atol=1e-12)


def test_minimizability_gap():
    """Oracle: by hand. One score vector for two points of opposite labels; zero where every point has its own."""
    p = torch.eye(2, dtype=F64)
    log2 = torch.log(torch.tensor(2.0, dtype=F64))
    torch.testing.assert_close(minimizability_gap(log2, p, 1.0), log2)
    infimum = phi(torch.tensor(math.exp(-2.0), dtype=F64), 1.0)
    torch.testing.assert_close(minimizability_gap(log2, p, 1.0, bound=1.0), log2 - infimum)
    table = distributions(5, 3)
    weights = distributions(1, 5)[0]
    best = float((weights * pointwise_infimum(table, 0.5)).sum())
    assert float(minimizability_gap(best, table, 0.5, weights=weights)) <= 1e-14


def test_gap_falls_and_factor_grows_with_tau():
    """Oracle: the trade-off, with constant scores on deterministic labels of ten classes."""
    p = torch.eye(10, dtype=F64)
    taus = (0.0, 0.5, 1.0, 1.5, 2.0)
    gaps = [float(minimizability_gap(phi(torch.tensor(9.0, dtype=F64), tau), p, tau)) for tau in taus]
    assert gaps == sorted(gaps, reverse=True)
    bounds = [float(consistency_bound(torch.tensor(1e-3, dtype=F64), tau, 10)) for tau in (1.0, 1.2, 1.5)]
    assert bounds == sorted(bounds)


def test_bad_input():
    """Oracle: the documented errors."""
    one = torch.ones(())
    p = distributions(3, 3)
    guess: Any = "guess"
    for call in (
        lambda: consistency_transform(2 * one, 1.0, 3),
        lambda: consistency_transform(one, -1.0, 3),
        lambda: consistency_transform(one, 1.0, 1),
        lambda: consistency_bound(-one, 1.0, 3),
        lambda: consistency_bound(one, 1.0, 1),
        lambda: consistency_bound(one, 1.0, 3, method=guess),
        lambda: pointwise_infimum(2 * p, 1.0),
        lambda: pointwise_infimum(p[:, :1], 1.0),
        lambda: pointwise_infimum(p, 1.0, bound=0.0),
        lambda: minimizability_gap(0.0, p, 1.0),
        lambda: minimizability_gap(9.0, p, 1.0, weights=torch.ones(3, dtype=F64)),
    ):
        with pytest.raises(ArgumentError):
            call()
    with pytest.raises(ShapeError, match="expected shape"):
        minimizability_gap(9.0, p[0], 1.0)
    with pytest.raises(ShapeError, match="weights"):
        minimizability_gap(9.0, p, 1.0, weights=torch.ones(2, dtype=F64) / 2)
