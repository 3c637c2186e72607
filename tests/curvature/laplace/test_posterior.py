"""Evidence, predictions, draws and files of a Laplace posterior: closed forms, quadrature, and laplace-torch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature import jacobian
from hesse.curvature.laplace import laplace, load_laplace
from hesse.errors import ArgumentError, ArtifactError, ConvergenceError, ShapeError, SingularError
from hesse.io import load_tensors, save_tensors, tensor_metadata

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(outputs=2, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Linear(4, outputs, bias=bias)).double()


class Sequences(nn.Module):
    """The mean of a model's outputs over positions."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x).mean(1)


def data(likelihood, n=20, classes=2):
    x = torch.randn(n, 3, generator=seeded(), dtype=F64)
    if likelihood == "categorical":
        return x, torch.randint(classes, (n,), generator=seeded(1))
    y = torch.randn(n, classes, generator=seeded(1), dtype=F64)
    return x, (y > 0).double() if likelihood == "bernoulli" else y


def regression(prior=0.7, sigma=0.4, n=15):
    """A linear model at its maximum a posteriori, with what the closed form needs."""
    x, y = data("gaussian", n)
    Phi = torch.cat([x, torch.ones(n, 1, dtype=F64)], 1)
    P = Phi.T @ Phi / sigma**2 + prior * torch.eye(4, dtype=F64)
    W = torch.linalg.solve(P, Phi.T @ y / sigma**2).T
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(W[:, :3])
        model.bias.copy_(W[:, 3])
    return model, x, y, Phi, P


def exact_evidence(Phi, y, prior, sigma):
    """log N(y; 0, σ²I + ΦΦᵀ/δ), summed over outputs."""
    n = len(Phi)
    covariance = Phi @ Phi.T / prior + sigma**2 * torch.eye(n, dtype=F64)
    zero = torch.zeros(n, dtype=F64)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(y.T).sum()


