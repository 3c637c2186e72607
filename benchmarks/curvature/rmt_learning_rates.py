"""What batches see of the curvature, and what learning rates follow: formulas and predictions against runs.

Oracles: eigenvalues of random matrices and of batch Hessians, computed; trained networks. Network 64-32-10 tanh,
P = 2410, on standardised digits, N = 1437. Pixels that are only divided by 16 leave one large eigenvalue, that of the
mean picture; the rate of SGD then saturates at smaller batches, and its slope over B = 1 to 32 is a half.
"""

import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.curvature import _core_arms as arms
from benchmarks.curvature._rmt_training import (
    NUM_TRAIN,
    Fleet,
    data,
    epoch_batches,
    mean_loss,
    module,
    random_batches,
    train,
)
from benchmarks.data import interleave
from hesse.curvature import (
    CurvatureNoise,
    CurvatureScheduler,
    Spike,
    batch_extremal_eigenvalues,
    covariance_spike,
    critical_batch_size,
    curvature_noise,
    hessian,
    max_learning_rate,
    scale_learning_rate,
    wigner_spike,
)
from hesse.linalg import eigsh, spectral_density

__all__ = ["CLAIMS"]


def claim_spiked_formulas(scale: Scale) -> list[Claim]:
    """Wigner noise of order P and sample covariances of P variables, five draws, above the threshold and below."""
    order, samples = scale(smoke=300, full=1500), scale(smoke=80, full=400)
    seeds = [scale.seed + i for i in range(scale(smoke=2, full=5))]
    errors: dict[str, float] = {}
    overlaps: dict[str, float] = {}
    for spike in (0.5, 1.5, 2.0, 3.0):
        found = [_wigner(order, spike, seed) for seed in seeds]
        _compare(f"Wigner {spike:g}", found, wigner_spike(spike, 2.0), errors, overlaps)
    found = [(-v, o) for v, o in (_wigner(order, -2.0, seed, which="SA") for seed in seeds)]
    _compare("Wigner -2", found, wigner_spike(2.0, 2.0), errors, overlaps)
    for spike in (1.0, 6.0, 15.0):
        found = [_covariance(order, samples, spike, seed) for seed in seeds]
        _compare(f"covariance {spike:g}", found, covariance_spike(spike, 1.0, order / samples), errors, overlaps)
    edges = {name: e for name, e in errors.items() if name in ("Wigner 0.5", "covariance 1")}
    above = {name: e for name, e in errors.items() if name not in edges}
    return [
        Claim("spiked eigenvalue, relative error", max(above.values()), 0.02, "lower", above, full_only=True),
        Claim("edge of the noise, relative error", max(edges.values()), 0.03, "lower", edges, full_only=True),
        Claim("overlap of eigenvectors, error", max(overlaps.values()), 0.05, "lower", overlaps, full_only=True),
    ]


def _wigner(order: int, spike: float, seed: int, which: str = "LA") -> tuple[float, float]:
    rng = np.random.default_rng(abs(seed))
    noise = rng.standard_normal((order, order))
    matrix = (noise + noise.T) / (2 * order) ** 0.5
    matrix[0, 0] += spike
    values, vectors = scipy.sparse.linalg.eigsh(matrix, k=1, which=which, v0=rng.standard_normal(order))
    return float(values[0]), float(vectors[0, 0] ** 2)


