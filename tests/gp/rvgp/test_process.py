"""The Gaussian process of tangent fields."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.gp import RVGP, TangentBundle
from tests.gp.rvgp.clouds import seeded, sphere, swirl

X = sphere(300)
F = swirl(X)
SEEN = torch.randperm(300, generator=seeded(0))[:60]


@pytest.fixture(scope="module")
def bundle():
    return TangentBundle(X, 20)


@pytest.fixture(scope="module")
def model(bundle):
    return RVGP(bundle, 60).fit(SEEN, F[SEEN])


def test_recovers_a_smooth_field(model):
    """Oracle: the field itself, from a fifth of its points; and tangent to 1e-10."""
    found = model.predict()
    assert float((found - F).norm() / F.norm()) < 0.03
    nodes = model.bundle.node_of
    back = model.bundle.ambient(nodes, model.bundle.coordinates(nodes, found))
    torch.testing.assert_close(back, found, rtol=0, atol=1e-10)


def test_frames_do_not_matter(bundle, model):
    """Oracle: invariance under a random rotation or reflection of every frame, to 1e-9."""
    turns = torch.linalg.qr(torch.randn(300, 2, 2, dtype=torch.float64, generator=seeded(1))).Q
    other = RVGP(bundle.with_frames(bundle.frames @ turns), 60).fit(SEEN, F[SEEN])
    assert other.theta_ == pytest.approx(model.theta_, abs=1e-5)
    fixed = [
        RVGP(b, 60, kappa=1.0, optimize=False).fit(SEEN, F[SEEN]).predict(return_cov=True)
        for b in (bundle, other.bundle)
    ]
    for first, second in zip(*fixed, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-9)


def test_is_the_dense_process(bundle, model):
    """Oracle: the n d x n d process with kernel Φ_i S Φ_jᵀ in ambient coordinates, on the tangent part."""
    eigen = bundle.eigenpairs(60)
    phi = bundle.ambient(bundle.node_of, eigen.fields)
    S = model._prior.variances(model.theta_)
    K = torch.einsum("ikm,m,jlm->ikjl", phi, S, phi)
    local = torch.einsum("ika,ikjl,jlb->iajb", bundle.frames, K, bundle.frames)
    seen = local[SEEN][:, :, SEEN].reshape(120, 120) + model.noise_ * torch.eye(120, dtype=torch.float64)
    y = bundle.coordinates(SEEN, F[SEEN]).reshape(-1)
    cross = local[:, :, SEEN].reshape(600, 120)
    expected = bundle.ambient(bundle.node_of, (cross @ torch.linalg.solve(seen, y)).reshape(300, 2))
    mean, covariance = model.predict(return_cov=True)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-8)
    inner = local.reshape(600, 600) - cross @ torch.linalg.solve(seen, cross.T)
    blocks = inner.reshape(300, 2, 300, 2).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    dense = bundle.frames @ blocks @ bundle.frames.mT
    torch.testing.assert_close(covariance, dense, rtol=0, atol=1e-8)
    normal = torch.distributions.MultivariateNormal(torch.zeros(120, dtype=torch.float64), seen)
    assert model.log_evidence_ == pytest.approx(float(normal.log_prob(y)), rel=1e-8)
    assert float(model.log_marginal_likelihood()) == pytest.approx(model.log_evidence_)


def test_error_bars_are_honest():
    """Oracle: fields drawn from the prior itself; 95 % of the components' errors within two standard deviations."""
    small = TangentBundle(sphere(150), 12)
    eigen = small.eigenpairs(40)
    prior = RVGP(small, 40, kappa=1.0, noise=0.01, optimize=False).fit(
        [0], sphere(150)[:1].roll(1, 1).cross(sphere(150)[:1], dim=1)
    )
    S = prior._prior.variances(torch.tensor([0.0, 0.0, math.log(0.01)], dtype=torch.float64))
    weights = S.sqrt()[:, None] * torch.randn(40, 50, dtype=torch.float64, generator=seeded(2))[: len(S)]
    true = small.ambient(small.node_of, eigen.fields @ weights)
    seen = torch.arange(0, 150, 5)
    noise = 0.1 * torch.randn(len(seen), 2, 50, dtype=torch.float64, generator=seeded(3))
    fit = RVGP(small, 40).fit(seen, true[seen] + small.ambient(seen, noise))
    mean, covariance = fit.predict(return_cov=True)
    spread = torch.einsum("qka,qkl,qla->qa", small.frames, covariance, small.frames).sqrt()
    scores = small.coordinates(small.node_of, mean - true) / spread[..., None]
    assert 0.93 < float((scores.abs() < 1.96).double().mean()) < 0.97


