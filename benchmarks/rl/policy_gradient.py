"""What normalised and Hessian-aided policy gradients promise: better estimates, and policies from few episodes.

Oracles: backward induction on a small decision process, the Riccati equation, gymnasium step by step. Where claims are
statistical, several seeds stand behind the mean and the row has its standard error.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._claims import Claim, Scale
from benchmarks.peers import require_peer
from benchmarks.rl._policy_gradient_peers import peer_return
from hesse.errors import NumericalError
from hesse.rl import (
    HARPG,
    NPGIGT,
    CartPole,
    CategoricalPolicy,
    GaussianPolicy,
    GymnasiumEnv,
    History,
    LinearQuadratic,
    NormalizedMomentumPG,
    Policy,
    PolicyOptimizer,
    Reinforce,
    TabularMDP,
    collect,
    flat_parameters,
    load_parameters,
    make_policy,
    policy_gradient,
    policy_hvp,
    step_log_probs,
    train,
)

__all__ = ["CLAIMS"]

Maker = Callable[[Policy], PolicyOptimizer]
HORIZON, DISCOUNT = 20, 0.9  # of the decision process
CARTPOLE_HORIZON = 200
LQR_DISCOUNT, LQR_HORIZON, LQR_BATCH = 0.9, 40, 20
LQR_STD = 1.0  # of the actions, as that of the first state; the gradient's noise grows as its inverse


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _spread(values: list[float]) -> dict[str, float | list[float]]:
    tensor = torch.tensor(values, dtype=torch.float64)
    error = float(tensor.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    return {"mean": float(tensor.mean()), "standard_error": error, "each": [round(v, 4) for v in values]}


def _decision_process(seed: int) -> tuple[TabularMDP, CategoricalPolicy]:
    # 6 states, 3 actions, transitions Dirichlet(0.3), rewards U(0, 1) with half of them zero
    generator, double = _seeded(seed), torch.float64
    gamma = torch._standard_gamma(torch.full((6, 3, 6), 0.3, dtype=double), generator=generator)
    rewards = torch.rand(6, 3, dtype=double, generator=generator)
    rewards *= torch.rand(6, 3, dtype=double, generator=generator) < 0.5
    start = torch.full((6,), 1 / 6, dtype=double)
    policy = CategoricalPolicy(6, 3, (), bias=False).double()
    load_parameters(policy, torch.zeros(18, dtype=double))
    return TabularMDP(gamma / gamma.sum(-1, keepdim=True), rewards, start), policy


def _draw(
    world: TabularMDP, policy: CategoricalPolicy, optimizer: PolicyOptimizer, sizes: dict, generator: torch.Generator
) -> dict:
    batches = {}
    for point in optimizer.sampling_points(sizes["gradient"], sizes["hvp"], generator):
        load_parameters(policy, point.parameters)
        count = point.num_trajectories
        batches[point.name] = collect(world, policy, count, horizon=HORIZON, discount=DISCOUNT, generator=generator)
    return batches


def _estimator_error(make: Maker, batch: int, seed: int, steps: tuple[int, int], hvp_batch: int | None = None) -> float:
    """Mean ‖d_t - ∇J(θ_t)‖² over the later steps, every step 0.1 long, d_0 from a batch twenty times as large."""
    world, policy = _decision_process(seed)
    optimizer, generator, errors = make(policy), _seeded(10_000 + seed), []
    for t in range(steps[1]):
        size = 20 * batch if t == 0 else batch
        batches = _draw(world, policy, optimizer, {"gradient": size, "hvp": hvp_batch or size}, generator)
        here = optimizer.parameters
        optimizer.step(batches)
        if t >= steps[0]:
            exact = world.gradient(policy, here, HORIZON, DISCOUNT)
            errors.append(float((optimizer.direction - exact).square().sum()))
    return sum(errors) / len(errors)


def claim_estimators(scale: Scale) -> list[Claim]:
    """Implicit transport and Hessian products take the bias out of momentum: errors against exact gradients."""
    steps = scale(smoke=(6, 12), full=(60, 120))
    seeds = [scale.seed + k for k in range(scale(smoke=1, full=5))]

    def mean(kind: str, batch: int, momentum: float, hvp_batch: int | None = None) -> dict:
        def make(policy: Policy) -> PolicyOptimizer:
            if kind == "igt":
                return NPGIGT(policy, 0.1, momentum, schedule=False, extrapolation_cap=None)
            if kind == "harpg":
                return HARPG(policy, 0.1, momentum, schedule=False)
            return NormalizedMomentumPG(policy, 0.1, 1.0 if kind == "single" else momentum, schedule=False)

        return _spread([_estimator_error(make, batch, seed, steps, hvp_batch) for seed in seeds])

    small = {kind: mean(kind, 10, 0.03) for kind in ("single", "momentum", "igt", "harpg")}
    small["harpg, 100 for the product"] = mean("harpg", 10, 0.03, 100)
    large = {kind: mean(kind, scale(smoke=20, full=300), 0.01) for kind in ("single", "momentum", "igt", "harpg")}
    flat = {kind: mean(kind, scale(smoke=20, full=300), 0.003) for kind in ("momentum", "igt", "harpg")}

    def ratio(rows: dict, one: str, other: str) -> float:
        return rows[one]["mean"] / rows[other]["mean"]

    few = "batch 10, momentum 0.03"
    many = "batch 300, momentum 0.01"
    return [
        Claim(f"IGT over momentum ({few})", ratio(small, "igt", "momentum"), 0.4, "lower", small, full_only=True),
        Claim(f"IGT over single batches ({few})", ratio(small, "igt", "single"), 0.02, "lower", small, full_only=True),
        Claim(f"HARPG over momentum ({many})", ratio(large, "harpg", "momentum"), 0.25, "lower", large, full_only=True),
        Claim(
            f"HARPG over IGT ({many})",
            ratio(large, "harpg", "igt"),
            0.5,
            "lower",
            large | {f"{kind}, momentum 0.003": row for kind, row in flat.items()},
            full_only=True,
        ),
    ]


def claim_unbiased(scale: Scale) -> list[Claim]:
    """E B u = ∇²J u and E g = ∇J, against exact derivatives; the sampled product's Hessian part is the closed form."""
    world, policy = _decision_process(scale.seed)
    generator = _seeded(scale.seed + 1)
    theta = 0.5 * torch.randn(18, dtype=torch.float64, generator=generator)
    u = torch.randn(18, dtype=torch.float64, generator=generator)
    load_parameters(policy, theta)
    products, gradients = [], []
    for _ in range(scale(smoke=12, full=240)):
        batch = collect(
            world, policy, scale(smoke=200, full=1000), horizon=HORIZON, discount=DISCOUNT, generator=generator
        )
        products.append(policy_hvp(batch, policy, u))
        gradients.append(policy_gradient(batch, policy))
    step = 1e-5
    ends = [world.gradient(policy, theta + sign * step * u, HORIZON, DISCOUNT) for sign in (1, -1)]
    curved, slope = (ends[0] - ends[1]) / (2 * step), world.gradient(policy, theta, HORIZON, DISCOUNT)
    mean, error = _mean_and_error(products)
    gradient, _ = _mean_and_error(gradients)
    rows = {
        "relative error": float((mean - curved).norm() / curved.norm()),
        "errors in standard errors": ((mean - curved) / error).tolist(),
        "trajectories": len(products) * batch.num_trajectories,
    }
    return [
        Claim("product unbiased, in standard errors", float(((mean - curved) / error).abs().max()), 4.0, "lower", rows),
        Claim(
            "gradient unbiased, relative error",
            float((gradient - slope).norm() / slope.norm()),
            0.03,
            "lower",
            {"exact": slope.tolist(), "mean": gradient.tolist()},
            full_only=True,
        ),
        Claim(
            "Hessian of Phi is the closed form of tabular softmax",
            _closed_form_gap(batch, policy, theta, u),
            1e-10,
            "lower",
        ),
    ]


