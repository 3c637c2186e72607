"""The way from retraining to a score, one assumption at a time."""

import numpy as np
import pytest
import torch

from hesse.curvature.ekfac import Absolute
from hesse.errors import ArgumentError, ShapeError
from hesse.influence.engine import Influence
from hesse.influence.evaluate import STAGES, NewtonCG, loo_gap
from hesse.influence.objective import RegressionLoss
from hesse.influence.trajectory import SGD, TrainingSchedule

F64 = torch.float64
PULL = 0.2


@pytest.fixture(scope="module")
def ridge(tmp_path_factory):
    """A linear regression at its minimum, where every stage has a closed form."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=F64), torch.randn(12, 1, dtype=F64)
    net = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False)).to(F64).eval()
    best = torch.linalg.lstsq(x, y).solution
    start = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False)).to(F64).eval()
    with torch.no_grad():
        net[0].weight.copy_(best.T)
    influence = Influence(net, loss=RegressionLoss(), damping=Absolute(PULL), fisher="exact")
    folder = tmp_path_factory.mktemp("ridge") / "run"
    factors = influence.fit((x, y), folder, progress=False)
    asked = (torch.randn(4, 3, dtype=F64), torch.randn(4, 1, dtype=F64))
    scores = np.array(influence.score(asked, (x, y), folder, rank=None, progress=False).values)
    steps = TrainingSchedule(SGD(), (0.3,) * 600, (tuple(range(12)),) * 600)
    return influence, factors, scores, (x, y), asked, start, steps


def gap_of(ridge, points):
    influence, factors, scores, data, asked, start, steps = ridge
    return loo_gap(
        influence, factors, scores, data, asked, points, start, steps, warm=steps, solver=NewtonCG(tol=1e-10),
        progress=False,
    )  # fmt: skip


def test_stages_of_a_regression_are_closed_forms(ridge):
    """Oracle: least squares without the point, with and without the pull, and its derivative."""
    influence, _factors, scores, (x, y), asked, _start, _steps = ridge
    points = [3, 8]
    found = gap_of(ridge, points)
    theta = influence.model[0].weight.detach()[0]

    def measured(weights):
        return -((asked[0] @ weights - asked[1][:, 0]) ** 2) / 2

    for k, m in enumerate(points):
        keep = torch.arange(12) != m
        gone = torch.linalg.lstsq(x[keep], y[keep]).solution[:, 0]
        gram, moment = x[keep].T @ x[keep] / 12, x[keep].T @ y[keep][:, 0] / 12
        near = torch.linalg.solve(gram + PULL * torch.eye(3, dtype=F64), moment + PULL * theta)
        for name, weights in {"retraining": gone, "warm start": gone, "proximity": near, "response": near}.items():
            wanted = (measured(theta) - measured(weights)).numpy()
            np.testing.assert_allclose(found.stages[name][:, k], wanted, rtol=1e-5, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found.stages["linear"], scores[:, points], rtol=1e-8)
    assert found.gaps["non-convergence"] < 1e-6  # the weights are at their minimum
    assert found.gaps["solver"] < 1e-6  # one linear layer: the factors are exact
    assert found.gaps["proximity"] > 1e-3
    assert found.gaps["linearisation"] > 1e-3
    assert list(found.stages) == list(STAGES)
    assert found.steps["solver"] == pytest.approx(1)


def test_bad_input_is_named(ridge):
    """Oracle: the argument that each message names."""
    influence, factors, scores, data, asked, start, steps = ridge
    with pytest.raises(ArgumentError, match="points"):
        gap_of(ridge, [12])
    with pytest.raises(ShapeError, match="scores"):
        loo_gap(influence, factors, scores[:, :5], data, asked, [0], start, steps, warm=steps, progress=False)
