import math

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.kronecker import Kronecker
from hesse.linalg.sketch import SRHT, GaussianSketch
from hesse.linalg.sketched_lstsq import lstsq_sketch_size, sketched_lstsq
from hesse.linalg.tensor_sketch import TensorSRHT

SKETCHES = ["srht", "gaussian", "sparse_sign", "countsketch"]
N, D = 700, 12


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def problem(n=N, d=D, k=None, dtype=torch.float64, seed=0):
    g = seeded(seed)
    A = torch.randn(n, d, dtype=dtype, generator=g)
    b = torch.randn(n, *(() if k is None else (k,)), dtype=dtype, generator=g)
    return A, b


def exact(A, b):
    block = b if b.ndim == 2 else b.unsqueeze(-1)
    x = torch.linalg.lstsq(A, block).solution
    return x if b.ndim == 2 else x.squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("k", [None, 3])
def test_is_the_least_squares_solution_of_the_sketched_rows(dtype, k):
    """Oracle: torch.linalg.lstsq on S A and S b, formed with the same S as an operator."""
    A, b = problem(k=k, dtype=dtype)
    S = SRHT(N, 150, dtype=dtype, generator=seeded(1))
    x = sketched_lstsq(A, b, sketch=S)
    assert x.dtype == dtype
    torch.testing.assert_close(x, exact(S @ A, S @ b if k else (S @ b.unsqueeze(-1)).squeeze(-1)))


