"""Claims of Sinkhorn-Newton-Sparse (Tang et al., ICLR 2024) on assignment and on pictures, against POT, OTT and L-BFGS.

Oracles: a dense Newton step, POT's log-domain plan, the linear programme, finite differences. The error everywhere is
‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁ of the plan that a solver returned, and times are CPU seconds in one process.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.peers import require_peer
from benchmarks.transport._sinkhorn_newton_problems import (
    Problem,
    assignment,
    digit_pair,
    lbfgs_dual,
    ott,
    ours,
    pot,
    sweeps_alone,
)
from hesse.linalg import Diagonal, cg
from hesse.transport import linear_bound, newton_system, proximal, sinkhorn, sinkhorn_newton

__all__ = ["CLAIMS"]

ETA = 1200.0


def _seeds(scale: Scale, count: int) -> list[int]:
    return [100 * abs(scale.seed) + k for k in range(count)]


def random_assignment(scale: Scale) -> list[Claim]:
    """Random assignment: accuracy, steps, and time to 1e-9 against POT and OTT."""
    n = scale(smoke=100, full=500)
    budget = scale(smoke=0.5, full=60.0)
    cap = scale(smoke=2_000, full=60_000)
    errors, steps, ratios, speed = [], [], [], []
    rows: dict[str, object] = {"n": n, "eta": ETA}
    for k, seed in enumerate(_seeds(scale, scale(smoke=1, full=3))):
        problem = assignment(n, seed)
        ours(problem, ETA, tol=1e-9)  # first calls pay for what later ones have
        exact, mine = ours(problem, ETA, tol=1e-11), ours(problem, ETA, tol=1e-9)
        alone = sweeps_alone(problem, ETA, tol=1e-11, max_sweeps=cap)
        peer = pot(problem, ETA, "sinkhorn", tol=1e-9, seconds=budget)
        errors.append(exact.error)
        steps.append(exact.steps)
        ratios.append(alone.iterations / exact.iterations)
        speed.append(peer.seconds / mine.seconds)
        rows[f"problem {k}"] = {
            "to 1e-11": exact.row(),
            "to 1e-9": mine.row(),
            "our sinkhorn to 1e-11": alone.row(),
            "POT sinkhorn": peer.row(),
        }
    problem = assignment(n, _seeds(scale, 1)[0])
    mine = ours(problem, ETA, tol=1e-9)
    logs = pot(problem, ETA, "sinkhorn_log", tol=1e-9, seconds=budget)
    rows["POT sinkhorn_stabilized"] = pot(problem, ETA, "sinkhorn_stabilized", tol=1e-9, seconds=budget / 4).row()
    rows["OTT scalings"] = ott(problem, ETA, tol=1e-9, max_iterations=scale(smoke=200, full=20_000)).row()
    log_rows = {"ours": mine.row(), "POT sinkhorn_log": logs.row(), "capped at s": budget}
    return [
        Claim("assignment: worst marginal error at tol 1e-11", max(errors), 1e-11, "lower", rows),
        Claim("assignment: most Newton steps to 1e-11", max(steps), 15, "lower"),
        Claim(
            "assignment: Sinkhorn's sweeps over all of our iterations, to 1e-11",
            min(ratios),
            50.0,
            "higher",
            full_only=True,
            note=f"ours counts Newton steps and sweeps; Sinkhorn is stopped after {cap} sweeps",
        ),
        Claim("assignment: CPU time of POT sinkhorn over ours, to 1e-9", min(speed), 5.0, "higher", full_only=True),
        Claim(
            "assignment: CPU time of POT sinkhorn_log over ours, to 1e-9",
            logs.seconds / mine.seconds,
            100.0,
            "higher",
            log_rows,
            full_only=True,
            note="a lower bound where the peer was stopped before 1e-9",
        ),
    ]


def digits(scale: Scale) -> list[Claim]:
    """Pairs of digits under l1 and squared l2 costs: steps, and time to 1e-9 against POT at two regularisations."""
    size = scale(smoke=10, full=24)
    budget, cap = scale(smoke=0.5, full=20.0), scale(smoke=2_000, full=100_000)
    claims = []
    for power, title in ((1, "l1"), (2, "squared l2")):
        errors, steps = [], []
        speed: dict[float, list[float]] = {ETA: [], 5000.0: []}
        rows: dict[str, object] = {"n": size**2}
        for k, seed in enumerate(_seeds(scale, scale(smoke=1, full=3))):
            problem = digit_pair(size, power, seed)
            exact = ours(problem, ETA, tol=1e-10)
            errors.append(exact.error)
            steps.append(exact.steps)
            rows[f"problem {k}: to 1e-10"] = exact.row()
            for eta, found in speed.items():
                mine, peer = ours(problem, eta, tol=1e-9), pot(problem, eta, "sinkhorn", tol=1e-9, seconds=budget)
                runs = {"ours": mine.row(), "POT sinkhorn": peer.row()}
                if peer.error > 1e-9 and peer.seconds < budget / 2:
                    # it broke down: what it would have needed is told by Sinkhorn with absorbed potentials
                    peer = sweeps_alone(problem, eta, tol=1e-9, max_sweeps=cap)
                    runs["our sinkhorn"] = peer.row()
                found.append(peer.seconds / mine.seconds)
                rows[f"problem {k}, eta {eta:g}"] = runs
        claims += [
            Claim(f"{title} digits: worst marginal error at tol 1e-10", max(errors), 1e-10, "lower", rows),
            Claim(f"{title} digits: most Newton steps to 1e-10, all stages", max(steps), 30, "lower"),
        ]
        claims += [
            Claim(
                f"{title} digits: CPU time of POT sinkhorn over ours, to 1e-9, eta {eta:g}",
                min(speed[eta]),
                bar,
                "higher",
                {"each problem": speed[eta]},
                full_only=True,
                note="against our Sinkhorn where POT breaks down on numerical errors; a lower bound where capped",
            )
            for eta, bar in ((ETA, 1.0), (5000.0, 3.0))
        ]
    return claims


def plain_on_l1(scale: Scale) -> Claim:
    """The paper's algorithm without continuation fails on the l1 grid: the error left after 60 steps, median of three.

    The paper's algorithm keeps a fixed share of the entries, 15/n here, and makes no sweeps after its steps. A share
    that may grow is this library's own, and a row.
    """
    fixed = {"continuation": False, "num_polish": 0, "max_sparsity": 15.0}
    rows, errors = {}, []
    for k, seed in enumerate(_seeds(scale, scale(smoke=1, full=3))):
        problem = digit_pair(scale(smoke=10, full=24), 1, seed)
        plain = ours(problem, ETA, tol=1e-10, **fixed)
        errors.append(plain.error)
        rows[f"problem {k}"] = {
            "plain": plain.row(),
            "plain, from 300 sweeps": ours(problem, ETA, tol=1e-10, num_sinkhorn=300, **fixed).row(),
            "plain, entries kept may grow": ours(problem, ETA, tol=1e-10, continuation=False, num_polish=0).row(),
            "with continuation": ours(problem, ETA, tol=1e-10).row(),
        }
    return Claim(
        "l1 digits: error of the plain algorithm after 60 steps",
        float(np.median(errors)),
        1e-3,
        "higher",
        rows,
        True,
        "the median of three problems",
    )


def sparsity_ablation(scale: Scale) -> list[Claim]:
    """How many entries to keep, with the paper's algorithm otherwise: at 2/n convergence is linear."""
    problem = assignment(scale(smoke=100, full=500), _seeds(scale, 1)[0])
    runs = {
        kept: ours(
            problem, ETA, tol=1e-11, continuation=False, num_polish=0, sparsity=kept, max_sparsity=kept, max_steps=100
        )
        for kept in (2, 4, 8, 20)
    }
    rows = {f"{kept}/n": run.row() for kept, run in runs.items()}
    return [
        Claim(
            "assignment: Newton steps at 2/n over those at 20/n",
            runs[2].steps / runs[20].steps,
            3.0,
            "higher",
            rows,
            True,
        ),
        Claim("assignment: Newton steps at 8/n, the paper's algorithm", runs[8].steps, 15, "lower", full_only=True),
    ]


