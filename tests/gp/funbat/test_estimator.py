"""FunBaT from outside: what it recovers, how sure it is, what it refuses, and scikit-learn's own checks."""

from typing import Any

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.gp.funbat import FunBaT

F64 = torch.float64


def surface(x):
    return np.exp(-x[:, 0]) * np.sin(5 * x[:, 0]) * np.cos(4 * x[:, 1])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.random((300, 2))
    return x, surface(x) + 0.02 * rng.standard_normal(300)


@pytest.fixture(scope="module")
def fitted(data):
    return FunBaT(rank=2, random_state=0).fit(*data)


def test_recovers_the_surface_its_noise_and_its_uncertainty(fitted):
    """Oracle: the function the data were made of; 90 % intervals cover 85 to 95 % of 2000 new observations."""
    rng = np.random.default_rng(1)
    x = rng.random((2000, 2))
    mean, std = fitted.predict(x, return_std=True)
    assert np.sqrt(np.mean((mean - surface(x)) ** 2)) < 0.01
    assert fitted.noise_ == pytest.approx(0.02, rel=0.1)
    covered = np.mean(np.abs(surface(x) + 0.02 * rng.standard_normal(2000) - mean) <= 1.645 * std)
    assert 0.85 <= covered <= 0.95


def test_prediction_is_the_product_of_its_parts(fitted):
    """Oracle: core and factors multiplied by hand."""
    x = np.random.default_rng(2).random((20, 2))
    factors = [fitted.factor(mode, x[:, mode])[0] for mode in (0, 1)]
    product = np.einsum("ab,na,nb->n", fitted.core_, *factors) * float(fitted._scaling.scale)
    np.testing.assert_allclose(fitted.predict(x), product + float(fitted._scaling.center), atol=1e-10)


def test_units_do_not_matter(data, fitted):
    """Oracle: invariance; other units of coordinates and values, the bound of the density changing by its Jacobian."""
    x, y = data
    other = FunBaT(rank=2, random_state=0).fit(1000 * x - 7, 50 * y)
    np.testing.assert_allclose(other.predict(1000 * x - 7), 50 * fitted.predict(x), rtol=1e-5, atol=1e-5)
    assert other.elbo_ == pytest.approx(fitted.elbo_ - 300 * np.log(50), abs=1e-3)


def test_far_outside_it_returns_to_the_prior(fitted):
    """Oracle: the prior; mean zero, and a spread that grows to one that no longer depends on the place."""
    line = np.stack([np.linspace(1, 40, 60), np.linspace(1, 40, 60)], 1)
    mean, std = fitted.predict(line, return_std=True)
    assert abs(mean[-1]) < 1e-6
    assert std[-1] > 5 * std[0]
    assert std[-1] == pytest.approx(std[-2], rel=1e-6)


def test_tensors_in_tensors_out(data, fitted):
    """Oracle: the NumPy result; float32 in, float32 out, computed in float64."""
    x = torch.as_tensor(data[0])
    model = FunBaT(rank=2, random_state=0).fit(x, torch.as_tensor(data[1]))
    found = model.predict(x.float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, fitted.predict(data[0]), atol=1e-5)
    assert isinstance(model.core_, torch.Tensor)


def test_streaming_comes_close_to_one_batch(data, fitted):
    """Oracle: the batch fit; three further batches at new coordinates, error at most twice that of the batch."""
    x, y = data
    model = FunBaT(rank=2, random_state=0).partial_fit(x[:150], y[:150])
    grid = np.random.default_rng(3).random((500, 2))

    def error(m):
        return np.sqrt(np.mean((m.predict(grid) - surface(grid)) ** 2))

    first = error(model)
    for part in np.split(np.arange(150, 300), 3):
        model.partial_fit(x[part], y[part])
    assert error(model) < first
    assert error(model) < 2 * error(fitted)
    assert len(model._posterior.factors[0].times) == 300


def test_learnt_hyperparameters_raise_the_bound(data):
    """Oracle: the bound of the fixed ones, from a prior that is far too smooth."""
    options: dict[str, Any] = {"rank": 1, "random_state": 0, "n_restarts": 1, "lengthscale": 2.0}
    fixed = FunBaT(**options).fit(*data)
    learnt = FunBaT(learn_hyper=True, **options).fit(*data)
    assert learnt.elbo_ > fixed.elbo_ + 1
    assert learnt.lengthscale_[0] < 2.0


def test_uneven_ranks_and_cp(data):
    """Oracle: the function, by a core of 2 x 3 and by a sum of two products."""
    grid = np.random.default_rng(4).random((500, 2))
    arms: tuple[dict[str, Any], ...] = {"rank": (2, 3)}, {"rank": 2, "form": "cp"}
    for options in arms:
        model = FunBaT(random_state=0, **options).fit(*data)
        assert np.sqrt(np.mean((model.predict(grid) - surface(grid)) ** 2)) < 0.015
    assert FunBaT(rank=(2, 3), random_state=0).fit(*data).core_.shape == (2, 3)


