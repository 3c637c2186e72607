import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.sketch import GaussianSketch
from hesse.linalg.solvers.kaczmarz import randomized_kaczmarz, sketch_and_project
from hesse.linalg.solvers.solution import Status


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def system(m: int = 120, n: int = 30, dtype: torch.dtype = torch.float64):
    A = torch.randn(m, n, dtype=dtype, generator=seeded(0))
    x = torch.randn(n, dtype=dtype, generator=seeded(1))
    return A, x, A @ x


@pytest.mark.parametrize("sampling", ["norm", "uniform"])
@pytest.mark.parametrize("form", ["tensor", "csr", "function"])
def test_kaczmarz_finds_the_solution(sampling, form):
    """Oracle: the known solution, and the explicit residual; dense, sparse and matrix-free row access."""
    A, x, b = system()
    operator = {
        "tensor": lambda: A,
        "csr": lambda: as_linear_operator(A.to_sparse()),
        "function": lambda: as_linear_operator(lambda v: A @ v, shape=(120, 30), dtype=torch.float64),
    }[form]()
    found = randomized_kaczmarz(operator, b, sampling=sampling, rtol=1e-9, generator=seeded(2))
    assert bool(found.converged)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-7)
    assert float(found.residual) == pytest.approx(float((A @ found.x - b).norm()), abs=1e-12)


def test_blocked_steps_are_the_single_steps():
    """Oracle: a for-loop that projects on one equation after the other, the same rows."""
    A, _, b = system()
    found = randomized_kaczmarz(A, b, max_steps=64, generator=seeded(3))
    weights = A.square().sum(1).cumsum(0)
    points = torch.rand(64, generator=seeded(3), dtype=torch.float64) * weights[-1]
    x = torch.zeros(30, dtype=torch.float64)
    for i in torch.searchsorted(weights, points, right=True).tolist():
        x = x + (b[i] - A[i] @ x) / A[i].square().sum() * A[i]
    torch.testing.assert_close(found.x, x, rtol=1e-10, atol=1e-12)
    assert found.num_steps == 64


def test_expected_rate():
    """Oracle: Strohmer and Vershynin's bound on the mean squared error over 200 runs of 128 steps."""
    A, x, b = system(60, 10)
    rate = 1 - float(torch.linalg.svdvals(A)[-1] ** 2 / A.square().sum())
    errors = [
        float((randomized_kaczmarz(A, b, max_steps=128, rtol=0, generator=seeded(s)).x - x).square().sum())
        for s in range(200)
    ]
    assert sum(errors) / 200 <= rate**128 * float(x.square().sum())


@pytest.mark.parametrize("sketch", ["gaussian", "rows", "countsketch", "srht", "sparse_sign"])
@pytest.mark.parametrize("as_function", [False, True])
def test_sketch_and_project_finds_the_solution(sketch, as_function):
    """Oracle: the known solution."""
    A, x, b = system()
    operator = as_linear_operator(lambda v: A @ v, shape=(120, 30), dtype=torch.float64) if as_function else A
    found = sketch_and_project(operator, b, sketch=sketch, block_size=12, rtol=1e-9, generator=seeded(2))
    assert bool(found.converged)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-7)


def test_one_step_satisfies_the_sketched_equations_at_the_nearest_point():
    """Oracle: the definition: Sᵀ(A x - b) = 0, and x - x0 in the range of AᵀS."""
    A, _, b = system()
    S = GaussianSketch(120, 7, dtype=torch.float64, generator=seeded(5))
    start = torch.randn(30, dtype=torch.float64, generator=seeded(6))
    found = sketch_and_project(A, b, sketch=lambda _m, _q: S, block_size=7, start=start, max_steps=1)
    rows = S @ A
    torch.testing.assert_close(rows @ found.x, S @ b, rtol=1e-10, atol=1e-10)
    change = found.x - start
    inside = rows.T @ torch.linalg.lstsq(rows.T, change.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(change, inside, rtol=1e-9, atol=1e-10)


def test_least_norm_solution_of_a_wide_system():
    """Oracle: the pseudo-inverse; from zero both methods stay in the row space."""
    A, _, b = system(20, 50)
    exact = torch.linalg.pinv(A) @ b
    for found in (
        randomized_kaczmarz(A, b, rtol=1e-10, max_steps=200_000, generator=seeded(0)),
        sketch_and_project(A, b, block_size=8, rtol=1e-10, generator=seeded(0)),
    ):
        torch.testing.assert_close(found.x, exact, rtol=0, atol=1e-7)


def test_zero_rows_repeated_equations_and_zero_right_hand_side():
    """Oracle: the known solution; closed form zero with no step."""
    A, x, b = system(40, 10)
    A[::3] = 0
    b = A @ x
    A, b = torch.cat([A, A]), torch.cat([b, b])
    for sampling in ("norm", "uniform"):
        found = randomized_kaczmarz(A, b, sampling=sampling, rtol=1e-9, generator=seeded(1))
        torch.testing.assert_close(found.x, x, rtol=0, atol=1e-6)
    found = sketch_and_project(A, b, sketch="rows", block_size=40, rtol=1e-9, generator=seeded(1))
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-6)
    still = randomized_kaczmarz(A, torch.zeros(80, dtype=torch.float64))
    assert (still.num_steps, float(still.x.abs().max())) == (0, 0.0)


def test_going_on_from_an_earlier_call_and_a_test_of_ones_own():
    """Oracle: the residual falls further; the caller's test ends the run."""
    A, _, b = system()
    first = sketch_and_project(A, b, block_size=5, max_steps=3, generator=seeded(0))
    assert first.status == Status.MAX_STEPS
    second = sketch_and_project(A, b, block_size=5, start=first.x, max_steps=3, generator=seeded(1))
    assert float(second.residual) < float(first.residual)
    seen = []
    stopped = sketch_and_project(
        A,
        b,
        block_size=5,
        rtol=0,
        check_every=1,
        stop_fn=lambda _x, r: (seen.append(r), len(seen) == 3)[1],
        generator=seeded(0),
    )
    assert bool(stopped.converged)
    assert stopped.num_steps == 2


def test_inconsistent_system_is_reported():
    """Oracle: the least-squares residual, below which nothing can fall."""
    A, _, b = system(60, 10)
    b = b + torch.randn(60, dtype=torch.float64, generator=seeded(9))
    found = randomized_kaczmarz(A, b, max_steps=2000, generator=seeded(0))
    assert not bool(found.converged)
    best = (A @ torch.linalg.lstsq(A, b.unsqueeze(1)).solution.squeeze(1) - b).norm()
    assert float(found.residual) >= float(best)


def test_float32():
    """Oracle: the known solution, to single precision."""
    A, x, b = system(dtype=torch.float32)
    found = sketch_and_project(A, b, rtol=1e-5, generator=seeded(0))
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-3)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    A, _, b = system()
    with pytest.raises(ShapeError, match="b of shape"):
        randomized_kaczmarz(A, b[:5])
    with pytest.raises(ShapeError, match="b is"):
        randomized_kaczmarz(A, b.float())
    with pytest.raises(ArgumentError, match="sampling"):
        randomized_kaczmarz(A, b, sampling="cyclic")
    with pytest.raises(ArgumentError, match="sketch"):
        sketch_and_project(A, b, sketch="magic")
    with pytest.raises(NumericalError, match="b has NaN"):
        sketch_and_project(A, b * torch.nan)
    with pytest.raises(NumericalError, match="operator has NaN"):
        randomized_kaczmarz(A * torch.nan, b)
