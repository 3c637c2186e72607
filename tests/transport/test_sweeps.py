import pytest
import torch

from hesse.transport.problem import Problem, kernel
from hesse.transport.sweeps import log_potentials, log_sweeps, scaling_sweeps, sweeps


def problems(count=2, n=5, m=4, reg=0.3, dtype=torch.float64):
    """Random costs, uneven weights, one source without mass."""
    g = torch.Generator().manual_seed(0)
    cost = torch.rand(count, n, m, dtype=dtype, generator=g)
    a, b = (torch.rand(count, k, dtype=dtype, generator=g) + 0.1 for k in (n, m))
    a[:, 0] = 0
    cost[:, 0] = torch.inf
    return Problem(cost, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), reg, batched=True)


def plain(problem, count):
    """Sinkhorn's sweeps written out on scaling vectors, one problem after the other."""
    plans = []
    for cost, a, b in zip(problem.cost, problem.a, problem.b, strict=True):
        K = torch.exp(-cost / problem.reg)
        right = torch.ones_like(b)
        left = torch.ones_like(a)
        for _ in range(count):
            left = torch.where(a > 0, a / (K @ right), 0)
            right = b / (K.T @ left)
        plans.append(left[:, None] * K * right)
    return torch.stack(plans)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("method", ["scaling", "log", "either"])
def test_sweeps_are_sinkhorns(method, count):
    """Oracle: the loop on scaling vectors; the error is that of the rows, columns are met."""
    problem = problems()
    u, v = torch.zeros_like(problem.a), torch.zeros_like(problem.b)
    if method == "scaling":
        u, v, error = scaling_sweeps(problem, kernel(problem.scaled, u, v), u, v, count)
    else:
        u, v, error = {"log": log_sweeps, "either": sweeps}[method](problem, problem.scaled, u, v, count)
    plan = kernel(problem.scaled, u, v)
    torch.testing.assert_close(plan, plain(problem, count))
    torch.testing.assert_close(plan.sum(-2), problem.b)
    torch.testing.assert_close(error, (plan.sum(-1) - problem.a).abs().sum(-1))


def test_log_potentials_are_those_of_log_sweeps():
    """Oracle: `log_sweeps`."""
    problem = problems()
    start = torch.zeros_like(problem.a), torch.zeros_like(problem.b)
    for one, other in zip(
        log_potentials(problem, problem.scaled, *start, 3), log_sweeps(problem, problem.scaled, *start, 3), strict=False
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_that_scaling_cannot_hold(dtype):
    """Oracle: sweeps in logarithms; scaling says by an infinite error that it left the range, batch by batch."""
    problem = problems(dtype=dtype)
    steep = Problem(problem.cost * torch.tensor([1.0, 1e4]).reshape(2, 1, 1).to(dtype), problem.a, problem.b, 0.3, True)
    u, v = torch.zeros_like(problem.a), torch.zeros_like(problem.b)
    error = scaling_sweeps(steep, kernel(steep.scaled, u, v), u, v, 3)[2]
    assert error.isfinite().tolist() == [True, False]
    mixed, logs = (f(steep, steep.scaled, u, v, 3) for f in (sweeps, log_sweeps))
    for one, other in zip(mixed, logs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert bool(one.isfinite().all())