def newton_systems(scale: Scale) -> list[Claim]:
    """Steps of CG on one Newton system: with the rank-one term, without it, and on the Schur complement."""
    counts: dict[str, dict[str, int]] = {}
    for title, problem in {
        "assignment": assignment(scale(smoke=100, full=500), _seeds(scale, 1)[0]),
        "squared l2": digit_pair(scale(smoke=10, full=24), 2, _seeds(scale, 1)[0]),
        "l1": digit_pair(scale(smoke=10, full=24), 1, _seeds(scale, 1)[0]),
    }.items():
        start = sinkhorn(problem.a, problem.b, problem.cost, 1 / ETA, tol=1e-2)
        plan = start.plan.unsqueeze(0)
        rows, columns = problem.a - plan.sum(-1), problem.b - plan.sum(-2)  # (1, n) each
        system = newton_system(plan, torch.tensor([15 * len(problem.a)]))
        rhs = torch.cat([rows, columns], -1).unsqueeze(-1)
        jacobi = Diagonal(1 / torch.cat([system.row_sums, system.column_sums], -1))
        found = {
            name: cg(system.operator(weight), rhs, preconditioner=jacobi, rtol=1e-6, max_steps=5000).num_steps
            for name, weight in (("without", 0.0), ("augmented", 1.0))
        }
        counts[title] = found | {"Schur complement": system.solve(rows, columns, 1e-6, 5000)[2]}
    effect = [found["without"] / found["augmented"] for found in counts.values()]
    gain = [found["without"] / found["Schur complement"] for found in counts.values()]
    return [
        Claim(
            "CG steps without the rank-one term over those with it",
            math.exp(float(np.mean(np.log(effect)))),
            (0.8, 1.25),
            "inside",
            counts,
            full_only=True,
            note="the right-hand side is orthogonal to the null direction, which CG then never sees",
        ),
        Claim(
            "CG steps of the paper's system over those of its Schur complement",
            min(gain),
            1.8,
            "higher",
            full_only=True,
        ),
    ]


