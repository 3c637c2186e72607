"""Claims of Bai, Gautam and Sojoudi (2023): two-layer ReLU networks trained to the global optimum by convex programmes.

Oracles: cvxpy with Clarabel on the same programmes, dense factors, a grid over each l∞ ball. Peers in the same run:
cvxpy with Clarabel, Adam on the nonconvex problem, PGD-adversarial training, the paper's dense factorisation.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import digit_pictures
from benchmarks.nn._convex_relu_peers import (
    DenseStep,
    adam_objectives,
    cvxpy_relu,
    cvxpy_robust_hinge,
    generator,
    grid_outputs,
    random_problem,
    robust_instance,
    trained_by_attacks,
)
from hesse.nn.convex_relu import (
    StructuredSystem,
    admm_relu,
    adversarial_network,
    all_patterns,
    attack,
    constraint_violation,
    convex_objective,
    duality_certificate,
    exact_relu,
    network_objective,
    network_outputs,
    project_cones,
    recover_network,
    robust_patterns,
    robust_relu,
    sample_patterns,
    sampled_relu,
)

__all__ = ["CLAIMS"]

F64 = torch.float64
BETA = 0.1


def _seeds(scale: Scale, stream: int, full: int) -> list[int]:
    return [10_000 * scale.seed + 100 * stream + k for k in range(scale(smoke=2, full=full))]


def optimality(scale: Scale) -> list[Claim]:
    """N = 40, D = 5, P = 30, unscaled rows, plain ρ = 0.1; the worst of five seeds."""
    gaps: dict[str, list[float]] = {"300 steps": [], "2000 steps": [], "interior point": []}
    violations, networks, projected, solves = [], [], [], []
    for seed in _seeds(scale, 1, 5):
        X, y, D = random_problem(seed, 40, 5, 30)
        best = cvxpy_relu(X, y, D, BETA).objective
        for name, steps in (("300 steps", 300), ("2000 steps", 2000)):
            V = admm_relu(X, y, D, beta=BETA, tol=0.0, balance=False, max_steps=steps).V
            gaps[name].append(abs(float(convex_objective(V, X, y, D, BETA)) / best - 1))
        exact = exact_relu(X, y, D, beta=BETA)
        gaps["interior point"].append(abs(float(convex_objective(exact.V, X, y, D, BETA)) / best - 1))
        violations.append(float(constraint_violation(V, X, D)))
        for point, kept in ((V, networks), (project_cones(V, X, D), projected)):
            network = float(network_objective(X, y, *recover_network(point), BETA))
            kept.append(abs(network / float(convex_objective(point, X, y, D, BETA)) - 1))
        b = torch.randn(2, 30, 5, generator=generator(seed), dtype=F64)
        dense = DenseStep(X, D, 0.1).solve(b)
        solves.append(float((StructuredSystem.build(X, D, 0.1).solve(b) - dense).norm() / dense.norm()))
    rows = {"relative gaps": gaps, "violation after 2000": violations}
    return [
        Claim("gap to Clarabel after 300 steps", max(gaps["300 steps"]), 1e-3, "lower", rows, full_only=True),
        Claim("gap to Clarabel after 2000 steps", max(gaps["2000 steps"]), 1e-4, "lower", rows, full_only=True),
        Claim("interior point agrees with Clarabel", max(gaps["interior point"]), 1e-6, "lower", rows),
        Claim("structured step equals the dense one", max(solves), 1e-10, "lower", {"seeds": solves}),
        Claim(
            "network recovered from ADMM",
            max(networks),
            1e-4,
            "lower",
            {"relative differences": networks},
            full_only=True,
        ),
        Claim("network recovered after projection", max(projected), 1e-8, "lower", {"relative differences": projected}),
    ]


def global_optimum(scale: Scale) -> list[Claim]:
    """Two features and a bias, N = 20, every pattern; Adam from 20 starts of each width never gets below."""
    problems = []
    for seed in _seeds(scale, 2, 20):
        source = generator(seed)
        X = torch.cat([torch.randn(20, 2, generator=source, dtype=F64), torch.ones(20, 1, dtype=F64)], 1)
        problems.append((X, torch.randn(20, generator=source, dtype=F64), all_patterns(X)))
    convex = [float(convex_objective(exact_relu(X, y, D, beta=BETA).V, X, y, D, BETA)) for X, y, D in problems]
    X, y = torch.stack([p[0] for p in problems]), torch.stack([p[1] for p in problems])
    best = torch.tensor(convex, dtype=F64)
    excess = {
        width: adam_objectives(X, y, width, BETA, 10_000 * scale.seed + width, scale(smoke=200, full=4000)) / best - 1
        for width in (5, 20, 100)
    }
    rows = {
        "patterns": [p[2].shape[1] for p in problems],
        "convex optima": convex,
        **{f"Adam width {width}, median excess": float(value.median()) for width, value in excess.items()},
        **{f"Adam width {width}, least excess": float(value.min()) for width, value in excess.items()},
    }
    deepest = max(0.0, -min(float(value.min()) for value in excess.values()))
    return [
        Claim("Adam never ends below the convex optimum", deepest, 1e-6, "lower", rows),
        Claim("Adam of width 5 ends above", float(excess[5].median()), 0.2, "higher", rows, full_only=True),
    ]


class _Clock:
    """CPU seconds at which a run first has the objective, and a network, within each tolerance of the optimum."""

    def __init__(self, X: Tensor, y: Tensor, D: Tensor, best: float, tolerances: tuple[float, ...]) -> None:
        self.problem, self.best, self.tolerances = (X, y, D), best, tolerances
        self.reached: dict[float, float] = {}
        self.steps: dict[float, int] = {}
        self.own, self.start = 0.0, time.process_time()

    def __call__(self, step: int, V: Tensor) -> bool:
        entered = time.process_time()
        X, y, D = self.problem
        network = float(network_objective(X, y, *recover_network(V), BETA))
        gap = max(abs(float(convex_objective(V, X, y, D, BETA)) - self.best), abs(network - self.best)) / self.best
        for tolerance in self.tolerances:
            if gap <= tolerance and tolerance not in self.reached:
                self.reached[tolerance] = entered - self.start - self.own
                self.steps[tolerance] = step
        self.own += time.process_time() - entered
        return len(self.reached) == len(self.tolerances)

    def row(self) -> dict[str, Any]:
        return {f"{t:g}": {"seconds": self.reached.get(t), "steps": self.steps.get(t)} for t in self.tolerances}


def _timed(run: Callable[[_Clock], Any], *problem: Any) -> _Clock:
    clock = _Clock(*problem)
    run(clock)
    return clock


def speed(scale: Scale) -> list[Claim]:
    """Rows scaled by 1/√D, β = 0.1, one thread, CPU seconds; for Clarabel the shorter of its own time and CPU."""
    claims = []
    sizes = scale(smoke=[(40, 5, 15)], full=[(300, 15, 80), (600, 20, 150)])
    for n, d, patterns in sizes:
        X, y, D = random_problem(_seeds(scale, 3, 1)[0] + n, n, d, patterns, d**-0.5)
        peer = cvxpy_relu(X, y, D, BETA, limit=300.0)
        exact = exact_relu(X, y, D, beta=BETA, tol=1e-9)
        best = float(convex_objective(exact.V, X, y, D, BETA))
        tolerances = (1e-2, 2.5e-3)
        admm = _timed(
            lambda clock, X=X, y=y, D=D: admm_relu(X, y, D, beta=BETA, tol=0.0, max_steps=5000, monitor=clock),
            *(X, y, D, best, tolerances),
        )
        interior = _timed(
            lambda clock, X=X, y=y, D=D: exact_relu(X, y, D, beta=BETA, tol=1e-9, monitor=clock),
            *(X, y, D, best, (*tolerances, 1e-6)),
        )
        start = time.process_time()
        dense = DenseStep(X, D, 0.1)
        factored = time.process_time()
        for _ in range(5):
            dense.solve(torch.zeros(2, patterns, d, dtype=F64))
        slow = min(peer.solver_seconds, peer.cpu_seconds)  # its own clock is a wall clock
        rows = {
            "N, D, P": [n, d, patterns],
            "Clarabel": {"seconds": peer.solver_seconds, "with cvxpy": peer.cpu_seconds, "status": peer.status},
            "Clarabel's objective over ours - 1": peer.objective / best - 1,
            "ADMM": admm.row(),
            "interior point": interior.row(),
            "dense step": {"factor": factored - start, "solve": (time.process_time() - factored) / 5},
        }
        nan = float("nan")
        bars = {300: ((1e-2, 8.0), (2.5e-3, 3.0)), 600: ((1e-2, 15.0),)}.get(n, ((1e-2, 8.0),))
        for tolerance, bar in bars:
            name = f"ADMM against Clarabel, N = {n}, to {tolerance:g}"
            ratio = slow / admm.reached.get(tolerance, nan)
            claims.append(Claim(name, ratio, bar, "higher", rows, full_only=True))
        name = f"interior point against Clarabel, N = {n}, to 1e-06"
        ratio = slow / interior.reached.get(1e-6, nan)
        claims.append(Claim(name, ratio, 3.0, "higher", rows, full_only=True, note="the tail below 1e-3"))
    return claims


def cost_of_patterns(scale: Scale) -> Claim:
    """Slope of log seconds a step over log P, N = 300, D = 15; the median of three rounds at each P."""
    counts = scale(smoke=[20, 40, 80], full=[50, 100, 200, 400, 800])
    X, y, D = random_problem(_seeds(scale, 4, 1)[0], scale(smoke=60, full=300), 15, counts[-1], 15**-0.5)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    steps = scale(smoke=20, full=60)
    for _ in range(3):
        for count in counts:
            marks: list[float] = []
            admm_relu(
                *(X, y, D[:, :count]),
                beta=BETA,
                tol=0.0,
                max_steps=steps,
                monitor=lambda _step, _V, marks=marks: marks.append(time.process_time()) is not None,
            )
            seconds[count].append((marks[-1] - marks[0]) / (steps - 10))
    middle = [median(seconds[count]) for count in counts]
    slope = float(np.polyfit(np.log(counts), np.log(middle), 1)[0])
    rows = {"P": counts, "seconds a step": middle}
    return Claim("cost of a step in P", slope, 1.15, "lower", rows, full_only=True)


def sampled_programme(scale: Scale) -> list[Claim]:
    """The problem of the first claim, 2000 sampled neurons; the certificate on 20,000 fresh ones, mean of seeds."""
    ratios: list[float] = []
    sizes = (125, 500, 2000)
    certificates: dict[int, list[float]] = {size: [] for size in sizes}
    for seed in _seeds(scale, 5, 5):
        X, y, D = random_problem(seed, 40, 5, 30)
        V = admm_relu(X, y, D, beta=BETA, tol=1e-6, max_steps=scale(smoke=500, full=5000)).V
        runs = {size: sampled_relu(X, y, num_neurons=size, beta=BETA, generator=generator(seed)) for size in sizes}
        for size, run in runs.items():
            fresh = generator(seed + 50)
            certificates[size].append(duality_certificate(X, run.dual, BETA, num_directions=20_000, generator=fresh))
        ratios.append(runs[2000].objective / float(convex_objective(V, X, y, D, BETA)))
    means = [fmean(certificates[size]) for size in sizes]
    rows = {"SCP over ADMM with 30 patterns": ratios, "neurons": list(sizes), "mean certificate": means}
    falls = max(later / earlier for earlier, later in pairwise(means))
    return [
        Claim("SCP's objective over ADMM's", max(ratios), 1.05, "lower", rows, full_only=True),
        Claim("certificate falls with neurons", falls, 1.0, "lower", rows, full_only=True),
    ]


def robust_plane(scale: Scale) -> list[Claim]:
    """Points of the plane 2.2 eps apart, eps = 0.08, hinge; exact accuracy on a 17 x 17 grid of each ball."""
    eps, beta = 0.08, 1e-4
    instances = [robust_instance(seed, scale(smoke=12, full=34), eps) for seed in _seeds(scale, 6, 10)]
    accuracy: dict[str, list[float]] = {
        name: [] for name in ("robust convex", "plain convex", "plain, robust patterns", "PGD-AT")
    }
    excess, gaps, counts = [], [], []
    for index, (X, y) in enumerate(instances):
        source = generator(_seeds(scale, 6, 10)[index] + 50)
        hidden, _ = adversarial_network(X, y, eps, beta=beta, num_steps=scale(smoke=20, full=300), generator=source)
        D = robust_patterns(X, eps, num_hyperplanes=scale(smoke=60, full=600), directions=hidden, generator=source)
        found = robust_relu(X, y, D, eps=eps, beta=beta)
        everything = sample_patterns(X, 300, generator=source)
        plain = admm_relu(X, y, everything, beta=beta, loss="hinge", tol=1e-5, max_steps=3000).V
        same = robust_relu(X, y, D, eps=0.0, beta=beta).V
        for name, V in (("robust convex", found.V), ("plain convex", plain), ("plain, robust patterns", same)):
            margins = y.unsqueeze(1) * grid_outputs(X, *recover_network(V), eps)
            accuracy[name].append(float((margins.amin(1) > 0).double().mean()))
            if name == "robust convex":
                slopes = D.to(F64) @ (V[0] - V[1])
                bound = (1 - y * (X * slopes).sum(1) + eps * slopes[:, :2].abs().sum(1)).clamp_min(0)
                excess.append(float(((1 - margins).clamp_min(0).amax(1) - bound).max()))
        gaps.append(abs(found.objective / cvxpy_robust_hinge(X, y, D, eps, beta) - 1))
        counts.append(D.shape[1])
        trained = trained_by_attacks(
            *(X, y, eps, 10_000 * scale.seed + index), repeats=scale(smoke=1, full=3), steps=scale(smoke=50, full=2000)
        )
        safe = [(y.unsqueeze(1) * grid_outputs(X, *network, eps)).amin(1) > 0 for network in trained]
        accuracy["PGD-AT"].append(max(float(each.double().mean()) for each in safe))
    means = {name: fmean(values) for name, values in accuracy.items()}
    rows = {"accuracy": accuracy, "means": means, "feasible patterns": counts}
    return [
        Claim(
            "robust accuracy over PGD-AT, points",
            100 * (means["robust convex"] - means["PGD-AT"]),
            5.0,
            "higher",
            rows,
            full_only=True,
            note="AT: width 100, 2000 steps, best of three starts",
        ),
        Claim(
            "robust accuracy over plain convex, points",
            100 * (means["robust convex"] - max(means["plain convex"], means["plain, robust patterns"])),
            12.0,
            "higher",
            rows,
            full_only=True,
            note="the better of plain training on 300 sampled patterns and on the robust ones",
        ),
        Claim("grid loss above the convex bound", max(excess), 1e-6, "lower", {"instances": excess}),
        Claim("robust optimum against Clarabel", max(gaps), 1e-3, "lower", {"relative gaps": gaps}),
    ]


def _digits(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pixels, labels = digit_pictures()
    chosen = (labels == 3) | (labels == 8)
    pooled = torch.as_tensor(pixels[chosen]).view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    X = torch.cat([pooled, torch.ones(len(pooled), 1, dtype=F64)], 1)
    y = torch.where(torch.as_tensor(labels[chosen]) == 3, 1.0, -1.0).to(F64)
    order = torch.randperm(len(X), generator=generator(seed))
    return X[order[:n]], y[order[:n]], X[order[n:]], y[order[n:]]


def digits_limit(scale: Scale) -> list[Claim]:
    """3 against 8, 4 x 4 pixels, N = 120, eps = 0.08; held-out accuracy under PGD of 40 steps."""
    eps, beta = 0.08, 1e-4
    objectives, ours, peers, counts = [], [], [], []
    for seed in _seeds(scale, 8, 2):
        X, y, test_X, test_y = _digits(seed, scale(smoke=24, full=120))
        source = generator(seed)
        hidden, _ = adversarial_network(X, y, eps, num_steps=scale(smoke=20, full=300), generator=source)
        D = robust_patterns(
            *(X, eps),
            num_hyperplanes=scale(smoke=20, full=200),
            directions=hidden,
            limit=scale(smoke=2, full=10),
            generator=source,
        )
        found = robust_relu(X, y, D, eps=eps, beta=beta, tol=1e-6)
        objectives.append(found.objective)
        counts.append(D.shape[1])
        networks = {"ours": recover_network(found.V)}
        trained = trained_by_attacks(
            *(X, y, eps, seed + 7), repeats=scale(smoke=1, full=3), steps=scale(smoke=50, full=2000)
        )
        networks |= {f"AT {k}": network for k, network in enumerate(trained)}
        scores = {}
        for name, network in networks.items():
            moved = attack(test_X, test_y, *network, eps, num_steps=40, generator=generator(seed))
            scores[name] = float((test_y * network_outputs(moved, *network) > 0).double().mean())
        ours.append(scores.pop("ours"))
        peers.append(fmean(scores.values()))
    rows = {"ours": ours, "PGD-AT, mean of starts": peers, "objective": objectives, "patterns": counts}
    return [
        Claim("no collapse: robust objective on digits", max(objectives), 0.95, "lower", rows, full_only=True),
        Claim(
            "digits, robust accuracy over PGD-AT, points",
            100 * (fmean(ours) - fmean(peers)),
            -2.0,
            "higher",
            rows,
            full_only=True,
        ),
    ]


CLAIMS: list[ClaimFunction] = [
    optimality,
    global_optimum,
    speed,
    cost_of_patterns,
    sampled_programme,
    robust_plane,
    digits_limit,
]
