"""The deep conjugate direction method against conjugate gradients, SciPy's direct solver and finite differences."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from scipy import sparse
from torch import nn

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError, ConvergenceError, NumericalError, ShapeError
from hesse.io import load_tensors, save_tensors
from hesse.linalg import Dense, PoissonStencil, Status, as_linear_operator, cg, minres
from hesse.pde.dcdm import (
    DCDMNet,
    DeepConjugateDirection,
    conjugate_directions,
    dcdm_loss,
    ritz_training_set,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_spd(n, seed=0, condition=1e3):
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(seed))).Q
    values = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
    matrix = basis * values @ basis.T
    return Dense((matrix + matrix.T) / 2, is_psd=True)


def obstacle(grid):
    """A grid of fluid with one box cut out, off centre."""
    fluid = torch.ones(grid, dtype=torch.bool)
    fluid[tuple(slice(n // 4, n // 2) for n in grid)] = False
    return fluid


def right_hand_sides(fluid, k, seed=0, dtype=torch.float64):
    b = torch.randn(fluid.numel(), k, generator=seeded(seed), dtype=torch.float64)
    return (b * fluid.reshape(-1, 1)).to(dtype)


def scipy_matrix(operator):
    """The fluid part of a stencil as a SciPy matrix, built here from the definition, cell by cell."""
    fluid = operator.fluid.numpy()
    cells = {tuple(c): i for i, c in enumerate(np.argwhere(fluid))}
    matrix = sparse.lil_matrix((len(cells), len(cells)))
    diagonal = operator.diagonal().reshape(operator.grid).numpy()
    for cell, i in cells.items():
        matrix[i, i] = diagonal[cell]
        for axis, h in enumerate(operator.spacing):
            for side in (1, -1):
                near = tuple(c + side * (a == axis) for a, c in enumerate(cell))
                if near in cells:
                    matrix[i, cells[near]] = -1 / h**2
    return matrix.tocsc()


def identity(r):
    return r


class Shift(nn.Module):
    """A network that is no good: it moves every residual two cells on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, residual, mask=None):
        moved = self.weight * residual.roll(2, dims=-1)
        return moved if mask is None else torch.where(mask, moved, 0)


