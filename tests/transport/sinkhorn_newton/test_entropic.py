"""The door to the solvers, and proximal points."""

import pytest
import scipy.optimize
import torch

from hesse.errors import ArgumentError, ConvergenceError
from hesse.transport import entropic, linear_bound, proximal, sinkhorn, sinkhorn_newton


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_proximal_reaches_the_assignment():
    """Oracle: SciPy's exact assignment, in a batch of two."""
    cost = seeded(2, 30, 30)
    result = proximal(None, None, cost, 1e-2)
    assert bool(result.converged.all())
    for k in range(2):
        rows, columns = scipy.optimize.linear_sum_assignment(cost[k].numpy())
        exact = float(cost[k][rows, columns].mean())
        assert abs(float(result.value[k]) / exact - 1) <= 2e-6
        assert float(linear_bound(result, result.potentials)[k]) <= exact * (1 + 1e-9)


def test_auto_picks_by_the_spread_of_costs():
    """Oracle: the method named, bit for bit."""
    cost = seeded(12, 12)
    assert torch.equal(entropic(None, None, cost, 0.1).plan, sinkhorn(None, None, cost, 0.1).plan)
    assert torch.equal(entropic(None, None, cost, 1e-3).plan, sinkhorn_newton(None, None, cost, 1e-3).plan)


def test_raises_where_the_solver_only_reports():
    """Oracle: marginals that no plan on the allowed pairs can meet."""
    cost = torch.tensor([[0.0, torch.inf], [0.0, 0.0]], dtype=torch.float64)
    a, b = (torch.tensor(w, dtype=torch.float64) for w in ([0.7, 0.3], [0.3, 0.7]))
    with pytest.raises(ConvergenceError, match="forbidden"):
        entropic(a, b, cost, 0.1, method="newton")


def test_refuses():
    """Oracle: the argument's name in the message."""
    with pytest.raises(ArgumentError, match="method"):
        entropic(None, None, seeded(3, 3), 0.1, method="exact")
    with pytest.raises(ArgumentError, match="rtol"):
        proximal(None, None, seeded(3, 3), 0.1, rtol=-1.0)
