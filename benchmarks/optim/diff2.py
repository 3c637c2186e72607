"""DIFF2 against private gradient descent and opacus' DP-SGD, and its accounting against opacus' and an attack."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, t
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.optim._diff2_problems import Probe, best_gradients, generator, logistic, probe
from benchmarks.peers import require_peer
from hesse.optim.diff2 import (
    DIFF2,
    GaussianAccountant,
    GaussianRelease,
    LinearRecords,
    dp_gd,
    gaussian_delta,
    plan_noise,
    run_diff2,
)

DIM = 50
F64 = torch.float64


def utility(scale: Scale) -> list[Claim]:
    """DP-GD's ‖∇f‖² over DIFF2's at the same budget grows with the number of records, about as its cube root."""
    sizes, seeds = scale(smoke=(1000, 4000, 16_000), full=(5000, 20_000, 80_000)), scale(smoke=1, full=5)
    rounds = scale(smoke=(20,), full=(150,))
    rows = _gains(scale, sizes, seeds, 1.0, rounds, "sign", 0)
    middle, large = rows["gain"][1], rows["gain"][2]
    noisy = _gains(scale, sizes, scale(smoke=1, full=3), 1.0, rounds, "noisy", 1000)
    note = "labels without noise; the specification leaves them open"
    return [
        Claim("gain over DP-GD, 20000 records", middle, 1.4, "higher", rows, full_only=True, note=note),
        Claim("gain over DP-GD, 80000 records", large, 1.7, "higher", full_only=True, note=note),
        Claim("exponent of the gain", rows["exponent"], (0.15, 0.5), "inside", full_only=True, note="theory: 1/3"),
        Claim(
            "noisy labels: gain over DP-GD, 80000 records",
            noisy["gain"][2],
            1.7,
            "higher",
            noisy,
            full_only=True,
            note="at a fixed number of rounds the gain grows faster here than 1/3, the exponent of worst cases",
        ),
    ]


def tuned_rounds(scale: Scale) -> list[Claim]:
    """The same with the number of rounds chosen too, for both; with few records DP-GD is ahead."""
    sizes, seeds = scale(smoke=(500, 2000, 8000), full=(2000, 10_000, 40_000)), scale(smoke=1, full=5)
    rounds = scale(smoke=(20,), full=(20, 60, 200))
    rows = _gains(scale, sizes, seeds, 1.0, rounds, "sign", 2000)
    tight = _gains(scale, sizes[1:2], seeds, 0.3, rounds, "sign", 3000)
    return [
        Claim("rounds chosen too: exponent", rows["exponent"], (0.15, 0.5), "inside", rows, full_only=True),
        Claim(
            "limit, n ε = 3000: gain over DP-GD",
            tight["gain"][0],
            1.0,
            "lower",
            tight,
            full_only=True,
            note="below 1 DP-GD is better: the limit stated in the documentation",
        ),
    ]


def _gains(
    scale: Scale,
    sizes: tuple[int, ...],
    seeds: int,
    epsilon: float,
    rounds: tuple[int, ...],
    labels: str,
    stream: int,
) -> dict[str, Any]:
    """Ratios of the best of each method: geometric means over seeds, 95 % intervals, the slope over sizes."""
    logs = np.zeros((len(sizes), seeds))
    chosen: dict[str, list[Any]] = {}
    for i, size in enumerate(sizes):
        for j in range(seeds):
            at = stream + 100 * i + 10 * j
            records = logistic(size, DIM, labels, generator(scale.seed, at))
            best = best_gradients(
                records, DIM, epsilon, rounds, lambda count, at=at: generator(scale.seed, 100_000 + 1000 * at + count)
            )
            logs[i, j] = math.log(best["DP-GD"][0] / best["DIFF2"][0])
            for name, value in best.items():
                chosen.setdefault(f"{name}, {size} records: gradient, step, rounds", []).append(value)
    rows: dict[str, Any] = {"sizes": sizes, "seeds": seeds, "epsilon": epsilon, "gain": np.exp(logs.mean(1)).tolist()}
    if seeds > 1:
        half = t.ppf(0.975, seeds - 1) * logs.std(1, ddof=1) / math.sqrt(seeds)
        rows["95 % interval"] = [np.exp(logs.mean(1) - half).tolist(), np.exp(logs.mean(1) + half).tolist()]
    if len(sizes) > 1:
        rows["exponent"] = float(np.polyfit(np.log(sizes), logs.mean(1), 1)[0])
    return rows | chosen


def linear_probe(scale: Scale) -> list[Claim]:
    """Ten classes at (3, 1e-5): against full-batch DP-GD and opacus' DP-SGD, steps chosen on a part of their own."""
    opacus = require_peer("opacus")
    size, seeds = scale(smoke=2000, full=50_000), scale(smoke=1, full=3)
    rounds, etas = scale(smoke=20, full=150), scale(smoke=(8.0,), full=(8.0, 20.0, 50.0, 100.0))
    scores: dict[str, list[float]] = {"DIFF2": [], "DP-GD": [], "opacus": []}
    chosen: dict[str, list[Any]] = {name: [] for name in scores}
    spent: list[float] = []
    for seed in range(seeds):
        task = probe(size, scale(smoke=1000, full=20_000), 64, generator(scale.seed, 5000 + seed))
        records, start = task.records(), torch.zeros(650)
        found: dict[str, list[tuple[float, Any, Tensor]]] = {name: [] for name in scores}
        for number, eta in enumerate(etas):
            common: dict[str, Any] = {
                "lr": eta,
                "rounds": rounds,
                "epsilon": 3.0,
                "adjacency": "add-remove",  # opacus' neighbours
            }
            noise = 5100 + 100 * seed + 10 * number
            end = dp_gd(records, start, clip=1.0, generator=generator(scale.seed, noise), **common).x
            found["DP-GD"].append((task.accuracy(end, task.check), eta, end))
            for interval in (rounds // 15, rounds // 2):
                end = run_diff2(
                    [records],
                    start,
                    clip_grad=1.0,
                    clip_diff=0.1,
                    restart_interval=interval,
                    generator=generator(scale.seed, noise + 1),
                    **common,
                ).x
                found["DIFF2"].append((task.accuracy(end, task.check), (eta, interval), end))
            end, budget = _opacus_run(opacus, task, eta, scale(smoke=1, full=10), scale.seed + noise)
            found["opacus"].append((task.accuracy(end, task.check), eta, end))
            spent.append(budget)
        for name, runs in found.items():
            _, options, end = max(runs, key=lambda run: run[0])
            scores[name].append(task.accuracy(end, task.test))
            chosen[name].append(options)
    means = {name: sum(values) / seeds for name, values in scores.items()}
    rows = {"records": size, "seeds": seeds, "rounds": rounds, "test accuracy": scores, "chosen": chosen}
    rows["opacus' epsilon"] = [min(spent), max(spent)]
    note = "mean over seeds, in points of test accuracy"
    return [
        Claim("DIFF2 over full-batch DP-GD", means["DIFF2"] - means["DP-GD"], 0.0, "higher", rows, True, note),
        Claim("opacus' DP-SGD over DIFF2", means["opacus"] - means["DIFF2"], 1.0, "lower", means, True, note),
    ]


def _opacus_run(opacus: Any, task: Probe, lr: float, epochs: int, seed: int) -> tuple[Tensor, float]:
    """DP-SGD on Poisson batches of 1000 by opacus; the weights as one vector and the ε spent."""
    torch.manual_seed(seed)
    inputs, labels = task.train
    model = torch.nn.Linear(inputs.shape[1], 10, bias=False)
    torch.nn.init.zeros_(model.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its noise is not secure, and torch that a hook is odd
        engine = opacus.PrivacyEngine(accountant="rdp")
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=1000)
        private, optimizer, batches = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            data_loader=loader,
            target_epsilon=3.0,
            target_delta=1e-5,
            epochs=epochs,
            max_grad_norm=1.0,
        )
        for _ in range(epochs):
            for x, y in batches:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(private(x), y).backward()
                optimizer.step()
        return model.weight.detach().reshape(-1), engine.get_epsilon(1e-5)


