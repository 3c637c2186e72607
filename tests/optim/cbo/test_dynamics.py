"""Consensus-based optimisation: steps are the equation, runs go on bit for bit, refusals name their cause."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks.optim._cbo_problems import canyon, rastrigin
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import CBO, CoolingSchedule, consensus_point, ess_alpha, minimize_cbo, polarized_consensus


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def bowl(x):
    return (x - 1).square().sum(-1)


def points(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(7), dtype=dtype)


class Replay(CBO):
    """The same draws again, for a loop beside it."""

    def __init__(self, *args, **options):
        self.drawn = []
        super().__init__(*args, **options)

    def _normal(self, *shape):
        z = super()._normal(*shape)
        self.drawn.append(z.clone())
        return z


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_a_step_is_the_equation(noise, dtype):
    """Oracle: the update as a loop over particles, with the same draws."""
    x0 = points(6, 2, dtype=dtype)
    cbo = Replay(rastrigin, x0, dt=0.05, drift=1.5, sigma=0.8, alpha=3.0, noise=noise, generator=seeded(0))
    cbo.step()
    centre = consensus_point(x0, rastrigin(x0), 3.0)
    for i, z in enumerate(cbo.drawn[0][0]):
        away = x0[i] - centre
        spread = away * z if noise == "anisotropic" else away.norm() * z
        expected = x0[i] - 1.5 * 0.05 * away + 0.8 * math.sqrt(0.05) * spread
        torch.testing.assert_close(cbo.x[0, i], expected)
    assert cbo.x.dtype == dtype
    assert torch.equal(cbo.consensus[0], centre)


def test_a_callable_noise_stands_for_the_named_ones():
    """Oracle: the anisotropic run."""
    named = minimize_cbo(bowl, points(20, 3), generator=seeded(1), max_steps=10)
    custom = minimize_cbo(bowl, points(20, 3), noise=lambda away, z: away * z, generator=seeded(1), max_steps=10)
    torch.testing.assert_close(custom.particles, named.particles)
    with pytest.raises(ShapeError, match="noise must return"):
        minimize_cbo(bowl, points(20, 3), noise=lambda away, z: z[..., :1])


def test_standard_normal_draws():
    """Oracle: moments and the tails of a normal law, within four standard errors of a million draws."""
    z = CBO(bowl, dim=2, generator=seeded(0))._normal(1_000_000)
    assert bool(torch.isfinite(z).all())
    for power, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
        assert abs(float((z**power).mean()) - mean) < 4 * (variance / len(z)) ** 0.5
    beyond = math.erfc(3 / math.sqrt(2))
    assert abs(float((z.abs() > 3).double().mean()) - beyond) < 4 * (beyond / len(z)) ** 0.5


def test_batched_runs_are_the_single_ones():
    """Oracle: the equation, run by run, on the draws of the batch."""
    x0 = points(3, 8, 2)
    cbo = Replay(rastrigin, x0, num_runs=3, alpha=5.0, generator=seeded(2))
    cbo.step()
    for run in range(3):
        away = x0[run] - consensus_point(x0[run], rastrigin(x0[run]), 5.0)
        moved = x0[run] - 0.1 * away + math.sqrt(0.1) * away * cbo.drawn[0][run]
        torch.testing.assert_close(cbo.x[run], moved)


@pytest.mark.parametrize("moves", ["partial", "full"])
def test_particle_batches(moves):
    """Oracle: without noise, batches of the whole order of particles written out; each is visited once a step."""
    x0 = points(1, 7, 2)
    cbo = CBO(rastrigin, x0[0], sigma=0.0, alpha=2.0, batch_size=3, moves=moves, generator=seeded(3))
    order = torch.rand(1, 7, generator=seeded(3), dtype=torch.float64).argsort(1)[0]
    cbo.step()
    x = x0[0].clone()
    for index in order.split(3):
        centre = consensus_point(x[index], rastrigin(x[index]), 2.0)
        moving = index if moves == "partial" else torch.arange(7)
        x[moving] = x[moving] - 0.1 * (x[moving] - centre)
    torch.testing.assert_close(cbo.x[0], x)
    assert cbo.objective.num_evaluations == 7


def test_gradient_drift_alone_is_gradient_descent():
    """Oracle: X - γ dt ∇E - λ dt D by hand."""
    x0 = points(5, 3)
    cbo = CBO(bowl, x0, sigma=0.0, alpha=1.0, gradient_drift=4.0, generator=seeded(0))
    cbo.step()
    away = x0 - consensus_point(x0, bowl(x0), 1.0)
    torch.testing.assert_close(cbo.x[0], x0 - 0.1 * away - 0.4 * 2 * (x0 - 1))
    with pytest.raises(ArgumentError, match="autograd"):
        minimize_cbo(lambda x: (x > 0).sum(-1), x0, gradient_drift=1.0)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_memory_is_the_best_point_of_each_particle(batch_size):
    """Oracle: a dictionary of all energies seen, particle by particle."""
    x0 = points(6, 2)
    cbo = CBO(rastrigin, x0, memory_drift=0.5, memory_sigma=0.3, batch_size=batch_size, alpha=10.0, generator=seeded(4))
    best = torch.full((6,), math.inf, dtype=torch.float64)
    for _ in range(20):
        best = torch.minimum(best, rastrigin(cbo.x[0]))
        cbo.step()
    torch.testing.assert_close(cbo.own_energy[0], best)
    torch.testing.assert_close(rastrigin(cbo.own_x[0]), best)


def test_memory_moves_towards_the_best_points():
    """Oracle: the second step without noise, by hand; the objective turns so that the first points stay the best."""
    x0, rising = points(5, 2), [0.0]

    def f(x):
        rising[0] += 100.0
        return bowl(x) + rising[0]

    cbo = CBO(f, x0, sigma=0.0, memory_drift=0.7, alpha=1.0, generator=seeded(0))
    cbo.step()
    first = cbo.x[0].clone()
    cbo.step()
    away = first - consensus_point(x0, bowl(x0), 1.0)
    torch.testing.assert_close(cbo.x[0], first - 0.1 * away - 0.07 * (first - x0))


def test_polarised_runs_gather_in_both_minima():
    """Oracle: the two minima of a symmetric double well, which one consensus cannot both hold; one step by formula."""

    def wells(x):
        return (x.square() - 1).square().sum(-1)

    x0 = points(200, 1)
    options = {"alpha": 10.0, "sigma": 0.5, "bandwidth": 0.3, "generator": seeded(5)}
    cbo = CBO(wells, x0, **(options | {"sigma": 0.0}))
    cbo.step()
    away = x0 - polarized_consensus(x0, x0, wells(x0), 10.0, bandwidth=0.3)
    torch.testing.assert_close(cbo.x[0], x0 - 0.1 * away)
    ends = minimize_cbo(wells, x0, max_steps=200, **options).particles
    assert bool((ends.abs() - 1).abs().lt(0.1).double().mean() > 0.9)
    assert bool((ends > 0).any())
    assert bool((ends < 0).any())


def test_a_still_consensus_is_kicked():
    """Oracle: identical particles, which nothing else can part."""
    start = torch.zeros(10, 2, dtype=torch.float64)
    cbo = CBO(bowl, start, kick_below=1e-5, generator=seeded(0))
    cbo.step()
    assert bool((cbo.x == 0).all())  # no consensus before the first to compare with
    cbo.step()
    assert bool((cbo.x != 0).all())


@pytest.mark.parametrize("at_bounds", ["reflect", "clip"])
def test_bounds_hold_at_every_step(at_bounds):
    """Oracle: the box; its corner is the minimiser. Clipping reaches it, reflection comes close."""
    seen = []

    def f(x):
        seen.append(bool(((x >= -1) & (x <= 0.5)).all()))
        return bowl(x)

    result = minimize_cbo(f, bounds=(-1.0, 0.5), dim=3, at_bounds=at_bounds, sigma=1.2, generator=seeded(0))
    assert all(seen)
    torch.testing.assert_close(result.x, torch.full((3,), 0.5, dtype=torch.float64), atol=0.05, rtol=0)


def test_reflection_folds_a_line():
    """Oracle: the triangle wave by hand, on a box (0, 1)."""
    cbo = CBO(bowl, bounds=(0.0, 1.0), dim=1, generator=seeded(0))
    given = torch.tensor([[-0.25], [0.25], [1.25], [2.25], [-1.25], [3.5]])
    folded = torch.tensor([[0.25], [0.25], [0.75], [0.25], [0.75], [0.5]])
    torch.testing.assert_close(cbo._within(given), folded)


def test_projections_reach_integers_and_circles():
    """Oracle: the best integer point by enumeration, and an angle modulo one."""
    target = torch.tensor([2.0, -3.0], dtype=torch.float64)

    def f(x):
        assert torch.equal(x, x.round())
        return (x - target - 0.3).square().sum(-1)

    result = minimize_cbo(f, spread=4.0, dim=2, projection=torch.round, generator=seeded(0), max_steps=200)
    assert torch.equal(result.x, target)
    turn = minimize_cbo(
        lambda x: 1 - torch.cos(2 * torch.pi * (x - 0.95)).sum(-1),
        dim=1,
        spread=2.0,
        projection=lambda x: torch.remainder(x, 1.0),
        generator=seeded(0),
        max_steps=200,
    )
    assert abs(float(turn.x) - 0.95) < 0.02


def test_ess_alpha_is_found_anew():
    """Oracle: scaling the objective changes nothing in the run."""
    runs = [
        minimize_cbo(
            lambda x, unit=unit: unit * rastrigin(x), points(30, 2), alpha="ess", generator=seeded(0), max_steps=30
        )
        for unit in (1.0, 2.0**40)
    ]
    torch.testing.assert_close(runs[0].x, runs[1].x)
    cbo = CBO(rastrigin, points(30, 2), alpha="ess", generator=seeded(0))
    cbo.step()
    torch.testing.assert_close(cbo.alpha[0], ess_alpha(rastrigin(points(30, 2))))


def test_vmap_and_map_evaluate_the_same():
    """Oracle: the run on a vectorised objective."""
    x0 = points(15, 3)
    expected = minimize_cbo(rastrigin, x0, generator=seeded(0), max_steps=20).x
    mapped = minimize_cbo(rastrigin, x0, vectorize=True, generator=seeded(0), max_steps=20).x
    torch.testing.assert_close(mapped, expected)
    with ThreadPoolExecutor(2) as pool:
        pooled = minimize_cbo(lambda x: float(rastrigin(x)), x0, map_fn=pool.map, generator=seeded(0), max_steps=20)
    torch.testing.assert_close(pooled.x, expected)
    with pytest.raises(ShapeError, match="14 values for 15"):
        minimize_cbo(rastrigin, x0, map_fn=lambda f, xs: [float(f(x)) for x in xs][:-1])


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 4, "kick_below": 1e-3}, {"memory_drift": 0.4, "schedule": CoolingSchedule(7)}]
)
def test_resumes_bit_for_bit(options):
    """Oracle: the run that was not interrupted."""
    whole = CBO(rastrigin, points(12, 2), alpha=10.0, generator=seeded(6), **options)
    expected = whole.run(40, tol=0)
    first = CBO(rastrigin, points(12, 2), alpha=10.0, generator=seeded(6), **options)
    first.run(15, tol=0)
    state = first.state_dict()
    state["num_evaluations"] -= 1  # the evaluation of the first result
    first.step()  # the state is a copy
    second = CBO(rastrigin, points(12, 2), alpha=10.0, generator=seeded(0), **options)
    second.load_state_dict(state)
    result = second.run(25, tol=0)
    assert torch.equal(result.particles, expected.particles)
    assert torch.equal(result.x, expected.x)
    assert torch.equal(result.best_x, expected.best_x)
    assert (result.num_steps, result.num_evaluations) == (expected.num_steps, expected.num_evaluations)


def test_states_that_do_not_fit_are_refused():
    """Oracle: the documented errors."""
    cbo = CBO(rastrigin, points(12, 2), generator=seeded(0))
    state = cbo.state_dict()
    with pytest.raises(ShapeError, match=r"\(1, N, 3\)"):
        CBO(rastrigin, points(12, 3)).load_state_dict(state)
    with pytest.raises(ArgumentError, match="missing or unknown: sigma"):
        cbo.load_state_dict({name: value for name, value in state.items() if name != "sigma"})


def test_keeping_fewer_particles():
    """Oracle: those kept are among those there were, and their best points are still theirs."""
    cbo = CBO(bowl, points(12, 2), memory_drift=0.1, generator=seeded(0))
    cbo.step()
    owners = {tuple(row): tuple(own) for row, own in zip(cbo.x[0].tolist(), cbo.own_x[0].tolist(), strict=True)}
    cbo.keep(5)
    assert cbo.x.shape == cbo.own_x.shape == (1, 5, 2)
    assert cbo.own_energy.shape == (1, 5)
    for row, own in zip(cbo.x[0].tolist(), cbo.own_x[0].tolist(), strict=True):
        assert owners.pop(tuple(row)) == tuple(own)
    cbo.step()
    with pytest.raises(ArgumentError, match="count <= 5"):
        cbo.keep(6)


def test_result_tells_what_happened():
    """Oracle: the objective at the points told, and the number of its calls."""
    calls = []

    def f(x):
        calls.append(x.shape[0])
        return rastrigin(x)

    result = minimize_cbo(f, points(20, 2), generator=seeded(0), max_steps=400)
    assert bool(result.converged)
    assert not bool(result.collapsed)
    assert result.num_evaluations == sum(calls)
    torch.testing.assert_close(result.fun, rastrigin(result.x))
    torch.testing.assert_close(result.best_fun, rastrigin(result.best_x))
    assert bool(result.best_fun <= result.fun)
    assert bool((result.history.best.diff() <= 0).all())
    assert len(result.history.residual) == result.num_steps < 400
    assert result.history.consensus is None
    variance = result.particles.var(0, correction=0).max()
    torch.testing.assert_close(result.history.residual[-1], variance, rtol=1e-6, atol=0)


def test_the_path_is_kept_on_demand():
    """Oracle: the callback's own notes."""
    notes = []
    cbo = CBO(rastrigin, num_runs=3, dim=2, generator=seeded(0))
    result = cbo.run(5, tol=0, keep_path=True, callback=lambda swarm: notes.append(swarm.consensus.clone()))
    assert result.history.consensus is not None
    assert torch.equal(result.history.consensus, torch.stack(notes))
    assert result.x.shape == (3, 2)
    assert result.fun.shape == result.converged.shape == (3,)


