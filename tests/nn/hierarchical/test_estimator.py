"""The layerwise learner from outside: what it finds, what it refuses, and scikit-learn's own checks."""

import warnings

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.hierarchical import HierarchicalPolynomialRegressor, NotIdentifiableWarning, hierarchical_target
from hesse.nn.hierarchical.whitening import Whitening

F64 = torch.float64


def data(d, n, degree=2, link="cubic", seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = hierarchical_target(d, degree, link, generator=generator)
    x = torch.randn(n + 2000, d, generator=generator, dtype=F64)
    return target, x[:n], x[n:]


def judged(model, target, x):
    truth = target(x)
    error = float((model.predict(x) - truth).square().mean() / truth.var())
    return error, abs(float(torch.corrcoef(torch.stack([model.feature(x), target.polynomial(x)]))[0, 1]))


def complaints(x, y, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        HierarchicalPolynomialRegressor(random_state=0, **options).fit(x, y)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("inner", ["hermite", "mixed", "exact"])
def test_the_polynomial_and_the_link_are_found(inner):
    """Oracle: p itself; a smooth link, monotone, at -1, 0 and 1 up to the sign of the feature."""
    target, x, test = data(8, 1200, link=torch.tanh)
    model = HierarchicalPolynomialRegressor(inner=inner, split=False, random_state=0).fit(x, target(x))
    error, correlation = judged(model, target, test)
    assert error < 0.1
    assert correlation > 0.97
    sign = float(torch.corrcoef(torch.stack([model.feature(test), target.polynomial(test)]))[0, 1].sign())
    z = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    torch.testing.assert_close(model.link(sign * z), torch.tanh(z), rtol=0, atol=0.15)


@pytest.mark.parametrize("solver", ["gd", "cg"])
def test_solvers_of_the_first_stage_agree(solver):
    """Oracle: the closed form, on the same half of the samples; gradient descent stops a little early."""
    target, x, test = data(6, 600, seed=1)
    fits = [
        HierarchicalPolynomialRegressor(solver=s, alpha_inner=0.05, random_state=0).fit(x, target(x)).feature(test)
        for s in ("ridge", solver)
    ]
    assert abs(float(torch.corrcoef(torch.stack(fits))[0, 1])) > (0.98 if solver == "gd" else 1 - 1e-9)


def test_refinement_takes_the_error_down():
    """Oracle: the error before; the held-out errors end no higher than they began."""
    target, x, test = data(12, 1500, seed=2)
    plain = HierarchicalPolynomialRegressor(split=False, random_state=0).fit(x, target(x))
    refined = HierarchicalPolynomialRegressor(split=False, refine=200, random_state=0).fit(x, target(x))
    assert judged(refined, target, test)[0] < 0.6 * judged(plain, target, test)[0]
    errors = refined.fit_path_["refinement"]
    assert len(errors) == 201
    assert min(errors) < errors[0]


def test_an_even_link_hides_the_polynomial():
    """Oracle: the degree-2 part of He_2(p) is 4 xᵀA²x, a multiple of |x|² - d: found instead, R² about 4/d."""
    target, x, test = data(16, 1500, link="even", seed=3)
    model = HierarchicalPolynomialRegressor(split=False, random_state=0).fit(x, target(x))
    assert judged(model, target, test)[1] < 0.3
    radius = torch.stack([model.feature(test), test.square().sum(1)])
    assert abs(float(torch.corrcoef(radius)[0, 1])) > 0.8
    assert 0.05 < model.stage1_score_ < 0.3


def test_nothing_to_find_is_reported():
    """Oracle: targets that have nothing to do with the inputs."""
    _, x, _ = data(8, 500, seed=3)
    y = torch.randn(500, generator=torch.Generator().manual_seed(4), dtype=F64)
    with pytest.warns(NotIdentifiableWarning, match="first stage explains"):
        HierarchicalPolynomialRegressor(split=False, random_state=0).fit(x, y)


@pytest.mark.parametrize(
    ("clip", "refine", "held"), [(None, 0, True), (None, 50, False), (False, 0, False), (True, 50, True)]
)
def test_clipping_holds_the_feature_to_its_range(clip, refine, held):
    """Oracle: the link at the end of the range that the second stage saw, or at the feature itself."""
    target, x, _ = data(6, 600, seed=4)
    model = HierarchicalPolynomialRegressor(split=False, clip=clip, refine=refine, random_state=0).fit(x, target(x))
    far = torch.full((1, 6), 40.0, dtype=F64)
    q = model.feature(far)
    assert not model._range[0] < float(q) < model._range[1]
    wanted = model.link(q.clamp(*model._range) if held else q)
    torch.testing.assert_close(model.predict(far), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_few_samples_do_not_run_wild(seed):
    """Oracle: the error of a constant, 1; without the clip one of these costs 170 times that."""
    target, x, test = data(6, 102, seed=1000 + seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HierarchicalPolynomialRegressor(split=False, random_state=seed).fit(x, target(x))
    assert judged(model, target, test)[0] < 5


def test_the_module_is_the_model():
    """Oracle: predictions, not clipped; the module trains, the estimator does not move."""
    target, x, test = data(5, 600, link=torch.tanh, seed=5)
    model = HierarchicalPolynomialRegressor(clip=False, random_state=0).fit(x, target(x))
    net, before = model.to_module(), model.predict(test)
    torch.testing.assert_close(net(test).detach(), before)
    net(test).sum().backward()
    assert net.weights.grad is not None
    with torch.no_grad():
        net.outer.zero_()
    torch.testing.assert_close(model.predict(test), before)


def test_arrays_and_precisions():
    """Oracle: the answer in float64; arrays give arrays, float32 tensors give float32."""
    target, x, test = data(5, 600, link=torch.tanh, seed=6)
    y = target(x)
    wanted = HierarchicalPolynomialRegressor(random_state=0).fit(x, y).predict(test)
    found = HierarchicalPolynomialRegressor(random_state=0).fit(x.numpy(), y.numpy()).predict(test.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    narrow = HierarchicalPolynomialRegressor(random_state=0).fit(x.float(), y.float()).predict(test.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("whiten", ["zca", "gaussianize"])
def test_whitening(whiten):
    """Oracle: covariance I; a target of the whitened inputs is found from skewed ones, with a warning without it."""
    target, x, test = data(5, 800, seed=7)
    A = torch.eye(5, dtype=F64) * 3
    if whiten == "zca":
        A[0, 1] = 2.0
    skewed, other = (z @ A for z in (x, test))
    if whiten == "gaussianize":
        skewed, other = skewed.exp(), other.exp()
    y = torch.tanh(target.polynomial(Whitening.of(skewed, whiten)(skewed)))
    mapped = Whitening.of(skewed, whiten)
    torch.testing.assert_close(torch.cov(mapped(skewed).T, correction=0), torch.eye(5, dtype=F64), rtol=0, atol=1e-6)
    model = HierarchicalPolynomialRegressor(split=False, whiten=whiten, random_state=0).fit(skewed, y)
    assert model.score(other, torch.tanh(target.polynomial(mapped(other)))) > 0.8
    assert any("whiten" in message for message in complaints(skewed, y, split=False))


def test_constant_targets_and_one_dimension():
    """Oracle: a constant is predicted as itself, with a warning; d = 1 works."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    with pytest.warns(NotIdentifiableWarning):
        model = HierarchicalPolynomialRegressor(random_state=0).fit(x, torch.full((50,), 2.5, dtype=F64))
    torch.testing.assert_close(model.predict(x), torch.full((50,), 2.5, dtype=F64))
    line = torch.randn(200, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    y = line[:, 0] ** 2
    assert HierarchicalPolynomialRegressor(split=False, random_state=0).fit(line, y).score(line, y) > 0.95


def test_few_samples_are_reported():
    """Oracle: the number of polynomials of degree k."""
    target, x, _ = data(20, 30, seed=8)
    assert any("below the d^k regime" in message for message in complaints(x, target(x)))


def test_refused():
    """Oracle: errors that name the bad argument."""
    x, y = torch.randn(30, 3, dtype=F64), torch.randn(30, dtype=F64)
    for name, value in {
        "degree": 0,
        "inner": "tanh",
        "n_inner": 0,
        "n_outer": 1,
        "solver": "adam",
        "refine": -1,
        "alpha_inner": 0.0,
        "alpha_outer": -1.0,
        "bias_range": 0.0,
        "whiten": "pca",
    }.items():
        with pytest.raises(ArgumentError, match=name):
            HierarchicalPolynomialRegressor(**{name: value}).fit(x, y)
    with pytest.raises(ArgumentError, match="alpha_inner"):
        HierarchicalPolynomialRegressor(solver="cg").fit(x, y)
    with pytest.raises(ArgumentError, match="split"):
        HierarchicalPolynomialRegressor(solver="gd", split=False).fit(x, y)
    with pytest.raises(ShapeError, match="y"):
        HierarchicalPolynomialRegressor().fit(x, y[:20])
    with pytest.raises(ShapeError, match="too few"):
        HierarchicalPolynomialRegressor().fit(x[:5], y[:5])
    with pytest.raises(ArgumentError, match="NaN"):
        HierarchicalPolynomialRegressor().fit(x * torch.nan, y)
    with pytest.raises(ArgumentError, match="call fit first"):
        HierarchicalPolynomialRegressor().predict(x)


def test_clone_and_search():
    """Oracle: scikit-learn's own clone, pipeline and grid search."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    target, x, _ = data(4, 400, link=torch.tanh, seed=9)
    model = HierarchicalPolynomialRegressor(n_outer=50, split=False, random_state=0)
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(model, {"degree": [1, 2]}, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotIdentifiableWarning)
        search.fit(x.numpy(), target(x).numpy())
    assert search.best_params_ == {"degree": 2}
