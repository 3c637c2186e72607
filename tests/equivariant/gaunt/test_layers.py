"""Modules: their weights, and that they commute with rotations."""

import pytest
import torch

from hesse.equivariant.gaunt import (
    DegreeLinear,
    GauntConvolution,
    GauntManyBody,
    GauntTensorProduct,
    antisymmetric_tensor_product,
    gaunt_many_body,
    gaunt_tensor_product,
    rotate,
)
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_layer

F64 = torch.float64


def _features(degree, *, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, channels, (degree + 1) ** 2, generator=generator, dtype=F64)


def test_weights_start_at_one_and_scale_degrees():
    """Oracle: the functions, and a product with the weights written out."""
    x, y = _features(2), _features(3, seed=1)
    layer = GauntTensorProduct(2, 3, 4, channels=3).double()
    torch.testing.assert_close(layer(x, y), gaunt_tensor_product(x, y, 2, 3, 4))
    with torch.no_grad():
        layer.weights[0][1, 2] = 5.0  # degree 2 of channel 1
        layer.weights[2][:, 0] = 3.0
    x[:, 1, 4:] *= 5
    wanted = gaunt_tensor_product(x, y, 2, 3, 4)
    x[:, 1, 4:] /= 5
    wanted[..., 0] *= 3
    torch.testing.assert_close(layer(x, y), wanted)
    assert [tuple(weight.shape) for weight in layer.parameters()] == [(3, 3), (3, 4), (3, 5)]
    assert not list(GauntTensorProduct(2, 3, 4, weights=False).parameters())


def test_antisymmetric_layer():
    """Oracle: the function."""
    x, y = _features(2), _features(2, seed=1)
    layer = GauntTensorProduct(2, 2, 3, antisymmetric=True).double()
    torch.testing.assert_close(layer(x, y), antisymmetric_tensor_product(x, y, 2, 2, 3))


def test_many_body_layer():
    """Oracle: the function with the weights written out."""
    x = _features(2)
    layer = GauntManyBody(2, 3, 3, channels=3).double()
    with torch.no_grad():
        layer.power_weights.copy_(torch.arange(9.0).reshape(3, 3))
        layer.degree_weights[:, 3] = 2.0
    wanted = gaunt_many_body(x, 2, 3, 3, layer.power_weights.detach())
    wanted[..., 9:] *= 2
    torch.testing.assert_close(layer(x), wanted)


def test_mixing_channels_commutes_with_rotations():
    """Invariance: rotations and reflections; and the map is linear with a matrix a degree."""
    layer = DegreeLinear(3, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    x = _features(3)
    R = torch.linalg.qr(torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)).Q
    torch.testing.assert_close(layer(rotate(x, R)), rotate(layer(x), R))
    torch.testing.assert_close(layer(x)[..., 4:9], torch.einsum("oi,bim->bom", layer.weight[2], x[..., 4:9]))


@pytest.mark.parametrize(
    ("factory", "shapes"),
    [
        (lambda: GauntTensorProduct(2, 1, 2, channels=2), ((2, 9), (2, 4))),
        (lambda: GauntTensorProduct(2, 2, 2, antisymmetric=True), ((9,), (9,))),
        (lambda: GauntManyBody(1, 2, 2, channels=2), ((2, 4),)),
        (lambda: DegreeLinear(1, 2, 3), ((2, 4),)),
    ],
)
def test_conformance(factory, shapes):
    """Oracle: what hesse asks of every layer."""
    check_layer(factory, *shapes)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: GauntTensorProduct(1, 1, 3), ArgumentError, "l3"),
        (lambda: GauntTensorProduct(1, 1, 2, antisymmetric=True), ArgumentError, "l3"),
        (lambda: GauntTensorProduct(1, 1, 1, antisymmetric=True, backend="cg"), ArgumentError, "backend"),
        (lambda: GauntTensorProduct(1, 1, 1, channels=0), ArgumentError, "channels"),
        (lambda: GauntTensorProduct(1, 1, 1)(torch.ones(2, 5), torch.ones(2, 4)), ShapeError, "x to be"),
        (lambda: GauntTensorProduct(1, 1, 1, backend="fft"), ArgumentError, "backend"),
        (lambda: GauntTensorProduct(1, 1, 1, normalization="unit"), ArgumentError, "normalization"),
        (lambda: GauntTensorProduct(1, 1, 1, channels=3)(torch.ones(2, 4), torch.ones(3, 4)), ShapeError, "x of shape"),
        (lambda: GauntManyBody(1, 1, 2, backend="cg"), ArgumentError, "backend"),
        (lambda: GauntManyBody(1, 1, 2, normalization="unit"), ArgumentError, "normalization"),
        (lambda: GauntManyBody(1, 4, 3), ArgumentError, "l_out"),
        (lambda: GauntManyBody(1, 1, 0), ArgumentError, "order"),
        (lambda: GauntConvolution(1, 1, 3, torch.nn.Identity()), ArgumentError, "l_out"),
        (lambda: GauntConvolution(1, 1, 1, None), ArgumentTypeError, "radial"),
        (lambda: GauntConvolution(1, 1, 1, torch.nn.Identity(), zero_vector="x"), ArgumentError, "zero_vector"),
        (lambda: GauntConvolution(1, 1, 1, torch.nn.Identity(), normalization="x"), ArgumentError, "normalization"),
        (lambda: DegreeLinear(1, 0, 2), ArgumentError, "channels_in"),
        (lambda: DegreeLinear(1, 2, 2)(torch.ones(3, 4)), ShapeError, "DegreeLinear"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call()
