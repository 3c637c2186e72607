import pytest
import torch

from hesse.bilevel.piecewise_quadratic import minimize_hinge_squares
from hesse.errors import ConvergenceError
from tests.bilevel.cases import seeded


def data(n, d, seed=0):
    g = seeded(seed)
    rows, offsets, center = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((n, d), (n,), (d,)))
    return rows, offsets, 0.1 + torch.rand(n, dtype=torch.float64, generator=g), center


def gradient(rows, offsets, weights, center, ridge, u):
    return ridge * (u - center) - (weights * (offsets - rows @ u).clamp_min(0)) @ rows


@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 30), (1, 1)])
@pytest.mark.parametrize("free", [False, True])
def test_gradient_vanishes(n, d, free):
    """Oracle: the first-order condition of a convex function, with and without an unknown that has no ridge."""
    rows, offsets, weights, center = data(n, d)
    ridge = torch.ones(d, dtype=torch.float64)
    if free:
        ridge[-1] = 0
    u = minimize_hinge_squares(rows, offsets, weights, center, ridge)
    assert float(gradient(rows, offsets, weights, center, ridge, u).norm()) < 1e-11


def test_rows_on_both_sides_are_least_squares():
    """Oracle: dense normal equations."""
    rows, offsets, weights, center = data(20, 6)
    ridge = torch.full((6,), 0.3, dtype=torch.float64)
    always = torch.ones(20, dtype=torch.bool)
    u = minimize_hinge_squares(rows, offsets, weights, center, ridge, always=always)
    matrix = torch.diag(ridge) + (rows.T * weights) @ rows
    expected = torch.linalg.solve(matrix, ridge * center + (rows.T * weights) @ offsets)
    torch.testing.assert_close(u, expected, rtol=1e-12, atol=1e-12)


def test_rows_on_their_hinge_end():
    """Oracle: the center itself, where half of the hinges begin exactly there and rounding decides which are active."""
    rows, _, weights, center = data(400, 5)
    u = minimize_hinge_squares(rows, rows @ center, 1e3 * weights, center, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(u, center, rtol=0, atol=1e-12)


def test_start_does_not_matter():
    """Oracle: the minimum from the default start; in single precision to single precision."""
    rows, offsets, weights, center = data(60, 7)
    ridge = torch.ones(7, dtype=torch.float64)
    expected = minimize_hinge_squares(rows, offsets, weights, center, ridge)
    far = minimize_hinge_squares(rows, offsets, weights, center, ridge, start=center + 100)
    torch.testing.assert_close(far, expected, rtol=1e-11, atol=1e-11)
    single = minimize_hinge_squares(*(t.float() for t in (rows, offsets, weights, center, ridge)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_steps_run_out():
    """Oracle: the error taxonomy."""
    rows, offsets, weights, center = data(60, 7)
    with pytest.raises(ConvergenceError, match="after 1 steps"):
        minimize_hinge_squares(
            rows, offsets, weights, center, torch.ones(7, dtype=torch.float64), start=center + 100, max_steps=1
        )
