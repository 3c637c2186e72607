"""The Monge gap, its certificate and the Sinkhorn divergence."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ConvergenceError, NumericalError, ShapeError
from hesse.transport import (
    Euclidean,
    Geodesic,
    PNorm,
    SquaredEuclidean,
    monge_gap,
    optimality_ratio,
    sinkhorn_divergence,
)

TIGHT: dict[str, Any] = {"tol": 1e-12, "max_steps": 50_000}
COSTS = [SquaredEuclidean(), Euclidean(), PNorm(1.5)]


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(30, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y + 1


def test_plain_sinkhorn_in_the_log_domain(pairs):
    """Oracle: a loop of textbook sweeps, which the mixed sweeps must agree with; plan and all three values."""
    x, y = pairs
    eps, n = 0.3, 30
    C = torch.cdist(x, y).square()
    f = g = torch.zeros(n, dtype=torch.float64)
    for _ in range(5000):
        f = -eps * ((g - C) / eps - math.log(n)).logsumexp(1)
        g = -eps * ((f - C.mT) / eps - math.log(n)).logsumexp(1)
    P = ((f[:, None] + g - C) / eps).exp() / n**2
    mean = C.diagonal().mean()
    kl = (P * C).sum() + eps * (P * (P * n**2).log()).sum()
    shannon = (P * C).sum() + eps * (P * P.log()).sum()
    gap, plan = monge_gap(x, y, eps=eps, return_plan=True, **TIGHT)
    torch.testing.assert_close(plan, P, atol=1e-12, rtol=1e-8)
    torch.testing.assert_close(gap, mean - kl)
    torch.testing.assert_close(monge_gap(x, y, eps=eps, entropy="shannon", **TIGHT), mean - shannon)
    torch.testing.assert_close(monge_gap(x, y, eps=eps, entropy=None, **TIGHT), mean - (P * C).sum())


@pytest.mark.parametrize(
    "cost",
    [*COSTS, lambda x, y: (x - y).abs().sum(-1).square()],
    ids=lambda cost: getattr(cost, "__name__", type(cost).__name__),
)
def test_gradient(pairs, cost):
    """Oracle: central differences of the value, at a tight tolerance, in both arguments."""
    x, y = (points[:8].clone().requires_grad_() for points in pairs)

    def value(x, y):
        return monge_gap(x, y, cost, eps=1.0, **TIGHT)

    assert torch.autograd.gradcheck(value, (x, y), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost", [*COSTS, Geodesic()], ids=lambda cost: type(cost).__name__)
def test_coincident_points_have_a_finite_gradient(cost):
    """Oracle: the identity is optimal, its exact gap zero, and the gradient of a zero minimum is finite."""
    x = torch.nn.functional.normalize(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    y = x.clone().requires_grad_()
    gap = monge_gap(x, y, cost)
    (slope,) = torch.autograd.grad(gap, y)
    assert bool(torch.isfinite(slope).all())
    assert float(monge_gap(x, x, cost, eps=0.0)) == pytest.approx(0, abs=1e-6)


def test_bounds_of_the_bias(pairs):
    """Oracle: the pairing itself is feasible: for an optimal map -eps log n <= KL value <= 0, and 2 eps log n apart."""
    x, _ = pairs
    values = []
    for eps in (1.0, 0.3, 0.1, 0.03):
        kl = float(monge_gap(x, 2 * x + 1, eps=eps, **TIGHT))
        shannon = float(monge_gap(x, 2 * x + 1, eps=eps, entropy="shannon", **TIGHT))
        bound = eps * math.log(30)
        assert -bound - 1e-9 <= kl <= 1e-9
        assert shannon == pytest.approx(kl + 2 * bound)
        values.append(abs(kl))
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_exact_gap_and_ratio(pairs, cost):
    """Oracle: POT's linear programme."""
    ot = pytest.importorskip("ot")
    x, y = pairs
    exact = ot.emd2([], [], cost.pairwise(x, y).numpy())
    mean = float(cost.paired(x, y).mean())
    assert float(monge_gap(x, y, cost, eps=0.0)) == pytest.approx(mean - exact)
    found = optimality_ratio(x, y, cost)
    assert found.optimal_cost == pytest.approx(exact)
    assert found.ratio == pytest.approx(mean / exact - 1)


