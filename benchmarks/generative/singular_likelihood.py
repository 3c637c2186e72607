"""Likelihood on thin sets: does noise on the data repair it, how much of it, in how many dimensions, and where not.

W1 is exact (assignment) between generated points and fresh points of the true structure; the floor is W1 of two
samples of the truth. Ladders are the estimator's own, annealed, with a fifth of the rows held out to choose a rung,
except where every fit is said to be from scratch.
"""

import math
import statistics
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import digits
from benchmarks.generative._singular_likelihood_problems import (
    LADDER,
    cold_fit,
    embedded,
    fresh_w1,
    ladder_fit,
    seeded,
    single_circle,
    touching_circles,
)
from benchmarks.peers import require_peer
from hesse.generative import (
    WGANGP,
    PerturbedGenerativeMLE,
    exact_log_likelihood,
    importance_log_likelihood,
    kde_resample,
    ppca_mixture,
    w1_distance,
)

SEEDS = 3
SLOPE_THEORY = -0.25  # -β / (2 (β + t)) with β = t = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One data set, its ladder and, where asked for, the fit without noise."""

    points: Tensor
    test: Tensor
    floor: float
    curve: tuple[float, ...]  # W1 of each rung to fresh points, in the order of LADDER
    chosen: int  # index into LADDER
    sigmas: tuple[float, ...]
    perturbations: tuple[float, ...]
    plain: float | None
    plain_sigma: float | None
    seconds: float  # of the ladder

    @property
    def selected(self) -> float:
        """W1 of the chosen rung."""
        return self.curve[self.chosen]


def seeds(scale: Scale) -> list[int]:
    """Three of them at full size, others for every seed of the run."""
    return [SEEDS * scale.seed + k for k in range(scale(smoke=1, full=SEEDS))]


def run(scale: Scale, problem: str, count: int, dim: int, seed: int, *, plain: bool) -> Run:
    """Fit a ladder and, if asked for, the plain likelihood; claims share the runs."""
    return _run(scale(smoke=30, full=3000), scale(smoke=100, full=1000), problem, count, dim, seed, plain)


@lru_cache(maxsize=64)
def _run(steps: int, test_points: int, problem: str, count: int, dim: int, seed: int, plain: bool) -> Run:
    draw_fn = {"touching circles": touching_circles, "single circle": single_circle}[problem]
    generator = seeded(seed)
    points, test, other = (embedded(draw_fn(size, generator), dim, seed) for size in (count, test_points, test_points))
    seed %= 2**31
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the degenerate likelihood: it is what is measured
        start = time.perf_counter()
        model = ladder_fit(points, steps, seed)
        seconds = time.perf_counter() - start
        cold = cold_fit(points, steps, seed) if plain else None
    rungs = model.path_[::-1]
    curve = []
    for rung in rungs:
        with torch.no_grad():
            curve.append(fresh_w1(lambda n, g, rung=rung: rung.module(torch.randn(n, 2, generator=g)), test, seed))
    return Run(
        points,
        test,
        w1_distance(other, test),
        tuple(curve),
        [rung.perturbation for rung in rungs].index(model.perturbation_),
        tuple(rung.sigma for rung in rungs),
        tuple(rung.perturbation for rung in rungs),
        None if cold is None else fresh_w1(lambda n, g: cold.sample(n, generator=g), test, seed),
        None if cold is None else cold.sigma_,
        seconds,
    )


def mean(values: list[float]) -> float:
    return statistics.fmean(values)


def rows_of(runs: list[Run]) -> dict[str, object]:
    return {
        "W1 selected": [found.selected for found in runs],
        "W1 unperturbed": [found.plain for found in runs],
        "floor": [found.floor for found in runs],
        "selected s": [LADDER[found.chosen] for found in runs],
        "sigma unperturbed": [found.plain_sigma for found in runs],
        "W1 by rung, mean": dict(
            zip(map(str, LADDER), np.mean([found.curve for found in runs], 0).tolist(), strict=True)
        ),
    }


