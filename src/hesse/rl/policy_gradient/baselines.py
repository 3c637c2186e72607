"""Baselines of REINFORCE: ridge regressions of the return on state and time, each trajectory's fitted on the others.

Shapes: N episodes, T steps, F features.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg._small_lstsq import small_lstsq
from hesse.rl.policy_gradient.rollout import TrajectoryBatch

__all__ = ["Baseline", "check_baseline", "with_baseline", "with_gae"]

Baseline = Literal["linear", "time", "none"]
RIDGE = 1e-5  # of the official experiments
OBSERVATION_LIMIT = 10.0  # squares of rare large observations must not rule the fit


def check_baseline(call: str, kind: str) -> None:
    """Refuse an unknown kind of baseline.

    Parameters
    ----------
    call : str
        For the message.
    kind : str
        What came.

    Raises
    ------
    ArgumentError
        If it is not "linear", "time" or "none".
    """
    if kind not in ("linear", "time", "none"):
        raise ArgumentError(f"{call}: baseline must be linear, time or none; got {kind!r}")


def with_baseline(batch: TrajectoryBatch, kind: Baseline = "linear") -> TrajectoryBatch:
    """Subtract discount^t V_i(s_t, t) from the weights of trajectory i: an unbiased gradient with less variance.

    V_i is a ridge regression of Σ_{h>=t} discount^(h-t) r_h on features, fitted on the other N - 1 trajectories: it
    knows the present policy, and is independent of the trajectory it is subtracted from, hence no bias. A batch of one
    trajectory is left as it is.

    Parameters
    ----------
    batch : TrajectoryBatch
        N trajectories of one policy.
    kind : {"linear", "time", "none"}, default "linear"
        Features. "linear": the observation, its square, powers 1 to 3 of time/100 and 1; "time": the latter alone;
        "none": no baseline.

    Returns
    -------
    TrajectoryBatch
        The same trajectories. O(N T F² + N F³) time, in float64.

    Raises
    ------
    ArgumentError
        If ``kind`` is another one.
    """
    check_baseline("with_baseline", kind)
    weights = _to_go(batch)
    if kind != "none" and batch.num_trajectories > 1:
        values = (_features(batch, kind) @ _fits(batch, kind).unsqueeze(-1)).squeeze(-1)
        weights = weights - _powers(batch) * values.to(weights.dtype)
    return replace(batch, weights=weights * batch.mask)


def with_gae(batch: TrajectoryBatch, kind: Baseline = "linear", *, gae_lambda: float = 0.97) -> TrajectoryBatch:
    """Weigh steps by generalised advantages: discount^t Σ_k (discount λ)^k (r + discount V(s') - V(s)) at t + k.

    V is fitted as in `with_baseline`; after a termination it is 0, after a truncation the fitted value. λ = 1 without
    truncation is `with_baseline`. The estimates are biased where V is wrong, and `policy_hvp` treats the weights as
    constants, which they are not: V stands for the return of the policy that drew the batch.

    Parameters
    ----------
    batch : TrajectoryBatch
        N >= 2 trajectories of one policy.
    kind : {"linear", "time"}, default "linear"
        As there.
    gae_lambda : float, default 0.97
        In [0, 1]; smaller: less variance, more bias.

    Returns
    -------
    TrajectoryBatch
        The same trajectories.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or there is one trajectory only.

    References
    ----------
    J. Schulman, P. Moritz, S. Levine, M. Jordan, P. Abbeel (2016), ICLR, arXiv 1506.02438.
    """
    check_baseline("with_gae", kind)
    if kind == "none" or not 0 <= gae_lambda <= 1:
        raise ArgumentError(f"with_gae: needs a baseline and gae_lambda in [0, 1], got {kind} and {gae_lambda}")
    if batch.num_trajectories < 2:
        raise ArgumentError("with_gae: a value is fitted on the other trajectories, and there is only one")
    fits = _fits(batch, kind)
    values = (_features(batch, kind) @ fits.unsqueeze(-1)).squeeze(-1).to(batch.rewards.dtype) * batch.mask
    last = (_joined(batch.final_observations, batch.lengths, kind) * fits).sum(1).to(values.dtype)
    last = torch.where(batch.terminated, 0, last)
    following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    following = following.scatter(1, (batch.lengths - 1).unsqueeze(1), last.unsqueeze(1))
    errors = (batch.rewards + batch.discount * following - values) * batch.mask
    advantage, columns = torch.zeros_like(last), []
    for t in reversed(range(values.shape[1])):
        advantage = errors[:, t] + batch.discount * gae_lambda * advantage
        columns.append(advantage)
    return replace(batch, weights=_powers(batch) * torch.stack(columns[::-1], dim=1) * batch.mask)


def _fits(batch: TrajectoryBatch, kind: str) -> Tensor:
    # coefficients (N, F): the normal equations of all trajectories, less those of one
    features = _features(batch, kind) * batch.mask.unsqueeze(-1)
    target = _to_go(batch).double() / _powers(batch).double()
    grams, sides = features.mT @ features, features.mT @ target.unsqueeze(-1)
    ridge = RIDGE * torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device)
    return small_lstsq(grams.sum(0) - grams + ridge, sides.sum(0) - sides).squeeze(-1)


def _powers(batch: TrajectoryBatch) -> Tensor:
    steps = batch.rewards.shape[1]
    return batch.discount ** torch.arange(steps, dtype=batch.rewards.dtype, device=batch.rewards.device)


def _to_go(batch: TrajectoryBatch) -> Tensor:
    return (_powers(batch) * batch.rewards).flip(1).cumsum(1).flip(1)


def _features(batch: TrajectoryBatch, kind: str) -> Tensor:
    times = torch.arange(batch.rewards.shape[1], device=batch.rewards.device).expand(batch.rewards.shape)
    return _joined(batch.observations, times, kind)


def _joined(observations: Tensor, times: Tensor, kind: str) -> Tensor:
    clock = times.double().unsqueeze(-1) / 100
    columns = [clock, clock.square(), clock**3, torch.ones_like(clock)]
    if kind == "linear":
        seen = observations.double().clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        columns = [seen, seen.square(), *columns]
    return torch.cat(columns, dim=-1)