def quasi_newton(scale: Scale) -> list[Claim]:
    """L-BFGS on the dual from the same start: the error after 400 iterations."""
    n = scale(smoke=100, full=500)
    size = scale(smoke=10, full=24)
    seed = _seeds(scale, 1)[0]
    problems = {"assignment": assignment(n, seed), "squared l2": digit_pair(size, 2, seed)}
    mine = {name: ours(problem, ETA, tol=1e-10) for name, problem in problems.items()}
    peers = {name: lbfgs_dual(p, ETA, num_sinkhorn=20, max_iterations=400) for name, p in problems.items()}
    rows = {name: {"ours": mine[name].row(), "L-BFGS": peers[name].row()} for name in problems}
    return [
        Claim("our worst error where L-BFGS is tried", max(run.error for run in mine.values()), 1e-10, "lower", rows),
        Claim(
            "L-BFGS: least error after 400 iterations",
            min(r.error for r in peers.values()),
            1e-10,
            "higher",
            full_only=True,
        ),
    ]


def sparsity_of_plans(scale: Scale) -> list[Claim]:
    """The share of entries above 1e-6 of the largest after 20 sweeps."""
    problem = assignment(scale(smoke=100, full=500), _seeds(scale, 1)[0])
    shares = {}
    for eta in (300.0, 600.0, ETA, 2400.0):
        plan = sinkhorn(problem.a, problem.b, problem.cost, 1 / eta, tol=0.0, max_steps=20).plan
        shares[eta] = float((plan > 1e-6 * plan.max()).double().mean())
    values = list(shares.values())
    falls = max(y / x for x, y in pairwise(values))
    return [
        Claim("share of entries above 1e-6 of the largest, eta 1200", shares[ETA], 0.05, "lower", shares, True),
        Claim("that share over the one at half of eta, at most", falls, 1.0, "lower"),
    ]


def _relative(value: Tensor, oracle: Tensor) -> float:
    return float((value - oracle).abs().max() / oracle.abs().max())


