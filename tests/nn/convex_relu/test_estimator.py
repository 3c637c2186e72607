"""The estimators against their own functions, the module they export, and scikit-learn's checks."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.utils.estimator_checks import estimator_checks_generator

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.convex_relu import (
    ConvexReLUClassifier,
    ConvexReLURegressor,
    network_objective,
)
from tests.nn.convex_relu.cases import F64, problem, wave

# scikit-learn asks for exceptions and warnings of its own classes, which are an extra here
OTHER_CLASSES = {
    "check_estimators_unfitted": "raises ArgumentError, not scikit-learn's NotFittedError",
    "check_supervised_y_2d": "refuses a column of targets, where the check wants a warning",
}


def suite():
    """Every check of scikit-learn with a fresh estimator."""
    options = {"n_patterns": 20, "max_iter": 300, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the estimators do not inherit from scikit-learn's
        for kind in (ConvexReLURegressor, ConvexReLUClassifier):
            for estimator, check in estimator_checks_generator(kind(**options)):
                if check.func.__name__ not in OTHER_CLASSES:
                    yield pytest.param(estimator, check, id=f"{kind.__name__}-{check.func.__name__}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), list(suite()))
def test_scikit_learns_checks(estimator, check):
    """Oracle: scikit-learn's own conformance suite."""
    check(estimator)


@pytest.mark.parametrize("solver", ["admm", "exact", "scp"])
def test_regressor_learns_and_reports(solver):
    """Oracle: the objective of the network it stores, and the gap's sign; solvers agree on an easy curve."""
    X = torch.linspace(-1, 1, 30, dtype=F64).unsqueeze(1)
    y = X.squeeze(1).abs()
    model = ConvexReLURegressor(n_patterns=60, beta=1e-2, solver=solver, random_state=0).fit(X, y)
    ones = torch.cat([X, torch.ones_like(X)], 1)
    value = network_objective(ones, y, model.hidden_, model.output_.squeeze(1), 1e-2)
    assert model.objective_ == pytest.approx(float(value))
    assert model.score(X, y) > 0.98
    assert model.n_neurons_ == len(model.hidden_)
    assert model.gap_ > -1e-4
    assert model.duality_certificate_ < 1.2


def test_module_is_the_model():
    """Oracle: predictions of both, with and without a bias and with three classes."""
    X, y, _ = problem()
    for bias in (True, False):
        model = ConvexReLURegressor(n_patterns=20, fit_intercept=bias, random_state=0).fit(X, y)
        torch.testing.assert_close(model.to_module()(X).squeeze(1).detach(), model.predict(X))
    iris = load_iris()
    many = ConvexReLUClassifier(n_patterns=20, max_iter=50, random_state=0).fit(iris.data, iris.target)
    found = many.to_module()(torch.as_tensor(iris.data)).detach().numpy()
    np.testing.assert_allclose(found, many.decision_function(iris.data), atol=1e-8)


def test_three_classes_are_three_problems():
    """Oracle: iris, and each class fitted alone to the same patterns by interior points."""
    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    options = {"n_patterns": 20, "beta": 1e-2, "loss": "bce", "solver": "exact", "random_state": 0}
    model = ConvexReLUClassifier(**options).fit(X[::3], y[::3])
    assert model.score(X, y) > 0.9
    alone = [ConvexReLUClassifier(**options).fit(X[::3], y[::3] == k).objective_ for k in range(3)]
    assert model.objective_ == pytest.approx(sum(alone), rel=1e-5)


def test_refinement_never_hurts():
    """Oracle: each round only adds patterns, so the optimum falls; the certificate and the gap show it."""
    X, y, _ = problem(n=30, d=3)
    models = [
        ConvexReLURegressor(n_patterns=5, beta=0.05, solver="exact", refine=rounds, random_state=0).fit(X, y)
        for rounds in range(3)
    ]
    for before, after in pairwise(models):
        assert after.n_feasible_patterns_ > before.n_feasible_patterns_
        assert after.objective_ <= before.objective_ * (1 + 1e-6)
    assert models[2].gap_ < models[0].gap_
    assert models[2].duality_certificate_ < models[0].duality_certificate_


@pytest.mark.parametrize("loss", ["hinge", "squared", "bce"])
def test_robust_classifier(loss):
    """Oracle: margins of the stored network at the corners of each ball; far larger a radius leaves few patterns."""
    X, y = wave()
    model = ConvexReLUClassifier(n_patterns=30, beta=1e-4, loss=loss, robust_eps=0.08, random_state=0)
    model.fit(X[:, :2], y)
    corners = torch.cartesian_prod(*[torch.tensor([-0.08, 0.08], dtype=F64)] * 2)
    margins = [y * model.decision_function(X[:, :2] + corner) for corner in corners]
    assert float((torch.stack(margins).amin(0) > 0).double().mean()) >= 0.8
    assert model.n_feasible_patterns_ >= 1
    assert np.isnan(model.gap_)


def test_labels_precision_and_clone():
    """Oracle: names come back, float32 stays, scikit-learn's clone."""
    X, y = wave()
    names = np.where(y.numpy() > 0, "up", "down")
    model = ConvexReLUClassifier(n_patterns=40, beta=1e-3, random_state=0).fit(X.numpy().astype(np.float32), names)
    assert model.hidden_.dtype == torch.float32
    assert set(model.predict(X)) == {"up", "down"}
    assert model.score(X, names) > 0.8
    assert clone(model).get_params() == model.get_params()


def test_refused():
    """Oracle: the documented errors."""
    X, y, _ = problem()
    with pytest.raises(ArgumentError, match="solver"):
        ConvexReLURegressor(solver="sgd").fit(X, y)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="squared"):
        ConvexReLURegressor(loss="hinge").fit(X, y)
    with pytest.raises(ArgumentError, match="loss"):
        ConvexReLUClassifier(loss="huber").fit(X, y.sign())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="beta > 0"):
        ConvexReLURegressor(solver="exact", beta=0.0).fit(X, y)
    with pytest.raises(ArgumentError, match="corners"):
        ConvexReLUClassifier(loss="hinge", solver="scp").fit(X, y.sign())
    with pytest.raises(ArgumentError, match="n_patterns"):
        ConvexReLURegressor(n_patterns=0).fit(X, y)
    with pytest.raises(ArgumentError, match="one class"):
        ConvexReLUClassifier().fit(X, torch.ones(len(X)))
    with pytest.raises(ShapeError, match="features"):
        ConvexReLURegressor(n_patterns=5, max_iter=10, random_state=0).fit(X, y).predict(X[:, :2])
    with pytest.raises(ArgumentError, match="fit first"):
        ConvexReLURegressor().predict(X)
