"""The decomposed diffusion sampler, step by step and in law."""

import math
from itertools import pairwise

import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.generative.dds import DDS, SamplerState, TVz
from hesse.generative.dds.data_step import (
    SliceDifference,
    circulant_inverse,
    discrepancy_proximal,
    least_squares_step,
    proximal_step,
    total_variation_step,
)
from hesse.generative.diffusion import DiffusionPrior, VarianceExploding, VariancePreserving
from hesse.generative.physics import Blur, Inpainting, MultiCoilMRI, coil_maps, sampling_mask
from hesse.linalg import Dense, FunctionOperator, Kronecker, ScaledIdentity
from hesse.testing import check_linear_operator

VP = VariancePreserving()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def gaussian_prior(variance: float, shape: tuple[int, ...], schedule=VP) -> DiffusionPrior:
    """The prior N(0, variance I), exactly."""

    def denoise(x, sigma):
        return x * variance / (variance + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)

    return DiffusionPrior.from_denoiser(denoise, schedule, shape)


def everything(n: int) -> Inpainting:
    return Inpainting(torch.ones(n, dtype=torch.bool), dtype=torch.float64)


def nothing(n: int) -> Dense:
    return Dense(torch.zeros(1, n, dtype=torch.float64))


def problem_of(matrix: torch.Tensor, y: torch.Tensor, sigma_y: float = 0.0):
    n = matrix.shape[-1]
    return DDS(gaussian_prior(1.0, (n,)), Dense(matrix)).prepare(y, sigma_y=sigma_y)


def test_as_many_steps_as_unknowns_solve_the_systems():
    """Oracle: LAPACK, to 1e-9."""
    matrix, y, x = normal(9, 6), normal(2, 9, seed=1), normal(6, 2, seed=2)
    problem = problem_of(matrix, y)
    exact = torch.linalg.lstsq(matrix, y.T).solution
    torch.testing.assert_close(least_squares_step(problem, x, 6), exact, rtol=1e-9, atol=1e-9)
    system = torch.eye(6, dtype=torch.float64) + 3.0 * matrix.T @ matrix
    exact = torch.linalg.solve(system, x + 3.0 * matrix.T @ y.T)
    torch.testing.assert_close(proximal_step(problem, x, 3.0, 6), exact, rtol=1e-9, atol=1e-9)


