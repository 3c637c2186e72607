"""The loop: draw trajectories where the optimiser wants them, step, evaluate, keep a checkpoint."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from hesse._values import check_count
from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import load_tensors, save_tensors, tensor_metadata
from hesse.rl.policy_gradient.baselines import Baseline, check_baseline, with_baseline, with_gae
from hesse.rl.policy_gradient.environments.protocol import VectorEnv
from hesse.rl.policy_gradient.history import History, Iteration
from hesse.rl.policy_gradient.optimizer import GRADIENT, PolicyOptimizer, StepInfo
from hesse.rl.policy_gradient.policies import Policy, load_parameters
from hesse.rl.policy_gradient.rollout import TrajectoryBatch, check_discount, collect

__all__ = ["train"]

Done = tuple[Iteration, ...]


def train(
    env: VectorEnv | Callable[[], VectorEnv],
    policy: Policy,
    optimizer: PolicyOptimizer,
    *,
    horizon: int,
    episodes: int | None = None,
    steps: int | None = None,
    batch: int = 15,
    hvp_batch: int | None = None,
    discount: float = 0.99,
    baseline: Baseline = "linear",
    gae_lambda: float | None = None,
    seed: int = 0,
    eval_every: int | None = None,
    eval_episodes: int = 15,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> History:
    """Ascend on J(θ) = E Σ_{h<H} discount^h r_h until the budget of episodes or environment steps would be passed.

    The baseline of a trajectory is fitted on the others of its batch, which keeps the gradient unbiased.

    Parameters
    ----------
    env : VectorEnv, or a function that makes one
        Where.
    policy : Policy
        The one that ``optimizer`` was made for; it ends with the last parameters.
    optimizer : PolicyOptimizer
        Such as `NPGIGT`. One that has already stepped goes on.
    horizon : int
        H >= 1, steps an episode at most.
    episodes : int, optional
        Budget, episodes for Hessian-vector products included; an iteration that would pass it is not begun.
    steps : int, optional
        Budget of environment steps; the iteration that reaches it is the last. At least one budget is needed.
    batch : int, default 15
        Episodes an iteration, as suits classic control.
    hvp_batch : int, optional
        Further episodes for methods with a Hessian-vector product. Default: as many as ``batch``.
    discount : float, default 0.99
        In (0, 1].
    baseline : {"linear", "time", "none"}, default "linear"
        Features of the baseline; see `with_baseline`.
    gae_lambda : float, optional
        Generalised advantages with this λ; biased, see `with_gae`. Default: returns minus baseline.
    seed : int, default 0
        Of everything that is drawn; evaluation draws from another stream, so that it changes nothing.
    eval_every : int, optional
        Evaluate after so many iterations. Default: never.
    eval_episodes : int, default 15
        Episodes an evaluation, outside the budget.
    checkpoint : path, optional
        A safetensors file. If it is there, the run goes on from it, bit for bit as if it had not stopped. It must be
        of the same method, constants and environment, which is known by its ``name``, or else its class, and by its
        spaces.
    checkpoint_every : int, default 10
        Iterations between two writes; the last is always written.
    on_iteration : callable, optional
        Called with each `Iteration`.

    Returns
    -------
    History
        All iterations, those of the checkpoint included.

    Raises
    ------
    ArgumentError
        If an argument is out of range or the optimiser is not of this policy.
    ArgumentTypeError
        If ``env`` is neither an environment nor callable, or a count not an integer.
    ArtifactError
        If the checkpoint is damaged or of a run with other settings.
    """
    check_baseline("train", baseline)
    check_discount("train", discount)
    _check_budget(episodes, steps, horizon, batch, hvp_batch, eval_every, eval_episodes, checkpoint_every)
    if optimizer.policy is not policy:
        raise ArgumentError("train: the optimizer was made for another policy")
    if gae_lambda is not None and (baseline == "none" or not 0 <= gae_lambda <= 1):
        raise ArgumentError(f"train: gae_lambda {gae_lambda} must lie in [0, 1], and needs a baseline")
    if not isinstance(env, VectorEnv) and not callable(env):
        raise ArgumentTypeError(f"train: expected env to be a VectorEnv or a function that makes one, got {env!r}")
    world = env if isinstance(env, VectorEnv) else env()
    generator = torch.Generator().manual_seed(seed)
    settings = optimizer.settings() | {
        "environment": _identity(world), "horizon": str(horizon), "batch": str(batch), "hvp_batch": str(hvp_batch),
        "discount": str(discount), "baseline": baseline, "gae_lambda": str(gae_lambda), "seed": str(seed),
    }  # fmt: skip
    file = None if checkpoint is None else Path(checkpoint)
    done: Done = ()
    if file is not None and file.exists():
        done = _load(file, settings, optimizer, generator)

    def draw(point_parameters: Tensor, count: int, source: Generator) -> TrajectoryBatch:
        load_parameters(policy, point_parameters)
        drawn = collect(world, policy, count, horizon=horizon, discount=discount, generator=source)
        return (
            with_baseline(drawn, baseline) if gae_lambda is None else with_gae(drawn, baseline, gae_lambda=gae_lambda)
        )

    saved = len(done)
    while True:
        before = generator.get_state()
        points = optimizer.sampling_points(batch, hvp_batch, generator)
        last = done[-1] if done else None
        done_episodes = 0 if last is None else last.episodes
        done_steps = 0 if last is None else last.env_steps
        new = sum(point.num_trajectories for point in points)
        if (episodes is not None and done_episodes + new > episodes) or (steps is not None and done_steps >= steps):
            generator.set_state(before)  # a resumed run draws its points anew
            break
        drawn = {p.name: draw(p.parameters, p.num_trajectories, generator) for p in points}
        info = optimizer.step(drawn)
        evaluation = None
        if eval_every is not None and (info.step + 1) % eval_every == 0:
            source = torch.Generator().manual_seed(seed + 1_000_003 * (info.step + 1))
            evaluation = float(draw(optimizer.parameters, eval_episodes, source).returns.mean())
        done_steps += sum(b.num_steps for b in drawn.values())
        iteration = _iteration(info, done_episodes + new, done_steps, drawn[GRADIENT], evaluation)
        done = (*done, iteration)
        if file is not None and len(done) % checkpoint_every == 0:
            _save(file, settings, optimizer, generator, done)
            saved = len(done)
        if on_iteration is not None:
            on_iteration(iteration)
    load_parameters(policy, optimizer.parameters)
    if file is not None and saved < len(done):
        _save(file, settings, optimizer, generator, done)
    return History(done)


def _check_budget(
    episodes: int | None,
    steps: int | None,
    horizon: int,
    batch: int,
    hvp_batch: int | None,
    eval_every: int | None,
    eval_episodes: int,
    checkpoint_every: int,
) -> None:
    if episodes is None and steps is None:
        raise ArgumentError("train: give a budget: episodes= or steps=")
    for name, value in (
        ("episodes", episodes), ("steps", steps), ("horizon", horizon), ("batch", batch), ("hvp_batch", hvp_batch),
        ("eval_every", eval_every), ("eval_episodes", eval_episodes), ("checkpoint_every", checkpoint_every),
    ):  # fmt: skip
        if value is not None:
            check_count("train", name, value)
    if episodes is not None and episodes < batch:
        raise ArgumentError(f"train: episodes={episodes} do not pay for one iteration of batch={batch}")


def _identity(world: VectorEnv) -> str:
    # what tells environments apart: the name where they have one, and the numbers that a policy sees
    name = getattr(world, "name", type(world).__name__)
    return f"{name}, observations {world.observation_size}, actions {world.action_space}"


def _iteration(
    info: StepInfo, episodes: int, env_steps: int, batch: TrajectoryBatch, evaluation: float | None
) -> Iteration:
    return Iteration(
        info.step,
        episodes,
        env_steps,
        float(batch.returns.mean()),
        info.direction_norm,
        info.momentum,
        info.learning_rate,
        info.step_length,
        info.hvp_norm,
        evaluation,
    )


def _save(
    file: Path,
    settings: Mapping[str, str],
    optimizer: PolicyOptimizer,
    generator: Generator,
    done: tuple[Iteration, ...],
) -> None:
    tensors = {f"optimizer.{name}": tensor for name, tensor in optimizer.state().items()}
    tensors |= {"generator": generator.get_state(), "history": History(done).to_table()}
    save_tensors(file, tensors, settings)


def _load(
    file: Path, settings: Mapping[str, str], optimizer: PolicyOptimizer, generator: Generator
) -> tuple[Iteration, ...]:
    found = tensor_metadata(file)
    # what files of an earlier version do not say is taken to agree
    if odd := sorted(name for name in settings if found.get(name, settings[name]) != settings[name]):
        was = ", ".join(f"{name} {found[name]} there and {settings[name]} now" for name in odd)
        raise ArtifactError(f"{file}: a checkpoint of another run: {was}. Use another file, or its own settings")
    tensors = load_tensors(file)
    optimizer.load_state(
        {name.removeprefix("optimizer."): t for name, t in tensors.items() if name.startswith("optimizer.")}
    )
    generator.set_state(tensors["generator"].clone())
    return History.from_table(tensors["history"]).iterations