class Constant(nn.Module):
    """A network whose every output is the same number."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))

    def forward(self, residual, mask=None):
        return 0 * residual + self.weight


# ---------------------------------------------------------------------------------------------- the iteration


@pytest.mark.parametrize("i_orth", [1, 2, 100])
def test_identity_is_conjugate_gradients(i_orth):
    """Oracle: textbook CG written out here, iterate by iterate, in float64 at n = 100."""
    operator = random_spd(100, condition=10)  # at more, rounding drives even two codes of CG apart
    b = torch.randn(100, dtype=torch.float64, generator=seeded(1))
    seen = []
    conjugate_directions(
        operator,
        b,
        identity,
        i_orth=i_orth,
        tol=1e-10,
        fallback=None,
        callback_fn=lambda _k, x, _r: seen.append(x.clone()),
    )
    x, r = torch.zeros_like(b), b.clone()
    p = r.clone()
    assert len(seen) > 20
    for iterate in seen:
        image = operator @ p
        alpha = (r @ r) / (p @ image)
        x, fresh = x + alpha * p, r - alpha * image
        p, r = fresh + (fresh @ fresh) / (r @ r) * p, fresh
        assert (iterate[:, 0] - x).norm() <= 1e-8 * x.norm()


def test_full_window_ends_in_n_steps_for_any_function():
    """Oracle: finite termination of conjugate directions; f is a random linear map, so rounding leaves 1e-7."""
    n = 30
    operator = random_spd(n, condition=100)
    mixed = torch.randn(n, n, dtype=torch.float64, generator=seeded(2))
    b = torch.randn(n, dtype=torch.float64, generator=seeded(3))
    solution = conjugate_directions(operator, b, lambda r: mixed @ r, i_orth=n, tol=1e-6, max_steps=n, fallback=None)
    assert bool(solution.converged)
    assert solution.num_steps <= n


@pytest.mark.parametrize("case", ["pretrained", "random", "useless", "three levels"])
def test_energy_error_never_grows(case):
    """Oracle: exact line search: ‖x - x*‖_A falls, whatever the network, with and without the fallback."""
    fluid = obstacle((24, 20))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    exact = cg(operator, b, rtol=1e-13, max_steps=2000).x
    network = {
        "random": lambda: DCDMNet(2, 4, generator=seeded(0)),
        "useless": Shift,
        "three levels": lambda: DCDMNet(2, 4, levels=3, generator=seeded(0)),
    }
    errors = []

    def keep(_step, x, _r):
        gap = x - exact
        errors.append((gap * (operator @ gap)).sum(0))

    for fallback in ("cg", None):
        solver = (
            DeepConjugateDirection.pretrained() if case == "pretrained" else DeepConjugateDirection(network[case]())
        )
        solver.fallback = fallback
        errors.clear()
        solver.solve(operator, b, max_steps=60, callback_fn=keep)
        energy = torch.stack(errors)
        assert bool((energy[1:] <= energy[:-1] * (1 + 1e-9) + 1e-24).all())


def test_useless_network_costs_a_factor_over_conjugate_gradients():
    """Oracle: the number of steps of cg; with bursts that double, at most a constant factor, here within 2.5."""
    fluid = obstacle((48, 48))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 3)
    plain = cg(operator, b, rtol=1e-6, max_steps=1000).num_steps
    solver = DeepConjugateDirection(Constant(0.0), max_steps=1000)
    assert solver.solve(operator, b).require().num_steps <= plain + 2  # zero output: the residual every time
    stuck = DeepConjugateDirection(Constant(1.0), max_steps=1000).solve(operator, b).require()
    assert stuck.num_steps <= 2.5 * plain
    assert bool((stuck.fallback_steps > 0).all())


def test_without_fallback_a_useless_network_stalls():
    """Oracle: the same system with the fallback converges; so the fallback is what did it."""
    fluid = obstacle((48, 48))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 1)
    solver = DeepConjugateDirection(Shift(), fallback=None, max_steps=300)
    stalled = solver.solve(operator, b)
    assert not bool(stalled.converged.any())
    assert stalled.status == Status.MAX_STEPS
    with pytest.raises(ConvergenceError, match="dcdm"):
        stalled.require()
    solver.fallback = "cg"
    assert bool(solver.solve(operator, b).converged.all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_output_that_is_no_direction_becomes_the_residual(value):
    """Oracle: the iterates with f(r) = r."""
    operator = PoissonStencil(torch.ones(12, 12, dtype=torch.bool), dtype=torch.float64)
    b = right_hand_sides(operator.fluid, 2)
    solution = DeepConjugateDirection(Constant(value)).solve(operator, b)
    plain = conjugate_directions(operator, b, identity)
    torch.testing.assert_close(solution.x, plain.x, rtol=0, atol=1e-12)
    assert torch.equal(solution.fallback_steps, solution.steps)


def test_columns_do_not_see_each_other():
    """Oracle: each column solved by itself; they stop at different steps."""
    fluid = obstacle((20, 20))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 4)
    b[:, 1] = 0
    b[:, 2] *= 1e-30
    b[:, 3] = operator @ torch.ones(400, dtype=torch.float64).where(fluid.flatten(), 0)
    solver = DeepConjugateDirection.pretrained()
    together = solver.solve(operator, b).require()
    for j in range(4):
        alone = solver.solve(operator, b[:, j]).require()
        assert int(together.steps[j]) == alone.num_steps
        torch.testing.assert_close(together.x[:, j], alone.x, rtol=1e-6, atol=1e-9 * float(alone.x.abs().max()))
    assert int(together.steps[1]) == 0
    assert not bool(together.x[:, 1].any())


def test_indefinite_operator_is_refused_with_the_step():
    """Oracle: a matrix with one negative eigenvalue."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64))
    b = torch.ones(4, dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"step \d+.*positive definite"):
        conjugate_directions(Dense(matrix, is_symmetric=True), b, identity)


