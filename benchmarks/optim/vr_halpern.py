"""Claims of Cai, Alacaoglu, Diakonikolas (ICLR 2024): Halpern's iteration with √n components a step.

Oracles: sums over all components, SciPy's linear programmes, and the recursions written out as loops. Peers in the same
run: Halpern, extragradient (EG) and anchored extragradient (EAG) with full passes. Every method gets the same number of
component evaluations; one epoch more pays for the closing certificate.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.optim._halpern_problems import RotatedSum, burglar_matrix, quadratic_game
from hesse.optim import (
    FiniteSumOperator,
    InclusionResult,
    MatrixGame,
    extra_anchored_gradient,
    extragradient,
    halpern,
    inclusion_residual,
    inexact_halpern,
    matrix_game,
    vr_forb,
    vr_halpern,
)
from hesse.optim.vr_halpern.estimators import ESTIMATORS

__all__ = ["CLAIMS"]


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * abs(seed) + stream)


def _geometric_mean(values: Iterable[float]) -> float:
    return math.exp(float(np.mean(np.log(list(values)))))


def _spread(values: list[float]) -> float:
    """The factor that one standard error of the mean logarithm stands for."""
    return math.exp(float(np.std(np.log(values), ddof=1)) / len(values) ** 0.5)


def cocoercive_sum(scale: Scale) -> list[Claim]:
    """Residual after 30 epochs on a sum that is cocoercive on average, and how the gain grows with n."""
    sizes = scale(smoke=(300, 1000, 3000), full=(1_000, 10_000, 100_000))
    repeats = scale(smoke=2, full=8)
    epochs = 30
    lam = torch.logspace(-5, 0, 10, dtype=torch.float64)
    eg_step = 1 / math.sqrt(1.25)
    residuals: dict[int, dict[str, list[float]]] = {}
    certificate_error = 0.0
    for size_stream, n in enumerate(sizes):
        found: dict[str, list[float]] = {}
        for repeat in range(repeats):
            stream = 100 * size_stream + repeat
            problem = RotatedSum(n, lam, _generator(scale.seed, stream))
            op, start = problem.operator, problem.start
            common = {"tol": 0.0, "max_epochs": epochs + 1}
            results = {
                "algorithm 1, 1/L": vr_halpern(
                    op, start, L=problem.L, generator=_generator(scale.seed, 500 + stream), **common
                ),
                "algorithm 1, 1/(4L)": vr_halpern(
                    op, start, L=problem.L, step="theory", generator=_generator(scale.seed, 500 + stream), **common
                ),
                "Halpern, 2/L_F": halpern(op, start, L=problem.L_full, **common),
                "EG": extragradient(op, start, step=eg_step, **common),
                "EAG": extra_anchored_gradient(op, start, step=eg_step, **common),
            }
            everything = torch.arange(n)
            for name, result in results.items():
                exact = float(op.each(result.u, everything).mean(0).norm())
                certificate_error = max(certificate_error, abs(result.residual / exact - 1))
                found.setdefault(name, []).append(exact)
            found.setdefault("start", []).append(float(problem.value(start).norm()))
        residuals[n] = found
    means = {n: {name: _geometric_mean(values) for name, values in found.items()} for n, found in residuals.items()}
    largest = means[sizes[-1]]
    ours, theory = largest["algorithm 1, 1/L"], largest["algorithm 1, 1/(4L)"]
    gains = [
        [h / a for h, a in zip(found["Halpern, 2/L_F"], found["algorithm 1, 1/L"], strict=True)]
        for found in residuals.values()
    ]
    slopes = [float(np.polyfit(np.log(sizes), np.log(gain), 1)[0]) for gain in zip(*gains, strict=True)]
    spreads = {name: _spread(values) for name, values in residuals[sizes[-1]].items()}
    rows = {"n": sizes[-1], "epochs": epochs, "seeds": repeats, "residuals": largest, "standard error, factor": spreads}
    return [
        Claim("Halpern's residual over Algorithm 1's", largest["Halpern, 2/L_F"] / ours, 2.8, "higher", rows, True),
        Claim("EG's residual over Algorithm 1's", largest["EG"] / ours, 4.0, "higher", full_only=True),
        Claim("EAG's residual over Algorithm 1's", largest["EAG"] / ours, 8.0, "higher", full_only=True),
        Claim("EG's residual over Algorithm 1's, step 1/(4L)", largest["EG"] / theory, 1.5, "higher", full_only=True),
        Claim(
            "slope of log gain over Halpern against log n",
            float(np.mean(slopes)),
            (0.2, 0.6),
            "inside",
            {
                "gain": {n: _geometric_mean(gain) for n, gain in zip(sizes, gains, strict=True)},
                "standard error": float(np.std(slopes, ddof=1)) / repeats**0.5,
            },
            full_only=True,
        ),
        Claim("certified residual against all components one by one, relative", certificate_error, 1e-6, "lower"),
    ]


def _inner_step(n: int, factor: float, batch_size: int = 1) -> float:
    p = batch_size / n
    return factor * math.sqrt(p * (1 - p)) / (math.sqrt(n) + 1)


def _game_runs(game: MatrixGame, epochs: int, seed: int, stream: int) -> dict[str, InclusionResult]:
    dense = game.matrix.to_dense()
    spectral, frobenius = float(torch.linalg.matrix_norm(dense, 2)), float(torch.linalg.matrix_norm(dense))
    op, start = game.operator, game.start
    common = {"resolvent": game.resolvent, "tol": 0.0, "max_epochs": epochs + 1}
    runs: dict[str, InclusionResult] = {}
    for factor in (0.9, 5.0):
        runs[f"EG {factor:g}/|A|"] = extragradient(op, start, step=factor / spectral, **common)
        runs[f"EAG {factor:g}/|A|"] = extra_anchored_gradient(op, start, step=factor / spectral, **common)
    for factor in (1.0, 5.0, 10.0):
        generator = _generator(seed, stream)
        runs[f"algorithm 1 {factor:g}/|A|_F"] = vr_halpern(
            op, start, step=factor / frobenius, generator=generator, **common
        )
    generator = _generator(seed, stream + 1)
    runs["algorithm 2 x5"] = inexact_halpern(
        op, start, L=frobenius, inner_step=_inner_step(op.n, 5.0), generator=generator, **common
    )
    return runs


def burglar_game(scale: Scale) -> list[Claim]:
    """Residual ‖z - P(z - F(z))‖ after 1000 epochs, wealth on the minimiser's side as in the authors' code, and not.

    With the wealth on the minimiser's columns the equilibrium is a pair of corners; with it on the maximiser's rows,
    as the matrix is written in the paper, both players mix, and nothing in the game is cocoercive.
    """
    n, epochs, repeats = scale(smoke=60, full=500), scale(smoke=20, full=1000), scale(smoke=1, full=3)
    claims = []
    for side, title in enumerate(("wealth on columns", "wealth on rows")):
        table: dict[str, list[float]] = {}
        for repeat in range(repeats):
            matrix = burglar_matrix(n, 1000 * abs(scale.seed) + repeat)
            game = matrix_game(matrix if side else matrix.T)
            runs = _game_runs(game, epochs, scale.seed, 1000 + 100 * side + 2 * repeat)
            for name, result in runs.items():
                certificate = inclusion_residual(game.operator, result.u, resolvent=game.resolvent)
                table.setdefault(name, []).append(certificate.residual)
        means = {name: _geometric_mean(values) for name, values in table.items()}
        first, second = means["algorithm 1 5/|A|_F"], means["algorithm 2 x5"]
        eg, eag = means["EG 5/|A|"], means["EAG 5/|A|"]
        rows = {"n": n, "epochs": epochs, "instances": repeats, "residuals": means, "each": table}
        claims += [
            Claim(f"{title}: EG's residual over Algorithm 1's, factor 5", eg / first, 1.4, "higher", rows, True),
            Claim(f"{title}: EAG's residual over Algorithm 1's, factor 5", eag / first, 2.0, "higher", full_only=True),
            Claim(f"{title}: EAG's residual over Algorithm 2's, factor 5", eag / second, 1.0, "higher", full_only=True),
        ]
    return claims


def equilibrium(scale: Scale) -> list[Claim]:
    """Duality gap and value of the game with 50 houses against the linear programme."""
    n = 50
    pure_epochs, mixed_epochs = scale(smoke=50, full=1000), scale(smoke=20, full=40_000)
    claims = []
    matrix = burglar_matrix(n, abs(scale.seed))
    frobenius = float(torch.linalg.matrix_norm(matrix))
    for side, title in enumerate(("wealth on columns, Algorithm 1", "wealth on rows, Algorithm 2")):
        game = matrix_game(matrix if side else matrix.T)
        common = {"resolvent": game.resolvent, "tol": 0.0, "generator": _generator(scale.seed, 2000 + side)}
        if side:
            result = inexact_halpern(
                game.operator,
                game.start,
                L=frobenius,
                batch_size=4,
                inner_step=_inner_step(n, 5.0, batch_size=4),
                max_epochs=mixed_epochs,
                **common,
            )
        else:
            result = vr_halpern(game.operator, game.start, step=5 / frobenius, max_epochs=pure_epochs, **common)
        value = _game_value(game.matrix.to_dense().numpy())
        x, y = game.strategies(result.u)
        worst, best = float(game.matrix.matvec(x).max()), float(game.matrix.rmatvec(y).min())
        rows = {
            "n": n,
            "epochs": result.epochs,
            "value": value,
            "x guarantees": worst,
            "y guarantees": best,
            "residual": result.residual,
        }
        claims.append(Claim(f"{title}: duality gap", worst - best, 1e-3, "lower", rows, full_only=True))
        # weak duality: a value outside the two guarantees would mean that one of the three is wrong
        outside = max(best - value, value - worst, 0.0)
        claims.append(Claim(f"{title}: value outside its bounds by", outside, 1e-8, "lower"))
    return claims


def _game_value(matrix: np.ndarray) -> float:
    """min over x of max_i (A x)_i."""
    rows, columns = matrix.shape
    solved = scipy.optimize.linprog(
        np.append(np.zeros(columns), 1.0),
        A_ub=np.hstack([matrix, -np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(columns), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * columns + [(None, None)],
    )
    if not solved.success:
        raise RuntimeError(f"linprog: {solved.message}")
    return float(solved.fun)


def restarts(scale: Scale) -> list[Claim]:
    """Linear convergence by restarts where the operator is strongly monotone, without its constant."""
    n, epochs, repeats = scale(smoke=1000, full=10_000), scale(smoke=40, full=200), scale(smoke=2, full=8)
    claims = []
    for exponent, bar in ((-1, 1e-7), (-2, 1e-3)):
        lam = torch.logspace(exponent, 0, 10, dtype=torch.float64)
        restarted, plain, unrestarted, counts = [], [], [], []
        for repeat in range(repeats):
            stream = 3000 - 100 * exponent + repeat
            problem = RotatedSum(n, lam, _generator(scale.seed, stream))
            first = float(problem.value(problem.start).norm())
            common = {"tol": 0.0, "max_epochs": epochs + 1}
            result = vr_halpern(
                problem.operator,
                problem.start,
                L=problem.L,
                restart="residual-halving",
                generator=_generator(scale.seed, 500 + stream),
                **common,
            )
            restarted.append(result.residual / first)
            counts.append(result.num_restarts)
            without = vr_halpern(
                problem.operator, problem.start, L=problem.L, generator=_generator(scale.seed, 500 + stream), **common
            )
            unrestarted.append(without.residual / first)
            plain.append(halpern(problem.operator, problem.start, L=problem.L_full, **common).residual / first)
        mean, peer = _geometric_mean(restarted), _geometric_mean(plain)
        rows = {
            "n": n,
            "epochs": epochs,
            "seeds": repeats,
            "largest": max(restarted),
            "standard error, factor": _spread(restarted),
            "restarts": counts,
            "Halpern, no restarts": peer,
            "Algorithm 1, no restarts": _geometric_mean(unrestarted),
        }
        name = f"smallest lam {10.0**exponent:g}"
        claims += [
            Claim(f"{name}: relative residual with restarts", mean, bar, "lower", rows, full_only=True),
            Claim(f"{name}: Halpern without restarts over it", peer / mean, 10.0, "higher", full_only=True),
        ]
    return claims


def recursions(scale: Scale) -> list[Claim]:
    """Estimates are unbiased along a fixed path; p = 1 and n = 1 give the deterministic iterations."""
    runs = scale(smoke=200, full=2000)
    lam = torch.logspace(-2, 0, 10, dtype=torch.float64)
    problem = RotatedSum(400, lam, _generator(scale.seed, 4000))
    op = problem.operator
    path = torch.randn(12, op.dim, dtype=torch.float64, generator=_generator(scale.seed, 4001)).cumsum(0)
    likely = torch.linspace(0.5, 2, op.n, dtype=torch.float64)
    worst: dict[str, float] = {}
    for stream, (name, kind) in enumerate(ESTIMATORS.items()):
        for importance in (None, likely):
            generator = _generator(scale.seed, 4010 + stream)
            q = None if importance is None else importance / importance.sum()
            ends = torch.stack([_follow(kind, op, path, q, generator) for _ in range(runs)])
            error = ends.mean(0) - problem.value(path[-1])
            worst[f"{name}, {'uniform' if q is None else 'importance'}"] = float(
                (error.abs() / (ends.std(0) / runs**0.5)).max()
            )
    anchored = vr_halpern(op, problem.start, L=problem.L, refresh_probability=1.0, tol=0.0, max_epochs=41)
    u = anchor = problem.start
    for k in range(40):
        u = 2 / (k + 4) * anchor + (1 - 2 / (k + 4)) * u - problem.value(u) / problem.L
    single = RotatedSum(1, lam, _generator(scale.seed, 4002))
    forb = vr_forb(single.operator, single.start, L=2.0, scale=0.5, num_steps=60)
    center, gamma = single.start, 0.45 / (0.5 * 2.0 + 1)

    def phi(v: Tensor) -> Tensor:
        return 0.5 * single.value(v) + v - center

    v = before = center
    for _ in range(60):
        v, before = v - gamma * (2 * phi(v) - phi(before)), v
    return [
        Claim("mean of g_k off F(u_k), in standard errors", max(worst.values()), 4.0, "lower", {"runs": runs} | worst),
        Claim("p = 1 against the anchored loop, relative", _relative(anchored.u, u), 1e-12, "lower"),
        Claim("VR-FoRB with n = 1 against FoRB, relative", _relative(forb, v), 1e-12, "lower"),
    ]


def _follow(kind: type, op: FiniteSumOperator, path: Tensor, q: Tensor | None, generator: torch.Generator) -> Tensor:
    estimate = kind.refreshed(op, path[0])
    for point in path[1:]:
        if q is None:
            index, weights = torch.randint(op.n, (20,), generator=generator), None
        else:
            index = torch.multinomial(q, 20, replacement=True, generator=generator)
            weights = 1 / (op.n * q[index])
        estimate = estimate.updated(op, point, index, weights)
    return estimate.value


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def few_components(scale: Scale) -> Claim:
    """The limit of the method: on the worst case of Ouyang and Xu, 200 components, full passes are ahead."""
    n, epochs = 200, scale(smoke=100, full=10_000)
    op = quadratic_game(n)
    start = torch.full((2 * n,), 1 / n, dtype=torch.float64)
    common = {"tol": 0.0, "max_epochs": epochs + 1}
    runs: dict[str, Callable[[], InclusionResult]] = {
        "algorithm 1, step 0.3": lambda: vr_halpern(
            op, start, step=0.3, generator=_generator(scale.seed, 5000), **common
        ),
        "Halpern, step 1": lambda: halpern(op, start, step=1.0, **common),
        "EG, step 0.5": lambda: extragradient(op, start, step=0.5, **common),
        "EAG, step 0.3": lambda: extra_anchored_gradient(op, start, step=0.3, **common),
    }
    residuals = {name: run().residual for name, run in runs.items()}
    return Claim(
        "limit, 200 components: Algorithm 1's residual over Halpern's",
        residuals["algorithm 1, step 0.3"] / residuals["Halpern, step 1"],
        1.0,
        "higher",
        {"epochs": epochs, "start": float(op.full(start).norm()), **residuals},
        full_only=True,
        note="above 1 the deterministic method is better: the limit stated in the documentation",
    )


CLAIMS: list[ClaimFunction] = [cocoercive_sum, burglar_game, equilibrium, restarts, recursions, few_components]
