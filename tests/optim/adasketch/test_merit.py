"""The exact augmented Lagrangian: value, gradient, slope."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.optim.adasketch import AugmentedLagrangianMerit
from hesse.optim.adasketch.problem import ConstrainedProblem
from tests.optim.adasketch.cases import curved


def written_out(fun, con, x, lam, eta1, eta2):
    slope = torch.func.grad(lambda v: fun(v) + lam @ con(v))(x)
    return fun(x) + lam @ con(x) + eta1 / 2 * con(x) @ con(x) + eta2 / 2 * slope @ slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient(dtype):
    """Oracle: the formula written out, and torch's derivative of it."""
    fun, con, x = curved(dtype)
    lam = torch.tensor([0.3, -1.0, 2.0], dtype=dtype)
    merit = AugmentedLagrangianMerit(fun, con, 1.7, 0.3)
    torch.testing.assert_close(merit.value(x, lam), written_out(fun, con, x, lam, 1.7, 0.3))
    wanted = torch.func.grad(lambda a, b: written_out(fun, con, a, b, 1.7, 0.3), argnums=(0, 1))(x, lam)
    torch.testing.assert_close(merit.gradient(x, lam), wanted)


def test_slope_is_a_central_difference():
    """Oracle: central differences along a random direction, to 1e-6."""
    fun, con, x = curved()
    lam, dx = torch.tensor([0.3, -1.0, 2.0]).double(), torch.linspace(2, -1, 7, dtype=torch.float64)
    dlam = torch.tensor([1.0, 0.5, -0.2]).double()
    merit, h = AugmentedLagrangianMerit(fun, con), 1e-5
    numbers = (merit.value(x + h * dx, lam + h * dlam) - merit.value(x - h * dx, lam - h * dlam)) / (2 * h)
    torch.testing.assert_close(merit.directional_derivative(x, lam, dx, dlam), numbers, rtol=1e-6, atol=0)


def test_the_hessian_is_that_of_the_lagrangian():
    """Oracle: central differences again, which the Hessian of f alone misses by far."""
    fun, con, x = curved()
    lam = torch.tensor([0.3, -1.0, 2.0]).double()
    problem = ConstrainedProblem(fun, con)
    point = problem.at(x, lam)
    pushed = problem.hessian(point).matvec(point.gradient)
    of_f = torch.func.hessian(fun)(x) @ point.gradient
    of_all = torch.func.hessian(lambda v: fun(v) + lam @ con(v))(x) @ point.gradient
    torch.testing.assert_close(pushed, of_all)
    assert float((of_f - of_all).norm() / of_all.norm()) > 0.1


def test_value_is_differentiable():
    """Oracle: its own gradient."""
    fun, con, x = curved()
    merit, lam = AugmentedLagrangianMerit(fun, con), torch.ones(3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (by_x,) = torch.autograd.grad(merit.value(leaf, lam), leaf)
    torch.testing.assert_close(by_x, merit.gradient(x, lam)[0])


def test_without_constraints():
    """Oracle: f + (η₂/2) ‖∇f‖²."""
    merit = AugmentedLagrangianMerit(lambda x: (x**2).sum(), None, 1.0, 0.5)
    x = torch.tensor([1.0, 2.0])
    assert float(merit.value(x, x[:0])) == 5 + 0.25 * 20


def test_bad_arguments():
    """Oracle: the error classes."""
    with pytest.raises(ArgumentError, match="eta2"):
        AugmentedLagrangianMerit(torch.sum, None, 1.0, 0.0)
    with pytest.raises(ArgumentTypeError, match="con"):
        ConstrainedProblem(torch.sum, 3)  # pyright: ignore[reportArgumentType]