def test_right_hand_side_outside_the_range_never_converges():
    """Oracle: the residual can not fall below the part of b in the null space."""
    operator = Dense(torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)), is_psd=True)
    solution = conjugate_directions(operator, torch.ones(3, dtype=torch.float64), identity, fallback=None)
    assert not bool(solution.converged)
    assert float(solution.residual) >= 1 - 1e-12


def test_history_starts_at_the_right_hand_side_and_ends_at_the_residual():
    """Oracle: the norms of b and of the explicit residual, and of those the callback sees."""
    fluid = obstacle((16, 16))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    seen = []
    solution = DeepConjugateDirection.pretrained().solve(
        operator, b, record_history=True, callback_fn=lambda _k, _x, r: seen.append(r.norm(dim=0))
    )
    torch.testing.assert_close(solution.history[0], b.norm(dim=0))
    torch.testing.assert_close(solution.history[1:], torch.stack(seen))
    torch.testing.assert_close(solution.history[-1], solution.residual, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------------- solutions


@pytest.mark.parametrize(
    ("grid", "spacing", "kind"),
    [
        ((32, 32), 1.0, "empty"),
        ((31, 45), 1.0, "solid"),
        ((33, 20), (0.5, 0.8), "solid"),
        ((12, 13, 11), 1.0, "empty"),
        ((10, 12, 14), (1.0, 1.2, 0.9), "solid"),
    ],
)
def test_solution_is_that_of_a_direct_solver(grid, spacing, kind):
    """Oracle: scipy.sparse.linalg.spsolve on a matrix built cell by cell; odd grids, anisotropic steps, 2-D and 3-D."""
    fluid = obstacle(grid)
    operator = PoissonStencil(fluid, spacing, empty=~fluid if kind == "empty" else None, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    solution = DeepConjugateDirection.pretrained(len(grid), tol=1e-11).solve(operator, b).require()
    inside = fluid.flatten()
    exact = scipy.sparse.linalg.spsolve(scipy_matrix(operator), b[inside].numpy())
    assert np.linalg.norm(solution.x[inside].numpy() - exact) <= 1e-8 * np.linalg.norm(exact)
    assert not bool(solution.x[~inside].any())


def test_start_is_used():
    """Oracle: a start one small step from the answer; the tolerance refers to the residual of the start."""
    fluid = obstacle((20, 20))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 1)
    exact = cg(operator, b, rtol=1e-13).x
    near = exact + 1e-3 * right_hand_sides(fluid, 1, seed=5)
    solver = DeepConjugateDirection.pretrained()
    solution = solver.solve(operator, b, near).require()
    assert (b - operator @ solution.x).norm() <= 1.01e-6 * (b - operator @ near).norm()
    again = solver.solve(operator, b, exact)
    assert bool(again.converged.all()) or again.status == Status.STAGNATED  # nothing is left to gain at rounding level
    torch.testing.assert_close(again.x, exact, rtol=1e-9, atol=1e-11)


def test_single_precision_system_is_solved_in_double():
    """Oracle: the float64 solution, rounded; a condition number of 10³ would leave float32 at 1e-4."""
    fluid = obstacle((48, 48))
    double = PoissonStencil(fluid, dtype=torch.float64)
    single = PoissonStencil(fluid, dtype=torch.float32)
    b = right_hand_sides(fluid, 1, dtype=torch.float32)
    solution = DeepConjugateDirection.pretrained(tol=1e-8).solve(single, b).require()
    assert solution.x.dtype == torch.float32
    exact = cg(double, b.double(), rtol=1e-12, max_steps=2000).x
    assert (solution.x.double() - exact).norm() <= 1e-6 * exact.norm()


def test_recurrences_in_single_precision_reach_its_rounding():
    """Oracle: the float64 solution, to within eps times the condition number; the column stops by itself."""
    operator = PoissonStencil(obstacle((16, 16)), dtype=torch.float32)
    b = right_hand_sides(operator.fluid, 2, dtype=torch.float32)
    found = conjugate_directions(operator, b, identity, tol=0.0, recurrence_dtype=torch.float32, max_steps=1000)
    assert found.status == Status.STAGNATED
    assert found.num_steps < 300
    exact = cg(operator.to(dtype=torch.float64), b.double(), rtol=1e-13).x
    assert (found.x - exact).norm() <= 1e-5 * exact.norm()


def test_matrix_with_a_mask_is_the_stencil():
    """Oracle: the same system as a stencil and as its CSR matrix with the mask."""
    fluid = obstacle((20, 24))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    solver = DeepConjugateDirection.pretrained()
    by_matrix = solver.solve(operator.to_csr(), b, mask=fluid)
    torch.testing.assert_close(by_matrix.x, solver.solve(operator, b).x, rtol=1e-7, atol=1e-9)


def test_enclosed_fluid():
    """Oracle: MINRES on the projected system; two regions and an isolated cell, walls all round."""
    fluid = torch.ones(16, 16, dtype=torch.bool)
    fluid[:, 7] = False
    fluid[0, 1] = fluid[1, 0] = False  # leaves (0, 0) alone
    operator = PoissonStencil(fluid, boundary="neumann", dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    solver = DeepConjugateDirection.pretrained(tol=1e-10)
    with pytest.raises(ArgumentError, match=r"3 fluid region\(s\)"):
        solver.solve(operator, b)
    solution = solver.solve(operator, b, project=True).require()
    regions = [torch.zeros(16, 16, dtype=torch.bool) for _ in range(3)]
    regions[0][0, 0] = True
    regions[1][:, :7], regions[2][:, 8:] = fluid[:, :7], fluid[:, 8:]
    regions[1][0, 0] = False
    projected = b.clone()
    for region in regions:
        inside = region.flatten()
        projected[inside] -= b[inside].mean(0)
        assert float(solution.x[inside].mean(0).abs().max()) < 1e-12
    reference = minres(operator, projected, rtol=1e-13).x
    for region in regions:
        reference[region.flatten()] -= reference[region.flatten()].mean(0)
    torch.testing.assert_close(solution.x, reference, rtol=0, atol=1e-7)
    torch.testing.assert_close(solver.solve(operator, projected).x, solution.x, rtol=0, atol=1e-9)


def test_one_outlet_opens_a_region():
    """Oracle: with a single empty cell the operator is definite, and any b is allowed."""
    fluid = torch.ones(12, 12, dtype=torch.bool)
    fluid[0, 0] = False
    operator = PoissonStencil(fluid, empty=~fluid, boundary="neumann", dtype=torch.float64)
    b = right_hand_sides(fluid, 1)
    solution = DeepConjugateDirection.pretrained(tol=1e-10).solve(operator, b).require()
    inside = fluid.flatten()
    exact = scipy.sparse.linalg.spsolve(scipy_matrix(operator), b[inside, 0].numpy())
    torch.testing.assert_close(solution.x[inside, 0].numpy(), exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max())


def test_preconditioner_for_flexible_cg():
    """Oracle: the solution of plain CG, in fewer steps; the sign of the network does not matter."""
    fluid = obstacle((64, 64))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    plain = cg(operator, b, rtol=1e-8)
    solver = DeepConjugateDirection.pretrained()
    for sign in (1, -1):
        with torch.no_grad():
            solver.network.exit.weight *= sign
            solver.network.exit.bias *= sign
        found = cg(operator, b, rtol=1e-8, preconditioner=solver.as_preconditioner(operator), flexible=True)
        assert bool(found.converged.all())
        assert found.num_steps < plain.num_steps / 2
        torch.testing.assert_close(found.x, plain.x, rtol=0, atol=1e-5 * float(plain.x.abs().max()))


@pytest.mark.parametrize("dim", [2, 3])
def test_pretrained_network_saves_steps_on_obstacles_it_never_saw(dim):
    """Oracle: the number of steps of cg; half the benchmark's bar, on grids the network was not trained on."""
    fluid = obstacle((80, 72) if dim == 2 else (28, 30, 26))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2, seed=11)
    plain = cg(operator, b, rtol=1e-6, max_steps=2000)
    found = DeepConjugateDirection.pretrained(dim).solve(operator, b).require()
    assert plain.num_steps >= (3 if dim == 2 else 2) * found.num_steps


# ---------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    ("grid", "levels"), [((16, 16), 1), ((15, 9), 1), ((13, 22), 3), ((7, 8, 9), 1), ((9, 6, 7), 2)]
)
def test_network_keeps_shape_scale_and_mask(grid, levels):
    """Oracle: the definition: shape of the input, the same direction for any scale, zero outside the mask, B apart."""
    network = DCDMNet(len(grid), 4, levels, generator=seeded(0)).double()
    r = torch.randn(3, *grid, dtype=torch.float64, generator=seeded(1))
    mask = obstacle(grid)
    r = torch.where(mask, r, 0)
    out = network(r, mask)
    assert out.shape == r.shape
    assert not bool(out[:, ~mask].any())
    torch.testing.assert_close(network(1e-9 * r, mask), out)
    torch.testing.assert_close(network(r[1:2], mask), out[1:2])
    assert bool(torch.isfinite(network(torch.zeros_like(r), mask)).all())


