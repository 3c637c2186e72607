"""Claims of the bilevel core: hypergradients against closed forms and peers, and what the baselines reach.

Oracles: closed forms of `hesse.bilevel.problems`; torchopt and betty at the same point and residual; scikit-learn's
RidgeCV and optuna for the choice of penalties.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.bilevel._core_implicit import by_higher, by_jaxopt
from benchmarks.bilevel._core_peers import ARMS, Point, by_hesse, by_torchopt, cold_logistic, large_logistic
from benchmarks.bilevel._core_table import table
from benchmarks.data import diabetes, digits, flip_labels, interleave, peak_rss_growth
from benchmarks.peers import require_peer
from hesse.bilevel import (
    AID,
    ITD,
    MASOBA,
    SABA,
    SOBA,
    TTSA,
    AmIGO,
    BilevelProblem,
    BilevelSolver,
    Budget,
    ExactProblem,
    StocBiO,
    hypergradient,
    problems,
    tasks,
    unrolled_hypergradient,
)

__all__ = ["CLAIMS"]


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * abs(seed) + stream)


def _regression(seed: int, n: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = _generator(seed, 1)
    X, X_valid = (torch.randn(n, d, dtype=torch.float64, generator=g) for _ in range(2))
    w = torch.randn(d, dtype=torch.float64, generator=g)
    t, t_valid = (A @ w + 0.3 * torch.randn(n, dtype=torch.float64, generator=g) for A in (X, X_valid))
    return X, t, X_valid, t_valid


def _cases(scale: Scale) -> dict[str, ExactProblem]:
    n, d = scale(smoke=(60, 10), full=(300, 60))
    X, t, X_valid, t_valid = _regression(scale.seed, n, d)
    return {
        "quadratic": problems.quadratic(d, 2 * d, condition=100.0, seed=scale.seed),
        "ridge": problems.ridge(X, t, X_valid, t_valid),
        "multi_ridge": problems.multi_ridge(8, n, d, seed=scale.seed),
        "logistic": problems.logistic(X, t.sign(), X_valid, t_valid.sign()),
    }


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def closed_forms(scale: Scale) -> list[Claim]:
    """Every implicit method against the closed form, at the exact lower solution and at one that was solved for."""
    exact: dict[str, float] = {}
    solved: dict[str, float] = {}
    sketched: dict[str, float] = {}
    differences: dict[str, float] = {}
    for name, case in _cases(scale).items():
        x = case.problem.x0 + 0.1
        y, truth = case.lower_solution(x), case.hypergradient(x)
        for method in ("dense", "cg", "minres"):
            found = hypergradient(case.problem, x, y, method=method, rtol=1e-13, max_steps=2000)
            exact[f"{name} {method}"] = _relative(found.grad, truth)
        found = hypergradient(case.problem, x, rtol=1e-12, max_steps=2000, lower_tol=1e-12)
        solved[name] = _relative(found.grad, truth)
        flat = case.problem.y_layout.flatten(y)
        curvature = torch.func.hessian(
            lambda u, case=case, x=x: case.problem.lower(x, case.problem.y_layout.unflatten(u), None)
        )(flat)
        smallest = float(torch.linalg.eigvalsh(curvature)[0])
        found = hypergradient(case.problem, x, y, method="nystrom", damping=1e-6 * smallest, rank=len(flat))
        sketched[name] = _relative(found.grad, truth)
        direction = torch.randn(len(x), dtype=x.dtype, generator=_generator(scale.seed, 2))
        slope = float(case.value(x + 1e-5 * direction) - case.value(x - 1e-5 * direction)) / 2e-5
        differences[name] = abs(float(truth @ direction) / slope - 1)
    return [
        Claim("dense, cg, minres: relative error at y*", max(exact.values()), 1e-9, "lower", exact),
        Claim("cg, lower level solved: relative error", max(solved.values()), 1e-8, "lower", solved),
        Claim("nystrom, full rank, damping 1e-6 mu", max(sketched.values()), 1e-4, "lower", sketched),
        Claim("closed form against central differences", max(differences.values()), 1e-6, "lower", differences),
    ]


def rates(scale: Scale) -> list[Claim]:
    """Neumann and unrolled errors fall by 1 - a mu a step; from y* both are the same series."""
    case = problems.quadratic(10, 20, condition=10.0, seed=scale.seed)
    x = case.problem.x0 + 0.1
    y, truth, a = case.lower_solution(x), case.hypergradient(x), 0.9
    claims = []
    for method in ("neumann", "unroll"):
        errors = {
            steps: _relative(
                hypergradient(case.problem, x, y, method=method, max_steps=steps, step_size=a, rtol=0.0).grad, truth
            )
            for steps in (80, 140)
        }
        slope = math.log(errors[140] / errors[80]) / 60
        ratio = slope / math.log(1 - a * 0.1)
        claims.append(Claim(f"{method}: slope over the predicted", ratio, (0.9, 1.1), "inside", {"errors": errors}))
    return claims


def agreement(scale: Scale) -> list[Claim]:
    """Implicit differentiation by torchopt and jaxopt, and unrolling by higher, of the same ridge problem."""
    case = _cases(scale)["ridge"]
    x = case.problem.x0
    y = case.lower_solution(x)
    zero = torch.zeros_like(y)
    point = Point(case.problem, x, y, zero + 1, 1e-12, 0, zero)
    ours, exact = by_hesse(point), case.hypergradient(x)
    data = _regression(scale.seed, *scale(smoke=(60, 10), full=(300, 60)))
    peers = {"torchopt": by_torchopt(point), "jaxopt": by_jaxopt(*data, x, y)}
    own = {name: _relative(found, exact) for name, found in {"hesse": ours, **peers}.items()}
    unrolled = unrolled_hypergradient(case.problem, x, zero, num_steps=50, step_size=0.1).grad
    through = _relative(unrolled, by_higher(case.problem, x, zero, 50, 0.1))
    return [
        Claim(
            f"agrees with {name} on ridge",
            _relative(ours, found),
            1e-6,
            "lower",
            {"error against the closed form": own} if name == "torchopt" else {},
        )
        for name, found in peers.items()
    ] + [Claim("unrolling agrees with higher on ridge", through, 1e-6, "lower", {"steps": 50})]


def speed(scale: Scale) -> list[Claim]:
    """The hypergradient of a large logistic regression at one residual, arms interleaved, CPU clock."""
    n, d = scale(smoke=(800, 80), full=(20_000, 2_000))
    point = large_logistic(n, d, scale.seed)
    reference = hypergradient(point.problem, point.x, point.y, rtol=1e-11, max_steps=2000).grad
    errors = {name: _relative(arm(point), reference) for name, arm in ARMS.items()}
    seconds = interleave({name: partial(arm, point) for name, arm in ARMS.items()}, 2, clock="cpu")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    peer = min(median["torchopt"], median["betty"])
    growth = {name: peak_rss_growth(arm, cold_logistic, n, d, scale.seed) for name, arm in ARMS.items()}
    rows = {
        "relative error": errors,
        "median seconds over the faster peer's": {name: value / peer for name, value in median.items()},
        "peak memory growth, bytes": growth,
        "steps of plain cg": point.num_steps,
    }
    smaller = min(growth["torchopt"], growth["betty"])
    return [
        Claim(
            "logistic: time over the faster peer's",
            median["hesse"] / peer,
            0.5,
            "lower",
            rows,
            full_only=True,
            note="warm and preconditioned, which no peer can be; betty's answer is far off, its products as many",
        ),
        Claim("logistic: memory over the smaller peer's", growth["hesse"] / smaller, 1.0, "lower", {}, full_only=True),
    ]


def _folds(X: Tensor, t: Tensor, count: int = 10) -> tuple[BilevelProblem, list[ExactProblem]]:
    """Cross-validation as a problem of blocks, a fold a block; and the folds one by one, for whoever solves exactly."""
    fold = torch.arange(len(X)) % count
    rows = [(fold != k, fold == k) for k in range(count)]
    fit, t_fit = torch.stack([X[inside] for inside, _ in rows]), torch.stack([t[inside] for inside, _ in rows])
    held, t_held = torch.stack([X[out] for _, out in rows]), torch.stack([t[out] for _, out in rows])

    def lower(x: Tensor, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        return (fit[i] @ y - t_fit[i]).square().mean() / 2 + (x.exp() * y.square()).sum() / 2

    def upper(x: Tensor, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        return (held[i] @ y - t_held[i]).square().mean() / 2

    zero = torch.zeros(X.shape[1], dtype=X.dtype)
    problem = BilevelProblem.from_blocks(upper, lower, zero, zero.repeat(count, 1))
    return problem, [problems.ridge(fit[k], t_fit[k], held[k], t_held[k]) for k in range(count)]


def _select(seed: int, num_trials: int) -> dict[str, float]:
    """One split: test errors and seconds of the three ways, 10-fold cross-validation in all of them but RidgeCV's."""
    linear_model: Any = require_peer("sklearn.linear_model")
    optuna: Any = require_peer("optuna")
    split = diabetes(300, seed=seed)
    noise = torch.randn(442, 90, dtype=torch.float64, generator=_generator(seed, 3))
    X, X_test = torch.cat([split.train_x, noise[:300]], dim=1), torch.cat([split.test_x, noise[300:]], dim=1)
    middle, spread = split.train_y.mean(), split.train_y.std()
    t, t_test = (split.train_y - middle) / spread, (split.test_y - middle) / spread
    problem, folds = _folds(X, t)

    def test_error(y: Tensor) -> float:
        return float((X_test @ y - t_test).square().mean())

    def refitted(x: Tensor) -> float:
        return test_error(problems.ridge(X, t, X, t).lower_solution(x))

    start = time.process_time()
    chosen = AID(problem, lr=10.0).run(Budget(iterations=10), trace_every=10).x
    gradient_seconds = time.process_time() - start
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: Any) -> float:
        x = torch.tensor([trial.suggest_float(f"x{j}", -8.0, 4.0) for j in range(X.shape[1])], dtype=torch.float64)
        return sum(float(fold.value(x)) for fold in folds)

    start = time.process_time()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=abs(seed)))
    study.optimize(objective, n_trials=num_trials)
    optuna_seconds = time.process_time() - start
    best = torch.tensor([study.best_params[f"x{j}"] for j in range(X.shape[1])], dtype=torch.float64)
    cv = linear_model.RidgeCV(alphas=torch.logspace(-3, 5, 60).numpy(), fit_intercept=False).fit(X.numpy(), t.numpy())
    return {
        "gradient": refitted(chosen),
        "optuna": refitted(best),
        "RidgeCV": test_error(torch.from_numpy(cv.coef_)),
        "gradient seconds over optuna's": gradient_seconds / optuna_seconds,
    }


