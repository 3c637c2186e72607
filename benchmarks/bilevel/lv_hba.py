"""Claims of LV-HBA: its value function, two toys in closed form, and learnt costs of a noisy-label machine.

Oracles: central differences; every active set tried; closed forms of `hesse.bilevel.problems`; the exact lower
solution at the costs learnt; implicit differentiation through cvxpylayers and qpth in the same run.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.bilevel._lv_peers import LAYERS, descend
from benchmarks.data import breast_cancer, flip_labels, interleave
from benchmarks.peers import require_peer
from hesse.bilevel import (
    LVHBA,
    BilevelProblem,
    Budget,
    Certificate,
    SoftMarginRows,
    problems,
    proximal_lagrangian_value,
    solve_support_vectors,
    support_vector_costs,
)

__all__ = ["CLAIMS"]

Vector = Callable[[Tensor], Tensor]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _affine(seed: int, n: int = 8, p: int = 3) -> tuple[Any, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """A convex quadratic with affine rows that 0 meets at x = 0, and its solution by trying every active set."""
    g = torch.Generator().manual_seed(seed)
    root, R, A, B = _normal(g, n, n), _normal(g, n, n), _normal(g, p, n), _normal(g, p, n)
    q, b, Q = _normal(g, n), torch.rand(p, dtype=torch.float64, generator=g), root @ root.T / n

    def rows(x: Tensor, y: Tensor) -> Tensor:
        return A @ y + B @ x - b

    def exact(x: Tensor) -> tuple[Tensor, Tensor]:
        for size in range(p + 1):
            for active in combinations(range(p), size):
                C, zero = A[list(active)], torch.zeros(size, size, dtype=torch.float64)
                system = torch.cat([torch.cat([Q, C.T], 1), torch.cat([C, zero], 1)])
                both = torch.linalg.solve(system, torch.cat([-q - R @ x, (b - B @ x)[list(active)]]))
                lam = torch.zeros(p, dtype=torch.float64)
                lam[list(active)] = both[n:]
                if float(rows(x, both[:n]).max()) < 1e-9 and float(lam.min()) > -1e-9:
                    return both[:n], lam
        raise ArithmeticError("no active set solves the lower level")

    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: y @ Q @ y / 2 + (q + R @ x) @ y,
        x0=torch.zeros(n, dtype=torch.float64),
        y0=torch.zeros(n, dtype=torch.float64),
        constraint=rows,
    )
    return problem, exact


def _differences(value: Vector, at: Tensor, step: float = 1e-5) -> Tensor:
    unit = step * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(value(at + e) - value(at - e)) / (2 * step) for e in unit])


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def value_function(scale: Scale) -> list[Claim]:
    """Gradients of v by autograd against central differences, and the sign of the gap; problems of 8 + 8 and 3 rows."""
    errors: dict[str, float] = {"x": 0.0, "y": 0.0, "z": 0.0}
    least, at_solution, count = math.inf, 0.0, 0
    num_points = scale(smoke=10, full=200)
    for i in range(scale(smoke=1, full=5)):
        problem, exact = _affine(1000 * abs(scale.seed) + i)
        g = torch.Generator().manual_seed(1000 * abs(scale.seed) + 500 + i)
        point = {"x": _normal(g, 8), "y": _normal(g, 8), "z": _normal(g, 3).abs()}

        def value(point: dict[str, Tensor], problem: Any = problem) -> Tensor:
            return proximal_lagrangian_value(problem, point["x"], point["y"], point["z"], tol=1e-12).value

        leaves = {name: t.clone().requires_grad_() for name, t in point.items()}
        grads = torch.autograd.grad(value(leaves), list(leaves.values()))
        for (name, at), grad in zip(point.items(), grads, strict=True):
            expected = _differences(lambda t, name=name, point=point: value(point | {name: t}), at)
            errors[name] = max(errors[name], _relative(grad, expected))
        while count < num_points * (i + 1) // scale(smoke=1, full=5):
            x, y, z = _normal(g, 8), _normal(g, 8), _normal(g, 3).abs()
            if float(problem.constraint(x, y).max()) > 0:
                continue
            count += 1
            best, lam = exact(x)
            near = 10 ** (-8 * float(torch.rand((), generator=g)))  # most points far from a solution prove little
            y, z = best + near * (y - best), lam + near * (z - lam)
            least = min(least, float(problem.lower(x, y, None) - value({"x": x, "y": y, "z": z})))
            gap = problem.lower(x, best, None) - value({"x": x, "y": best, "z": lam})
            at_solution = max(at_solution, abs(float(gap)))
    return [
        Claim("v: relative error of its gradients", max(errors.values()), 1e-6, "lower", errors),
        Claim("gap on feasible points, the least", least, -1e-10, "higher", {"points": count}),
        Claim("gap at lower solutions, the largest", at_solution, 1e-8, "lower", {"points": count}),
    ]


@dataclass(frozen=True, slots=True)
class _Toy:
    x: float
    y: float
    extrapolated: float
    multiplier: float
    cpu_seconds: float
    certificate: Certificate


def _solve(case: Any, y: Tensor, multiplier: float, num_steps: int, **options: Any) -> _Toy:
    start = time.process_time()
    solver = LVHBA(case.problem, polish_steps=0, **options)
    solver.run(Budget(iterations=num_steps), trace_every=num_steps)
    cpu = time.process_time() - start
    solver.polish_steps = 1000
    result = solver.run(Budget(iterations=num_steps), trace_every=num_steps)
    certificate: Certificate = result.extra["certificate"]
    pair = certificate.extrapolated or (result.x, result.y)
    return _Toy(
        x=_relative(result.x, case.solution),
        y=_relative(result.y, y),
        extrapolated=max(_relative(pair[0], case.solution), _relative(pair[1], y)),
        multiplier=abs(float(certificate.multipliers) - multiplier),
        cpu_seconds=cpu,
        certificate=certificate,
    )


def _figures(toy: _Toy) -> dict[str, float]:
    certificate = toy.certificate
    return {
        "error of x": toy.x,
        "error of y": toy.y,
        "error extrapolated in 1/c": toy.extrapolated,
        "error of the multiplier": toy.multiplier,
        "CPU seconds": toy.cpu_seconds,
        "gap": certificate.gap,
        "violation": certificate.violation,
        "residual of the polished y": certificate.polished_residual,
        "f": certificate.upper_value,
        "f at the polished y": certificate.polished_upper_value,
    }


PUBLISHED = {"gamma": (10.0, 10.0), "lr_x": 0.008, "lr_saddle": 0.01, "lr_z": 0.02, "c0": 0.025, "p": 0.3}
"""Step sizes of the authors' script for this toy."""