def test_architecture_has_the_papers_size():
    """Oracle: counting: 97.9 thousand weights in 3-D (the paper's 'about 1e5'), 32.7 thousand in 2-D."""
    count = {dim: sum(p.numel() for p in DCDMNet(dim).parameters()) for dim in (2, 3)}
    assert count == {2: 160 + 14 * 2320 + 17, 3: 448 + 14 * 6928 + 17}


def test_mask_channel_sees_the_mask():
    """Oracle: the same residual on two domains that both contain its support."""
    network = DCDMNet(2, 4, mask_channel=True, generator=seeded(0))
    r = torch.zeros(1, 12, 12)
    r[0, :3] = torch.randn(3, 12, generator=seeded(1))
    small = torch.zeros(12, 12, dtype=torch.bool)
    small[:3] = True
    large = small.clone()
    large[3:6] = True
    small_out, large_out = network(r, small)[0, :2], network(r, large)[0, :2]
    assert not torch.allclose(small_out / small_out.norm(), large_out / large_out.norm(), atol=1e-3)


def test_network_draws_from_its_generator_alone():
    """Oracle: torch's global generator stands where it stood; equal seeds, equal weights."""
    before = torch.get_rng_state()
    first, second = (DCDMNet(2, 4, generator=seeded(3)).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------- training


def test_loss_gradient_by_finite_differences():
    """Oracle: central differences in float64 of the loss along a random direction in weight space."""
    grid = (6, 5)
    operator = PoissonStencil(torch.ones(grid, dtype=torch.bool), dtype=torch.float64)
    network = DCDMNet(2, 3, generator=seeded(0)).double()
    b = torch.randn(30, 4, dtype=torch.float64, generator=seeded(1))
    weights = list(network.parameters())

    def loss():
        return dcdm_loss(operator, lambda x: network(x.T.reshape(-1, *grid)).reshape(4, -1).T, b)

    grads = torch.autograd.grad(loss(), weights)
    drawn = [torch.randn(w.shape, dtype=torch.float64, generator=seeded(2)) for w in weights]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, drawn, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for weight, d in zip(weights, drawn, strict=True):
                weight += step * d
            values.append(float(loss()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_loss_is_what_one_line_search_leaves():
    """Oracle: one step of the solver from zero; 0 for the exact inverse, and the scale of f cancels."""
    operator = random_spd(20)
    b = torch.randn(20, 3, dtype=torch.float64, generator=seeded(1))
    mixed = torch.randn(20, 20, dtype=torch.float64, generator=seeded(2))
    one = conjugate_directions(operator, b, lambda r: mixed @ r, max_steps=1)
    expected = (one.residual / b.norm(dim=0)).square().mean()
    for scale in (1.0, -300.0):
        torch.testing.assert_close(dcdm_loss(operator, lambda r, c=scale: c * mixed @ r, b), expected)
    inverse = torch.linalg.inv(operator.to_dense())
    assert float(dcdm_loss(operator, lambda r: inverse @ r, b)) < 1e-20
    assert float(dcdm_loss(operator, torch.zeros_like, b)) == 1.0


def test_ritz_values_are_eigenvalues():
    """Oracle: scipy's eigsh at both ends of the spectrum, all of dense eigh for a full run."""
    operator = PoissonStencil(torch.ones(14, 17, dtype=torch.bool), dtype=torch.float64)  # no eigenvalue twice
    few = ritz_training_set(operator, 100, generator=seeded(0), dtype=torch.float64)
    matrix = scipy_matrix(operator)
    for which, mine in (("SA", few.values[:3]), ("LA", few.values[-3:])):
        peer = np.sort(scipy.sparse.linalg.eigsh(matrix, 3, which=which, return_eigenvectors=False))
        np.testing.assert_allclose(mine.numpy(), peer, rtol=1e-8)
    gram = few.vectors.T @ few.vectors
    torch.testing.assert_close(gram, torch.eye(100, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(few.vectors.T @ (operator @ few.vectors), torch.diag(few.values), rtol=0, atol=1e-9)


def test_samples_weigh_the_low_half_nine_times():
    """Oracle: the second moments of the coefficients before normalisation, 81 to 1, over 4000 draws."""
    operator = PoissonStencil(torch.ones(12, 13, dtype=torch.bool), dtype=torch.float64)
    ritz = ritz_training_set(operator, 40, dtype=torch.float64, generator=seeded(0))
    assert ritz.num_low == 22
    b = ritz.sample(4000, generator=seeded(1))
    torch.testing.assert_close(b.norm(dim=0), torch.ones(4000, dtype=torch.float64))
    power = (ritz.vectors.T @ b).square().mean(1)
    assert float(power[:22].mean() / power[22:].mean()) == pytest.approx(81, rel=0.1)


def test_null_space_is_left_out_of_the_training_set():
    """Oracle: cells outside the fluid are the operator's null space."""
    fluid = obstacle((8, 8))
    ritz = ritz_training_set(PoissonStencil(fluid), 64, generator=seeded(0))
    assert len(ritz.values) <= int(fluid.sum())
    assert float(ritz.vectors[~fluid.flatten()].abs().max()) < 1e-6


def test_training_lowers_the_loss_and_the_steps():
    """Oracle: the loss of the untrained network, and its number of solver steps, on a square not seen in training."""
    operator = PoissonStencil(torch.ones(16, 16, dtype=torch.bool))
    solver = DeepConjugateDirection(DCDMNet(2, 8, generator=seeded(0)), fallback=None, max_steps=400)
    other = PoissonStencil(obstacle((20, 20)), dtype=torch.float64)
    b = right_hand_sides(other.fluid, 2)
    untrained = solver.solve(other, b).num_steps
    solver.fit(operator, num_ritz=100, num_steps=150, noise=0.1, generator=seeded(0))
    assert float(solver.losses[-20:].mean()) < 0.4 * float(solver.losses[:5].mean())
    assert solver.solve(other, b).require().num_steps < 0.5 * untrained


def test_training_on_drawn_obstacles():
    """Oracle: the loss falls; every operator drawn is another one, and the mask reaches the network."""
    drawn = []

    def draw(generator):
        fluid = torch.ones(12, 12, dtype=torch.bool)
        at = torch.randint(1, 8, (2,), generator=generator)
        fluid[at[0] : at[0] + 3, at[1] : at[1] + 3] = False
        drawn.append(tuple(at.tolist()))
        return PoissonStencil(fluid)

    full = PoissonStencil(torch.ones(12, 12, dtype=torch.bool))
    solver = DeepConjugateDirection(DCDMNet(2, 6, mask_channel=True, generator=seeded(0)))
    solver.fit(full, num_ritz=60, num_steps=120, operator_fn=draw, generator=seeded(0))
    assert len(drawn) == 120
    assert len(set(drawn)) > 20
    assert float(solver.losses[-20:].mean()) < 0.5 * float(solver.losses[:5].mean())


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_interrupted_training_goes_on_to_the_bit(tmp_path, noise):
    """Oracle: the uninterrupted run; in between everything passes through a file."""
    operator = PoissonStencil(torch.ones(10, 10, dtype=torch.bool))
    settings = {"num_ritz": 40, "num_steps": 30, "batch_size": 4, "noise": noise}
    whole = DeepConjugateDirection(DCDMNet(2, 4, generator=seeded(1))).fit(operator, generator=seeded(0), **settings)
    half = DeepConjugateDirection(DCDMNet(2, 4, generator=seeded(1)))
    half.fit(operator, generator=seeded(0), stop_after=13, **settings)
    save_tensors(tmp_path / "half.safetensors", half.state_dict())
    resumed = DeepConjugateDirection().load_state_dict(load_tensors(tmp_path / "half.safetensors"))
    resumed.resume(operator)
    assert torch.equal(resumed.losses, whole.losses)
    mine, theirs = resumed.state_dict(), whole.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_dead_network_is_started_again(monkeypatch):
    """Oracle: a network whose ReLUs are all dead has loss one; a fresh start learns. The check is moved to step 30."""
    monkeypatch.setattr("hesse.pde._dcdm_schedule._CHECK_AT", 30)
    operator = PoissonStencil(torch.ones(10, 10, dtype=torch.bool))
    network = DCDMNet(2, 6, generator=seeded(0))
    with torch.no_grad():
        network.exit.weight.zero_()
        network.exit.bias.zero_()
        for layer in (network.closing[0], network.after[0][-1].second):
            layer.weight.zero_()
            layer.bias.fill_(-1)
        network.coarse[-1].second.weight.zero_()
        network.entry.weight.zero_()
        network.entry.bias.zero_()
    solver = DeepConjugateDirection(network)
    solver.fit(operator, num_ritz=50, num_steps=60, generator=seeded(0))
    assert float(solver.losses[-10:].mean()) < 0.9
    with pytest.raises(ConvergenceError, match="attempt 1"):  # a network of one's own can not be started again
        DeepConjugateDirection(Constant(0.0)).fit(operator, num_ritz=50, num_steps=60, generator=seeded(0))


# ---------------------------------------------------------------------------------------------- bad input

STENCIL = PoissonStencil(obstacle((8, 8)), dtype=torch.float64)
GOOD = right_hand_sides(STENCIL.fluid, 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.solve(STENCIL, torch.ones(64, dtype=torch.float64)), ArgumentError, "b is not zero outside"),
        (lambda s: s.solve(STENCIL, GOOD, torch.ones_like(GOOD)), ArgumentError, "x0 is not zero outside"),
        (lambda s: s.solve(STENCIL, GOOD[:-1]), ShapeError, "expected b of shape"),
        (lambda s: s.solve(STENCIL, GOOD.float()), ShapeError, "convert one"),
        (lambda s: s.solve(STENCIL, GOOD * float("nan")), (ArgumentError, NumericalError), "NaN|outside"),
        (lambda s: s.solve(STENCIL, GOOD, mask=torch.ones(4, 4, dtype=torch.bool)), ShapeError, "does not fit"),
        (lambda s: s.solve(STENCIL, GOOD, mask=torch.ones(8, 8)), ArgumentTypeError, "boolean"),
        (lambda s: s.solve(STENCIL.to_csr(), GOOD), ArgumentError, "grid .* unknown"),
        (lambda s: s.solve(STENCIL, GOOD, tol=-1), ArgumentError, "tol"),
        (lambda _s: DeepConjugateDirection().solve(STENCIL, GOOD), ArgumentError, "no network yet"),
        (lambda _s: DeepConjugateDirection().state_dict(), ArgumentError, "no network yet"),
        (lambda _s: DeepConjugateDirection().resume(STENCIL), ArgumentError, "no unfinished training"),
        (lambda _s: DeepConjugateDirection(network="unet"), ArgumentTypeError, "module"),
        (lambda _s: DeepConjugateDirection(i_orth=-1), ArgumentError, "i_orth"),
        (lambda _s: DeepConjugateDirection(fallback="minres"), ArgumentError, "fallback"),
        (lambda _s: DeepConjugateDirection.pretrained(4), ArgumentError, "dim 2 or 3"),
        (lambda _s: DeepConjugateDirection().load_state_dict({}), ArgumentError, "config"),
        (lambda s: s.load_state_dict({"network.x": GOOD}), ArgumentError, "do not fit"),
        (lambda s: s.fit(STENCIL, (4, 4)), ShapeError, "does not fit"),
        (lambda s: s.fit(STENCIL.to_csr()), ArgumentError, "grid_shape"),
        (lambda s: s.fit(STENCIL, num_steps=0), ArgumentError, "num_steps"),
        (lambda s: s.fit(STENCIL, noise=1.5), ArgumentError, "noise"),
        (lambda s: s.fit(STENCIL, num_ritz=65), ArgumentError, "num_ritz <= 64"),
        (lambda _s: DCDMNet(1), ArgumentError, "dim"),
        (lambda _s: DCDMNet(2, 0), ArgumentError, "channels"),
        (lambda _s: DCDMNet(2, 4)(torch.zeros(8, 8)), ShapeError, "expected residuals"),
        (lambda _s: DCDMNet(2, 4)(torch.zeros(1, 8, 8), torch.ones(4, 4, dtype=torch.bool)), ShapeError, "mask"),
        (lambda _s: conjugate_directions(STENCIL, GOOD, lambda r: r[1:]), ShapeError, "direction_fn"),
        (lambda _s: conjugate_directions(STENCIL, GOOD, identity, fallback_ratio=0), ArgumentError, "fallback_ratio"),
        (
            lambda _s: conjugate_directions(STENCIL, GOOD, identity, recurrence_dtype=torch.float16),
            ArgumentError,
            "dtype",
        ),
        (lambda _s: ritz_training_set(STENCIL, 10, drop_below=99.0), ArgumentError, "drop_below"),
        (lambda _s: ritz_training_set(STENCIL, 10, margin=11), ArgumentError, "margin"),
        (lambda _s: ritz_training_set(STENCIL, 10, generator=seeded(0)).sample(0), ArgumentError, "num_samples"),
    ],
)
def test_bad_input_is_named(call, error, words):
    """Oracle: the documented error and the argument in its message."""
    with pytest.raises(error, match=words):
        call(DeepConjugateDirection(DCDMNet(2, 2, generator=seeded(0))))


def test_damaged_weights_are_an_artifact_error(tmp_path, monkeypatch):
    """Oracle: a truncated file."""
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    monkeypatch.setattr("hesse.pde.dcdm._WEIGHTS", {2: tmp_path / "cut.safetensors"})
    with pytest.raises(ArtifactError, match="cut"):
        DeepConjugateDirection.pretrained()


def test_operator_of_a_function_is_solved_too():
    """Oracle: the stencil itself, wrapped as a function on columns."""
    stencil = PoissonStencil(torch.ones(12, 12, dtype=torch.bool), dtype=torch.float64)
    wrapped = as_linear_operator(lambda x: stencil @ x, shape=stencil.shape, dtype=torch.float64, is_psd=True)
    b = right_hand_sides(stencil.fluid, 1)
    solver = DeepConjugateDirection.pretrained()
    found = solver.solve(wrapped, b, mask=stencil.fluid)
    torch.testing.assert_close(found.x, solver.solve(stencil, b).x, rtol=1e-9, atol=1e-12)