def oracles(scale: Scale) -> list[Claim]:
    """A dense Newton step, POT's plan and linear programme, and finite differences of the optimum and of the plan."""
    peer = require_peer("ot")
    seed = _seeds(scale, 1)[0]
    small = assignment(40, seed)
    plan = sinkhorn(small.a, small.b, small.cost, 1 / 200, tol=0.0, max_steps=10).plan
    rows, columns = small.a - plan.sum(1), small.b - plan.sum(0)
    hessian = torch.cat([torch.cat([plan.sum(1).diag(), plan], 1), torch.cat([plan.T, plan.sum(0).diag()], 1)])
    dense = torch.linalg.pinv(hessian, rtol=1e-12, hermitian=True) @ torch.cat([rows, columns])
    du, dv, _ = newton_system(plan.unsqueeze(0), torch.tensor([1600])).solve(rows[None], columns[None], 1e-13, 1000)
    step = du[0].unsqueeze(1) + dv[0]  # what changes the plan: free of the null direction
    oracle = dense[:40].unsqueeze(1) + dense[40:]

    medium = assignment(100, seed + 1)
    arrays = [t.numpy() for t in (medium.a, medium.b, medium.cost)]
    theirs = peer.sinkhorn(*arrays, 1 / 50, method="sinkhorn_log", stopThr=1e-13, numItermax=20_000, warn=False)
    same = sinkhorn_newton(medium.a, medium.b, medium.cost, 1 / 50, tol=1e-12)
    sharp = sinkhorn_newton(medium.a, medium.b, medium.cost, 1 / ETA)
    excess = float(sharp.value) - float(peer.emd2(*arrays))
    return [
        Claim("Newton step against a dense solve, relative, n = 40", _relative(step, oracle), 1e-8, "lower"),
        Claim(
            "plan against POT sinkhorn_log at eta 50, largest difference",
            float((same.plan - torch.from_numpy(theirs)).abs().max()),
            1e-8,
            "lower",
        ),
        Claim(
            "cost above POT's emd, over log(n²)/eta",
            excess * ETA / math.log(100**2),
            (0.0, 1.0),
            "inside",
            {
                "excess": excess,
                "bound from below by our potentials": float(sharp.value - linear_bound(sharp, sharp.potentials)),
            },
        ),
        *_derivatives(assignment(6, seed + 2)),
    ]


def _derivatives(problem: Problem) -> list[Claim]:
    generator = torch.Generator().manual_seed(0)
    n, h, reg = len(problem.a), 1e-5, 0.05
    weights = torch.rand(n, n, generator=generator, dtype=torch.float64)
    a, cost = problem.a.clone().requires_grad_(), problem.cost.clone().requires_grad_()

    def solve(a: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        result = sinkhorn_newton(a, problem.b, cost, reg, tol=1e-14)
        return result.reg_value, (weights * result.plan).sum()

    optimum, reading = solve(a, cost)
    by_a, by_cost = torch.autograd.grad(optimum, (a, cost))
    (reading_by_cost,) = torch.autograd.grad(reading, cost)
    units = torch.eye(n * n, dtype=torch.float64).view(-1, n, n) * h
    with torch.no_grad():
        pairs = [(solve(a, cost + unit), solve(a, cost - unit)) for unit in units]
        balanced = (torch.eye(n, dtype=torch.float64) - 1 / n) * h
        shifts = torch.stack([(solve(a + d, cost)[0] - solve(a - d, cost)[0]) / (2 * h) for d in balanced])
    numeric, numeric_reading = (
        torch.stack([(up[k] - down[k]) / (2 * h) for up, down in pairs]).view(n, n) for k in (0, 1)
    )
    return [
        Claim(
            "optimum by cost: the plan against finite differences, relative", _relative(by_cost, numeric), 1e-6, "lower"
        ),
        Claim(
            "optimum by weights against finite differences, relative",
            _relative(by_a - by_a.mean(), shifts),
            1e-6,
            "lower",
        ),
        Claim(
            "⟨W, P(C)⟩ by cost against finite differences, relative",
            _relative(reading_by_cost, numeric_reading),
            1e-6,
            "lower",
        ),
    ]


def proximal_points(scale: Scale) -> Claim:
    """Proximal steps reach the unregularised optimum, with a certificate."""
    peer = require_peer("ot")
    seed, size = _seeds(scale, 1)[0], scale(smoke=8, full=16)
    problems = {
        "assignment": assignment(size**2, seed),
        "l1": digit_pair(size, 1, seed),
        "squared l2": digit_pair(size, 2, seed),
    }
    rows, worst = {}, 0.0
    for name, problem in problems.items():
        result = proximal(problem.a, problem.b, problem.cost, 1 / ETA, rtol=1e-7)
        exact = float(peer.emd2(*(t.numpy() for t in (problem.a, problem.b, problem.cost))))
        error = abs(float(result.value) / exact - 1)
        worst = max(worst, error)
        rows[name] = {
            "relative error": error,
            "certified": bool(result.converged),
            "newton": result.num_steps,
            "reg": result.reg,
        }
    return Claim("proximal points: cost against POT's emd, relative", worst, 1e-6, "lower", rows)


CLAIMS: list[ClaimFunction] = [
    random_assignment,
    digits,
    plain_on_l1,
    sparsity_ablation,
    newton_systems,
    quasi_newton,
    sparsity_of_plans,
    oracles,
    proximal_points,
]
