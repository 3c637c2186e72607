import pytest
import torch

from hesse.bilevel import Polyhedron, SoftMarginRows, stacked
from hesse.errors import ArgumentError, ConvergenceError, NumericalError, ShapeError
from hesse.linalg import AffineEquality, Box, Halfspace
from tests.bilevel.cases import seeded


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def margins(n=40, d=5, seed=0):
    return SoftMarginRows(normal(n, d, seed=seed), normal(n, seed=seed + 1).sign())


def flat(triple):
    return torch.cat([part.reshape(-1) for part in triple])


def test_soft_margin_is_the_polyhedron():
    """Oracle: the general polyhedron, whose rows are the same written out."""
    project = margins()
    point = normal(5, seed=3), normal(1, seed=4)[0], normal(40, seed=5)
    A = -torch.cat([project.signed_rows, torch.eye(40, dtype=torch.float64)], dim=1)
    expected = Polyhedron(A, -torch.ones(40, dtype=torch.float64))(flat(point))
    torch.testing.assert_close(flat(project(*point)), expected, rtol=1e-10, atol=1e-10)


def test_soft_margin_obtuse_angle():
    """Oracle: ⟨p - P(p), q - P(p)⟩ <= 0 for every q of the set, the characterisation of a projection."""
    project = margins()
    point = normal(5, seed=3), normal(1, seed=4)[0], normal(40, seed=5)
    moved = project(*point)
    assert float((1 - moved[2] - project.signed_rows @ flat(moved[:2])).max()) < 1e-12
    away = flat(point) - flat(moved)
    for seed in range(20):
        weight, bias = normal(5, seed=seed), normal(1, seed=seed + 50)[0]
        slack = 1 - project.signed_rows @ torch.cat([weight, bias[None]]) + normal(40, seed=seed).abs()
        assert float(away @ (flat((weight, bias, slack)) - flat(moved))) <= 1e-10
    torch.testing.assert_close(flat(project(*moved)), flat(moved), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_polyhedron_against_closed_forms(dtype):
    """Oracle: halfspace, box and affine equality of `hesse.linalg`."""
    point = 3 * normal(6).to(dtype)
    tol = 1e-12 if dtype == torch.float64 else 64 * torch.finfo(dtype).eps * float(point.abs().max())
    a, E, e = normal(6, seed=1).to(dtype), normal(2, 6, seed=2).to(dtype), normal(2, seed=3).to(dtype)
    eye, ones = torch.eye(6, dtype=dtype), torch.ones(6, dtype=dtype)
    pairs = [
        (Polyhedron(a[None], torch.tensor([-2.0], dtype=dtype)), Halfspace(a, -2.0)),
        (Polyhedron(torch.cat([eye, -eye]), torch.cat([ones, ones])), Box(-1.0, 1.0)),
        (Polyhedron(E=E, e=e), AffineEquality(E, e)),
    ]
    for polyhedron, closed in pairs:
        found = polyhedron(point)
        assert found.dtype == dtype
        torch.testing.assert_close(found, closed(point), rtol=tol, atol=tol)


def test_polyhedron_multipliers():
    """Oracle: the conditions of Karush, Kuhn and Tucker; a warm start gives the same point."""
    A, b = normal(30, 8), normal(30, seed=1).abs()
    E, e = normal(2, 8, seed=2), torch.zeros(2, dtype=torch.float64)
    point = 5 * normal(8, seed=3)
    polyhedron = Polyhedron(A, b, E, e)
    u, multipliers = polyhedron.solve(point)
    torch.testing.assert_close(point - u, multipliers[:30] @ A + multipliers[30:] @ E, rtol=0, atol=1e-10)
    assert float(multipliers[:30].min()) >= 0
    assert float((A @ u - b).max()) < 1e-12
    assert float((E @ u).abs().max()) < 1e-12
    assert float((multipliers[:30] * (A @ u - b)).abs().max()) < 1e-10
    again, _ = polyhedron.solve(point + 1e-3, multipliers)
    torch.testing.assert_close(again, polyhedron(point + 1e-3), rtol=0, atol=1e-10)


def test_stacked_splits():
    """Oracle: the projection of the stacked vector."""
    project = Halfspace(torch.ones(5, dtype=torch.float64), -1.0)
    x, y = normal(2), normal(3, seed=1)
    u, w = stacked(project)(x, y)
    torch.testing.assert_close(torch.cat([u, w]), project(torch.cat([x, y])))
    assert (len(u), len(w)) == (2, 3)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    one = torch.ones(1, 2, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ShapeError, match="SoftMarginRows"):
        SoftMarginRows(normal(4, 2), normal(3).sign())
    with pytest.raises(ArgumentError, match="labels"):
        SoftMarginRows(normal(4, 2), torch.arange(4))
    with pytest.raises(NumericalError, match="finite"):
        margins()(normal(5), torch.tensor(float("nan")).double(), normal(40))
    with pytest.raises(ArgumentError, match="no row"):
        Polyhedron()
    with pytest.raises(ArgumentError, match="together"):
        Polyhedron(A=one)
    with pytest.raises(ShapeError, match="right-hand side"):
        Polyhedron(one, normal(2))
    with pytest.raises(ShapeError, match="columns"):
        Polyhedron(one, zero, torch.ones(1, 3, dtype=torch.float64), zero)
    with pytest.raises(ArgumentError, match="zero"):
        Polyhedron(0 * one, zero)
    with pytest.raises(ConvergenceError, match="contradict"):
        Polyhedron(torch.cat([one, -one]), torch.tensor([-1.0, -1.0]).double())(normal(2))