def test_few_steps_stay_in_the_krylov_space():
    """Oracle: least squares over span{r, Gr, G²r} in the norm of the system, by LAPACK."""
    matrix, y, x = normal(9, 6), normal(9, seed=1), normal(6, 1, seed=2)
    gram = matrix.T @ matrix
    r = matrix.T @ (y - matrix @ x.squeeze(1))
    basis = torch.stack([r, gram @ r, gram @ gram @ r], 1)
    best = x.squeeze(1) + basis @ torch.linalg.lstsq(matrix @ basis, y - matrix @ x.squeeze(1)).solution
    found = least_squares_step(problem_of(matrix, y), x, 3).squeeze(1)
    torch.testing.assert_close(found, best, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cg_steps", [1, 5, 20])
def test_orthonormal_rows_are_projected_in_one_step(cg_steps):
    """Oracle: x - A^T(A x - y), for missing pixels and for one coil; further steps change nothing."""
    inpainting = Inpainting(torch.arange(12) % 3 > 0, dtype=torch.float64)
    coil = MultiCoilMRI(torch.ones(1, 4, 6, dtype=torch.complex128), sampling_mask((4, 6), generator=seeded(0)))
    for physics, shape in ((inpainting, (12,)), (coil, (2, 4, 6))):
        y = physics.matvec(normal(physics.shape[1], seed=1).to(physics.dtype))
        problem = DDS(gaussian_prior(1.0, shape), physics).prepare(y)
        x = normal(math.prod(shape), 1, seed=2)
        expected = x - problem.physics.rmatmat(problem.physics.matmat(x) - problem.y)
        torch.testing.assert_close(least_squares_step(problem, x, cg_steps), expected)


def test_exact_weight_gives_the_posterior_mean():
    """Oracle: conditioning N(x̂_0, c I) on y = x + n in closed form, with the automatic weight c / σ_y²."""
    prior, sigma_y = gaussian_prior(2.0, (5,)), 0.3
    sampler = DDS(prior, everything(5), cg_steps=1, gamma="auto", gamma_scale=1.7, gamma_max=1e9)
    problem, x = sampler.prepare(normal(5), sigma_y=sigma_y), normal(1, 5, seed=1)
    now = sampler.moment(20)
    variance = 1.7 * (now.s / now.a) ** 2
    x0 = x * now.a * 2.0 / (now.a**2 * 2.0 + now.s**2)
    mean = (x0 / variance + problem.y.T / sigma_y**2) / (1 / variance + 1 / sigma_y**2)
    found = sampler.step(SamplerState(x, 20), problem, seeded(0)).denoised
    torch.testing.assert_close(found, mean)


def test_unconditional_samples_follow_a_mixture():
    """Oracle: mean and covariance of two Gaussians, within four Monte-Carlo errors + 1 %; η = 0, 1000 steps."""
    centres = torch.tensor([[1.5, -0.5], [-1.0, 0.5]], dtype=torch.float64)
    spreads = torch.tensor([[0.2, 0.6], [0.5, 0.1]], dtype=torch.float64)  # variances of the coordinates
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)

    def denoise(x, sigma):
        total = spreads + sigma.reshape(-1, 1, 1) ** 2
        offset = x.unsqueeze(1) - centres
        log = weights.log() - (offset.square() / total + total.log()).sum(-1) / 2
        means = centres + spreads / total * offset
        return (log.softmax(1).unsqueeze(-1) * means).sum(1)

    prior, num = DiffusionPrior.from_denoiser(denoise, VP, (2,)), 4000
    sampler = DDS(prior, nothing(2), 1000, cg_steps=1, eta=0.0)
    found = sampler.sample(torch.zeros(1, dtype=torch.float64), num, 1.0, generator=seeded(0))
    mean = weights @ centres
    covariance = torch.einsum("k,ki,kj->ij", weights, centres - mean, centres - mean) + torch.diag(weights @ spreads)
    products = torch.einsum("ni,nj->nij", found - mean, found - mean)
    error = 4 * found.std(0) / num**0.5 + 0.01
    assert bool(((found.mean(0) - mean).abs() <= error).all())
    error = 4 * products.std(0) / num**0.5 + 0.01 * covariance.abs().max()
    assert bool(((products.mean(0) - covariance).abs() <= error).all())


@pytest.mark.parametrize(("num_steps", "eta"), [(50, 0.0), (50, 0.5), (50, 0.85), (1000, 0.85)])
def test_variance_shrinks_as_the_recursion_says(num_steps, eta):
    """Oracle: v <- (a' k0 + s' sqrt(1 - η²) k1)² v + η² s'² for a Gaussian prior; four Monte-Carlo errors."""
    variance, num = 0.7, 20000
    sampler = DDS(gaussian_prior(variance, (1,)), nothing(1), num_steps, cg_steps=1, eta=eta)
    v = sampler.moment(0).s ** 2
    for now, then in pairwise(sampler.moment(i) for i in range(num_steps + 1)):
        total = now.a**2 * variance + now.s**2
        keep = then.a * now.a * variance / total + then.s * (1 - eta**2) ** 0.5 * now.s / total
        v = keep**2 * v + eta**2 * then.s**2
    found = sampler.sample(torch.zeros(1, dtype=torch.float64), num, 1.0, generator=seeded(1)).var()
    assert abs(float(found) / v - 1) < 4 * (2 / num) ** 0.5
    assert v < variance * (1.001 if eta == 0 else 0.95)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_vp_and_ve_agree(eta):
    """Oracle: x_VE = x_VP / a is the same run, to rounding, if both grids have the same levels s/a."""
    exploding = VarianceExploding(1e-3, 1e3)
    matrix, y = normal(4, 6), normal(4, seed=1)
    vp = DDS(gaussian_prior(1.3, (6,)), Dense(matrix), 30, eta=eta)
    levels = torch.tensor([exploding.time_at(vp.moment(i).s / vp.moment(i).a) for i in range(30)], dtype=torch.float64)
    ve = DDS(gaussian_prior(1.3, (6,), exploding), Dense(matrix), 30, eta=eta, times=levels)
    runs = [sampler.sample(y, 3, 0.1, generator=seeded(2)) for sampler in (vp, ve)]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-8, atol=1e-8)


