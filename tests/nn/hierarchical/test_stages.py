"""The convex stages against closed forms, loops that leave points out, and the network's own gradients."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.hierarchical import ridge_path, stage1_gd, stage1_ridge, stage2
from hesse.nn.hierarchical.stages import outer_features, stage1_cg

F64 = torch.float64


def problem(n, m, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator, dtype=F64), torch.randn(n, generator=generator, dtype=F64)


@pytest.mark.parametrize(("n", "m"), [(60, 20), (20, 60)])
def test_ridge_gradient_descent_and_cg_agree(n, m):
    """Oracle: torch.linalg.solve of the normal equations."""
    H, y = problem(n, m)
    wanted = torch.linalg.solve(H.T @ H / n + 0.1 * torch.eye(m, dtype=F64), H.T @ y / n)
    torch.testing.assert_close(stage1_ridge(H, y, 0.1), wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(stage1_gd(H, y, 0.1, max_steps=3000), wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(stage1_cg(H, y, 0.1, rtol=1e-12), wanted, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ridge_path(H, y, H.new_tensor([0.1])).weights, wanted, rtol=1e-9, atol=1e-11)


def test_every_neuron_follows_the_common_weights():
    """Oracle: autograd on all first-layer weights of the network, from its start in the linear part."""
    H, y = problem(50, 10)
    H, a = H / 10, torch.tensor([1.0, -1.0] * 3, dtype=F64)
    W = torch.zeros(6, 10, dtype=F64, requires_grad=True)
    for _ in range(15):
        loss = (torch.relu(H @ W.T + 1) @ a / 6 - y).square().mean() + 0.1 * W.square().sum()
        (gradient,) = torch.autograd.grad(loss, W)
        W = (W - 0.05 * gradient).detach().requires_grad_()
    w = stage1_gd(H, y, 6 * 0.2 / 2, step_size=2 * 0.05 / 6, max_steps=15)
    torch.testing.assert_close(W.detach(), a[:, None] * w, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("n", "m"), [(25, 8), (12, 30)])
def test_leave_one_out_is_exact(n, m):
    """Oracle: a loop that leaves each point out and solves again, at the same absolute penalty N λ."""
    H, y = problem(n, m, 1)
    lams = H.new_tensor([1.0, 0.1, 0.01])
    path = ridge_path(H, y, lams)
    errors = torch.zeros(3, dtype=F64)
    for k, lam in enumerate(lams):
        for i in range(n):
            rest = torch.arange(n) != i
            w = torch.linalg.solve(H[rest].T @ H[rest] + n * lam * torch.eye(m, dtype=F64), H[rest].T @ y[rest])
            errors[k] += (y[i] - H[i] @ w).square() / n
            if k == path.best:
                torch.testing.assert_close(path.left_out[i], H[i] @ w, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(path.errors, errors, rtol=1e-8, atol=1e-10)
    assert path.best == int(errors.argmin())
    assert path.lam == float(lams[path.best])


def test_the_second_stage_is_ridge_on_bumps():
    """Oracle: gradient descent on the same objective; means agree."""
    _, y = problem(80, 1)
    q = torch.linspace(-2, 2, 80, dtype=F64)
    biases = torch.linspace(-2, 2, 10, dtype=F64)
    signs = torch.tensor([1.0, -1.0] * 5, dtype=F64)
    a, shift, _ = stage2(q, y, signs, biases, q.new_tensor([0.05]))
    features = outer_features(q, signs, biases)
    centred = features - features.mean(0)
    torch.testing.assert_close(a, stage1_gd(centred, y - y.mean(), 0.05, max_steps=4000), rtol=1e-7, atol=1e-9)
    assert float((features @ a + shift - y).mean()) == pytest.approx(0, abs=1e-12)


def test_refused():
    """Oracle: errors that name the bad argument."""
    H, y = problem(5, 3)
    with pytest.raises(ShapeError, match="H"):
        stage1_ridge(H, y[:4], 1.0)
    with pytest.raises(ArgumentError, match="lam"):
        stage1_ridge(H, y, 0.0)
    with pytest.raises(ArgumentError, match="max_steps"):
        stage1_gd(H, y, 0.1, max_steps=0)
    with pytest.raises(ArgumentError, match="lams"):
        ridge_path(H, y, H.new_tensor([0.0]))
