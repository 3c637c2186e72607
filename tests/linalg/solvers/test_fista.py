import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg.projections import Simplex
from hesse.linalg.solvers.fista import fista


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lasso(m: int = 40, n: int = 60) -> tuple[torch.Tensor, torch.Tensor, float]:
    A = torch.randn(m, n, dtype=torch.float64, generator=seeded(0))
    truth = torch.zeros(n, dtype=torch.float64)
    truth[:5] = torch.arange(1, 6)
    return A, A @ truth + 0.1 * torch.randn(m, dtype=torch.float64, generator=seeded(1)), 2.0


def soft(v: torch.Tensor, threshold: float) -> torch.Tensor:
    return v.sign() * (v.abs() - threshold).clamp_min(0)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("by_hand", [False, True])
def test_lasso_optimality(fixed, by_hand):
    """Oracle: the optimality conditions: the gradient is -beta sign(x) where x is not zero, at most beta elsewhere."""
    A, b, beta = lasso()
    found = fista(
        lambda x: 0.5 * (A @ x - b).square().sum(),
        lambda v, s: soft(v, beta * s),
        torch.zeros(60, dtype=torch.float64),
        gradient_fn=(lambda x: A.T @ (A @ x - b)) if by_hand else None,
        step=1 / float(torch.linalg.matrix_norm(A, ord=2)) ** 2 if fixed else None,
        tol=1e-10,
        max_steps=5000,
    )
    assert bool(found.converged)
    gradient = A.T @ (A @ found.x - b)
    active = found.x != 0
    assert 0 < int(active.sum()) < 40
    torch.testing.assert_close(gradient[active], -beta * found.x[active].sign(), rtol=0, atol=1e-6)
    assert float(gradient[~active].abs().max()) <= beta + 1e-6


def test_projection_onto_a_simplex():
    """Oracle: for f = |x - c|²/2 and the indicator of a simplex, the projection of c."""
    c = torch.randn(7, dtype=torch.float64, generator=seeded(0))
    project = Simplex()
    found = fista(
        lambda x: 0.5 * (x - c).square().sum(), lambda v, _s: project(v), torch.zeros(7, dtype=torch.float64), tol=1e-12
    )
    torch.testing.assert_close(found.x, project(c), rtol=0, atol=1e-10)


def test_restart_helps_on_a_strongly_convex_function():
    """Oracle: closed form solution; with restart fewer steps to the same tolerance."""
    scales = torch.logspace(0, 3, 30, dtype=torch.float64)

    def run(restart: bool):
        return fista(
            lambda x: 0.5 * (scales * (x - 1).square()).sum(),
            lambda v, _s: v,
            torch.zeros(30, dtype=torch.float64),
            step=1e-3,
            restart=restart,
            tol=1e-10,
            max_steps=20_000,
        )

    with_restart, without = run(True), run(False)
    torch.testing.assert_close(with_restart.x, torch.ones(30, dtype=torch.float64), rtol=0, atol=1e-6)
    assert with_restart.num_steps < without.num_steps / 2


def test_float32_and_shapes():
    """Oracle: closed form; a matrix as variable."""
    target = torch.randn(3, 4, generator=seeded(0))
    found = fista(lambda x: (x - target).square().sum(), lambda v, _s: v, torch.zeros(3, 4), tol=1e-5)
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(found.x, target, rtol=0, atol=1e-4)


def test_too_few_steps_are_reported():
    """Oracle: the gradient mapping, above the tolerance."""
    A, b, beta = lasso()
    found = fista(
        lambda x: 0.5 * (A @ x - b).square().sum(),
        lambda v, s: soft(v, beta * s),
        torch.zeros(60, dtype=torch.float64),
        tol=1e-10,
        max_steps=3,
    )
    assert not bool(found.converged)
    assert found.num_steps == 3
    assert float(found.residual) > 1e-10


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    x = torch.ones(3)
    with pytest.raises(ArgumentError, match="step"):
        fista(lambda v: v.sum(), lambda v, _s: v, x, step=0.0)
    with pytest.raises(ShapeError, match="prox_fn"):
        fista(lambda v: v.square().sum(), lambda v, _s: v[:2], x)
    with pytest.raises(NumericalError, match="start"):
        fista(lambda v: (v * torch.nan).sum(), lambda v, _s: v, x)
