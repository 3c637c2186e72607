"""Claims of Fang et al. (ICLR 2024): Tucker and CP models of tensors with continuous indices.

Oracles: the functions the data were made of; the cells that were removed from measured grids; a dense Gaussian process.
Peers in the same run, on the same entries: masked Tucker and CP of tensorly over bins, Gaussian processes on the raw
coordinates, gradient boosting. All FunBaT runs have the defaults but for what their row says.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import interleave
from benchmarks.gp._funbat_peers import boosted_trees, gaussian_processes, rmse, tensorly_cells
from benchmarks.peers import require_peer
from hesse.gp.funbat import FunBaT, MaternSSM, kalman_smoother

__all__ = ["CLAIMS"]

NOISE = 0.1
Z90 = 1.6448536269514722  # half width of a 90 % interval, in standard deviations


@dataclass(frozen=True, slots=True)
class Problem:
    """Noisy entries to learn from, and points where the truth is known."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    truth: np.ndarray
    y_test: np.ndarray  # the truth with fresh noise


def _seeds(scale: Scale, stream: int, count: int) -> list[int]:
    return [(10_000 * scale.seed + 100 * stream + i) % 2**31 for i in range(count)]


def _fit(x: np.ndarray, y: np.ndarray, seed: int, **options: Any) -> FunBaT:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runs cut short at smoke size
        return FunBaT(random_state=seed, **options).fit(x, y)


def _curves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.exp(-2 * x[:, 0]) * np.sin(1.5 * np.pi * x[:, 0])
    return first, np.sin(2 * np.pi * x[:, 1]) ** 2 * np.cos(2 * np.pi * x[:, 1])


def two_curves(scale: Scale) -> list[Claim]:
    """The product of two known curves, 650 points, noise 0.02: error, noise and both curves."""
    errors, noises, correlations, sweeps = [], [], [], []
    for seed in _seeds(scale, 1, scale(smoke=1, full=5)):
        rng = np.random.default_rng(seed)
        x, x_test = rng.random((650, 2)), rng.random((1000, 2))
        first, second = _curves(x)
        y = first * second + 0.02 * rng.standard_normal(650)
        model = _fit(x, y, seed, rank=1, form="cp")
        errors.append(rmse(model.predict(x_test), np.multiply(*_curves(x_test))))
        noises.append(model.noise_ / 0.02)
        grid = np.linspace(0, 1, 200)
        wanted = _curves(np.stack([grid, grid], axis=1))
        found = [model.factor(mode, grid)[0][:, 0] for mode in (0, 1)]
        correlations.append(min(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(found, wanted, strict=True)))
        sweeps.append(model.n_iter_)
    off = max(abs(n - 1) for n in noises)
    return [
        Claim("two curves: worst test RMSE", max(errors), 0.010, "lower", {"RMSE": errors, "sweeps": sweeps}),
        Claim("two curves: noise off by at most", off, 0.1, "lower", {"estimate over 0.02": noises}),
        Claim("two curves: least correlation with the truth", min(correlations), 0.995, "higher"),
    ]


def _cube(seed: int, count: int) -> Problem:
    rng = np.random.default_rng(seed)
    core, x = rng.standard_normal((2, 2, 2)), rng.random((count + 1000, 3))
    a, b, c = np.pi * x.T
    factors = (
        np.stack([np.sin(2 * a), np.cos(3 * a)]),
        np.stack([np.exp(-2 * x[:, 1]) * np.sin(4 * b), 2 * x[:, 1] ** 2 - 1]),
        np.stack([x[:, 2] * np.sin(6 * c), np.cos(2 * c)]),
    )
    f = np.einsum("abc,an,bn,cn->n", core, *factors)
    f /= f.std()
    y = f + NOISE * rng.standard_normal(len(f))
    return Problem(x[:count], y[:count], x[count:], f[count:], y[count:])


