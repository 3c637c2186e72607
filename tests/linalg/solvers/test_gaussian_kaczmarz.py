import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import as_linear_operator, gaussian_kaczmarz, sketch_and_project


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def system(m: int = 90, n: int = 20, dtype: torch.dtype = torch.float64):
    A = torch.randn(m, n, dtype=dtype, generator=seeded(0))
    x = torch.randn(n, dtype=dtype, generator=seeded(1))
    return A, x, A @ x


@pytest.mark.parametrize("form", ["tensor", "csr", "function"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finds_the_solution(form, dtype):
    """Oracle: the known solution; dense, sparse and matrix-free products."""
    A, x, b = system(dtype=dtype)
    operator = {
        "tensor": lambda: A,
        "csr": lambda: as_linear_operator(A.to_sparse()),
        "function": lambda: as_linear_operator(lambda v: A @ v, shape=(90, 20), dtype=dtype),
    }[form]()
    found = gaussian_kaczmarz(operator, b, rtol=1e-5, generator=seeded(2))
    assert bool(found.converged)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-3)


def test_blocked_steps_are_the_single_steps():
    """Oracle: a for-loop of projections on the same random combinations."""
    A, _, b = system()
    found = gaussian_kaczmarz(A, b, max_steps=64, generator=seeded(3))
    x = torch.zeros(20, dtype=torch.float64)
    for weights in torch.randn(90, 64, dtype=torch.float64, generator=seeded(3)).T:
        row = weights @ A
        x = x + (weights @ b - row @ x) / (row @ row) * row
    torch.testing.assert_close(found.x, x)


def test_as_fast_as_blocks_of_one():
    """Oracle: sketch_and_project with blocks of one, the mean log error after 100 steps over 200 runs of each."""
    A, x, b = system(30, 10)

    def errors(solve):
        return torch.stack([(solve(seed).x - x).norm().log() for seed in range(200)])

    ours = errors(lambda seed: gaussian_kaczmarz(A, b, max_steps=100, generator=seeded(seed)))
    single = errors(lambda seed: sketch_and_project(A, b, block_size=1, max_steps=100, generator=seeded(seed)))
    standard_error = (ours.var() / 200 + single.var() / 200).sqrt()
    assert float((ours.mean() - single.mean()).abs()) < 4 * float(standard_error)


def test_goes_on_from_a_start():
    """Oracle: the start already solves the system."""
    A, x, b = system()
    found = gaussian_kaczmarz(A, b, start=x)
    assert found.num_steps == 0


def test_zero_operator_is_passed_over():
    """Oracle: nothing moves where no equation says anything."""
    found = gaussian_kaczmarz(torch.zeros(4, 3), torch.zeros(4), start=torch.ones(3), max_steps=10)
    assert torch.equal(found.x, torch.ones(3))


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (ShapeError, {"b": torch.ones(3).double()}),
        (ArgumentError, {"rtol": -1.0}),
        (ArgumentError, {"max_steps": 0}),
        (NumericalError, {"b": torch.full((90,), torch.nan).double()}),
    ],
)
def test_bad_arguments(error, changes):
    """Oracle: the error class."""
    A, _, b = system()
    with pytest.raises(error, match=next(iter(changes))):
        gaussian_kaczmarz(A, **({"b": b} | changes))
