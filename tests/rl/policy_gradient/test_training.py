"""Baselines, policies and whole runs: against loops, torch.distributions and themselves cut in two."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.rl import (
    HARPG,
    NPGIGT,
    CartPole,
    CategoricalPolicy,
    GaussianPolicy,
    History,
    MixedPolicy,
    StormPG,
    collect,
    train,
    with_baseline,
    with_gae,
)
from tests.rl.policy_gradient.cases import decision_process, draw, seeded


def cartpole_batch(count=4):
    policy = CategoricalPolicy(4, 2, (8,), generator=seeded(0))
    return collect(CartPole(), policy, count, horizon=40, generator=seeded(1))


def test_weights_are_rewards_to_go():
    """Oracle: double loops over steps, on episodes of different lengths."""
    batch = cartpole_batch()
    assert len(set(batch.lengths.tolist())) > 1
    for i, length in enumerate(batch.lengths.tolist()):
        for t in range(batch.rewards.shape[1]):
            wanted = sum(0.99**h for h in range(t, length))
            assert float(batch.weights[i, t]) == pytest.approx(wanted, abs=1e-4)


def test_baseline_leaves_its_trajectory_out():
    """Oracle: a regression written out on the other trajectories, with the features of the documentation."""
    batch = cartpole_batch()
    found = with_baseline(batch, "time").weights[0]

    def features(t):
        return [t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0]

    rows, targets = [], []
    for i in range(1, 4):
        length = int(batch.lengths[i])
        for t in range(length):
            rows.append(features(t))
            targets.append(sum(0.99 ** (h - t) for h in range(t, length)))
    x, y = torch.tensor(rows, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    fit = torch.linalg.solve(x.mT @ x + 1e-5 * torch.eye(4, dtype=torch.float64), x.mT @ y)
    for t in range(int(batch.lengths[0])):
        value = float(torch.tensor(features(t), dtype=torch.float64) @ fit)
        assert float(found[t]) == pytest.approx(float(batch.weights[0, t]) - 0.99**t * value, abs=1e-3)


def test_gae_with_lambda_one_is_the_baseline():
    """Oracle: the identity, for episodes that all terminate."""
    policy = CategoricalPolicy(4, 2, (8,), generator=seeded(0))
    batch = collect(CartPole(), policy, 4, horizon=400, generator=seeded(1))
    assert batch.terminated.all()
    wanted = with_baseline(batch).weights
    torch.testing.assert_close(with_gae(batch, gae_lambda=1.0).weights, wanted, rtol=1e-4, atol=1e-3)


def test_a_single_trajectory_has_no_baseline():
    """Oracle: the documentation: left as it is; advantages refuse it."""
    batch = cartpole_batch(1)
    assert torch.equal(with_baseline(batch).weights, batch.weights)
    with pytest.raises(ArgumentError, match="only one"):
        with_gae(batch)


def test_log_probabilities():
    """Oracle: torch.distributions."""
    seen = torch.randn(7, 4, generator=seeded(0))
    discrete, gauss = CategoricalPolicy(4, 3, generator=seeded(1)), GaussianPolicy(4, 2, generator=seeded(2))
    mixed = MixedPolicy(4, 3, 2, generator=seeded(3))
    a = discrete.sample(seen, seeded(4))
    torch.testing.assert_close(
        discrete(seen, a), torch.distributions.Categorical(logits=discrete.logits(seen)).log_prob(a)
    )
    b = gauss.sample(seen, seeded(5))
    wanted = torch.distributions.Normal(gauss.mean(seen), gauss.std).log_prob(b).sum(-1)
    torch.testing.assert_close(gauss.log_prob(seen, b), wanted)
    c, heads = mixed.sample(seen, seeded(6)), mixed.heads(seen)
    choice = torch.distributions.Categorical(logits=heads[:, :3]).log_prob(c[:, 0])
    numbers = torch.distributions.Normal(heads[:, 3:], 0.01 + mixed.rho.exp()).log_prob(c[:, 1:]).sum(-1)
    torch.testing.assert_close(mixed(seen, c), choice + numbers)


def test_samples_follow_the_policy():
    """Oracle: the probabilities, by the standard error of 20,000 draws."""
    policy = CategoricalPolicy(4, 3, generator=seeded(1))
    seen = torch.ones(20_000, 4)
    p = policy.logits(seen[:1]).softmax(-1)[0]
    share = policy.sample(seen, seeded(2)).bincount(minlength=3) / 20_000
    assert ((share - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all()


def test_a_resumed_run_is_the_same_run(tmp_path):
    """Oracle: the run that was not interrupted, bit for bit, evaluations and history included."""

    def run(episodes, checkpoint):
        policy = CategoricalPolicy(4, 2, (8,), generator=seeded(0))
        optimizer = HARPG(policy, 0.2)
        history = train(
            CartPole(), policy, optimizer, horizon=30, episodes=episodes, batch=4, eval_every=2, checkpoint=checkpoint
        )
        return history, optimizer.parameters

    whole, wanted = run(40, None)
    run(20, tmp_path / "run")
    resumed, found = run(40, tmp_path / "run")
    assert torch.equal(found, wanted)
    assert resumed == whole
    assert any(it.evaluation is not None for it in whole.iterations)
    policy = CategoricalPolicy(4, 2, (8,))
    with pytest.raises(ArtifactError, match="another run"):
        train(CartPole(), policy, HARPG(policy, 0.3), horizon=30, episodes=40, batch=4, checkpoint=tmp_path / "run")


class Tilted(CartPole):
    """Another environment with the spaces of the first."""


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda policy: (CartPole(), HARPG(policy, 0.2, normalized=False)), "normalized True there and False now"),
        (lambda policy: (CartPole(), HARPG(policy, 0.2, schedule=False)), "schedule"),
        (lambda policy: (CartPole(), HARPG(policy, 0.2, max_kl=0.1)), "max_kl"),
        (lambda policy: (CartPole(), NPGIGT(policy, 0.2)), "optimizer HARPG there and NPGIGT now"),
        (lambda policy: (CartPole(), StormPG(policy, 0.2)), "optimizer HARPG there and StormPG now"),
        (lambda policy: (Tilted(), HARPG(policy, 0.2)), "environment CartPole, .* there and Tilted, "),
    ],
)
def test_a_checkpoint_knows_its_run(tmp_path, change, odd):
    """Oracle: each thing that steps depend on, changed alone, is refused and named; the file is left as it was."""
    policy = CategoricalPolicy(4, 2, (8,), generator=seeded(0))
    options = {"horizon": 5, "batch": 2, "checkpoint": tmp_path / "run"}
    train(CartPole(), policy, HARPG(policy, 0.2), episodes=2, **options)
    kept = (tmp_path / "run").read_bytes()
    with pytest.raises(ArtifactError, match=odd):
        train(*(lambda world, method: (world, policy, method))(*change(policy)), episodes=6, **options)
    assert (tmp_path / "run").read_bytes() == kept


@pytest.mark.parametrize(
    ("first", "second", "odd"),
    [
        (
            lambda p: NPGIGT(p, 0.2),
            lambda p: NPGIGT(p, 0.2, extrapolation_cap=None),
            "extrapolation_cap 10.0 there and",
        ),
        (lambda p: StormPG(p, 0.2), lambda p: StormPG(p, 0.2, max_weight=3.0), "max_weight 2.0 there and 3.0 now"),
    ],
)
def test_a_checkpoint_knows_the_constants_of_its_method(tmp_path, first, second, odd):
    """Oracle: a constant that only this method has, changed alone, is refused and named."""
    policy = CategoricalPolicy(4, 2, (8,), generator=seeded(0))
    options = {"horizon": 5, "batch": 2, "checkpoint": tmp_path / "run"}
    train(CartPole(), policy, first(policy), episodes=2, **options)
    with pytest.raises(ArtifactError, match=odd):
        train(CartPole(), policy, second(policy), episodes=6, **options)


def test_budgets_and_history():
    """Oracle: counting; a history survives the round trip through numbers."""
    policy = CategoricalPolicy(4, 2, (8,), generator=seeded(0))
    history = train(CartPole(), policy, HARPG(policy, 0.2), horizon=20, episodes=22, batch=4)
    assert [it.episodes for it in history.iterations] == [4, 12, 20]  # the first step has no product
    assert History.from_table(history.to_table()) == history
    assert math.isclose(history.mean_return(1, episodes=12), history.iterations[1].mean_return)
    world, tabular, _ = decision_process()
    steps = train(world, tabular, NPGIGT(tabular, 0.1), horizon=6, steps=100, batch=5, baseline="time").iterations
    assert [it.env_steps for it in steps] == [30, 60, 90, 120]


def test_training_helps():
    """Oracle: the exact return before and after, on the small decision process."""
    world, policy, theta = decision_process()
    optimizer = NPGIGT(policy, 1.0)
    train(world, policy, optimizer, horizon=6, discount=0.9, episodes=1500, batch=15)
    best = world.optimal_return(6, 0.9)
    before, after = (best - float(world.objective(policy, v, 6, 0.9)) for v in (theta, optimizer.parameters))
    assert after < before / 2


@pytest.mark.parametrize(
    "options",
    [{}, {"episodes": 0}, {"episodes": 9, "baseline": "spline"}, {"episodes": 9, "gae_lambda": 2.0}],
)
def test_bad_arguments(options):
    """Oracle: the documented errors."""
    world, policy, _ = decision_process()
    with pytest.raises(ArgumentError):
        train(world, policy, NPGIGT(policy, 1.0), horizon=5, **options)
    with pytest.raises(ArgumentError, match="episodes=9 do not pay for one iteration of batch=10"):
        train(world, policy, NPGIGT(policy, 1.0), horizon=5, episodes=9, batch=10)
    with pytest.raises(ArgumentTypeError, match="expected env to be a VectorEnv"):
        train("cartpole", policy, NPGIGT(policy, 1.0), horizon=5, episodes=15)
    with pytest.raises(ArgumentTypeError, match="horizon to be an integer"):
        train(world, policy, NPGIGT(policy, 1.0), horizon=5.5, episodes=15)


def test_gradient_weights_stay_finite_in_both_precisions():
    """Oracle: the dtype of the environment's rewards."""
    world, policy, _ = decision_process()
    assert with_baseline(draw(world, policy, 3)).weights.dtype == torch.float64
    assert with_baseline(cartpole_batch()).weights.dtype == torch.float32
