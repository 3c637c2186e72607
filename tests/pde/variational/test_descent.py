"""Descent against manufactured solutions, finite differences, its own rates and bounds, and the deep Ritz baseline."""

from math import pi

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ConvergenceError, NumericalError, ShapeError
from hesse.pde.barron import PlaneWaveSeries, SineSeries
from hesse.pde.variational import DeepRitz, EllipticEnergy, PreconditionedDescent, chebyshev_potential


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def semilinear(dim, c):
    solution = SineSeries(torch.tensor([[1] * dim, [2] * dim]), torch.tensor([1.0, 0.5], dtype=torch.float64))
    return EllipticEnergy(dim, potential=[0, 0, 0, 0, c / 4], source=solution.zero()).with_solution(solution), solution


def curved(u, p):
    size = p.square().sum(dim=1)
    return size / 2 + (1 + size).sqrt()


def error(found, solution):
    return float((found - solution).h1_norm() / solution.h1_norm())


def test_linear_case_takes_one_step():
    """Oracle: with V = 0, preconditioner (-Δ)⁻¹ and step 1 the first iterate is exact."""
    solution = SineSeries(torch.tensor([[1, 3], [2, 2]]), torch.tensor([1.0, -0.3], dtype=torch.float64))
    energy = EllipticEnergy(2, source=solution.neg_laplacian())
    for backend in ("sparse", "grid"):
        solver = PreconditionedDescent(energy, backend=backend, step=1.0, shift=0.0, num_modes=8).fit()
        assert solver.n_iter_ == 1
        assert error(solver.solution_, solution) <= 1e-13


@pytest.mark.parametrize(
    "coefficient",
    [None, SineSeries(torch.tensor([[0, 0], [2, 0]]), torch.tensor([1.0, 0.5], dtype=torch.float64), (False, False))],
)
def test_derivatives_of_the_energy(coefficient):
    """Oracle: central differences of E and of DE along a random direction, with and without a(x)."""
    generator = seeded(1)
    u, v, f = (
        SineSeries(
            torch.randint(1, 4, (4, 2), generator=generator), torch.randn(4, dtype=torch.float64, generator=generator)
        )
        for _ in range(3)
    )
    energy = EllipticEnergy(2, potential=[0.3, 0, 0.5, 0, 0.7], source=f, coefficient=coefficient)
    h = 1e-4
    slope = (energy.value(u + v * h) - energy.value(u - v * h)) / (2 * h)
    assert float(energy.derivative(u).inner(v, gradient=False)) == pytest.approx(slope, rel=1e-6)
    change = (energy.derivative(u + v * h) - energy.derivative(u - v * h)) * (0.5 / h)
    gap = energy.hvp(u, v) - change
    assert float(gap.l2_norm()) <= 1e-6 * float(change.l2_norm())


def test_torus_derivative_with_odd_powers():
    """Oracle: central differences, for a potential with linear and cubic terms on the torus."""
    generator = seeded(2)
    u, v = (
        PlaneWaveSeries.cosines(
            torch.randint(-2, 3, (3, 2), generator=generator), torch.randn(3, dtype=torch.float64, generator=generator)
        )
        for _ in range(2)
    )
    energy = EllipticEnergy(2, potential=[0.2, 0.4, 1.0, 0.3, 0.5], source=v, boundary="periodic", allow_nonconvex=True)
    h = 1e-4
    slope = (energy.value(u + v * h) - energy.value(u - v * h)) / (2 * h)
    assert float(energy.derivative(u).inner(v, gradient=False)) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(("dim", "sizes"), [(1, (32, 64)), (2, (16, 32))])
def test_steps_do_not_depend_on_the_mesh(dim, sizes):
    """Oracle: the manufactured solution, the certified rate, and the same number of steps on both meshes."""
    energy, solution = semilinear(dim, 20.0)
    counts = []
    for modes in sizes:
        solver = PreconditionedDescent(energy, backend="grid", step=0.2, num_modes=modes).fit()
        report = solver.certificate_report()
        assert solver.converged_
        assert error(solver.solution_, solution) <= 1e-9
        assert report.observed_rate <= 1 - report.strong_convexity / report.smoothness
        assert report.holds
        counts.append(solver.n_iter_)
    assert max(counts) - min(counts) <= 1


def test_backends_agree_and_bound_the_error():
    """Oracle: the manufactured solution; the a-posteriori bound holds at every iterate."""
    energy, solution = semilinear(2, 1.0)
    for backend in ("sparse", "grid"):
        errors = []
        solver = PreconditionedDescent(energy, backend=backend, num_modes=16, truncation=1e-8, tol=1e-7)
        solver.fit(observe_fn=lambda _t, u, e=errors: e.append(float((u - solution).h1_norm())))
        assert solver.converged_
        for record, gap in zip(solver.history_, errors, strict=True):
            assert gap <= record.error_bound * (1 + 1e-9)
            assert record.energy >= energy.value(solution) - 1e-9


@pytest.mark.parametrize("accelerate", ["anderson", "newton", "nesterov"])
def test_acceleration_takes_fewer_steps(accelerate):
    """Oracle: plain descent on the same problem, and the manufactured solution."""
    energy, solution = semilinear(1, 20.0)
    if accelerate == "nesterov":
        energy = EllipticEnergy(1, potential=energy.potential, source=energy.source, Lam=11.0)
    plain = PreconditionedDescent(energy, backend="grid", num_modes=32, tol=1e-9).fit()
    fast = PreconditionedDescent(energy, backend="grid", accelerate=accelerate, num_modes=32, tol=1e-9).fit()
    assert fast.converged_
    assert fast.n_iter_ < plain.n_iter_
    assert error(fast.solution_, solution) <= 1e-8
    assert fast.certificate_report().holds is None