def test_new_points(bundle, model):
    """Oracle: the field at points between those of the cloud; at a node, the prediction there."""
    new = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64, generator=seeded(4)), dim=1)
    found = model.predict(new)
    assert float((found - swirl(new)).norm() / swirl(new).norm()) < 0.05
    torch.testing.assert_close(model.predict(X[:4]), model.predict(torch.arange(4)), rtol=0, atol=1e-12)


def test_batch_and_single_fields_agree(bundle):
    """Oracle: each field by itself, with the same θ."""
    pair = torch.stack([F, 2 * swirl(X.flip(1)).flip(1)], dim=2)
    options = {"num_eigenpairs": 40, "optimize": False, "noise": 1e-2}
    both = RVGP(bundle, **options).fit(SEEN, pair[SEEN])
    for k in range(2):
        one = RVGP(bundle, **options).fit(SEEN, pair[SEEN][..., k])
        one.theta_ = both.theta_
        torch.testing.assert_close(both.predict()[..., k], one._settle().predict(), rtol=1e-9, atol=1e-11)


def test_update_is_fitting_all(bundle):
    """Oracle: all observations at once, with the same θ; a row observed twice counts twice."""
    first = RVGP(bundle, 40, optimize=False).fit(SEEN[:30], F[SEEN[:30]])
    again = torch.cat([SEEN[25:], SEEN[:3]])
    first.update(again, F[again])
    rows = torch.cat([SEEN[:30], again])
    whole = RVGP(bundle, 40, optimize=False).fit(rows, F[rows])
    whole.theta_ = first.theta_
    torch.testing.assert_close(first.predict(), whole._settle().predict(), rtol=1e-9, atol=1e-11)


def test_samples_have_mean_and_covariance(model):
    """Oracle: the posterior of `predict`; 2000 draws within five standard errors of it."""
    mean, covariance = model.predict(return_cov=True)
    draws = model.sample(2000, generator=seeded(5))
    spread = covariance.diagonal(dim1=1, dim2=2)
    assert float(((draws.mean(0) - mean) / (spread / 2000).sqrt().clamp_min(1e-12)).abs().max()) < 5
    ratio = draws.var(0).sum() / spread.sum()
    assert abs(float(ratio) - 1) < 0.05