def test_a_run_resumes_from_any_state():
    """Oracle: invariance: the states of a deterministic run lead to the same end."""
    sampler = DDS(gaussian_prior(1.0, (6,)), Dense(normal(4, 6)), 10, eta=0.0)
    y, states = normal(2, 4, seed=1), []
    whole = sampler.sample(y, 3, 0.1, generator=seeded(0), callback=states.append)
    assert whole.shape == (2, 3, 6)
    state, problem = states[4], sampler.prepare(y, 3, 0.1)
    assert state.index == 5
    while state.index < 10:
        state = sampler.step(state, problem)
    assert torch.equal(state.x.reshape(2, 3, 6), whole)


@pytest.mark.parametrize("options", [{}, {"gamma": "discrepancy"}, {"gamma": "auto", "cg_steps": 2}])
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_rows_are_independent_systems(options, sigma_y):
    """Oracle: each system by itself from the same noise; one step length for all would fail."""
    sampler = DDS(gaussian_prior(1.0, (6,)), Dense(normal(4, 6)), 5, eta=0.0, **options)
    y, x = normal(3, 4, seed=1) * torch.tensor([[1.0], [10.0], [0.1]], dtype=torch.float64), normal(3, 6, seed=2)
    state = sampler.step(SamplerState(x, 1), sampler.prepare(y, sigma_y=sigma_y))
    for i in range(3):
        alone = sampler.step(SamplerState(x[i : i + 1], 1), sampler.prepare(y[i], sigma_y=sigma_y))
        torch.testing.assert_close(state.x[i : i + 1], alone.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 8, 8)])
def test_complex_data_are_met(shape):
    """Oracle: the data themselves: without noise and with many CG steps A x = y at the end."""
    mask = sampling_mask((8, 8), "gaussian2d", 3.0, generator=seeded(0))
    physics = MultiCoilMRI(coil_maps(3, (8, 8), dtype=torch.complex128), mask)
    truth = normal(*shape)
    picture = truth[0] if shape[0] == 1 else torch.complex(truth[0], truth[1])
    y = physics.matvec(picture.flatten().to(torch.complex128))
    sampler = DDS(gaussian_prior(1.0, shape), physics, 5, cg_steps=200)
    found = sampler.sample(y, 2, generator=seeded(1))
    assert found.shape == (2, *shape)
    found = found[:, 0] if shape[0] == 1 else torch.complex(found[:, 0], found[:, 1])
    left = physics.matvec(found.flatten(1).to(torch.complex128)) - y
    assert float(left.abs().max()) < 1e-4  # of 1; CG slows down where singular values are small


def test_least_weight_that_explains_the_data():
    """Oracle: dense solves over the same weights: the first residual at or below σ_y √m."""
    matrix, y, x, sigma_y = normal(9, 6), normal(2, 9, seed=1), normal(6, 2, seed=2), 0.75
    problem = problem_of(matrix, y, sigma_y)
    found = discrepancy_proximal(problem, x, 1e2, 6)
    for column in range(2):
        for gamma in torch.logspace(-2, 2, 16, dtype=torch.float64):
            system = torch.eye(6, dtype=torch.float64) + gamma * matrix.T @ matrix
            solved = torch.linalg.solve(system, x[:, column] + gamma * matrix.T @ y[column])
            if float((matrix @ solved - y[column]).norm()) <= sigma_y * 3:
                break
        torch.testing.assert_close(found[:, column], solved, rtol=1e-8, atol=1e-8)


