"""The scikit-learn-shaped classifier."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from hesse.curvature.alignment.baselines import irm_penalty
from hesse.curvature.alignment.generalizer import DomainGeneralizer
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError


def spurious(num_rows: int, agreement: float, seed: int):
    """A weak cause in column 0 and a strong companion in column 1 that agrees with the label so often."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=num_rows)
    sign = np.where(rng.random(num_rows) < agreement, 1, -1) * (2 * y - 1)
    cause = (2 * y - 1) * np.where(rng.random(num_rows) < 0.75, 1, -1)
    X = np.stack([cause, sign], axis=1) + 0.1 * rng.normal(size=(num_rows, 2))
    return X.astype(np.float32), y


def training_set():
    tables = [spurious(400, agreement, seed) for seed, agreement in enumerate((0.95, 0.7))]
    X, y = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return X, y, np.repeat([0, 1], 400)


def test_alignment_finds_the_cause_where_plain_training_follows_the_companion():
    """Oracle: the construction. The cause holds in 75 % anywhere; in the new domain the companion is right in 10 %."""
    X, y, domains = training_set()
    new_X, new_y = spurious(400, 0.1, seed=9)
    options = {"hidden_sizes": (16,), "max_iter": 300, "anneal_steps": 100, "learning_rate": 1e-2}
    plain = DomainGeneralizer(alpha=0.0, beta=0.0, **options).fit(X, y, domains)
    aligned = DomainGeneralizer(alpha=1e4, beta=1e4, **options).fit(X, y, domains)
    assert plain.score(new_X, new_y) < 0.45
    assert aligned.score(new_X, new_y) > plain.score(new_X, new_y) + 0.2


@pytest.mark.parametrize("num_classes", [2, 3])
def test_labels_come_back_as_they_went_in(num_classes):
    """Oracle: scikit-learn's conventions: classes sorted, probabilities that sum to one, argmax as prediction."""
    rng = np.random.default_rng(0)
    names = np.array(["ant", "bee", "cat"])[:num_classes]
    X = rng.normal(size=(60, 4))
    y, domains = names[rng.integers(num_classes, size=60)], np.array(["a", "b"])[rng.integers(2, size=60)]
    model = DomainGeneralizer(hidden_sizes=(8,), alpha=1.0, beta=1.0, max_iter=7).fit(X, y, domains)
    probabilities = model.predict_proba(X)
    assert list(model.classes_) == list(names)
    assert (model.n_iter_, model.n_features_in_, len(model.loss_curve_)) == (7, 4, 7)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), names[probabilities.argmax(1)])
    scores = model.decision_function(X)
    assert scores.shape == ((60,) if num_classes == 2 else (60, 3))
    if num_classes == 2:
        np.testing.assert_array_equal(scores > 0, model.predict(X) == names[1])
    assert next(model.module_.parameters()).dtype == torch.float64


def test_same_seed_same_model():
    """Oracle: a second fit, bit for bit; arrays and tensors alike; another seed differs."""
    X, y, domains = training_set()

    def make(seed: int) -> DomainGeneralizer:
        return DomainGeneralizer(hidden_sizes=(4,), max_iter=3, random_state=seed)

    first = make(0).fit(X, y, domains).decision_function(X)
    tensors = [torch.as_tensor(part) for part in (X, y, domains)]
    np.testing.assert_array_equal(first, make(0).fit(*tensors).decision_function(tensors[0]))
    assert not np.array_equal(first, make(1).fit(X, y, domains).decision_function(X))


def test_scikit_learn_can_clone_it():
    """Oracle: sklearn.base.clone and get_params."""
    model = DomainGeneralizer(hidden_sizes=(3,), penalty=irm_penalty, beta=None)
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert twin.set_params(max_iter=4).max_iter == 4
    X, y, domains = training_set()
    assert twin.fit(X, y, domains).score(X, y) <= 1
    with pytest.raises(ArgumentError, match="no parameter depth"):
        model.set_params(depth=3)


def test_a_class_may_be_missing_in_a_domain():
    """Oracle: finite losses, all classes predicted somewhere they belong."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(40) % 3, np.arange(40) % 2])
    X = 3 * np.eye(3)[y] + 0.1 * rng.normal(size=(80, 3))
    model = DomainGeneralizer((16,), alpha=1.0, beta=1.0, max_iter=150, learning_rate=1e-2).fit(
        X, y, np.repeat([0, 1], 40)
    )
    assert np.isfinite(model.loss_curve_).all()
    assert model.score(X, y) == 1


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    X, y, domains = training_set()
    model = DomainGeneralizer(hidden_sizes=(2,), max_iter=1)
    with pytest.raises(ArgumentError, match="call fit first"):
        model.predict(X)
    with pytest.raises(ArgumentError, match="two domains"):
        model.fit(X, y, np.zeros(len(y)))
    with pytest.raises(ArgumentError, match="two classes"):
        model.fit(X, np.zeros(len(y)), domains)
    with pytest.raises(ShapeError, match="expected y of shape"):
        model.fit(X, y[:5], domains)
    with pytest.raises(ShapeError, match="expected domains of shape"):
        model.fit(X, y, domains[:5])
    with pytest.raises(ShapeError, match="X of shape"):
        model.fit(X[0], y, domains)
    with pytest.raises(ArgumentTypeError, match="X must be"):
        model.fit(X.tolist(), y, domains)
    with pytest.raises(ArgumentError, match="NaN"):
        model.fit(np.full_like(X, np.nan), y, domains)
    with pytest.raises(ArgumentError, match="max_iter"):
        DomainGeneralizer(max_iter=0).fit(X, y, domains)
    with pytest.raises(ArgumentError, match="hidden_sizes"):
        DomainGeneralizer(hidden_sizes=(0,)).fit(X, y, domains)
    with pytest.raises(ShapeError, match="columns"):
        model.fit(X, y, domains).predict(X[:, :1])
