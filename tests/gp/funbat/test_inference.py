"""Moments, messages and the evidence bound of the functional Tucker and CP models."""

import math

import pytest
import torch

from hesse.gp.funbat import MaternSSM, inference
from hesse.gp.funbat.inference import Core, Entries, Form, other_moments, start, sweep
from hesse.gp.funbat.streaming import absorb

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(form: Form, ranks: tuple[int, ...], num_entries: int = 80, restarts: int = 2):
    g = seeded(0)
    times = [torch.linspace(0, 1, 9 + k, dtype=F64) for k in range(len(ranks))]
    index = tuple(torch.randint(len(t), (num_entries,), generator=g) for t in times)
    y = torch.stack([torch.cos(4 * t[i] + k) for k, (t, i) in enumerate(zip(times, index, strict=True))]).prod(0)
    y = y + 0.1 * torch.randn(num_entries, generator=g, dtype=F64)
    ssm = MaternSSM(1.5, torch.full((restarts,), 0.3, dtype=F64), torch.ones(restarts, dtype=F64))
    begin = start(times, ranks, form, [ssm] * len(ranks), (1e-3, 1e-3), restarts, g)
    return begin, Entries(y / y.square().mean().sqrt(), index)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_moments_are_those_of_sampled_cores_and_factors(mode):
    """Oracle: Monte Carlo, 200 batches of 500 draws, within five standard errors; uneven ranks."""
    g, ranks = seeded(mode), (2, 3, 2)
    means = [torch.randn(1, 1, r, generator=g, dtype=F64) for r in ranks]
    roots = [0.5 * torch.randn(1, 1, r, r, generator=g, dtype=F64) for r in ranks]
    seconds = [a @ a.mT + m.unsqueeze(-1) * m.unsqueeze(-2) for m, a in zip(means, roots, strict=True)]
    core_mean, core_root = torch.randn(1, 12, generator=g, dtype=F64), 0.3 * torch.randn(12, 12, generator=g, dtype=F64)
    core = Core(ranks, core_mean, (core_root @ core_root.T).unsqueeze(0), (core_root, core_mean))
    mean, second = other_moments(means, seconds, core, mode)
    count = 100_000
    draws = [
        m[0, 0] + torch.randn(count, r, generator=g, dtype=F64) @ a[0, 0].T
        for m, a, r in zip(means, roots, ranks, strict=True)
    ]
    cores = (core_mean + torch.randn(count, 12, generator=g, dtype=F64) @ core_root.T).reshape(count, *ranks)
    letters = "abc"
    others = [j for j in range(3) if j != mode]
    spec = "nabc," + ",".join(f"n{letters[j]}" for j in others) + f"->n{letters[mode]}"
    a = torch.einsum(spec, cores, *(draws[j] for j in others))
    for found, samples in ((mean[0, 0], a), (second[0, 0], a.unsqueeze(-1) * a.unsqueeze(-2))):
        batches = samples.reshape(200, 500, *samples.shape[1:]).mean(1)
        assert bool(((found - batches.mean(0)).abs() <= 5 * batches.std(0) / 200**0.5).all())


@pytest.mark.parametrize("form", ["tucker", "cp"])
@pytest.mark.parametrize("learn_hyper", [False, True])
def test_bound_never_falls_without_damping(form, learn_hyper):
    """Oracle: coordinate ascent; to 1e-8 nats over 25 sweeps, two restarts at once."""
    posterior, entries = problem(form, (2, 2, 2))
    bounds = []
    for _ in range(12 if learn_hyper else 25):
        posterior = sweep(posterior, entries, 0.0, learn_hyper=learn_hyper)
        bounds.append(posterior.bound)
    assert float(torch.stack(bounds).diff(dim=0).min()) >= -1e-8


