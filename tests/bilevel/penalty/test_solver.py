import math
from dataclasses import replace

import pytest
import torch

from hesse.bilevel import (
    F2SA,
    F3SA,
    BilevelProblem,
    Budget,
    NoiseSampler,
    PenaltyBilevel,
    penalty_hypergradient,
    problems,
)
from hesse.errors import ArgumentError
from hesse.linalg import Ball, Box
from tests.bilevel.cases import relative


def smooth(**options):
    """g_yy between 2/3 and 1; ∇Φ is 6-Lipschitz."""
    return problems.quadratic(6, 10, seed=5, condition=1.5, **options)


def noisy(case, noise, seed=0):
    """The same losses with standard normal noise on every gradient, the same at every point of a batch."""
    p = case.problem
    sizes = (p.x_layout.size, p.y_layout.size)

    def observed(loss):
        def call(x, y, batch):
            value = loss(x, y, None)
            return value if batch is None else value + noise * (batch[0].mean(0) @ x + batch[1].mean(0) @ y)

        return call

    return replace(
        p,
        upper=observed(p.upper),
        lower=observed(p.lower),
        upper_sampler=NoiseSampler(sizes, seed=seed),
        lower_sampler=NoiseSampler(sizes, seed=seed + 1),
    )


SOLVERS = {
    "single": lambda p: PenaltyBilevel(p, lr=0.05, lr_lower=0.5),
    "single, centres": lambda p: PenaltyBilevel(p, lr=0.02, lr_lower=0.4, rho=2.0),
    "double": lambda p: PenaltyBilevel(p, "double", lr=0.1, lr_lower=0.5, batch_growth=0.2),
    "double, centres": lambda p: PenaltyBilevel(p, "double", lr=0.1, lr_lower=0.4, rho=2.0),
    "F2SA": lambda p: F2SA(p, lr=0.1, lr_lower=0.8, schedule="1/3", multiplier=4.0),
    "F3SA": lambda p: F3SA(p, lr=0.02, lr_lower=0.8, schedule="1/3", multiplier=4.0),
}


SLOW = ("double", "double, centres", "F2SA")


@pytest.mark.parametrize("name", list(SOLVERS))
def test_reaches_the_penalised_problem(name):
    """Oracle: penalty_hypergradient at the solver's own s vanishes where the solver rests; the exact one is O(s)."""
    case = smooth()
    first = float(case.hypergradient(case.problem.x0).norm())
    solver = SOLVERS[name](case.problem)
    result = solver.run(Budget(iterations=200 if name in SLOW else 1500), trace_every=1500)
    sigma = result.extra["sigma"]
    penalised = penalty_hypergradient(case.problem, result.x, sigma, richardson=False).grad
    assert float(penalised.norm()) < 0.03 * first
    assert result.trace[-1].exact_norm < 3 * sigma * first
    assert relative(result.extra["z"], case.lower_solution(result.x)) < 0.01


def test_penalty_value_and_gap():
    """Oracle: ψ_s and its gap from the closed form of both inner minima."""
    case = smooth()
    solver = PenaltyBilevel(case.problem, "double", lr=1e-12, lr_lower=0.5, inner_steps=200, sigma=0.1)
    result = solver.run(Budget(iterations=2))
    x, y, z = result.x, result.y, result.extra["z"]
    sigma = result.extra["sigma"]
    assert sigma == pytest.approx(0.1 * 3**-0.25)
    total = [float(sigma * case.problem.upper(x, y, None) + case.problem.lower(x, y, None))]
    total.append(float(case.problem.lower(x, z, None)))
    assert result.extra["penalty_value"] == pytest.approx((total[0] - total[1]) / sigma, rel=1e-9)
    assert result.extra["penalty_gap"] > 0
    assert result.extra["penalty_value"] < float(case.value(x))  # the optimistic value from below


