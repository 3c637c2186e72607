"""Steps of the methods against their recursions written out, and the protocol that keeps samples where they belong."""

import math
import warnings

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.rl import (
    HARPG,
    NPGIGT,
    NormalizedMomentumPG,
    Reinforce,
    StormPG,
    load_parameters,
    policy_gradient,
    policy_hvp,
    trajectory_log_probs,
)
from tests.rl.policy_gradient.cases import decision_process, draw, seeded


def advance(world, policy, optimizer, generator, batch=5):
    """One step by the protocol; the batches it used and what it said."""
    batches = {}
    for point in optimizer.sampling_points(batch, generator=generator):
        load_parameters(policy, point.parameters)
        batches[point.name] = draw(world, policy, point.num_trajectories, generator)
    return batches, optimizer.step(batches)


def test_implicit_transport():
    """Oracle: the recursion: where it samples, its direction, its step length, over four steps."""
    world, policy, theta = decision_process()
    optimizer, generator = NPGIGT(policy, 0.5, extrapolation_cap=None), seeded(1)
    before, direction = theta, None
    for t in range(4):
        eta = (2 / (t + 2)) ** 0.8
        (point,) = optimizer.sampling_points()
        torch.testing.assert_close(point.parameters, theta + (1 - eta) / eta * (theta - before))
        batches, info = advance(world, policy, optimizer, generator)
        g = policy_gradient(batches["gradient"], policy)
        direction = g if direction is None else (1 - eta) * direction + eta * g
        torch.testing.assert_close(optimizer.direction, direction)
        before, theta = theta, theta + 0.5 * 2 / (t + 2) * direction / direction.norm()
        torch.testing.assert_close(optimizer.parameters, theta)
        assert math.isclose(info.step_length, 1 / (t + 2), rel_tol=1e-9)


@pytest.mark.parametrize("normalized", [True, False])
def test_hessian_aided(normalized):
    """Oracle: the recursion; the point of the product lies between the last two iterates."""
    world, policy, theta = decision_process()
    optimizer, generator, direction, before = HARPG(policy, 0.3, normalized=normalized), seeded(2), None, theta
    for t in range(4):
        batches, info = advance(world, policy, optimizer, generator)
        g, eta = policy_gradient(batches["gradient"], policy), 2 / (t + 2)
        if direction is None:
            assert set(batches) == {"gradient"}
            direction = g
        else:
            change = theta - before
            q = (batches["hvp"].parameters - before) @ change / (change @ change)
            assert 0 <= q <= 1
            v = policy_hvp(batches["hvp"], policy, change)
            assert math.isclose(info.hvp_norm, float(v.norm()))
            direction = (1 - eta) * (direction + v) + eta * g
        torch.testing.assert_close(optimizer.direction, direction)
        length = 0.3 * (eta / direction.norm() if normalized else eta**0.5)
        before, theta = theta, theta + length * direction
        torch.testing.assert_close(optimizer.parameters, theta)


def test_baseline_methods():
    """Oracle: the recursions of N-MPG, vanilla ascent and STORM with importance weights, at their second step."""
    for make in (lambda p: NormalizedMomentumPG(p, 0.3), lambda p: Reinforce(p, 0.3), lambda p: StormPG(p, 0.3)):
        world, policy, _ = decision_process()
        optimizer, generator = make(policy), seeded(3)
        advance(world, policy, optimizer, generator)
        old, theta, before = optimizer.direction, optimizer.parameters, optimizer.previous
        batch = advance(world, policy, optimizer, generator)[0]["gradient"]
        g, decay = policy_gradient(batch, policy, theta), 2 / 3
        if isinstance(optimizer, Reinforce):
            wanted, step = g, 0.3 * decay ** (2 / 3)
        elif isinstance(optimizer, NormalizedMomentumPG):
            wanted = (1 - decay ** (2 / 3)) * old + decay ** (2 / 3) * g
            step = 0.3 * decay / wanted.norm()
        else:
            logs = trajectory_log_probs(batch, policy, before) - trajectory_log_probs(batch, policy, theta)
            back = policy_gradient(batch, policy, before, trajectory_weights=logs.exp().clamp(max=2.0))
            wanted = g + (1 - decay ** (2 / 3)) * (old - back)
            step = 0.3 * decay ** (1 / 3)
        torch.testing.assert_close(optimizer.direction, wanted)
        torch.testing.assert_close(optimizer.parameters, theta + step * wanted)


def test_samples_from_elsewhere_are_refused():
    """Oracle: the protocol. Sampling at the current weights instead of the extrapolated ones is an error."""
    world, policy, _ = decision_process()
    optimizer, generator = NPGIGT(policy, 0.5), seeded(4)
    with pytest.raises(ArgumentError, match="sampling_points"):
        optimizer.step({"gradient": draw(world, policy, 2)})
    advance(world, policy, optimizer, generator)
    optimizer.sampling_points()
    with pytest.raises(ArgumentError, match="not drawn at its sampling point"):
        optimizer.step({"gradient": draw(world, policy, 2)})
    with pytest.raises(ArgumentError, match="expected batches"):
        optimizer.step({})


def test_extrapolation_is_capped_or_warned_about():
    """Oracle: the definition: at most ten steps out by default; a warning where there is no cap."""
    world, policy, _ = decision_process()
    optimizer, generator = NPGIGT(policy, 0.1, 1e-4, schedule=False), seeded(5)
    advance(world, policy, optimizer, generator)
    (point,) = optimizer.sampling_points()
    assert math.isclose(float((point.parameters - optimizer.parameters).norm()), 1.0, rel_tol=1e-6)
    bold = NPGIGT(policy, 0.1, 1e-4, schedule=False, extrapolation_cap=None)
    with pytest.warns(UserWarning, match="extrapolates"):
        bold.sampling_points()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bold.sampling_points()


def test_no_reward_no_step():
    """Oracle: the definition: a zero direction leaves the parameters as they are."""
    world, policy, theta = decision_process()
    world.rewards = torch.zeros_like(world.rewards)
    _, info = advance(world, policy, NPGIGT(policy, 1.0), seeded(6))
    assert info.step_length == 0
    assert torch.equal(torch.cat([p.detach().flatten() for p in policy.parameters()]), theta)


def test_trust_region_shortens_steps():
    """Oracle: the estimate of KL, computed anew from the batch at both ends of the step."""
    world, policy, theta = decision_process()
    optimizer = NPGIGT(policy, 3.0, max_kl=0.01)
    batches, info = advance(world, policy, optimizer, seeded(7), batch=20)
    batch = batches["gradient"]
    from hesse.rl import step_log_probs

    logs = step_log_probs(batch, policy, optimizer.parameters) - step_log_probs(batch, policy, theta)
    assert float(logs.square().mean()) / 2 <= 0.01
    assert 0 < info.step_length < 3.0
    assert math.log2(3.0 / info.step_length) == pytest.approx(round(math.log2(3.0 / info.step_length)))


@pytest.mark.parametrize("arguments", [{"lr": 0.0}, {"lr": math.nan}, {"lr": 1.0, "momentum": -1.0}])
def test_bad_arguments(arguments):
    """Oracle: the documented ranges."""
    _, policy, _ = decision_process()
    with pytest.raises(ArgumentError, match="expected a finite"):
        NPGIGT(policy, **arguments)
