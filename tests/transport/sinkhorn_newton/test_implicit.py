"""Gradients through the optimality conditions."""

import pytest
import torch

from hesse.errors import ConvergenceError
from hesse.transport import sinkhorn, sinkhorn_newton
from hesse.transport.sinkhorn_newton.implicit import solve_hessian


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("solver", [sinkhorn, sinkhorn_newton])
def test_plan_by_cost(solver):
    """Oracle: finite differences (torch's gradcheck) of the plan, the value and the potentials, in a batch of two."""

    def outputs(cost):
        result = solver(None, None, cost, 0.1, tol=1e-15)
        return result.plan, result.value, *result.potentials

    assert torch.autograd.gradcheck(outputs, seeded(2, 4, 5).requires_grad_(), atol=1e-5)


def test_plan_by_weights():
    """Oracle: finite differences along directions that keep the total."""

    def outputs(logits):
        result = sinkhorn_newton(logits.softmax(-1), None, cost, 0.1, tol=1e-15)
        return result.plan, result.reg_value

    cost = seeded(4, 5)
    assert torch.autograd.gradcheck(outputs, seeded(4, seed=1).requires_grad_(), atol=1e-5)


def test_optimum_has_the_plan_for_gradient():
    """Oracle: Danskin's theorem; no linear system is solved for it. A forbidden pair takes no part."""
    cost = seeded(6, 6)
    cost[1, 2] = torch.inf
    result = sinkhorn_newton(None, None, cost.requires_grad_(), 0.02)
    (grad,) = torch.autograd.grad(result.reg_value, cost)
    torch.testing.assert_close(grad, result.plan.detach(), rtol=0, atol=1e-14)
    (value_grad,) = torch.autograd.grad(result.value, cost)
    assert bool(value_grad.isfinite().all())
    assert value_grad[1, 2] == 0


def test_solve_hessian_is_the_pseudo_inverse():
    """Oracle: torch.linalg.pinv of the dense matrix, for a right-hand side with a part along the null direction."""
    plan = seeded(40, 30) ** 8
    rhs = seeded(70, seed=2)
    matrix = torch.cat([torch.cat([plan.sum(1).diag(), plan], 1), torch.cat([plan.T, plan.sum(0).diag()], 1)])
    w = torch.cat(solve_hessian(plan[None], rhs[None, :40], rhs[None, 40:]), -1)[0]
    torch.testing.assert_close(w, torch.linalg.pinv(matrix, hermitian=True, rtol=1e-13) @ rhs, rtol=1e-6, atol=1e-8)


def test_disconnected_plan_has_no_gradient():
    """Oracle: a plan in two pieces leaves the potentials free between them; the message says so."""
    plan = torch.block_diag(seeded(3, 3), seeded(3, 3, seed=1))[None]
    rows = torch.tensor([[1.0, 1, 1, -1, -1, -1]], dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="raise reg"):
        solve_hessian(plan, rows, torch.zeros(1, 6, dtype=torch.float64))


def test_concentrated_plan_still_has_a_gradient():
    """Oracle: the closed form on 2 x 2: with P = [[p, ½-p], [½-p, p]], 2p = σ(d/2reg), d = C01 + C10 - C00 - C11."""
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    reg = 0.05
    result = sinkhorn_newton(None, None, cost, reg, tol=1e-15)
    (grad,) = torch.autograd.grad(result.plan[0, 1].log(), cost)
    p = torch.sigmoid(torch.tensor(1.9 / (2 * reg), dtype=torch.float64))
    slope = p / (2 * reg)
    torch.testing.assert_close(grad, slope * torch.tensor([[1.0, -1], [-1, 1]], dtype=torch.float64), rtol=1e-6, atol=0)
