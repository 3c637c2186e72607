"""The report against its parts, computed densely."""

import math

import pytest
import torch
from torch import nn

from hesse.curvature.stability.coordinates import range_coordinates
from hesse.curvature.stability.linearise import linearise
from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.report import non_uniformity, stability_report
from hesse.curvature.stability.thresholds import max_stable_learning_rate
from hesse.errors import ArgumentError

F64 = torch.float64


def minimum(outputs=1, n=6, seed=0):
    """A network, and targets that it fits."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).to(F64)
    x = torch.randn(n, 3, dtype=F64)
    return net, x, net(x).detach()


def report(*args, **kwargs):
    return stability_report(*args, lyapunov_steps=50, generator=torch.Generator().manual_seed(0), **kwargs)


def test_numbers_are_those_of_the_dense_matrices():
    """Oracle: H and its samples' H_i formed in parameter space."""
    net, x, y = minimum()
    found = report(net, (x, y), 0.1, 2, loss="half_mse")
    a = linearise(net, (x, y), "half_mse").features.squeeze(1)
    H = a.mT @ a / 6
    values = torch.linalg.eigvalsh(H)
    squares = sum(torch.outer(r, r) @ torch.outer(r, r) for r in a) / 6 - H @ H
    assert found.lambda_max == pytest.approx(float(values[-1]))
    assert found.trace == pytest.approx(float(H.trace()))
    assert found.frobenius == pytest.approx(float(H.norm()))
    assert found.nonuniformity == pytest.approx(float(torch.linalg.eigvalsh(squares)[-1].sqrt()))
    assert found.radius == pytest.approx(second_moment_radius(a, 0.1, 2, method="dense").value, abs=1e-9)
    assert found.max_lr == pytest.approx(max_stable_learning_rate(a, 2).value)
    assert found.margin == pytest.approx(found.max_lr / 0.1 - 1)
    assert sum(found.layer_traces.values()) == pytest.approx(found.trace)
    assert found.stable_sgd == (found.radius <= 1)
    assert found.interpolation_residual == 0
    assert math.isnan(found.alignment)
    assert math.isnan(found.frobenius_bound)
    step = (torch.eye(26, dtype=F64) - 0.1 * H) @ (torch.eye(26, dtype=F64) - 0.1 * H) + 0.01 * 0.4 * squares
    basis = torch.linalg.eigh(H)[1][:, values > 1e-10]
    assert found.one_step == pytest.approx(float(torch.linalg.eigvalsh(basis.mT @ step @ basis)[-1]))


def test_verdicts_around_the_threshold():
    """Oracle: the threshold, from both sides."""
    net, x, y = minimum()
    threshold = report(net, (x, y), 0.1, 1).max_lr
    below, above = report(net, (x, y), 0.99 * threshold, 1), report(net, (x, y), 1.01 * threshold, 1)
    assert below.stable_sgd
    assert below.margin > 0
    assert not above.stable_sgd
    assert above.margin < 0
    assert above.stable_gd
    assert above.min_batch_size > 1
    assert not report(net, (x, y), 2.1 / above.lambda_max, 1).stable_gd
    assert report(net, (x, y), 2.1 / above.lambda_max, 1).min_batch_size is None
    still = report(net, (x, y), 0.0, 1)
    assert still.stable_sgd
    assert still.margin == math.inf


def test_learning_rates_belong_to_a_loss():
    """Oracle: torch's mean over C outputs has 2/C times the curvature of half the sum."""
    net, x, y = minimum(outputs=3)
    ours, torchs = (report(net, (x, y), 0.01, 2, loss=loss) for loss in ("half_mse", "mse"))
    assert torchs.trace == pytest.approx(2 / 3 * ours.trace)
    assert torchs.max_lr == pytest.approx(3 / 2 * ours.max_lr)
    assert torchs.radius == pytest.approx(report(net, (x, y), 0.01 * 2 / 3, 2, loss="half_mse").radius)


