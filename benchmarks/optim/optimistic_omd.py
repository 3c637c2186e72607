"""Optimistic online mirror descent against the players it should beat, where it should and where it should not.

Regret is that of the expected losses unless said otherwise; negative means better than every fixed point. Every number
is a mean over runs, with its standard error beside it in the rows.
"""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.optim._online_streams import (
    DIAMETER,
    F64,
    UNIT_BALL,
    baseline,
    directions,
    ensemble,
    labelled_features,
    linear,
    logistic,
    mean_and_error,
    optimistic,
    pieces,
    play_torch,
    quadratics,
    rotating,
    smooth_features,
    switching,
    targets,
)
from hesse.linalg import metric_projection
from hesse.optim import ONS, AdaGradNorm, OnlineGradientDescent, OOMDRules, oomd_init, oomd_play, oomd_update, regret

__all__ = ["CLAIMS"]

NUM_RUNS = 5
ADAGRAD_RATES = (0.5, 1.0, 2.0)  # of torch's, which the best of the three is taken of

_rules = partial(OOMDRules, DIAMETER, projection=UNIT_BALL)


def _seeded(scale: Scale, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * scale.seed + stream)


def claim_low_variation(scale: Scale) -> list[Claim]:
    """Linear losses whose mean turns round every 20 rounds: cumulative loss a round below the best baseline."""
    rounds, noises = scale(smoke=400, full=8000), (0.0, 0.1, 0.3, 1.0)
    mean, grads = switching(rounds, 20, torch.tensor(noises, dtype=F64).repeat_interleave(NUM_RUNS), _seeded(scale, 1))
    everything = linear(mean, grads)
    num_runs = len(everything.comparator)
    plays = play_torch(torch.optim.Adagrad, ADAGRAD_RATES, everything.gradient, rounds, num_runs, 2)
    torch_adagrad = torch.stack([regret(everything.losses, x, everything.comparator) for x in plays])
    adagrad = everything.regret(baseline(AdaGradNorm(DIAMETER, UNIT_BALL), num_runs, 2))
    claims = []
    for i, (noise, bar) in enumerate(zip(noises, (0.05, 0.05, 0.05, 0.01), strict=True)):
        part = slice(i * NUM_RUNS, (i + 1) * NUM_RUNS)
        stream = linear(mean, grads[:, part])
        found = {
            "OOMD": stream.regret(optimistic(_rules(1 + noise), NUM_RUNS, 2)),
            "OGD": stream.regret(
                baseline(OnlineGradientDescent(DIAMETER, 1 + noise, projection=UNIT_BALL), NUM_RUNS, 2)
            ),
            "AdaGrad-norm": adagrad[part],
            "torch Adagrad, best of three rates": min(torch_adagrad[:, part], key=lambda value: float(value.mean())),
        }
        means = {name: float(value.mean()) for name, value in found.items()}
        gain = (min(value for name, value in means.items() if name != "OOMD") - means["OOMD"]) / rounds
        rows = {name: mean_and_error(value) for name, value in found.items()}
        claims.append(
            Claim(f"below OGD and AdaGrad a round, noise {noise:g}", gain, bar, "higher", rows, full_only=True)
        )
    return claims


def claim_slow_turns(scale: Scale) -> Claim:
    """The mean turns round every 320 rounds, without noise: the point played follows the last gradient at once."""
    rounds, block = scale(smoke=640, full=32000), scale(smoke=32, full=320)
    ours, plain = _against_ogd(rounds, block)
    title = "regret on slow turns, no noise, 32000 rounds of blocks of 320"
    return Claim(title, ours, -30000.0, "lower", {"OOMD": ours, "OGD": plain}, full_only=True)


def _against_ogd(rounds: int, block: int) -> tuple[float, float]:
    # without noise nothing is drawn: one run is all there is
    stream = linear(*switching(rounds, block, torch.zeros(1), torch.Generator()))
    ours = stream.regret(optimistic(_rules(1.0), 1, 2))
    plain = stream.regret(baseline(OnlineGradientDescent(DIAMETER, 1.0, projection=UNIT_BALL), 1, 2))
    return float(ours), float(plain)


