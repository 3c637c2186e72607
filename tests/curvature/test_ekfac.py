"""Eigenvalues measured in a Kronecker basis: each shortcut against the formula, one sequence at a time."""

import pytest
import torch
from torch import nn

from hesse.curvature.capture import Captured
from hesse.curvature.ekfac import (
    Absolute,
    Relative,
    rotate,
    rotate_back,
    rotate_rows,
    rotated_gradients,
    second_moment,
    sequence_gradients,
)
from hesse.curvature.layers import select_layers
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError

F64 = torch.float64


def rows_of(positions, *, inputs=6, outputs=5, bias=True, batch=3, seed=0):
    (layer,) = select_layers(nn.Sequential(nn.Linear(inputs, outputs, bias=bias))).values()
    generator = torch.Generator().manual_seed(seed)
    x, d = (torch.randn(batch, positions, n, generator=generator, dtype=F64) for n in (inputs, outputs))
    return Captured(layer, x, d, None, "0")


def basis(n, seed):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.linalg.qr(matrix).Q


def loop(rows):
    """D_n = Σ_t δ_t ã_tᵀ, position by position."""
    out = torch.zeros(len(rows.grads), rows.layer.out_features, rows.layer.columns, dtype=F64)
    for n in range(len(rows.grads)):
        for x, d in zip(rows.inputs[n], rows.grads[n], strict=True):
            out[n] += torch.outer(d, torch.cat([x, torch.ones(1, dtype=F64)]) if rows.layer.has_bias else x)
    return out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [1, 40])
def test_rotated_gradients_either_way(positions, bias):
    """Oracle: the sum of outer products, then Q_Sᵀ D Q_A; short sequences rotate rows first, long ones D."""
    rows = rows_of(positions, bias=bias)
    left, right = basis(5, 1), basis(6 + bias, 2)
    gradients = loop(rows)
    torch.testing.assert_close(sequence_gradients(rows), gradients)
    torch.testing.assert_close(rotated_gradients(rows, left, right, Scratch()), left.T @ gradients @ right)
    torch.testing.assert_close(rotate(gradients, left, right), left.T @ gradients @ right)
    torch.testing.assert_close(rotate_back(rotate(gradients, left, right), left, right), gradients)


def test_rows_are_rotated_without_appending_the_one():
    """Oracle: ã Q_A with ã built."""
    rows = rows_of(4)
    right = basis(7, 1)
    appended = torch.cat([rows.inputs, torch.ones(3, 4, 1, dtype=F64)], -1)
    torch.testing.assert_close(rotate_rows(rows, right), appended @ right)


@pytest.mark.parametrize(
    ("positions", "outputs", "inputs"),
    [(1, 5, 6), (40, 5, 6), (2, 200, 180)],  # rank one; D first; rows first, one sequence at a time
)
def test_second_moment_adds_the_squares(positions, outputs, inputs):
    """Oracle: Σ_n (Q_Sᵀ D_n Q_A)² from the loop, twice, the second time with the rotated inputs of the first."""
    rows = rows_of(positions, outputs=outputs, inputs=inputs)
    left, right, scratch = basis(outputs, 1), basis(inputs + 1, 2), Scratch()
    table = torch.zeros(outputs, inputs + 1, dtype=F64)
    known = second_moment(rows, left, right, table, scratch)
    again = second_moment(rows, left, right, table, scratch, known)
    assert (known is None) == (positions == 40)
    assert (again is None) == (known is None)
    torch.testing.assert_close(table, 2 * (left.T @ loop(rows) @ right).square().sum(0))


def test_damping_is_relative_or_absolute():
    """Oracle: by hand, and the invariance of the relative one to the scale of the table."""
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=F64)
    assert float(Relative().of(table)) == pytest.approx(0.3)
    assert float(Relative(0.5).of(7 * table)) == pytest.approx(7 * 1.5)
    assert float(Absolute(0.5).of(table)) == 0.5
    for wrong in (-1.0, float("inf"), float("nan")):
        for kind in (Relative, Absolute):
            with pytest.raises(ArgumentError, match="damping"):
                kind(wrong)