def test_identical_particles_are_said_to_be_stuck():
    """Oracle: noise is zero there; the flag tells it from a minimum."""
    result = minimize_cbo(bowl, torch.zeros(10, 2), generator=seeded(0))
    assert bool(result.converged)
    assert bool(result.collapsed)
    assert result.num_steps == 1
    assert bool((result.x == 0).all())


def test_nan_is_a_wall():
    """Oracle: the half plane where the objective exists; the NaN are counted, and all of them together refused."""

    def f(x):
        return torch.where(x[..., 0] < 0, math.nan, 1.0) * (x[..., 0] - 0.5).square() + x[..., 1].square()

    result = minimize_cbo(f, torch.zeros(2), generator=seeded(0), max_steps=300)
    assert result.num_invalid > 0
    assert bool((result.x - torch.tensor([0.5, 0.0])).abs().max() < 0.05)
    with pytest.raises(NumericalError, match="NaN or \\+inf"):
        minimize_cbo(lambda x: x.sum(-1) * math.nan, torch.zeros(2))


def test_alpha_of_1e15_in_float32():
    """Oracle: the known minimiser of the canyon."""
    source = seeded(0)
    with pytest.warns(UserWarning, match="variance of the cloud"):
        cbo = CBO(canyon, torch.full((2,), 8.0), num_particles=200, dt=0.01, sigma=1.6, noise="isotropic", alpha=1e15,
                  spread=0.5, generator=source)  # fmt: skip
    assert float(cbo.run(250, tol=0).x.norm()) < 0.5


