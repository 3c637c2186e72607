import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet, Ridge
from sklearn.metrics import roc_auc_score
from torch import nn

from hesse.bilevel import AID, BSVRB, Budget, Oracle, check_problem, hypergradient, solve_lower, tasks
from hesse.errors import ArgumentError, ShapeError


def diabetes():
    """Standardised rows and targets, fitted and held out."""
    table = load_diabetes()
    X, t = torch.from_numpy(table.data), torch.from_numpy(table.target)
    X, t = (X - X.mean(0)) / X.std(0), (t - t.mean()) / t.std()
    return X[:200], t[:200], X[200:], t[200:]


def solved(problem, x):
    """The lower level's solution."""
    start = problem.y_layout.flatten(problem.y0)
    found = solve_lower(Oracle(problem), problem.x_layout.flatten(x), start, tol=1e-9)
    assert found.converged
    return problem.y_layout.unflatten(found.y)


def test_a_scalar_penalty_is_ridge_regression():
    """Oracle: scikit-learn's Ridge at n times the penalty."""
    rows = diabetes()
    problem = tasks.penalized_model(*rows, penalty="scalar")
    x = torch.tensor([-1.5], dtype=torch.float64)
    found = solved(problem, x)
    known = Ridge(alpha=200 * float(x.exp())).fit(rows[0], rows[1])
    torch.testing.assert_close(found["weight"][:, 0], torch.from_numpy(known.coef_), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["bias"], torch.tensor([known.intercept_]), rtol=1e-6, atol=1e-8)


def test_an_elastic_net_is_scikit_learns_but_for_the_rounding():
    """Oracle: scikit-learn's ElasticNet, whose magnitudes have a corner where ours bend within 1e-4."""
    rows = diabetes()
    problem = tasks.penalized_model(*rows, penalty="elastic-net", rounding=1e-4)
    squares, magnitudes = 0.05, 0.1
    x = torch.tensor([squares, magnitudes], dtype=torch.float64).log()
    found = solved(problem, x)["weight"][:, 0]
    alpha = squares + magnitudes
    known = ElasticNet(alpha=alpha, l1_ratio=magnitudes / alpha, tol=1e-10, max_iter=100_000).fit(rows[0], rows[1])
    assert float((found - torch.from_numpy(known.coef_)).abs().max()) < 1e-3
    assert (found[torch.from_numpy(known.coef_) == 0].abs() < 1e-3).all()


@pytest.mark.parametrize("penalty", ["per-feature", "scalar", "elastic-net"])
def test_hypergradients_of_penalties_match_differences(penalty):
    """Oracle: central differences of the upper loss at the solved lower level."""
    problem = tasks.penalized_model(*diabetes(), penalty=penalty, rounding=0.05)
    x = problem.x0 + torch.linspace(0.1, 0.7, len(problem.x0), dtype=torch.float64)
    found = hypergradient(problem, x, lower_tol=1e-10, rtol=1e-10).grad
    step = 1e-4
    for j in range(len(x)):
        e = torch.zeros_like(x)
        e[j] = step
        high, low = (float(problem.upper(x + s * e, solved(problem, x + s * e), None)) for s in (1, -1))
        assert (high - low) / (2 * step) == pytest.approx(float(found[j]), rel=1e-4, abs=1e-8)


def test_penalties_of_a_classifier_are_learnt():
    """Oracle: the held-out loss, far below its start; features of pure noise get the larger penalties."""
    table = load_breast_cancer()
    g = torch.Generator().manual_seed(0)
    X = torch.from_numpy(table.data)[:, :10]
    X = (X - X.mean(0)) / X.std(0)
    X = torch.cat([X, torch.randn(len(X), 10, dtype=torch.float64, generator=g)], 1)
    t = torch.from_numpy(table.target)
    problem = tasks.penalized_model(X[:120], t[:120], X[120:], t[120:], num_outputs=2, start=-5.0)
    report = check_problem(problem, generator=g)
    assert report.upper_gradient_error < 1e-6
    assert report.lower_gradient_error < 1e-6
    result = AID(problem).run(Budget(iterations=40))
    assert result.trace[-1].upper_value < 0.75 * result.trace[0].upper_value
    assert float(result.x[10:].median()) > float(result.x[:10].median()) + 1


def test_batches_of_penalties():
    """Oracle: the sampler's whole data is what the losses see without a batch."""
    rows = diabetes()
    problem = tasks.penalized_model(*rows, batch_size=50)
    y = solved(tasks.penalized_model(*rows), problem.x0)
    upper, lower = problem.full_batches()
    torch.testing.assert_close(problem.upper(problem.x0, y, upper), problem.upper(problem.x0, y, None))
    torch.testing.assert_close(problem.lower(problem.x0, y, lower), problem.lower(problem.x0, y, None))


