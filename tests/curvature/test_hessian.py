"""Hessian products against the dense matrix that autograd forms."""

import pytest
import torch
from torch import nn

from hesse.curvature.hessian import hessian
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_linear_operator

F64 = torch.float64


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(5, 3, generator=generator, dtype=F64), torch.randint(2, (5,), generator=generator))
        for _ in range(count)
    ]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def dense_hessian(model, function, data):
    """torch.autograd.functional.hessian over one flat vector of parameters."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def flat(vector):
        parts = [v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True)]
        values = dict(zip(names, parts, strict=True))
        return function(lambda *args: torch.func.functional_call(model, values, args), data)

    point = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(flat, point)


@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_the_dense_matrix_is_that_of_autograd(block_size):
    """Oracle: torch.autograd.functional.hessian in float64, whatever the number of columns a pass."""
    model, (batch,) = small_net(), batches(1)
    operator = hessian(loss_fn, model, batch, block_size=block_size)
    torch.testing.assert_close(operator.to_dense(), dense_hessian(model, loss_fn, batch), rtol=1e-10, atol=1e-12)
    assert operator.layout.names == tuple(name for name, _ in model.named_parameters())
    assert not operator.is_psd


def test_batches_are_summed_or_averaged():
    """Oracle: dense Hessians of three batches, added up."""
    model, data = small_net(), batches(3)
    dense = torch.stack([dense_hessian(model, loss_fn, batch) for batch in data])
    torch.testing.assert_close(hessian(loss_fn, model, data).to_dense(), dense.sum(0), rtol=1e-10, atol=1e-12)
    mean = hessian(loss_fn, model, data, reduction="mean").to_dense()
    torch.testing.assert_close(mean, dense.mean(0), rtol=1e-10, atol=1e-12)


def test_names_restrict_to_a_diagonal_block():
    """Oracle: the rows and columns of that layer in the dense matrix of all parameters."""
    model, (batch,) = small_net(), batches(1)
    whole = hessian(loss_fn, model, batch)
    rows = torch.cat([torch.arange(whole.shape[0])[whole.layout.slice(n)] for n in ("2.weight", "2.bias")])
    block = hessian(loss_fn, model, batch, names=["2.bias", "2.weight"])
    expected = dense_hessian(model, loss_fn, batch)[rows][:, rows]
    torch.testing.assert_close(block.to_dense(), expected, rtol=1e-10, atol=1e-12)


def test_it_is_a_linear_operator():
    """Oracle: the conformance suite of linear operators, derivatives by finite differences among it."""
    parameters = {"x": torch.tensor([0.3, -0.7, 1.1], dtype=F64), "y": torch.tensor(0.4, dtype=F64)}
    operator = hessian(lambda p, a: (p["x"] * a).sin().sum() * p["y"].exp(), parameters, torch.arange(3.0, dtype=F64))
    assert "symmetry_flag" in check_linear_operator(operator, movable=False)


def test_derivatives_reach_the_parameters():
    """Oracle: the third derivative of Σ x⁴, by hand: d(12 x² v)/dx = 24 x v."""
    x = torch.tensor([0.5, -2.0], dtype=F64, requires_grad=True)
    v = torch.tensor([1.0, 3.0], dtype=F64)
    product = hessian(lambda p, _: (p["x"] ** 4).sum(), {"x": x}, None) @ v
    torch.testing.assert_close(product.detach(), 12 * x.detach() ** 2 * v)
    torch.testing.assert_close(torch.autograd.grad(product.sum(), x)[0], 24 * x.detach() * v)


def test_float32_stays_float32():
    """Oracle: the float64 product, to single precision."""
    model, (batch,) = small_net(), batches(1)
    exact = hessian(loss_fn, model, batch) @ torch.ones(26, dtype=F64)
    single = hessian(loss_fn, model.float(), (batch[0].float(), batch[1])) @ torch.ones(26)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_named():
    """Oracle: the error and the argument it names."""
    model, (batch,) = small_net(), batches(1)
    with pytest.raises(ArgumentError, match=r"names.*3\.weight"):
        hessian(loss_fn, model, batch, names=["3.weight"])
    with pytest.raises(ArgumentError, match="names"):
        hessian(loss_fn, model, batch, names=[])
    with pytest.raises(ArgumentError, match="reduction"):
        hessian(loss_fn, model, batch, reduction="max")
    with pytest.raises(ArgumentError, match="block_size"):
        hessian(loss_fn, model, batch, block_size=0)
    with pytest.raises(ArgumentError, match="batches is empty"):
        hessian(loss_fn, model, [])
    with pytest.raises(ArgumentTypeError, match="module or a mapping"):
        hessian(loss_fn, 3, batch)
    with pytest.raises(ArgumentTypeError, match="'n' must be a real floating"):
        hessian(loss_fn, {"n": torch.arange(3)}, batch)
    with pytest.raises(ShapeError, match="float32"):
        hessian(loss_fn, {"a": torch.ones(1), "b": torch.ones(1, dtype=F64)}, batch)
    with pytest.raises(ShapeError, match="scalar"):
        hessian(lambda net, b: net(b[0]), model, batch) @ torch.ones(26, dtype=F64)
    with pytest.raises(ArgumentError, match="cannot be moved"):
        hessian(loss_fn, model, batch).to(dtype=torch.float32)
    with pytest.raises(ArgumentError, match="require a gradient"):
        hessian(loss_fn, model.requires_grad_(False), batch)
