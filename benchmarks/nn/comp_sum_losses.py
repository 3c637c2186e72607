"""Comp-sum losses: formulas, consistency bounds, the adversarial upper bound, noisy labels and robust training.

Accuracies are in per cent on digits (1200 to train, 597 to test), means over seeds. Differences between two methods
come with the standard error of the paired differences: a seed gives every arm the same split and start.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._claims import Claim, ClaimFunction, PeerMissing, Scale
from benchmarks.data import Split, digits
from benchmarks.nn._comp_sum_losses_training import (
    OURS,
    RIVALS,
    SWEEP,
    TRADES,
    auto_attacked,
    judge,
    train_noisy,
    train_robust,
)
from hesse.nn.comp_sum import (
    comp_sum_hessian,
    comp_sum_loss,
    consistency_bound,
    phi,
    pointwise_infimum,
    smooth_adversarial_loss,
    theorem_nu,
)

F64 = torch.float64
TAUS = (0.0, 0.5, 1.0, 1.5, 1.8, 2.0, 3.0)
SEEDS = 10
FLATTER = "tau=0.6 nu=0.6"


def _generator(scale: Scale) -> torch.Generator:
    return torch.Generator().manual_seed(scale.seed)


def claim_formulas(scale: Scale) -> list[Claim]:
    """Values against torch, gradients against central differences with logits up to ±200, Hessians against autograd."""
    generator = _generator(scale)
    h = 5 * torch.randn(2000, 10, generator=generator, dtype=F64)
    y = torch.randint(10, (2000,), generator=generator)
    p_y = h.softmax(-1).gather(1, y[:, None]).squeeze(1)
    oracles = {
        1.0: F.cross_entropy(h, y, reduction="none"),
        2.0: 1 - p_y,
        1.7: (1 - p_y**0.7) / 0.7,
    }
    errors = {
        f"tau={tau:g}": float((comp_sum_loss(h, y, tau, reduction="none") - oracle).abs().max())
        for tau, oracle in oracles.items()
    }
    gradients, hessians = {}, {}
    for tau in TAUS:
        gradients[f"tau={tau:g}"] = max(
            _gradient_error(size * torch.randn(10, generator=generator, dtype=F64).clamp(-1, 1), tau, generator)
            for size in (1, 10, 200)
            for _ in range(20)
        )
        hessians[f"tau={tau:g}"] = max(_hessian_error(row, label, tau) for row, label in zip(h[:20], y, strict=False))
    return [
        Claim("values equal torch's", max(errors.values()), 1e-7, "lower", errors),
        Claim("gradients equal central differences", max(gradients.values()), 1e-6, "lower", gradients),
        Claim("Hessians equal autograd's", max(hessians.values()), 1e-10, "lower", hessians),
    ]


def _gradient_error(h: Tensor, tau: float, generator: torch.Generator) -> float:
    # relative to the longest gradient or one: at τ < 1 and logits of 200 a gradient is as large as e^400
    y = torch.randint(len(h), (), generator=generator)
    h.requires_grad_()
    (found,) = torch.autograd.grad(comp_sum_loss(h, y, tau), h)
    step = 1e-5
    moves = step * torch.eye(len(h), dtype=h.dtype)
    with torch.no_grad():
        up, down = (comp_sum_loss(h + sign * moves, y.expand(len(h)), tau, reduction="none") for sign in (1, -1))
    scale = max(1.0, float(found.norm()))
    return float(((up - down) / (2 * step) - found).norm()) / scale


def _hessian_error(h: Tensor, y: Tensor, tau: float) -> float:
    dense = torch.autograd.functional.hessian(lambda logits: comp_sum_loss(logits, y, tau), h)
    return float((comp_sum_hessian(h, y, tau) - dense).norm() / dense.norm().clamp(min=1))


def claim_bound(scale: Scale) -> list[Claim]:
    """Zero-one regret never exceeds Γ of the loss's regret, and meets it at the two-point construction."""
    generator = _generator(scale)
    each = scale(smoke=500, full=5000)
    excess, tightest = {}, {}
    for n, tau in itertools.product((2, 3, 5, 10), TAUS):
        p = torch.rand(each, n, generator=generator, dtype=F64) ** 3
        p = p / p.sum(-1, keepdim=True)
        spread = 10 ** (2 * torch.rand(each, 1, generator=generator, dtype=F64) - 1.5)
        near = torch.rand(each, 1, generator=generator, dtype=F64) < 0.5  # scores about log p, where regrets are small
        h = spread * torch.randn(each, n, generator=generator, dtype=F64) + torch.where(near, p.log(), 0.0)
        zero_one = p.amax(-1) - p.gather(-1, h.argmax(-1, keepdim=True)).squeeze(-1)
        regret = (comp_sum_loss(h, p, tau, reduction="none") - pointwise_infimum(p, tau)).clamp(min=0)
        bound = consistency_bound(regret, tau, n)
        excess[f"n={n} tau={tau:g}"] = float((zero_one - bound).max())
        tightest[f"n={n} tau={tau:g}"] = float((zero_one / bound.clamp(min=1e-300)).max())
    rows = {"points for each n": each, "largest zero-one regret / bound": tightest}
    gaps = {
        f"n={n} tau={tau:g}": _two_point_gap(n, tau)
        for n, tau in itertools.product((2, 3, 5, 10), TAUS)
        if tau <= 1 or (n == 2 and tau <= 2)
    }
    return [
        Claim("zero-one regret less its bound", max(excess.values()), 1e-9, "lower", rows),
        Claim("the bound is met at two points", max(gaps.values()), 1e-6, "lower", gaps),
    ]


