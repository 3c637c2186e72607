"""Claims about Hessian alignment (Hemati, Zhang, Estiri, Chen, ICCV 2023): closed forms, colored digits, speed.

Oracles: dense float64 Hessians by autograd, finite differences, the construction of the data. The paper's updates are
written out here from their description: DomainBed is no package.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.curvature._colored_digits import (
    Colored,
    balanced_digits,
    digits_labelled_once,
    imbalanced_digits,
    train,
)
from benchmarks.data import interleave
from benchmarks.peers import require_peer
from hesse.curvature.alignment import (
    Penalty,
    PenaltyName,
    fishr_penalty,
    head_gradient,
    head_hessian_diag,
    head_hvp,
    hessian_frobenius_penalty,
    hgp_penalty,
    hutchinson_penalty,
    irm_penalty,
    vrex_penalty,
)

__all__ = ["CLAIMS"]

F64 = torch.float64
WEIGHTS = (1e4, 1e5)
ALIGNED: dict[str, PenaltyName | Penalty] = {"hgp": "hgp", "hutchinson": "hutchinson"}
BASELINES: dict[str, PenaltyName | Penalty] = {"irm": irm_penalty, "vrex": vrex_penalty, "fishr": fishr_penalty}
Pairs = Sequence[tuple[Tensor, Tensor]]


def _domains(sizes: Sequence[int], p: int, k: int, seed: int, dtype: torch.dtype) -> tuple[nn.Linear, Pairs]:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(p, k, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) / p**0.5)
    pairs = [
        (torch.randn(n, p, generator=generator, dtype=dtype) + e / 2, torch.randint(k, (n,), generator=generator))
        for e, n in enumerate(sizes)
    ]
    return head, pairs


def _dense(head: nn.Linear, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian in (W, b) read row by row."""
    k, p = head.weight.shape
    point = torch.cat([head.weight, head.bias.unsqueeze(1)], dim=1).detach().flatten()

    def value(flat: Tensor) -> Tensor:
        theta = flat.view(k, p + 1)
        return nn.functional.cross_entropy(features @ theta[:, :p].T + theta[:, p], targets)

    gradient: Any = torch.autograd.functional.jacobian(value, point)
    hessian: Any = torch.autograd.functional.hessian(value, point)
    return gradient, hessian


def claim_oracle(scale: Scale) -> list[Claim]:
    """Closed forms against dense autograd, K = 4, P = 7, three unequal domains."""
    head, pairs = _domains((9, 12, 5), 7, 4, scale.seed, F64)
    errors: dict[str, float] = dict.fromkeys(("gradient", "product", "diagonal", "norm trick"), 0.0)
    hits, count = 0.0, 0
    dense = [_dense(head, *pair) for pair in pairs]
    for e, ((features, targets), (g, h)) in enumerate(zip(pairs, dense, strict=True)):
        given = (features, head(features).detach(), targets)
        gradient = head_gradient(*given)
        found = {
            "gradient": (gradient.flatten(), g),
            "product": (head_hvp(*given, "cross_entropy", gradient).flatten(), h @ g),
            "diagonal": (head_hessian_diag(*given).flatten(), h.diagonal()),
            "norm trick": (_norm_trick(head, features, targets), _as_parameters(h @ g, head)),
        }
        for name, (ours, wanted) in found.items():
            errors[name] = max(errors[name], float((ours - wanted).abs().max()))
        spread = ((h.square().sum(1) - h.diagonal().square()) / 2000).sqrt()  # of a mean of 2000, for sign vectors
        for run in range(scale(smoke=20, full=50)):
            generator = torch.Generator().manual_seed(1000 * scale.seed + 100 * e + run)
            sampled = head_hessian_diag(*given, method="hutchinson", num_probes=2000, generator=generator)
            hits += float(((sampled.flatten() - h.diagonal()).abs() <= 3 * spread).double().sum())
            count += len(spread)
    hessians = torch.stack([h for _, h in dense])
    wanted = (hessians - hessians.mean(0)).square().sum() / 3
    errors["frobenius"] = float((hessian_frobenius_penalty(pairs, head, 1.0, 0.0) - wanted).abs().detach())
    checked = _gradients_checked(head, pairs)
    return [
        Claim("closed forms agree with dense autograd", max(errors.values()), 1e-10, "lower", errors),
        Claim("penalties pass gradcheck", fmean(checked.values()), 1.0, "higher", checked),
        Claim(
            "sampled diagonal within three standard errors",
            hits / count,
            0.99,
            "higher",
            {"probes": 2000, "entries": count},
        ),
    ]