def selection(scale: Scale) -> list[Claim]:
    """One penalty a feature, 90 of 100 features noise: by gradient, by RidgeCV's one penalty, by optuna's trials."""
    count = scale(smoke=1, full=5)
    runs = [_select(count * scale.seed + i, scale(smoke=20, full=200)) for i in range(count)]
    mean = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    rows = {"test errors": runs}
    ridge, trials = mean["gradient"] / mean["RidgeCV"], mean["gradient"] / mean["optuna"]
    return [
        Claim("per-feature ridge: test error over RidgeCV's", ridge, 0.95, "lower", rows, full_only=True),
        Claim("per-feature ridge: test error over optuna's", trials, 1.02, "lower", {}, full_only=True),
        Claim(
            "per-feature ridge: time over optuna's",
            mean["gradient seconds over optuna's"],
            0.1,
            "lower",
            {},
            full_only=True,
        ),
    ]


def _quadratic_solvers(case: ExactProblem) -> dict[str, Callable[[BilevelProblem], BilevelSolver]]:
    zero = case.problem.x0
    reduced = torch.stack([case.hypergradient(e) - case.hypergradient(zero) for e in torch.eye(len(zero)).to(zero)])
    lr = 1 / float(torch.linalg.matrix_norm(reduced, 2))
    return {
        "AID": AID,
        "ITD": partial(ITD, lr=lr, lr_lower=0.9),
        "StocBiO": partial(StocBiO, lr=lr, lr_lower=0.9),
        "AmIGO": partial(AmIGO, lr=lr, lr_lower=0.9),
        "TTSA": partial(TTSA, lr=lr, lr_lower=0.9),
        "SOBA": partial(SOBA, lr=lr / 2, lr_lower=0.9),
        "SABA": partial(SABA, lr=lr / 4, lr_lower=0.4),
        "MASOBA": partial(MASOBA, lr=lr / 8, lr_lower=0.9),
    }


