"""The problems of ``sinkhorn_newton_sparse``, and the other solvers on them, all with one measure of the error."""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks.data import digit_pictures
from benchmarks.peers import require_peer
from hesse.transport import marginal_error, sinkhorn, sinkhorn_newton

__all__ = ["Problem", "Run", "assignment", "digit_pair", "lbfgs_dual", "ott", "ours", "pot", "sweeps_alone"]

PEER_SECONDS = 60.0  # of CPU: where a peer is stopped, and its error reported


@dataclass(frozen=True, slots=True)
class Problem:
    """Weights and costs in double precision."""

    a: Tensor
    b: Tensor
    cost: Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """What a solver reached, and at what price."""

    error: float  # ‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁, computed here from the plan it returned
    iterations: int
    seconds: float  # of CPU
    steps: int = 0  # Newton steps among the iterations

    def row(self) -> dict[str, float]:
        """For the record."""
        return {
            "error": self.error,
            "iterations": self.iterations,
            "newton": self.steps,
            "cpu_s": round(self.seconds, 4),
        }


def assignment(n: int, seed: int) -> Problem:
    """Costs uniform on [0, 1], weights 1/n."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    return Problem(uniform, uniform, torch.rand(n, n, generator=generator, dtype=torch.float64))


def digit_pair(size: int, power: int, seed: int) -> Problem:
    """Two digits on a size x size grid with 1 % background; l1 (power 1) or squared l2 distance, maximum 1."""
    pictures, _ = digit_pictures()
    pair = np.random.default_rng(seed).choice(len(pictures), 2, replace=False)
    small = torch.as_tensor(pictures[pair].reshape(2, 1, 8, 8))
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear").flatten(1)
    a, b = 0.99 * large / large.sum(1, keepdim=True) + 0.01 / size**2
    grid = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64)] * 2)
    cost = torch.cdist(grid, grid, p=1) if power == 1 else torch.cdist(grid, grid) ** 2
    return Problem(a / a.sum(), b / b.sum(), cost / cost.max())


def ours(problem: Problem, eta: float, *, tol: float, **options: object) -> Run:
    """Sinkhorn-Newton-Sparse."""
    start = time.process_time()
    result = sinkhorn_newton(problem.a, problem.b, problem.cost, 1 / eta, tol=tol, **options)  # pyright: ignore[reportArgumentType]
    seconds = time.process_time() - start
    error = float(marginal_error(result.plan, problem.a, problem.b))
    return Run(error, result.num_steps + result.num_sweeps, seconds, result.num_steps)


def sweeps_alone(problem: Problem, eta: float, *, tol: float, max_sweeps: int) -> Run:
    """Our Sinkhorn."""
    start = time.process_time()
    result = sinkhorn(problem.a, problem.b, problem.cost, 1 / eta, tol=tol, max_steps=max_sweeps)
    seconds = time.process_time() - start
    return Run(float(marginal_error(result.plan, problem.a, problem.b)), result.num_sweeps, seconds)


def pot(problem: Problem, eta: float, method: str, *, tol: float, seconds: float = PEER_SECONDS) -> Run:
    """POT's solver, stopped where our measure is ``tol`` or its CPU time is spent; only the last try is timed.

    POT measures one marginal in the Euclidean norm: its threshold is set so that a normally distributed error of that
    norm has the sum ``tol``, and halved until the sum is met.
    """
    peer = require_peer("ot")
    arrays = [t.numpy() for t in (problem.a, problem.b, problem.cost)]

    def attempt(threshold: float, limit: int) -> Run:
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan, log = peer.sinkhorn(
                *arrays, 1 / eta, method=method, numItermax=limit, stopThr=threshold, log=True, warn=False
            )
        spent = time.process_time() - start
        error = float(marginal_error(torch.from_numpy(plan), problem.a, problem.b))
        return Run(error, int(log.get("niter", limit)) + 1, spent)

    probe = 10 if method == "sinkhorn_log" else 200
    limit = max(probe, int(seconds / (attempt(0.0, probe).seconds / probe)))
    threshold = tol / (0.8 * len(problem.a) ** 0.5)
    run = attempt(threshold, limit)
    while run.error > tol and run.iterations < limit:
        tried, threshold = run, threshold / 2
        run = attempt(threshold, limit)
        if run.iterations == tried.iterations:
            break  # it stops by itself, on numerical errors
    return run


def ott(problem: Problem, eta: float, *, tol: float, max_iterations: int) -> Run:
    """OTT's Sinkhorn on scalings in double precision, compiled before it is timed."""
    require_peer("ott")
    import jax
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    with jax.enable_x64(True):
        a, b, cost = (jax.numpy.asarray(t.numpy()) for t in (problem.a, problem.b, problem.cost))
        geom = geometry.Geometry(cost_matrix=cost, epsilon=1 / eta)
        task = linear_problem.LinearProblem(geom, a=a, b=b)
        solver = ott_sinkhorn.Sinkhorn(lse_mode=False, threshold=tol, max_iterations=max_iterations)
        run = jax.jit(solver)
        run(task).matrix.block_until_ready()
        start = time.process_time()
        out = run(task)
        plan = np.array(out.matrix)
        spent = time.process_time() - start
        count = int(out.n_iters)
    return Run(float(marginal_error(torch.from_numpy(plan), problem.a, problem.b)), count, spent)


def lbfgs_dual(problem: Problem, eta: float, *, num_sinkhorn: int, max_iterations: int) -> Run:
    """SciPy's L-BFGS on the dual in logarithmic units, from the end of the same sweeps as the Newton steps."""
    start = time.process_time()
    first = sinkhorn(problem.a, problem.b, problem.cost, 1 / eta, tol=0.0, max_steps=num_sinkhorn)
    a, b, scaled = problem.a.numpy(), problem.b.numpy(), eta * problem.cost.numpy()
    n = len(a)

    def dual(z: np.ndarray) -> tuple[float, np.ndarray]:
        plan = np.exp(np.minimum(z[:n, None] + z[n:] - scaled, 50.0))
        rows, columns = plan.sum(1), plan.sum(0)
        value = rows.sum() - a @ z[:n] - b @ z[n:]
        return float(value), np.concatenate([rows - a, columns - b])

    z = eta * torch.cat(first.potentials).numpy()
    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "ftol": 0.0, "gtol": 0.0}
    result = scipy.optimize.minimize(dual, z, jac=True, method="L-BFGS-B", options=options)
    spent = time.process_time() - start
    error = float(np.abs(dual(result.x)[1]).sum())
    return Run(error, int(result.nit), spent)