def cube(scale: Scale) -> list[Claim]:
    """A Tucker function of three variables, 600 points, against every peer; noise and intervals."""
    ours: dict[str, list[float]] = {}
    peers: dict[str, list[float]] = {}
    noises, covers, fractions = [], [], []
    best_cells = []
    arms: dict[str, dict[str, Any]] = {
        "FunBaT": {},
        "FunBaT R=2": {"rank": 2},
        "FunBaT CP R=3": {"form": "cp"},
        "FunBaT, 400 points": {},
    }
    for seed in _seeds(scale, 2, scale(smoke=1, full=5)):
        p = _cube(seed, scale(smoke=150, full=600))
        for name, options in arms.items():
            count = scale(smoke=100, full=400) if "400" in name else len(p.y)
            model = _fit(p.x[:count], p.y[:count], seed, **options, **scale(smoke={"max_iter": 10}, full={}))
            mean, std = model.predict(p.x_test, return_std=True)
            ours.setdefault(name, []).append(rmse(mean, p.truth))
            if name == "FunBaT":
                noises.append(model.noise_ / NOISE)
                covers.append(float(np.mean(np.abs(p.y_test - mean) <= Z90 * std)))
        data = (p.x, p.y, p.x_test, p.truth)
        sides, ranks = scale(smoke=(10,), full=(10, 20, 40)), scale(smoke=(2,), full=(2, 3, 4))
        cells = tensorly_cells(*data, bins=[(n,) * 3 for n in sides], ranks=ranks, steps=scale(smoke=10, full=60))
        best = min(cells, key=cells.__getitem__)
        best_cells.append(best)
        fractions.append(ours["FunBaT"][-1] / cells[best])
        found = {"tensorly, best cell": cells[best]} | gaussian_processes(*data, seed) | boosted_trees(*data, seed)
        for name, error in found.items():
            peers.setdefault(name, []).append(error)
    rows = {"ours": ours, "peers": peers, "best cells": best_cells}
    off = max(abs(n - 1) for n in noises)
    return [
        Claim("cube: worst test RMSE", max(ours["FunBaT"]), 0.08, "lower", rows, full_only=True),
        Claim("cube: RMSE over that of the best tensorly cell, worst", max(fractions), 0.25, "lower",
              {"ratios": fractions}, full_only=True, note="the cell is chosen by its test error"),
        Claim("cube: noise off by at most", off, 0.1, "lower", {"estimate over 0.1": noises}, full_only=True),
        Claim("cube: coverage of 90 % intervals", fmean(covers), (0.85, 0.95), "inside",
              {"coverage": covers, "spread over seeds": stdev(covers) if len(covers) > 1 else math.nan},
              full_only=True),
    ]  # fmt: skip


def _el_nino() -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Sea-surface temperature off Peru in Celsius, by year (1950 to 2010) and month; statsmodels ships it."""
    table = require_peer("statsmodels.datasets.elnino").load_pandas().data.to_numpy(float)
    grid = table[:, 1:]
    years, months = np.meshgrid(table[:, 0], np.arange(12.0), indexing="ij")
    return np.stack([years.ravel(), months.ravel()], 1), grid.ravel(), grid.shape


def _seattle() -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Air temperature in Fahrenheit in Seattle in 2010, every third day by hour; vega_datasets ships it."""
    table = require_peer("vega_datasets").data.seattle_temps()
    date = table["date"].dt
    x = np.stack([date.dayofyear.to_numpy(float), date.hour.to_numpy(float)], 1)
    chosen = x[:, 0] % 3 == 1
    return x[chosen], table["temp"].to_numpy(float)[chosen], (len(np.unique(x[chosen, 0])), 24)


REAL = {"sea surface": _el_nino, "station": _seattle}


def measured_grids(scale: Scale) -> list[Claim]:
    """Two measured space-time grids with 70 % of their cells removed; our rank and nu are chosen by the bound."""
    claims = []
    for name, load in REAL.items():
        x, y, shape = load()
        errors: dict[str, list[float]] = {}
        ratios, against_tensorly, choices = [], [], []
        for seed in _seeds(scale, 3, scale(smoke=1, full=3)):
            order = np.random.default_rng(seed).permutation(len(y))
            head, tail = order[: int(0.3 * len(y))], order[int(0.3 * len(y)) :]
            sweeps, restarts = scale(smoke=(2, 2), full=(40, 10))
            models = [
                _fit(x[head], y[head], seed, rank=rank, nu=nu, max_iter=sweeps, n_restarts=restarts)
                for rank, nu in scale(smoke=((2, 0.5),), full=tuple(product((2, 3, 4, 5, 6), (0.5, 1.5))))
            ]
            options = max(models, key=lambda m: m.elbo_).get_params() | {"learn_hyper": True}
            options.pop("random_state")
            best = _fit(x[head], y[head], seed, **options)
            choices.append(repr(best))
            data = (x[head], y[head], x[tail], y[tail])
            cells = tensorly_cells(*data, bins=[shape], ranks=scale(smoke=(1,), full=(1, 2, 3, 4)), steps=60)
            found = {"FunBaT": rmse(best.predict(x[tail]), y[tail]), "tensorly, best cell": min(cells.values())}
            found |= boosted_trees(*data, seed)
            if scale(smoke=False, full=True):
                found |= gaussian_processes(*data, seed)
            for key, error in found.items():
                errors.setdefault(key, []).append(error)
            ratios.append(found["FunBaT"] / min(e for key, e in found.items() if key != "FunBaT"))
            against_tensorly.append(found["FunBaT"] / found["tensorly, best cell"])
        rows = {"RMSE": errors, "chosen by the bound": choices, "ratios": ratios}
        claims += [
            Claim(f"{name}: RMSE over that of the best peer", fmean(ratios), 1.02, "lower", rows, full_only=True),
            Claim(f"{name}: RMSE over that of tensorly", fmean(against_tensorly), 0.9, "lower", full_only=True),
        ]
    return claims


