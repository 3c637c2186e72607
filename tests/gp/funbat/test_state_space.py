"""Matérn processes in state space: closed forms against quadrature-free identities, the smoother against dense GPs."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_continuous_lyapunov
from scipy.special import comb

from hesse.errors import ArgumentError, ShapeError
from hesse.gp.funbat import MaternSSM, interpolate, kalman_smoother

F64 = torch.float64
NUS = (0.5, 1.5, 2.5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matern(nu: float, lengthscale: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The kernel itself, of variance one."""
    x = (2 * nu) ** 0.5 * (a.unsqueeze(-1) - b).abs() / lengthscale
    return {0.5: 1 + 0 * x, 1.5: 1 + x, 2.5: 1 + x + x**2 / 3}[nu] * torch.exp(-x)


def companion(nu: float, lengthscale: float) -> np.ndarray:
    p, rate = round(nu + 0.5), (2 * nu) ** 0.5 / lengthscale
    F = np.eye(p, k=1)
    F[-1] = [-comb(p, j) * rate ** (p - j) for j in range(p)]
    return F


@pytest.mark.parametrize("nu", NUS)
def test_transition_is_the_matrix_exponential(nu):
    """Oracle: SciPy's expm of the companion matrix, and Q = P∞ - A P∞ Aᵀ at steps where that keeps its digits."""
    ssm, F = MaternSSM(nu, 0.4, 1.7), companion(nu, 0.4)
    A, Q = ssm.discretize(torch.tensor([0.05, 0.3, 2.0], dtype=F64))
    P = ssm.stationary().numpy()
    for i, dt in enumerate((0.05, 0.3, 2.0)):
        np.testing.assert_allclose(A[i], expm(F * dt), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(Q[i], P - A[i].numpy() @ P @ A[i].numpy().T, atol=1e-11 * P.max())


@pytest.mark.parametrize("nu", NUS)
def test_stationary_covariance_solves_the_lyapunov_equation(nu):
    """Oracle: SciPy's solver with the spectral density scaled so that P_00 is the variance."""
    F = companion(nu, 0.4)
    unit = np.zeros_like(F)
    unit[-1, -1] = 1.0
    P = solve_continuous_lyapunov(F, -unit)
    np.testing.assert_allclose(MaternSSM(nu, 0.4, 1.7).stationary(), 1.7 * P / P[0, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nu", NUS)
def test_noise_of_a_tiny_step_is_positive_definite(nu):
    """Oracle: the leading term q dt^(2m+1) / ((2m+1) m!²), where the difference of covariances has no digit left."""
    p, dt = round(nu + 0.5), 1e-8
    _, Q = MaternSSM(nu, 0.3).discretize(torch.tensor([dt], dtype=F64))
    rate = (2 * nu) ** 0.5 / 0.3
    q = {1: 2.0, 2: 4.0, 3: 16 / 3}[p] * rate ** (2 * p - 1)
    factorial = {1: 1, 2: 1, 3: 2}[p]
    assert float(Q[0, 0, 0]) == pytest.approx(q * dt ** (2 * p - 1) / ((2 * p - 1) * factorial**2), rel=1e-6)
    scale = torch.tensor([dt ** (p - 0.5 - i) for i in range(p)], dtype=F64)
    assert float(torch.linalg.eigvalsh(Q[0] / scale / scale.unsqueeze(1)).min()) > 0


@pytest.mark.parametrize("nu", NUS)
def test_smoother_is_gp_regression(nu):
    """Oracle: scikit-learn's GP on 60 irregular points; mean, variance to 1e-9, log likelihood to 1e-8."""
    process = pytest.importorskip("sklearn.gaussian_process")
    t = torch.rand(60, generator=seeded(0), dtype=F64).sort().values
    y = torch.sin(6 * t) + 0.1 * torch.randn(60, generator=seeded(1), dtype=F64)
    peer = process.GaussianProcessRegressor(process.kernels.Matern(0.3, nu=nu), alpha=0.01, optimizer=None)
    peer.fit(t.numpy()[:, None], y.numpy())
    ssm = MaternSSM(nu, 0.3)
    chain = kalman_smoother(ssm, t, torch.full((60, 1, 1), 100.0, dtype=F64), 100 * y.unsqueeze(-1))
    anywhere = torch.cat([t, torch.rand(50, generator=seeded(2), dtype=F64) * 3 - 1])
    mean, std = peer.predict(anywhere.numpy()[:, None], return_std=True)
    found_mean, found_cov = interpolate(ssm, chain, anywhere)
    np.testing.assert_allclose(found_mean[:, 0], mean, atol=1e-9)
    np.testing.assert_allclose(found_cov[:, 0, 0], std**2, atol=1e-9)
    np.testing.assert_allclose(chain.mean[:, 0], mean[:60], atol=1e-9)
    likelihood = float(chain.log_normalizer - 50 * y.square().sum()) - 30 * np.log(2 * np.pi * 0.01)
    assert likelihood == pytest.approx(peer.log_marginal_likelihood_value_, abs=1e-8)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_coupled_functions_with_singular_messages(length):
    """Oracle: the joint Gaussian in dense algebra, R = 2, rank-one and absent messages, a stack of two priors."""
    t = torch.rand(length, generator=seeded(0), dtype=F64).sort().values
    direction = torch.randn(2, length, 2, generator=seeded(1), dtype=F64)
    direction[:, 0] = 0.0
    precision = 30 * direction.unsqueeze(-1) * direction.unsqueeze(-2)
    shift = 20 * direction
    lengths = torch.tensor([0.2, 0.5], dtype=F64)
    chain = kalman_smoother(MaternSSM(1.5, lengths, torch.ones(2, dtype=F64)), t, precision, shift)
    for i in range(2):
        prior = torch.kron(matern(1.5, float(lengths[i]), t, t), torch.eye(2, dtype=F64))
        Lambda, eta = torch.block_diag(*precision[i]), shift[i].reshape(-1)
        mixed = torch.eye(2 * length, dtype=F64) + prior @ Lambda
        cov = torch.linalg.solve(mixed, prior)
        torch.testing.assert_close(chain.mean[i].reshape(-1), cov @ eta, atol=1e-10, rtol=0)
        for j in range(length):
            block = cov[2 * j : 2 * j + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(chain.covariance[i, j], block, atol=1e-10, rtol=0)
        normalizer = -torch.logdet(mixed) / 2 + eta @ cov @ eta / 2
        torch.testing.assert_close(chain.log_normalizer[i], normalizer, atol=1e-10, rtol=0)


def test_normalizer_is_differentiable():
    """Oracle: finite differences in length scale, variance and messages."""
    t = torch.tensor([0.1, 0.15, 0.4, 0.9], dtype=F64)
    shift = torch.randn(4, 1, generator=seeded(0), dtype=F64, requires_grad=True)
    parameters = [torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.3, 1.2)]

    def normalizer(length, variance, eta):
        return kalman_smoother(MaternSSM(1.5, length, variance), t, torch.full((4, 1, 1), 5.0, dtype=F64), eta)

    assert torch.autograd.gradcheck(lambda *a: normalizer(*a).log_normalizer, (*parameters, shift))
    assert torch.autograd.gradcheck(lambda *a: normalizer(*a).covariance, (*parameters, shift))


def test_covariances_stay_positive_for_near_duplicates():
    """Oracle: positive eigenvalues at gaps of 1e-9 and messages of precision 1e8."""
    t = (torch.arange(20, dtype=F64) // 2) / 10 + 1e-9 * (torch.arange(20) % 2)
    precision = torch.full((20, 1, 1), 1e8, dtype=F64)
    chain = kalman_smoother(MaternSSM(2.5, 0.3), t, precision, 1e8 * torch.sin(t).unsqueeze(-1))
    assert float(chain.covariance.min()) > 0
    torch.testing.assert_close(chain.mean[:, 0], torch.sin(t), atol=1e-3, rtol=0)


def test_single_precision_follows_double():
    """Oracle: the float64 result, to four digits."""
    t = torch.linspace(0, 1, 30, dtype=F64)
    arguments = torch.full((30, 1, 1), 10.0, dtype=F64), 10 * torch.cos(5 * t).unsqueeze(-1)
    double = kalman_smoother(MaternSSM(), t, *arguments)
    single = kalman_smoother(MaternSSM(), t.float(), *(a.float() for a in arguments))
    assert single.mean.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), double.mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "part"), [({"nu": 2.0}, "nu"), ({"lengthscale": 0.0}, "lengthscale"), ({"variance": -1.0}, "variance")]
)
def test_bad_priors_are_refused(options, part):
    """Oracle: the error's name and text."""
    with pytest.raises(ArgumentError, match=part):
        MaternSSM(**options)


def test_bad_chains_are_refused():
    """Oracle: the error's name and text."""
    t, precision, shift = (
        torch.tensor([0.0, 0.5], dtype=F64),
        torch.ones(2, 1, 1, dtype=F64),
        torch.ones(2, 1, dtype=F64),
    )
    with pytest.raises(ArgumentError, match="increasing"):
        kalman_smoother(MaternSSM(), t.flip(0), precision, shift)
    with pytest.raises(ShapeError, match="precision"):
        kalman_smoother(MaternSSM(), t, precision[:1], shift)
    with pytest.raises(ShapeError, match="dtype"):
        kalman_smoother(MaternSSM(), t, precision.float(), shift)
    with pytest.raises(ShapeError, match="interpolate"):
        interpolate(MaternSSM(), kalman_smoother(MaternSSM(), t, precision, shift), t.float())