def test_a_wrong_shape_names_the_right_one():
    """Oracle: the message."""
    with pytest.raises(ShapeError, match=r"\(N,\) = \(10,\) for each cloud \(N, d\) = \(10, 2\)"):
        minimize_cbo(lambda x: x, points(10, 2))
    with pytest.raises(ShapeError, match="vectorize=True"):
        minimize_cbo(lambda x: x.sum(), points(10, 2))
    with pytest.raises(ShapeError, match="float"):
        minimize_cbo(lambda x: 1.0, points(10, 2))


def test_warns_of_noise_and_steps_that_are_too_large():
    """Oracle: the conditions: 1.24 for sigma 5.1, whose paths contract; dim σ² beyond; λ dt = 2."""
    with pytest.warns(UserWarning, match="paths contract nonetheless"):
        CBO(bowl, dim=20, dt=0.01, sigma=5.1)
    with pytest.warns(UserWarning, match="do not contract either"):
        CBO(bowl, dim=20, noise="isotropic", sigma=2.0)
    with pytest.warns(UserWarning, match="beyond the consensus"):
        CBO(bowl, dim=2, dt=2.0, sigma=0.0, drift=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CBO(bowl, dim=20, dt=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha >= 0"),
        ({"alpha": "all"}, "ess"),
        ({"num_particles": 1}, "num_particles >= 2"),
        ({"dt": 0.0}, "dt > 0"),
        ({"drift": 0.0}, "drift > 0"),
        ({"sigma": -1.0}, "sigma >= 0"),
        ({"noise": "pink"}, "noise must be"),
        ({"moves": "some"}, "moves must be"),
        ({"batch_size": 101}, "batch_size"),
        ({"kick_below": 0.0}, "kick_below"),
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"memory_drift": -1.0}, "memory_drift"),
        ({"moves": "full", "batch_size": 10, "memory_drift": 1.0}, "not evaluated"),
        ({"bounds": (1.0, 0.0)}, "low < high"),
        ({"bounds": (0.0, math.inf)}, "finite"),
        ({"bounds": (0.0, 1.0), "at_bounds": "stop"}, "at_bounds"),
        ({"vectorize": True, "map_fn": map}, "two ways"),
        ({"num_runs": 0}, "num_runs >= 1"),
    ],
)
def test_refuses_bad_options(options, message):
    """Oracle: the documented errors, before any evaluation."""

    def f(x):
        raise AssertionError("evaluated")

    with pytest.raises(ArgumentError, match=message):
        CBO(f, dim=2, **options)


