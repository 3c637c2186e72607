"""HESSO: exact cutting of groups, the schedule, accuracy against torch-pruning and the authors' code, CRIC.

Oracles: the zeroed network, the wrapped optimiser alone. Five seeds to an arm at full size, one at smoke size.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.compress._hesso_cases import CASES, LANGUAGE_MODELS, build, output_layers
from benchmarks.compress._hesso_digits import digits_net, pictures, train_arm
from benchmarks.compress._hesso_peers import covers
from benchmarks.compress._hesso_smollm2 import claim_smollm2
from benchmarks.data import interleave
from hesse.compress import HESSO, DependencyGraph, slim_report
from hesse.compress.graph.dependency import output_difference

__all__ = ["CLAIMS"]

NETWORKS = CASES | LANGUAGE_MODELS


def claim_exact(scale: Scale) -> list[Claim]:
    """Random halves of the groups zeroed and cut, on every kind of network, against the zeroed network."""
    gaps: dict[torch.dtype, dict[str, float]] = {torch.float64: {}, torch.float32: {}}
    noise: dict[str, float] = {}
    for dtype, found in gaps.items():
        for name in NETWORKS:
            for trial in range(scale(smoke=1, full=5)):
                module, x = build(name, 1000 * scale.seed + trial, dtype)
                graph = DependencyGraph(module, x)
                generator = torch.Generator().manual_seed(trial)
                noise[name] = max(noise.get(name, 0.0), graph.check_zero_invariance(generator=generator))
                graph.zero_(torch.rand(graph.num_groups, generator=generator) < 0.5)
                report = slim_report(graph, tol=1.0)
                args, kwargs = ((), x) if isinstance(x, dict) else ((x,), {})
                with torch.no_grad():
                    gap = output_difference(module.eval()(*args, **kwargs), report.module.eval()(*args, **kwargs))
                found[name] = max(found.get(name, 0.0), gap)
    exact, single = gaps.values()
    llama = exact.pop("llama")
    return [
        Claim("slimming is exact in float64 (relative)", max(exact.values()), 1e-10, "lower", exact),
        Claim("slimming a Llama, whose own norm works in float32, in float64 (relative)", llama, 1e-6, "lower", {}),
        Claim("slimming is exact in float32 (relative)", max(single.values()), 1e-5, "lower", single),
        Claim("outputs do not notice noise where zero groups are read", max(noise.values()), 0.0, "lower", noise),
    ]


def claim_coverage(scale: Scale) -> Claim:
    """Networks that torch-pruning halves and still runs are all understood, and those it does not are named."""
    ours, theirs = {}, {}
    for name in NETWORKS:
        module, x = build(name, scale.seed, torch.float32)
        graph = DependencyGraph(module, x)
        graph.zero_(torch.rand(graph.num_groups, generator=torch.Generator().manual_seed(0)) < 0.5)
        ours[name] = slim_report(graph).num_parameters[1] < sum(p.numel() for p in module.parameters())
        theirs[name] = covers(module, x, output_layers(name, module))
    needed = [name for name, verdict in theirs.items() if verdict == "yes"]
    covered = fmean(ours[name] for name in needed) if needed else None
    rows = {"ours": ours, "torch-pruning": theirs}
    return Claim("networks that torch-pruning handles are handled", covered, 1.0, "higher", rows)


def claim_schedule(scale: Scale) -> list[Claim]:
    """Exact zeros after the last step of a period, and the wrapped optimiser's trajectory if nothing is cut."""
    steps = scale(smoke=30, full=120)
    worst, held, apart = 0.0, [], 0.0
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-3),
    ):
        left, graph, optimizer = _short_run(scale.seed, steps, make, 0.7)
        marked = torch.cat([optimizer.pruned, torch.zeros(1, dtype=torch.bool)])
        for axis, parameter in graph.producers():
            gone = parameter.movedim(axis.dim, 0)[marked[axis.groups]]
            worst = max(worst, float(gone.detach().abs().max()) if gone.numel() else 0.0)
        held.append(int(optimizer.pruned.sum()) / graph.num_groups)
        left, _, _ = _short_run(scale.seed, steps, make, 0.0)
        right, _, _ = _short_run(scale.seed, steps, make, None)
        pairs = zip(left.parameters(), right.parameters(), strict=True)
        apart = max(apart, *(float((a - b).detach().abs().max()) for a, b in pairs))
    return [
        Claim("pruned slices are exact zeros", worst, 0.0, "lower", {"sparsity": held}),
        Claim("with nothing to cut the trajectory is the wrapped optimiser's", apart, 0.0, "lower", {"steps": steps}),
    ]