@pytest.mark.parametrize("structure", ["full", "kron"])
def test_linear_regression_is_exact(structure):
    """Oracle: Bayesian linear regression in closed form: evidence, predictive mean and variance."""
    prior, sigma = 0.7, 0.4
    model, x, y, Phi, P = regression(prior, sigma)
    found = laplace(
        model,
        [(x[:6], y[:6]), (x[6:], y[6:])],
        "gaussian",
        structure=structure,
        prior_precision=prior,
        sigma_noise=sigma,
    )
    torch.testing.assert_close(
        found.log_marginal_likelihood(), exact_evidence(Phi, y, prior, sigma), rtol=1e-11, atol=1e-11
    )
    new = torch.randn(5, 3, generator=seeded(7), dtype=F64)
    phi = torch.cat([new, torch.ones(5, 1, dtype=F64)], 1)
    variance = (phi @ torch.linalg.inv(P) * phi).sum(1)
    predicted = found.predictive(new)
    torch.testing.assert_close(predicted.mean, model(new).detach())
    wanted = variance[:, None, None] * torch.eye(2, dtype=F64)
    torch.testing.assert_close(predicted.covariance, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(predicted.variance, (variance + sigma**2)[:, None].expand(5, 2), rtol=1e-10, atol=0)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_evidence_is_differentiable_in_both(structure):
    """Oracle: finite differences, for one prior precision and for one a layer."""
    x, y = data("gaussian")
    found = laplace(mlp(), [(x, y)], "gaussian", subset="all", structure=structure)
    sigma = torch.tensor(0.8, dtype=F64, requires_grad=True)
    for prior in (torch.tensor(1.3, dtype=F64), torch.tensor([1.3, 0.4], dtype=F64)):
        assert torch.autograd.gradcheck(found.log_marginal_likelihood, (prior.requires_grad_(), sigma))


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_evidence_in_any_structure_is_its_formula(structure):
    """Oracle: the log-determinant of the dense precision that the structure stands for, a prior a layer."""
    (x, y), model = data("categorical"), mlp()
    priors = torch.tensor([0.5, 3.0], dtype=F64)
    found = laplace(model, [(x, y)], "categorical", subset="all", structure=structure, prior_precision=priors)
    P = dense_precision(found)
    theta = [torch.cat([p.detach().reshape(-1) for p in model[i].parameters()]) for i in (0, 2)]
    value = -nn.functional.cross_entropy(model(x), y, reduction="sum").detach()
    for weights, prior in zip(theta, priors, strict=True):
        value = value - prior * weights.square().sum() / 2 + len(weights) * prior.log() / 2
    value = value - torch.linalg.slogdet(P).logabsdet / 2
    torch.testing.assert_close(found.log_marginal_likelihood(), value, rtol=1e-11, atol=1e-11)


def dense_precision(posterior):
    """P in the order of the posterior's blocks, from the square root that draws are made with."""
    size = posterior.layout.size
    priors = posterior._priors(posterior.prior_precision)
    draws = posterior.precision.unwhiten(torch.eye(size, dtype=F64), posterior.sigma_noise**-2, priors)
    root = torch.cat([block.flatten(1) for block in draws.values()], 1)
    return torch.linalg.inv(root.T @ root)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("positions", [1, 3])
def test_predictions_are_those_of_the_linearised_model(structure, likelihood, positions):
    """Oracle: J P⁻¹ Jᵀ with the Jacobian and the precision formed."""
    (x, y), model = data(likelihood), mlp() if positions == 1 else Sequences(mlp())
    x = x if positions == 1 else x[:, None] * torch.linspace(0.5, 1.5, positions, dtype=F64)[:, None]
    options = {"sigma_noise": 0.5} if likelihood == "gaussian" else {}
    found = laplace(model, [(x, y)], likelihood, subset="all", structure=structure, prior_precision=2.0, **options)
    J = jacobian(lambda m, b: m(b), model, x[:4]).to_dense().detach()
    numbers = found.layout.unflatten(torch.arange(found.layout.size, dtype=F64))
    order = torch.cat([layer.matrix_from_grads(numbers).reshape(-1) for layer in found.layers.values()]).long()
    J = J[:, order].reshape(4, 2, -1)
    wanted = J @ torch.linalg.inv(dense_precision(found)) @ J.mT
    torch.testing.assert_close(found.predictive(x[:4]).covariance, wanted, rtol=1e-9, atol=1e-12)


def test_samples_have_the_posterior_s_moments():
    """Oracle: the closed form of linear regression; 4,000 draws, every entry within 4.5 standard errors."""
    model, x, y, _, P = regression()
    found = laplace(model, [(x, y)], "gaussian", prior_precision=0.7, sigma_noise=0.4)
    draws = found.samples(4000, generator=seeded(3))
    at = found.layout.unflatten(draws)
    stacked = torch.cat([at["weight"], at["bias"][..., None]], 2)  # (S, 2, 4)
    centred = stacked - torch.cat([model.weight, model.bias[:, None]], 1).detach()
    covariance = torch.linalg.inv(P)
    z = centred.mean(0) / (covariance.diagonal() / 4000).sqrt()
    assert float(z.abs().max()) < 4.5
    for output in range(2):
        products = centred[:, output, :, None] * centred[:, output, None, :]
        z = (products.mean(0) - covariance) / (products.std(0) / 4000**0.5)
        assert float(z.abs().max()) < 4.5
    outputs = torch.func.functional_call(model, {name: value[0] for name, value in at.items()}, (x,))
    torch.testing.assert_close(outputs, x @ at["weight"][0].T + at["bias"][0])


def test_probit_and_sampled_links_against_quadrature():
    """Oracle: Gauss-Hermite for a sigmoid of one Gaussian: draws within 4.5 errors, the probit formula to 0.02."""
    (x, y), model = data("bernoulli"), mlp()
    found = laplace(model, [(x, y)], "bernoulli", subset="all")
    predicted = found.predictive(x, link="sampled", num_samples=20_000, generator=seeded(4))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    spread = predicted.variance.sqrt()
    exact = (torch.sigmoid(predicted.mean[..., None] + spread[..., None] * nodes) * weights).sum(-1)
    second = (torch.sigmoid(predicted.mean[..., None] + spread[..., None] * nodes).square() * weights).sum(-1)
    z = (predicted.probabilities - exact) / ((second - exact**2) / 20_000).sqrt()
    assert float(z.abs().max()) < 4.5
    probit = found.predictive(x).probabilities
    torch.testing.assert_close(probit, exact, rtol=0, atol=0.02)
    wanted = torch.sigmoid(predicted.mean / (1 + math.pi / 8 * predicted.variance).sqrt())
    torch.testing.assert_close(probit, wanted, rtol=1e-12, atol=0)


def test_sampled_softmax_uses_correlations():
    """Oracle: two classes are a sigmoid of the difference, whose variance takes the covariance; by quadrature."""
    (x, y), model = data("categorical"), mlp()
    found = laplace(model, [(x, y)], "categorical", subset="all")
    predicted = found.predictive(x, link="sampled", num_samples=20_000, generator=seeded(5))
    C = predicted.covariance
    spread = (C[:, 0, 0] + C[:, 1, 1] - 2 * C[:, 0, 1]).sqrt()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    at = torch.sigmoid((predicted.mean[:, 0] - predicted.mean[:, 1])[:, None] + spread[:, None] * nodes)
    exact, second = (at * weights).sum(-1), (at.square() * weights).sum(-1)
    z = (predicted.probabilities[:, 0] - exact) / ((second - exact**2) / 20_000).sqrt()
    assert float(z.abs().max()) < 4.5
    torch.testing.assert_close(predicted.probabilities.sum(1), torch.ones(20, dtype=F64))


@pytest.mark.parametrize("structure", ["full", "kron"])
@pytest.mark.parametrize("per_layer", [False, True])
def test_the_prior_is_where_the_evidence_is_highest(structure, per_layer):
    """Oracle: MacKay's condition, δ ‖θ‖² = the number of well-determined weights; the gradient vanishes there."""
    (x, y), model = data("gaussian", n=60), mlp()
    found = laplace(model, [(x, y)], "gaussian", subset="all", structure=structure)
    best = found.optimize_prior_precision(per_layer=per_layer, noise=True)
    assert best.prior_precision.shape == ((2,) if per_layer else ())
    assert float(best.log_marginal_likelihood()) >= float(found.log_marginal_likelihood())
    priors = best._priors(best.prior_precision)
    covariance = torch.linalg.inv(dense_precision(best)).diagonal()
    sizes = [layer.out_features * layer.columns for layer in best.layers.values()]
    determined = [n - p * c.sum() for n, p, c in zip(sizes, priors, covariance.split(sizes), strict=True)]
    left, right = priors * best.squared_norms, torch.stack(determined)
    if not per_layer:
        left, right = left.sum(), right.sum()
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    residual = (y - model(x)).square().sum().detach()
    noise = residual / (y.numel() - torch.stack(determined).sum())
    torch.testing.assert_close(best.sigma_noise**2, noise, rtol=1e-4, atol=0)


def test_a_prior_without_evidence_grows_towards_its_bound():
    """Oracle: weights of zero: the evidence grows with δ for ever, ever less."""
    model, (x, y) = nn.Linear(3, 2).double(), data("gaussian")
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    best = laplace(model, [(x, y)], "gaussian").optimize_prior_precision()
    assert 1e8 < float(best.prior_precision) <= math.exp(23)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_a_saved_posterior_predicts_the_same(structure, tmp_path):
    """Oracle: the posterior that was saved, bit by bit."""
    (x, y), model = data("categorical"), mlp()
    model[0].bias.requires_grad_(False)
    found = laplace(model, [(x, y)], "categorical", subset="all", structure=structure, prior_precision=3.0)
    found.save(tmp_path / "posterior.safetensors")
    again = load_laplace(tmp_path / "posterior.safetensors", model)
    assert torch.equal(found.predictive(x).covariance, again.predictive(x).covariance)
    assert torch.equal(found.predictive(x).probabilities, again.predictive(x).probabilities)
    assert torch.equal(found.log_marginal_likelihood(), again.log_marginal_likelihood())
    assert torch.equal(found.samples(3, generator=seeded()), again.samples(3, generator=seeded()))
    with torch.no_grad():
        model[0].weight += 1e-6
    with pytest.raises(ArtifactError, match="other weights"):
        load_laplace(tmp_path / "posterior.safetensors", model)
    (tmp_path / "posterior.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError):
        load_laplace(tmp_path / "posterior.safetensors", model)


def test_foreign_files_are_refused(tmp_path):
    """Oracle: the error class; another kind, a missing tensor, one of another shape."""
    (x, y), model, path = data("categorical"), mlp(), tmp_path / "posterior.safetensors"
    save_tensors(path, {"x": x})
    with pytest.raises(ArtifactError, match="not a Laplace posterior"):
        load_laplace(path, model)
    laplace(model, [(x, y)], "categorical").save(path)
    tensors, metadata = load_tensors(path), tensor_metadata(path)
    for broken in ({"left 0": tensors["left 0"][:1]}, {"sigma_noise": None}, {"table 0": None}):
        save_tensors(path, {name: t for name, t in (tensors | broken).items() if t is not None}, metadata)
        with pytest.raises(ArtifactError, match="damaged"):
            load_laplace(path, model)
    for key in ("layers", "num_observations"):
        save_tensors(path, tensors, metadata | {key: "nothing"})
        with pytest.raises(ArtifactError, match="damaged"):
            load_laplace(path, model)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_float32_agrees_with_float64(structure):
    """Oracle: the same fit in float64."""
    (x, y), model = data("categorical"), mlp()
    narrow = mlp().float()
    narrow.load_state_dict(model.state_dict())
    wide = laplace(model, [(x, y)], "categorical", subset="all", structure=structure)
    found = laplace(narrow, [(x.float(), y)], "categorical", subset="all", structure=structure)
    predicted = found.predictive(x.float())
    assert predicted.covariance.dtype == predicted.probabilities.dtype == torch.float32
    torch.testing.assert_close(predicted.covariance.double(), wide.predictive(x).covariance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.log_marginal_likelihood(), wide.log_marginal_likelihood(), rtol=1e-5, atol=1e-4)


def test_bad_input_is_refused():
    """Oracle: the error classes and the names in their messages."""
    (x, y), model = data("categorical"), mlp()
    found = laplace(model, [(x, y)], "categorical", structure="full")
    with pytest.raises(ArgumentError, match="link"):
        found.predictive(x, link="laplace")
    with pytest.raises(ArgumentError, match="num_samples"):
        found.predictive(x, link="sampled", num_samples=0)
    with pytest.raises(ArgumentError, match="num_samples"):
        found.samples(0)
    with pytest.raises(ArgumentError, match="sigma_noise"):
        found.log_marginal_likelihood(sigma_noise=1.0)
    with pytest.raises(ArgumentError, match="noise"):
        found.optimize_prior_precision(noise=True)
    with pytest.raises(ArgumentError, match="max_steps"):
        found.optimize_prior_precision(max_steps=0)
    with pytest.raises(ArgumentError, match="prior_precision"):
        found.log_marginal_likelihood(-1.0)
    with pytest.raises(ShapeError, match="prior_precision"):
        found.log_marginal_likelihood(torch.ones(2))
    with pytest.raises(ConvergenceError, match="max_steps"):
        found.optimize_prior_precision(max_steps=1)
    broken = replace(found, precision=replace(found.precision, matrix=-found.precision.matrix))
    with pytest.raises(SingularError, match="raise it"):
        broken.predictive(x)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("subset", ["last_layer", "all"])
@pytest.mark.parametrize("structure", ["kron", "full", "diag"])
def test_agrees_with_laplace_torch(likelihood, subset, structure):
    """Oracle: laplace-torch over curvlinops, without biases (its Kronecker factors take them apart), in two batches."""
    peer = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    from laplace.curvature import CurvlinopsGGN

    (x, y), model = data(likelihood), mlp(bias=False)
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    task = "regression" if likelihood == "gaussian" else "classification"
    options = {"sigma_noise": 0.6} if likelihood == "gaussian" else {}
    theirs = peer.Laplace(
        model,
        task,
        subset_of_weights=subset,
        hessian_structure=structure,
        backend=CurvlinopsGGN,
        prior_precision=torch.tensor(1.7, dtype=F64),
        **{name: torch.tensor(value, dtype=F64) for name, value in options.items()},
    )
    theirs.fit(loader)
    ours = laplace(model, loader, likelihood, subset=subset, structure=structure, prior_precision=1.7, **options)
    wanted = torch.as_tensor(theirs.log_marginal_likelihood()).detach().double()
    torch.testing.assert_close(ours.log_marginal_likelihood(), wanted, rtol=1e-7, atol=1e-6)
    mean, covariance = theirs._glm_predictive_distribution(x)
    predicted = ours.predictive(x)
    torch.testing.assert_close(predicted.mean, mean.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(predicted.covariance, covariance.detach(), rtol=1e-6, atol=1e-8)
    if likelihood == "categorical":
        probabilities = theirs(x, pred_type="glm", link_approx="probit").detach()
        torch.testing.assert_close(predicted.probabilities, probabilities, rtol=1e-6, atol=1e-8)