@pytest.mark.parametrize("sketch", SKETCHES)
def test_seed_decides_and_form_of_A_does_not(sketch):
    """Oracle: an invariance: stored, sparse and function-like A give one answer for one seed."""
    A, b = problem()
    forms = [
        A,
        as_linear_operator(A),
        A.to_sparse(),
        as_linear_operator(lambda x: A @ x, shape=(N, D), dtype=A.dtype),
    ]
    found = [sketched_lstsq(form, b, sketch_size=200, sketch=sketch, generator=seeded(3)) for form in forms]
    for x in found[1:]:
        torch.testing.assert_close(x, found[0], rtol=1e-11, atol=1e-12)
    other = sketched_lstsq(A, b, sketch_size=200, sketch=sketch, generator=seeded(4))
    assert float((other - found[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("k", [None, 3])
def test_refinement_reaches_the_exact_solution(sketch, k):
    """Oracle: dense float64 least squares by QR."""
    A, b = problem(k=k)
    x, info = sketched_lstsq(A, b, sketch_size=200, sketch=sketch, refine=60, return_info=True, generator=seeded(0))
    torch.testing.assert_close(x, exact(A, b), rtol=1e-12, atol=1e-13)
    assert info.converged
    assert info.num_steps <= 40
    torch.testing.assert_close(info.residual_norm, torch.linalg.vector_norm(b - A @ x, dim=0))


def test_refinement_in_single_precision():
    """Oracle: dense float64 least squares; as close as float32 allows, and said to be converged."""
    A, b = problem(n=5000, d=30, dtype=torch.float32)
    x, info = sketched_lstsq(A, b, refine=60, return_info=True, generator=seeded(0))
    torch.testing.assert_close(x.double(), exact(A.double(), b.double()), rtol=0, atol=1e-6)
    assert info.converged
    assert info.num_steps <= 25


def test_refinement_converges_at_the_rate_of_the_sketch():
    """Oracle: theory: the error in the norm of A falls by √(D/M) a step, here 1/4, from a start of that size itself."""
    A, b = problem(n=4000, d=40)
    true = exact(A, b)
    errors = []
    for steps in (0, 4, 8):
        runs = [sketched_lstsq(A, b, sketch_size=640, refine=steps, generator=seeded(s)) - true for s in range(5)]
        errors.append(sum(float((A @ e).norm()) for e in runs) / 5)
    assert errors[1] < errors[0] * 0.4**4
    assert errors[2] < errors[1] * 0.4**4


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("residual", [0.0, 1e-6])
def test_ill_conditioned_refinement_is_as_accurate_as_qr(seed, residual):
    """Oracle: a solution known beforehand; condition 1e8, where the normal equations lose everything."""
    g = seeded(seed)
    U = torch.linalg.qr(torch.randn(1000, 20, dtype=torch.float64, generator=g)).Q
    V = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=g)).Q
    A = U * torch.logspace(0, -8, 20, dtype=torch.float64) @ V.T
    true = torch.randn(20, dtype=torch.float64, generator=g)
    noise = torch.randn(1000, dtype=torch.float64, generator=g)
    noise = noise - U @ (U.T @ noise)
    b = A @ true + residual * noise / noise.norm()
    x, info = sketched_lstsq(A, b, sketch_size=320, refine=60, return_info=True, generator=g)
    assert float((x - true).abs().max()) < 10 * max(1e-8, float((exact(A, b) - true).abs().max()))
    assert info.converged
    assert info.num_steps < 40
    normal = torch.cholesky_solve((A.T @ b).unsqueeze(1), torch.linalg.cholesky_ex(A.T @ A).L).squeeze(1)
    assert not float((normal - true).abs().max()) < 1e-3


def test_tol_stops_refinement():
    """Oracle: the definition, ‖A (x - x*)‖ <= tol ‖b‖ up to the distortion of the sketch."""
    A, b = problem(n=3000)
    x, info = sketched_lstsq(A, b, refine=100, tol=1e-6, return_info=True, generator=seeded(0))
    gap = float((A @ (x - exact(A, b))).norm() / b.norm())
    assert 1e-9 < gap < 2e-6
    assert info.converged
    assert info.num_steps < 15


def test_hard_instance_separates_dense_from_sparse_sketches():
    """Oracle: the construction A = [I; 0]: one shared bucket puts a whole 1/√k into one coordinate."""
    n, d, k, m = 2048, 64, 8, 512
    A, b = torch.eye(n, d, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    b[d : d + k] = k**-0.5
    peaks = {}
    for sketch in ("srht", "countsketch"):
        runs = [sketched_lstsq(A, b, sketch_size=m, sketch=sketch, rcond=1e-10, generator=seeded(s)) for s in range(40)]
        peaks[sketch] = torch.stack([x.abs().max() for x in runs])
    assert float(peaks["srht"].max()) * d**0.5 < 2
    hit = peaks["countsketch"][peaks["countsketch"] > 1e-12]
    assert len(hit) >= 10
    torch.testing.assert_close(hit.median(), torch.tensor(k**-0.5, dtype=torch.float64), rtol=0.3, atol=0)


@pytest.mark.parametrize("sketch", ["srht", "gaussian"])
def test_coordinate_bound_covers(sketch):
    """Oracle: the exact solution: all coordinates inside in about 95 % of 200 runs, and not by a wide margin."""
    A, b = problem(n=1500, d=10)
    true = exact(A, b)
    hits, ratios = 0, []
    for s in range(200):
        x, info = sketched_lstsq(A, b, sketch_size=200, sketch=sketch, return_info=True, generator=seeded(s))
        gap = (x - true).abs() / info.coordinate_bound
        hits += int(bool((gap <= 1).all()))
        ratios.append(float(gap.max()))
    assert hits >= 186  # 190 less two standard errors
    assert sum(ratios) / 200 > 0.3


def test_error_estimates_are_of_the_right_size():
    """Oracle: the exact error, over 200 runs; the gradient's estimate each time, the two sketches' on average."""
    A, b = problem(n=1500, d=10)
    true = exact(A, b)
    actual, estimated, paired = [], [], []
    for s in range(200):
        _, info = sketched_lstsq(A, b, sketch_size=300, num_repeats=2, return_info=True, generator=seeded(s))
        x, one = sketched_lstsq(A, b, sketch_size=300, return_info=True, generator=seeded(s))
        actual.append(float((x - true).abs().max()))
        estimated.append(float(one.error_estimate))
        assert info.two_sketch_error is not None
        paired.append(float(info.two_sketch_error))
        assert one.two_sketch_error is None
        assert (info.num_sketches, one.num_sketches) == (2, 1)
    assert all(0.5 < e / a < 2 for e, a in zip(estimated, actual, strict=True))
    assert sum(paired) / sum(actual) == pytest.approx(1, abs=0.1)


def test_condition_is_that_of_the_sketched_matrix():
    """Oracle: torch.linalg.cond."""
    A, b = problem()
    S = GaussianSketch(N, 60, dtype=A.dtype, generator=seeded(0))
    _, info = sketched_lstsq(A, b, sketch=S, return_info=True)
    assert info.condition == pytest.approx(float(torch.linalg.cond(S @ A)))
    assert info.sketch_size == 60


def test_median_of_repeats():
    """Oracle: torch.quantile over the single solutions, drawn one after the other from one generator."""
    A, b = problem()
    for count in (3, 4):
        g = seeded(5)
        single = torch.stack([sketched_lstsq(A, b, sketch_size=100, generator=g) for _ in range(count)])
        x = sketched_lstsq(A, b, sketch_size=100, num_repeats=count, generator=seeded(5))
        torch.testing.assert_close(x, torch.quantile(single, 0.5, dim=0))
    complex_x = sketched_lstsq(A + 0j, b + 0j, sketch_size=100, num_repeats=4, generator=seeded(5))
    torch.testing.assert_close(complex_x.real, x)


def test_without_a_sketch():
    """Oracle: dense least squares: M >= N leaves nothing to sketch."""
    A, b = problem(n=60)
    x, info = sketched_lstsq(A, b, return_info=True)
    torch.testing.assert_close(x, exact(A, b))
    assert (info.sketch_size, info.num_sketches) == (60, 0)
    assert float(info.coordinate_bound.max()) < 1e-12
    square, c = torch.eye(4) * 2, torch.ones(4)
    torch.testing.assert_close(sketched_lstsq(square, c), c / 2)


@pytest.mark.parametrize("factors", [((40, 3), (50, 2)), ((8, 2), (9, 2), (10, 3))])
def test_kronecker_design(factors):
    """Oracle: the same TensorSRHT on the dense product, and dense least squares after refinement."""
    g = seeded(0)
    parts = [torch.randn(*shape, dtype=torch.float64, generator=g) for shape in factors]
    A = Kronecker(parts)
    b = torch.randn(A.shape[0], 2, dtype=torch.float64, generator=g)
    x = sketched_lstsq(A, b, sketch_size=200, generator=seeded(1))
    dims = (40, 50) if len(factors) == 2 else (72, 10)  # three factors are folded so that the larger group is small
    S = TensorSRHT(dims, 200, dtype=torch.float64, generator=seeded(1))
    torch.testing.assert_close(x, exact(S @ A.to_dense(), S @ b))
    refined = sketched_lstsq(A, b, sketch_size=200, refine=60, generator=seeded(1))
    torch.testing.assert_close(refined, exact(A.to_dense(), b), rtol=1e-11, atol=1e-12)


def test_damping_is_a_ridge():
    """Oracle: the closed form (AᴴA + λI)⁻¹Aᴴb, also where A has not full rank."""
    A, b = problem()
    A[:, -1] = A[:, 0]
    x, info = sketched_lstsq(A, b, sketch_size=200, damping=5.0, refine=60, return_info=True, generator=seeded(0))
    eye = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(x, torch.linalg.solve(A.T @ A + 5.0 * eye, A.T @ b))
    assert info.converged


def test_rank_deficiency():
    """Oracle: the pseudo-inverse; without rcond an error that says what to do."""
    A, b = problem()
    A[:, -1] = A[:, 0] - 2 * A[:, 1]
    with pytest.raises(SingularError, match=r"rank 11 of 12.*rcond="):
        sketched_lstsq(A, b, sketch_size=200, generator=seeded(0))
    x = sketched_lstsq(A, b, sketch_size=200, rcond=1e-10, refine=60, generator=seeded(0))
    torch.testing.assert_close(x, torch.linalg.pinv(A, rtol=1e-10) @ b)
    zero, info = sketched_lstsq(torch.zeros_like(A), b, rcond=1e-10, refine=3, return_info=True)
    assert float(zero.abs().max()) == 0
    assert math.isnan(info.condition)


@pytest.mark.parametrize("refine", [0, 60])
def test_differentiable(refine):
    """Oracle: finite differences, with the sketch held fixed."""
    A, b = problem(n=40, d=3, k=2)
    S = SRHT(40, 12, dtype=A.dtype, generator=seeded(0))
    A.requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, c: sketched_lstsq(a, c, sketch=S, refine=refine, damping=0.3), (A, b))
    left = torch.randn(6, 2, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    right = torch.randn(7, 2, dtype=torch.float64, generator=seeded(2)).requires_grad_()

    def through_factors(one, two, c):
        return sketched_lstsq(Kronecker([one, two]), c, sketch_size=20, refine=refine, generator=seeded(3))

    c = torch.randn(42, dtype=torch.float64, generator=seeded(4)).requires_grad_()
    assert torch.autograd.gradcheck(through_factors, (left, right, c))


def test_easy_right_hand_sides():
    """Oracle: the closed form: b = 0 has x = 0, b in the range of A has its coefficients; no relative figure breaks."""
    A, _ = problem()
    zero, info = sketched_lstsq(A, torch.zeros(N, dtype=A.dtype), refine=5, return_info=True)
    assert float(zero.abs().max()) == 0
    assert info.converged
    x, info = sketched_lstsq(A, A.sum(1), return_info=True, generator=seeded(0))
    torch.testing.assert_close(x, torch.ones(D, dtype=A.dtype))
    assert float(info.coordinate_bound.max()) < 1e-12


def test_outstanding_rows_do_no_harm():
    """Oracle: dense least squares; one row a million times as long as the others must be met by every seed."""
    A, b = problem(n=1500)
    A[7] *= 1e6
    b[7] *= 1e6
    true = exact(A, b)
    r = (A @ true - b).norm() * torch.linalg.matrix_norm(torch.linalg.pinv(A), 2)
    for s in range(20):
        x = sketched_lstsq(A, b, generator=seeded(s))
        assert float((x - true).abs().max()) < float(r) / D**0.5


def test_half_precision_is_computed_in_single():
    """Oracle: the float32 answer, rounded."""
    A, b = problem(dtype=torch.float32)
    A, b = A.bfloat16(), b.bfloat16()
    x = sketched_lstsq(A, b, generator=seeded(0))
    assert x.dtype == torch.bfloat16
    torch.testing.assert_close(x, sketched_lstsq(A.float(), b.float(), generator=seeded(0)).bfloat16())


def test_sketch_size():
    """Oracle: the two formulas, by hand."""
    assert lstsq_sketch_size(10**6, 64) == math.ceil(64 * 2 * math.log(128 / 0.05))
    assert lstsq_sketch_size(10**6, 64, eps=0.5) == math.ceil(64 * 8 * math.log(128 / 0.05))
    assert lstsq_sketch_size(100, 64) == 100
    assert lstsq_sketch_size(10**7, 64, theory=True) == math.ceil(64 * math.log(10**7 / 0.05) ** 3)
    assert lstsq_sketch_size(100, 3, eps=50.0) == 4
    for bad in ({"eps": 0.0}, {"eps": math.nan}, {"delta": 0.0}, {"delta": 1.0}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            lstsq_sketch_size(100, 3, **bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="n >= 1"):
        lstsq_sketch_size(0, 3)


def test_bad_input_is_named():
    """Oracle: the error taxonomy."""
    A, b = problem()
    S = GaussianSketch(N, 60, dtype=A.dtype, generator=seeded(0))
    for error, match, call in [
        (ShapeError, "N >= D", lambda: sketched_lstsq(A.T, b)),
        (ShapeError, "b of shape", lambda: sketched_lstsq(A, b[:-1])),
        (ShapeError, "b is torch.float32", lambda: sketched_lstsq(A, b.float())),
        (ShapeError, "stack", lambda: sketched_lstsq(A.expand(2, N, D), b)),
        (ArgumentTypeError, "b to be a tensor", lambda: sketched_lstsq(A, b.numpy())),  # pyright: ignore[reportArgumentType]
        (ArgumentError, "at least D = 12", lambda: sketched_lstsq(A, b, sketch_size=11)),
        (ArgumentError, "eps chooses", lambda: sketched_lstsq(A, b, sketch_size=50, eps=0.5)),
        (ArgumentError, "60 rows", lambda: sketched_lstsq(A, b, sketch_size=50, sketch=S)),
        (ArgumentError, "fresh sketches", lambda: sketched_lstsq(A, b, num_repeats=2, sketch=S)),
        (ArgumentError, "unknown sketch", lambda: sketched_lstsq(A, b, sketch="fourier")),  # pyright: ignore[reportArgumentType]
        (ArgumentTypeError, "name or an operator", lambda: sketched_lstsq(A, b, sketch=3)),  # pyright: ignore[reportArgumentType]
        (ShapeError, "shape", lambda: sketched_lstsq(A, b, sketch=GaussianSketch(N + 1, 60, dtype=A.dtype))),
        (ShapeError, "move it with", lambda: sketched_lstsq(A, b, sketch=S.to(dtype=torch.float32))),
        (ArgumentError, "num_repeats", lambda: sketched_lstsq(A, b, num_repeats=0)),
        (ArgumentError, "refine", lambda: sketched_lstsq(A, b, refine=-1)),
        (ArgumentError, "tol", lambda: sketched_lstsq(A, b, tol=-1.0)),
        (ArgumentError, "damping", lambda: sketched_lstsq(A, b, damping=-1.0)),
        (ArgumentError, "rcond", lambda: sketched_lstsq(A, b, rcond=1.0)),
        (ArgumentError, "delta", lambda: sketched_lstsq(A, b, delta=2.0)),
    ]:
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("sketch", SKETCHES)
def test_nan_is_found(sketch):
    """Oracle: the error taxonomy: one NaN or Inf reaches every sketch."""
    A, b = problem()
    for value in (math.nan, math.inf):
        broken = A.clone()
        broken[3, 2] = value
        with pytest.raises(NumericalError, match="A has NaN"):
            sketched_lstsq(broken, b, sketch=sketch)
        broken = b.clone()
        broken[3] = value
        with pytest.raises(NumericalError, match="b has NaN"):
            sketched_lstsq(A, broken, sketch=sketch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu():
    """Oracle: the CPU, with the sketch drawn by one CPU generator."""
    A, b = problem()
    for refine in (0, 40):
        there = sketched_lstsq(A.cuda(), b.cuda(), sketch_size=200, refine=refine, generator=seeded(0)).cpu()
        torch.testing.assert_close(there, sketched_lstsq(A, b, sketch_size=200, refine=refine, generator=seeded(0)))
