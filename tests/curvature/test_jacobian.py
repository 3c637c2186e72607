"""Jacobian products against the dense matrix, row by row from backward passes."""

import pytest
import torch
from torch import nn

from hesse.curvature.jacobian import jacobian
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.testing import check_linear_operator

F64 = torch.float64


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)


def inputs(count=5):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def apply(model, batch):
    return model(batch)


def dense_jacobian(model, outputs, parameters=None):
    parameters = list(model.parameters()) if parameters is None else parameters
    rows = [torch.autograd.grad(z, parameters, retain_graph=True) for z in outputs.reshape(-1)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_it_is_a_linear_operator(block_size):
    """Oracle: the dense float64 Jacobian by one backward pass an output, through the conformance suite."""
    model, x = net(), inputs()
    operator = jacobian(apply, model, x, block_size=block_size)
    assert operator.shape == (10, 26)
    assert operator.output_shape == (5, 2)
    ran = check_linear_operator(operator, dense_jacobian(model, model(x)), movable=False)
    assert "adjoint_dense" in ran


def test_derivatives_reach_the_parameters():
    """Oracle: finite differences, by the conformance suite."""
    parameters = {"w": torch.tensor([[0.3, -0.7], [1.1, 0.1]], dtype=F64), "b": torch.tensor(0.2, dtype=F64)}
    operator = jacobian(lambda p, x: torch.tanh(x @ p["w"]) * p["b"].exp(), parameters, inputs(2)[:, :2])
    assert "gradients" in check_linear_operator(operator, movable=False)


def test_names_pick_columns():
    """Oracle: the columns of one layer in the dense matrix."""
    model, x = net(), inputs()
    operator = jacobian(apply, model, x, names=["2.weight"])
    dense = dense_jacobian(model, model(x), [model[2].weight])
    torch.testing.assert_close(operator.to_dense().detach(), dense, rtol=1e-12, atol=1e-14)
    assert operator.layout.names == ("2.weight",)


def test_outputs_of_any_shape():
    """Oracle: a dense Jacobian of outputs (B, T, C), rows in row-major order, and of one number."""
    model, x = net(), inputs(6).view(2, 3, 3)
    operator = jacobian(apply, model, x)
    assert operator.shape == (12, 26)
    torch.testing.assert_close(operator.to_dense().detach(), dense_jacobian(model, model(x)), rtol=1e-12, atol=1e-14)
    assert jacobian(lambda m, b: m(b).sum(), model, x).shape == (1, 26)


def test_it_follows_the_parameters():
    """Oracle: the dense matrix after an in-place step, since the tensors are not copied."""
    model, x = net(), inputs()
    operator = jacobian(apply, model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    torch.testing.assert_close(operator.to_dense().detach(), dense_jacobian(model, model(x)), rtol=1e-12, atol=1e-14)


def test_bad_arguments_are_named():
    """Oracle: the error and the argument it names."""
    model, x = net(), inputs()
    with pytest.raises(ArgumentError, match="block_size"):
        jacobian(apply, model, x, block_size=0)
    with pytest.raises(ArgumentError, match="names"):
        jacobian(apply, model, x, names=["nothing"])
    with pytest.raises(ArgumentTypeError, match="function"):
        jacobian(3, model, x)
    with pytest.raises(ArgumentError, match="cannot be moved"):
        jacobian(apply, model, x).to(dtype=torch.float32)
    with pytest.raises(ArgumentError, match="dropout"):
        jacobian(apply, nn.Sequential(nn.Linear(3, 2), nn.Dropout()).to(F64), x)