def test_warm_start_saves_steps():
    """Oracle: the count from zero."""
    energy, _ = semilinear(1, 20.0)
    cold = PreconditionedDescent(energy, backend="grid", num_modes=32).fit()
    near, _ = semilinear(1, 19.0)
    start = PreconditionedDescent(near, backend="grid", num_modes=32).fit().solution_
    warm = PreconditionedDescent(energy, backend="grid", num_modes=32).fit(initial=start)
    assert warm.n_iter_ < cold.n_iter_


@pytest.mark.parametrize("dim", [6, 30])
def test_dimension_does_not_matter(dim):
    """Oracle: the manufactured solution of two waves on the torus."""
    freqs = torch.zeros(2, dim, dtype=torch.int64)
    freqs[0, :2], freqs[1, -2:] = torch.tensor([1, -2]), torch.tensor([2, 1])
    solution = PlaneWaveSeries.cosines(freqs, torch.tensor([0.6, -0.4], dtype=torch.float64))
    energy = EllipticEnergy(
        dim, potential=[0, 0, 0.5, 0, 0.25], source=solution.zero(), boundary="periodic"
    ).with_solution(solution)
    solver = PreconditionedDescent(energy, step=0.7, truncation=1e-8, tol=1e-7).fit()
    assert solver.converged_
    assert error(solver.solution_, solution) <= 1e-6


def test_quasilinear_rate_and_mesh():
    """Oracle: the certified factor 1 - α/β, and a finer grid."""
    source = SineSeries(torch.tensor([[1, 1], [2, 1]]), torch.tensor([10.0, 5.0], dtype=torch.float64))
    energy = EllipticEnergy(2, integrand=curved, source=source, Lam=2.0)
    fine, coarse = (PreconditionedDescent(energy, backend="grid", num_modes=n, tol=1e-8).fit() for n in (32, 16))
    report = fine.certificate_report()
    assert report.rate_applies
    assert report.observed_rate <= report.certified_rate
    assert error(coarse.solution_, fine.solution_) <= 1e-4


def test_chebyshev_potential():
    """Oracle: sinh itself, and a solution whose distance keeps ε/α."""
    potential, gap = chebyshev_potential(torch.sinh, 2.0, 9)
    grid = torch.linspace(-2, 2, 101, dtype=torch.float64)
    slope = sum(k * v * grid ** (k - 1) for k, v in enumerate(potential) if k)
    assert float((slope - torch.sinh(grid)).abs().max()) <= gap <= 1e-6
    assert not any(potential[1::2])


def test_deep_ritz_learns_and_projects():
    """Oracle: the closed form sin(πx) of a linear problem, and the error bound of its projection."""
    torch.manual_seed(0)
    solution = SineSeries(torch.tensor([[1]]), torch.tensor([1.0], dtype=torch.float64))
    energy = EllipticEnergy(1, source=solution.neg_laplacian())
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    ritz = DeepRitz(net, energy, max_steps=200, learning_rate=1e-2, num_points=64, generator=seeded(3)).fit()
    x = torch.linspace(0, 1, 50)[:, None]
    gap = ritz.predict(x) - torch.sin(pi * x[:, 0])
    assert float(gap.abs().max()) <= 0.1
    series = ritz.project(16)
    first = PreconditionedDescent(energy, backend="grid", num_modes=16).fit(initial=series).history_[0]
    assert float((series - solution).h1_norm()) <= first.error_bound * (1 + 1e-6)


def test_warnings_tell_what_is_wrong():
    """Oracle: a source of one on the boundary, and a cap of three terms."""
    energy = EllipticEnergy(1, source=lambda x: torch.ones(len(x), dtype=x.dtype))
    with pytest.warns(UserWarning, match="last octave"):
        PreconditionedDescent(energy, backend="grid", max_steps=1).fit()
    capped, _ = semilinear(1, 1.0)
    with pytest.warns(UserWarning, match="cap of 3 terms"):
        solver = PreconditionedDescent(capped, max_terms=3, max_steps=5, step=0.5).fit()
    assert solver.certificate_report().capped


def test_bad_input():
    """Oracle: the error classes that the docstrings promise."""
    energy, solution = semilinear(2, 20.0)
    with pytest.raises(ArgumentError, match="not strongly convex"):
        EllipticEnergy(1, potential=[0, 0, -20.0, 0, 1.0], source=SineSeries(torch.tensor([[1]]), torch.ones(1)))
    with pytest.raises(ArgumentError, match="needs Lam"):
        EllipticEnergy(2, integrand=curved, source=solution)
    with pytest.raises(ShapeError, match="PlaneWaveSeries"):
        EllipticEnergy(2, potential=[0, 0, 0.5], source=solution, boundary="periodic")
    with pytest.raises(ArgumentError, match="odd power"):
        PreconditionedDescent(EllipticEnergy(2, potential=[0, 0.1, 0.5], source=solution)).fit()
    with pytest.raises(ArgumentError, match="below 2/β"):
        PreconditionedDescent(EllipticEnergy(2, source=solution), step=2.5).fit()
    with pytest.raises(ArgumentError, match="needs backend='grid'"):
        PreconditionedDescent(energy, accelerate="newton").fit()
    with pytest.raises(ArgumentError, match="at most 3 axes"):
        PreconditionedDescent(semilinear(4, 1.0)[0], backend="grid").fit()
    with pytest.raises((ConvergenceError, NumericalError)):
        PreconditionedDescent(energy, backend="grid", step=1.0, num_modes=16).fit()
    with pytest.raises(ArgumentError, match="call fit first"):
        PreconditionedDescent(energy).predict(torch.zeros(1, 2))
