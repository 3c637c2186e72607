"""DIFF2 over clients that keep their records: private averages, and cheap private steps at one client in between."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.diff2.accountant import GaussianAccountant
from hesse.optim.diff2.estimate import Adjacency, EstimateState, RoundInfo, next_estimate, rules_of, sensitivity_factor
from hesse.optim.diff2.noise import gaussian_noise
from hesse.optim.diff2.plan import LocalReleases
from hesse.optim.diff2.records import Records

__all__ = ["BVRLSGD", "DIFF2Result", "run_diff2"]

GradientOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BVRLSGD:
    """Local steps with differences on small batches, after the bias-variance reduced local SGD of Murata and Suzuki.

    y₁ = x - ηv, u₁ = v;   u_{k+1} = u_k + (1/b) Σ_{z in I_k} clip(∇l(y_k, z) - ∇l(y_{k-1}, z), C₃‖y_k - y_{k-1}‖) + ξ,
    y_{k+1} = y_k - η u_{k+1};   the round ends in y_K.

    Parameters
    ----------
    steps : int
        K >= 1; 1 is plain descent.
    batch : int
        b >= 1, at most the records of the smallest client. For "add-remove" every record enters with probability b/n_p
        (a Poisson sample, amplification counted); for "replace" a fixed number is drawn without replacement and no
        amplification is counted.
    clip : float
        C₃ > 0, per unit of distance; the run's C₂ is the natural choice.
    clients : {"one", "all"}, default "one"
        One client drawn at random makes the steps and sends its y_K to the others; or all do, and the mean counts.
    share : float, default 1/3
        Of the budget for these releases, in (0, 1).

    Raises
    ------
    ArgumentError
        If an option is out of range.

    Notes
    -----
    The paper's routine without noise is known; the private form here is a reconstruction of ours, with the accounting
    given above.

    References
    ----------
    T. Murata, T. Suzuki (2021), ICML, arXiv 2102.03198.
    """

    steps: int
    batch: int
    clip: float
    clients: Literal["one", "all"] = "one"
    share: float = 1 / 3

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"BVRLSGD: expected an integer {name} >= 1, got {value!r}")
        if not self.clip > 0:
            raise ArgumentError(f"BVRLSGD: expected clip > 0, got {self.clip}")
        if self.clients not in ("one", "all"):
            raise ArgumentError(f"BVRLSGD: clients must be 'one' or 'all', got {self.clients!r}")
        if not 0 < self.share < 1:
            raise ArgumentError(f"BVRLSGD: share must lie in (0, 1), got {self.share}")


@dataclass(frozen=True, slots=True, eq=False)
class DIFF2Result:
    """Where a run ended and what it cost."""

    x: Tensor  # (D,)
    rounds: tuple[RoundInfo, ...]
    accountant: GaussianAccountant

    def privacy_spent(self, delta: float) -> float:
        """ε of all releases for the record that met most of them.

        Parameters
        ----------
        delta : float
            δ in (0, 1).

        Returns
        -------
        float
            In nats.
        """
        return self.accountant.epsilon(delta)


def run_diff2(
    clients: Sequence[Records],
    x0: Tensor,
    *,
    lr: float,
    rounds: int,
    clip_grad: float,
    clip_diff: float,
    epsilon: float | None = None,
    delta: float = 1e-5,
    noise_multipliers: tuple[float, ...] | None = None,
    restart_interval: int | Literal["auto"] = "auto",
    split: float | Literal["auto"] = "auto",
    step_length: float | None = None,
    adjacency: Adjacency = "replace",
    accounting: Literal["rdp", "exact"] = "rdp",
    local_routine: Literal["gd"] | BVRLSGD = "gd",
    secure_aggregation: bool = True,
    weighting: Literal["uniform", "records"] = "uniform",
    penalty_grad: GradientOf | None = None,
    output: Literal["last", "best", "uniform"] = "last",
    generator: Generator | None = None,
    sampling_generator: Generator | None = None,
    on_round: Callable[[RoundInfo, Tensor], None] | None = None,
) -> DIFF2Result:
    """Minimise f(x) = Σ_p w_p (1/n_p) Σ_z l(x, z) so that no record can be told from the points of the run.

    Parameters
    ----------
    clients : sequence of Records
        One for central training; each keeps its records. Their numbers n_p are public.
    x0 : Tensor, shape (D,)
        Start, not derived from the records.
    lr : float
        η > 0.
    rounds, clip_grad, clip_diff, epsilon, delta, noise_multipliers, restart_interval, split, step_length
        As of `DIFF2`. With local steps there are three multipliers.
    adjacency, accounting
        As of `DIFF2`.
    local_routine : "gd" or BVRLSGD, default "gd"
        What leads from x_{r-1} and v_r to x_r: one step of descent, or several with cheap batches.
    secure_aggregation : bool, default True
        The server sees only sums over clients, so that each adds 1/√P of the noise. False: it sees each answer, and the
        mean has up to √P times the noise that one data set of the same size would get.
    weighting : {"uniform", "records"}, default "uniform"
        w_p = 1/P, or n_p/n, which makes f the mean over all records and the noise independent of the smallest client.
    penalty_grad : callable, optional
        (D,) -> (D,), gradient of a term without data; it enters without noise.
    output : {"last", "best", "uniform"}, default "last"
        x_R, or the x_{r-1} whose released ‖v_r‖ is least, or a round drawn at random (which theory is about). All are
        functions of what was released and cost nothing.
    generator : torch.Generator, optional
        Of the noise; see `gaussian_noise`.
    sampling_generator : torch.Generator, optional
        Of clients, batches and the round drawn, on the CPU; another one than ``generator``. Default: one seeded afresh.
    on_round : callable, optional
        (info, x_r) after every round.

    Returns
    -------
    DIFF2Result
        Point, rounds, accountant.

    Raises
    ------
    ArgumentError
        If an option is out of range or contradicts another one.
    ShapeError
        If ``x0`` is not a vector.

    Notes
    -----
    A restart round costs one gradient of every record, a difference round two; each local step 2b more.

    References
    ----------
    T. Murata, T. Suzuki (2023), ICML, arXiv 2302.03884.
    """
    if x0.ndim != 1:
        raise ShapeError(f"run_diff2: expected x0 of shape (D,), got {tuple(x0.shape)}")
    if not clients:
        raise ArgumentError("run_diff2: there are no clients")
    if not (math.isfinite(lr) and lr > 0):
        raise ArgumentError(f"run_diff2: expected a finite lr > 0, got {lr}")
    if weighting not in ("uniform", "records"):
        raise ArgumentError(f"run_diff2: weighting must be 'uniform' or 'records', got {weighting!r}")
    if output not in ("last", "best", "uniform"):
        raise ArgumentError(f"run_diff2: output must be 'last', 'best' or 'uniform', got {output!r}")
    if generator is not None and generator is sampling_generator:
        raise ArgumentError("run_diff2: draws of batches give noise of the same generator away; use two")
    sizes = [client.num_records for client in clients]
    sampler = _fresh_generator() if sampling_generator is None else sampling_generator
    # the number of rounds is checked with the rules; without a valid one there is nothing to schedule
    schedule = torch.randint(len(clients), (max(int(rounds), 1),), generator=sampler).tolist()
    routine = None if local_routine == "gd" else local_routine
    local = None if routine is None else _local_releases(routine, schedule, sizes, adjacency)
    rules = rules_of(
        rounds,
        min(sizes),
        clip_grad=clip_grad,
        clip_diff=clip_diff,
        epsilon=epsilon,
        delta=delta,
        noise_multipliers=noise_multipliers,
        restart_interval=restart_interval,
        adjacency=adjacency,
        accounting=accounting,
        split=split,
        step_length=step_length,
        local=local,
    )
    if routine is not None and rules.plan.local_multiplier > 0 and math.isinf(routine.clip):
        raise ArgumentError("run_diff2: the clip of local steps must be finite where there is noise")
    weights = [1 / len(sizes) if weighting == "uniform" else size / sum(sizes) for size in sizes]
    kept = int(torch.randint(rounds, (), generator=sampler)) if output == "uniform" else rounds - 1
    state, x, chosen = EstimateState.start(x0), x0.detach().clone(), x0
    infos: list[RoundInfo] = []
    local_counts, accountant = [0] * len(clients), GaussianAccountant()
    for number in range(rounds):
        state, info = next_estimate(
            rules,
            state,
            x,
            clients,
            weights=weights,
            secure_aggregation=secure_aggregation,
            generator=generator,
        )
        if info.released:
            accountant = accountant.add(info.multiplier)
        if output == "best" and info.estimate_norm < min((i.estimate_norm for i in infos), default=math.inf):
            chosen = x
        infos.append(info)
        if routine is None:
            x = x - lr * _with_penalty(state.value, x, penalty_grad)
        else:
            walk = _LocalWalk(routine, lr, rules.plan.local_multiplier, adjacency, penalty_grad, generator, sampler)
            active = [schedule[number]] if routine.clients == "one" else range(len(clients))
            ends = []
            for p in active:
                end, count = walk.run(clients[p], x, state.value)
                ends.append(end if routine.clients == "one" else weights[p] * end)
                local_counts[p] += count
            x = torch.stack(ends).sum(0)
        if output != "best" and number == kept:
            chosen = x
        if on_round is not None:
            on_round(info, x)
    if local is not None:
        accountant = accountant.add(rules.plan.local_multiplier, max(local_counts), local.sampling_rate)
    return DIFF2Result(chosen, tuple(infos), accountant)


@dataclass(frozen=True, slots=True, eq=False)
class _LocalWalk:
    routine: BVRLSGD
    lr: float
    multiplier: float
    adjacency: Adjacency
    penalty_grad: GradientOf | None
    generator: Generator | None
    sampler: Generator

    def run(self, client: Records, x: Tensor, estimate: Tensor) -> tuple[Tensor, int]:
        # the end of K steps, and how many of them released something
        routine, factor, count = self.routine, sensitivity_factor(self.adjacency), 0
        previous, y, u = x, x - self.lr * _with_penalty(estimate, x, self.penalty_grad), estimate
        for _ in range(routine.steps - 1):
            moved = float(torch.linalg.vector_norm(y - previous))
            if moved > 0:
                clip = routine.clip * moved
                std = self.multiplier * factor * clip / routine.batch if self.multiplier > 0 else 0.0
                index = self._draw(client.num_records).to(x.device)
                total = client.difference_sum(y, previous, clip, index).total
                u = u + total / routine.batch + gaussian_noise(x, std, self.generator)
                count += 1
            previous, y = y, y - self.lr * _with_penalty(u, y, self.penalty_grad)
        return y, count

    def _draw(self, num_records: int) -> Tensor:
        if self.adjacency == "replace":
            return torch.randperm(num_records, generator=self.sampler)[: self.routine.batch]
        coins = torch.rand(num_records, generator=self.sampler, dtype=torch.float64)
        return (coins < self.routine.batch / num_records).nonzero().squeeze(1)


def _local_releases(routine: BVRLSGD, schedule: list[int], sizes: list[int], adjacency: Adjacency) -> LocalReleases:
    # who walks is drawn before the run and without a look at data, so that the worst client's count is known
    if routine.batch > min(sizes):
        raise ArgumentError(f"run_diff2: a batch of {routine.batch} from a client of {min(sizes)} records")
    turns = len(schedule) if routine.clients == "all" else max(schedule.count(p) for p in range(len(sizes)))
    rate = 1.0 if adjacency == "replace" else routine.batch / min(sizes)
    return LocalReleases(turns * (routine.steps - 1), rate, routine.share)


def _with_penalty(estimate: Tensor, x: Tensor, penalty_grad: GradientOf | None) -> Tensor:
    return estimate if penalty_grad is None else estimate + penalty_grad(x)


def _fresh_generator() -> Generator:
    generator = Generator()
    generator.seed()  # of the operating system's entropy
    return generator
