"""Other solvers of equality-constrained problems, for comparison: SQP with an l1 merit, augmented Lagrangian, SciPy's.

The first two are written from their descriptions, with the constants of the paper's experiments: GMRES inside, its
steps counted one by one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks.optim._adasketch_problems import Problem
from hesse.linalg import Dense, gmres
from hesse.optim.adasketch.kkt import KKTSystem, kkt_system, row_space
from hesse.optim.adasketch.problem import ConstrainedProblem, Point

__all__ = ["Outcome", "augmented_lagrangian", "l1_sqp", "scipy_solve"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a baseline ended."""

    x: Tensor
    fun: float
    kkt: float
    num_steps: int
    num_inner_steps: int = 0
    num_flops: float = 0.0


def _newton_system(problem: ConstrainedProblem, point: Point) -> tuple[KKTSystem, Tensor]:
    jacobian = problem.jacobian(point)
    options: dict[str, Any] = {"form": "dense", "xi_b": 0.1, "curvature_tol": 1e-6, "psi_factor": 20.0}
    rows, hessian = row_space(jacobian), problem.hessian(point)
    return kkt_system(point, jacobian, rows, hessian, generator=None, **options), jacobian


def _gmres_until(matrix: Tensor, b: Tensor, done: Callable[[Tensor], bool]) -> tuple[Tensor, int, float]:
    # the shortest unrestarted GMRES run that satisfies a test; N steps are exact
    operator, size = Dense(matrix), len(b)
    z, steps = torch.zeros_like(b), 0
    while not done(z) and steps < size:
        steps += 1
        z = gmres(operator, b, rtol=0.0, max_steps=steps, restart=steps).x
    return z, steps, 2.0 * int(torch.count_nonzero(matrix)) * steps + 2.0 * size * steps**2


def l1_sqp(case: Problem, inner: Literal["fixed", "adaptive"], *, tol: float = 1e-4, max_steps: int = 200) -> Outcome:
    """SQP on f + μ ‖c‖₁ with GMRES.

    "adaptive": ‖r‖₁ <= κ ‖b‖₁ from κ = 0.1, and κ / 1.5², 1.5 μ where the model reduction is too small. "fixed": the
    two termination tests of Byrd, Curtis and Nocedal (2008) at κ = 1.
    """
    problem = ConstrainedProblem(case.fun, case.con)
    point = problem.start("l1_sqp", case.x0, None)
    n, mu, kappa, inner_steps, flops, count = len(point.x), 1.0, 0.1, 0, 0.0, 0
    beta = max(float(point.gradient.abs().sum()) / (float(point.con.abs().sum()) + 1), 1.0)
    while point.kkt > tol and count < max_steps:
        system, jacobian = _newton_system(problem, point)
        gamma, b = system.operator.to_dense(), system.rhs
        body, size = gamma[:n, :n], float(point.con.abs().sum())

        def linearised(z: Tensor, G: Tensor = jacobian, c: Tensor = point.con) -> float:
            return float((G @ z[:n] + c).abs().sum())

        def reduction(z: Tensor, B: Tensor = body, slope: Tensor = point.fun_gradient, here: float = size) -> float:
            curved = max(float(z[:n] @ B @ z[:n]) / 2, 0.0)
            return -float(slope @ z[:n]) - curved + mu * (here - linearised(z))  # noqa: B023

        def enough(z: Tensor, here: float = size) -> bool:
            return reduction(z) >= 0.09 * mu * max(here, linearised(z) - here)  # noqa: B023

        def fixed_tests(z: Tensor, A: Tensor = gamma, right: Tensor = b, here: float = size) -> bool:
            r = (A @ z - right).abs()
            primal, dual = float(r[n:].sum()), float(r[:n].sum())
            second = max(0.1 * float(right[:n].abs().sum()), beta * here)
            first = primal + dual <= float(right.abs().sum()) and primal <= second and enough(z)
            return bool(z.any()) and (first or (dual <= 0.1 * here and primal <= beta * here))

        while True:
            if inner == "fixed":
                z, taken, spent = _gmres_until(gamma, b, fixed_tests)
            else:
                goal = kappa * float(b.abs().sum())
                z, taken, spent = _gmres_until(gamma, b, lambda v: float((gamma @ v - b).abs().sum()) <= goal)  # noqa: B023
            inner_steps, flops = inner_steps + taken, flops + spent
            if enough(z) or mu > 1e8:
                break
            if inner == "fixed":
                gap = size - linearised(z)
                needed = mu * gap - reduction(z)
                mu = max(needed / (0.9 * gap), mu) + 1e-4 if gap > 0 else 2e8
                break
            mu, kappa = 1.5 * mu, kappa / 1.5**2
        slope = float(point.fun_gradient @ z[:n]) - mu * (size - linearised(z))
        value = float(point.fun) + mu * size
        moved = None
        for halving in range(40):
            step = 0.5**halving
            trial = problem.at(point.x + step * z[:n], point.lam + step * z[n:])
            if float(trial.fun) + mu * float(trial.con.abs().sum()) <= value + 1e-8 * step * slope:
                moved = trial
                break
        if moved is None:
            break
        point, count = moved, count + 1
    return Outcome(point.x, float(point.fun), point.kkt, count, inner_steps, flops)


