"""SubGM as an estimator against the truth, its own functions, and scikit-learn's clone."""

import pytest
import torch
from sklearn.base import clone

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import Dense
from hesse.optim.subgm import SubGM, recover_psd
from tests.optim.subgm.cases import F64, problem, relative_error, seeded


def test_what_fit_learns():
    """Oracle: the truth, and `recover_psd` with the same arguments."""
    A, y, truth = problem(outliers=0.1)
    model = SubGM(random_state=0).fit(A, y)
    assert relative_error(model.matrix_, truth) < 1e-6
    assert model.numerical_rank_ == 2
    assert model.converged_
    assert model.n_iter_ == len(model.loss_history_) < 3000
    torch.testing.assert_close(model.factor_, recover_psd(A, y, generator=seeded()).factor)
    torch.testing.assert_close(model.predict(A), (A * model.matrix_).sum((1, 2)))
    clean = (A * truth).sum((1, 2))
    assert model.score(A, clean) > 1 - 1e-6
    assert model.score(A, clean + 1) < 1
    assert model.score(A[:1], clean[:1]) == 0.0  # one target is its own median: nothing but an exact hit scores


def test_an_operator_serves_as_well_as_matrices():
    """Oracle: dense matrices; rounding decides nothing at convergence."""
    A, y, truth = problem(outliers=0.1)
    assert relative_error(SubGM(random_state=0).fit(Dense(A.flatten(1)), y).matrix_, truth) < 1e-6


def test_factors_are_paired():
    """Oracle: the truth, from y = aᵀXa, of which a twentieth is wrong; an odd one out is dropped."""
    g = seeded(4)
    truth = problem()[2]
    a = torch.randn(1601, 6, generator=g, dtype=F64)
    clean = ((a @ truth) * a).sum(1)
    y = clean + 30 * (torch.rand(1601, generator=g) < 0.05) * torch.randn(1601, generator=g, dtype=F64)
    model = SubGM(random_state=0).fit(a, y)
    assert relative_error(model.matrix_, truth) < 1e-5
    torch.testing.assert_close(model.predict(a), clean, rtol=1e-4, atol=1e-4)


def test_a_warm_start_goes_on():
    """Oracle: one fit of as many steps, with a hold-out that must be the same in both parts."""
    A, y, _ = problem(outliers=0.1, noise=0.1)
    whole = SubGM(max_iter=200, tol=0.0, holdout=0.1, random_state=3).fit(A, y)
    parts = SubGM(max_iter=90, tol=0.0, holdout=0.1, random_state=3, warm_start=True).fit(A, y)
    parts.set_params(max_iter=200).fit(A, y)
    assert torch.equal(parts.factor_, whole.factor_)
    assert parts.n_iter_ == 200


def test_scikit_learn_can_clone_it():
    """Oracle: sklearn.base.clone, and parameters by name."""
    model = SubGM(rank=3, step="geometric")
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    assert repr(copy) == "SubGM(rank=3, step='geometric')"
    with pytest.raises(ArgumentError, match="no parameter ranks"):
        copy.set_params(ranks=1)


def test_a_target_that_is_not_psd_is_refused():
    """Oracle: eigenvalues 1 and -1; a semi-definite one passes over many seeds."""
    A, _, _ = problem()
    with pytest.raises(ArgumentError, match="negative eigenvalue"):
        SubGM().fit(A, A[:, 0, 0] - A[:, 1, 1])
    for seed in range(20):
        SubGM(max_iter=1).fit(*problem(seed, outliers=0.3)[:2])


def test_warnings_say_what_to_do():
    """Oracle: measurements with a mean, and fewer than the rank found asks for."""
    A, _, truth = problem()
    shifted = A @ A.mT
    with pytest.warns(UserWarning, match="all targets have one sign"):
        SubGM(max_iter=2).fit(shifted, (shifted * truth).sum((1, 2)))
    with pytest.warns(UserWarning, match="5 measurements do not determine"):
        SubGM(max_iter=2).fit(*(x[:5] for x in problem()[:2]))


def test_bad_arguments_are_refused():
    """Oracle: the errors promised."""
    A, y, _ = problem()
    with pytest.raises(ArgumentError, match="call fit first"):
        SubGM().predict(A)
    with pytest.raises(ArgumentError, match=r"holdout in \[0, 1\)"):
        SubGM(holdout=1.0).fit(A, y)
    with pytest.raises(ShapeError, match=r"y of shape \(400,\)"):
        SubGM().fit(A, y[:5])
    with pytest.raises(ShapeError, match=r"y of shape \(400,\) and two factors or more"):
        SubGM().fit(A[:, 0], y[:5])
    with pytest.raises(ArgumentError, match="finite factors"):
        SubGM().fit(A[:, 0] / 0, y)
    with pytest.raises(ArgumentError, match="rank <= d = 6"):
        SubGM(rank=9).fit(A, y)
    with pytest.raises(ShapeError, match="A is of order 5, the fitted matrix of 6"):
        SubGM(max_iter=1).fit(A, y).predict(A[:, :5, :5])