def test_single_loop_by_its_formulas():
    """Oracle: the updates written out on the same noise, momentum included."""
    case = smooth()
    solver = PenaltyBilevel(noisy(case, 0.3), lr=0.05, lr_lower=0.4, sigma=0.2, rho=2.0, momentum=0.3)
    twin = noisy(case, 0.3)
    x, y = twin.x0, twin.y0
    z, yc, zc = y, y, y
    upper_sampler, lower_sampler = (NoiseSampler((6, 10), seed=stream) for stream in (0, 1))
    tracked, old = None, None

    def gradients(point, batches):
        leaves = [t.clone().requires_grad_() for t in point]
        x, y, z = leaves
        upper, lower = batches
        f_x, f_y = torch.autograd.grad(twin.upper(x, y, upper), (x, y))
        g_x, g_y = torch.autograd.grad(twin.lower(x, y, lower), (x, y))
        h_x, h_y = torch.autograd.grad(twin.lower(x, z, lower), (x, z))
        return [f_x, f_y, g_y, h_y, g_x - h_x]

    for k in range(5):
        batches = upper_sampler.draw(), lower_sampler.draw()
        fresh = gradients((x, y, z), batches)
        eta = max(0.3, (k + 1) ** (-2 / 3))
        if tracked is not None:
            past = gradients(old, batches)
            fresh = [q + (1 - eta) * (t - p) for q, t, p in zip(fresh, tracked, past, strict=True)]
        tracked, old = fresh, (x, y, z)
        sigma = max(0.2 * (k + 1) ** -0.25, 1e-3)
        f_x, f_y, g_y, h_y, difference = tracked
        x, y, z = (
            x - 0.05 * (f_x + difference / sigma),
            y - 0.4 * (sigma * f_y + g_y + (y - yc) / 2),
            z - 0.4 * (h_y + (z - zc) / 2),
        )
        yc, zc = (yc + y) / 2, (zc + z) / 2
        solver.run(Budget(iterations=k + 1))
        for found, expected in zip((solver.x, solver.y, solver.z, solver.y_center), (x, y, z, yc), strict=True):
            torch.testing.assert_close(found, expected)


def test_double_loop_by_its_formulas():
    """Oracle: the updates written out without noise."""
    case = smooth()
    solver = PenaltyBilevel(case.problem, "double", lr=0.05, lr_lower=0.4, sigma=0.2, rho=2.0, inner_steps=3)
    g = torch.func.grad(lambda x, y: case.problem.lower(x, y, None), argnums=(0, 1))
    f = torch.func.grad(lambda x, y: case.problem.upper(x, y, None), argnums=(0, 1))
    x, yc, zc = case.problem.x0, case.problem.y0, case.problem.y0
    u, w = yc, zc
    for k in range(3):
        sigma, u, w = 0.2 * (k + 1) ** -0.25, yc, zc
        for _ in range(3):
            u, w = (
                u - 0.4 * (sigma * f(x, u)[1] + g(x, u)[1] + (u - yc) / 2),
                w - 0.4 * (g(x, w)[1] + (w - zc) / 2),
            )
        yc, zc = (yc + u) / 2, (zc + w) / 2
        x = x - 0.05 * (f(x, u)[0] + (g(x, u)[0] - g(x, w)[0]) / sigma)
    result = solver.run(Budget(iterations=3))
    torch.testing.assert_close(result.x, x)
    torch.testing.assert_close(result.y, u)
    torch.testing.assert_close(result.extra["z"], w)


