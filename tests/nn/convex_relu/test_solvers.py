"""ADMM, interior points and sampled programmes against each other, dense factors, SciPy and optimality conditions."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.convex_relu import (
    StructuredSystem,
    admm_path,
    admm_relu,
    all_patterns,
    cone_outputs,
    constraint_violation,
    convex_objective,
    dual_bound,
    duality_certificate,
    exact_relu,
    sampled_relu,
    violating_directions,
)
from hesse.nn.convex_relu import structured as structured_module
from tests.nn.convex_relu.cases import F64, problem, seeded

BETA = 0.05


def dense_matrix(X, D, rho):
    """I + FᵀF/ρ + GᵀG, written out."""
    gates = D.mT.double()
    F = torch.cat([gate.unsqueeze(1) * X for gate in gates], 1)
    F = torch.cat([F, -F], 1)
    G = torch.block_diag(*[(2 * gate - 1).unsqueeze(1) * X for gate in gates] * 2)
    return torch.eye(F.shape[1], dtype=F64) + F.mT @ F / rho + G.mT @ G


@pytest.mark.parametrize("direct", [True, False])
def test_structured_solve(direct, monkeypatch):
    """Oracle: the dense matrix, with the factored core and with conjugate gradients."""
    if not direct:
        monkeypatch.setattr(structured_module, "_DIRECT", 0)
    X, _, D = problem()
    b = torch.randn(3, 2, 12, 4, generator=seeded(4), dtype=F64)
    found = StructuredSystem.build(X, D, 0.3).solve(b)
    wanted = torch.linalg.solve(dense_matrix(X, D, 0.3), b.flatten(1).mT).mT.view_as(b)
    torch.testing.assert_close(found, wanted, rtol=1e-10 if direct else 1e-7, atol=1e-10 if direct else 1e-8)


@pytest.mark.parametrize("loss", ["squared", "hinge", "bce"])
def test_admm_meets_interior_point(loss):
    """Oracle: another algorithm on the same programme; its gap bounds its own error."""
    X, y, D = problem()
    y, beta = (y, BETA) if loss == "squared" else (y.sign(), 5e-3)
    exact = exact_relu(X, y, D, beta=beta, loss=loss)
    assert exact.converged
    best = float(convex_objective(exact.V, X, y, D, beta, loss))
    assert exact.gap <= 1e-6 * best
    assert float(constraint_violation(exact.V, X, D)) < 1e-8
    found = admm_relu(X, y, D, beta=beta, loss=loss, tol=1e-6, max_steps=6000)
    assert abs(float(convex_objective(found.V, X, y, D, beta, loss)) / best - 1) < 1e-3
    torch.testing.assert_close(found.dual, exact.dual, atol=2e-2 * float(exact.dual.abs().max()), rtol=0)


def test_exact_is_optimal_over_all_networks():
    """Oracle: strong duality. With every pattern |zᵀ(Xu)₊| <= β on the whole sphere, and primal equals dual."""
    X, y, _ = problem(n=12, d=2)
    D = all_patterns(X)
    found = exact_relu(X, y, D, beta=BETA, tol=1e-9)
    directions = violating_directions(X, found.dual, num_starts=200, num_steps=300, generator=seeded(0))
    heights = (X @ directions.mT).clamp_min(0).mT @ found.dual
    assert float(heights.abs().max()) <= BETA * (1 + 1e-5)
    value = convex_objective(found.V, X, y, D, BETA)
    torch.testing.assert_close(dual_bound(found.dual, y, 1.0), value, rtol=1e-5, atol=0)


def test_targets_share_one_run():
    """Oracle: the same targets one by one, with a fixed penalty."""
    X, y, D = problem()
    both = torch.stack([y, y.flip(0)], 1)
    found = admm_relu(X, both, D, beta=BETA, tol=0.0, max_steps=100, balance=False)
    for k in range(2):
        alone = admm_relu(X, both[:, k], D, beta=BETA, tol=0.0, max_steps=100, balance=False)
        torch.testing.assert_close(found.V[k], alone.V)
        torch.testing.assert_close(found.dual[k], alone.dual)


def test_going_on_is_running_on():
    """Oracle: one long run."""
    X, y, D = problem()
    options = {"beta": BETA, "tol": 0.0, "balance": False}
    half = admm_relu(X, y, D, max_steps=50, **options)
    torch.testing.assert_close(
        admm_relu(X, y, D, max_steps=50, start=half.state, **options).V, admm_relu(X, y, D, max_steps=100, **options).V
    )


def test_path():
    """Oracle: optima solved alone; the largest β leaves no neuron, the objective grows with β."""
    X, y, D = problem()
    betas = [100.0, 0.2, 0.02]
    path = admm_path(X, y, D, betas, tol=1e-6, max_steps=5000)
    assert not path[0].V.any()
    for beta, found in zip(betas, path, strict=True):
        best = float(convex_objective(exact_relu(X, y, D, beta=beta).V, X, y, D, beta))
        assert abs(float(convex_objective(found.V, X, y, D, beta)) / best - 1) < 1e-3


def test_no_decay():
    """Oracle: least squares over the cones is feasible and not above any decayed solution's loss."""
    X, y, D = problem()
    free = admm_relu(X, y, D, beta=0.0, tol=1e-6, max_steps=5000)
    decayed = exact_relu(X, y, D, beta=BETA)
    loss = [float((cone_outputs(V, X, D) - y).square().sum()) for V in (free.V, decayed.V)]
    assert loss[0] <= loss[1] + 1e-3