def _gradients_checked(head: nn.Linear, pairs: Pairs) -> dict[str, float]:
    penalties = {
        "hgp": partial(hgp_penalty, detach_mean=False),  # finite differences move the mean too
        "hutchinson": hutchinson_penalty,
        "frobenius": hessian_frobenius_penalty,
    }
    leaves = [features.clone().requires_grad_() for features, _ in pairs]

    def of_features(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *fs: penalty([(f, y) for f, (_, y) in zip(fs, pairs, strict=True)], head, 1.0, 1.0)

    return {name: float(torch.autograd.gradcheck(of_features(p), leaves)) for name, p in penalties.items()}


def _norm_trick(head: nn.Linear, features: Tensor, targets: Tensor) -> Tensor:
    """‖g‖ ∂‖g‖/∂θ, the paper's form of H g."""
    parameters = list(head.parameters())
    loss = nn.functional.cross_entropy(head(features), targets)
    norm = _flat(torch.autograd.grad(loss, parameters, create_graph=True)).norm()
    return _flat(torch.autograd.grad(norm, parameters)) * norm.detach()


def _as_parameters(vector: Tensor, head: nn.Linear) -> Tensor:
    matrix = vector.view(head.out_features, -1)
    return torch.cat([matrix[:, :-1].flatten(), matrix[:, -1]])


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def claim_colored_digits(scale: Scale) -> list[Claim]:
    """What holds in both training domains holds in the third, where colour points the other way."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    steps = scale(smoke=20, full=400)
    data = {seed: balanced_digits(seed) for seed in seeds}
    table = _table(data, ALIGNED | BASELINES, steps)
    claims = _digit_claims("", table)
    best = max(table[name]["test"] for name in BASELINES)
    claims.append(
        Claim(
            "aligned not below the best baseline by more than 0.05",
            min(table[name]["test"] for name in ALIGNED) - best,
            -0.05,
            "higher",
            {name: table[name] for name in BASELINES},
            full_only=True,
        )
    )
    return claims


def claim_digits_labelled_once(scale: Scale) -> list[Claim]:
    """Few pictures, each with one label: a network learns the wrong quarter by heart, and nothing is left to align."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    data = {seed: digits_labelled_once(seed) for seed in seeds}
    return _digit_claims(", labelled once", _table(data, ALIGNED, scale(smoke=20, full=400)))


def _table(
    data: dict[int, Colored], penalties: dict[str, PenaltyName | Penalty], steps: int
) -> dict[str, dict[str, Any]]:
    """Means over seeds; of two weights the one that does better on the mixed domain."""
    anneal = min(150, steps // 2)
    run = partial(_means, data, steps, anneal)
    table = {"erm": run("hgp", 0.0)}
    for name, penalty in penalties.items():
        table[name] = max((run(penalty, weight) for weight in WEIGHTS), key=lambda row: row["mixed"])
    return table


def _means(
    data: dict[int, Colored],
    steps: int,
    anneal: int,
    penalty: PenaltyName | Penalty,
    weight: float,
    *,
    balanced: bool = False,
) -> dict[str, Any]:
    options: dict[str, Any] = {"num_steps": steps, "anneal_steps": anneal, "balanced": balanced}
    outcomes = [train(colored, penalty, weight, seed=seed, **options) for seed, colored in data.items()]
    names = ("training", "mixed", "test", "spectral", "curvature", "feature_variance")
    means = {name: round(fmean(getattr(o, name) for o in outcomes), 6) for name in names}
    return means | {"tests": [round(o.test, 4) for o in outcomes], "weight": weight}


def _digit_claims(suffix: str, table: dict[str, dict[str, Any]]) -> list[Claim]:
    erm = table["erm"]
    claims = [
        Claim(f"erm follows the colour{suffix}", erm["test"], 0.25, "lower", erm, full_only=True),
    ]
    for name in ALIGNED:
        row = table[name]
        agree = min(row["training"], row["test"]) / max(row["training"], row["test"])
        claims += [
            Claim(f"{name} test accuracy{suffix}", row["test"], 0.60, "higher", row, full_only=True),
            Claim(f"{name} above erm{suffix}", row["test"] - erm["test"], 0.35, "higher", full_only=True),
            Claim(f"{name} training and test agree{suffix}", agree, 0.8, "higher", full_only=True),
            Claim(
                f"{name} brings the Hessians together{suffix}",
                erm["spectral"] / row["spectral"],
                5.0,
                "higher",
                {"erm": _gap_and_size(erm), name: _gap_and_size(row)},
                full_only=True,
                note="plain training is surer of itself, which makes both of its Hessians small",
            ),
        ]
    return claims


def _gap_and_size(row: dict[str, Any]) -> dict[str, float]:
    gap, size = row["spectral"], row["curvature"]
    return {"norm of H_1 - H_2": gap, "norm of H_1": size, "ratio": round(gap / size, 4)}


def claim_label_shift(scale: Scale) -> list[Claim]:
    """One training domain with nine digits in ten below five: balanced accuracy in the test."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    steps = scale(smoke=20, full=400)
    data = {seed: imbalanced_digits(seed) for seed in seeds}
    run = partial(_means, data, steps, min(150, steps // 2), balanced=True)
    erm = run("hgp", 0.0)
    aligned = max((run("hgp", weight) for weight in WEIGHTS), key=lambda row: row["mixed"])
    return [
        Claim("label shift: hgp balanced accuracy", aligned["test"], 0.5, "higher", aligned, full_only=True),
        Claim("label shift: erm balanced accuracy", erm["test"], 0.35, "lower", erm, full_only=True),
    ]


def claim_speed(scale: Scale) -> list[Claim]:
    """Forward and backward of the penalties, P = 512, K = 10, three domains of 128."""
    p, n, probes = scale(smoke=64, full=512), scale(smoke=32, full=128), scale(smoke=20, full=300)
    head, pairs = _domains((n,) * 3, p, 10, scale.seed, torch.float32)
    leaves = [features.requires_grad_() for features, _ in pairs]
    wanted = [*leaves, *head.parameters()]

    def arm(penalty: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(penalty(), wanted)

    quick = {
        "diagonal": arm(lambda: hutchinson_penalty(pairs, head)),
        "hgp": arm(lambda: hgp_penalty(pairs, head)),
        "norm trick": arm(lambda: _paper_hgp(pairs, head, 1e-4, 5e-3)),
    }
    same = _relative(quick["hgp"](), quick["norm trick"]())
    times = {name: median(t) for name, t in interleave(quick, scale(smoke=3, full=60), clock="cpu", warmup=3).items()}
    slow = {
        "diagonal": quick["diagonal"],
        "300 probes": arm(lambda: _paper_hutchinson(pairs, head, 1e-3, 5e-3, probes, scale.seed)),
    }
    long = {name: median(t) for name, t in interleave(slow, scale(smoke=1, full=5), clock="cpu").items()}
    milliseconds = {name: round(1e3 * t, 3) for name, t in (times | {"300 probes": long["300 probes"]}).items()}
    return [
        Claim(
            "exact diagonal over 300 probes by double backward",
            long["300 probes"] / long["diagonal"],
            50.0,
            "higher",
            milliseconds,
            full_only=True,
        ),
        Claim(
            "exact diagonal over the norm trick",
            times["norm trick"] / times["diagonal"],
            5.0,
            "higher",
            milliseconds,
            full_only=True,
            note="15 matrix products a domain against 9: five times is out of reach where they dominate",
        ),
        Claim("hgp over the norm trick", times["norm trick"] / times["hgp"], 1.0, "higher", full_only=True),
        Claim("hgp has the norm trick's gradient", same, 1e-4, "lower", {"dtype": "float32"}),
        _backpack(scale, head, pairs[0]),
    ]


def _relative(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return float((_flat(ours) - _flat(theirs)).norm() / _flat(theirs).norm())


def _paper_hgp(pairs: Pairs, head: nn.Linear, alpha: float, beta: float) -> Tensor:
    """H g as ‖g‖ ∂‖g‖/∂θ by double backward, for every domain and for the mean of the losses."""
    parameters = list(head.parameters())
    losses = [nn.functional.cross_entropy(head(f), y) for f, y in pairs]
    gradients = [_flat(torch.autograd.grad(loss, parameters, create_graph=True)) for loss in losses]
    mean = _flat(torch.autograd.grad(torch.stack(losses).mean(), parameters, create_graph=True))

    def product(gradient: Tensor) -> Tensor:
        norm = (gradient + 1e-16).norm()
        return norm * _flat(torch.autograd.grad(norm, parameters, create_graph=True))

    mean_product = product(mean).detach()
    gaps = [
        alpha * (product(g) - mean_product).square().sum() + beta * (g - mean.detach()).square().sum()
        for g in gradients
    ]
    return torch.stack(gaps).mean()


def _paper_hutchinson(pairs: Pairs, head: nn.Linear, alpha: float, beta: float, probes: int, seed: int) -> Tensor:
    """z ⊙ H z averaged over signs, each a backward pass that keeps its graph, for every domain and for the mean."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(head.parameters())
    losses = [nn.functional.cross_entropy(head(f), y) for f, y in pairs]
    gradients = [_flat(torch.autograd.grad(loss, parameters, create_graph=True)) for loss in losses]
    mean = _flat(torch.autograd.grad(torch.stack(losses).mean(), parameters, create_graph=True))

    def diagonal(gradient: Tensor) -> Tensor:
        total = torch.zeros_like(gradient)
        for _ in range(probes):
            signs = torch.randint(2, gradient.shape, generator=generator).to(gradient.dtype) * 2 - 1
            product = torch.autograd.grad(gradient @ signs, parameters, create_graph=True, retain_graph=True)
            total = total + signs * _flat(product)
        return total / probes

    mean_diagonal = diagonal(mean).detach()
    gaps = [
        alpha * (diagonal(g) - mean_diagonal).square().sum() + beta * (g - mean.detach()).square().sum()
        for g in gradients
    ]
    return torch.stack(gaps).mean()


def _backpack(scale: Scale, head: nn.Linear, pair: tuple[Tensor, Tensor]) -> Claim:
    """The diagonal alone: BackPACK's is exact too, but has no graph to train through."""
    backpack = require_peer("backpack")
    extension = require_peer("backpack.extensions").DiagHessian
    layer = nn.Linear(head.in_features, head.out_features)
    layer.load_state_dict(head.state_dict())
    layer, criterion = backpack.extend(layer), backpack.extend(nn.CrossEntropyLoss())
    features, targets = pair[0].detach(), pair[1]

    def peer() -> Tensor:
        layer.zero_grad()
        with backpack.backpack(extension()):
            criterion(layer(features), targets).backward()
        return torch.cat([layer.weight.diag_h, layer.bias.diag_h.unsqueeze(1)], dim=1)

    def ours() -> Tensor:
        with torch.no_grad():
            return head_hessian_diag(features, head(features), targets)

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the inputs need no gradient here
        gap = float((ours() - peer()).abs().max() / peer().abs().max())
        arms = interleave({"ours": ours, "backpack": peer}, scale(smoke=3, full=60), clock="cpu", warmup=3)
    times = {name: median(t) for name, t in arms.items()}
    rows = {"relative error": gap} | {f"{name} ms": round(1e3 * t, 3) for name, t in times.items()}
    ratio = times["backpack"] / times["ours"] if gap < 1e-5 else float("nan")
    return Claim("diagonal no slower than BackPACK's, and equal to 1e-5", ratio, 1.0, "higher", rows, full_only=True)


CLAIMS: list[ClaimFunction] = [
    claim_oracle,
    claim_colored_digits,
    claim_digits_labelled_once,
    claim_label_shift,
    claim_speed,
]