def test_circulant_inverse_is_exact_for_blur():
    """Oracle: LAPACK on the dense system; a preconditioned step then solves it at once."""
    kernel = torch.rand(3, 3, dtype=torch.float64, generator=seeded(0))
    physics = Blur(kernel, (4, 6))
    sampler = DDS(gaussian_prior(1.0, (1, 4, 6)), physics, cg_steps=1, preconditioner="circulant")
    problem, x = sampler.prepare(normal(24), sigma_y=0.1), normal(24, 2, seed=1)
    system = torch.eye(24, dtype=torch.float64) + 5.0 * physics.to_dense().T @ physics.to_dense()
    inverse = circulant_inverse(problem, (1, 4, 6), 5.0)
    torch.testing.assert_close(inverse(x), torch.linalg.solve(system, x))
    found = sampler.step(SamplerState(normal(1, 1, 4, 6, seed=3), 49), problem, seeded(0))
    plain = DDS(sampler.prior, physics, cg_steps=24).step(SamplerState(normal(1, 1, 4, 6, seed=3), 49), problem)
    torch.testing.assert_close(found.x, plain.x)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_differences_of_slices(boundary):
    """Oracle: a loop over slices, and the conformance suite."""
    like = ScaledIdentity(12, dtype=torch.float64)
    difference = SliceDifference(4, like, boundary)
    x = normal(4, 3)
    expected = torch.stack([x[(s + 1) % 4] - x[s] for s in range(4)])
    if boundary == "neumann":
        expected[-1] = 0
    torch.testing.assert_close(difference.matvec(x.flatten()).reshape(4, 3), expected)
    check_linear_operator(difference, movable=False)


def test_sweeps_converge_to_the_total_variation_minimum():
    """Oracle: optimality: A^T(A x - y) + D^T u = 0 with |u| <= λ, and u = λ sign(D x) where D x is not zero."""
    matrix, y = normal(14, 12), normal(14, seed=1)
    problem, tv = problem_of(matrix, y), TVz(rho=3.0, lam=1.5)
    difference, x, splitting = SliceDifference(4, problem.physics), torch.zeros(12, 1, dtype=torch.float64), None
    for _ in range(600):
        x, splitting = total_variation_step(problem, x, splitting, difference, tv, 12)
    u = tv.rho * splitting[1]
    slope = matrix.T @ (matrix @ x - y.unsqueeze(1)) + difference.rmatmat(u)
    assert float(slope.abs().max()) < 1e-6
    assert float(u.abs().max()) <= tv.lam * (1 + 1e-9)
    jumps = difference.matmat(x)
    moving = jumps.abs() > 1e-6
    assert bool(moving.any())
    assert not bool(moving.all())
    torch.testing.assert_close(u[moving], tv.lam * jumps[moving].sign(), rtol=1e-6, atol=1e-6)


def test_volumes_go_slice_by_slice_through_the_prior():
    """Oracle: independent slices: a volume without coupling is its slices by themselves; chunks change nothing."""
    single, volume = Dense(normal(4, 6)), Kronecker([ScaledIdentity(3, dtype=torch.float64), Dense(normal(4, 6))])
    prior, y, x = gaussian_prior(1.0, (6,)), normal(3, 4, seed=1), normal(1, 3, 6, seed=2)
    whole = DDS(prior, volume, 5, cg_steps=18, eta=0.0, chunk_size=2)
    assert whole.picture_shape == (3, 6)
    found = whole.step(SamplerState(x, 1), whole.prepare(y.flatten(), sigma_y=0.1))
    alone = DDS(prior, single, 5, cg_steps=18, eta=0.0)
    slices = alone.step(SamplerState(x[0], 1), alone.prepare(y, sigma_y=0.1))
    torch.testing.assert_close(found.x[0], slices.x, rtol=1e-8, atol=1e-8)
    smooth = DDS(prior, volume, 8, tv=TVz(lam=1e4)).sample(y.flatten(), generator=seeded(0))
    rough = whole.sample(y.flatten(), generator=seeded(0))
    assert float(smooth.diff(dim=1).abs().sum()) < 0.5 * float(rough.diff(dim=1).abs().sum())