@dataclass(frozen=True, slots=True)
class ColdLadder:
    """Fits from scratch, one to a perturbation: W1 to fresh points, and the one that other held-out points choose."""

    curve: tuple[float, ...]
    chosen: int
    sigmas: tuple[float, ...]
    perturbations: tuple[float, ...]
    floor: float


def cold_ladder(scale: Scale, count: int, seed: int) -> ColdLadder:
    """Of the circles in R^20, with n/4 held-out points; claims share the fits."""
    levels = scale(smoke=(0.0, 0.1, 0.2), full=LADDER)
    return _cold_ladder(scale(smoke=20, full=3000), scale(smoke=100, full=1000), levels, count, seed)


@lru_cache(maxsize=64)
def _cold_ladder(steps: int, test_points: int, levels: tuple[float, ...], count: int, seed: int) -> ColdLadder:
    generator = seeded(seed)
    points, test, other, held_out = (
        embedded(touching_circles(size, generator), 20, seed) for size in (count, test_points, test_points, count // 4)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        models = [cold_fit(points, steps, seed % 2**31, level) for level in levels]
    scores = [model.score(held_out) for model in models]
    return ColdLadder(
        tuple(fresh_w1(lambda n, g, model=model: model.sample(n, generator=g), test, seed) for model in models),
        int(np.argmax(scores)),
        tuple(model.sigma_ for model in models),
        tuple(model.perturbation_ for model in models),
        w1_distance(test, other),
    )


def collapse_and_repair(scale: Scale) -> list[Claim]:
    """Two circles in R^20, n = 1000: plain likelihood drives σ to zero and misplaces mass; noise repairs it.

    Fits from scratch, s chosen on held-out points; then the estimator's own annealed ladder, which may end at s = 0:
    a fit without noise that came through fits with noise.
    """
    count = scale(smoke=100, full=1000)
    cold = [cold_ladder(scale, count, seed) for seed in seeds(scale)]
    runs = [run(scale, "touching circles", count, 20, seed, plain=True) for seed in seeds(scale)]
    plain, floor = mean([found.curve[0] for found in cold]), mean([found.floor for found in cold])
    chosen = mean([found.curve[found.chosen] for found in cold])
    misfit = [abs(found.sigmas[k] / found.perturbations[k] - 1) for found in cold if (k := found.chosen)]
    rows = {
        "W1 unperturbed": [found.curve[0] for found in cold],
        "W1 selected": [found.curve[found.chosen] for found in cold],
        "floor": [found.floor for found in cold],
        "s": [found.perturbations[found.chosen] for found in cold],
        "sigma": [found.sigmas[found.chosen] for found in cold],
        "sigma unperturbed": [found.sigmas[0] for found in cold],
    }
    own, own_floor = mean([found.selected for found in runs]), mean([found.floor for found in runs])
    own_plain = mean([found.plain or math.nan for found in runs])
    return [
        Claim("W1 selected over unperturbed, circles in R^20", chosen / plain, 0.75, "lower", rows, full_only=True),
        Claim(
            "excess over the floor, selected over unperturbed",
            (chosen - floor) / (plain - floor),
            0.5,
            "lower",
            {},
            full_only=True,
        ),
        Claim(
            "relative error of sigma against s, worst seed",
            max(misfit, default=math.nan),
            0.05,
            "lower",
            {},
            full_only=True,
        ),
        Claim(
            "sigma of the unperturbed fit, largest",
            max(found.sigmas[0] for found in cold),
            0.01,
            "lower",
            {},
            full_only=True,
        ),
        Claim("annealed: W1 selected over unperturbed", own / own_plain, 0.75, "lower", rows_of(runs), full_only=True),
        Claim(
            "annealed: excess over the floor, selected over unperturbed",
            (own - own_floor) / (own_plain - own_floor),
            0.5,
            "lower",
            {},
            full_only=True,
        ),
    ]


def u_shape(scale: Scale) -> list[Claim]:
    """W1 against s for n = 250, 1000, 4000, every fit from scratch: a minimum inside, which moves down as n grows.

    Annealed ladders, which the rows show for n = 1000, start the fit without noise from a good place and so hide part
    of what noise repairs. All fits have the same number of steps, whatever n: their error is mostly of training.
    """
    counts, levels = scale(smoke=(80, 100), full=(250, 1000, 4000)), scale(smoke=(0.0, 0.1, 0.2), full=LADDER)
    curves, rows, excess = {}, {}, {}
    for count in counts:
        ladders = [cold_ladder(scale, count, seed) for seed in seeds(scale)]
        floors = [found.floor for found in ladders]
        curves[count] = np.mean([found.curve for found in ladders], 0)
        excess[count] = float(curves[count].min()) - mean(floors)
        rows[f"W1 by s, n={count}"] = [found.curve for found in ladders]
        rows[f"mean W1 by s, n={count}"] = dict(zip(map(str, levels), curves[count].tolist(), strict=True))
        rows[f"floor, n={count}"] = floors
        rows[f"minimiser by seed, n={count}"] = [levels[int(np.argmin(found.curve))] for found in ladders]
    annealed = [
        run(scale, "touching circles", scale(smoke=100, full=1000), 20, seed, plain=True).curve for seed in seeds(scale)
    ]
    inside = {count: float(min(curve[0], curve[-1]) / curve[1:-1].min()) for count, curve in curves.items()}
    best = [int(curve.argmin()) for curve in curves.values()]  # of the mean curve
    logs = [math.log(value) if value > 0 else math.nan for value in excess.values()]
    rows |= {
        "mean W1 annealed, n=1000": dict(zip(map(str, LADDER), np.mean(annealed, 0).tolist(), strict=True)),
        "end over best inside": inside,
        "minimiser": [levels[k] for k in best],
        "slope of log excess": float(np.polyfit(np.log(counts), logs, 1)[0]),
        "slope of theory": SLOPE_THEORY,
    }
    rise = max(later - earlier for earlier, later in pairwise(best))
    return [
        Claim("U-shape: best end over best inside, worst n", min(inside.values()), 1.0, "higher", rows, full_only=True),
        Claim("U-shape: rungs the minimiser rises as n grows", rise, 0, "lower", {}, full_only=True),
    ]


def ambient_dimension(scale: Scale) -> list[Claim]:
    """The same circles in R^2, R^20, R^100."""
    count, dims = scale(smoke=100, full=1000), scale(smoke=(2, 20), full=(2, 20, 100))
    runs = {d: [run(scale, "touching circles", count, d, seed, plain=True) for seed in seeds(scale)] for d in dims}
    selected = {d: mean([found.selected for found in found_runs]) for d, found_runs in runs.items()}
    plain = {d: mean([found.plain or math.nan for found in found_runs]) for d, found_runs in runs.items()}
    rows = {f"D={d}": rows_of(found_runs) for d, found_runs in runs.items()}
    spread = max(selected.values()) / min(selected.values()) - 1
    worse = min(plain[d] / selected[d] for d in dims if d > 2)
    return [
        Claim("relative change of W1 selected over D", spread, 0.25, "lower", rows, full_only=True),
        Claim("W1 unperturbed over selected, D > 2, least", worse, 1.0, "higher", rows, full_only=True),
    ]


def where_it_does_not_help(scale: Scale) -> list[Claim]:
    """One circle in the plane: σ does not collapse within 3000 steps, and noise on the data only costs."""
    runs = [run(scale, "single circle", scale(smoke=100, full=1000), 2, seed, plain=True) for seed in seeds(scale)]
    rows = rows_of(runs)
    loss = mean([found.selected for found in runs]) / mean([found.plain or math.nan for found in runs])
    return [
        Claim(
            "single circle: sigma of the unperturbed fit, least",
            min(found.plain_sigma or math.nan for found in runs),
            0.01,
            "higher",
            rows,
            full_only=True,
        ),
        Claim(
            "single circle: rung chosen, counted from zero, largest",
            max(found.chosen for found in runs),
            1,
            "lower",
            rows,
            full_only=True,
        ),
        Claim("single circle: W1 selected over unperturbed", loss, 1.1, "lower", rows, full_only=True),
    ]


def digits_of_scikit_learn(scale: Scale) -> list[Claim]:
    """8 x 8 digits: sliced W1 of samples to held-out pictures, and how well a nearest neighbour tells them apart."""
    steps, width = scale(smoke=5, full=1500), scale(smoke=(32,), full=(200,) * 4)
    ratios, accuracies, rows = [], [], {}
    for seed in seeds(scale)[: scale(smoke=1, full=2)]:
        split = digits(1200, seed=seed % 2**31, dtype=torch.float32)
        settings = {"latent_dim": 8, "hidden_sizes": width}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            models = {
                "selected": ladder_fit(split.train_x, steps, seed % 2**31, **settings),
                "unperturbed": cold_fit(split.train_x, steps, seed % 2**31, **settings),
            }
        samples = {name: model.sample(len(split.test_x), generator=seeded(seed)) for name, model in models.items()}
        samples |= {"training pictures": split.train_x[: len(split.test_x)]}
        w1 = {
            name: w1_distance(made, split.test_x, "sliced", num_projections=500, generator=seeded(seed))
            for name, made in samples.items()
        }
        told = {name: neighbour_accuracy(made, split.test_x) for name, made in samples.items()}
        ratios.append(w1["selected"] / w1["unperturbed"])
        accuracies.append(abs(told["selected"] - 0.5) / abs(told["unperturbed"] - 0.5))
        rows[f"seed {seed}"] = {
            "sliced W1": w1,
            "neighbour accuracy": told,
            "s": models["selected"].perturbation_,
            "sigma": {name: model.sigma_ for name, model in models.items()},
        }
    note = "no earlier measurement stands behind this bar; both W1 and the choice of s are by sliced distances"
    return [
        Claim("digits: sliced W1 selected over unperturbed", mean(ratios), 0.9, "lower", rows, True, note),
        Claim(
            "digits: distance from half, selected over unperturbed", mean(accuracies), 1.0, "lower", rows, True, note
        ),
    ]


def neighbour_accuracy(made: Tensor, real: Tensor) -> float:
    """Share of points whose nearest other point is of their own kind; half where the two laws agree."""
    both = torch.cat([made, real])
    distances = torch.cdist(both, both).fill_diagonal_(math.inf)
    labels = torch.arange(len(both)) < len(made)
    return float((labels[distances.argmin(1)] == labels).double().mean())


def peers(scale: Scale) -> Claim:
    """The circles in R^20 again: resampled kernels, Gaussian mixtures, and a GAN of the same f and wall time."""
    mixture = require_peer("sklearn.mixture")
    runs = [run(scale, "touching circles", scale(smoke=100, full=1000), 20, seed, plain=True) for seed in seeds(scale)]
    found: dict[str, list[float]] = {"selected": [r.selected for r in runs], "kernels at their best bandwidth": []}
    bandwidths: list[float] = []
    steps = []
    for seed, case in zip(seeds(scale), runs, strict=True):
        seed %= 2**31
        widths = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
        by_width = [
            fresh_w1(lambda n, g, h=h, case=case: kde_resample(case.points, h, n, generator=g), case.test, seed)
            for h in widths
        ]
        bandwidths.append(widths[int(np.argmin(by_width))])
        found["kernels at their best bandwidth"].append(min(by_width))
        found.setdefault("kernels of width 0.05", []).append(by_width[4])
        centre = case.points.mean(0)
        _, _, axes = torch.linalg.svd(case.points - centre, full_matrices=False)
        scores = ((case.points - centre) @ axes[:2].mT).double().numpy()
        peer = mixture.GaussianMixture(20, random_state=seed).fit(scores)
        drawn = torch.as_tensor(peer.sample(len(case.test))[0]).float() @ axes[:2] + centre
        found.setdefault("scikit-learn GaussianMixture on PCA scores", []).append(w1_distance(drawn, case.test))
        thin = ppca_mixture(case.points, 20, 1, generator=seeded(seed))
        found.setdefault("mixture of 20 thin Gaussians", []).append(
            fresh_w1(lambda n, g, thin=thin: thin.sample(n, generator=g), case.test, seed)
        )
        start = time.perf_counter()
        trial = scale(smoke=2, full=40)
        WGANGP(max_iter=trial).fit(case.points)
        per_step = (time.perf_counter() - start) / trial
        steps.append(max(1, round(case.seconds / per_step)))
        gan = WGANGP(max_iter=steps[-1], random_state=seed).fit(case.points)
        found.setdefault("WGAN-GP of equal wall time", []).append(
            fresh_w1(lambda n, g, gan=gan: gan.sample(n, generator=g), case.test, seed)
        )
    rows = found | {"unperturbed": [r.plain for r in runs], "bandwidths": bandwidths, "steps of the GAN": steps}
    ratio = mean(found["selected"]) / mean(found["kernels at their best bandwidth"])
    note = "a kernel of no width draws the data again, which lie on the structure: W1 does not charge for memorising"
    return Claim("W1 selected over kernels at their best bandwidth", ratio, 1.0, "lower", rows, True, note)


def linear_oracles(scale: Scale) -> list[Claim]:
    """x = A z + σ ε: both engines against the Gaussian, and σ̂² against probabilistic PCA."""
    generator = seeded(scale.seed)
    A = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    sigma, nodes = 0.5, 10_000
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator) @ A.mT
    x = x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    eye = torch.eye(5, dtype=x.dtype)
    truth = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=x.dtype), A @ A.mT + sigma**2 * eye).log_prob(x)
    by_grid = exact_log_likelihood(x, lambda z: z @ A.mT, sigma, 2, num_nodes=nodes, generator=generator)
    precision = torch.eye(2, dtype=x.dtype) + A.mT @ A / sigma**2
    posterior = torch.linalg.inv(precision)
    q_mean, spread = x @ A @ posterior / sigma**2, 1.5 * posterior.diagonal()  # not the posterior, but near it
    by_samples = importance_log_likelihood(
        x, lambda z: z @ A.mT, sigma, q_mean, spread.log().expand(50, 2), num_samples=1000, generator=generator
    ).log_likelihood
    errors = {
        "exact": float((by_grid - truth).mean().abs()),
        "iwae": float((by_samples - truth).mean().abs()),
        "exact, a point": float((by_grid - truth).abs().mean()),
        "iwae, a point": float((by_samples - truth).abs().mean()),
    }
    line = torch.randn(400, 1, generator=generator) @ torch.tensor([[1.0, -0.5, 0.3, 0.8]])
    line = line + 0.3 * torch.randn(line.shape, generator=generator)
    fits = {}
    for s in (0.0, 0.5):
        network = torch.nn.Linear(1, 4)
        torch.nn.init.normal_(network.weight, generator=generator)
        torch.nn.init.zeros_(network.bias)
        model = PerturbedGenerativeMLE(
            network, 1, "exact", s, num_importance=3, max_iter=scale(smoke=5, full=2500), batch_size=400
        )
        fits[s] = model.fit(line)
    shift = (fits[0.5].sigma_ ** 2 - fits[0.0].sigma_ ** 2) / fits[0.5].perturbation_ ** 2
    closed = float(torch.linalg.eigvalsh(torch.cov(line.mT.double(), correction=0))[:-1].mean())
    return [
        Claim(
            "linear f: error of the mean log-likelihood, worse engine",
            max(errors["exact"], errors["iwae"]),
            1e-2,
            "lower",
            errors,
        ),
        Claim(
            "linear f: shift of sigma^2 over s^2",
            shift,
            (0.97, 1.03),
            "inside",
            {"sigma^2 at s=0": fits[0.0].sigma_ ** 2, "probabilistic PCA": closed},
            full_only=True,
        ),
    ]


CLAIMS: list[ClaimFunction] = [
    linear_oracles,
    collapse_and_repair,
    u_shape,
    ambient_dimension,
    where_it_does_not_help,
    digits_of_scikit_learn,
    peers,
]
