"""Sinkhorn by scaling and in logarithms."""

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.transport import marginal_error, sinkhorn


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_scaling_equals_logarithms(size):
    """Oracle: the same number of sweeps in logarithms; with costs of 300/reg every kernel entry underflows."""
    cost = size * (1 + seeded(7, 9))
    scaling, logs = (sinkhorn(None, None, cost, 0.1, method=m, tol=0.0, max_steps=50) for m in ("scaling", "log"))
    torch.testing.assert_close(scaling.plan, logs.plan, rtol=1e-8, atol=1e-12)
    assert scaling.num_sweeps == 50


def test_stops_at_its_tolerance():
    """Oracle: the marginals of the plan; and a limit that comes first is reported."""
    cost = seeded(10, 10)
    done = sinkhorn(None, None, cost, 0.05, tol=1e-8)
    uniform = torch.full((10,), 0.1, dtype=torch.float64)
    assert bool(done.converged)
    assert marginal_error(done.plan, uniform, uniform) <= 1e-8
    assert not bool(sinkhorn(None, None, cost, 0.05, tol=1e-8, max_steps=3).converged)


def test_refuses():
    """Oracle: the argument's name in the message."""
    with pytest.raises(ArgumentError, match="method"):
        sinkhorn(None, None, seeded(3, 3), 0.1, method="fast")
