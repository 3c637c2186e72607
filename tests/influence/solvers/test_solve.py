"""PCG, CG and LiSSA against the dense damped solve, and each other's promises."""

from itertools import pairwise

import pytest
import torch

from hesse.errors import ArgumentError, ConvergenceError
from hesse.influence.examples import as_examples
from hesse.influence.gradients import gradient_pass, stacked_gradients
from hesse.influence.objective import ClassificationLoss
from hesse.influence.solvers import CG, PCG, LiSSA, damped_ggn, solve, solver_named
from tests.influence._tiny import classifier, points
from tests.influence.solvers.test_system import as_columns, dense_system, fitted

F64 = torch.float64


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A system, the gradients of five queries, and the dense solution."""
    net, data = classifier(), points(12)
    influence, factors = fitted(net, data, tmp_path_factory.mktemp("solve"), damping=1.0)  # few steps converge
    system = damped_ggn(net, data, factors, loss=ClassificationLoss())
    queries = as_examples(points(5, seed=9))
    gradients = stacked_gradients(gradient_pass(net, loss=ClassificationLoss()), queries)
    dense = dense_system(net, data, influence, factors)
    b = as_columns(gradients, influence.layers)
    return system, gradients, dense, b, torch.linalg.solve(dense, b), influence.layers


@pytest.mark.parametrize("solver", [PCG(steps=300, rtol=1e-12), CG(steps=300, rtol=1e-12)])
def test_converged_answers_are_the_dense_ones(case, solver):
    """Oracle: torch.linalg.solve on the dense matrix, to 1e-9; the residual is that of the answer."""
    system, gradients, dense, b, wanted, layers = case
    found = solve(system, gradients, solver)
    x = as_columns(found.matrices, layers)
    assert float((x - wanted).norm() / wanted.norm()) <= 1e-9
    assert float(found.residual.max()) <= 1e-11
    torch.testing.assert_close(found.residual, (b - dense @ x).norm(dim=0) / b.norm(dim=0), rtol=1e-2, atol=1e-14)


@pytest.mark.parametrize("factors", ["ekfac", "diagonal"])
def test_pcg_starts_where_the_factors_are(case, factors, tmp_path):
    """Oracle: the factors' own answer at 0 steps; from there the error in the norm of the matrix never rises."""
    if factors == "ekfac":
        system, gradients, dense, b, wanted, layers = case
    else:
        net, data = classifier(), points(12)
        influence, fit = fitted(net, data, tmp_path, strategy="diagonal", damping=1.0)
        system, layers = damped_ggn(net, data, fit, loss=ClassificationLoss()), influence.layers
        gradients, dense = case[1], dense_system(net, data, influence, fit)
        b = as_columns(gradients, layers)
        wanted = torch.linalg.solve(dense, b)
    start = {name: system.factors.precondition(name, stack) for name, stack in gradients.items()}
    found = [solve(system, gradients, PCG(steps=k, rtol=0.0)) for k in (0, 1, 3, 6)]
    torch.testing.assert_close(as_columns(found[0].matrices, layers), as_columns(start, layers))
    assert [f.num_products for f in found] == [2, 3, 5, 8]
    errors = [as_columns(f.matrices, layers) - wanted for f in found]
    energies = [(e * (dense @ e)).sum(0) for e in errors]
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(energies))
    first = (b - dense @ as_columns(start, layers)).norm(dim=0) / b.norm(dim=0)
    torch.testing.assert_close(found[-1].history[0], first)


def test_lissa_is_the_neumann_series(case):
    """Oracle: Σ_{j<=k} α(I - αA)ʲ b with the dense A, and its limit, the dense solve."""
    system, gradients, dense, b, wanted, layers = case
    found = solve(system, gradients, LiSSA(steps=7, batch_size=None, step_size=0.05, rtol=0.0))
    series = term = 0.05 * b
    for _step in range(7):
        term = term - 0.05 * dense @ term
        series = series + term
    torch.testing.assert_close(as_columns(found.matrices, layers), series)
    assert (found.num_steps, found.num_products) == (7, 8)
    largest = float(torch.linalg.eigvalsh(dense).max())
    found = solve(system, gradients, LiSSA(steps=400, batch_size=None, step_size=1 / largest, rtol=1e-6))
    assert float((as_columns(found.matrices, layers) - wanted).norm() / wanted.norm()) <= 1e-4