def claim_bound(scale: Scale) -> list[Claim]:
    """Random quadratics with known σ² and Σ²: mean realised regret over five runs divided by the bound.

    The bound is 5√2 D √σ² + 5 D √Σ² + D²L + DG: the lower-order term with the smallest constant one could mean.
    """
    rows, worst = {}, 0.0
    for rounds in scale(smoke=(200,), full=(1000, 4000)):
        for kind in ("stochastic", "drift", "corrupted"):
            for noise in (0.0, 0.5):
                case = quadratics(kind, rounds, noise, NUM_RUNS, _seeded(scale, 3))
                found = case.stream.regret(optimistic(_rules(case.grad_bound, smoothness=1.0), NUM_RUNS, 5))
                leading = (
                    5 * 2**0.5 * DIAMETER * case.variance**0.5 + 5 * DIAMETER * float(case.variation.mean()) ** 0.5
                )
                bound = leading + DIAMETER**2 + DIAMETER * case.grad_bound
                worst = max(worst, float(found.mean()) / bound)
                rows[f"{kind}, noise {noise:g}, T={rounds}"] = {"regret": mean_and_error(found), "bound": bound}
    return [Claim("regret over its bound, worst case", worst, 1.0, "lower", rows)]


def claim_noise_growth(scale: Scale) -> list[Claim]:
    """A fixed quadratic under heavy noise: realised regret grows as √(σ² T)."""
    rounds, noises, num_runs = scale(smoke=200, full=4000), (16.0, 32.0, 64.0, 128.0), scale(smoke=20, full=200)

    def measured(rounds: int, noise: float) -> Tensor:
        case = quadratics("stochastic", rounds, noise, num_runs, _seeded(scale, 4))
        return case.stream.regret(optimistic(_rules(case.grad_bound, smoothness=1.0), num_runs, 5))

    by_noise = {noise: measured(rounds, noise) for noise in noises}
    by_rounds = {float(rounds // 4): measured(rounds // 4, noises[-1]), float(rounds): by_noise[noises[-1]]}
    return [
        Claim(
            title,
            _slope(values),
            (0.9 * power, 1.1 * power),
            "inside",
            {str(key): mean_and_error(value) for key, value in values.items()},
            full_only=True,
            note=note,
        )
        for title, values, power, note in (
            ("slope of log regret in log noise", by_noise, 1.0, None),
            ("slope of log regret in log T at noise 128", by_rounds, 0.5, "the other half of √(σ² T)"),
        )
    ]


def _slope(values: Mapping[float, Tensor]) -> float:
    means = [float(value.mean()) for value in values.values()]
    if min(means) <= 0:
        return math.nan  # no logarithm: the claim does not hold
    return float(np.polyfit(np.log(list(values)), np.log(means), 1)[0])


def claim_worst_case(scale: Scale) -> Claim:
    """The sign flips every round, so that every hint is wrong: regret over that of OGD."""
    ours, plain = _against_ogd(scale(smoke=400, full=4000), 1)
    rows = {"OOMD": ours, "OGD": plain}
    return Claim("price of wrong hints, in regrets of OGD", ours / plain, 6.0, "lower", rows, full_only=True)


def claim_strongly_convex(scale: Scale) -> list[Claim]:
    """½‖x - c_t‖² with c_t rotating: static regret below OGD with steps 1/(λt)."""
    rounds, generator = scale(smoke=400, full=4000), _seeded(scale, 6)
    cases = [(period, noise) for period in (50, 400) for noise in (0.0, 0.3)]
    periods = torch.tensor([float(period) for period, _ in cases]).repeat_interleave(NUM_RUNS)
    noises = torch.tensor([noise for _, noise in cases], dtype=F64).repeat_interleave(NUM_RUNS)
    centers = 0.8 * rotating(rounds, periods, 5, generator)
    stream = targets(centers, noises, generator, comparator=centers.mean(0))
    rules = _rules(2.0, geometry="strongly-convex", strong=1.0)
    plain = OnlineGradientDescent(DIAMETER, 2.0, strong=1.0, projection=UNIT_BALL)
    ours = stream.regret(optimistic(rules, len(periods), 5)).reshape(len(cases), NUM_RUNS)
    theirs = stream.regret(baseline(plain, len(periods), 5)).reshape(len(cases), NUM_RUNS)
    rows = {
        f"period {period}, noise {noise:g}": {"OOMD": mean_and_error(a), "OGD 1/(λt)": mean_and_error(b)}
        for (period, noise), a, b in zip(cases, ours, theirs, strict=True)
    }
    means = ours.mean(1)
    gap = float((means - theirs.mean(1)).max())
    return [
        Claim("strongly convex: above OGD, worst of four", gap, 0.0, "lower", rows, full_only=True),
        Claim("strongly convex: regret at period 50", float(means[:2].max()), -5.0, "lower", rows, full_only=True),
        Claim("strongly convex: regret at period 400", float(means[2:].max()), -40.0, "lower", rows, full_only=True),
    ]


def claim_exp_concave(scale: Scale) -> list[Claim]:
    """Logistic loss in the unit ball of R^10: far below ONS where features move slowly, within the bound elsewhere."""
    rounds, generator, n = scale(smoke=200, full=4000), _seeded(scale, 7), 10
    noises = torch.tensor([0.0, 0.1, 0.3], dtype=F64).repeat_interleave(NUM_RUNS)
    fast = smooth_features(rounds, 100, noises, n, generator)
    slow = smooth_features(rounds, 400, torch.zeros(NUM_RUNS, dtype=F64), n, generator)
    names = ("period 100, noise 0", "period 100, noise 0.1", "period 100, noise 0.3", "period 400, noise 0")
    ours, newton, rows = _logistic_players(torch.cat([fast, slow], 1), names)
    gains = (newton - ours) / rounds
    smooth = [
        Claim(
            "exp-concave: below ONS a round, worst noise", float(gains[:3].min()), 0.15, "higher", rows, full_only=True
        ),
        Claim("exp-concave: below ONS a round, period 400", float(gains[3]), 0.0, "higher", rows, full_only=True),
    ]
    rounds = scale(smoke=200, full=5000)
    drifts = torch.tensor([False, True]).repeat_interleave(NUM_RUNS)
    features = labelled_features(rounds, drifts, n, generator)
    ours, _, rows = _logistic_players(features, ("iid features", "drifting target"))
    bar = 1.1 * n * math.log(1 + rounds) * math.e  # 1.1 d log(1 + T) / α
    title = "exp-concave: regret where the last gradient says nothing"
    note = "ONS is the better choice here, as its rows show"
    return [*smooth, Claim(title, float(ours.max()), bar, "lower", rows, full_only=True, note=note)]


def _logistic_players(
    features: Tensor, names: tuple[str, ...]
) -> tuple[Tensor, Tensor, dict[str, dict[str, list[float]]]]:
    # G = 1 for features in the unit ball; exp(-α f) is concave for α = exp(-1), as |a·x| <= 1
    stream, (_, num_runs, n), alpha = logistic(features), features.shape, math.exp(-1)
    ours = stream.regret(optimistic(_rules(1.0, geometry="exp-concave", exp_concavity=alpha), num_runs, n))
    newton = stream.regret(baseline(ONS(DIAMETER, 1.0, alpha, UNIT_BALL), num_runs, n))
    ours, newton = (value.reshape(len(names), NUM_RUNS) for value in (ours, newton))
    rows = {
        name: {"OOMD": mean_and_error(a), "ONS": mean_and_error(b)}
        for name, a, b in zip(names, ours, newton, strict=True)
    }
    return ours.mean(1), newton.mean(1), rows


def claim_dynamic(scale: Scale) -> list[Claim]:
    """A target that jumps K times: dynamic regret of the ensemble over that of OGD, and of one optimistic player."""
    rounds, counts = scale(smoke=160, full=4000), (1, 5, 20, 80)
    which = torch.tensor(counts).repeat_interleave(NUM_RUNS)
    rows: dict[str, dict[str, list[float]]] = {}
    over_ogd, over_single = [], math.nan
    for noise in (0.0, 0.3):
        generator = _seeded(scale, 8)
        stream = targets(pieces(rounds, which, 5, generator), torch.full((len(which),), noise, dtype=F64), generator)
        grad_bound = 2 + noise
        rules = _rules(grad_bound, smoothness=1.0)
        players = {
            "ensemble": ensemble(rules, len(which), 5, rounds),
            "OOMD": optimistic(rules, len(which), 5),
            "OGD": baseline(OnlineGradientDescent(DIAMETER, grad_bound, projection=UNIT_BALL), len(which), 5),
            "AdaGrad-norm": baseline(AdaGradNorm(DIAMETER, UNIT_BALL), len(which), 5),
        }
        found = {name: stream.regret(player).reshape(len(counts), NUM_RUNS) for name, player in players.items()}
        for i, count in enumerate(counts):
            rows[f"K={count}, noise {noise:g}"] = {name: mean_and_error(value[i]) for name, value in found.items()}
        means = {name: value.mean(1) for name, value in found.items()}
        over_ogd += (means["ensemble"] / means["OGD"])[2:].tolist()
        over_single = float(means["ensemble"][3] / means["OOMD"][3])
    return [
        Claim("dynamic regret over OGD's, K >= 20, worst", max(over_ogd), 0.4, "lower", rows, full_only=True),
        Claim("dynamic regret over one player's, K=80, noise 0.3", over_single, 0.95, "lower", rows, full_only=True),
    ]


def claim_metric_projection(scale: Scale) -> Claim:
    """The projections that a Newton-like round makes, x̂ - H⁻¹g on the ball in the norm of H, against SLSQP."""
    generator, n, count, beta = _seeded(scale, 9), 6, scale(smoke=5, full=100), 1 / 16
    seen = directions(count, 200, n, generator=generator)
    H = (1 + beta / 2) * torch.eye(n, dtype=F64) + beta / 2 * seen.mT @ seen
    center, grad = (directions(count, n, generator=generator) for _ in range(2))
    y = center - torch.linalg.solve(H, grad)
    found = metric_projection(H, y, UNIT_BALL)
    # stationarity: H (y - x) = ν x with ν >= 0, and ν = 0 inside
    force = (H @ (y - found).unsqueeze(-1)).squeeze(-1)
    nu = (force * found).sum(-1, keepdim=True)
    outside = y.norm(dim=-1) > 1
    rows = {
        "outside the ball": int(outside.sum()),
        "ours: residual of the optimality conditions": float((force - nu * found)[outside].abs().max()),
        "SLSQP: how far it leaves the ball": 0.0,
    }
    worst = 0.0
    for metric, point, x in zip(H.numpy(), y.numpy(), found.numpy(), strict=True):
        result = scipy.optimize.minimize(
            lambda x, m=metric, p=point: (float((x - p) @ m @ (x - p)) / 2, m @ (x - p)),
            0.5 * point / np.linalg.norm(point),
            jac=True,
            method="SLSQP",
            constraints=[{"type": "ineq", "fun": lambda x: 1 - x @ x, "jac": lambda x: -2 * x}],
            options={"ftol": 1e-17, "maxiter": 1000},
        )
        worst = max(worst, float(np.abs(x - result.x).max()))
        rows["SLSQP: how far it leaves the ball"] = max(
            rows["SLSQP: how far it leaves the ball"], result.x @ result.x - 1
        )
    return Claim("projection in the norm of H against SLSQP", worst, 1e-8, "lower", rows)


def claim_oracles(scale: Scale) -> list[Claim]:
    """No hints: mirror descent written out. Perfect hints: the constant bound. Sherman-Morrison: a dense inverse."""
    rounds, n, generator = scale(smoke=200, full=2000), 6, _seeded(scale, 10)
    grads = torch.randn(rounds, NUM_RUNS, n, dtype=F64, generator=generator)
    bound = float(grads.norm(dim=-1).max())
    rules = _rules(bound)
    state = oomd_init(rules, torch.zeros(NUM_RUNS, n, dtype=F64))
    x, squares, gap = state.play, torch.zeros(NUM_RUNS, 1, dtype=F64), 0.0
    for grad in grads:
        x = UNIT_BALL(x - DIAMETER / (4 * bound**2 + squares).sqrt() * grad)
        squares = squares + grad.square().sum(-1, keepdim=True)
        state = oomd_play(rules, oomd_update(rules, state, grad), torch.zeros_like(grad))
        gap = max(gap, float((state.play - x).abs().max()))
    state, plays = oomd_init(rules, torch.zeros(NUM_RUNS, n, dtype=F64)), []
    for grad in grads:
        state = oomd_play(rules, state, grad)
        plays.append(state.play)
        state = oomd_update(rules, state, grad)
    best = -grads.sum(0) / grads.sum(0).norm(dim=-1, keepdim=True)
    found = regret(lambda points: (grads * points).sum(-1), torch.stack(plays), best)
    allowed = DIAMETER * (2 * bound) / 2  # D² / (2 η_T), η_T = D / √(4G²) as V stays 0
    newton = _rules(1.0, geometry="exp-concave", exp_concavity=1.0)
    held = oomd_init(newton, torch.zeros(NUM_RUNS, n, dtype=F64))
    for grad in grads:
        held = oomd_update(newton, held, UNIT_BALL(grad))
    dense = torch.linalg.inv(held.metric)
    error = float((held.inverse - dense).norm() / dense.norm())
    return [
        Claim("without hints it is adaptive mirror descent", gap, 1e-12, "lower", {"rounds": rounds}),
        Claim(
            "regret of perfect hints above D²/(2η)", float(found.max()) - allowed, 1e-9, "lower", {"D²/(2η)": allowed}
        ),
        Claim("Sherman-Morrison against a dense inverse", error, 1e-10, "lower", {"updates": rounds}),
    ]


CLAIMS: list[ClaimFunction] = [
    claim_low_variation,
    claim_slow_turns,
    claim_bound,
    claim_noise_growth,
    claim_worst_case,
    claim_strongly_convex,
    claim_exp_concave,
    claim_dynamic,
    claim_metric_projection,
    claim_oracles,
]
