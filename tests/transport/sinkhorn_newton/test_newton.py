"""Sinkhorn-Newton-Sparse: accuracy, batches, weights of zero, forbidden pairs, and what it refuses."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.transport import marginal_error, sinkhorn, sinkhorn_newton


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(n, seed):
    w = 0.1 + seeded(n, seed=seed)
    return w / w.sum()


def test_agrees_with_long_sinkhorn():
    """Oracle: Sinkhorn in logarithms run to rounding."""
    a, b, cost = weights(12, 1), weights(15, 2), seeded(12, 15)
    ours = sinkhorn_newton(a, b, cost, 0.02, tol=1e-13)
    oracle = sinkhorn(a, b, cost, 0.02, method="log", tol=1e-14, max_steps=20_000)
    torch.testing.assert_close(ours.plan, oracle.plan, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.potentials, oracle.potentials, rtol=0, atol=1e-10)


@pytest.mark.parametrize("power", [1, 2])
def test_grid_costs_at_weak_regularisation(power):
    """Oracle: the marginals. The l1 cost of a grid has many optimal plans."""
    grid = torch.cartesian_prod(*[torch.arange(8, dtype=torch.float64)] * 2)
    cost = torch.cdist(grid, grid, p=1) if power == 1 else torch.cdist(grid, grid) ** 2
    a, b = weights(64, 3), weights(64, 4)
    result = sinkhorn_newton(a, b, cost / cost.max(), 1 / 1200)
    assert bool(result.converged)
    assert marginal_error(result.plan, a, b) <= 1e-10
    assert result.num_steps <= 40
    assert result.history[-1].num_cg == result.num_cg


def test_regularised_optimum_equals_primal():
    """Oracle: an identity, the primal objective of the plan; and the reported error is that of the plan."""
    result = sinkhorn_newton(None, None, seeded(20, 20), 0.01)
    plan = result.plan
    primal = result.value + 0.01 * torch.special.xlogy(plan, plan).sum()
    torch.testing.assert_close(result.reg_value, primal, rtol=1e-10, atol=0)
    uniform = torch.full((20,), 0.05, dtype=torch.float64)
    torch.testing.assert_close(result.marginal_error, marginal_error(plan, uniform, uniform), rtol=0, atol=1e-14)


def test_batch_equals_loop():
    """Oracle: a loop over the problems, two of which are easy and one hard."""
    cost = torch.stack([seeded(10, 8, seed=k) * size for k, size in enumerate((1.0, 8.0, 0.1))])
    a, b = torch.stack([weights(10, k) for k in range(3)]), torch.stack([weights(8, 9 + k) for k in range(3)])
    batch = sinkhorn_newton(a, b, cost, 0.01, tol=1e-12)
    assert bool(batch.converged.all())
    for k in range(3):
        alone = sinkhorn_newton(a[k], b[k], cost[k], 0.01, tol=1e-12)
        torch.testing.assert_close(batch.plan[k], alone.plan, rtol=0, atol=1e-11)
        torch.testing.assert_close(batch.value[k], alone.value, rtol=1e-9, atol=0)


def test_points_without_weight_are_left_out():
    """Oracle: the problem without those points."""
    a, b, cost = weights(6, 1), weights(7, 2), seeded(6, 7)
    a[2], b[5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    whole = sinkhorn_newton(a, b, cost, 0.05)
    rows, columns = (a > 0).nonzero().squeeze(), (b > 0).nonzero().squeeze()
    part = sinkhorn_newton(a[rows], b[columns], cost[rows][:, columns], 0.05)
    torch.testing.assert_close(whole.plan[rows][:, columns], part.plan, rtol=0, atol=1e-10)
    assert whole.potentials[0][2] == -torch.inf
    assert whole.plan[2].sum() == whole.plan[:, 5].sum() == 0
    torch.testing.assert_close(whole.reg_value, part.reg_value, rtol=1e-9, atol=0)


def test_forbidden_pairs_get_nothing():
    """Oracle: a forbidden pair is the limit of a large cost."""
    cost = seeded(6, 6)
    forbidden = cost.clone()
    forbidden[0, 1] = forbidden[3, 3] = torch.inf
    dear = torch.where(forbidden == torch.inf, 1e4, cost)
    result, limit = (sinkhorn_newton(None, None, c, 0.05, continuation=False) for c in (forbidden, dear))
    torch.testing.assert_close(result.plan, limit.plan, rtol=0, atol=1e-10)
    assert result.plan[0, 1] == 0
    assert result.value.isfinite()


def test_single_point_is_the_outer_product():
    """Oracle: the closed form P = a bᵀ for n = 1 or m = 1."""
    b = weights(5, 1)
    one = torch.ones(1, dtype=torch.float64)
    assert torch.allclose(sinkhorn_newton(one, b, seeded(1, 5), 0.01).plan, b[None])
    assert torch.allclose(sinkhorn_newton(b, one, seeded(5, 1), 0.01).plan, b[:, None])


def test_potentials_start_the_next_problem():
    """Oracle: the cold start's plan, reached with fewer steps."""
    cost = seeded(40, 40)
    cold = sinkhorn_newton(None, None, cost, 1 / 1200)
    warm = sinkhorn_newton(None, None, cost, 1 / 1200, init=cold.potentials)
    torch.testing.assert_close(warm.plan, cold.plan, rtol=0, atol=1e-9)
    assert warm.num_steps <= 1


