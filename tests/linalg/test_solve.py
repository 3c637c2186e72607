import functools

import pytest
import torch

from hesse.errors import ArgumentError, ConvergenceError, ShapeError, SingularError
from hesse.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    FunctionOperator,
    InverseOperator,
    Kronecker,
    PoissonStencil,
    Sparse,
    cg,
    jacobi,
    solve,
)

D = torch.float64


def draw(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def definite(root):
    return Dense(root @ root.mH + torch.eye(root.shape[-1], dtype=root.dtype), is_psd=True)


def large(**flags):
    return FunctionOperator(lambda x: 2 * x, (2001, 2001), dtype=D, rmatmat_fn=lambda y: 2 * y, **flags)


@pytest.mark.parametrize(
    ("operator", "method"),
    [
        (Diagonal(torch.ones(4, dtype=D)), "direct"),
        (Kronecker([torch.eye(3, dtype=D), torch.eye(2, dtype=D)]), "direct"),
        (Kronecker([torch.eye(3, dtype=D)], is_psd=True).shift(1.0), "direct"),
        (BlockDiagonal([Diagonal(torch.ones(4, dtype=D))]), "direct"),
        (Dense(torch.ones(4, 3, dtype=D)), "lsmr"),
        (Dense(torch.eye(4, dtype=D)), "dense"),
        (large(is_psd=True), "cg"),
        (large(is_symmetric=True), "minres"),
        (large(), "gmres"),
    ],
)
def test_auto_rule(operator, method):
    """Oracle: the docstring."""
    assert solve(operator, torch.ones(operator.shape[0], dtype=D)).method == method


def test_preconditioner_asks_for_iterations():
    """Oracle: the docstring, and LAPACK."""
    a = definite(draw(5, 5))
    found = solve(a, draw(5), preconditioner=jacobi(a), rtol=1e-12)
    assert found.method == "cg"
    torch.testing.assert_close(found.x, torch.linalg.solve(a.matrix, draw(5)))


def test_never_unconverged_without_a_word():
    """Oracle: a step limit too low; the error names method, cause and remedy."""
    a = definite(draw(20, 20))
    with pytest.raises(ConvergenceError, match=r"cg: 1 of 1 columns .* MAX_STEPS.*raise max_steps"):
        solve(a, draw(20), method="cg", max_steps=1)
    loose = solve(a, draw(20), method="cg", max_steps=1, strict=False)
    assert not bool(loose.converged)
    indefinite = Dense(torch.diag(torch.tensor([1.0, -1.0], dtype=D)), is_symmetric=True)
    with pytest.raises(ConvergenceError, match=r"NEGATIVE_CURVATURE.*minres"):
        solve(indefinite, torch.ones(2, dtype=D), method="cg")


def test_bad_input():
    """Oracle: the errors."""
    with pytest.raises(ArgumentError, match="unknown method"):
        solve(Dense(torch.eye(2)), torch.ones(2), method="lu")
    with pytest.raises(ArgumentError, match="no exact inverse"):
        solve(Dense(torch.eye(2)), torch.ones(2), method="direct")
    with pytest.raises(ShapeError, match="lsmr"):
        solve(Dense(torch.ones(3, 2)), torch.ones(3), method="cg")
    with pytest.raises(SingularError, match="singular"):
        solve(Dense(torch.zeros(2, 2)), torch.ones(2))
    with pytest.raises(ShapeError, match="float64"):
        solve(Dense(torch.eye(2)), torch.ones(2, dtype=D))


@pytest.mark.parametrize("method", ["dense", "cg", "minres", "gmres"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("columns", [(), (2,)], ids=str)
def test_first_and_second_derivatives(method, batch, columns):
    """Oracle: finite differences, for the right-hand side and for what the matrix is made of."""
    root, b = draw(*batch, 4, 4).requires_grad_(), draw(4, *columns, seed=1).requires_grad_()

    def run(root, b):
        return solve(definite(root), b, method=method, rtol=1e-14, strict=False).x

    assert torch.autograd.gradcheck(run, (root, b))
    if not batch:
        assert torch.autograd.gradgradcheck(run, (root, b))


def test_derivatives_without_symmetry_and_with_complex_numbers():
    """Oracle: finite differences, with the adjoint of the preconditioner on the way back."""
    for dtype in (D, torch.complex128):
        m, b = (draw(4, 4, dtype=dtype) + 3 * torch.eye(4)).requires_grad_(), draw(4, 2, dtype=dtype).requires_grad_()
        p = Dense(torch.linalg.inv(m.detach()) + 0.01 * draw(4, 4, dtype=dtype, seed=3))
        run = functools.partial(_solved, preconditioner=p)
        assert torch.autograd.gradcheck(run, (m, b))
        assert torch.autograd.gradgradcheck(run, (m, b))


def _solved(m, b, preconditioner):
    return solve(Dense(m), b, method="gmres", rtol=1e-14, preconditioner=preconditioner, strict=False).x


@pytest.mark.parametrize("method", ["lsmr", "lsqr"])
def test_derivatives_through_least_squares(method):
    """Oracle: finite differences; second derivatives are refused rather than wrong."""
    m, b = draw(7, 3).requires_grad_(), draw(7, 2).requires_grad_()

    def run(m, b):
        return solve(Dense(m), b, method=method, rtol=1e-14).x

    assert torch.autograd.gradcheck(run, (m, b))
    (first,) = torch.autograd.grad(run(m, b).sum(), b)
    assert first.shape == b.shape
    with pytest.raises(TypeError, match="second derivatives"):
        torch.autograd.grad(run(m, b).sum(), b, create_graph=True)


def test_derivatives_through_structure():
    """Oracle: finite differences, for factors of a Kronecker product, values of a sparse matrix, a shift."""
    a, b = definite(draw(2, 2)).matrix.requires_grad_(), definite(draw(3, 3)).matrix.requires_grad_()
    x = draw(6, 2).requires_grad_()

    def kron(a, b, x):
        return solve(Kronecker([(a + a.mT) / 2, (b + b.mT) / 2], is_psd=True), x).x

    assert torch.autograd.gradcheck(kron, (a, b, x))
    stencil = PoissonStencil(torch.ones(2, 3, dtype=torch.bool), dtype=D).to_csr()
    values, mu = stencil.values.clone().requires_grad_(), torch.tensor(0.5, dtype=D, requires_grad=True)

    def sparse(values, mu, x):
        matrix = Sparse.from_csr(stencil.crow, stencil.col, values, (6, 6))
        return solve(matrix.shift(mu), x, method="gmres", rtol=1e-14, strict=False).x

    assert torch.autograd.gradcheck(sparse, (values, mu, x))


def test_logdet_of_a_kronecker_product_is_differentiable():
    """Oracle: finite differences."""
    a, b = draw(2, 2).requires_grad_(), draw(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: Kronecker([a, b]).logdet(), (a, b))


def test_preconditioner_is_used_in_the_backward_pass():
    """Oracle: a count of its applications in both passes."""
    d = torch.logspace(0, 5, 300, dtype=D)
    counts = [0]

    def count(r):
        counts[0] += 1
        return r / d.unsqueeze(-1)

    b = draw(300).requires_grad_()
    x = solve(Diagonal(d), b, preconditioner=count, rtol=1e-10).x
    forward = counts[0]
    x.sum().backward()
    assert 0 < counts[0] - forward <= 3 * forward
    torch.testing.assert_close(b.grad, 1 / d, rtol=1e-6, atol=1e-8)


def test_inverse_operator_around_a_solver():
    """Oracle: the dense inverse."""
    a = definite(draw(6, 6))
    inverse = InverseOperator(a, functools.partial(cg, rtol=1e-13))
    torch.testing.assert_close(inverse.to_dense(), torch.linalg.inv(a.matrix))
    torch.testing.assert_close(inverse.solve(draw(6)), a @ draw(6))