def many_solutions(scale: Scale) -> list[Claim]:
    """A lower level that is convex, not strongly, at two sizes with the same settings; and as the script has it."""
    num_steps = scale(smoke=300, full=10_000)
    toys: dict[int, _Toy] = {}
    for n in scale(smoke=(10, 20), full=(100, 1000)):
        case: Any = problems.equality_toy(n)
        toys[n] = _solve(case, case.lower_solution(case.solution), -1.0, num_steps)
    small, large = toys.values()
    same: Any = problems.equality_toy(scale(smoke=10, full=100))
    exact = same.lower_solution(same.solution)
    published = _solve(same, exact, -1.0, num_steps, scale_rows=False, **PUBLISHED)
    scaled = _solve(same, exact, -1.0, num_steps, **PUBLISHED)
    rows = {str(n): _figures(toy) for n, toy in toys.items()}
    spread = abs(small.x / large.x - 1)
    return [
        Claim(
            "equality toy: error of x and y, the larger",
            max(toy_error for toy in toys.values() for toy_error in (toy.x, toy.y)),
            1e-2,
            "lower",
            rows,
            full_only=True,
        ),
        Claim("equality toy: errors at the two sizes differ by", spread, 0.02, "lower", {}, full_only=True),
        Claim(
            "equality toy: CPU seconds, the larger",
            max(t.cpu_seconds for t in toys.values()),
            10.0,
            "lower",
            {},
            full_only=True,
        ),
        Claim(
            "equality toy: error of published steps, rows not scaled",
            max(published.x, published.y),
            1.0,
            "higher",
            {"rows not scaled": _figures(published), "rows scaled": _figures(scaled)},
            full_only=True,
            note="that they do not converge here is the claim",
        ),
        Claim(
            "equality toy: error extrapolated over error",
            max(toy.extrapolated / max(toy.x, toy.y) for toy in toys.values()),
            0.5,
            "lower",
            {},
            full_only=True,
        ),
    ]


def inequality(scale: Scale) -> list[Claim]:
    """An inequality that is active at the solution, at two sizes, and one that is idle."""
    num_steps = scale(smoke=300, full=10_000)
    toys: dict[str, _Toy] = {}
    for n in scale(smoke=(5, 10), full=(20, 200)):
        for name, bound, multiplier in (("active", None, 0.8), ("idle", 5.0 * n, 0.0)):
            case: Any = problems.inequality_toy(n, bound=bound, seed=scale.seed)
            y = case.lower_solution(case.solution)
            toys[f"{name}, n = {n}"] = _solve(case, y, multiplier, num_steps)
    rows = {name: _figures(toy) for name, toy in toys.items()}
    worst = max(max(toy.x, toy.y) for toy in toys.values())
    multiplier = max(toy.multiplier for toy in toys.values())
    return [
        Claim("inequality toy: error of x and y, the largest", worst, 1.5e-2, "lower", rows, full_only=True),
        Claim("inequality toy: error of the multiplier", multiplier, 1e-3, "lower", {}, full_only=True),
    ]


