"""Hessian and Gauss-Newton matrix of one loss function."""

import pytest
import torch
from torch import nn

from hesse.curvature.ggn import ggn, squared_error_hessian
from hesse.curvature.hessian import hessian
from hesse.curvature.of_loss import loss_curvature
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.testing import check_linear_operator

F64 = torch.float64


def example():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(F64)
    return model, (torch.randn(6, 3, dtype=F64), torch.tensor([0, 1, 2, 1, 0, 2]))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("keep_graph", [False, True])
def test_ggn_takes_the_output_hessian_from_the_loss(keep_graph):
    """Oracle: `ggn` with the softmax's output Hessian written down, over the number of examples."""
    model, batch = example()
    found = loss_curvature(loss_fn, model, batch, matrix="ggn", keep_graph=keep_graph)
    wanted = ggn(lambda net, b: net(b[0]), model, batch).to_dense().detach() / 6
    torch.testing.assert_close(found.to_dense().detach(), wanted, rtol=1e-10, atol=1e-12)
    assert found.is_psd


def test_squared_error_and_a_list_of_batches():
    """Oracle: `ggn` with the identity, summed over two batches; for "hessian" `hessian` itself."""
    model, (x, _) = example()
    batches = [x[:2], x[2:]]

    def squared(net, batch):
        return net(batch).square().sum() / 2

    wanted = ggn(lambda net, b: net(b), model, batches, squared_error_hessian, names=["2.bias"]).to_dense()
    found = loss_curvature(squared, model, batches, matrix="ggn", names=["2.bias"]).to_dense()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        loss_curvature(squared, model, batches).to_dense(), hessian(squared, model, batches).to_dense()
    )


def test_it_is_a_linear_operator():
    """Oracle: the conformance suite of linear operators."""
    model, batch = example()
    assert "psd_flag" in check_linear_operator(loss_curvature(loss_fn, model, batch, matrix="ggn"), movable=False)


def test_bad_input_is_named():
    """Oracle: the error taxonomy."""
    model, batch = example()
    with pytest.raises(ArgumentError, match="matrix"):
        loss_curvature(loss_fn, model, batch, matrix="fisher")
    with pytest.raises(ArgumentTypeError, match="needs a module"):
        loss_curvature(loss_fn, dict(model.named_parameters()), batch, matrix="ggn")
    twice = loss_curvature(lambda net, b: loss_fn(net, b) + loss_fn(net, b), model, batch, matrix="ggn")
    with pytest.raises(ArgumentError, match="called 2 times"):
        twice @ torch.ones(31, dtype=F64)
    never = loss_curvature(lambda net, b: b[0].sum(), model, batch, matrix="ggn")
    with pytest.raises(ArgumentError, match="for nothing"):
        never @ torch.ones(31, dtype=F64)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.GaussianNLLLoss()])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_torchs_regression_losses(loss, matrix):
    """Oracle: the dense Hessian of autograd, for a linear model, whose Gauss-Newton matrix it is too; numbers alone and
    with a graph, since torch cannot differentiate all of these in forward mode."""
    torch.manual_seed(1)
    model, x, y = nn.Linear(3, 2).to(F64), torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64) / 4

    def of_batch(net, batch):
        extra = (torch.ones_like(batch[1]),) if isinstance(loss, nn.GaussianNLLLoss) else ()
        return loss(net(batch[0]), batch[1], *extra)

    def of_vector(vector):
        named = {"weight": vector[:6].reshape(2, 3), "bias": vector[6:]}
        return of_batch(lambda inputs: torch.func.functional_call(model, named, (inputs,)), (x, y))

    flat = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    wanted = torch.autograd.functional.hessian(of_vector, flat)
    columns = torch.eye(8, dtype=F64)
    for block_size in (1, 16):
        operator = loss_curvature(of_batch, model, (x, y), matrix=matrix, block_size=block_size)
        torch.testing.assert_close((operator @ columns).detach(), wanted, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(operator @ columns, wanted, rtol=1e-10, atol=1e-12)