def _two_point_gap(n: int, tau: float) -> float:
    beta = torch.linspace(0.01, 0.99, 50, dtype=F64)
    p = torch.zeros(50, n, dtype=F64)
    p[:, 0], p[:, 1] = (1 + beta) / 2, (1 - beta) / 2
    h = torch.full((50, n), -80.0, dtype=F64)
    h[:, :2] = 0.0  # a tie, which an infinitesimal push turns to the wrong class
    losses = torch.stack([comp_sum_loss(h, torch.full((50,), k), tau, reduction="none") for k in (0, 1)], -1)
    regret = (p[:, :2] * losses).sum(-1) - pointwise_infimum(p, tau)
    return float((consistency_bound(regret, tau, n) - beta).abs().max())


def claim_upper_bound(scale: Scale) -> list[Claim]:
    """On linear models, whose worst inputs can be enumerated: smooth loss >= worst loss >= Φ(1) x worst zero-one."""
    generator = _generator(scale)
    models = scale(smoke=40, full=500)
    upper, lower, broken = [], [], 0
    for index in range(models):
        d, n = 2 + index % 2, 2 + index % 4
        W = torch.randn(n, d, generator=generator, dtype=F64)
        b = torch.randn(n, generator=generator, dtype=F64)
        x = torch.randn(d, generator=generator, dtype=F64)
        y = int((W @ x + b).argmax()) if index % 5 else 0
        rho, gamma = (float(0.2 + torch.rand((), generator=generator)) for _ in range(2))
        A, c = W[y] - W, W[y] @ x - W @ x + b[y] - b  # margins c + A δ
        A, c = (torch.cat([part[:y], part[y + 1 :]]) for part in (A, c))
        corners = gamma * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=F64)
        worst = x + corners[(corners @ A.mT).norm(dim=-1).argmax()]  # a norm is convex: largest at a corner
        ramps = _worst_ramps(A, c, rho, gamma)
        fooled = bool((c - gamma * A.abs().sum(-1)).min() <= 0)
        broken += fooled
        for tau in (0.0, 0.5, 1.0, 2.0):
            smooth = smooth_adversarial_loss(
                lambda rows, W=W, b=b: rows @ W.mT + b,
                x[None],
                torch.tensor([y]),
                attack=lambda _model, _x, _y, _loss, worst=worst: worst[None],
                tau=tau,
                rho=rho,
                nu=theorem_nu(n, rho),
            )
            surrogate = phi(ramps, tau)
            upper.append(float(smooth - surrogate))
            lower.append(float(surrogate - fooled * phi(torch.ones((), dtype=F64), tau)))
    rows = {"models": models, "misclassified somewhere in the ball": broken, "median slack": statistics.median(upper)}
    return [
        Claim("smooth loss less the worst loss", min(upper), -1e-9, "higher", rows),
        Claim("worst loss less Phi(1) x worst zero-one", min(lower), -1e-9, "higher", {"models": models}),
    ]


def _worst_ramps(A: Tensor, c: Tensor, rho: float, gamma: float) -> Tensor:
    # a sum of ramps is linear between the planes where a margin is 0 or ρ: its maximum over the cube is at a corner of
    # the arrangement of those planes and the cube's faces
    d = A.shape[1]
    normals = torch.cat([A, A, torch.eye(d, dtype=F64), torch.eye(d, dtype=F64)])
    offsets = torch.cat([-c, rho - c, torch.full((d,), gamma, dtype=F64), torch.full((d,), -gamma, dtype=F64)])
    choice = torch.combinations(torch.arange(len(normals)), d)
    points = torch.linalg.solve_ex(normals[choice], offsets[choice].unsqueeze(-1)).result.squeeze(-1)
    inside = points.isfinite().all(-1) & (points.abs() <= gamma * (1 + 1e-9)).all(-1)
    return (1 - (c + points[inside] @ A.mT) / rho).clamp(0, 1).sum(-1).max()