def baselines(scale: Scale) -> list[Claim]:
    """How far each baseline takes the norm of the exact hypergradient down on a quadratic, at equal calls."""
    options: dict[str, Any] = {"condition": 1.5, "seed": scale.seed}
    reached: dict[str, float] = {}
    for name, make in _quadratic_solvers(problems.quadratic(6, 10, **options)).items():
        sampled: dict[str, Any] = {"num_samples": 32, "batch_size": 8, "noise": 0.3} if name == "SABA" else {}
        solver = make(problems.quadratic(6, 10, **options, **sampled).problem)
        batch = 8 if name == "SABA" else 1  # calls are counted by the sample
        result = solver.run(Budget(oracle_calls=scale(smoke=2_000, full=60_000) * batch, seconds=120.0), trace_every=20)
        norms = result.column("exact_norm")
        reached[name] = min(norms) / norms[0]
    steady = {name: value for name, value in reached.items() if name != "TTSA"}
    return [
        Claim(
            "baselines but TTSA: gradient over the first", max(steady.values()), 1e-3, "lower", reached, full_only=True
        ),
        Claim(
            "TTSA: gradient over the first",
            reached["TTSA"],
            1e-3,
            "lower",
            {},
            full_only=True,
            note="the random length of its series is noise of its own, which steps of k^-3/5 average out but slowly",
        ),
    ]