def test_f2sa_by_its_formulas():
    """Oracle: the updates written out without noise."""
    case = smooth()
    solver = F2SA(case.problem, lr=0.1, lr_lower=0.8, inner_steps=2, multiplier=2.0, multiplier_increment=0.5)
    g = torch.func.grad(lambda x, y: case.problem.lower(x, y, None), argnums=(0, 1))
    f = torch.func.grad(lambda x, y: case.problem.upper(x, y, None), argnums=(0, 1))
    x, y, z = case.problem.x0, case.problem.y0, case.problem.y0
    for k in range(3):
        multiplier, gamma = 2.0 * (1 + 0.5 * k) ** (1 / 7), 0.8 * (k + 1) ** (-4 / 7)
        for _ in range(2):
            alpha = gamma / (2 * multiplier)
            y, z = y - alpha * (f(x, y)[1] + multiplier * g(x, y)[1]), z - gamma * g(x, z)[1]
        x = x - 0.1 * (k + 1) ** (-4 / 7) * (f(x, y)[0] + multiplier * (g(x, y)[0] - g(x, z)[0]))
    result = solver.run(Budget(iterations=3))
    for found, expected in ((result.x, x), (result.y, y), (result.extra["z"], z)):
        torch.testing.assert_close(found, expected)


def test_calls_are_counted():
    """Oracle: three gradients a step, six with momentum from the second step on, none of second order."""
    case = smooth()
    for momentum, expected in ((1.0, 3 * 10), (0.02, 3 + 6 * 9)):
        solver = PenaltyBilevel(noisy(case, 0.1), lr=0.01, lr_lower=0.5, momentum=momentum)
        counts = solver.run(Budget(iterations=10)).counts
        assert counts.calls == expected
        assert counts.hessian_products == counts.jacobian_products == 0
        assert counts.samples == 20
    exact = PenaltyBilevel(case.problem, lr=0.01, lr_lower=0.5).run(Budget(iterations=10)).counts
    assert exact.calls == 30  # nothing to average without samplers


def test_sharing_samples_takes_the_noise_out_of_the_quotient():
    """Oracle: the noise of g_x enters by its share of f alone, not by 1/s."""
    case = smooth()

    class Independent(PenaltyBilevel):
        def draw_batches(self):
            return self.draw_upper(), self.draw_lower(), self.draw_lower()

    def spread(solver_class):
        firsts = [
            solver_class(noisy(case, 1.0, seed=10 * s), lr=1e-9, lr_lower=0.1, sigma=0.01).step() for s in range(200)
        ]
        return float(torch.stack(firsts).std(0).mean())

    assert spread(PenaltyBilevel) == pytest.approx(1.0, rel=0.1)
    assert spread(Independent) > 50


def test_sets_are_obeyed_and_stationary_points_found():
    """Oracle: the exact hypergradient of the box problem; a projected step from the end of the run stays there."""
    case = problems.box_quadratic(5, 8, seed=2)
    problem = replace(case.problem, project_x=Ball(0.5))
    result = PenaltyBilevel(problem, lr=0.1, lr_lower=0.7, sigma=0.02, sigma_decay=0.5).run(
        Budget(iterations=3000), trace_every=3000
    )
    assert float(result.x.norm()) <= 0.5 + 1e-12
    assert float(result.y.abs().max()) <= 0.5
    rest = result.x - Ball(0.5)(result.x - case.hypergradient(result.x))
    assert float(rest.norm()) < 0.01


def test_centres_hold_a_concave_direction():
    """Oracle: g = (y² - 1)²/4 has minima at ±1 and is concave between; f prefers the right one, S(x) ∋ both."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: (y - 1).square().sum() / 2 + (x - 0.5).square().sum() / 2,
        lower=lambda x, y, batch: ((y.square() - 1).square() / 4).sum() + 0 * x.sum(),
        x0=torch.zeros(1, dtype=torch.float64),
        y0=torch.full((1,), 0.01, dtype=torch.float64),
    )
    solver = PenaltyBilevel(problem, "double", lr=0.3, lr_lower=0.2, rho=0.5)
    result = solver.run(Budget(iterations=300), trace_every=300)
    assert float(result.x - 0.5) == pytest.approx(0.0, abs=1e-6)
    assert float(result.y) == pytest.approx(1.0, abs=1e-3)
    assert solver.rho == 0.5


def test_a_centre_that_does_not_hold_is_tightened():
    """Oracle: g = -2y² within a box is 4-weakly convex; ρ = 1 makes the inner loop grow and is halved."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: (y - x).square().sum(),
        lower=lambda x, y, batch: -2 * y.square().sum() + 0 * x.sum(),
        x0=torch.ones(1, dtype=torch.float64),
        y0=torch.full((1,), 1e-6, dtype=torch.float64),
        project_y=Box(-1.0, 1.0),
    )
    solver = PenaltyBilevel(problem, "double", lr=1e-6, lr_lower=0.2, rho=1.0)
    solver.run(Budget(iterations=1))
    assert solver.rho == 0.5


