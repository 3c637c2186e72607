import pytest
import torch

from hesse.errors import ArgumentError, MemoryLimitError, NumericalError, SingularError
from hesse.linalg.basic import Dense, Diagonal, FunctionOperator
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.slq import logdet, slq, spectral_density


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive_definite(n: int, condition: float, seed: int = 0) -> torch.Tensor:
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(seed))).Q
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    matrix = Q * values @ Q.T
    return (matrix + matrix.T) / 2


def test_standard_error_is_honest():
    """Oracle: the dense log-determinant; about 95 % of 200 runs land within the Student interval of ten probes."""
    matrix = positive_definite(60, 1e3)
    exact = torch.linalg.slogdet(matrix).logabsdet
    hits = 0
    for seed in range(200):
        found = slq(matrix, torch.log, num_probes=10, num_steps=40, generator=seeded(seed))
        hits += bool((found.value - exact).abs() <= 2.26 * found.standard_error)
    assert 180 <= hits <= 200


@pytest.mark.parametrize("reorthogonalize", ["full", "selective", "none"])
def test_quadrature_is_exact_for_low_degrees(reorthogonalize):
    """Oracle: z^T A^5 z formed; three nodes are exact up to degree five."""
    matrix = positive_definite(30, 10.0)
    found = slq(matrix, lambda t: t**5, num_probes=2, num_steps=3, reorthogonalize=reorthogonalize, generator=seeded(4))
    signs = torch.stack([torch.randint(2, (30,), generator=g, dtype=torch.int8) for g in [seeded(4)]])
    first = signs[0].double() * 2 - 1
    power = torch.linalg.matrix_power(matrix, 5)
    alone = slq(matrix, lambda t: t**5, num_probes=2, num_steps=30, generator=seeded(4))
    torch.testing.assert_close(found.value, alone.value, rtol=1e-12, atol=0)
    spread = (found.value + found.standard_error, found.value - found.standard_error)
    assert any(abs(float(first @ power @ first) - float(s)) < 1e-10 for s in spread)


def test_chunks_do_not_change_the_numbers():
    """Oracle: invariance; seven probes at once, and two at a time."""
    matrix = positive_definite(50, 100.0)
    whole = slq(matrix, torch.sqrt, num_probes=7, num_steps=12, generator=seeded(0))
    pieces = slq(matrix, torch.sqrt, num_probes=7, num_steps=12, chunk_size=2, generator=seeded(0))
    torch.testing.assert_close(whole.value, pieces.value, rtol=1e-12, atol=0)


def test_few_distinct_eigenvalues():
    """Oracle: closed form; the recurrence breaks down after two steps and the log of the rest is never asked for."""
    values = torch.cat([torch.full((20,), 2.0), torch.full((20,), 0.5)]).double()
    found = slq(Diagonal(values), torch.log, num_probes=4, num_steps=30, generator=seeded(0))
    assert abs(float(found.value)) < 1e-10


