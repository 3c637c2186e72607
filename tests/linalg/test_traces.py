import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg.basic import Dense, Diagonal
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.traces import hutchinson_trace, hutchpp_trace, trace, xnystrace, xtrace


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_values(values: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=seeded(0))).Q
    matrix = Q * values.to(dtype) @ Q.mH
    return (matrix + matrix.mH) / 2


SPECTRA = {
    "power": torch.arange(1, 151, dtype=torch.float64) ** -2,
    "exponential": 0.7 ** torch.arange(150, dtype=torch.float64),
    "flat": torch.linspace(1, 3, 150, dtype=torch.float64),
}


@pytest.mark.parametrize("method", ["hutchinson", "hutchpp"])
def test_standard_error_is_honest(method):
    """Oracle: the dense trace; about 95 % of 200 runs land within two standard errors (Student's t for few probes)."""
    matrix = with_values(SPECTRA["power"])
    operator, exact = as_linear_operator(matrix, is_psd=True), matrix.trace()
    runs = [trace(operator, 64, method=method, generator=seeded(s)) for s in range(200)]
    hits = sum(bool((r.value - exact).abs() <= 2.1 * r.standard_error) for r in runs)
    assert 178 <= hits <= 200


@pytest.mark.parametrize("spectrum", list(SPECTRA))
@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
def test_exchangeable_estimates_are_unbiased_and_report_their_size(method, spectrum):
    """Oracle: the dense trace; mean of 200 runs within four of its own errors, the reported error not far off."""
    matrix = with_values(SPECTRA[spectrum])
    operator, exact = as_linear_operator(matrix, is_psd=True), matrix.trace()
    runs = [trace(operator, 40, method=method, generator=seeded(s)) for s in range(200)]
    errors = torch.stack([r.value - exact for r in runs])
    rounding = 1e-13 * float(exact)
    assert abs(float(errors.mean())) <= 4 * float(errors.std()) / 200**0.5 + rounding
    ratio = float(errors.square().mean().sqrt()) / float(torch.stack([r.standard_error for r in runs]).mean())
    assert 0.5 <= ratio <= 2 if method == "xtrace" else 0.1 <= ratio <= 1.1  # the jackknife errs on the safe side


def leave_one_out(matrix: torch.Tensor, omega: torch.Tensor) -> torch.Tensor:
    """XTrace as it is defined: a QR factorisation for every column left out."""
    n, k = omega.shape
    samples = []
    for i in range(k):
        others = torch.cat([omega[:, :i], omega[:, i + 1 :]], dim=1)
        Q = torch.linalg.qr(matrix @ others).Q
        rest = omega[:, i] - Q @ (Q.mH @ omega[:, i])
        rest = rest * ((n - k + 1) ** 0.5 / rest.norm())
        samples.append((Q.mH @ matrix @ Q).trace() + rest.conj() @ matrix @ rest)
    return torch.stack(samples)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_xtrace_is_the_leave_one_out_definition(dtype):
    """Oracle: the definition by brute force, on an unsymmetric matrix."""
    matrix = torch.randn(40, 40, dtype=dtype, generator=seeded(0)) / 40**0.5
    found = xtrace(matrix, 16, generator=seeded(3))
    omega = torch.stack([torch.randn(40, dtype=dtype, generator=g) for g in [seeded(3)] for _ in range(8)], dim=1)
    omega = omega * (40**0.5 / torch.linalg.vector_norm(omega, dim=0))
    samples = leave_one_out(matrix, omega)
    torch.testing.assert_close(found.value, samples.mean(), rtol=1e-11, atol=1e-11)
    spread = (samples - samples.mean()).abs().square().sum().div(7).sqrt() / 8**0.5
    torch.testing.assert_close(found.standard_error, spread.to(found.standard_error.dtype), rtol=1e-10, atol=0)