def test_trust_radius_shortens_the_quotient():
    """Oracle: the radius itself; f is free of x here."""
    case = smooth()
    problem = replace(case.problem, upper=lambda x, y, batch: 100 * y.sum())
    free = PenaltyBilevel(problem, "double", lr=1e-6, lr_lower=0.5).step()
    held = PenaltyBilevel(problem, "double", lr=1e-6, lr_lower=0.5, trust_radius=1.0).step()
    assert float(free.norm()) > 10
    torch.testing.assert_close(held, free / free.norm())


@pytest.mark.parametrize("name", list(SOLVERS))
def test_resume_is_exact(name, tmp_path):
    """Oracle: the uninterrupted run, bit for bit."""
    whole = SOLVERS[name](noisy(smooth(), 0.3))
    whole.run(Budget(iterations=4))
    whole.save(tmp_path / "half.safetensors")
    expected = whole.run(Budget(iterations=9))
    other = SOLVERS[name](noisy(smooth(), 0.3, seed=50))
    other.load(tmp_path / "half.safetensors")
    found = other.run(Budget(iterations=9))
    for name in ("x", "y"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    torch.testing.assert_close(found.extra["z"], expected.extra["z"], rtol=0, atol=0)
    assert found.counts == expected.counts


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    p = smooth().problem
    for options, name in (
        ({"lr": 0.0}, "lr"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma_min": -1.0}, "sigma_min"),
        ({"sigma_decay": -1.0}, "sigma_decay"),
        ({"rho": 0.0}, "rho"),
        ({"trust_radius": -1.0}, "trust_radius"),
        ({"momentum": 0.0}, "momentum"),
        ({"prox_step": 1.5}, "prox_step"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"batch_growth": math.nan}, "batch_growth"),
        ({"mode": "triple"}, "mode"),
    ):
        with pytest.raises(ArgumentError, match=name):
            PenaltyBilevel(p, **{"lr": 0.1, "lr_lower": 0.1, **options})
    for options, name in (
        ({"multiplier": 0.0}, "multiplier"),
        ({"multiplier_increment": -1.0}, "multiplier_increment"),
        ({"schedule": "1/2"}, "schedule"),
        ({"inner_steps": 0}, "inner_steps"),
    ):
        with pytest.raises(ArgumentError, match=name):
            F2SA(p, **{"lr": 0.1, "lr_lower": 0.1, **options})
    with pytest.raises(ArgumentError, match="F3SA: expected 0 < momentum"):
        F3SA(p, lr=0.1, lr_lower=0.1, momentum=0.0)
    with pytest.raises(ArgumentError, match="project_joint"):
        F3SA(replace(p, project_joint=lambda x, y: (x, y)), lr=0.1, lr_lower=0.1)
    with pytest.raises(ArgumentError, match="constraint"):
        PenaltyBilevel(replace(p, constraint=lambda x, y: y), lr=0.1, lr_lower=0.1)


def test_too_fine_a_penalty_for_single_precision_warns():
    """Oracle: the dtype and the floor of s."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: (x * y).sum(),
        x0=torch.ones(1),
        y0=torch.zeros(1),
    )
    with pytest.warns(UserWarning, match="too fine"):
        PenaltyBilevel(problem, lr=0.1, lr_lower=0.1, sigma_min=1e-4)
    PenaltyBilevel(problem, lr=0.1, lr_lower=0.1)