def accounting(scale: Scale) -> list[Claim]:
    """ε against opacus at full batches and on samples, never below the exact value; calibration; sensitivity."""
    opacus = require_peer("opacus.accountants")
    draws = np.random.default_rng(abs(scale.seed))
    gaps, sampled_gaps, slacks, inside = [], [], [], 0
    for _ in range(scale(smoke=20, full=200)):
        releases = [
            GaussianRelease(float(draws.uniform(5, 80)), int(draws.integers(1, 60)))
            for _ in range(int(draws.integers(1, 4)))
        ]
        delta = float(10 ** draws.uniform(-8, -3))
        ours = GaussianAccountant(tuple(releases))
        peer = opacus.RDPAccountant()
        peer.history = [(r.multiplier, 1.0, r.count) for r in releases]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the best order is at the end of its list: those cases are left out
            theirs, order = peer.get_privacy_spent(delta=delta)
        slacks.append(ours.epsilon(delta) - ours.epsilon(delta, method="exact"))
        if 1.1 < order < 63:
            inside += 1
            gaps.append(abs(ours.epsilon(delta) / theirs - 1))
    for _ in range(scale(smoke=5, full=30)):
        rate, multiplier = float(10 ** draws.uniform(-3, -1)), float(draws.uniform(0.7, 3))
        count = int(draws.integers(50, 2000))
        peer = opacus.RDPAccountant()
        peer.history = [(multiplier, rate, count)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, order = peer.get_privacy_spent(delta=1e-5)
        if 1.1 < order < 63:
            sampled_gaps.append(abs(GaussianAccountant().add(multiplier, count, rate).epsilon(1e-5) / theirs - 1))
    spends = []
    for _ in range(scale(smoke=10, full=60)):
        budget, delta = float(10 ** draws.uniform(-1, 1)), float(10 ** draws.uniform(-7, -4))
        plan = [GaussianRelease(1.0, int(draws.integers(1, 20))), GaussianRelease(3.0, int(draws.integers(1, 200)))]
        spends.append(GaussianAccountant.calibrate(budget, delta, plan).epsilon(delta) / budget)
    return [
        Claim("ε off opacus', full batches", max(gaps), 0.01, "lower", {"compositions": inside}),
        Claim("ε off opacus', Poisson samples", max(sampled_gaps), 0.01, "lower", {"compositions": len(sampled_gaps)}),
        Claim("least of ε - exact ε", min(slacks), 0.0, "higher", {"largest": max(slacks)}),
        Claim("calibrated spend over budget, least", min(spends), (0.99, 1.0), "inside"),
        Claim("calibrated spend over budget, largest", max(spends), (0.99, 1.0), "inside"),
        _sensitivity(scale),
    ]


def _sensitivity(scale: Scale) -> Claim:
    """Replace one record by any other, huge ones among them: how far the noiseless mean moves beyond 2C/n."""
    pairs, n, worst = scale(smoke=50, full=1000), 20, {"restart": -math.inf, "difference": -math.inf}
    for pair in range(pairs):
        draws = generator(scale.seed, 7000 + pair)
        rows = torch.randn(n, 5, generator=draws, dtype=F64)
        targets = torch.randn(n, generator=draws, dtype=F64)
        size = 10 ** (6 * torch.rand((), generator=draws, dtype=F64) - 2)
        other_rows, other_targets = rows.clone(), targets.clone()
        if pair % 2:  # the same record seen from the other side: sums of clipped vectors then move by all of 2C
            other_rows[0], other_targets[0] = rows[0], -targets[0]
            targets[0], other_targets[0] = 1e6, -1e6
        else:
            other_rows[0] = size * torch.randn(5, generator=draws, dtype=F64)
        one, two = (
            LinearRecords(a, y, lambda u, y: torch.tanh(u - y.unsqueeze(1)) * (1 + u.square()) - y.unsqueeze(1))
            for a, y in ((rows, targets), (other_rows, other_targets))
        )
        x, before = torch.randn(2, 5, generator=draws, dtype=F64)
        clip = float(torch.rand((), generator=draws, dtype=F64) + 0.1)
        moved = clip * float((x - before).norm())
        for kind, bound, sums in (
            ("restart", clip, [r.gradient_sum(x, clip).total for r in (one, two)]),
            ("difference", moved, [r.difference_sum(x, before, moved).total for r in (one, two)]),
        ):
            worst[kind] = max(worst[kind], float((sums[0] - sums[1]).norm()) / n - 2 * bound / n)
    return Claim("mean moves beyond 2C/n by", max(worst.values()), 1e-12, "lower", {"pairs": pairs} | worst)


def identities(scale: Scale) -> list[Claim]:
    """No noise and no clipping: estimates are gradients; T = 1 is DP-GD; equal clients are one data set."""
    n = scale(smoke=400, full=4000)
    records = logistic(n, DIM, "noisy", generator(scale.seed, 8000))
    start = torch.zeros(DIM, dtype=F64)
    x, off = start.clone().requires_grad_(), 0.0
    optimizer = DIFF2(
        [x],
        lr=4.0,
        n_samples=n,
        rounds=40,
        clip_grad=math.inf,
        clip_diff=math.inf,
        noise_multipliers=(0.0, 0.0),
        restart_interval=40,
    )
    for _ in range(40):
        exact = records.gradient_sum(x.detach(), math.inf).total / n
        optimizer.step(records)
        off = max(off, float((optimizer.state_dict()["diff2"]["estimate"][1] - exact).abs().max()))
    common: dict[str, Any] = {"lr": 4.0, "rounds": 30, "epsilon": 1.0}
    ours = run_diff2(
        [records],
        start,
        clip_grad=1.0,
        clip_diff=0.1,
        restart_interval=1,
        generator=generator(scale.seed, 8001),
        **common,
    ).x
    plain = dp_gd(records, start, clip=1.0, generator=generator(scale.seed, 8001), **common).x
    free: dict[str, Any] = {"lr": 4.0, "rounds": 30, "clip_grad": 0.3, "clip_diff": 0.1, "noise_multipliers": (0, 0)}
    cut = [
        LinearRecords(a, y, records.slope_fn)
        for a, y in zip(records.inputs.split(n // 4), records.targets.split(n // 4), strict=True)
    ]
    apart = (run_diff2(cut, start, **free).x - run_diff2([records], start, **free).x).abs().max()
    return [
        Claim("T = R without noise: estimate off the gradient", off, 1e-10, "lower"),
        Claim("T = 1 off DP-GD, same noise", float((ours - plain).abs().max()), 0.0, "lower"),
        Claim("four equal clients off one data set", float(apart), 1e-12, "lower"),
    ]


def audit(scale: Scale) -> Claim:
    """Tell two data sets apart from 3 rounds of the optimiser at (1, 1e-5): the ε this proves is below 1."""
    runs, epsilon, delta = scale(smoke=100, full=2000), 1.0, 1e-5
    plan = plan_noise(3, epsilon=epsilon, delta=delta, clip_grad=1.0, clip_diff=1.0, restart_interval=2)
    scores = torch.stack(
        [
            torch.tensor([_likelihood(side, generator(scale.seed, 9000 + 2 * i + (side > 0))) for i in range(runs)])
            for side in (1.0, -1.0)
        ]
    )
    half = runs // 2
    best, threshold = 0.0, 0.0
    for candidate in torch.linspace(-2, 2, 81):  # chosen on one half of the runs, judged on the other
        value = _proven(scores[:, :half] > candidate, delta)
        best, threshold = (value, float(candidate)) if value > best else (best, threshold)
    proven = _proven(scores[:, half:] > threshold, delta)
    exact = GaussianAccountant().add(plan.restart_multiplier, 2).add(plan.difference_multiplier, 1)
    rows = {
        "runs a side": runs,
        "confidence of each rate": 0.975,
        "exact epsilon": exact.epsilon(delta, method="exact"),
        "delta at epsilon, exact": gaussian_delta(exact.mu(), epsilon),
        "gap of the mean scores, in deviations": float((scores[0].mean() - scores[1].mean()) / scores.std(1).mean()),
        "mu": exact.mu(),
    }
    return Claim("ε proven by an attack, ε = 1", proven, epsilon, "lower", rows)


def _likelihood(side: float, noise: torch.Generator) -> float:
    """Log likelihood ratio of the releases of one run, in which one of two records pulls as hard as it is allowed."""
    x = torch.zeros(2, dtype=F64).requires_grad_()
    optimizer = DIFF2(
        [("x", x)],
        lr=0.5,
        n_samples=2,
        rounds=3,
        clip_grad=1.0,
        clip_diff=1.0,
        epsilon=1.0,
        restart_interval=2,
        generator=noise,
    )
    data, ratio, before, last = torch.tensor([side, 0.0], dtype=F64), 0.0, 0.0, 0.0
    for _ in range(3):
        at = float(x[0].detach())
        info = optimizer.step(lambda p, z: (z * 1e6 * torch.sinh(p["x"][0]) + z * 1e6 * p["x"][0]).sum(), data)
        now = float(optimizer.state_dict()["diff2"]["estimate"][1][0])
        if info.restart:
            pull, seen = info.clip, now
        else:  # cosh grows away from zero
            pull, seen = info.clip * math.copysign(1.0, abs(at) - abs(before)), now - last
        ratio += 2 * (pull / 2) * seen / info.noise_std**2
        before, last = at, now
    return ratio


def _proven(above: Tensor, delta: float) -> float:
    """The ε that rates of detection and of false alarm prove, by Clopper and Pearson, 95 % in all."""
    hits, alarms, count = int(above[0].sum()), int(above[1].sum()), above.shape[1]
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, alarms + 1, count - alarms)) if alarms < count else 1.0
    return max(math.log((low - delta) / high), 0.0) if low > delta else 0.0


CLAIMS: list[ClaimFunction] = [utility, tuned_rounds, linear_probe, accounting, identities, audit]