def test_xnystrace_is_the_leave_one_out_definition():
    """Oracle: Nystrom from all columns but one, formed, and that one as probe of the rest."""
    matrix = with_values(torch.linspace(1, 2, 40, dtype=torch.float64))
    found = xnystrace(matrix, 8, generator=seeded(3))
    g = seeded(3)
    omega = torch.stack([torch.randn(40, dtype=torch.float64, generator=g) for _ in range(8)], dim=1)
    samples = []
    for i in range(8):
        others = torch.cat([omega[:, :i], omega[:, i + 1 :]], dim=1)
        Y = matrix @ others
        approximation = Y @ torch.linalg.solve(others.T @ Y, Y.T)
        basis = torch.linalg.qr(others).Q
        rest = omega[:, i] - basis @ (basis.T @ omega[:, i])
        rest = rest * ((40 - 7) ** 0.5 / rest.norm())
        samples.append(approximation.trace() + rest @ (matrix - approximation) @ rest)
    torch.testing.assert_close(found.value, torch.stack(samples).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", ["hutchpp", "xtrace", "xnystrace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_is_exact(method, dtype):
    """Oracle: the dense trace; a range larger than the rank leaves nothing to sample."""
    matrix = with_values((torch.arange(100) < 5).double()).to(dtype)
    found = trace(as_linear_operator((matrix + matrix.T) / 2, is_psd=True), 60, method=method, generator=seeded(0))
    bound = 1e-4 if dtype == torch.float32 else 1e-11
    assert abs(float(found) - 5) < bound
    assert float(found.standard_error) < bound


def test_low_rank_and_unsymmetric_is_exact():
    """Oracle: the dense trace; dependent columns, while the row space differs from the column space."""
    matrix = torch.randn(80, 3, dtype=torch.float64, generator=seeded(0))
    matrix = matrix @ torch.randn(3, 80, dtype=torch.float64, generator=seeded(1))
    found = xtrace(matrix, 30, generator=seeded(2))
    torch.testing.assert_close(found.value, matrix.trace(), rtol=1e-12, atol=1e-10)
    assert found.num_matvecs <= 30


@pytest.mark.parametrize("method", ["exact", "hutchpp", "xtrace", "xnystrace"])
def test_budget_above_the_order_reads_the_diagonal(method):
    """Oracle: the dense trace, to the last digit and with standard error zero."""
    matrix = with_values(torch.linspace(1, 2, 7, dtype=torch.float64))
    found = trace(as_linear_operator(matrix, is_psd=True), 30, method=method)
    torch.testing.assert_close(found.value, matrix.trace())
    assert float(found.standard_error) == 0


def test_zero_operator():
    """Oracle: closed form; no NaN from a zero spectrum."""
    zero = as_linear_operator(torch.zeros(30, 30, dtype=torch.float64), is_psd=True)
    for method in ("hutchinson", "hutchpp", "xtrace", "xnystrace"):
        found = trace(zero, 12, method=method, generator=seeded(0))
        assert float(found.value) == 0
        assert float(found.standard_error) == 0


def test_hutchinson_is_exact_on_diagonals_and_the_same_in_chunks():
    """Oracle: the sum of the diagonal; and invariance under the size of chunks."""
    values = torch.linspace(-1, 2, 33, dtype=torch.float64)
    assert float(hutchinson_trace(Diagonal(values), 5)) == pytest.approx(float(values.sum()))
    matrix = with_values(SPECTRA["power"])
    whole = hutchinson_trace(matrix, 20, generator=seeded(0))
    pieces = hutchinson_trace(matrix, 20, chunk_size=3, generator=seeded(0))
    torch.testing.assert_close(whole.value, pieces.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.standard_error, pieces.standard_error, rtol=1e-10, atol=0)


def test_stack_shares_probes():
    """Oracle: each matrix of the stack by itself."""
    stack = torch.randn(3, 20, 20, dtype=torch.float64, generator=seeded(0))
    whole = hutchinson_trace(stack, 10, generator=seeded(1))
    for i in range(3):
        torch.testing.assert_close(whole.value[i], hutchinson_trace(stack[i], 10, generator=seeded(1)).value)


def test_hutchinson_gradient():
    """Oracle: finite differences with the probes held fixed."""
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: hutchinson_trace(Dense(a), 4, generator=seeded(1)).value, matrix)


def test_half_precision_sums_in_float32():
    """Oracle: the float64 trace of the rounded matrix, within four standard errors."""
    matrix = with_values(SPECTRA["flat"]).to(torch.bfloat16)
    found = hutchinson_trace(matrix, 50, generator=seeded(0))
    assert found.value.dtype == torch.float32
    assert abs(float(found) - float(matrix.double().trace())) < 4 * float(found.standard_error) + 0.5


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="square"):
        hutchinson_trace(torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="num_probes"):
        hutchinson_trace(torch.eye(3), 1)
    with pytest.raises(ArgumentError, match="num_matvecs"):
        hutchpp_trace(torch.eye(3), 5)
    with pytest.raises(ShapeError, match="stack"):
        xtrace(torch.ones(2, 3, 3))
    with pytest.raises(ArgumentError, match="method"):
        trace(torch.eye(3), method="magic")
    with pytest.raises(ArgumentError, match="is_psd=True"):
        xnystrace(as_linear_operator(torch.eye(3), is_symmetric=True))
    with pytest.raises(NumericalError, match="negative"):
        xnystrace(-torch.eye(30), 5)