def linear_cost(scale: Scale) -> Claim:
    """CPU time of a sweep at 1,000 and 10,000 entries; the dense process is timed at the smaller and extrapolated."""
    sizes = scale(smoke=(200, 400), full=(1000, 10_000))
    steps = 2
    problems = {n: _cube(scale.seed, n) for n in sizes}
    arms: dict[str, Callable[..., Any]] = {
        str(n): lambda p=p: _fit(p.x, p.y, 0, rank=3, n_restarts=1, max_iter=steps, tol=0.0)
        for n, p in problems.items()
    }
    process = require_peer("sklearn.gaussian_process")
    small = problems[sizes[0]]
    kernel = process.kernels.Matern(0.3, nu=1.5)
    arms["dense"] = lambda: process.GaussianProcessRegressor(kernel, alpha=0.01, optimizer=None).fit(small.x, small.y)
    seconds = {name: median(times) for name, times in interleave(arms, scale(smoke=1, full=5), clock="cpu").items()}
    growth = seconds[str(sizes[1])] / seconds[str(sizes[0])]
    rows = {f"sweep over {n} entries, ms": 1e3 * seconds[str(n)] / steps for n in sizes} | {
        f"dense GP at {sizes[0]}, one likelihood, ms": 1e3 * seconds["dense"],
        f"dense GP at {sizes[1]}, skipped; (N/n)^3 times that, s": seconds["dense"] * (sizes[1] / sizes[0]) ** 3,
    }
    return Claim("ten times the entries: time of a sweep times", growth, 13.0, "lower", rows, full_only=True)


def exactness(scale: Scale) -> list[Claim]:
    """The smoother against a dense Gaussian process on 60 irregular points, and the bound without damping."""
    process = require_peer("sklearn.gaussian_process")
    rng = np.random.default_rng(scale.seed)
    t = np.sort(rng.random(60))
    y = np.sin(6 * t) + 0.1 * rng.standard_normal(60)
    gaps, likelihoods = {}, {}
    for nu in (0.5, 1.5, 2.5):
        peer = process.GaussianProcessRegressor(process.kernels.Matern(0.3, nu=nu), alpha=0.01, optimizer=None)
        peer.fit(t[:, None], y)
        mean, std = peer.predict(t[:, None], return_std=True)
        precision, shift = torch.full((60, 1, 1), 100.0, dtype=torch.float64), torch.as_tensor(100 * y[:, None])
        chain = kalman_smoother(MaternSSM(nu, 0.3), torch.as_tensor(t), precision, shift)
        gap = max(
            np.abs(chain.mean[:, 0].numpy() - mean).max(), np.abs(chain.covariance[:, 0, 0].numpy() - std**2).max()
        )
        gaps[f"nu={nu:g}"] = float(gap)
        ours = float(chain.log_normalizer) - float(np.sum(50 * y**2)) - 30 * math.log(2 * math.pi * 0.01)
        likelihoods[f"nu={nu:g}"] = abs(ours - peer.log_marginal_likelihood_value_)
    p = _cube(scale.seed, 200)
    history = _fit(p.x, p.y, 0, damping=0.0, tol=0.0, max_iter=scale(smoke=10, full=60)).elbo_history_
    fall = max(0.0, float(-np.diff(history).min()))
    return [
        Claim("smoother: mean and variance off a dense GP by", max(gaps.values()), 1e-9, "lower", gaps),
        Claim("smoother: log likelihood off a dense GP by", max(likelihoods.values()), 1e-8, "lower", likelihoods),
        Claim("bound without damping: largest fall, nats", fall, 1e-8, "lower"),
    ]


CLAIMS: list[ClaimFunction] = [two_curves, cube, measured_grids, linear_cost, exactness]