def test_repeated_and_nearly_equal_coordinates_are_merged():
    """Oracle: counting; 40 entries on a grid of 5 x 4, shaken by less than the tolerance."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1).reshape(-1, 2)
    x = np.concatenate([grid, grid + 1e-10 * rng.random((20, 2))])
    model = FunBaT(rank=1, random_state=0).fit(x, np.sin(x[:, 0]) * (1 + x[:, 1]))
    assert [len(f.times) for f in model._posterior.factors] == [5, 4]


def test_missing_values_are_dropped_with_a_warning(data):
    """Oracle: the fit without them."""
    x, y = data[0][:80], data[1][:80].copy()
    y[::10] = np.nan
    options: dict[str, Any] = {"rank": 1, "random_state": 0, "n_restarts": 1}
    with pytest.warns(UserWarning, match="8 of 80"):
        model = FunBaT(**options).fit(x, y)
    keep = ~np.isnan(y)
    # the bounds of a range that only a dropped entry reaches do not count
    assert model.elbo_ == pytest.approx(FunBaT(**options).fit(x[keep], y[keep]).elbo_, abs=1e-9)


def test_a_mode_with_one_coordinate_warns():
    """Oracle: the warning, and the fit of the other mode alone."""
    x = np.linspace(0, 1, 40)
    with pytest.warns(UserWarning, match="mode 1"):
        model = FunBaT(rank=1, random_state=0).fit(np.stack([x, np.ones(40)], 1), np.sin(5 * x))
    assert model.score(np.stack([x, np.ones(40)], 1), np.sin(5 * x)) > 0.99


def test_a_fit_cut_short_warns(data):
    """Oracle: the warning's text."""
    with pytest.warns(UserWarning, match="last of 1 sweeps"):
        FunBaT(rank=1, max_iter=1, random_state=0).fit(*data)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": (2, 2, 2)}, "2 modes"),
        ({"rank": (2, 3), "form": "cp"}, "one rank"),
        ({"rank": 65}, "form='cp'"),
        ({"form": "tt"}, "form"),
        ({"nu": 1.0}, "nu"),
        ({"damping": 1.0}, "damping"),
        ({"max_iter": 0}, "max_iter"),
        ({"n_restarts": 1.5}, "n_restarts"),
        ({"noise_prior": (0.0, 1.0)}, "noise_prior"),
        ({"tol": -1.0}, "tol"),
    ],
)
def test_bad_parameters_are_refused(data, options, part):
    """Oracle: the error's name and text, before work starts."""
    with pytest.raises(ArgumentError, match=part):
        FunBaT(**options).fit(*data)


def test_bad_data_are_refused(data, fitted):
    """Oracle: the error's name and text."""
    x, y = data
    hole = x.copy()
    hole[0, 0] = np.nan
    with pytest.raises(ArgumentError, match="NaN"):
        FunBaT().fit(hole, y)
    with pytest.raises(ArgumentError, match="every value"):
        FunBaT().fit(x, np.full(300, np.nan))
    with pytest.raises(ArgumentError, match="infinity"):
        FunBaT().fit(x, np.full(300, np.inf))
    with pytest.raises(ShapeError, match="expected y"):
        FunBaT().fit(x, y[:-1])
    with pytest.raises(ShapeError, match="3 features"):
        fitted.predict(np.ones((2, 3)))
    with pytest.raises(ShapeError, match="3 features"):
        fitted.partial_fit(np.ones((2, 3)), np.ones(2))
    with pytest.raises(ArgumentError, match="call fit first"):
        FunBaT().predict(x)
    with pytest.raises(ArgumentError, match="no mode 2"):
        fitted.factor(2, x[:, 0])
    sparse = pytest.importorskip("scipy.sparse").csr_array(x)
    with pytest.raises(ArgumentTypeError, match="sparse"):
        FunBaT().fit(sparse, y)
    with pytest.raises(ArgumentError, match="numbers"):
        FunBaT().fit([["a", "b"]], [1.0])


@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks():
    """Oracle: scikit-learn's own suite, less three checks of classes and habits that are its own."""
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    model = FunBaT(rank=1, form="cp", max_iter=4, n_restarts=1, random_state=0)
    left_out = {
        "check_supervised_y_no_nan": "entries without a value are dropped with a warning",
        "check_estimators_unfitted": "the error is hesse's ArgumentError, also a ValueError, not NotFittedError",
        "check_supervised_y_2d": "the warning is a UserWarning, not scikit-learn's DataConversionWarning",
    }
    results = checks.check_estimator(model, expected_failed_checks=left_out, on_fail=None, on_skip=None)
    failed = [(r["check_name"], repr(r["exception"])) for r in results if r["status"] == "failed"]
    assert failed == []
