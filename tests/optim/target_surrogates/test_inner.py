"""Inner solvers: what they leave in the parameters, against dense solutions and against their own promises."""

import pytest
import torch

from hesse.errors import ShapeError
from hesse.optim import target_surrogate
from hesse.optim.target_surrogates.inner import InnerOptions, InnerProblem, armijo_descent, lbfgs, optimizer_steps
from hesse.optim.target_surrogates.newton import gauss_newton, newton_line_search
from hesse.optim.target_surrogates.schedules import EtaSearch

F64 = torch.float64
MANY = InnerOptions(num_steps=2000, tol=1e-10, first_step=10.0, min_progress=0.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linear_problem(decay=0.0, eta=0.7, divergence="euclidean"):
    X, w = draw(12, 4), draw(4, 3, seed=1).requires_grad_()
    z = X @ w
    problem = InnerProblem(lambda: X @ w, [w], [decay], z, draw(12, 3, seed=2), eta, divergence)
    return problem, z, X, w


def dense_minimiser(X, w, gradient, eta, decay, metric):
    """The normal equations of the surrogate in one vector, A ⊗ XᵀX/(bη) + λI."""
    b = len(X)
    left = torch.kron(X.T @ X, metric) / (b * eta) + decay * torch.eye(w.numel(), dtype=F64)
    right = X.T @ (X @ w @ metric / eta - gradient) / b
    return torch.linalg.solve(left, right.reshape(-1)).reshape(w.shape)


SOLVERS = {
    "armijo": armijo_descent,
    "lbfgs": lbfgs,
    "gauss-newton": gauss_newton,
    "adam": lambda p, z, o: optimizer_steps(p, z, o, torch.optim.Adam(p.params, lr=0.05)),
}
METRIC = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]], dtype=F64)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("metric", [None, METRIC], ids=["euclidean", "matrix"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_minimises_the_surrogate_of_a_linear_model(solver, metric, decay):
    """Oracle: the dense normal equations."""
    problem, z, X, w = linear_problem(decay, divergence="euclidean" if metric is None else metric)
    start = w.detach().clone()
    result = SOLVERS[solver](problem, z, MANY)
    dense = torch.eye(3, dtype=F64) if metric is None else metric
    exact = dense_minimiser(X, start, problem.gradient, 0.7, decay, dense)
    torch.testing.assert_close(w.detach(), exact, rtol=0, atol=1e-5 if solver in ("adam", "lbfgs") else 1e-7)
    assert result.value == pytest.approx(float(problem.value(X @ w).detach()), rel=1e-9)


def test_gauss_newton_takes_one_step_on_a_linear_model():
    """Oracle: the dense solution after one step and one forward pass; η of every coordinate as well."""
    eta = 0.5 + draw(12, 3, seed=4).abs()
    problem, z, X, w = linear_problem(eta=eta)
    start = w.detach().clone()
    gauss_newton(problem, z, InnerOptions(1, 1e-13, 10.0, 0.0))
    assert problem.num_forwards == 1
    for column in range(3):
        scale = eta[:, column : column + 1].rsqrt()
        step = torch.linalg.lstsq(scale * X, -problem.gradient[:, column : column + 1] / scale).solution.squeeze(1)
        torch.testing.assert_close(w.detach()[:, column], start[:, column] + step)


def test_gauss_newton_minimises_relative_entropy():
    """Oracle: L-BFGS on the same surrogate, to the same value."""
    values = []
    for solver in (gauss_newton, lbfgs):
        X, w = draw(12, 4), draw(4, 3, seed=1).requires_grad_()
        z = (X @ w).softmax(-1)
        problem = InnerProblem(lambda X=X, w=w: (X @ w).softmax(-1), [w], [1e-3], z, draw(12, 3, seed=2), 0.7, "kl")
        values.append(solver(problem, z, InnerOptions(100, 1e-8, 10.0, 0.0)).value)
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_descent_meets_armijo_at_every_step():
    """Oracle: the rule, recomputed from a step of a network; the model is evaluated once a trial."""
    X, w, v = draw(10, 4), draw(4, 5, seed=1).requires_grad_(), draw(5, 2, seed=2).requires_grad_()
    calls = []

    def model():
        calls.append(1)
        return torch.tanh(X @ w) @ v

    z = model()
    problem = InnerProblem(model, [w, v], [0.0, 0.0], z, draw(10, 2, seed=3), 1.0, "euclidean")
    result = armijo_descent(problem, z, InnerOptions(1, 0.0, 10.0, 0.0))
    old = [p.clone().requires_grad_() for p in problem.start]
    start = torch.tanh(X @ old[0]) @ old[1]
    slopes = torch.autograd.grad(target_surrogate(start, z.detach(), problem.gradient, 1.0), old)
    square = sum(float(s.square().sum()) for s in slopes)
    assert result.value <= -0.5 * result.step * square
    torch.testing.assert_close(w.detach(), problem.start[0] - result.step * slopes[0])
    trials = torch.log(torch.tensor(result.step / 10)) / torch.log(torch.tensor(0.9))
    assert len(calls) - 1 == problem.num_forwards == round(float(trials)) + 1


@pytest.mark.parametrize("solver", ["armijo", "gauss-newton", "adam"])
def test_stops_where_progress_falls_off(solver):
    """Oracle: fewer steps than without the rule, and a value between start and minimum."""
    runs = {}
    for progress in (0.0, 0.5):
        X, w = draw(12, 4), draw(4, 3, seed=1).requires_grad_()
        model = lambda X=X, w=w: torch.tanh(X @ w)  # noqa: E731
        z = model()
        problem = InnerProblem(model, [w], [0.0], z, 0.3 * draw(12, 3, seed=2), 1.0, "euclidean")
        runs[progress] = SOLVERS[solver](problem, z, InnerOptions(30, 1e-9, 10.0, progress))
    assert runs[0.5].num_steps < runs[0.0].num_steps
    assert runs[0.0].value <= runs[0.5].value < 0


def test_a_solver_that_climbs_is_taken_back():
    """Oracle: the start, for a learning rate that only raises the surrogate."""
    problem, z, _, w = linear_problem()
    start = w.detach().clone()
    result = optimizer_steps(problem, z, MANY, torch.optim.SGD([w], lr=1e3))
    assert result.value == 0.0
    assert torch.equal(w.detach(), start)
    assert w.grad is None


def test_a_search_that_fails_leaves_the_parameters():
    """Oracle: the start, where every trial is infinite."""
    problem, z, _, w = linear_problem()
    start = w.detach().clone()
    problem.model = lambda: z * torch.inf
    assert armijo_descent(problem, z, MANY).num_steps == 0
    assert torch.equal(w.detach(), start)


def test_line_search_along_models():
    """Oracle: half squared loss of a linear model is least at η = 1/L_z = 1, and the search grows to it."""
    X, y, w = draw(30, 4), draw(30, 1, seed=5), torch.zeros(4, 1, dtype=F64, requires_grad=True)
    z = X @ w
    problem = InnerProblem(lambda: X @ w, [w], [0.0], z, -y, 1.0, "euclidean")
    search = EtaSearch(lambda z: (z - y).square().sum(1).mean() / 2, None)
    search.value = search.loss_at(z.detach())
    result = newton_line_search(problem, z, search, 1e-12)
    assert result.num_steps == 1
    assert 0.9 <= problem.eta <= 1 + 1e-9
    torch.testing.assert_close(w.detach(), problem.eta * torch.linalg.lstsq(X, y).solution)
    assert result.value == pytest.approx(float(problem.value(X @ w).detach()))


def test_outputs_that_change_shape_are_refused():
    """Oracle: the error's class."""
    problem, z, _, _ = linear_problem()
    problem.model = lambda: z[:3]
    with pytest.raises(ShapeError, match="one batch"):
        armijo_descent(problem, z, MANY)