def test_fixed_product_gives_the_cp_form():
    """Oracle: a Tucker core that is known to be the superdiagonal has the CP form's moments."""
    means = [torch.randn(2, 5, 3, generator=seeded(k), dtype=F64) for k in range(3)]
    seconds = [m.unsqueeze(-1) * m.unsqueeze(-2) + 0.1 * torch.eye(3, dtype=F64) for m in means]
    diagonal = torch.zeros(2, 3, 3, 3, dtype=F64)
    for r in range(3):
        diagonal[:, r, r, r] = 1.0
    nothing = torch.zeros(2, 27, 27, dtype=F64)
    tucker = Core((3, 3, 3), diagonal.flatten(1), nothing, (nothing, diagonal.flatten(1)))
    empty = torch.zeros(2, 0, dtype=F64)
    cp = Core((3, 3, 3), empty, empty.unsqueeze(-1), (empty.unsqueeze(-1), empty))
    for ours, theirs in zip(
        other_moments(means, seconds, tucker, 1), other_moments(means, seconds, cp, 1), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_stretches_do_not_change_the_result(form, monkeypatch):
    """Oracle: the same sweep with a budget that holds one entry at a time."""
    begin, entries = problem(form, (2, 2), num_entries=15)
    whole = sweep(begin, entries, 0.2)
    monkeypatch.setattr(inference, "_BUDGET", 1)
    parts = sweep(begin, entries, 0.2)
    torch.testing.assert_close(whole.bound, parts.bound, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.factors[1].mean, parts.factors[1].mean, rtol=1e-12, atol=1e-12)


def test_one_mode_of_rank_one_is_gp_regression_with_a_scalar_weight():
    """Oracle: dense algebra; given q(W) and E[tau], the factor is a GP seen through w with E[w], E[w²]."""
    begin, entries = problem("tucker", (1,), restarts=1)
    before = sweep(begin, entries, 0.0)
    after = sweep(before, entries, 0.0)
    t = before.factors[0].times
    x = 3**0.5 * (t.unsqueeze(-1) - t).abs() / 0.3
    prior = (1 + x) * torch.exp(-x)
    tau, w, w2 = before.noise.mean[0], before.core.mean[0, 0], before.core.second[0, 0, 0]
    counts = torch.zeros_like(t).index_add(0, entries.index[0], torch.ones_like(entries.y))
    sums = torch.zeros_like(t).index_add(0, entries.index[0], entries.y)
    cov = torch.linalg.solve(torch.eye(len(t), dtype=F64) + prior * (tau * w2 * counts), prior)
    torch.testing.assert_close(after.factors[0].mean[0, :, 0], cov @ (tau * w * sums), atol=1e-9, rtol=0)
    torch.testing.assert_close(after.factors[0].covariance[0, :, 0, 0], cov.diagonal(), atol=1e-9, rtol=0)


def test_bound_of_a_later_batch_is_relative_to_the_earlier_posterior():
    """Oracle: dense algebra; E[log p(y)] - KL(q(u) ‖ old q(u)) - KL(q(tau) ‖ old q(tau)), one mode, CP, rank one."""
    begin, entries = problem("cp", (1,), restarts=1)
    begin, index = absorb(sweep(sweep(begin, entries, 0.0), entries, 0.0), torch.tensor([[0.1], [0.55]], dtype=F64))
    after = sweep(begin, Entries(torch.tensor([0.4, 0.8], dtype=F64), index), 0.0)
    factor, t = after.factors[0], after.factors[0].times
    x = 3**0.5 * (t.unsqueeze(-1) - t).abs() / 0.3
    prior = (1 + x) * torch.exp(-x)

    def gaussian(precision, shift):
        mixed = torch.eye(len(t), dtype=F64) + prior * precision[0, :, 0, 0]
        cov = torch.linalg.solve(mixed, prior)
        return torch.distributions.MultivariateNormal(cov @ shift[0, :, 0], cov)

    divergence = torch.distributions.kl_divergence
    process = divergence(gaussian(factor.precision, factor.shift), gaussian(*factor.base))
    tau = torch.distributions.Gamma(after.noise.shape, after.noise.rate)
    noise = divergence(tau, torch.distributions.Gamma(*after.noise.base))
    log_tau = torch.digamma(after.noise.shape) - after.noise.rate.log()
    half = after.noise.rate - after.noise.base[1]
    likelihood = log_tau - math.log(2 * math.pi) - tau.mean * half  # two values
    torch.testing.assert_close(after.bound, likelihood - process - noise, atol=1e-8, rtol=0)
