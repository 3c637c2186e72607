"""Conversion of e3nn's irreps."""

import pytest
import torch

from hesse.equivariant.gaunt import from_e3nn, gaunt_tensor_product, rotate, to_e3nn
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

IRREPS = "2x0e + 3x1o+2e+1x0e"


def test_round_trip_and_layout():
    """Oracle: the layout by hand, multiplicity outside and order inside; and the inverse."""
    x = torch.arange(17.0)[None]
    rows = from_e3nn(IRREPS, x)
    assert rows.shape == (1, 3, 9)
    assert rows[0, :, 0].tolist() == [0, 1, 16]
    assert rows[0, 1, 1:4].tolist() == [5, 6, 7]
    assert rows[0, 0, 4:].tolist() == [11, 12, 13, 14, 15]
    assert not rows[0, 1:, 4:].any()
    assert torch.equal(to_e3nn(IRREPS, rows), x)


def test_missing_degrees_are_zero_and_extra_ones_left_out():
    """Oracle: the layout by hand."""
    rows = from_e3nn("1o+3o", torch.arange(10.0))
    assert rows.shape == (1, 16)
    assert rows[0].tolist() == [0, 0, 1, 2, *[0] * 5, *range(3, 10)]
    assert to_e3nn("1o", rows).tolist() == [0, 1, 2]


def test_turns_as_e3nn_does():
    """Oracle: e3nn's own matrix of the irreps, natural parity, at a rotation; a product goes through as well."""
    o3 = pytest.importorskip("e3nn.o3")
    irreps = o3.Irreps("2x0e+3x1o+1x2e")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, irreps.dim, generator=generator)
    R = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    R = R * torch.linalg.det(R)
    turned = x @ irreps.D_from_matrix(R).mT
    rows = from_e3nn(irreps, x)
    torch.testing.assert_close(from_e3nn(irreps, turned), rotate(rows, R), atol=1e-5, rtol=1e-5)
    square = to_e3nn(irreps, gaunt_tensor_product(rows, rows, 2, 2, 2))
    turned_rows = from_e3nn(irreps, turned)
    found = to_e3nn(irreps, gaunt_tensor_product(turned_rows, turned_rows, 2, 2, 2))
    torch.testing.assert_close(found, square @ irreps.D_from_matrix(R).mT, atol=1e-4, rtol=1e-4)


def test_other_parity_is_converted_apart():
    """Oracle: the layout by hand."""
    assert from_e3nn("0o+1e", torch.arange(4.0), parity=-1).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: from_e3nn("2x0e+4x1e", torch.ones(14)), ArgumentError, "4x1e.*antisymmetric"),
        (lambda: from_e3nn("2x0z", torch.ones(2)), ArgumentError, "2x0z"),
        (lambda: from_e3nn("0x0e", torch.ones(0)), ArgumentError, "empty"),
        (lambda: from_e3nn("0e", torch.ones(1), parity=2), ArgumentError, "parity"),
        (lambda: from_e3nn("2x0e", torch.ones(3)), ShapeError, "dimension 2"),
        (lambda: from_e3nn("2x0e", torch.ones(2, dtype=torch.int64)), ArgumentTypeError, "x"),
        (lambda: to_e3nn("2x1o", torch.ones(1, 4)), ShapeError, "2 channels"),
        (lambda: to_e3nn("2x1o", torch.ones(2, 5)), ShapeError, "square"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise; the message names the irrep."""
    with pytest.raises(error, match=match):
        call()
