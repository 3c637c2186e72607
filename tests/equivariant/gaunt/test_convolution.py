"""Messages along edges: the same as a product with harmonics of the edge, equivariance, poles, zero edges."""

import pytest
import torch
from torch import nn

from hesse.equivariant.gaunt import (
    GauntConvolution,
    gaunt_convolution,
    gaunt_tensor_product,
    rotate,
    spherical_harmonics,
)
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

F64 = torch.float64


def _edges(l_in=3, l_edge=4, *, channels=2, count=12, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, (l_in + 1) ** 2, generator=generator, dtype=F64)
    r = torch.randn(count, 3, generator=generator, dtype=F64)
    r[0], r[1] = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, -1.0, 0.0])
    h = torch.randn(count, channels, l_edge + 1, generator=generator, dtype=F64)
    return x.to(dtype), r.to(dtype), h.to(dtype)


def _filter(r, h, normalization="integral"):
    l_edge = h.shape[-1] - 1
    degrees = [degree for degree in range(l_edge + 1) for _ in range(2 * degree + 1)]
    return spherical_harmonics(l_edge, r, normalization)[:, None] * h[..., degrees]


@pytest.mark.parametrize("l_out", [0, 2, 4, 7])
@pytest.mark.parametrize("normalization", ["integral", "norm"])
def test_is_the_product_with_harmonics_of_the_edge(l_out, normalization):
    """Oracle: `gaunt_tensor_product`, edges along both poles included."""
    x, r, h = _edges()
    found = gaunt_convolution(x, r, h, 3, 4, l_out, normalization=normalization)
    wanted = gaunt_tensor_product(x, _filter(r, h, normalization), 3, 4, l_out, normalization=normalization)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    shared = gaunt_convolution(x, r, h[:, :1], 3, 4, l_out)
    torch.testing.assert_close(shared, gaunt_convolution(x, r, h[:, :1].expand_as(h), 3, 4, l_out))


def test_commutes_with_rotations_and_reflections():
    """Invariance: O(3)."""
    x, r, h = _edges()
    R = torch.linalg.qr(torch.randn(12, 3, 3, generator=torch.Generator().manual_seed(5), dtype=F64)).Q
    turned = gaunt_convolution(rotate(x, R), (R @ r[..., None])[..., 0], h, 3, 4, 3)
    torch.testing.assert_close(turned, rotate(gaunt_convolution(x, r, h, 3, 4, 3), R), rtol=0, atol=1e-11)


def test_gradients_at_poles():
    """Oracle: finite differences of first and second order, edges along both poles included."""
    x, r, h = _edges(1, 2, channels=1, count=4)
    arguments = tuple(tensor.requires_grad_() for tensor in (x, r, h))

    def call(a, b, c):
        return gaunt_convolution(a, b, c, 1, 2, 1)

    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)


def test_zero_edges():
    """Oracle: a filter of degree zero alone. By default an edge without direction is an error."""
    x, r, h = _edges()
    r[3] = 0.0
    with pytest.raises(ArgumentError, match="direction"):
        gaunt_convolution(x, r, h, 3, 4, 3)
    found = gaunt_convolution(x, r.requires_grad_(), h, 3, 4, 3, zero_vector="scalar")
    torch.testing.assert_close(found[3], x[3] * h[3, :, :1] / (4 * torch.pi))
    found.sum().backward()
    assert r.grad is not None
    assert bool(r.grad.isfinite().all())


def test_module_gives_its_radial_functions_the_lengths():
    """Oracle: the function with the same numbers; float32 and half precision against float64."""

    class Powers(nn.Module):
        def forward(self, lengths):
            return lengths[..., None] ** torch.arange(5, device=lengths.device)

    x, r, _ = _edges()
    layer = GauntConvolution(3, 4, 3, Powers())
    wanted = gaunt_convolution(x, r, Powers()(r.norm(dim=-1))[:, None], 3, 4, 3)
    torch.testing.assert_close(layer(x, r), wanted)
    torch.testing.assert_close(layer(x, r, r.norm(dim=-1)), wanted)
    narrow = layer(x.float(), r.float())
    assert float((narrow - wanted).norm() / wanted.norm()) < 5e-6
    assert layer(x.bfloat16(), r.bfloat16()).dtype == torch.bfloat16


def test_compiles_to_one_graph():
    """Oracle: eager mode."""
    x, r, h = _edges(dtype=torch.float32)

    def call(a, b, c):
        return gaunt_convolution(a, b, c, 3, 4, 3)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, r, h), call(x, r, h))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"l_out": 8}, ArgumentError, "l_out"),
        ({"x": torch.ones(12, 16, dtype=F64)}, ShapeError, "broadcast"),
        ({"x": torch.ones(16, dtype=F64)}, ShapeError, "x of shape"),
        ({"direction": torch.ones(12, 3)}, ShapeError, "direction"),
        ({"direction": torch.ones(12, 2, dtype=F64)}, ShapeError, "direction"),
        ({"radial": torch.ones(12, 2, 4, dtype=F64)}, ShapeError, "radial"),
        ({"x": torch.ones(12, 2, 16, dtype=torch.int64)}, ArgumentTypeError, "x"),
        ({"zero_vector": "skip"}, ArgumentError, "zero_vector"),
        ({"normalization": "4pi"}, ArgumentError, "normalization"),
    ],
)
def test_refuses(change, error, match):
    """Oracle: what the docstring raises, by name of the argument."""
    x, r, h = _edges()
    arguments = {"x": x, "direction": r, "radial": h, "l_in": 3, "l_edge": 4, "l_out": 3} | change
    with pytest.raises(error, match=match):
        gaunt_convolution(**arguments)