def test_single_precision():
    """Oracle: double precision."""
    X, y, D = problem()
    found = admm_relu(X.float(), y.float(), D, beta=BETA, tol=1e-4, max_steps=1000)
    assert found.V.dtype == torch.float32
    wanted = admm_relu(X, y, D, beta=BETA, tol=1e-4, max_steps=1000)
    value = convex_objective(wanted.V, X, y, D, BETA)
    assert abs(float(convex_objective(found.V.double(), X, y, D, BETA) / value) - 1) < 2e-3


def test_rank_deficient_rows_and_zero_rows():
    """Oracle: the problem without its zero row and its repeated column, whose norm counts √2 times."""
    X, y, D = problem(n=10, d=2, num_patterns=6)
    wide = torch.cat([torch.cat([X, X], 1) / 2**0.5, torch.zeros(1, 4, dtype=F64)])
    longer, gates = torch.cat([y, y.new_zeros(1)]), torch.cat([D, torch.ones(1, 6, dtype=torch.bool)])
    plain = convex_objective(exact_relu(X, y, D, beta=BETA).V, X, y, D, BETA)
    other = convex_objective(exact_relu(wide, longer, gates, beta=BETA).V, wide, longer, gates, BETA)
    torch.testing.assert_close(plain, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["squared", "bce"])
def test_sampled_programme_is_optimal(loss):
    """Oracle: the conditions of the lasso: |A_jᵀ z| = β where a_j is not zero, at most β elsewhere."""
    X, y, _ = problem()
    y, beta = (y, BETA) if loss == "squared" else (y.sign(), 5e-3)
    found = sampled_relu(X, y, num_neurons=100, beta=beta, loss=loss, tol=1e-10, max_steps=20_000, generator=seeded(0))
    heights = (X @ found.directions.mT).clamp_min(0).mT @ found.dual
    assert float(heights.abs().max()) <= beta * (1 + 1e-3)
    on = found.weights != 0
    torch.testing.assert_close(heights[on], -beta * found.weights[on].sign(), rtol=1e-2, atol=0)


def test_certificate_is_the_largest_height():
    """Oracle: a loop; and ascent finds at least as much as the sample of its size."""
    X, y, _ = problem()
    found = duality_certificate(X, y, 0.1, num_directions=50, generator=seeded(5))
    u = torch.nn.functional.normalize(torch.randn(50, 4, generator=seeded(5), dtype=F64), dim=1)
    wanted = max(abs(float((X @ one).clamp_min(0) @ y)) for one in u) / 0.1
    assert found == pytest.approx(wanted)
    climbed = violating_directions(X, y, num_starts=50, generator=seeded(5))[0]
    assert abs(float((X @ climbed).clamp_min(0) @ y)) / 0.1 >= wanted


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rho": 0.0}, ArgumentError),
        ({"dual_step": 2.0}, ArgumentError),
        ({"over_relaxation": 2.0}, ArgumentError),
        ({"beta": -1.0}, ArgumentError),
        ({"beta": float("nan")}, ArgumentError),
        ({"max_steps": 0}, ArgumentError),
        ({"loss": "hinge"}, ArgumentError),
        ({"loss": "huber"}, ArgumentError),
    ],
)
def test_refused_options(options, error):
    """Oracle: the documented errors; the targets are no labels, so hinge is refused."""
    X, y, D = problem()
    with pytest.raises(error):
        admm_relu(X, y, D, **options)


def test_refused_data():
    """Oracle: the documented errors."""
    X, y, D = problem()
    with pytest.raises(ShapeError):
        admm_relu(X, y[:-1], D)
    with pytest.raises(ShapeError):
        admm_relu(X, y.float(), D)
    with pytest.raises(ShapeError):
        StructuredSystem.build(X, D[:-1], 0.1)
    with pytest.raises(ArgumentError, match="NaN"):
        admm_relu(X * float("nan"), y, D)
    with pytest.raises(ArgumentError, match="beta"):
        exact_relu(X, y, D, beta=0.0)
    with pytest.raises(ArgumentError, match="hinge"):
        sampled_relu(X, y.sign(), loss="hinge")
    with pytest.raises(ArgumentError, match="one beta"):
        admm_path(X, y, D, [])
    with pytest.raises(ArgumentError, match="beta"):
        duality_certificate(X, y, 0.0)
