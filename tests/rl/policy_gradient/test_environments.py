"""Environments against gymnasium, closed forms and loops."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.rl import CartPole, GaussianPolicy, GymnasiumEnv, LinearQuadratic, TabularMDP, collect, make_policy
from tests.rl.policy_gradient.cases import decision_process, draw, seeded


def test_cartpole_is_gymnasiums():
    """Oracle: gymnasium's CartPole-v1 from the same states with the same actions, to 1e-6."""
    gymnasium = pytest.importorskip("gymnasium")
    peer, ours, generator = gymnasium.make("CartPole-v1").unwrapped, CartPole(dtype=torch.float64), seeded(0)
    for episode in range(5):
        state = ours.reset(1, generator)
        peer.reset(seed=episode)
        peer.state = tuple(state[0].tolist())
        for _ in range(200):
            action = torch.randint(2, (1,), generator=generator)
            _, reward, fallen, _, _ = peer.step(int(action))
            mine = ours.step(action)
            torch.testing.assert_close(
                mine.observations[0],
                torch.tensor([float(x) for x in peer.state], dtype=torch.float64),
                rtol=0,
                atol=1e-6,
            )
            assert (bool(mine.terminated[0]), float(mine.rewards[0])) == (fallen, reward)
            if fallen:
                break


def test_riccati_gain_is_stationary():
    """Oracle: finite differences of the Lyapunov cost: no gain nearby is cheaper; and rollouts cost what it says."""
    a = torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=torch.float64)
    b, one = torch.tensor([[0.0], [0.5]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    world = LinearQuadratic(a, b, torch.eye(2, dtype=torch.float64), one)
    best = world.optimal_gain(0.9)
    for i in range(2):
        for sign in (-1, 1):
            other = best.clone()
            other[0, i] += sign * 1e-2
            assert world.cost(other, 0.9) > world.cost(best, 0.9)
    policy = GaussianPolicy(2, 1, (), std=2e-6, min_std=1e-6, learn_std=False, bias=False).double()
    with torch.no_grad():
        policy.mean[0].weight.copy_(best)
    batch = collect(world, policy, 4000, horizon=150, discount=0.9, generator=seeded(1))
    costs = -(batch.rewards * 0.9 ** torch.arange(150)).sum(1)
    assert abs(float(costs.mean()) - world.cost(best, 0.9)) < 4 * float(costs.std()) / 4000**0.5


def test_tabular_return_is_the_mean_of_rollouts():
    """Oracle: the mean discounted return of 4,000 episodes, by its standard error; an optimum is no smaller."""
    world, policy, theta = decision_process()
    batch = draw(world, policy, 4000)
    sums, exact = batch.weights[:, 0], float(world.objective(policy, theta, 6, 0.9))
    assert abs(float(sums.mean()) - exact) < 4 * float(sums.std()) / 4000**0.5
    assert world.optimal_return(6, 0.9) >= exact


def test_gymnasium_copies():
    """Oracle: gymnasium: truncation after its 200 steps is no termination; the same seed gives the same batch."""
    pytest.importorskip("gymnasium")
    world = GymnasiumEnv("Pendulum-v1")
    policy = make_policy(world.observation_size, world.action_space, generator=seeded(0))
    batch, again = (collect(world, policy, 2, horizon=300, generator=seeded(5)) for _ in range(2))
    assert batch.lengths.tolist() == [200, 200]
    assert not batch.terminated.any()
    assert torch.equal(batch.rewards, again.rewards)
    world.close()


def test_unknown_spaces_are_refused():
    """Oracle: the documented error, for a dictionary of observations."""
    gymnasium = pytest.importorskip("gymnasium")

    class Odd(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Discrete(2)})
        action_space = gymnasium.spaces.Discrete(2)

    with pytest.raises(ArgumentTypeError, match="Box or Discrete"):
        GymnasiumEnv(Odd)
    with pytest.raises(ArgumentError, match="gymnasium cannot make 'Foo-v9'"):
        GymnasiumEnv("Foo-v9")
    assert GymnasiumEnv("Pendulum-v1").name == "Pendulum-v1"


def test_bad_tables():
    """Oracle: the documented errors."""
    with pytest.raises(ShapeError, match="transitions"):
        TabularMDP(torch.ones(2, 2, 3), torch.ones(2, 2), torch.ones(2) / 2)
    with pytest.raises(ArgumentError, match="add up to one"):
        TabularMDP(torch.ones(2, 2, 2), torch.ones(2, 2), torch.ones(2) / 2)
    with pytest.raises(ShapeError, match="dynamics"):
        LinearQuadratic(torch.eye(3), torch.ones(2, 1), torch.eye(2), torch.eye(1))
    with pytest.raises(ArgumentError, match="num_episodes"):
        CartPole().reset(0)