SETTINGS: dict[str, Any] = {
    "gamma": (10.0, 10.0),
    "lr_x": 2.5,
    "lr_y": 0.05,
    "lr_saddle": 0.05,
    "lr_z": 0.1,
    "c0": 0.01,  # the upper loss counts a hundredfold
    "p": 0.3,
    "polish_steps": 0,
}


@dataclass(frozen=True, slots=True)
class _Machine:
    """A split of the tumours with flipped training labels, and how its solutions are judged."""

    X: Tensor
    t: Tensor
    flipped: Tensor
    test: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    problem: BilevelProblem

    def loss(self, y: dict[str, Tensor]) -> float:
        return float(self.problem.upper(self.problem.x0, y, None))

    def accuracy(self, y: dict[str, Tensor]) -> float:
        X, t = self.test
        return float(((X @ y["weight"] + y["bias"]).sign() == t).double().mean())

    def exact(self, x: Tensor) -> dict[str, Tensor]:
        return solve_support_vectors(self.X, self.t, x.exp())

    def auroc(self, x: Tensor) -> float:
        return float((x[~self.flipped][:, None] > x[self.flipped][None]).double().mean())

    def shared(self) -> dict[str, Tensor]:
        """The best of 24 costs that all rows share, by the loss on the trusted rows."""
        costs = torch.logspace(-5, 2, 24, dtype=torch.float64)
        return min((solve_support_vectors(self.X, self.t, cost) for cost in costs), key=self.loss)

    def trusted_only(self) -> dict[str, Tensor]:
        """A machine trained on the trusted rows alone, at cost 1."""
        return solve_support_vectors(*self.valid, torch.tensor(1.0, dtype=torch.float64))


def _machine(noise: float, seed: int) -> _Machine:
    split = breast_cancer(300, seed=seed)
    noisy, flipped = flip_labels(split.train_y, noise, 2, seed=seed)
    t, t_rest = (2 * noisy - 1).double(), (2 * split.test_y - 1).double()
    valid, test = (split.test_x[:135], t_rest[:135]), (split.test_x[135:], t_rest[135:])
    problem = support_vector_costs(split.train_x, t, *valid)
    return _Machine(split.train_x, t, flipped, test, valid, problem)


def learned_costs(scale: Scale) -> list[Claim]:
    """Flipped labels: the costs learnt, judged by the exact machine at them, never by the w that f was fitted to."""
    levels = scale(smoke=(0.4,), full=(0.2, 0.3, 0.4))
    seeds = [3 * scale.seed + i for i in range(scale(smoke=1, full=3))]
    num_steps = scale(smoke=60, full=1500)
    rows: dict[str, Any] = {}
    ratios: dict[float, list[float]] = {level: [] for level in levels}
    aurocs, seconds = [], []
    for seed in seeds:
        start = time.process_time()
        for level in levels:
            machine = _machine(level, seed)
            result = LVHBA(machine.problem, **SETTINGS).run(Budget(iterations=num_steps), trace_every=num_steps)
            exact, shared = machine.exact(result.x), machine.shared()
            ratios[level].append(machine.loss(exact) / machine.loss(shared))
            aurocs.append(machine.auroc(result.x))
            rows[f"noise {level:g}, split {seed}"] = {
                "loss, exact at the costs learnt": machine.loss(exact),
                "loss, best shared cost": machine.loss(shared),
                "AUROC of flipped rows": aurocs[-1],
                "test accuracy, exact at the costs learnt": machine.accuracy(exact),
                "test accuracy, best shared cost": machine.accuracy(shared),
                "test accuracy, trusted rows alone": machine.accuracy(machine.trusted_only()),
                "test accuracy of the raw w, fitted to the trusted rows": machine.accuracy(result.y),
            }
        seconds.append(time.process_time() - start)
    rows["loss over the best shared cost's"] = {str(level): ratio for level, ratio in ratios.items()}
    return [
        Claim(
            "svm, 40 % noise: loss over the best shared cost's, the largest",
            max(ratios[0.4]),
            0.35,
            "lower",
            rows,
            full_only=True,
        ),
        Claim(
            "svm, 20 to 40 % noise: AUROC of flipped rows, the least", min(aurocs), 0.90, "higher", {}, full_only=True
        ),
        Claim(
            "svm: CPU seconds, three noise levels",
            statistics.median(seconds),
            30.0,
            "lower",
            {"all": seconds},
            full_only=True,
        ),
    ]