def test_minibatches_are_right_on_average(case):
    """Oracle: the full-batch iterate. Batches are independent of it, so its mean over 200 seeds is within 4 errors."""
    system, gradients, _dense, b, _wanted, layers = case
    one = {name: stack[:1] for name, stack in gradients.items()}
    whole = solve(system, one, LiSSA(steps=3, batch_size=None, step_size=0.2, rtol=0.0))
    runs = torch.stack([
        as_columns(solve(system, one, LiSSA(3, 4, 0.2, 0.0, seed=seed)).matrices, layers)[:, 0] for seed in range(200)
    ])  # fmt: skip
    direction = b[:, 0] / b[:, 0].norm()
    values = runs @ direction
    error = values.mean() - as_columns(whole.matrices, layers)[:, 0] @ direction
    assert abs(float(error)) <= 4 * float(values.std()) / 200**0.5


def test_the_step_of_lissa_comes_from_the_largest_eigenvalue(case):
    """Oracle: eigvalsh; the step chosen converges, one of 2.5 / (largest eigenvalue) is refused by name."""
    system, gradients, dense, _b, wanted, layers = case
    largest = float(torch.linalg.eigvalsh(dense).max())
    found = solve(system, gradients, LiSSA(steps=400, batch_size=None, rtol=1e-6))
    assert float((as_columns(found.matrices, layers) - wanted).norm() / wanted.norm()) <= 1e-4
    with pytest.raises(ConvergenceError, match=r"LiSSA: .*smaller step_size"):
        solve(system, gradients, LiSSA(steps=300, batch_size=None, step_size=2.5 / largest, rtol=0.0))


def test_queries_do_not_depend_on_their_company(case):
    """Oracle: each query solved alone, by every method; a zero gradient has the answer zero and residual zero."""
    system, gradients, *_ = case
    padded = {name: torch.cat([stack, torch.zeros_like(stack[:1])]) for name, stack in gradients.items()}
    for solver in (PCG(steps=4), CG(steps=4), LiSSA(steps=4, batch_size=5), LiSSA(steps=4, columns=1)):
        together = solve(system, padded, solver)
        assert float(together.residual[-1]) == 0
        for name in gradients:
            assert not bool(together.matrices[name][-1].any())
            for q in range(len(gradients[name])):
                alone = solve(system, {n: stack[q : q + 1] for n, stack in gradients.items()}, solver)
                torch.testing.assert_close(alone.matrices[name][0], together.matrices[name][q], rtol=1e-7, atol=1e-10)


def test_float32_agrees_with_float64(case, tmp_path):
    """Oracle: the same system in float64, with the same factors."""
    system, gradients, _dense, _b, _wanted, layers = case
    net, data = classifier(torch.float32), points(12, dtype=torch.float32)
    narrow = damped_ggn(net, data, system.factors, loss=ClassificationLoss())
    found = solve(narrow, {name: stack.float() for name, stack in gradients.items()}, PCG(steps=25, rtol=0.0))
    wide = solve(system, gradients, PCG(steps=25, rtol=0.0))
    for name in layers:
        assert found.matrices[name].dtype == torch.float32
        torch.testing.assert_close(found.matrices[name].double(), wide.matrices[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCG(steps=-1), "PCG: expected steps >= 0"),
        (lambda: CG(steps=0), "CG: expected steps >= 1"),
        (lambda: PCG(rtol=1.0), "PCG: expected rtol"),
        (lambda: PCG(factors="identity"), "PCG: expected factors"),
        (lambda: CG(columns=0), "CG: expected columns"),
        (lambda: LiSSA(batch_size=0), "LiSSA: expected batch_size"),
        (lambda: LiSSA(step_size=0.0), "LiSSA: expected step_size"),
        (lambda: LiSSA(seed=-1), "LiSSA: expected seed"),
        (lambda: solver_named("sgd"), "strategy: expected one of pcg, cg, lissa"),
    ],
)
def test_options_out_of_range(make, message):
    """Oracle: the message names method and option."""
    with pytest.raises(ArgumentError, match=message):
        make()


def test_names_of_methods():
    """Oracle: the defaults of the classes."""
    assert solver_named("pcg") == PCG()
    assert solver_named("cg", steps=7, factors="diagonal") == CG(steps=7, factors="diagonal")
    assert solver_named("lissa") == LiSSA()
