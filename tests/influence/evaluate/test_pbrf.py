"""The proximal response: what influence linearises."""

import numpy as np
import pytest
import torch

from hesse.curvature.ekfac import Absolute
from hesse.errors import ArgumentError
from hesse.influence.engine import Influence
from hesse.influence.evaluate import AdamSolver, NewtonCG, cosine_rates, damped_ggn_scores, pbrf, train_model
from hesse.influence.evaluate import proximal as proximal_module
from hesse.influence.objective import ClassificationLoss, RegressionLoss
from hesse.influence.trajectory import SGD, TrainingSchedule
from tests.influence._tiny import classifier, gpt2, points, tokens

F64 = torch.float64
LOSS = ClassificationLoss()


def fitted(net, data, folder, **options):
    influence = Influence(net, **options)
    return influence, influence.fit(data, folder, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data, asked = points(30), points(4, seed=9)
    steps = TrainingSchedule(SGD(0.9), tuple(cosine_rates(0.1, 60)), (tuple(range(30)),) * 60)
    net = train_model(classifier(), data, steps, loss=LOSS, progress=False)
    influence, factors = fitted(net, data, tmp_path_factory.mktemp("fit") / "run", loss=LOSS, fisher="exact")
    return influence, factors, data, asked


def dense_scores(influence, factors, data, asked):
    """Float64, one Jacobian after the other."""
    net, layers = influence.model, influence.layers
    named = dict(net.named_parameters())

    def gradient(value):
        grads = dict(zip(named, torch.autograd.grad(value, list(named.values()), retain_graph=True), strict=True))
        return torch.cat([layer.matrix_from_grads(grads).flatten() for layer in layers.values()])

    lam = torch.cat(
        [torch.full((la.out_features * la.columns,), factors[n].damping, dtype=F64) for n, la in layers.items()]
    )
    matrix = torch.diag(lam)
    for x in data[0]:
        logits = net(x[None])[0]
        jacobian, p = torch.stack([gradient(z) for z in logits]), logits.detach().softmax(0)
        matrix += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(data[0])

    def losses(part):
        return [gradient(net(x[None]).log_softmax(1)[0, y]) for x, y in zip(*part, strict=True)]

    return (torch.stack(losses(asked)) @ torch.linalg.solve(matrix, torch.stack(losses(data)).T) / len(data[0])).numpy()


def test_linear_answer_is_the_dense_solve(trained, monkeypatch):
    """Oracle: the Gauss-Newton matrix from Jacobians; by its Cholesky factor, and by preconditioned CG."""
    influence, factors, data, asked = trained
    wanted = dense_scores(influence, factors, data, asked)
    np.testing.assert_allclose(damped_ggn_scores(influence, factors, data, asked), wanted, rtol=1e-8, atol=1e-12)
    monkeypatch.setattr(proximal_module, "_DENSE", 0)
    found = damped_ggn_scores(influence, factors, data, asked, [3, 0], rtol=1e-12)
    np.testing.assert_allclose(found, wanted[:, [3, 0]], rtol=1e-6, atol=1e-10)


def test_small_responses_tend_to_the_linear_answer(trained):
    """Oracle: the linear answer; the odd part's error falls with the square of the step, a hundredfold for a tenth."""
    influence, factors, data, asked = trained
    where = [0, 7, 21]
    linear = damped_ggn_scores(influence, factors, data, asked, where)
    errors = []
    for copies in (0.1, 0.01):
        found = pbrf(
            influence, factors, data, asked, where, copies=copies, solver=NewtonCG(tol=1e-9), progress=False
        )  # fmt: skip
        assert found.gradient_norm.max() < 1e-6  # what rounding leaves of a small gradient
        errors.append(np.abs(found.values - linear).max())
        np.testing.assert_allclose((found.added + found.removed) / 2, found.values, rtol=1e-9)
    assert errors[0] < 0.05 * np.abs(linear).max()
    assert errors[1] < errors[0] / 50


def test_response_of_a_linear_regression_is_exact(tmp_path):
    """Oracle: the response of ½‖·‖² with one linear layer in closed form, at a whole copy."""
    torch.manual_seed(0)
    x, y = torch.randn(15, 3, dtype=F64), torch.randn(15, 1, dtype=F64)
    net = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False)).to(F64).eval()
    influence, factors = fitted(net, (x, y), tmp_path / "run", loss=RegressionLoss(), damping=Absolute(0.3))
    asked = (x[:2] + 1, y[:2])
    found = pbrf(influence, factors, (x, y), asked, [4], copies=1.0, solver=NewtonCG(tol=1e-10), progress=False)
    theta = net[0].weight.detach()[0]
    gram = x.T @ x / 15 + 0.3 * torch.eye(3, dtype=F64)

    def response(s):
        matrix = gram + s * torch.outer(x[4], x[4]) / 15
        moved = theta - torch.linalg.solve(matrix, s * (x[4] @ theta - y[4, 0]) * x[4] / 15)
        return -((asked[0] @ moved - asked[1][:, 0]) ** 2) / 2

    wanted = (response(1.0) - response(-1.0)) / 2
    np.testing.assert_allclose(found.values[:, 0], wanted.numpy(), rtol=1e-7)