def _covariance(order: int, samples: int, spike: float, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(abs(seed))
    rows = rng.standard_normal((samples, order))
    # the sample variance of the spiked variable alone strays by √(2/samples) = 7 %, which is no part of the formula
    rows[:, 0] *= (spike * samples) ** 0.5 / np.linalg.norm(rows[:, 0])
    values, vectors = np.linalg.eigh(rows @ rows.T / samples)
    lead = rows.T @ vectors[:, -1]
    return float(values[-1]), float(lead[0] ** 2 / (lead @ lead))


def _compare(
    name: str, found: list[tuple[float, float]], predicted: Spike, errors: dict[str, float], overlaps: dict[str, float]
) -> None:
    value, overlap = np.mean(np.array(found), axis=0)
    errors[name] = abs(float(value) / float(predicted.value) - 1)
    overlaps[name] = abs(float(overlap) - float(predicted.overlap))


def claim_quadrature_moments(scale: Scale) -> Claim:
    """Trace and Frobenius norm of a dense matrix from Lanczos quadrature of 64 sign vectors."""
    n, generator = scale(smoke=300, full=2000), torch.Generator().manual_seed(scale.seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    values = torch.linspace(0.01, 3, n, dtype=torch.float64) ** 2
    matrix = q * values @ q.T
    found = spectral_density((matrix + matrix.T) / 2, num_probes=64, num_steps=10, generator=generator)
    rows = {
        "trace": abs(n * float(found.integrate(lambda t: t)[0]) / float(values.sum()) - 1),
        "Frobenius": abs((n * float(found.integrate(torch.square)[0])) ** 0.5 / float(values.norm()) - 1),
    }
    return Claim("quadrature moments, relative error", max(rows.values()), 0.02, "lower", rows, full_only=True)


def claim_batch_sharpening(scale: Scale) -> list[Claim]:
    """Mean largest eigenvalue of batch Hessians after three epochs of Adam, measured and predicted, side by side."""
    x, y, net = _trained(scale.seed)
    generator = torch.Generator().manual_seed(scale.seed)
    noise = curvature_noise(mean_loss, net, (x, y), generator=generator)
    sizes = scale(smoke=[4, 32, 256], full=[4, 8, 16, 32, 64, 128, 256, 512, 1024])
    orders = [torch.randperm(NUM_TRAIN, generator=generator) for _ in range(scale(smoke=2, full=12))]
    rows: dict[str, dict[str, float]] = {}
    for size in sizes:
        measured = torch.tensor([_top(net, x[i], y[i], generator) for i in _batches(orders, size)])
        row = {"measured": float(measured.mean()), "error of it": float(measured.std() / len(measured) ** 0.5)}
        for model in ("directional", "isotropic", "block"):
            found = batch_extremal_eigenvalues(noise, size, model=model, generator=generator)
            row[model] = float(found.largest)
        row["leading eigenvector alone"] = _single_direction(noise, size)
        rows[f"B={size}"] = row
    means = [row["measured"] for row in rows.values()]
    falls = min(before / after for before, after in pairwise(means))
    worst = {
        model: max(abs(row[model] / row["measured"] - 1) for row in rows.values())
        for model in ("directional", "block", "isotropic", "leading eigenvector alone")
    }
    spread = {
        "l": float(noise.eigenvalues[0]),
        "s1²": float(noise.directional[0]),
        "s_max²": float(noise.largest_variance),
        "Pσ²": float(noise.p_sigma2),
    }
    first = rows[f"B={sizes[0]}"]
    return [
        Claim("sharpness falls from each B to the next, least factor", falls, 1.0, "higher", rows, full_only=True),
        Claim("directional prediction, worst relative error", worst["directional"], 0.3, "lower", worst | spread, True),
        Claim(
            "isotropic prediction at B=4 is off by a factor",
            first["measured"] / first["isotropic"],
            4.0,
            "higher",
            first,
            full_only=True,
        ),
    ]


def _trained(seed: int) -> tuple[Tensor, Tensor, nn.Module]:
    x, y = data(seed)
    net = module(seed)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for picked in epoch_batches([seed], 32, 3):
        optimizer.zero_grad()
        mean_loss(net, (x[picked[0]], y[picked[0]])).backward()
        optimizer.step()
    return x.double(), y, net.double()


def _batches(orders: list[Tensor], size: int) -> Iterator[Tensor]:
    # up to four disjoint batches of each order: at small sizes single batches differ by half their mean
    for order in orders:
        yield from order[: NUM_TRAIN // size * size].split(size)[:4]


def _top(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    operator = hessian(mean_loss, net, (x, y), keep_graph=True)
    return float(eigsh(operator, 1, which="LA", tol=1e-2, generator=generator).eigenvalues)


def _single_direction(noise: CurvatureNoise, size: int) -> float:
    variance = noise.directional[0] * (1 / size - 1 / noise.num_examples)
    return float(wigner_spike(noise.eigenvalues[0], 2 * variance.sqrt()).value)


EFFORTS: dict[str, list[float]] = {
    "hesse": [1e-1, 3e-2, 1e-2, 1e-3, 1e-4],  # residual over eigenvalue
    "curvlinops": [1e-1, 3e-2, 1e-2, 1e-3, 1e-4],  # likewise
    "pyhessian": [1e-2, 1e-3, 1e-4, 1e-5, 1e-6],  # change from step to step
    "eigenthings": [4, 6, 8, 12, 16, 24],  # Lanczos steps
}


def claim_peers(scale: Scale) -> list[Claim]:
    """Largest eigenvalue of one batch of 128, then ten, by hesse and its peers in turn, each just good to 1e-3."""
    x, y, net = _trained(scale.seed)
    problem, repeats = arms.Problem(net, [(x[:128], y[:128])]), scale(smoke=1, full=9)

    def run(name: str, k: int, effort: float) -> Tensor:
        if name != "hesse":
            torch.manual_seed(scale.seed)  # pyhessian draws from the global generator
            found = arms.peer_eigenpairs(name, arms.OPERATORS[name](problem), k, effort, scale.seed)[0]
            return torch.as_tensor(found).sort(descending=True).values
        generator = torch.Generator().manual_seed(scale.seed)
        operator = arms.ours(problem, keep_graph=True)
        # a last product for the residuals is left out: no peer makes one
        found = eigsh(operator, k, tol=effort, basis_size=max(8, 2 * k + 1), verify=False, generator=generator)
        return found.eigenvalues.flip(0)

    def just_enough(name: str, k: int) -> tuple[float, float]:
        tried: list[tuple[float, float]] = []
        for effort in EFFORTS[name]:
            tried.append((effort, float((run(name, k, effort) / exact[:k] - 1).abs().max())))
            if tried[-1][1] <= 1e-3:
                break
        return tried[-1]

    with torch.random.fork_rng(devices=[]), arms.as_pyhessian_expects(torch.float64):
        exact = run("hesse", 10, 1e-10)
        settings = {(name, 1): just_enough(name, 1) for name in EFFORTS}
        settings |= {(name, 10): just_enough(name, 10) for name in ("hesse", "pyhessian")}
        seconds: dict[int, dict[str, float]] = {}
        for k in (1, 10):
            calls = {
                name: lambda name=name, k=k, effort=effort: run(name, k, effort)
                for (name, count), (effort, _) in settings.items()
                if count == k
            }
            seconds[k] = {name: median(times) for name, times in interleave(calls, repeats, clock="cpu").items()}
    gaps = {name: error for (name, k), (_, error) in settings.items() if k == 1 and name != "hesse"}
    rows = {f"{name}, {k}": {"effort": e, "error": error} for (name, k), (e, error) in settings.items()}
    fastest = min(time for name, time in seconds[1].items() if name != "hesse") / seconds[1]["hesse"]
    ten = seconds[10]["pyhessian"] / seconds[10]["hesse"]
    return [
        Claim("largest eigenvalue of a batch, gap to peers", max(gaps.values()), 1e-3, "lower", rows),
        Claim("largest eigenvalue, fastest peer's time over ours", fastest, 1.0, "higher", seconds[1], full_only=True),
        Claim("ten eigenvalues, pyhessian's time over ours", ten, 1.5, "higher", seconds[10] | rows, full_only=True),
    ]


def claim_scaling_laws(scale: Scale) -> list[Claim]:
    """Largest learning rate, on a grid of ratio √2, whose loss after 150 steps is below the initial one."""
    start, steps = time.perf_counter(), scale(smoke=20, full=150)
    seeds = [scale.seed, scale.seed + 1]
    sets = [data(seed) for seed in seeds]
    x, y = torch.stack([s[0] for s in sets]), torch.stack([s[1] for s in sets])
    claims: list[Claim] = []
    for name, adam, exponents, sizes, bar in (
        ("SGD", False, (-3, 8), [1, 2, 4, 8, 16, 32], (0.85, 1.2)),
        ("Adam", True, (-6, 3), [1, 2, 4, 8, 16, 32, 128], (0.4, 0.65)),
    ):
        rates = 2.0 ** torch.arange(exponents[0], exponents[1] + 0.1, 0.5)
        found: dict[int, float] = {}
        for size in (*sizes, *([128] if not adam else [])):
            fleet = Fleet.start(seeds, len(rates))
            before = fleet.losses(x, y)
            train(fleet, sets, random_batches(seeds, size, steps), rates, adam=adam)
            below = fleet.losses(x, y) < before
            found[size] = float(torch.stack([rates[row.nonzero().max()] for row in below]).log2().mean().exp2())
        slope = np.polyfit(np.log2(sizes), [np.log2(found[size]) for size in sizes], 1)[0]
        rows = {f"B={size}": rate for size, rate in found.items()}
        title = f"{name}: slope of the largest learning rate in B, logarithms"
        claims.append(Claim(title, float(slope), bar, "inside", rows, full_only=True))
    share = (time.perf_counter() - start) / 180
    claims.append(Claim("both sweeps, share of three minutes", share, 1.0, "lower", {}, full_only=True))
    return claims


def claim_transfer(scale: Scale) -> list[Claim]:
    """Rate tuned at B=16, carried to other batch sizes with the noise its own run shows after the first epoch."""
    epochs, seeds = scale(smoke=2, full=5), [scale.seed + i for i in range(scale(smoke=2, full=10))]
    sets = [data(seed) for seed in seeds]
    rates = 2.0 ** torch.arange(-4, 4.1, 0.5)

    def loss(size: int, lr: Tensor) -> Tensor:
        # geometric mean over seeds after the same number of epochs; a run that diverged counts as 1000 nats
        fleet = Fleet.start(seeds, len(lr))
        train(fleet, sets, epoch_batches(seeds, size, epochs), lr)
        x, y = torch.stack([s[0] for s in sets]), torch.stack([s[1] for s in sets])
        return fleet.losses(x, y).nan_to_num(1e3).log().mean(0).exp()

    tuned = float(rates[loss(16, rates).argmin()])
    fleet = Fleet.start(seeds, 1)
    train(fleet, sets, epoch_batches(seeds, 16, 1), torch.tensor([tuned]))
    noises = [_leading_noise(fleet.member(i, 0), sets[i], seed) for i, seed in enumerate(seeds)]
    rows: dict[str, object] = {
        "tuned at 16": tuned,
        "critical batch sizes": [float(critical_batch_size(noise)) for noise in noises],
        "largest stable rates at 16": [float(max_learning_rate(noise, 16)) for noise in noises],
    }
    against_best, against_fixed = [], []
    for size in (4, 64, 256):
        predictions = [float(scale_learning_rate(tuned, 16, size, noise=noise)) for noise in noises]
        predicted = median(predictions)
        grid = loss(size, rates)
        here, fixed = loss(size, torch.tensor([predicted, tuned]))
        against_best.append(float(here / grid.min()))
        against_fixed.append(float(fixed / here))
        rows[f"B={size}"] = {
            "predicted": predicted,
            "of the seeds": predictions,
            "best of the grid": float(rates[grid.argmin()]),
            "loss": float(here),
            "loss at the best": float(grid.min()),
            "loss at the tuned": float(fixed),
        }
    return [
        Claim(
            "carried rate, loss over the grid's best, worst B", max(against_best), 1.1, "lower", rows, full_only=True
        ),
        Claim(
            "fixed rate's loss over the carried one's, least", min(against_fixed), 1.0, "higher", rows, full_only=True
        ),
    ]


def _leading_noise(net: nn.Module, batch: tuple[Tensor, Tensor], seed: int) -> CurvatureNoise:
    # Gauss-Newton: the Hessian of one badly fitted example can be the leading eigenvector and all the variance along it
    generator = torch.Generator().manual_seed(abs(seed))
    return curvature_noise(
        mean_loss,
        net,
        batch,
        matrix="ggn",
        num_directions=1,
        num_samples=NUM_TRAIN,
        edge_steps=0,
        generator=generator,
    )


def claim_learner(scale: Scale) -> list[Claim]:
    """SGD driven by the scheduler against a grid of eight rates and three momenta, B=32, at equal epochs."""
    epochs, size = scale(smoke=4, full=12), 32
    seeds = [scale.seed + i for i in range(scale(smoke=1, full=5))]
    sets = [data(seed) for seed in seeds]
    rates = (2.0 ** torch.arange(-6, 2)).repeat(3)
    momenta = torch.tensor([0.0, 0.5, 0.9]).repeat_interleave(8)
    fleet = Fleet.start(seeds, len(rates))
    train(fleet, sets, epoch_batches(seeds, size, epochs), rates, momentum=momenta)
    x, y = torch.stack([s[0] for s in sets]), torch.stack([s[1] for s in sets])
    grid = fleet.losses(x, y).nan_to_num(1e3).log().mean(0).exp()
    best = int(grid.argmin())
    driven = [_driven(seed, batch, size, epochs) for seed, batch in zip(seeds, sets, strict=True)]
    losses = [loss for loss, _ in driven]
    ours = float(np.exp(np.mean(np.log(losses))))
    products = max(sum(entry.num_products for entry in scheduler.history) for _, scheduler in driven)
    gradients = epochs * NUM_TRAIN
    cost = (gradients + 3 * products) / (len(rates) * gradients)  # a product counts as three gradients
    rows = {
        "losses": losses,
        "grid's best": {"loss": float(grid[best]), "lr": float(rates[best]), "momentum": float(momenta[best])},
        "grid": grid.reshape(3, 8).tolist(),
        "rates set": [[entry.learning_rate for entry in scheduler.history] for _, scheduler in driven],
        "momenta set": [[entry.momentum for entry in scheduler.history] for _, scheduler in driven],
    }
    return [
        Claim("learner, loss over the grid's best", ours / float(grid[best]), 1.1, "lower", rows, full_only=True),
        Claim("learner, cost over the sweep's", cost, 0.2, "lower", {"products": products}, full_only=True),
    ]


def _driven(seed: int, batch: tuple[Tensor, Tensor], size: int, epochs: int) -> tuple[float, CurvatureScheduler]:
    net = module(seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    # small for the data is small: a refresh costs three passes, a third of the three epochs between two of them
    scheduler = CurvatureScheduler(
        optimizer,
        net,
        mean_loss,
        batch,
        batch_size=size,
        refresh=3,
        num_steps=10,
        subsample_size=256,
        num_samples=64,
        generator=torch.Generator().manual_seed(abs(seed)),
    )
    x, y = batch
    steps = NUM_TRAIN // size
    for step, picked in enumerate(epoch_batches([seed], size, epochs), 1):
        optimizer.zero_grad()
        mean_loss(net, (x[picked[0]], y[picked[0]])).backward()
        optimizer.step()
        if step % steps == 0:
            scheduler.step()
    with torch.no_grad():
        return float(mean_loss(net, batch)), scheduler


CLAIMS: list[ClaimFunction] = [
    claim_spiked_formulas,
    claim_quadrature_moments,
    claim_batch_sharpening,
    claim_peers,
    claim_scaling_laws,
    claim_transfer,
    claim_learner,
]