PROTOTYPES = {"SOBA": 0.934, "MASOBA": 0.940, "AmIGO": 0.924, "StocBiO": 0.883}
"""Test accuracies that prototypes of these solvers reached on the same task in six seconds."""

CLEANERS = {
    "SOBA": partial(SOBA, lr=1000.0, lr_lower=1.0, decay=0.2),
    "MASOBA": partial(MASOBA, lr=1000.0, lr_lower=0.5),
    "AmIGO": partial(AmIGO, lr=1000.0, lr_lower=0.5),
    "StocBiO": partial(StocBiO, lr=1000.0, lr_lower=0.5),
}


def _clean(make: Callable[[BilevelProblem], BilevelSolver], seed: int, seconds: float) -> dict[str, float]:
    """One split, half of 1,000 labels replaced: accuracy on the test rows, and whether low weights find the labels."""
    split = digits(1300, seed=seed)
    labels = split.train_y[:1000]
    noisy, _ = flip_labels(labels, 0.5, 10, seed=seed)
    problem = tasks.hyper_cleaning(
        split.train_x[:1000],
        noisy,
        split.train_x[1000:],
        split.train_y[1000:],
        num_classes=10,
        batch_size=100,
        seed=seed,
    )
    result = make(problem).run(Budget(seconds=seconds), trace_every=10**6)
    guess = (split.test_x @ result.y["weight"] + result.y["bias"]).argmax(1)
    wrong = noisy != labels
    return {
        "accuracy": float((guess == split.test_y).double().mean()),
        "AUROC of finding wrong labels": float((result.x[~wrong][:, None] > result.x[wrong][None]).double().mean()),
        "calls": float(result.counts.calls),
    }


def cleaning(scale: Scale) -> list[Claim]:
    """Digits with half of the labels replaced, at equal seconds: means over splits, which differ more than solvers."""
    count, seconds = scale(smoke=1, full=5), scale(smoke=0.5, full=6.0)
    claims = []
    for name, bar in PROTOTYPES.items():
        runs = [_clean(CLEANERS[name], count * scale.seed + i, seconds) for i in range(count)]
        columns = {key: [run[key] for run in runs] for key in runs[0]}
        accuracies = columns["accuracy"]
        error = statistics.stdev(accuracies) / math.sqrt(count) if count > 1 else None
        rows = {**columns, "standard error": error}
        claims.append(
            Claim(
                f"hyper-cleaning: accuracy of {name}", statistics.fmean(accuracies), bar, "higher", rows, full_only=True
            )
        )
    return claims


CLAIMS: list[ClaimFunction] = [
    closed_forms,
    rates,
    agreement,
    speed,
    selection,
    baselines,
    cleaning,
    table,
]