def _mean_and_error(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    stack = torch.stack(values)
    return stack.mean(0), stack.std(0) / len(stack) ** 0.5


def _closed_form_gap(batch, policy: CategoricalPolicy, theta: Tensor, u: Tensor) -> float:
    # ∇ log π = e_a - p and ∇² log π = -(diag p - p pᵀ) in the logits of the state, by loops over states
    table, direction = theta.reshape(3, 6), u.reshape(3, 6)
    p = table.softmax(0)
    states, weights = batch.observations[batch.mask].argmax(-1), batch.weights[batch.mask]
    total = torch.zeros(3, 6, dtype=theta.dtype)
    for state in range(6):
        along = direction[:, state]
        total[:, state] = -weights[states == state].sum() * (p[:, state] * (along - p[:, state] @ along))

    def phi(vector: Tensor) -> Tensor:
        return weights @ step_log_probs(batch, policy, vector)

    product = torch.autograd.functional.hvp(phi, theta, u)[1].reshape(3, 6)
    wanted = total / batch.num_trajectories
    # what is left of B u without its score part
    scores = torch.autograd.functional.jacobian(lambda v: step_log_probs(batch, policy, v), theta)
    owner = batch.mask.nonzero()[:, 0]
    along_N = torch.zeros(batch.num_trajectories, dtype=theta.dtype).index_add(0, owner, scores @ u)
    rank = (weights * along_N[owner]) @ scores / batch.num_trajectories
    ours = (policy_hvp(batch, policy, u) - rank).reshape(3, 6)
    size = wanted.norm()
    return float(max((ours - wanted).norm(), (product / batch.num_trajectories - wanted).norm()) / size)


def claim_cartpole_copy(scale: Scale) -> Claim:
    """The vectorised CartPole is gymnasium's: the same actions, step by step, until the pole falls."""
    gymnasium = require_peer("gymnasium")
    peer, ours = gymnasium.make("CartPole-v1").unwrapped, CartPole(dtype=torch.float64)
    generator, worst, seen = _seeded(scale.seed), 0.0, 0
    for episode in range(scale(smoke=5, full=100)):
        state = ours.reset(1, generator)
        peer.reset(seed=episode)
        peer.state = tuple(state[0].tolist())
        for _ in range(CARTPOLE_HORIZON):
            action = torch.randint(2, (1,), generator=generator)
            _, reward, fallen, _, _ = peer.step(int(action))
            mine = ours.step(action)
            worst = max(worst, float((mine.observations[0] - torch.tensor(peer.state)).abs().max()))
            seen += 1
            if bool(mine.terminated[0]) != fallen or float(mine.rewards[0]) != reward:
                worst = math.inf
            if fallen:
                break
    return Claim("CartPole equals gymnasium's", worst, 1e-6, "lower", {"steps compared": seen})


def _cartpole(make: Maker, seed: int, episodes: int) -> History:
    policy = CategoricalPolicy(4, 2, generator=_seeded(50_000 + seed))
    return train(CartPole(), policy, make(policy), horizon=CARTPOLE_HORIZON, episodes=episodes, seed=seed)


def claim_cartpole(scale: Scale) -> list[Claim]:
    """Learning curves on CartPole, horizon 200, 15 episodes a batch; all episodes count, those for products too."""
    marks = scale(smoke=(30, 60), full=(150, 300, 450, 600, 900))
    seeds = [100 * scale.seed + k for k in range(scale(smoke=1, full=5))]
    arms: dict[str, Maker] = {
        "N-PG-IGT, 1": lambda p: NPGIGT(p, 1.0, extrapolation_cap=None),
        "N-PG-IGT, 1, capped": lambda p: NPGIGT(p, 1.0),
        "vanilla, 0.005": lambda p: Reinforce(p, 0.005),
        "vanilla, 0.02": lambda p: Reinforce(p, 0.02),
        "N-MPG, 1": lambda p: NormalizedMomentumPG(p, 1.0),
        "N-HARPG, 0.1": lambda p: HARPG(p, 0.1),
        "N-HARPG, 0.2": lambda p: HARPG(p, 0.2),
        "N-HARPG, 0.3": lambda p: HARPG(p, 0.3),
    }
    budget = scale(smoke=30, full=450)
    rows: dict[str, dict] = {}
    steps_at: list[int] = []
    for name, make in arms.items():
        runs = [_cartpole(make, seed, marks[-1]) for seed in seeds]
        rows[name] = {str(mark): _spread([run.mean_return(episodes=mark) for run in runs]) for mark in marks}
        if name == "N-PG-IGT, 1":
            steps_at = [max(it.env_steps for it in run.iterations if it.episodes <= budget) for run in runs]
    for peer in ("PPO", "A2C"):
        found = [peer_return(peer, steps, CARTPOLE_HORIZON, seed) for seed, steps in zip(seeds, steps_at, strict=True)]
        rows[peer] = {f"at N-PG-IGT's steps of {budget} episodes": _spread(found)}
    rows["environment steps of N-PG-IGT there"] = {"each": steps_at}
    middle, last = str(budget), str(marks[-1])

    def at(arm: str, mark: str) -> float:
        return rows[arm][mark]["mean"]

    vanilla = max(at(arm, middle) for arm in arms if arm.startswith("vanilla"))
    hessian_aided = max(at(arm, last) for arm in arms if arm.startswith("N-HARPG"))
    igt = "N-PG-IGT, 1"
    return [
        Claim("N-PG-IGT at 450 episodes", at(igt, middle), 150.0, "higher", rows, full_only=True),
        Claim("N-PG-IGT at 900 episodes", at(igt, last), 190.0, "higher", rows[igt], full_only=True),
        Claim(
            "N-PG-IGT over vanilla at 450 episodes",
            at(igt, middle) / vanilla,
            1.3,
            "higher",
            {arm: rows[arm][middle] for arm in arms},
            full_only=True,
            note="vanilla: the better of two steps; the same leave-one-out baseline for all",
        ),
        Claim(
            "N-HARPG at 900 episodes",
            hessian_aided,
            130.0,
            "higher",
            {arm: rows[arm][last] for arm in arms},
            full_only=True,
            note="the best of three steps by its mean over the seeds",
        ),
    ]


def claim_tabular(scale: Scale) -> Claim:
    """The gap J* - J(θ) after 2,000 and 8,000 trajectories, batch 10, best of three steps."""
    marks = scale(smoke=(100,), full=(2000, 8000))
    seeds = [scale.seed + k for k in range(scale(smoke=1, full=4))]
    makers: dict[str, Callable[[Policy, float], PolicyOptimizer]] = {
        "vanilla": Reinforce,
        "N-MPG": NormalizedMomentumPG,
        "N-PG-IGT": lambda p, lr: NPGIGT(p, lr, extrapolation_cap=None),
        "N-HARPG": HARPG,
        "HARPG": lambda p, lr: HARPG(p, lr, normalized=False),
    }
    rows: dict[str, dict] = {}
    for name, make in makers.items():
        tried = {
            lr: [_gaps(make, lr, seed, marks) for seed in seeds] for lr in scale(smoke=(1.0,), full=(1.0, 3.0, 10.0))
        }
        found = {}
        for k, mark in enumerate(marks):
            means = {lr: _spread([gaps[k] for gaps in each]) for lr, each in tried.items()}
            best = min(means, key=lambda lr: means[lr]["mean"])
            found[str(mark)] = means[best] | {"lr": best}
        rows[name] = found
    rows["at the start"] = _spread([_gap(*_decision_process(seed)) for seed in seeds])
    measured = rows["N-PG-IGT"][str(marks[0])]["mean"]
    return Claim("N-PG-IGT's gap after 2,000 trajectories", measured, 0.25, "lower", rows, full_only=True)


def _gaps(
    make: Callable[[Policy, float], PolicyOptimizer], lr: float, seed: int, marks: tuple[int, ...]
) -> list[float]:
    world, policy = _decision_process(seed)
    optimizer, generator = make(policy, lr), _seeded(20_000 + seed)
    used, found = 0, []
    for mark in marks:
        while used < mark:
            batches = _draw(world, policy, optimizer, {"gradient": 10, "hvp": 10}, generator)
            optimizer.step(batches)
            used += sum(batch.num_trajectories for batch in batches.values())
        found.append(_gap(world, policy))
    return found


def _gap(world: TabularMDP, policy: Policy) -> float:
    # J* - J at the policy's own parameters, where `step` has put the last ones
    return world.optimal_return(HORIZON, DISCOUNT) - float(
        world.objective(policy, flat_parameters(policy), HORIZON, DISCOUNT)
    )


def claim_linear_quadratic(scale: Scale) -> list[Claim]:
    """Within 5 % of the Riccati optimum: trajectories needed in one and four dimensions, the same grid for both."""
    budget = scale(smoke=100, full=5000)
    seeds = [scale.seed + k for k in range(scale(smoke=1, full=3))]
    # plain steps are as long as the gradient of a cost of hundreds, normalised ones are not: the grid serves both
    steps = scale(smoke=(0.3,), full=(1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0))
    claims = []
    for size in (1, 4):
        world = _regulator(size)
        makers = {"N-PG-IGT": lambda p, lr: NPGIGT(p, lr, extrapolation_cap=None), "vanilla": Reinforce}
        rows, best = {}, {}
        for name, make in makers.items():
            found = {lr: _spread([_regulate(world, make, lr, seed, budget) for seed in seeds]) for lr in steps}
            rows[name] = {str(lr): row for lr, row in found.items()}
            best[name] = min(row["mean"] for row in found.values())
        rows["cost with no control over the optimum"] = _cost_ratio(world, torch.zeros(world.action_space.size, size))
        claims += [
            Claim(
                f"{size}-d regulator: trajectories of N-PG-IGT",
                best["N-PG-IGT"],
                5000.0,
                "lower",
                rows,
                full_only=True,
                note="mean over seeds at the best step; infinite where one seed does not get there",
            ),
            Claim(
                f"{size}-d regulator: vanilla over N-PG-IGT in trajectories",
                best["vanilla"] / best["N-PG-IGT"],
                1.0,
                "higher",
                {name: {"best": value} for name, value in best.items()},
                full_only=True,
            ),
        ]
    return claims


def _regulator(size: int) -> LinearQuadratic:
    if size == 1:
        one = torch.ones(1, 1)
        return LinearQuadratic(one, one, one, one)
    axis = torch.tensor([[1.0, 0.3], [0.0, 1.0]])  # position and velocity, twice, a little coupled
    dynamics = torch.block_diag(axis, axis)
    dynamics[1, 2] = dynamics[3, 0] = 0.005
    control = torch.zeros(4, 2)
    control[1, 0] = control[3, 1] = 0.5
    return LinearQuadratic(dynamics, control, torch.eye(4), 0.5 * torch.eye(2))


def _cost_ratio(world: LinearQuadratic, gain: Tensor) -> float:
    return world.cost(gain, LQR_DISCOUNT) / world.cost(world.optimal_gain(LQR_DISCOUNT), LQR_DISCOUNT)


def _regulate(
    world: LinearQuadratic, make: Callable[[Policy, float], PolicyOptimizer], lr: float, seed: int, budget: int
) -> float:
    """Trajectories until the mean action's cost is within 5 % of the best; infinite if they do not suffice."""
    size = world.observation_size
    policy = GaussianPolicy(size, world.action_space.size, (), std=LQR_STD, learn_std=False, bias=False)
    load_parameters(policy, torch.zeros_like(flat_parameters(policy)))
    optimizer, generator, used = make(policy, lr), _seeded(30_000 + seed), 0
    while used < budget:
        for point in optimizer.sampling_points(LQR_BATCH):
            load_parameters(policy, point.parameters)
        try:
            batch = collect(world, policy, LQR_BATCH, horizon=LQR_HORIZON, discount=LQR_DISCOUNT, generator=generator)
            optimizer.step({"gradient": batch})
        except NumericalError:  # the states overflowed: this step length diverges
            return math.inf
        used += LQR_BATCH
        ratio = _cost_ratio(world, optimizer.parameters.reshape(-1, size))
        if ratio <= 1.05:
            return float(used)
        if not bool(optimizer.parameters.abs().max() < 1e3):  # diverged
            return math.inf
    return math.inf


def claim_gymnasium(scale: Scale) -> list[Claim]:
    """Returns rise on environments of gymnasium: the last third of a short run against its first."""
    require_peer("gymnasium")
    claims = []
    for name, episodes, horizon, lr in (
        ("MountainCarContinuous-v0", 300, 300, 0.3),
        ("Acrobot-v1", 240, 300, 1.0),
        ("Pendulum-v1", 1200, 200, 0.3),
    ):
        world = GymnasiumEnv(name)
        policy = make_policy(world.observation_size, world.action_space, generator=_seeded(scale.seed))
        history = train(
            world, policy, NPGIGT(policy, lr), horizon=horizon, episodes=scale(smoke=30, full=episodes), seed=scale.seed
        )
        world.close()
        returns = history.to_dict()["mean_return"]
        third = max(1, len(returns) // 3)
        first, last = sum(returns[:third]) / third, sum(returns[-third:]) / third
        rows = {"first third": first, "last third": last, "each batch": [round(r, 1) for r in returns]}
        error = (torch.tensor(returns[:third]).var() + torch.tensor(returns[-third:]).var()).div(third).sqrt()
        gain = (last - first) / max(float(error), 1e-12) if third > 1 else math.nan
        claims.append(Claim(f"{name}: gain in standard errors", gain, 2.0, "higher", rows, full_only=True))
    return claims


CLAIMS = [
    claim_estimators,
    claim_unbiased,
    claim_cartpole_copy,
    claim_cartpole,
    claim_tabular,
    claim_linear_quadratic,
    claim_gymnasium,
]
