"""Derivatives, winding numbers and zeros of tangent fields."""

import math

import pytest
import torch

from hesse.gp import TangentBundle
from hesse.gp.rvgp.fields import heat
from hesse.linalg import Sparse
from tests.gp.rvgp.clouds import ring_torus, seeded, sphere, swirl


@pytest.mark.parametrize("time", [0.0, 1e-3, 1.0, 40.0, 2000.0])
def test_heat_is_the_matrix_exponential(time):
    """Oracle: the dense matrix exponential by eigenvalues."""
    root = torch.randn(30, 30, dtype=torch.float64, generator=seeded(0))
    matrix = root @ root.T / 30
    block = torch.randn(30, 4, dtype=torch.float64, generator=seeded(1))
    values, vectors = torch.linalg.eigh(matrix)
    expected = vectors @ ((-time * values).exp()[:, None] * (vectors.T @ block))
    operator = Sparse(matrix.to_sparse_coo(), is_symmetric=True, is_psd=True)
    torch.testing.assert_close(heat(operator, block, time), expected, rtol=0, atol=1e-12)


def test_jacobian_of_a_linear_field_is_exact():
    """Oracle: the matrix of the field, in the frames; its trace and its skew part."""
    X = torch.rand(120, 2, dtype=torch.float64, generator=seeded(2))
    A = torch.tensor([[1.0, -2.0], [0.5, 0.3]], dtype=torch.float64)
    bundle = TangentBundle(X, 8, dim=2)
    J = bundle.jacobian(X @ A.T)
    T = bundle.frames
    torch.testing.assert_close(J, T.mT @ A @ T, rtol=0, atol=1e-10)
    torch.testing.assert_close(J.diagonal(dim1=1, dim2=2).sum(1), torch.full((120,), 1.3, dtype=torch.float64))
    curl = (J[:, 1, 0] - J[:, 0, 1]) * torch.linalg.det(T)
    torch.testing.assert_close(curl, torch.full((120,), 2.5, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_indices_on_the_sphere_sum_to_two(seed):
    """Oracle: Poincaré and Hopf; the field is that of a rotation and a quadratic form, in random axes."""
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=seeded(seed))).Q
    X = sphere(900)
    zeros = TangentBundle(X).singularities(swirl(X @ turn.T) @ turn)
    assert int(zeros.index.sum()) == 2


def test_indices_on_the_torus_sum_to_zero():
    """Oracle: Poincaré and Hopf, for a gradient with four zeros: minimum, maximum and two saddles."""
    points, first, second = ring_torus(60, 24)
    form = torch.tensor([0.2, 1.0, 0.1], dtype=torch.float64)
    F = (first @ form)[:, None] * first + (second @ form)[:, None] * second
    zeros = TangentBundle(points, dim=2).singularities(F)
    assert sorted(zeros.index.tolist()) == [-1, -1, 1, 1]


def test_zeros_are_found_where_they_are():
    """Oracle: the axis of a rotation; an error far below the spacing of 0.15."""
    X = sphere(600)
    axis = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    bundle = TangentBundle(X)
    zeros = bundle.singularities(torch.linalg.cross(axis.expand_as(X), X))
    assert zeros.index.tolist() == [1, 1]
    for pole in (axis, -axis):
        assert float((zeros.location - pole).norm(dim=1).min()) < 0.02
    assert (bundle.index(torch.linalg.cross(axis.expand_as(X), X))[zeros.node] == 1).all()


def test_edges_of_a_cloud_have_no_index():
    """Oracle: a vortex in the middle of a square, and nothing at its rim; a field without zeros has none."""
    X = torch.rand(400, 2, dtype=torch.float64, generator=seeded(4)) - 0.5
    bundle = TangentBundle(X, 12, dim=2)
    vortex = torch.stack([-X[:, 1], X[:, 0]], dim=1)
    zeros = bundle.singularities(vortex)
    assert zeros.index.tolist() == [1]
    assert float(zeros.location.norm()) < 1e-6
    none = bundle.singularities(torch.ones_like(X))
    assert len(none.index) == 0
    assert none.location.shape == (0, 2)


def test_a_saddle_counts_minus_one():
    """Oracle: (x, -y), in every orientation of the frames."""
    X = torch.rand(300, 2, dtype=torch.float64, generator=seeded(5)) - 0.5
    bundle = TangentBundle(X, 12, dim=2)
    flips = torch.diag_embed(1 - 2 * torch.randint(2, (300, 2), generator=seeded(6)).double())
    saddle = X * torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert bundle.singularities(saddle).index.tolist() == [-1]
    assert torch.equal(bundle.with_frames(bundle.frames @ flips).index(saddle), bundle.index(saddle))
    assert math.isclose(float(bundle.singularities(saddle).location.norm()), 0, abs_tol=1e-6)