def test_refuses_what_does_not_fit():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentTypeError, match="float32 or float64"):
        CBO(bowl, torch.zeros(3, dtype=torch.float16))
    with pytest.raises(ArgumentTypeError, match="callable"):
        CBO(3, dim=2)
    with pytest.raises(ArgumentTypeError, match="x0 to be a tensor, got list"):
        CBO(bowl, [0.0, 0.0])
    for name in ("dim", "num_particles", "num_runs", "batch_size"):
        with pytest.raises(ArgumentTypeError, match=f"{name} to be an integer"):
            CBO(bowl, **{"dim": 2, name: 20.5})
    with pytest.raises(NumericalError, match="x0 has NaN or Inf"):
        CBO(bowl, torch.tensor([0.0, math.nan]))
    with pytest.raises(ArgumentError, match="number of coordinates"):
        CBO(bowl)
    with pytest.raises(ShapeError, match="disagree"):
        CBO(bowl, torch.zeros(3), dim=2)
    with pytest.raises(ShapeError, match="holds 5 particles"):
        CBO(bowl, torch.zeros(5, 3), num_particles=6)
    with pytest.raises(ShapeError, match="expected x0"):
        CBO(bowl, torch.zeros(4, 5, 3), num_runs=2)
    with pytest.raises(ArgumentError, match="max_steps >= 1"):
        CBO(bowl, dim=2).run(0)


def test_diverging_paths_are_an_error():
    """Oracle: noise that no path survives."""
    with pytest.warns(UserWarning, match="do not contract either"):
        cbo = CBO(lambda x: -x.square().sum(-1), dim=2, sigma=1e4, generator=seeded(0))
    with pytest.raises(NumericalError):
        cbo.run(2000, tol=0)