def test_order_of_rows_does_not_matter(pairs):
    """Oracle: invariance; the gap is a function of the set of pairs."""
    x, y = pairs
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(monge_gap(x, y, **TIGHT), monge_gap(x[order], y[order], **TIGHT))


def test_divergence_against_its_definition(pairs):
    """Oracle: three entropic problems by POT at a tight tolerance, with weights."""
    ot = pytest.importorskip("ot")
    x, y = pairs[0], pairs[1][:20]
    a, b = torch.arange(1, 31, dtype=torch.float64), torch.arange(20, 0, -1, dtype=torch.float64)
    a, b = a / a.sum(), b / b.sum()
    eps = 0.5

    def entropic(x, y, a, b):
        C = torch.cdist(x, y).square()
        P = torch.as_tensor(ot.sinkhorn(a.numpy(), b.numpy(), C.numpy(), eps, stopThr=1e-13, numItermax=100_000))
        return (P * C).sum() + eps * (P * (P / (a[:, None] * b)).log()).sum()

    expected = entropic(x, y, a, b) - entropic(x, x, a, a) / 2 - entropic(y, y, b, b) / 2
    torch.testing.assert_close(sinkhorn_divergence(x, y, eps, a=3 * a, b=b, **TIGHT), expected, atol=1e-8, rtol=1e-7)
    assert float(sinkhorn_divergence(x, x, eps, **TIGHT)) == pytest.approx(0, abs=1e-9)


def test_gradient_of_the_divergence(pairs):
    """Oracle: central differences, in points and weights."""
    x, y = (points[:6].clone().requires_grad_() for points in pairs)
    a = torch.arange(1, 7, dtype=torch.float64).requires_grad_()

    def value(x, y, a):
        return sinkhorn_divergence(x, y, 0.5, a=a, **TIGHT)

    assert torch.autograd.gradcheck(value, (x, y, a), eps=1e-5, atol=1e-5)


def test_float32_agrees_with_float64(pairs):
    """Oracle: the float64 value; a relative eps of one per cent keeps four digits."""
    x, y = pairs
    wide, narrow = monge_gap(x, y, tol=1e-5), monge_gap(x.float(), y.float(), tol=1e-5)
    assert narrow.dtype == torch.float32
    assert float(narrow) == pytest.approx(float(wide), rel=1e-3)


def test_refusals(pairs):
    """Oracle: the documented errors, each with the name of what is wrong."""
    x, y = pairs
    with pytest.raises(ShapeError, match="rows"):
        monge_gap(x, y[:5])
    with pytest.raises(ShapeError, match="convert"):
        monge_gap(x, y.float())
    with pytest.raises(ArgumentTypeError, match="Tx"):
        monge_gap(x, y.half())
    with pytest.raises(ArgumentTypeError, match="x"):
        monge_gap(np.zeros((3, 2)), y)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="eps"):
        monge_gap(x, y, eps=-1.0)
    with pytest.raises(ArgumentError, match="resolution"):
        monge_gap(x.float(), y.float(), eps=1e-7)
    with pytest.raises(ArgumentError, match="entropy"):
        monge_gap(x, y, entropy="gini")  # pyright: ignore[reportArgumentType]
    with pytest.raises(NumericalError, match="NaN"):
        monge_gap(x, y * float("nan"), eps=0.1)
    with pytest.raises(ConvergenceError, match="sweeps"):
        monge_gap(x, y, strict=True, tol=1e-9, max_steps=2)
    with pytest.raises(NumericalError, match="moves nothing"):
        optimality_ratio(x, x)
    with pytest.raises(ArgumentError, match="positive, finite a"):
        sinkhorn_divergence(x, y, a=torch.zeros(30, dtype=torch.float64))
    with pytest.raises(ShapeError, match="expected b"):
        sinkhorn_divergence(x, y, b=torch.ones(3, dtype=torch.float64))