def test_predictions_are_linear_and_differentiable(bundle):
    """Oracle: finite differences, κ, σ_f and noise fixed."""
    few = SEEN[:4]

    def predict(values: torch.Tensor) -> torch.Tensor:
        model = RVGP(bundle, 12, optimize=False).fit(few, values)
        model.theta_ = torch.zeros(3, dtype=torch.float64)
        return model._settle().predict(torch.arange(3))

    tangent = bundle.ambient(few, bundle.coordinates(few, F[few])).requires_grad_()
    assert torch.autograd.gradcheck(predict, tangent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_follows_the_observations(bundle, model, dtype):
    """Oracle: the float64 prediction, to the accuracy of the dtype."""
    found = RVGP(bundle, 60).fit(SEEN, F[SEEN].to(dtype)).predict()
    assert found.dtype == dtype
    bound = 1e-3 if dtype == torch.float32 else 0.05
    assert float((found.double() - model.predict()).norm() / F.norm()) < bound


@pytest.mark.parametrize("options", [{"kernel": "se"}, {"learn_nu": True}, {"smoothness": "manifold"}])
def test_other_spectra(bundle, options):
    """Oracle: the field itself."""
    model = RVGP(bundle, 60, **options).fit(SEEN, F[SEEN])
    assert float((model.predict() - F).norm() / F.norm()) < 0.05
    assert len(model.theta_) == (4 if options.get("learn_nu") else 3)


def test_uncertainty_of_theta(model):
    """Oracle: curvature of the evidence by finite differences along the noise."""
    bundle, eigen = model.bundle, model.bundle.eigenpairs(60)
    spread = (1 + eigen.eigenvalues / eigen.eigenvalues.median()) ** -0.75
    weights = spread[:, None] * torch.randn(len(spread), 20, dtype=torch.float64, generator=seeded(6))
    noise = 0.1 * torch.randn(60, 2, 20, dtype=torch.float64, generator=seeded(7))
    fit = RVGP(bundle, 60).fit(SEEN, bundle.ambient(SEEN, eigen.fields[SEEN] @ weights + noise))
    covariance = fit.theta_covariance()
    step = torch.tensor([0.0, 0.0, 1e-3], dtype=torch.float64)
    middle, *sides = (float(fit.log_marginal_likelihood(fit.theta_ + k * step)) for k in (0, 1, -1))
    bend = -(sum(sides) - 2 * middle) / 1e-6
    assert float(torch.linalg.inv(covariance)[2, 2]) == pytest.approx(bend, rel=1e-3)
    assert (covariance.diagonal() > 0).all()


def test_masks_and_a_field_of_zeros(bundle):
    """Oracle: row numbers; and zero."""
    mask = torch.zeros(300, dtype=torch.bool)
    mask[SEEN] = True
    rows = mask.nonzero()[:, 0]
    first, second = (RVGP(bundle, 30).fit(rule, F[rows]).predict(rule) for rule in (mask, rows))
    torch.testing.assert_close(first, second)
    assert not RVGP(bundle, 30).fit(rows, torch.zeros_like(F[rows])).predict().any()


def test_scikit_learn_can_clone_it(bundle):
    """Oracle: sklearn.base.clone; its other checks are for arrays (X, y), and this is fitted on rows of a bundle."""
    base = pytest.importorskip("sklearn.base")
    model = RVGP(bundle, 17, "se", kappa=2.0)
    copy = base.clone(model)
    assert copy.get_params()["kappa"] == 2.0
    torch.testing.assert_close(copy.fit(SEEN, F[SEEN]).predict(), model.fit(SEEN, F[SEEN]).predict())


def test_normal_parts_are_told(bundle):
    """Oracle: a field that points outward by half its length."""
    with pytest.warns(UserWarning, match="normal to the surface"):
        RVGP(bundle, 20).fit(SEEN, F[SEEN] + X[SEEN])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"kernel": "magic"}, "kernel"),
        ({"smoothness": "magic"}, "smoothness"),
        ({"kernel": "se", "learn_nu": True}, "learn_nu"),
        ({"noise": 0.0}, "noise"),
        ({"kappa": math.inf}, "kappa"),
        ({"num_eigenpairs": 0}, "num_eigenpairs"),
        ({"max_iter": 0}, "max_iter"),
    ],
)
def test_bad_parameters_are_named(bundle, options, name):
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match=name):
        RVGP(bundle, **options).fit(SEEN, F[SEEN])


def test_bad_input_is_named(bundle, model):
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentTypeError, match="TangentBundle"):
        RVGP(X).fit(SEEN, F[SEEN])
    fresh = RVGP(bundle, 10)
    with pytest.raises(ArgumentError, match="call fit first"):
        fresh.predict()
    with pytest.raises(ArgumentError, match="idx must lie in 0 to 299"):
        fresh.fit(torch.tensor([300]), F[:1])
    with pytest.raises(ArgumentError, match="idx must lie"):
        fresh.fit(torch.tensor([-1]), F[:1])
    with pytest.raises(ArgumentError, match="no observations"):
        fresh.fit(torch.zeros(0, dtype=torch.int64), F[:0])
    with pytest.raises(ShapeError, match="F of shape"):
        fresh.fit(SEEN, F)
    with pytest.raises(ShapeError, match="floating"):
        fresh.fit(SEEN, F[SEEN].long())
    with pytest.raises(ShapeError, match="mask"):
        fresh.fit(torch.ones(5, dtype=torch.bool), F)
    with pytest.raises(ShapeError, match="row numbers"):
        fresh.fit(SEEN[:, None], F[SEEN])
    with pytest.raises(NumericalError, match="F has NaN"):
        fresh.fit(SEEN, F[SEEN] * math.nan)
    with pytest.raises(ShapeError, match="fitted with 1 fields"):
        model.update(SEEN, F[SEEN][..., None].expand(-1, -1, 2))
    with pytest.raises(ArgumentError, match="num_samples"):
        model.sample(0)
    with pytest.raises(ShapeError, match="theta"):
        model.log_marginal_likelihood(torch.zeros(2))
    with pytest.raises(NumericalError, match="X has NaN"):
        model.predict(X * math.nan)
