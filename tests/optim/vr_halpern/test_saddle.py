"""Matrix games and saddle losses as finite sums."""

import pytest
import scipy.optimize
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import FunctionOperator
from hesse.optim import matrix_game, saddle_operator, vr_halpern
from tests.optim.vr_halpern.cases import seeded


def forms(A):
    yield A
    yield A.to_sparse_csr()
    yield FunctionOperator(lambda x: A @ x, tuple(A.shape), dtype=A.dtype, rmatmat_fn=lambda y: A.mT @ y)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4)])
def test_game_is_the_mean_of_its_components(shape):
    """Oracle: (Aᵀy, -A x) by dense products, for stored, sparse and matrix-free A, square or not."""
    A = torch.randn(shape, dtype=torch.float64, generator=seeded(0))
    u = torch.randn(sum(shape), dtype=torch.float64, generator=seeded(1))
    x, y = u.split([shape[1], shape[0]])
    wanted = torch.cat([A.T @ y, -A @ x])
    for form in forms(A):
        game = matrix_game(form)
        op = game.operator
        everything = torch.arange(op.n)
        assert op.n == max(shape)
        torch.testing.assert_close(op.full(u), wanted)
        torch.testing.assert_close(op.mean(u, everything), wanted)
        torch.testing.assert_close(op.each(u, everything).mean(0), wanted)
        index = torch.tensor([3, 0, 3])
        torch.testing.assert_close(op.mean(u, index), op.each(u, index).mean(0))


def test_stored_matrix_is_not_copied():
    """Oracle: the storage: a change of the matrix is seen by the game."""
    A = torch.zeros(3, 3, dtype=torch.float64)
    game = matrix_game(A)
    A[0, 1] = 2.0
    assert float(game.operator.full(game.start)[1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(6, 6), (4, 6)])
def test_strategies_gap_and_projection(shape):
    """Oracle: the linear programme: at its solution the gap is zero, elsewhere it is what best answers gain."""
    A = torch.randn(shape, dtype=torch.float64, generator=seeded(3))
    game = matrix_game(A)
    rows, columns = shape
    solved = scipy.optimize.linprog(
        [0.0] * columns + [1.0],
        A_ub=torch.cat([A, -torch.ones(rows, 1, dtype=A.dtype)], 1).numpy(),
        b_ub=[0.0] * rows,
        A_eq=[[1.0] * columns + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * columns + [(None, None)],
    )
    equilibrium = torch.cat([torch.tensor(solved.x[:-1]), -torch.tensor(solved.ineqlin.marginals)])
    assert abs(game.duality_gap(equilibrium)) < 1e-9
    x, y = game.strategies(game.start)
    assert game.duality_gap(game.start) == pytest.approx(float((A @ x).max() - (A.T @ y).min()))
    projected = game.resolvent(torch.randn(rows + columns, dtype=torch.float64, generator=seeded(4)), 0.3)
    for part in game.strategies(projected):
        assert float(part.min()) >= 0
        assert float(part.sum()) == pytest.approx(1)
    torch.testing.assert_close(game.resolvent(game.start, 1.0), game.start)


def test_game_refuses_what_is_no_matrix():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentTypeError, match="real"):
        matrix_game(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(ShapeError, match="one matrix"):
        matrix_game(torch.zeros(3, 2, 2))


def robust_loss(x, y, example):
    features, target = example
    prediction = (features + y["shift"]) @ x["w"] + x["b"]
    return 0.5 * (prediction - target) ** 2 + 0.05 * (x["w"] @ x["w"]) - 4 * (y["shift"] @ y["shift"])


def robust_data(n):
    g = seeded(0)
    features = torch.randn(n, 3, dtype=torch.float64, generator=g)
    return features, features.sum(1) + 0.1 * torch.randn(n, dtype=torch.float64, generator=g)


def robust_problem(n=40, **options):
    x = {"w": torch.full((3,), 0.2, dtype=torch.float64), "b": torch.tensor(0.1, dtype=torch.float64)}
    y = {"shift": torch.full((3,), -0.1, dtype=torch.float64)}
    return saddle_operator(robust_loss, x, y, robust_data(n), **options)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_saddle_operator_is_the_signed_gradient(chunk_size):
    """Oracle: autograd on the mean loss, minus sign on the maximising side; single components, too."""
    problem = robust_problem(chunk_size=chunk_size)
    u = torch.randn(7, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    x, y = problem.parameters(u)
    features, targets = robust_data(40)
    losses = torch.stack([robust_loss(x, y, pair) for pair in zip(features, targets, strict=True)])
    signs = torch.tensor([1.0] * 4 + [-1.0] * 3, dtype=torch.float64)
    wanted = signs * torch.autograd.grad(losses.mean(), u, retain_graph=True)[0]
    fifth = signs * torch.autograd.grad(losses[5], u)[0]
    point = u.detach()
    torch.testing.assert_close(problem.operator.full(point), wanted)
    torch.testing.assert_close(problem.operator.each(point, torch.tensor([5]))[0], fifth)
    torch.testing.assert_close(problem.operator.mean(point, torch.arange(40)), wanted)
    torch.testing.assert_close(problem.start, torch.tensor([0.2] * 3 + [0.1] + [-0.1] * 3, dtype=torch.float64))


def test_module_against_an_adversary_is_solved():
    """Oracle: autograd at the end: the gradient of the mean loss vanishes in both players' parameters."""
    module = torch.nn.Linear(3, 1).double()

    def loss(x, y, example):
        features, target = example
        out = torch.func.functional_call(module, x, (features + y["shift"],))
        penalty = sum(p.square().sum() for p in x.values())
        return 0.5 * (out.squeeze() - target) ** 2 + 0.05 * penalty - 4 * y["shift"].square().sum()

    shift = {"shift": torch.zeros(3, dtype=torch.float64)}
    problem = saddle_operator(loss, dict(module.named_parameters()), shift, robust_data(200))
    result = vr_halpern(
        problem.operator,
        problem.start,
        L=12.0,
        restart="residual-halving",
        tol=1e-5,
        max_epochs=600,
        generator=seeded(0),
    )
    assert result.converged
    u = result.u.requires_grad_()
    x, y = problem.parameters(u)
    losses = torch.stack([loss(x, y, pair) for pair in zip(*robust_data(200), strict=True)])
    assert float(torch.autograd.grad(losses.mean(), u)[0].norm()) <= 1.01e-5


def test_plain_minimisation_is_the_gradient():
    """Oracle: the mean of the data, where the gradient of the mean squared distance vanishes."""
    data = torch.randn(30, 2, generator=seeded(0))
    problem = saddle_operator(lambda x, _y, e: 0.5 * (x["w"] - e).square().sum(), {"w": torch.zeros(2)}, {}, data)
    torch.testing.assert_close(problem.operator.full(problem.start), -data.mean(0))


def test_saddle_operator_refuses_what_it_cannot_use():
    """Oracle: the documented errors."""
    w = {"w": torch.zeros(2)}
    with pytest.raises(ArgumentError, match="parameter"):
        saddle_operator(robust_loss, {}, {}, torch.zeros(3))
    with pytest.raises(ShapeError, match="dtype"):
        saddle_operator(robust_loss, w, {"v": torch.zeros(2, dtype=torch.float64)}, torch.zeros(3))
    with pytest.raises(ShapeError, match="leading axis"):
        saddle_operator(robust_loss, w, {}, (torch.zeros(3), torch.zeros(4)))
    with pytest.raises(ShapeError, match="leading axis"):
        saddle_operator(robust_loss, w, {}, ())
