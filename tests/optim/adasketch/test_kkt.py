"""The KKT system: its shift, its constants, and the constraints that break it."""

from typing import Any

import pytest
import torch

from hesse.optim.adasketch.kkt import dependent_rows, kkt_system, row_space
from hesse.optim.adasketch.problem import ConstrainedProblem
from tests.optim.adasketch.cases import curved, quadratic, seeded

OPTIONS = {"xi_b": 0.1, "curvature_tol": 1e-6, "psi_factor": 20.0}


def assembled(fun, con, x, lam, form, **changes):
    problem = ConstrainedProblem(fun, con)
    point = problem.at(x, lam)
    G = problem.jacobian(point)
    options: dict[str, Any] = OPTIONS | {"form": form, "generator": seeded(0)} | changes
    return kkt_system(point, G, row_space(G), problem.hessian(point), **options)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_shift_follows_the_reduced_hessian(sign):
    """Oracle: eigenvalues on an explicit basis of the null space, for a convex f and its negative."""
    fun, con, x, lam = quadratic()
    system = assembled(lambda v: sign * fun(v), con, x, lam, "dense")
    assert system.regularized == (sign < 0)
    H = sign * torch.func.hessian(fun)(x)
    wanted = H + (0.1 + H.norm()) * torch.eye(12, dtype=torch.float64) if sign < 0 else H
    torch.testing.assert_close(system.operator.to_dense()[:12, :12], wanted)


@pytest.mark.parametrize("form", ["dense", "products"])
def test_least_shift(form):
    """Oracle: the smallest eigenvalue of ZᵀBZ with an explicit Z is then ξ_B itself."""
    fun, con, x, lam = quadratic()
    system = assembled(lambda v: -fun(v), con, x, lam, form, shift_by="least")
    gamma = system.operator.to_dense()
    null = torch.linalg.qr(gamma[12:, :12].T, mode="complete").Q[:, 5:]
    assert float(torch.linalg.eigvalsh(null.T @ gamma[:12, :12] @ null)[0]) == pytest.approx(0.1, abs=1e-5)


def test_constants():
    """Oracle: ‖Γ‖_F, Ψ and Υ from the dense blocks."""
    fun, con, x = curved()
    lam = torch.ones(3, dtype=torch.float64)
    system = assembled(fun, con, x, lam, "dense")
    gamma = system.operator.to_dense()
    B, G = gamma[:7, :7], gamma[7:, :7]
    H = torch.func.hessian(lambda v: fun(v) + lam @ con(v))(x)
    assert system.norm == pytest.approx(float(gamma.norm()))
    xi_g = float(torch.linalg.eigvalsh(G @ G.T)[0])
    assert system.psi == pytest.approx(20 * max(float(B.norm()) ** 2, 1) / (min(xi_g, 1) * 0.1))
    assert system.upsilon == pytest.approx(max(float(G.norm()), float(H.norm()), 1))
    torch.testing.assert_close(gamma, gamma.T)
    assert system.entries == 49 + 42


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_products_decide_alike(sign):
    """Oracle: the dense form; norms are estimates there, of eight probes."""
    fun, con, x, lam = quadratic()
    dense = assembled(lambda v: sign * fun(v), con, x, lam, "dense")
    products = assembled(lambda v: sign * fun(v), con, x, lam, "products")
    assert products.regularized == dense.regularized
    assert products.norm == pytest.approx(dense.norm, rel=0.5)
    columns = torch.randn(17, 4, dtype=torch.float64, generator=seeded(4))
    if sign > 0:
        torch.testing.assert_close(products.operator.matmat(columns), dense.operator.matmat(columns))


def test_dependent_rows_are_found():
    """Oracle: rows 1 and 4 are multiples of rows 0 and 2, so one of each pair must be named."""
    A = torch.randn(5, 8, dtype=torch.float64, generator=seeded(2))
    A[1], A[4] = 2 * A[0], -A[2]
    named = set(dependent_rows(A, 1e-8))
    assert len(named) == 2
    assert len(named & {0, 1}) == 1
    assert len(named & {2, 4}) == 1
    assert row_space(A).is_deficient(1e-8)
    assert not row_space(A[[0, 2, 3]]).is_deficient(1e-8)