def test_networks_of_any_precision_leave_no_graph():
    """Oracle: the run in float32; bfloat16 rounds the network's output to three digits."""
    weight = torch.nn.Parameter(torch.ones(()))

    def predict(x, t):
        return x * weight.to(x.dtype)

    y = torch.randn(4, generator=seeded(0))
    physics = Dense(torch.randn(4, 6, generator=seeded(1)))
    runs = []
    for dtype in (None, torch.bfloat16):
        prior = DiffusionPrior(predict, VP, (6,), dtype=dtype)
        runs.append(DDS(prior, physics, 10, eta=0.0).sample(y, sigma_y=0.1, generator=seeded(2)))
    assert runs[1].dtype == torch.float32
    assert not runs[0].requires_grad
    torch.testing.assert_close(runs[0], runs[1], rtol=0.05, atol=0.05)


def test_warm_start_saves_network_calls():
    """Oracle: counting; the start is the guess noised to the time of the step."""
    calls = []
    base = gaussian_prior(1.0, (6,))

    def predict(x, t):
        calls.append(float(t[0]))
        return base.predict_fn(x, t)

    sampler = DDS(DiffusionPrior(predict, VP, (6,), "denoised"), everything(6), 10)
    sampler.sample(normal(6), sigma_y=0.1, picture=normal(6), first_step=7, generator=seeded(0))
    assert calls == VP.times(10)[7:].tolist()
    start = sampler.start(sampler.prepare(normal(6)), picture=normal(6, seed=5), first_step=7, generator=seeded(0))
    now = sampler.moment(7)
    torch.testing.assert_close(start.x[0], now.a * normal(6, seed=5) + now.s * normal(1, 6)[0])


def test_nan_of_the_prior_names_the_step():
    """Oracle: the error taxonomy."""
    prior = DiffusionPrior(lambda x, t: x * (torch.nan if float(t[0]) < 500 else 1.0), VP, (4,))
    with pytest.raises(NumericalError, match="step 5"):
        DDS(prior, everything(4), 10).sample(normal(4), generator=seeded(0))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    prior, physics = gaussian_prior(1.0, (4,)), everything(4)
    for options, match in (
        ({"num_steps": 0}, "num_steps"),
        ({"cg_steps": 0}, "cg_steps"),
        ({"eta": 1.2}, "eta"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": "magic"}, "gamma"),
        ({"gamma": "auto"}, "cg_steps=2"),
        ({"gamma_max": -1.0}, "gamma_max"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"times": torch.arange(50.0)}, "falling"),
        ({"tv": TVz()}, "volume"),
        ({"preconditioner": "magic"}, "preconditioner"),
        ({"preconditioner": "circulant"}, "pictures"),
    ):
        with pytest.raises(ArgumentError, match=match):
            DDS(prior, physics, **options)
    with pytest.raises(ShapeError, match="columns"):
        DDS(prior, everything(6))
    false = FunctionOperator(lambda x: x[:2], (2, 4), dtype=torch.float64, rmatmat_fn=lambda y: torch.cat([y, y]))
    with pytest.raises(ArgumentError, match="adjoint"):
        DDS(prior, false)
    sampler = DDS(prior, physics)
    with pytest.raises(ArgumentError, match="sigma_y"):
        sampler.sample(normal(4), sigma_y=-1.0)
    with pytest.raises(ArgumentError, match="num_samples"):
        sampler.sample(normal(4), 0)
    with pytest.raises(ShapeError, match="y of shape"):
        sampler.sample(normal(5))
    with pytest.raises(ArgumentError, match="NaN"):
        sampler.sample(normal(4) * torch.nan)
    with pytest.raises(ArgumentError, match="first_step"):
        sampler.sample(normal(4), first_step=50)
    with pytest.raises(ArgumentError, match="rho"):
        TVz(rho=0.0)
    with pytest.raises(ArgumentError, match="boundary"):
        TVz(boundary="open")
