"""The driver over clients and the baselines, against identities, sums of variances and plain loops."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.diff2 import BVRLSGD, GaussianAccountant, LinearRecords, dp_gd, dp_sgd, run_diff2

F64 = torch.float64
ZERO = torch.zeros(6, dtype=F64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


A = torch.randn(40, 6, generator=seeded(), dtype=F64)
Y = torch.sign(A[:, 0] + 0.1)


def slope(u, y):
    return -y[:, None] * torch.sigmoid(-y[:, None] * u)


def clients(*sizes):
    return [LinearRecords(a, y, slope) for a, y in zip(A.split(list(sizes)), Y.split(list(sizes)), strict=True)]


ONE = clients(40)
OPTIONS = {"lr": 0.5, "rounds": 12, "clip_grad": 1.0, "clip_diff": 0.5}
SILENT = OPTIONS | {"noise_multipliers": (0.0, 0.0)}


def test_interval_one_is_gradient_descent_bit_by_bit():
    """Oracle: `dp_gd` with the same noise."""
    common = {"lr": 0.5, "rounds": 12, "epsilon": 1.0}
    ours = run_diff2(ONE, ZERO, restart_interval=1, clip_grad=1.0, clip_diff=0.5, generator=seeded(1), **common)
    peer = dp_gd(ONE[0], ZERO, clip=1.0, generator=seeded(1), **common)
    assert torch.equal(ours.x, peer.x)
    assert ours.accountant == peer.accountant


def test_clients_without_noise_are_one_data_set():
    """Oracle: one client; equal clients by their mean, others by their records."""
    whole = run_diff2(ONE, ZERO, **SILENT).x
    torch.testing.assert_close(run_diff2(clients(10, 10, 10, 10), ZERO, **SILENT).x, whole, rtol=0, atol=1e-12)
    weighted = run_diff2(clients(25, 10, 5), ZERO, weighting="records", **SILENT).x
    torch.testing.assert_close(weighted, whole, rtol=0, atol=1e-12)
    assert not torch.allclose(run_diff2(clients(25, 10, 5), ZERO, **SILENT).x, whole)


@pytest.mark.parametrize(
    ("weighting", "secure", "expected"),
    [
        ("uniform", True, 2 / (5 * 3)),
        ("records", True, 2 / 40),
        ("uniform", False, math.sqrt(sum((2 / (3 * n)) ** 2 for n in (25, 10, 5)))),
        ("records", False, math.sqrt(3) * 2 / 40),
    ],
)
def test_noise_of_the_mean(weighting, secure, expected):
    """Oracle: m times the sensitivity of the sum, or the root of the summed variances; 400 draws of a first step."""
    options = {"lr": 1.0, "rounds": 1, "clip_grad": 1.0, "clip_diff": 1.0, "noise_multipliers": (3.0, 0.0)}
    group = clients(25, 10, 5)
    kwargs = {"weighting": weighting, "secure_aggregation": secure}
    noise, ends = seeded(5), []
    for _ in range(400):
        result = run_diff2(group, ZERO, generator=noise, **options, **kwargs)
        ends.append(result.x)
    assert result.rounds[0].noise_std == pytest.approx(3 * expected)
    spread = torch.stack(ends).std(0).mean()
    assert float(spread) == pytest.approx(3 * expected, rel=5 / math.sqrt(2 * 400 * 6))


@pytest.mark.parametrize("adjacency", ["replace", "add-remove"])
@pytest.mark.parametrize("active", ["one", "all"])
def test_local_steps_are_accounted(adjacency, active):
    """Oracle: the budget; the number of local releases from the rounds; the accountant."""
    routine = BVRLSGD(steps=4, batch=5, clip=0.5, clients=active)
    group = clients(20, 20)
    result = run_diff2(
        group,
        ZERO,
        epsilon=2.0,
        adjacency=adjacency,
        local_routine=routine,
        generator=seeded(2),
        sampling_generator=seeded(3),
        **OPTIONS,
    )
    assert 1.98 <= result.privacy_spent(1e-5) <= 2.0
    turns = 12 if active == "all" else torch.randint(2, (12,), generator=seeded(3)).bincount().max()
    assert result.accountant.releases[-1].count == 3 * int(turns)
    assert result.accountant.releases[-1].sampling_rate == (1.0 if adjacency == "replace" else 0.25)


def test_one_local_step_is_descent_and_full_batches_are_gradients():
    """Oracle: the plain driver for K = 1; K steps of gradient descent where a batch is all there is, without noise."""
    silent = SILENT | {"noise_multipliers": (0.0, 0.0, 0.0)}
    one = run_diff2(ONE, ZERO, local_routine=BVRLSGD(1, 40, 0.5), **silent).x
    assert torch.equal(one, run_diff2(ONE, ZERO, **SILENT).x)
    free = {"clip_grad": math.inf, "clip_diff": math.inf}
    many = run_diff2(ONE, ZERO, local_routine=BVRLSGD(3, 40, math.inf), **(silent | free)).x
    x = ZERO
    for _ in range(36):
        x = x - 0.5 * ONE[0].gradient_sum(x, math.inf).total / 40
    torch.testing.assert_close(many, x, rtol=0, atol=1e-12)


def test_outputs_are_points_of_the_run():
    """Oracle: the points handed to `on_round`; the best is where the least released norm was taken."""
    points = [ZERO]
    run = {"noise_multipliers": (5.0, 5.0), **OPTIONS}
    last = run_diff2(ONE, ZERO, generator=seeded(6), on_round=lambda _info, x: points.append(x), **run)
    best = run_diff2(ONE, ZERO, generator=seeded(6), output="best", **run)
    norms = [info.estimate_norm for info in last.rounds]
    assert torch.equal(last.x, points[-1])
    assert torch.equal(best.x, points[norms.index(min(norms))])
    drawn = run_diff2(ONE, ZERO, generator=seeded(6), output="uniform", **run).x
    assert any(torch.equal(drawn, point) for point in points[1:])


def test_sgd_on_samples():
    """Oracle: a plain loop on the same samples without noise; the accountant for a budget."""
    found = dp_sgd(
        ONE[0], ZERO, lr=0.3, num_steps=6, batch=10, clip=0.4, noise_multiplier=0.0, sampling_generator=seeded(7)
    ).x
    x, coins = ZERO, seeded(7)
    for _ in range(6):
        rows = slope((A @ x)[:, None], Y) * A
        rows = rows * (0.4 / rows.norm(dim=1, keepdim=True)).clamp(max=1)
        x = x - 0.3 * rows[torch.rand(40, generator=coins, dtype=F64) < 0.25].sum(0) / 10
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
    spent = dp_sgd(ONE[0], ZERO, lr=0.3, num_steps=6, batch=10, clip=0.4, epsilon=1.0).accountant
    assert 0.99 <= spent.epsilon(1e-5) <= 1.0
    assert spent.releases[0].sampling_rate == 0.25
    assert isinstance(spent, GaussianAccountant)


SHARED = seeded()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: run_diff2(ONE, ZERO.reshape(2, 3), **SILENT), ShapeError),
        (lambda: run_diff2([], ZERO, **SILENT), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, **(SILENT | {"lr": 0.0})), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, **(SILENT | {"rounds": 0})), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, weighting="size", **SILENT), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, output="median", **SILENT), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, generator=SHARED, sampling_generator=SHARED, **SILENT), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, local_routine=BVRLSGD(3, 5, 0.5), **SILENT), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, local_routine=BVRLSGD(3, 41, 0.5), epsilon=1.0, **OPTIONS), ArgumentError),
        (lambda: run_diff2(ONE, ZERO, local_routine=BVRLSGD(3, 5, math.inf), epsilon=1.0, **OPTIONS), ArgumentError),
        (lambda: BVRLSGD(0, 5, 0.5), ArgumentError),
        (lambda: BVRLSGD(3, 5, 0.0), ArgumentError),
        (lambda: BVRLSGD(3, 5, 0.5, clients="some"), ArgumentError),
        (lambda: BVRLSGD(3, 5, 0.5, share=0.0), ArgumentError),
        (lambda: dp_gd(ONE[0], ZERO, lr=0.5, rounds=2, clip=1.0), ArgumentError),
        (lambda: dp_gd(ONE[0], ZERO, lr=0.5, rounds=2, clip=math.inf, epsilon=1.0), ArgumentError),
        (lambda: dp_gd(ONE[0], ZERO, lr=0.5, rounds=0, clip=1.0, epsilon=1.0), ArgumentError),
        (lambda: dp_sgd(ONE[0], ZERO, lr=0.5, num_steps=2, batch=41, clip=1.0, epsilon=1.0), ArgumentError),
    ],
)
def test_bad_input_is_refused(call, error):
    """Oracle: the documented errors."""
    with pytest.raises(error):
        call()
