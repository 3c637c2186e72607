import numpy as np
import pytest
import scipy.linalg
import torch

from hesse.errors import ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.symmetric import (
    symmetric_exp,
    symmetric_function,
    symmetric_log,
    symmetric_power,
    symmetric_sqrt,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_values(values: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=seeded(0))).Q
    matrix = Q * torch.tensor(values, dtype=torch.float64).to(dtype) @ Q.mH
    return (matrix + matrix.mH) / 2


FUNCTIONS = {
    "exp": (symmetric_exp, scipy.linalg.expm),
    "log": (symmetric_log, scipy.linalg.logm),
    "sqrt": (symmetric_sqrt, scipy.linalg.sqrtm),
    "inverse root": (lambda a: symmetric_power(a, -0.5), lambda a: scipy.linalg.inv(scipy.linalg.sqrtm(a))),
    "cube": (lambda a: symmetric_power(a, 3.0), lambda a: a @ a @ a),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_values(name, dtype):
    """Oracle: scipy.linalg's expm, logm and sqrtm."""
    ours, peer = FUNCTIONS[name]
    A = with_values([0.1, 0.5, 2.0, 2.0, 7.0], dtype)
    torch.testing.assert_close(ours(A), torch.from_numpy(np.asarray(peer(A.numpy()))).to(dtype), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.3, 2.0, 2.0], [1.0, 1.0 + 1e-9, 1.0 - 1e-13], [0.2, 1.0, 5.0]])
def test_gradient_at_equal_and_close_eigenvalues(name, values):
    """Oracle: finite differences."""
    ours, _ = FUNCTIONS[name]
    assert torch.autograd.gradcheck(lambda a: ours((a + a.mT) / 2), with_values(values).requires_grad_())


def test_complex_gradient():
    """Oracle: finite differences on a Hermitian matrix with a double eigenvalue."""
    A = with_values([0.3, 2.0, 2.0], torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: symmetric_log((a + a.mH) / 2), A)


@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-8, 1e-11, 0.0])
@pytest.mark.parametrize(("name", "slope"), [("log", 1 / 3.0), ("sqrt", 0.5 / 3**0.5), ("exp", np.exp(3.0))])
def test_divided_differences_keep_their_digits(name, slope, gap):
    """Oracle: the derivative f'(3) up to O(gap); a plain quotient loses all digits at 1e-11."""
    leaf = torch.diag(torch.tensor([3 - gap / 2, 3 + gap / 2], dtype=torch.float64)).requires_grad_()
    FUNCTIONS[name][0](leaf)[0, 1].backward()
    assert float(leaf.grad[0, 1]) * 2 == pytest.approx(slope, rel=gap**2 + 1e-13)


def test_stack():
    """Oracle: each matrix by itself, value and gradient."""
    stack = torch.stack([with_values([1.0, 1.0, 4.0]), with_values([0.5, 2.0, 3.0])]).requires_grad_()
    out = symmetric_sqrt(stack)
    (gradient,) = torch.autograd.grad(out.square().sum() + out.sum(), stack)
    for i in range(2):
        leaf = stack[i].detach().clone().requires_grad_()
        image = symmetric_sqrt(leaf)
        torch.testing.assert_close(out[i], image)
        torch.testing.assert_close(gradient[i], torch.autograd.grad(image.square().sum() + image.sum(), leaf)[0])


def test_roots_of_singular_matrices():
    """Oracle: closed form; forward is fine, a gradient that does not exist is refused, one that exists is right."""
    A = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(symmetric_sqrt(A), torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)))
    with pytest.raises(SingularError, match="no gradient"):
        symmetric_sqrt(A.clone().requires_grad_())
    leaf = A.clone().requires_grad_()
    symmetric_power(leaf, 2.0).trace().backward()
    torch.testing.assert_close(leaf.grad, 2 * A)


def test_a_function_of_ones_own():
    """Oracle: A squared, with (a² - b²)/(a - b) = a + b."""
    A = with_values([1.0, 2.0, 2.0]).requires_grad_()
    torch.testing.assert_close(symmetric_function(A, torch.square, lambda a, b: a + b), A @ A)
    assert torch.autograd.gradcheck(lambda a: symmetric_function((a + a.mT) / 2, torch.square, lambda x, y: x + y), A)


def test_float32_stays_float32():
    """Oracle: the float64 result."""
    A = with_values([0.1, 1.0, 10.0])
    found = symmetric_log(A.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), symmetric_log(A), rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(SingularError, match="positive"):
        symmetric_log(with_values([0.0, 1.0]) - 1e-3 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(SingularError, match=">= 0"):
        symmetric_sqrt(-torch.eye(3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="square"):
        symmetric_exp(torch.ones(2, 3))
    with pytest.raises(ArgumentTypeError, match="float16"):
        symmetric_exp(torch.ones(2, 2, dtype=torch.float16))