def ranking(seed=0, tasks_count=3):
    """Rows with as many hidden directions as tasks, of uneven shares of positives."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(90, 5, dtype=torch.float64, generator=g)
    scores = X @ torch.randn(5, tasks_count, dtype=torch.float64, generator=g)
    scores = scores + 0.3 * torch.randn(scores.shape, dtype=torch.float64, generator=g)
    return X, torch.where(
        scores > torch.tensor([0.0, 1.0, -1.5][:tasks_count], dtype=torch.float64), 1.0, -1.0
    ).double()


def pair_loss(X, t, weight):
    """Mean over tasks of p (1 - p) (E (1 - h₊ + h₋)² - 1), over all pairs."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(t.shape[1]):
        h, plus = X @ weight[i], t[:, i] > 0
        p = plus.double().mean()
        pairs = (1 - h[plus][:, None] + h[~plus][None]).square().mean()
        total = total + p * (1 - p) * (pairs - 1) / t.shape[1]
    return total


def test_auc_blocks_are_the_square_loss_of_all_pairs():
    """Oracle: the loss over all pairs and its gradient by autograd, at the best a and b, the means of either class."""
    X, t = ranking()
    problem = tasks.auc_blocks(X, t, regularization=0.0)
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = pair_loss(X, t, weight)
    (slope,) = torch.autograd.grad(expected, weight)
    scores = X @ weight.detach().T
    positive = (t > 0).double()
    a, b = ((scores * side).sum(0) / side.sum(0) for side in (positive, 1 - positive))
    x = {"weight": weight.detach(), "a": a, "b": b}
    alpha = solved(problem, x)
    torch.testing.assert_close(alpha, b - a)
    torch.testing.assert_close(problem.upper(x, alpha, None), expected.detach())
    grad = hypergradient(problem, x, lower_tol=1e-12, rtol=1e-12).grad
    torch.testing.assert_close(grad["weight"], slope)
    torch.testing.assert_close(grad["a"], torch.zeros_like(a), atol=1e-12, rtol=0)


def test_auc_blocks_rank():
    """Oracle: scikit-learn's area under the curve, near one on directions that are there to be found."""
    X, t = ranking(seed=3)
    problem = tasks.auc_blocks(X, t)
    solver = BSVRB(problem, 2, blocks_per_step=2, batch_size=30, lr=0.5, lr_lower=0.5)
    weight = solver.run(Budget(iterations=800), trace_every=800).x["weight"]
    for i in range(3):
        assert roc_auc_score(t[:, i], X @ weight[i]) > 0.95


def test_bad_input_is_named():
    """Oracle: the error taxonomy, and the argument in the message."""
    X, t, X_valid, t_valid = diabetes()
    labels = torch.arange(200) % 3
    for arguments, options, error, match in (
        ((X[0], t, X_valid, t_valid), {}, ShapeError, "X"),
        ((X, t[:10], X_valid, t_valid), {}, ShapeError, r"expected t \(200,\)"),
        ((X, t, X_valid, t_valid[:3]), {}, ShapeError, "t_valid"),
        ((X, t, X_valid, t_valid), {"penalty": "lasso"}, ArgumentError, "'lasso'"),
        ((X, t, X_valid, t_valid), {"rounding": 0.0}, ArgumentError, "rounding"),
        ((X, labels, X[:50], labels[:50]), {"num_outputs": 2}, ArgumentError, "num_outputs - 1 = 1"),
    ):
        with pytest.raises(error, match=match):
            tasks.penalized_model(*arguments, **options)
    rows, signs = ranking()
    for arguments, options, error, match in (
        ((rows, signs[:, 0]), {}, ShapeError, "t "),
        ((rows, 2 * signs), {}, ArgumentError, "-1 and 1"),
        ((rows, torch.ones_like(signs)), {}, ArgumentError, "both"),
        ((rows, signs), {"regularization": -1.0}, ArgumentError, "regularization"),
    ):
        with pytest.raises(error, match=match):
            tasks.auc_blocks(*arguments, **options)
    with pytest.raises(ArgumentError, match="regularization > 0"):
        tasks.hyper_cleaning(X, labels, X[:50], labels[:50], num_classes=3, regularization=0.0)
    with pytest.raises(ArgumentError, match="labels from 0 to 1"):
        tasks.hyper_cleaning(X, labels, X[:50], labels[:50], num_classes=2)
    with pytest.raises(ArgumentError, match="regularization > 0"):
        tasks.hyper_representation(nn.Identity(), nn.Linear(10, 3), (X, t), (X, t), regularization=0.0)