def test_the_printed_report_names_its_assumptions():
    """Oracle: reading it."""
    net, x, y = minimum()
    text = str(report(net, (x, y), 0.1, 2))
    for words in ("gradient descent", "mean square", "typical run", "without replacement", "B = 2", "linearised"):
        assert words in text
    assert "theorem" not in str(report(net, (x, y), 0.1, 1))
    assert "heuristic" not in text


def test_residuals_warn_and_leave_a_noise_floor():
    """Oracle: closed forms for one parameter: x_i θ fitted to y_i, floor and alignment by hand."""
    x, y = torch.tensor([[1.0], [2.0]], dtype=F64), torch.tensor([[1.0], [1.0]], dtype=F64)
    line = nn.Linear(1, 1, bias=False).to(F64)
    theta = 3 / 5  # least squares
    nn.init.constant_(line.weight, theta)
    with pytest.warns(UserWarning, match="residuals"):
        found = report(line, (x, y), 0.1, 1, loss="half_mse")
    gradients = [1 * (theta - 1), 2 * (2 * theta - 1)]
    sigma, H = sum(g * g for g in gradients) / 2, 2.5
    loss = ((theta - 1) ** 2 + (2 * theta - 1) ** 2) / 4
    assert found.loss == pytest.approx(loss)
    assert found.alignment == pytest.approx(sigma * H / (2 * loss * H**2))
    radius = (0.9**2 + 0.6**2) / 2
    assert found.radius == pytest.approx(radius)
    assert found.noise_floor == pytest.approx(H / 2 * 0.01 * sigma / (1 - radius))
    assert found.frobenius_bound == pytest.approx(10 / found.alignment**0.5)
    assert any("heuristic" in one for one in found.assumptions)


def test_cross_entropy_is_called_a_heuristic():
    """Oracle: the rule."""
    net, x, _ = minimum(outputs=2)
    with pytest.warns(UserWarning, match="residuals"):
        found = report(net, (x, torch.tensor([0, 1, 0, 1, 1, 0])), 0.1, 2, loss="cross_entropy")
    assert any("heuristic" in one for one in found.assumptions)


def test_momentum_and_preconditioner_reach_the_operator():
    """Oracle: the parts called by hand."""
    net, x, y = minimum()
    D = {name: torch.full_like(p, 4.0).detach() for name, p in net.named_parameters()}
    found = report(net, (x, y), 0.1, 2, momentum=0.5, preconditioner=D)
    a = linearise(net, (x, y)).features / 2
    assert found.radius == pytest.approx(second_moment_radius(a, 0.1, 2, momentum=0.5).value, abs=1e-8)
    assert any("preconditioner" in one for one in found.assumptions)
    assert math.isnan(found.noise_floor)


def test_one_step_test_is_sufficient_and_its_part_not_necessary():
    """Oracle: λ_max(T(I)) <= 1 makes the radius at most one; s <= 1/(η √f) belongs to that test, not to stability."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for _ in range(300):
        n, p = (int(torch.randint(2, 12, (1,), generator=generator)) for _ in range(2))
        scale = torch.randn(n, 1, generator=generator, dtype=F64).exp()
        coordinates = range_coordinates(torch.randn(n, p, generator=generator, dtype=F64) * scale)
        threshold = max_stable_learning_rate(coordinates, 1).value
        spread = non_uniformity(coordinates)
        step = torch.diag((1 - threshold * coordinates.eigenvalues).square()) + threshold**2 * spread
        assert float(torch.linalg.eigvalsh(step)[-1]) >= 1 - 1e-9
        largest = max(largest, threshold * float(torch.linalg.eigvalsh(spread)[-1]) ** 0.5)
    assert largest > 1


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    net, x, y = minimum()
    with pytest.raises(ArgumentError, match="lr"):
        stability_report(net, (x, y), -1.0, 1)
    with pytest.raises(ArgumentError, match="batch_size"):
        stability_report(net, (x, y), 0.1, 7)