def test_adam_finds_the_same_response(trained):
    """Oracle: Newton's."""
    influence, factors, data, asked = trained
    newton = pbrf(influence, factors, data, asked, [2, 5], progress=False)
    adam = pbrf(
        influence, factors, data, asked, [2, 5], solver=AdamSolver(3e-4, 800), progress=False
    )  # fmt: skip
    assert np.corrcoef(newton.values.ravel(), adam.values.ravel())[0, 1] > 0.99


def test_language_model_responses(tmp_path):
    """Oracle: the linear answer of a ragged GPT-2, its layers together, to 1 % of the largest."""
    net, data, asked = gpt2(), tokens(12), tokens(2, seed=4)
    influence, factors = fitted(net, data, tmp_path / "run")
    linear = damped_ggn_scores(influence, factors, data, asked, [1, 6])
    found = pbrf(influence, factors, data, asked, [1, 6], copies=0.01, progress=False)
    assert np.abs(found.values - linear).max() < 0.01 * np.abs(linear).max()


def test_measurement_keeps_its_sign(trained):
    """Oracle: minus the loss as a measurement of the user's own gives the default's numbers."""
    influence, factors, data, asked = trained

    def log_probability(model, batch):
        return model(batch["inputs"]).log_softmax(1).gather(1, batch["labels"][:, None])[:, 0]

    for ask in (damped_ggn_scores, lambda *a, **k: pbrf(*a, progress=False, **k).values):
        plain = ask(influence, factors, data, asked, [1, 2])
        own = ask(influence, factors, data, asked, [1, 2], measurement=log_probability)
        np.testing.assert_allclose(own, plain, rtol=1e-6, atol=1e-12)


def test_float32_models_are_widened(trained, tmp_path):
    """Oracle: the same model and data in float64."""
    wide, factors, data, asked = trained
    net = classifier(torch.float32)
    net.load_state_dict(wide.model.state_dict())
    narrow = Influence(net, loss=LOSS)
    cut = [(part[0].float(), part[1]) for part in (data, asked)]
    for ask in (damped_ggn_scores, lambda *a: pbrf(*a, progress=False).values):
        expected = ask(wide, factors, data, asked, [1, 2])
        np.testing.assert_allclose(ask(narrow, factors, *cut, [1, 2]), expected, rtol=1e-2, atol=1e-5)


def test_bad_input_is_named(trained, tmp_path):
    """Oracle: the argument that each message names."""
    influence, factors, data, asked = trained
    identity = fitted(influence.model, data, tmp_path / "run", loss=LOSS, strategy="identity")
    for call, message in [
        (lambda: pbrf(influence, factors, data, asked, [30]), "points"),
        (lambda: pbrf(influence, factors, data, asked, []), "points"),
        (lambda: pbrf(influence, factors, data, asked, [0], copies=0.0), "copies"),
        (lambda: pbrf(influence, factors, data, asked, [0], at_once=0), "at_once"),
        (lambda: pbrf(*identity, data, asked, [0]), "factors"),
        (lambda: NewtonCG(tol=0), "NewtonCG"),
        (lambda: AdamSolver(0), "AdamSolver"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            call()