def test_logdet_methods_agree():
    """Oracle: slogdet; the dense and the structured method exactly, the sampled one within four standard errors."""
    matrix = positive_definite(80, 100.0)
    exact = torch.linalg.slogdet(matrix).logabsdet
    torch.testing.assert_close(logdet(matrix, method="cholesky").value, exact, rtol=1e-12, atol=0)
    sampled = logdet(matrix, generator=seeded(0))
    assert abs(float(sampled.value - exact)) < 4 * float(sampled.standard_error)
    values = torch.linspace(1, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(logdet(Diagonal(values), method="exact").value, values.log().sum())


def test_cholesky_logdet_gradcheck():
    """Oracle: finite differences in float64."""
    root = torch.randn(5, 5, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: logdet(r @ r.T + eye, method="cholesky").value, root)


def test_sampled_gradient_is_unbiased():
    """Oracle: the inverse, which is the gradient of log det; the mean of 300 runs within 4.5 of its standard errors."""
    matrix = positive_definite(12, 20.0)
    draws = []
    for seed in range(300):
        leaf = matrix.clone().requires_grad_()
        logdet(Dense(leaf, is_psd=True), num_probes=4, num_steps=12, generator=seeded(seed)).value.backward()
        draws.append((leaf.grad + leaf.grad.T) / 2)
    stack = torch.stack(draws)
    error = (stack.mean(0) - torch.linalg.inv(matrix)).abs() / (stack.std(0) / 300**0.5 + 1e-10)
    assert float(error.max()) < 4.5


def test_density_integrates_to_one_and_finds_the_edges():
    """Oracle: a known spectrum, half at 1 and half spread over [4, 5]."""
    values = torch.cat([torch.ones(100), torch.linspace(4, 5, 100)]).double()
    found = spectral_density(Diagonal(values), num_probes=20, num_steps=20, sigma=0.1, generator=seeded(0))
    step = found.grid[1] - found.grid[0]
    assert float(found.density.sum() * step) == pytest.approx(1, abs=1e-3)
    below = found.grid < 2.5
    share = float((found.density[below]).sum() * step)
    error = float(found.integrate(lambda t: (t < 2.5).double())[1])
    assert abs(share - 0.5) < 4 * error + 1e-3
    assert abs(float(found.largest) - 5) <= float(found.largest_residual) + 1e-12
    assert abs(float(found.smallest) - 1) <= float(found.smallest_residual) + 1e-12
    mean, spread = found.integrate(lambda t: t)
    assert abs(float(mean - values.mean())) <= 4 * float(spread) + 1e-10


def test_density_of_a_multiple_of_the_identity():
    """Oracle: closed form; one narrow peak of area one."""
    found = spectral_density(3.0 * torch.eye(10, dtype=torch.float64), num_steps=5, generator=seeded(0))
    assert float(found.grid[found.density.argmax()]) == pytest.approx(3, abs=found.sigma)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-3)


def test_float32_operator_keeps_its_dtype():
    """Oracle: the float64 log-determinant, within four standard errors."""
    matrix = positive_definite(100, 1e3)
    found = logdet(as_linear_operator(matrix.float(), is_psd=True), generator=seeded(0))
    exact = torch.linalg.slogdet(matrix).logabsdet
    assert found.value.dtype == torch.float32
    assert abs(float(found.value) - float(exact)) < 4 * float(found.standard_error)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(SingularError, match="positive definite"):
        logdet(-torch.eye(5, dtype=torch.float64))
    with pytest.raises(SingularError, match="positive definite"):
        logdet(-torch.eye(5, dtype=torch.float64), method="cholesky")
    with pytest.raises(NumericalError, match="not finite"):
        slq(torch.diag(torch.tensor([-1.0, 1.0, 2.0])), torch.log, generator=seeded(0))
    with pytest.raises(ArgumentError, match="num_probes"):
        slq(torch.eye(5), torch.exp, num_probes=1)
    with pytest.raises(ArgumentError, match="method"):
        logdet(torch.eye(5), method="magic")
    with pytest.raises(ArgumentError, match="sigma"):
        spectral_density(torch.eye(5), sigma=-1.0)


def test_too_many_probes_are_refused_before_any_product():
    """Oracle: the error, and that no product was made and no probe drawn."""
    products = []
    huge = FunctionOperator(lambda x: products.append(1) or x, (10**9, 10**9), is_psd=True)
    generator = seeded(0)
    before = generator.get_state()
    for call in (lambda a: slq(a, torch.log, num_steps=1000, generator=generator), lambda a: logdet(a, num_steps=1000)):
        with pytest.raises(MemoryLimitError, match=r"slq: needs about .*num_steps"):
            call(huge)
    with pytest.raises(MemoryLimitError, match="slq"):
        spectral_density(huge, num_steps=1000, chunk_size=2, generator=generator)
    assert not products
    assert torch.equal(generator.get_state(), before)
