"""A module's parameters as variables of a constrained problem."""

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError
from hesse.optim.adasketch import ConstrainedModule, adasketch_newton
from tests.optim.adasketch.cases import seeded


def regression(dtype):
    layer = nn.Linear(4, 1, dtype=dtype)
    X = torch.randn(50, 4, generator=seeded(0)).to(dtype)
    y = torch.randn(50, 1, generator=seeded(1)).to(dtype)
    return layer, X, y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constrained_regression(dtype):
    """Oracle: least squares with weights that sum to one and no intercept, by its dense KKT system."""
    layer, X, y = regression(dtype)
    problem = ConstrainedModule(
        layer, lambda m: ((m(X) - y) ** 2).mean(), [lambda m: m.weight.sum() - 1, lambda m: m.bias]
    )
    result = adasketch_newton(problem.fun, problem.con, problem.x0, generator=seeded(2)).require()
    problem.load_(result.x)
    ones = torch.ones(1, 4, dtype=torch.float64)
    gram = 2 * X.double().T @ X.double() / 50
    top = torch.cat([torch.cat([gram, ones.T], 1), torch.cat([ones, torch.zeros(1, 1).double()], 1)])
    right = torch.cat([2 * X.double().T @ y.double()[:, 0] / 50, torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(layer.weight.double()[0], torch.linalg.solve(top, right)[:4], rtol=0, atol=1e-3)
    assert float(layer.bias.detach().abs()) < 1e-3


def test_functions_do_not_touch_the_module():
    """Oracle: the parameters before."""
    layer, X, _ = regression(torch.float64)
    before = [p.clone() for p in layer.parameters()]
    problem = ConstrainedModule(layer, lambda m: m(X).sum(), [])
    torch.testing.assert_close(problem.fun(problem.x0 + 1), layer(X).sum() + X.sum() + len(X))
    assert problem.con(problem.x0).shape == (0,)
    for p, old in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_frozen_parameters_are_no_variables():
    """Oracle: the size of the vector, and an error where nothing is left."""
    layer, X, _ = regression(torch.float64)
    layer.bias.requires_grad_(False)
    assert ConstrainedModule(layer, lambda m: m(X).sum(), []).x0.shape == (4,)
    with pytest.raises(ArgumentError, match="gradient"):
        ConstrainedModule(layer.requires_grad_(False), lambda m: m(X).sum(), [])
