"""M-FAC: exactness, float32, cost beside conjugate gradients, one-shot pruning, and descent beside SGD and Adam.

Oracles: dense linear algebra in float64, the algorithms as published; curvlinops, torch.optim and torch.nn.utils.prune,
the last on SmolLM2-135M, too.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.compress._obs_one_shot import ARMS as PRUNERS
from benchmarks.compress._obs_one_shot import accuracy, classifier, pruned
from benchmarks.compress._obs_pruner import claim_smollm2
from benchmarks.curvature._mfac_training import ARMS, auto_encoder, final_loss, pixels, train
from benchmarks.curvature._published import (
    dynamic_coefficients,
    dynamic_product,
    static_product,
    static_rows,
)
from benchmarks.data import digits, interleave, peak_rss_growth
from benchmarks.peers import require_peer
from hesse.curvature import GradientWindow, MFACInverse, gradient_rows
from hesse.linalg import FunctionOperator, cg

__all__ = ["CLAIMS"]

F64 = torch.float64
DIM, NUM_GRADS = 300, 40


def _draw(*shape: int, generator: torch.Generator, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator)


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def _fisher(G: Tensor, damping: float, block_size: int | None = None) -> Tensor:
    wide = G.double()
    F = wide.mT @ wide / len(wide)
    if block_size is not None:
        block = torch.arange(len(F)) // block_size
        F = F * (block.unsqueeze(1) == block)
    return F + damping * torch.eye(len(F), dtype=F64)


def claim_oracle(scale: Scale) -> list[Claim]:
    """Everything against the dense inverse in float64; the published coefficients against their definition."""
    generator = torch.Generator().manual_seed(scale.seed)
    damping = 1e-3
    G = _draw(NUM_GRADS, DIM, generator=generator)
    x = _draw(DIM, 4, generator=generator)
    errors: dict[str, float] = {}
    for block_size in (None, 64):
        inverse = torch.linalg.inv(_fisher(G, damping, block_size))
        for mode in ("woodbury", "static"):
            operator = MFACInverse(G, damping, block_size, mode)
            case = f"{mode}, {'one block' if block_size is None else f'blocks of {block_size}'}"
            errors[f"{case}, product"] = _error(operator @ x, inverse @ x)
            errors[f"{case}, diagonal"] = _error(operator.diagonal(), inverse.diagonal())
            pairs = torch.randint(DIM, (50, 2), generator=generator).tolist() + [[i, i] for i in range(0, DIM, 7)]
            found = torch.stack([operator.element(i, j) for i, j in pairs])
            errors[f"{case}, elements"] = _error(found, torch.stack([inverse[i, j] for i, j in pairs]))
    window, pushed = GradientWindow(DIM, NUM_GRADS, damping, dtype=F64), _draw(3 * NUM_GRADS, DIM, generator=generator)
    for gradient in pushed:
        update = window.push_and_solve(gradient)
    F = _fisher(pushed[-NUM_GRADS:], damping)
    errors["window after 3 m pushes, product"] = _error(window.solve(x), torch.linalg.solve(F, x))
    errors["window after 3 m pushes, newest gradient"] = _error(update, torch.linalg.solve(F, pushed[-1]))
    D, B = dynamic_coefficients(G @ G.mT, damping)
    V, q = static_rows(G, damping)
    identities = {"V = B G": _error(B @ G, V), "q = m + diag D": _error(NUM_GRADS + D.diagonal(), q)}
    return [
        Claim("exact for its Fisher matrix (relative error)", max(errors.values()), 1e-9, "lower", errors),
        Claim("published D and B give V (relative error)", max(identities.values()), 1e-12, "lower", identities),
    ]


def claim_float32(scale: Scale) -> list[Claim]:
    """Damping 1e-7 in float32: ours keeps its digits, the published recurrences have none for a gradient they hold."""
    generator = torch.Generator().manual_seed(scale.seed)
    G = _draw(NUM_GRADS, DIM, generator=generator, dtype=torch.float32)
    generic = _draw(DIM, generator=generator, dtype=torch.float32)
    ours, published = {}, {}
    for damping in (1e-3, 1e-5, 1e-7):
        F = _fisher(G, damping)
        inside, outside = torch.linalg.solve(F, G[4].double()), torch.linalg.solve(F, generic.double())
        operator = MFACInverse(G, damping)
        window = GradientWindow(DIM, NUM_GRADS, damping)
        for i in [*range(5, NUM_GRADS), *range(5)]:  # row 4 comes last
            update = window.push_and_solve(G[i])
        D, B = dynamic_coefficients(G @ G.mT, damping)
        ours[damping] = {
            "in window, as a vector": _error(operator @ G[4], inside),
            "in window, by its coefficients": _error(operator.inverse_of_combination(torch.eye(NUM_GRADS)[4]), inside),
            "in window, just pushed": _error(update, inside),
            "generic": _error(operator @ generic, outside),
            "generic, window": _error(window.solve(generic), outside),
        }
        published[damping] = {
            "in window, static": _error(static_product(*static_rows(G, damping), damping, G[4]), inside),
            "in window, dynamic": _error(dynamic_product(G, D, B, damping, G[4]), inside),
            "generic, static": _error(static_product(*static_rows(G, damping), damping, generic), outside),
        }
    worst = min(published[1e-7]["in window, static"], published[1e-7]["in window, dynamic"])
    return [
        Claim("float32, damping 1e-7: relative error", max(ours[1e-7].values()), 1e-5, "lower", {"ours": ours}),
        Claim(
            "float32, damping 1e-7: published recurrences' relative error in the window",
            worst,
            1.0,
            "higher",
            {"published": published},
            note="what the formulas used here avoid",
        ),
    ]


def _slope(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def claim_linear_time(scale: Scale) -> list[Claim]:
    """A product takes time in proportion to m and to d."""
    generator = torch.Generator().manual_seed(scale.seed)
    dims = scale(smoke=[5_000, 10_000, 20_000], full=[50_000, 100_000, 200_000, 400_000])
    counts = scale(smoke=[16, 32, 64], full=[32, 64, 128, 256])
    fixed_m, fixed_d = scale(smoke=32, full=128), scale(smoke=20_000, full=100_000)
    cases = {f"d = {d}": (fixed_m, d) for d in dims} | {f"m = {m}": (m, fixed_d) for m in counts}
    arms: dict[str, Callable[[], Any]] = {}
    for name, (m, d) in cases.items():
        operator = MFACInverse(_draw(m, d, generator=generator, dtype=torch.float32), 1e-3)
        x = _draw(d, generator=generator, dtype=torch.float32)
        arms[name] = lambda operator=operator, x=x: operator @ x
    times = {name: median(seconds) for name, seconds in interleave(arms, scale(smoke=3, full=15), clock="cpu").items()}
    in_d = _slope(dims, [times[f"d = {d}"] for d in dims])
    in_m = _slope(counts, [times[f"m = {m}"] for m in counts])
    rows = {"seconds": times}
    return [
        Claim("product: log-log slope of time in d", in_d, (0.8, 1.2), "inside", rows, full_only=True),
        Claim("product: log-log slope of time in m", in_m, (0.8, 1.2), "inside", rows, full_only=True),
    ]


def _loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _classifier(seed: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def claim_many_right_hand_sides(scale: Scale) -> list[Claim]:
    """64 right-hand sides and the diagonal against CG to 1e-6 on the same Fisher matrix, curvlinops' and our own.

    In float64: in float32 conjugate gradients stagnate before they get there.
    """
    curvlinops = require_peer("curvlinops")
    widths = scale(smoke=(64, 60, 10), full=(64, 300, 256, 10))
    m, damping, rhs = scale(smoke=24, full=64), 1e-3, scale(smoke=4, full=64)
    split = digits(m, seed=scale.seed, dtype=F64)
    model, data = _classifier(scale.seed, *widths).double(), (split.train_x, split.train_y)
    parameters = list(model.parameters())
    d = sum(p.numel() for p in parameters)
    X = _draw(d, rhs, generator=torch.Generator().manual_seed(scale.seed), dtype=F64)

    def collect() -> Tensor:
        order = torch.Generator().manual_seed(scale.seed)
        return gradient_rows(model, _loss, data, m, m, per_sample=True, generator=order)

    def ours(G: Tensor) -> Tensor:
        operator = MFACInverse(G, damping)
        operator.diagonal()
        return operator @ X

    G = collect()
    reference = _by_eigenvectors(G, damping, X)
    theirs = curvlinops.EFLinearOperator(model, nn.CrossEntropyLoss(), parameters, [data])
    peer = FunctionOperator(lambda x: (theirs @ x).detach(), (d, d), dtype=F64, is_psd=True).shift(damping)
    same = _error(peer @ X[:, 0], _fisher_product(G, damping, X[:, 0]))
    forward = MFACInverse(G, damping).forward_operator
    seconds, errors = {}, {}
    ours(G)  # warm
    solutions: dict[str, Callable[[], Any]] = {
        "ours, gradients at hand": lambda: ours(G),
        "ours, gradients included": lambda: ours(collect()),
        "CG on our operator": lambda: cg(forward, X, rtol=1e-6),
        "CG on curvlinops' operator": lambda: cg(peer, X, rtol=1e-6),
    }
    steps = {}
    for name, work in solutions.items():
        runs = [_timed(work) for _ in range(3 if name.startswith("ours") else 1)]
        found, seconds[name] = runs[0][0], median(run[1] for run in runs)
        if not isinstance(found, Tensor):
            steps[name] = {
                "steps": found.num_steps,
                "converged": bool(found.converged.all()),
            }
            found = found.x
        errors[name] = _error(found, reference)
    rows = {"d": d, "m": m, "seconds": seconds, "relative error": errors, "cg": steps, "operators differ by": same}
    at_least_as_good = errors["ours, gradients at hand"] <= min(e for n, e in errors.items() if n.startswith("CG"))
    note = None if at_least_as_good else "less accurate than CG: not counted"
    claims = []
    for name, mine in (
        ("CG on our operator", "ours, gradients at hand"),
        ("CG on curvlinops' operator", "ours, gradients included"),
    ):
        ratio = seconds[name] / seconds[mine] if at_least_as_good else 0.0
        claims.append(
            Claim(f"{rhs} right-hand sides and diagonal: {name} over ours", ratio, 10.0, "higher", rows, True, note)
        )
    return claims


def _by_eigenvectors(G: Tensor, damping: float, X: Tensor) -> Tensor:
    """F⁻¹X in the singular basis of G, where nothing is subtracted but the projection."""
    _, sigma, V = torch.linalg.svd(G, full_matrices=False)
    inside = V @ X
    return (X - V.mT @ inside) / damping + V.mT @ (inside / (damping + sigma.square() / len(G)).unsqueeze(1))


def _fisher_product(G: Tensor, damping: float, x: Tensor) -> Tensor:
    wide = G.double()
    return damping * x.double() + wide.mT @ (wide @ x.double()) / len(G)


def _prepare(m: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    _whole_job((torch.randn(8, 50, generator=generator), torch.randn(50, 1, generator=generator)))  # loads LAPACK
    return torch.randn(m, d, generator=generator), torch.randn(d, 1, generator=generator)


def _whole_job(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    G, x = state
    operator = MFACInverse(G, 1e-3)
    return operator @ x, operator.diagonal(), operator.sample(1)


def claim_memory(scale: Scale) -> Claim:
    """Building the inverse, a product, the diagonal and a sample: peak memory over that of the gradients."""
    m, d = scale(smoke=(64, 20_000), full=(128, 100_000))
    peak = peak_rss_growth(_whole_job, _prepare, m, d, scale.seed, repeats=scale(smoke=1, full=3))
    rows = {"d": d, "m": m, "peak bytes beside the gradients": peak, "d x d bytes": 4 * d * d}
    ratio = peak / (4 * d * m)
    return Claim("peak memory beside the gradients, in d m floats", ratio, 4.0, "lower", rows, full_only=True)


def claim_one_shot_pruning(scale: Scale) -> list[Claim]:
    """Digits classifier, five seeds: accuracy right after pruning to a fixed sparsity, without training.

    The bars are for the update as published and the default of 16 rounds; block 128 and the diagonal get as many rounds
    and gradients, and a damping of their own. The rows show fewer rounds, and joint updates.
    """
    sparsities = scale(smoke=[0.8, 0.9], full=[0.7, 0.8, 0.9])
    seeds = [scale.seed + i for i in range(scale(smoke=1, full=5))]
    dense: list[float] = []
    found: dict[str, dict[str, list[float]]] = {arm: {f"{s:g}": [] for s in sparsities} for arm in PRUNERS}
    seconds: dict[str, float] = dict.fromkeys(PRUNERS, 0.0)
    for seed in seeds:
        model, data = classifier(seed, scale(smoke=5, full=40))
        dense.append(accuracy(model, data))
        for arm, row in found.items():
            start = time.process_time()
            for s in sparsities:
                row[f"{s:g}"].append(pruned(arm, model, data, s, seed))
            seconds[arm] += time.process_time() - start
    means = {arm: {s: fmean(values) for s, values in row.items()} for arm, row in found.items()}
    rows = {
        "seeds": seeds,
        "dense": dense,
        "accuracy": found,
        "means": {"dense": fmean(dense)} | means,
        "CPU seconds": seconds,
    }
    ours = means["M-FAC, R = 16"]
    lost = fmean(dense) - ours["0.8"]
    over_magnitude = ours["0.9"] - means["magnitude"]["0.9"]
    over_blocks = ours["0.9"] - means["block 128, R = 16"]["0.9"]
    sweep = sum(seconds.values()) / 120
    return [
        Claim("one-shot pruning to 0.8: accuracy lost", lost, 0.03, "lower", rows, full_only=True),
        Claim("one-shot pruning to 0.9: accuracy", ours["0.9"], 0.9, "higher", rows, full_only=True),
        Claim("one-shot pruning to 0.9: accuracy over magnitude", over_magnitude, 0.35, "higher", rows, full_only=True),
        Claim("one-shot pruning to 0.9: accuracy over block 128", over_blocks, 0.02, "higher", rows, full_only=True),
        Claim("one-shot pruning: CPU time of all arms over two minutes", sweep, 1.0, "lower", seconds, full_only=True),
    ]


def claim_optimizer(scale: Scale) -> list[Claim]:
    """Digits auto-encoder at equal epochs, step lengths tuned on one seed and judged on three others."""
    data, epochs = pixels(), scale(smoke=1, full=30)
    tuned: dict[str, dict[float, float]] = {}
    best: dict[str, float] = {}
    for name, (_, grid) in ARMS.items():
        tuned[name] = {lr: final_loss(name, lr, data, epochs, scale.seed) for lr in scale(smoke=grid[-1:], full=grid)}
        best[name] = min(tuned[name], key=tuned[name].__getitem__)
    judged = {
        name: [final_loss(name, best[name], data, epochs, scale.seed + 1 + i) for i in range(scale(smoke=1, full=3))]
        for name in ("sgd", "adam", "m-fac")
    }
    means = {name: fmean(losses) for name, losses in judged.items()}
    rows = {"tuning": tuned, "best lr": best, "judged": judged, "means": means}
    ratio = means["m-fac"] / min(means["sgd"], means["adam"])
    arms = {name: _short_run(name, best[name], data, scale) for name in ("sgd", "adam", "m-fac")}
    times = {name: median(seconds) for name, seconds in interleave(arms, scale(smoke=1, full=5)).items()}
    slower = times["m-fac"] / min(times["sgd"], times["adam"])
    return [
        Claim("auto-encoder: training loss over the best of SGD and Adam", ratio, 0.9, "lower", rows, full_only=True),
        Claim(
            "auto-encoder: time over the faster of SGD and Adam, m = 64", slower, 3.0, "lower", times, full_only=True
        ),
    ]


def _short_run(name: str, lr: float, data: Tensor, scale: Scale) -> Callable[[], None]:
    def run() -> None:
        model = auto_encoder(scale.seed)
        train(model, ARMS[name][0](model.parameters(), lr), data, scale(smoke=1, full=4), scale.seed)

    return run


CLAIMS: list[ClaimFunction] = [
    claim_oracle,
    claim_float32,
    claim_linear_time,
    claim_many_right_hand_sides,
    claim_memory,
    claim_one_shot_pruning,
    claim_smollm2,
    claim_optimizer,
]