def test_numpy_and_empty_weights():
    """Oracle: the same problem in tensors."""
    cost = seeded(5, 5)
    numpy = sinkhorn_newton([], [], cost.numpy(), 0.1)
    assert torch.equal(numpy.plan, sinkhorn_newton(None, None, cost, 0.1).plan)


def test_single_precision_warns_of_its_floor():
    """Oracle: double precision, to the digits of single; a tolerance below them is raised with a warning."""
    cost = seeded(20, 20)
    with pytest.warns(UserWarning, match="out of reach in float32"):
        single = sinkhorn_newton(None, None, cost.float(), 0.02, tol=1e-9)
    assert bool(single.converged)
    assert single.plan.dtype == torch.float32
    torch.testing.assert_close(single.plan.double(), sinkhorn_newton(None, None, cost, 0.02).plan, rtol=0, atol=2e-6)


def test_csr_plan_keeps_everything_that_counts():
    """Oracle: the dense plan."""
    result = sinkhorn_newton(None, None, seeded(30, 30), 1e-3)
    sparse = result.sparse()
    assert sparse.values().numel() < 900
    torch.testing.assert_close(sparse.to_dense(), result.plan, rtol=0, atol=1e-16)
    with pytest.raises(ShapeError, match="batch"):
        sinkhorn_newton(None, None, seeded(2, 3, 3), 0.1).sparse()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reg": 0.0}, ArgumentError, "reg"),
        ({"a": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)}, ArgumentError, "weights a"),
        ({"a": torch.full((3,), 0.5, dtype=torch.float64)}, ArgumentError, r"same total, got 1\.5"),
        ({"a": torch.full((4,), 0.25, dtype=torch.float64)}, ShapeError, "shape"),
        ({"a": torch.full((3,), 1 / 3)}, ShapeError, "float32"),
        ({"M": np.full((3, 3), np.nan)}, ArgumentError, "NaN"),
        ({"M": np.ones((3, 3), dtype=np.float16)}, ShapeError, "half"),
        ({"M": np.ones(3)}, ShapeError, "shape"),
        ({"M": np.array([[np.inf] * 3, [1.0] * 3, [1.0] * 3])}, ArgumentError, "forbid"),
        ({"tol": -1.0}, ArgumentError, "tol"),
        ({"sparsity": 0.0}, ArgumentError, "sparsity"),
        ({"init": (torch.zeros(3), torch.zeros(3))}, ShapeError, "init"),
    ],
)
def test_refuses(change, error, message):
    """Oracle: the argument's name in the message."""
    arguments = {"a": None, "b": None, "M": np.ones((3, 3)), "reg": 0.1} | change
    with pytest.raises(error, match=message):
        sinkhorn_newton(**arguments)
