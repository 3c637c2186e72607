"""The optimiser against gradients, plain loops, its own checkpoint, and the optimisers' conformance suite."""

import copy
import math

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.optim.diff2 import DIFF2, ClippedSum, LinearRecords, run_diff2
from hesse.testing import check_optimizer

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


A = torch.randn(40, 6, generator=seeded(), dtype=F64)
Y = torch.sign(A[:, 0] + 0.1)
RECORDS = LinearRecords(A, Y, lambda u, y: -y[:, None] * torch.sigmoid(-y[:, None] * u))
OPTIONS = {"lr": 0.5, "n_samples": 40, "rounds": 12, "clip_grad": 1.0, "clip_diff": 0.5}


def record_loss(parameters, record):
    return torch.nn.functional.softplus(-record[1] * (record[0] @ parameters["w"])).sum()


def weights():
    return torch.zeros(6, dtype=F64).requires_grad_()


class OneRecord:
    """A problem of the conformance suite as a single record."""

    num_records = 1

    def __init__(self, optimizer, problem):
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.problem = problem

    def at(self, point):
        kept = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p, piece in zip(self.params, point.split([p.numel() for p in self.params]), strict=True):
                p.copy_(piece.reshape(p.shape))
        with torch.enable_grad():
            slopes = torch.autograd.grad(self.problem.loss(), self.params, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for p, value in zip(self.params, kept, strict=True):
                p.copy_(value)
        return torch.cat([slope.reshape(-1) for slope in slopes])

    def gradient_sum(self, point, clip, index=None):
        return ClippedSum(self.at(point), 0, 0)

    def difference_sum(self, point, previous, clip, index=None):
        return ClippedSum(self.at(point) - self.at(previous), 0, 0)


def test_conformance():
    """Oracle: the conformance suite; parameters may join before the first round only, since the budget is fixed."""
    fixed = {"n_samples": 1, "rounds": 2000, "clip_grad": math.inf, "clip_diff": math.inf, "restart_interval": 50}
    ran = check_optimizer(
        lambda params, **options: DIFF2(params, noise_multipliers=(0.0, 0.0), **({"lr": 5e-4} | fixed | options)),
        drive=lambda optimizer, problem: optimizer.step(OneRecord(optimizer, problem)),
        num_steps=1500,
        skip={"add_param_group"},
    )
    assert len(ran) == 12


def test_differences_add_up_to_the_gradient():
    """Oracle: the full gradient in float64; no noise, no clipping, one interval."""
    w = weights()
    free = {"clip_grad": math.inf, "clip_diff": math.inf, "noise_multipliers": (0.0, 0.0), "restart_interval": 12}
    optimizer = DIFF2([("w", w)], **(OPTIONS | free))
    for _ in range(12):
        exact = RECORDS.gradient_sum(w.detach(), math.inf).total / 40
        before = w.detach().clone()
        info = optimizer.step(record_loss, (A, Y), micro_batch=7)
        torch.testing.assert_close(w.detach(), before - 0.5 * exact, rtol=0, atol=1e-12)
        assert info.estimate_norm == pytest.approx(float(exact.norm()))
    assert optimizer.privacy_spent() == math.inf


def test_it_is_the_central_case_of_the_driver():
    """Oracle: `run_diff2` with one client and the same noise, loss by autograd here and by slopes there."""
    w = weights()
    optimizer = DIFF2([("w", w)], epsilon=2.0, generator=seeded(4), **OPTIONS)
    for _ in range(12):
        optimizer.step(record_loss, (A, Y))
    options = {name: value for name, value in OPTIONS.items() if name != "n_samples"}
    peer = run_diff2([RECORDS], torch.zeros(6, dtype=F64), epsilon=2.0, generator=seeded(4), **options)
    torch.testing.assert_close(w.detach(), peer.x, rtol=1e-10, atol=1e-10)
    assert optimizer.privacy_spent(1e-5) == pytest.approx(peer.privacy_spent(1e-5))
    assert 1.98 <= optimizer.privacy_spent() <= 2.0


@pytest.mark.parametrize(("adjacency", "factor"), [("replace", 2.0), ("add-remove", 1.0)])
def test_noise_is_in_proportion_to_the_sensitivity(adjacency, factor):
    """Oracle: m 2C/n and m C/n of the plan; a difference round by the distance of its two points."""
    w = weights()
    optimizer = DIFF2([w], epsilon=1.0, adjacency=adjacency, generator=seeded(), **OPTIONS)
    first = optimizer.step(RECORDS)
    moved = float(w.detach().norm())
    second = optimizer.step(RECORDS)
    assert first.restart
    assert not second.restart
    assert first.noise_std == pytest.approx(optimizer.plan.restart_multiplier * factor / 40)
    assert second.noise_std == pytest.approx(optimizer.plan.difference_multiplier * factor * 0.5 * moved / 40)
    assert second.clip == pytest.approx(0.5 * moved)


def test_a_point_that_stays_releases_nothing():
    """Oracle: the accountant after lr = 0."""
    optimizer = DIFF2([weights()], epsilon=1.0, **(OPTIONS | {"lr": 0.0}))
    optimizer.step(RECORDS)
    spent = optimizer.privacy_spent()
    info = optimizer.step(RECORDS)
    assert not info.released
    assert optimizer.privacy_spent() == spent


def test_penalty_and_momentum_are_free_of_noise():
    """Oracle: a plain loop; u ← μu + v + ∇penalty, noise off."""
    w, x, u = weights(), torch.zeros(6, dtype=F64), torch.zeros(6, dtype=F64)
    free = {"clip_grad": math.inf, "clip_diff": math.inf, "noise_multipliers": (0.0, 0.0), "momentum": 0.6}
    optimizer = DIFF2([("w", w)], **(OPTIONS | free))
    for _ in range(5):
        optimizer.step(RECORDS, penalty=lambda p: (p["w"] - 1).square().sum())
        u = 0.6 * u + RECORDS.gradient_sum(x, math.inf).total / 40 + 2 * (x - 1)
        x = x - 0.5 * u
    torch.testing.assert_close(w.detach(), x, rtol=1e-10, atol=1e-10)


def test_a_restored_run_goes_on_within_its_budget():
    """Oracle: the run that was not interrupted, fed the same noise; the spend; no generator in the file."""
    w, noise = weights(), seeded(9)
    optimizer = DIFF2([w], epsilon=1.0, generator=noise, momentum=0.5, **OPTIONS)
    for _ in range(5):
        optimizer.step(RECORDS)
    saved, again, later = copy.deepcopy(optimizer.state_dict()), w.detach().clone().requires_grad_(), seeded()
    later.set_state(noise.get_state())
    restored = DIFF2([again], epsilon=50.0, generator=later, **(OPTIONS | {"rounds": 90}))
    restored.load_state_dict(saved)
    assert restored.privacy_spent() == optimizer.privacy_spent()
    for _ in range(7):
        optimizer.step(RECORDS)
        restored.step(RECORDS)
    assert torch.equal(w, again)
    for run in (optimizer, restored):
        assert 0.99 <= run.privacy_spent() <= 1.0
        with pytest.raises(ArgumentError, match="rounds"):
            run.step(RECORDS)
    assert "generator" not in saved["diff2"]
    with pytest.raises(ArgumentError, match="n_samples"):
        DIFF2([weights()], epsilon=1.0, **(OPTIONS | {"n_samples": 41})).load_state_dict(saved)
    with pytest.raises(ArgumentError, match="not the state"):
        restored.load_state_dict(torch.optim.SGD([again]).state_dict())
    with pytest.raises(ShapeError):
        DIFF2([torch.zeros(3, dtype=F64)], epsilon=1.0, **OPTIONS).load_state_dict(saved)


def test_wrong_data_are_refused_before_a_release():
    """Oracle: the documented errors, and an untouched accountant."""
    optimizer = DIFF2([("w", weights())], epsilon=1.0, **OPTIONS)
    with pytest.raises(ArgumentError, match="n_samples=40"):
        optimizer.step(record_loss, (A[:39], Y[:39]))
    with pytest.raises(ArgumentTypeError, match="leave data out"):
        optimizer.step(RECORDS, (A, Y))
    with pytest.raises(ArgumentTypeError, match="expected a loss"):
        optimizer.step(record_loss)
    assert optimizer.privacy_spent() == 0
    optimizer.step(RECORDS)
    with pytest.raises(ArgumentError, match="rounds have been made"):
        optimizer.add_param_group({"params": [weights()]})


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.0},
        {"epsilon": None},
        {"noise_multipliers": (1.0, 1.0)},
        {"epsilon": None, "noise_multipliers": (1.0,)},
        {"epsilon": None, "noise_multipliers": (1.0, 1.0), "clip_grad": math.inf},
        {"delta": 1.0},
        {"n_samples": 0},
        {"adjacency": "swap"},
        {"accounting": "moments"},
        {"momentum": 1.0},
        {"lr": -1.0},
    ],
)
def test_bad_options_are_refused(options):
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError):
        DIFF2([weights()], **({"epsilon": 1.0} | OPTIONS | options))


def test_a_delta_that_protects_nobody_is_pointed_out():
    """Oracle: the documented warning."""
    with pytest.warns(UserWarning, match="published outright"):
        DIFF2([weights()], epsilon=1.0, delta=0.1, **OPTIONS)