def claim_label_noise(scale: Scale) -> Claim:
    """40 % of the labels wrong: a τ between 1.5 and 2, picked by noisy held-out labels, against cross-entropy."""
    seeds, epochs = scale(smoke=1, full=SEEDS), scale(smoke=3, full=100)
    plain = "cross-entropy (torch)"
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {plain: F.cross_entropy}
    for tau in (0.0, 1.0, 1.5, 1.7, 2.0):
        losses[f"tau={tau:g}"] = lambda h, y, tau=tau: comp_sum_loss(h, y, tau)
    clean: dict[str, list[float]] = {name: [] for name in losses}
    noisy: dict[str, list[float]] = {name: [] for name in losses}
    for seed in range(scale.seed, scale.seed + seeds):
        data = digits(seed=seed, dtype=torch.float32)
        for name, loss_fn in losses.items():
            on_test, on_held = train_noisy(loss_fn, data, 0.4, seed, epochs)
            clean[name].append(on_test)
            noisy[name].append(on_held)
    picked = max(("tau=1.5", "tau=1.7", "tau=2"), key=lambda name: statistics.mean(noisy[name]))
    rows = {"picked": picked, "seeds": seeds, "arms": {name: _spread(values) for name, values in clean.items()}}
    title = "points gained over cross-entropy under label noise"
    return _gain_claim(title, clean[picked], plain, clean[plain], 5.0, rows)


def claim_robust_training(scale: Scale) -> list[Claim]:
    """ADV-COMP-SUM at τ = 0.2, ν = 1 against TRADES, MART and adversarial training, one budget for all."""
    seeds, epochs, points = scale(smoke=1, full=SEEDS), scale(smoke=1, full=30), scale(smoke=10, full=200)
    arms = RIVALS | scale(smoke={name: SWEEP[name] for name in (OURS, FLATTER)}, full=SWEEP)
    scores: dict[str, dict[str, list[float]]] = {name: {"clean": [], "pgd20": [], "ensemble": []} for name in arms}
    trained: list[tuple[int, Split, dict[str, nn.Sequential]]] = []
    for seed in range(scale.seed, scale.seed + seeds):
        data = digits(seed=seed, dtype=torch.float32)
        models = {name: train_robust(objective, data, seed, epochs) for name, objective in arms.items()}
        for name, model in models.items():
            for kind, value in judge(model, data, seed).items():
                scores[name][kind].append(value)
        trained.append((seed, data, models))
    best = max(TRADES, key=lambda name: statistics.mean(scores[name]["ensemble"]))
    table = {name: {kind: _spread(values) for kind, values in by.items()} for name, by in scores.items()}

    def against(title: str, rival: str, kind: str, bar: float, **rows: object) -> Claim:
        return _gain_claim(title, scores[OURS][kind], rival, scores[rival][kind], bar, rows)

    claims = [
        against("clean points over the best TRADES", best, "clean", 1.0, seeds=seeds, arms=table),
        against("ensemble points over the best TRADES", best, "ensemble", 2.0),
        against("clean points over MART", "MART beta=5", "clean", 0.0),
        against("ensemble points over MART", "MART beta=5", "ensemble", 0.0),
        against("ensemble points over PGD-AT", "PGD-AT", "ensemble", 0.0),
        against("ensemble points of tau=0.2 over tau=0.6", FLATTER, "ensemble", 0.0),
    ]
    title = "AutoAttack points over the best TRADES"
    try:
        judged = {
            name: [auto_attacked(models[name], data, points, seed) for seed, data, models in trained]
            for name in (OURS, best, "PGD-AT", "MART beta=5", "tau=0 nu=3")
            if name in arms
        }
    except PeerMissing as error:  # the claims above do not need it
        return [*claims, Claim(title, None, 2.0, "higher", {"peer missing": str(error)}, full_only=True)]
    rows = {"points": points, "arms": {name: _spread(values) for name, values in judged.items()}}
    return [*claims, _gain_claim(title, judged[OURS], best, judged[best], 2.0, rows)]


def _spread(values: list[float]) -> dict[str, float | None]:
    deviation = round(statistics.stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 2), "standard deviation": deviation}


def _gain_claim(
    title: str, ours: list[float], rival: str, theirs: list[float], bar: float, rows: Mapping[str, object]
) -> Claim:
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
    behind = {"rival": rival, "ours": _spread(ours), "theirs": _spread(theirs), "standard error of the gain": error}
    return Claim(title, statistics.mean(gains), bar, "higher", {**behind, **rows}, full_only=True)


CLAIMS: list[ClaimFunction] = [
    claim_formulas,
    claim_bound,
    claim_upper_bound,
    claim_label_noise,
    claim_robust_training,
]
