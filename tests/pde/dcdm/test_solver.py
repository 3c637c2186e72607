"""The deep conjugate direction solver against SciPy's direct one; bad input."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError, NumericalError, ShapeError
from hesse.linalg import PoissonStencil, Status, as_linear_operator, cg, minres
from hesse.pde.dcdm import (
    DCDMNet,
    DeepConjugateDirection,
    conjugate_directions,
    ritz_training_set,
)
from tests.pde.dcdm.cases import identity, obstacle, right_hand_sides, scipy_matrix, seeded


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
    monkeypatch.setattr("hesse.pde.dcdm.solver._WEIGHTS", {2: tmp_path / "cut.safetensors"})
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