def _first_below(losses: list[float], seconds: list[float], bar: float) -> float:
    return next((second for loss, second in zip(losses, seconds, strict=True) if loss <= bar), math.inf)


def against_layers(scale: Scale) -> Claim:
    """Equal seconds for LV-HBA and for Adam through two differentiable solvers; when does LV-HBA reach their end?"""
    num_steps, every = scale(smoke=60, full=1500), scale(smoke=20, full=10)
    fractions, rows = [], {}
    for i in range(scale(smoke=1, full=3)):
        machine = _machine(0.4, 3 * scale.seed + i)
        solver = LVHBA(machine.problem, **SETTINGS)
        ours: list[tuple[float, Tensor]] = []
        solver.run(
            Budget(iterations=num_steps),
            lambda row, solver=solver, ours=ours: ours.append((row.seconds, solver.x)),
            trace_every=every,
        )
        seconds = [second for second, _ in ours]
        losses = [machine.loss(machine.exact(x)) for _, x in ours]
        ends: dict[str, Any] = {}
        for name, make in LAYERS.items():
            for lr in scale(smoke=(0.5,), full=(0.1, 0.5)):
                path = descend(
                    make(machine.X, machine.t),
                    machine.problem,
                    seconds=seconds[-1],
                    lr=lr,
                    max_steps=scale(smoke=3, full=None),
                )
                end = machine.loss(machine.exact(path.costs[-1]))
                ends[f"{name}, Adam {lr:g}"] = {
                    "final loss": end,
                    "steps": len(path.costs) - 1,
                    "LV-HBA reached it after, of the peer's seconds": _first_below(losses, seconds, end)
                    / path.seconds[-1],
                }
        best = min(ends.values(), key=lambda end: end["final loss"])
        fractions.append(best["LV-HBA reached it after, of the peer's seconds"])
        rows[f"split {3 * scale.seed + i}"] = ends | {"LV-HBA": {"final loss": losses[-1], "seconds": seconds[-1]}}
    return Claim(
        "svm: time to the best layer's final loss, over the layer's",
        max(fractions),
        0.2,
        "lower",
        rows,
        full_only=True,
        note="nothing is measured where the loss was never reached",
    )


def projection_time(scale: Scale) -> list[Claim]:
    """The projection on the margins by semismooth Newton, against the conic solver a generic layer would call."""
    cp: Any = require_peer("cvxpy")
    n, d = scale(smoke=(60, 8), full=(300, 30))
    g = torch.Generator().manual_seed(abs(scale.seed))
    X, t = _normal(g, n, d), _normal(g, n).sign()
    project = SoftMarginRows(X, t)
    # a step away from the set, as the solver makes them
    inside = project(_normal(g, d), _normal(g, 1)[0], _normal(g, n))
    point = tuple(part + 0.05 * torch.randn(part.shape, dtype=part.dtype, generator=g) for part in inside)
    weight, bias, slack = cp.Variable(d), cp.Variable(), cp.Variable(n)
    start = [cp.Parameter(d), cp.Parameter(), cp.Parameter(n)]
    distance = sum(cp.sum_squares(a - b) for a, b in zip((weight, bias, slack), start, strict=True))
    rows = (t.unsqueeze(1) * X).numpy()
    program = cp.Problem(cp.Minimize(distance), [rows @ weight + t.numpy() * bias + slack >= 1])
    for parameter, part in zip(start, point, strict=True):
        parameter.value = part.numpy()
    seconds = interleave(
        {"hesse": lambda: project(*point), "clarabel": lambda: program.solve(solver=cp.CLARABEL)},
        scale(smoke=3, full=30),
        clock="cpu",
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    # at its default tolerance, of 1e-8 on the objective, the solver's own answer is off by some 1e-5
    program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    gap = max(
        float((torch.as_tensor(variable.value) - part).abs().max())
        for variable, part in zip((weight, bias, slack), project(*point), strict=True)
    )
    milliseconds = {f"{name}, ms": 1000 * value for name, value in median.items()}
    return [
        Claim(
            "margins: projection time over a conic solver's",
            median["hesse"] / median["clarabel"],
            0.2,
            "lower",
            milliseconds,
            full_only=True,
        ),
        Claim("margins: distance to the conic solver's answer", gap, 1e-5, "lower", {}),
    ]


CLAIMS: list[ClaimFunction] = [
    value_function,
    many_solutions,
    inequality,
    learned_costs,
    against_layers,
    projection_time,
]