def augmented_lagrangian(case: Problem, *, tol: float = 1e-4, max_steps: int = 30) -> Outcome:
    """Minimise L + (μ/2) ‖c‖² by BFGS, move λ by μ c, let μ grow by 1.5; steps are BFGS's."""
    problem = ConstrainedProblem(case.fun, case.con)
    point, mu, count = problem.start("augmented_lagrangian", case.x0, None), 1.0, 0

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        here = problem.at(torch.as_tensor(x), point.lam)
        value = here.fun + here.lam @ here.con + mu / 2 * here.con.square().sum()
        weighted = problem.at(here.x, here.lam + mu * here.con)
        return float(value), weighted.gradient.numpy()

    for _ in range(max_steps):
        if point.kkt <= tol or not point.is_finite:
            break
        found: Any = scipy.optimize.minimize(
            value_and_slope, point.x.numpy(), jac=True, method="BFGS", options={"gtol": tol / 10, "maxiter": 500}
        )
        count += int(found.nit)
        here = problem.at(torch.as_tensor(found.x), point.lam)
        point = problem.at(here.x, here.lam + mu * here.con)
        mu *= 1.5
    return Outcome(point.x, float(point.fun), point.kkt, count)


def scipy_solve(case: Problem, method: Literal["SLSQP", "trust-constr"]) -> Outcome:
    """SciPy's solver with the same derivatives; the KKT residual is taken with least-squares multipliers."""
    problem = ConstrainedProblem(case.fun, case.con)

    def at(x: np.ndarray) -> Point:
        start = torch.as_tensor(x)
        return problem.at(start, torch.zeros_like(case.con(start)))

    constraint = {
        "type": "eq",
        "fun": lambda x: case.con(torch.as_tensor(x)).numpy(),
        "jac": lambda x: problem.jacobian(at(x)).numpy(),
    }
    options = {"maxiter": 500} | ({"ftol": 1e-12} if method == "SLSQP" else {"gtol": 1e-8, "xtol": 1e-12})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quasi-Newton updates that trust-constr skips
        found: Any = scipy.optimize.minimize(
            lambda x: float(case.fun(torch.as_tensor(x))),
            case.x0.numpy(),
            jac=lambda x: at(x).fun_gradient.numpy(),
            constraints=[constraint],
            method=method,
            options=options,
        )
    point = at(np.asarray(found.x))
    lam = torch.linalg.lstsq(problem.jacobian(point).T, -point.fun_gradient.unsqueeze(1)).solution.squeeze(1)
    point = problem.at(point.x, lam)
    return Outcome(point.x, float(point.fun), point.kkt, int(found.nit))
