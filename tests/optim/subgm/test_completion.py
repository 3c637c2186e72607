"""Completion of rectangles against the truth."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.subgm import robust_matrix_completion
from tests.optim.subgm.cases import F64, relative_error, seeded


def entries(p=24, q=16, rank=2, seen=0.9, wrong=0.1):
    g = seeded(5)
    truth = torch.randn(p, rank, generator=g, dtype=F64) @ torch.randn(rank, q, generator=g, dtype=F64)
    indices = (torch.rand(p, q, generator=g) < seen).nonzero()
    values = truth[indices[:, 0], indices[:, 1]].clone()
    bad = torch.rand(len(values), generator=g) < wrong
    values[bad] += 20 * torch.randn(int(bad.sum()), generator=g, dtype=F64)
    return indices, values, truth


def test_missing_and_wrong_entries():
    """Oracle: the truth; a tenth of the entries are missing and a tenth of the others wrong."""
    indices, values, truth = entries()
    found = robust_matrix_completion(indices, values, truth.shape, rank=2)
    assert found.left.shape == (24, 2)
    assert found.right.shape == (16, 2)
    assert relative_error(found.matrix, truth) < 1e-6


def test_the_transpose():
    """Oracle: the same problem with rows and columns exchanged."""
    indices, values, truth = entries()
    found = robust_matrix_completion(indices.flip(1), values, (16, 24), rank=2)
    assert relative_error(found.matrix.mT, truth) < 1e-6


def test_bad_entries_are_refused():
    """Oracle: the errors promised."""
    indices, values, truth = entries()
    shape = truth.shape
    with pytest.raises(ShapeError, match=r"indices \(m, 2\)"):
        robust_matrix_completion(indices[:-1], values, shape)
    with pytest.raises(ShapeError, match="integer indices"):
        robust_matrix_completion(indices.double(), values, shape)
    with pytest.raises(ArgumentError, match=r"outside the shape \(24, 15\)"):
        robust_matrix_completion(indices, values, (24, 15))
    with pytest.raises(ArgumentError, match="rank <= 16, got 17"):
        robust_matrix_completion(indices, values, shape, rank=17)
    with pytest.raises(ArgumentError, match="NaN"):
        robust_matrix_completion(indices, values / 0, shape)