def _short_run(
    seed: int, steps: int, make: Callable[[Any], torch.optim.Optimizer], sparsity: float | None
) -> tuple[nn.Module, DependencyGraph, Any]:
    module = digits_net(seed)
    x, y, *_ = pictures(seed)
    graph = DependencyGraph(module, x[:2])
    optimizer: Any = make(module.parameters())
    if sparsity is not None:
        optimizer = HESSO(graph, optimizer, sparsity, steps // 6, steps // 2, 5)
    for rows in torch.arange(len(x)).repeat(steps)[: 64 * steps].split(64):
        optimizer.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    return module, graph, optimizer


def _epochs(scale: Scale) -> int:
    return scale(smoke=2, full=24)


def _seeds(scale: Scale) -> range:
    return range(10 * scale.seed, 10 * scale.seed + scale(smoke=1, full=5))


def _accuracies(scale: Scale, name: str, sparsity: float) -> list[float]:
    return [train_arm(name, sparsity, seed, _epochs(scale)).accuracy for seed in _seeds(scale)]


def _table(scale: Scale, names: tuple[str, ...], sparsity: float) -> tuple[dict[str, float], dict[str, Any]]:
    found = {name: _accuracies(scale, name, sparsity) for name in names}
    cuts = {name: _mean_cuts(scale, name, sparsity) for name in names}
    means = {name: fmean(values) for name, values in found.items()}
    return means, {"mean accuracy": means, "accuracy by seed": found, "mean cut by layer": cuts}


def _mean_cuts(scale: Scale, name: str, sparsity: float) -> list[float]:
    cuts = [train_arm(name, sparsity, seed, _epochs(scale)).cut for seed in _seeds(scale)]
    return [round(fmean(layer), 3) for layer in zip(*cuts, strict=True)]


PEERS = ("torch-pruning, magnitude", "torch-pruning, taylor")


def claim_digits(scale: Scale) -> list[Claim]:
    """Accuracy on digits at group sparsities of 0.5 to 0.85; torch-pruning in the same loop."""
    dense = fmean(_accuracies(scale, "dense", 0.0))
    claims = []
    for sparsity, names in (
        (0.5, ("hesso", "as released", *PEERS, "hard cut", "after training")),
        (0.7, ("hesso", "as released", *PEERS, "only-train-once", "hard cut", "after training")),
        (0.8, ("hesso", "as released", *PEERS, "only-train-once", "hesso, v = update", "hesso, obs only")),
        (0.85, ("hesso", "as released", *PEERS, "only-train-once", "hard cut", "hesso, obs only")),
    ):
        means, rows = _table(scale, names, sparsity)
        rows |= {"dense": dense}
        ours, peer = means["hesso"], max(means[name] for name in PEERS)
        if sparsity in (0.7, 0.8):
            bar = {0.7: 0.01, 0.8: 0.025}[sparsity]
            claims += [
                Claim(f"digits at {sparsity}: lost against dense", dense - ours, bar, "lower", rows, full_only=True),
                Claim(
                    f"digits at {sparsity}: ahead of torch-pruning", ours - peer, 0.0, "higher", rows, full_only=True
                ),
            ]
        elif sparsity == 0.85:
            claims.append(
                Claim("digits at 0.85: against torch-pruning", ours - peer, -0.01, "higher", rows, full_only=True)
            )
        else:
            claims.append(Claim("digits at 0.5: lost against dense", dense - ours, 0.01, "lower", rows, full_only=True))
    return claims


def claim_ablation(scale: Scale) -> list[Claim]:
    """What the parts of the score bring at 0.8, as released and normalised by family."""
    kinds = ("", ", flipped cosine", ", no cosine", ", magnitude only")
    released, rows = _table(scale, tuple(f"as released{kind}" for kind in kinds), 0.8)
    family, more = _table(scale, tuple(f"hesso{kind}" for kind in kinds), 0.8)
    gain = released["as released"] - released["as released, magnitude only"]
    sign = family["hesso"] - family["hesso, flipped cosine"]
    return [
        Claim("combined criteria over magnitude alone at 0.8, as released", gain, 0.2, "higher", rows, full_only=True),
        Claim("the default sign of the cosine over the other at 0.8", sign, 0.0, "higher", more, full_only=True),
    ]


def claim_cric(scale: Scale) -> list[Claim]:
    """The corrective cycle at 0.85, where the released score is at its worst, against HESSO as released."""
    names = (
        "as released",
        "as released, one period",
        "as released, a twelfth later",
        "cric",
        "cric, no loss term",
        "cric, loss term as released",
        "cric as released",
    )
    means, rows = _table(scale, names, 0.85)
    gain = means["cric"] - means["as released"]
    term = means["cric"] - means["cric, loss term as released"]
    return [
        Claim("CRIC over HESSO at 0.85, both comparing layers as released", gain, 0.03, "higher", rows, full_only=True),
        Claim("CRIC at 0.85: its loss term over the released one", term, 0.0, "higher", {}, full_only=True),
    ]


def claim_slim(scale: Scale) -> list[Claim]:
    """Size and time of what is left at 0.7, batches of 256; outputs before and after."""
    outcomes = [train_arm("hesso", 0.7, seed, _epochs(scale)) for seed in _seeds(scale)]
    x = pictures(_seeds(scale)[0])[0][:256]
    dense = digits_net(0).eval()
    ratios = []
    for outcome in outcomes:
        with torch.no_grad():
            seconds = interleave(
                {"dense": lambda: dense(x), "slim": lambda small=outcome.module: small(x)}, scale(smoke=3, full=30)
            )
        ratios.append(min(seconds["dense"]) / min(seconds["slim"]))
    left = [outcome.share_left for outcome in outcomes]
    gaps = [outcome.difference for outcome in outcomes]
    return [
        Claim("slim digits net at 0.7: parameters left", max(left), 0.2, "lower", {"by seed": left}, full_only=True),
        Claim(
            "slim digits net at 0.7: forward faster", min(ratios), 2.0, "higher", {"by seed": ratios}, full_only=True
        ),
        Claim("slim digits net at 0.7: outputs unchanged (relative)", max(gaps), 1e-5, "lower", {"by seed": gaps}),
    ]


def claim_five_lines(_scale: Scale) -> Claim:
    """Lines that a plain training loop gains or changes: counted on two loops that are run."""
    plain = _lines(PLAIN)
    ours = _lines(OURS)
    for text in (PLAIN, OURS):
        exec(text, {"torch": torch, "F": F, "make": lambda: digits_net(0), "batches": _batches})  # noqa: S102
    return Claim(
        "lines of change to a plain loop", float(len([line for line in ours if line not in plain])), 5.0, "lower"
    )


PLAIN = """
model = make()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for x, y in batches():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
"""
OURS = """
from hesse.compress import HESSO, DependencyGraph, slim
model = make()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
graph = DependencyGraph(model, torch.zeros(2, 1, 8, 8))
optimizer = HESSO(graph, optimizer, target_sparsity=0.7, start_step=2, pruning_steps=10)
for x, y in batches():
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
model = slim(graph)
"""


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _batches() -> list[tuple[Tensor, Tensor]]:
    x, y, *_ = pictures(0)
    return list(zip(x[: 64 * 16].split(64), y[: 64 * 16].split(64), strict=True))


CLAIMS: list[ClaimFunction] = [
    claim_exact,
    claim_coverage,
    claim_schedule,
    claim_digits,
    claim_ablation,
    claim_cric,
    claim_slim,
    claim_five_lines,
    claim_smollm2,
]
