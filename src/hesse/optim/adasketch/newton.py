"""Newton's method for min f(x) subject to c(x) = 0, its linear systems solved inexactly by random projections.

Shapes: N variables, M constraints.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from hesse._values import check_count
from hesse.errors import ArgumentError, SingularError
from hesse.linalg import armijo
from hesse.linalg._small_lstsq import small_lstsq
from hesse.optim.adasketch.direction import AccuracyName, Penalties, Rules, SolverName, newton_direction
from hesse.optim.adasketch.kkt import HessianForm, RowSpace, ShiftName, dependence, kkt_system, row_space
from hesse.optim.adasketch.merit import merit_gradient, merit_value
from hesse.optim.adasketch.problem import ConstrainedProblem, HessianProduct, Point, VectorFunction
from hesse.optim.adasketch.result import AdaSketchState, ConstrainedResult, NewtonStep, StopReason

__all__ = ["adasketch_newton"]

_HALVINGS = 34  # values of the line search: the shortest step tried is 2⁻³³, about 1e-10


def adasketch_newton(
    fun: VectorFunction,
    con: VectorFunction | None,
    x0: Tensor | AdaSketchState,
    lam0: Tensor | Literal["least-squares"] | None = None,
    *,
    grad: VectorFunction | None = None,
    hvp: HessianProduct | None = None,
    jac: VectorFunction | None = None,
    solver: SolverName = "block-gaussian",
    block_size: int = 32,
    row_sampling: Literal["norm", "uniform"] = "uniform",
    hessian: HessianForm = "dense",
    shift: ShiftName = "norm",
    accuracy: AccuracyName = "practical",
    theta: Literal["constant", "superlinear"] = "constant",
    kappa: float = 0.1,
    eta1: float = 1.0,
    eta2: float = 0.1,
    delta0: float = 0.1,
    delta_floor: float = 1e-6,
    psi_factor: float = 20.0,
    xi_b: float = 0.1,
    curvature_tol: float = 1e-6,
    rank_tol: float = 1e-8,
    beta: float = 0.1,
    nu: float = 1.5,
    tol: float = 1e-4,
    max_steps: int = 10_000,
    max_inner_steps: int = 100_000,
    generator: Generator | None = None,
    callback: Callable[[NewtonStep, Tensor, Tensor], None] | None = None,
) -> ConstrainedResult:
    """Minimise f(x) subject to c(x) = 0 by Newton steps on the KKT conditions that are solved only as far as they help.

    [B Gᵀ; G 0] (dx, dλ) = -(∇ₓL, c) is solved by random projections until (dx, dλ) descends on the exact augmented
    Lagrangian A = L + (η₁/2) ‖c‖² + (η₂/2) ‖∇ₓL‖²; an Armijo search on A then sets the step of x and λ together.

    Parameters
    ----------
    fun : callable
        f, (N,) -> (), twice differentiable by torch.func, possibly nonconvex; called under torch.no_grad.
    con : callable or None
        c, (N,) -> (M,), M <= N, likewise; None for no constraints.
    x0 : Tensor, shape (N,), or AdaSketchState
        Start, in float32 or float64; a state continues its run, with its own multipliers and weights.
    lam0 : Tensor, shape (M,), "least-squares" or None
        First multipliers: given, the least-squares solution of Gᵀλ = -∇f, or zero (default, as in the paper).
    grad, jac : callable, optional
        ∇f, (N,) -> (N,), and the Jacobian of c, (N,) -> (M, N). Default: torch.func.
    hvp : callable, optional
        (x, λ, v) -> ∇²ₓL v for one vector v: the Hessian of the Lagrangian. Default: torch.func.
    solver : str, default "block-gaussian"
        How Γ z = b is solved. "block-gaussian", "countsketch", "srht": projections on ``block_size`` random
        combinations of equations; "block-kaczmarz": on as many equations; "gaussian" and "kaczmarz": on one, the
        paper's two; "minres": Krylov, the better choice where nothing but products is at hand; "exact": dense LU.
    block_size : int, default 32
        Equations a projection, N + M at most, where it solves the system at once.
    row_sampling : {"norm", "uniform"}, default "uniform"
        Of "kaczmarz": rows by squared length, or all alike (the paper's code), which is better where the constraints'
        rows are far shorter than the Hessian's.
    hessian : {"dense", "products"}, default "dense"
        "products" never forms an N × N matrix: inertia by Lanczos, norms by probes. For "minres" and the Gaussian
        sketches; row solvers then pay a Hessian product a row.
    shift : {"norm", "least"}, default "norm"
        B = H + (ξ_B + ‖H‖_F) I where H is not positive on the constraints' null space (paper), which makes short steps;
        or H + (ξ_B - λ_min) I with the least eigenvalue there, the better choice for networks.
    accuracy : {"practical", "theory"}, default "practical"
        "practical" asks ‖Γz - b‖ <= κ θ ‖∇L‖ and halves κ where z does not descend. "theory" asks
        ‖Γ‖_F Ψ ‖Γz - b‖ <= θ δ ‖∇L‖: since δ sits at its floor from the first step on in all but trivial problems,
        that is in effect a fixed tight tolerance, at tens of thousands of row steps a Newton step. What the proof uses
        is the test of descent, which both make.
    theta : {"constant", "superlinear"}, default "constant"
        θ = 1, for linear convergence; or min(1, ‖∇L‖), for superlinear.
    kappa : float, default 0.1
        κ in (0, 1), fresh in every step.
    eta1, eta2, delta0 : float, default 1.0, 0.1 and 0.1
        First η₁, η₂ and δ (paper). Where z does not descend, η₁ grows by ν², η₂ shrinks by ν.
    delta_floor, psi_factor : float, default 1e-6 and 20
        Least δ and the constant of Ψ (paper); used by "theory".
    xi_b : float, default 0.1
        ξ_B, see ``shift`` (paper).
    curvature_tol : float, default 1e-6
        Least eigenvalue of H there that counts as positive (paper; its logistic runs take 1e-2).
    rank_tol : float, default 1e-8
        The constraints' gradients are independent if λ_min(G Gᵀ) is at least this times max(1, ‖G‖²_F).
    beta : float, default 0.1
        Armijo's constant, in (0, 1/2), so that unit steps pass in the end (paper).
    nu : float, default 1.5
        ν > 1 (paper).
    tol : float, default 1e-4
        KKT residual ‖(∇ₓL, c)‖₂ to reach, in the units of gradient and constraints (paper).
    max_steps, max_inner_steps : int, default 10,000 and 100,000
        Newton steps in all, and inner steps a Newton step (paper).
    generator : torch.Generator, optional
        Of the sketches. Default: torch's global one; a state then resumes the run exactly on the CPU only.
    callback : callable, optional
        Called with each `NewtonStep` and the new x and λ, not to be changed.

    Returns
    -------
    ConstrainedResult
        A KKT point if ``converged``: a local minimum as a rule, but nothing checks it. Not differentiable.

    Raises
    ------
    ArgumentError
        If an option is out of range, or M > N.
    ArgumentTypeError
        If x0 or lam0 is not a tensor, a count not an integer, or a function not callable.
    ShapeError
        If x0, λ or the functions' values do not fit.
    NumericalError
        If a value at x0 is NaN or Inf.
    SingularError
        If the constraints' gradients are dependent at an iterate; the message names the rows.

    Warns
    -----
    UserWarning
        If "theory" is asked of float32, which cannot reach it; "practical" is used.

    Notes
    -----
    A step costs a Jacobian, a Hessian (N products; or one and what the solver takes), O(N³) for its inertia, and a
    gradient for each value of the line search. An inner row step costs O(nonzeros of a row), a block of q O(q N²).
    The expected error of the projections falls by a factor 1 - σ_min²/‖Γ‖²_F a row: hopeless for ill-conditioned Γ,
    as from a discretised Laplacian, where "minres" is the better choice.
    The weights of A carry over from step to step, which the proof of global convergence rests on.

    References
    ----------
    I. Hong, S. Na, M. W. Mahoney, M. Kolar (2023), ICML, arXiv 2305.18379.

    Examples
    --------
    >>> result = adasketch_newton(lambda x: x.sum(), lambda x: (x @ x).reshape(1) - 2, torch.tensor([-2.0, -0.5]))
    >>> result.converged, [round(v, 3) for v in result.x.tolist()]
    (True, [-1.0, -1.0])
    """
    rules = Rules(
        solver=solver,
        block_size=block_size,
        row_sampling=row_sampling,
        accuracy=accuracy,
        superlinear=theta == "superlinear",
        kappa=kappa,
        delta_floor=delta_floor,
        beta=beta,
        nu=nu,
        max_inner_steps=max_inner_steps,
    )
    _check_rules(rules)
    for name, value, choices in (
        ("theta", theta, ("constant", "superlinear")),
        ("hessian", hessian, get_args(HessianForm)),
        ("shift", shift, get_args(ShiftName)),
    ):
        _one_of(name, value, choices)
    positive = {"eta1": eta1, "eta2": eta2, "delta0": delta0, "psi_factor": psi_factor, "xi_b": xi_b}
    for name, value in (positive | {"rank_tol": rank_tol, "curvature_tol": curvature_tol}).items():
        _inside(name, value, 0, math.inf)
    if not tol >= 0:
        raise ArgumentError(f"adasketch_newton: expected tol >= 0, got {tol}")
    check_count("adasketch_newton", "max_steps", max_steps)
    problem = ConstrainedProblem(fun, con, grad=grad, jac=jac, hvp=hvp)
    source = torch.default_generator if generator is None else generator
    if isinstance(x0, AdaSketchState):
        if lam0 is not None:
            raise ArgumentError("adasketch_newton: a state brings its multipliers; leave lam0 out")
        point = problem.start("adasketch_newton", x0.x, x0.lam)
        penalties, count = x0.penalties, x0.num_steps
        source.set_state(x0.generator_state)
    else:
        if isinstance(lam0, str):
            _one_of("lam0", lam0, ("least-squares",))
            point = _least_squares_start(problem, problem.start("adasketch_newton", x0, None))
        else:
            point = problem.start("adasketch_newton", x0, lam0)
        penalties, count = Penalties(eta1, eta2, delta0), 0
    if point.x.dtype == torch.float32 and accuracy == "theory":
        warnings.warn(
            'adasketch_newton: float32 cannot reach accuracy="theory", a residual below 1e-7 of the right-hand side; '
            'using "practical". Pass float64 tensors for the other',
            stacklevel=2,
        )
        rules = replace(rules, accuracy="practical")

    history: list[NewtonStep] = []
    inner_steps, flops = 0, 0.0
    status: StopReason = "max_steps"
    with torch.no_grad():
        while True:
            if point.kkt <= tol:
                status = "converged"
                break
            if count >= max_steps:
                break
            jacobian = problem.jacobian(point)
            rows = row_space(jacobian)
            if rows.is_deficient(rank_tol):
                if _is_stuck(point, jacobian, rows, rank_tol, tol):
                    status = "infeasible_stationary"
                    break
                raise SingularError(dependence(jacobian, rows, rank_tol, count))
            curvature = problem.hessian(point)
            system = kkt_system(
                point,
                jacobian,
                rows,
                curvature,
                form=hessian,
                shift_by=shift,
                xi_b=xi_b,
                curvature_tol=curvature_tol,
                psi_factor=psi_factor,
                generator=generator,
            )
            gradient_fn = partial(merit_gradient, point, jacobian, curvature.matvec(point.gradient))
            found = newton_direction(system, gradient_fn, penalties, rules, generator)
            inner_steps, flops = inner_steps + found.num_steps, flops + found.num_flops
            if not found.slope < 0:
                status = "no_descent"
                break
            penalties = found.penalties
            trial = _search(problem, point, found.z, found.slope, penalties, beta)
            if trial is None:
                status = "line_search"
                break
            point, step_size = trial
            count += 1
            history.append(
                NewtonStep(
                    kkt=point.kkt,
                    fun=float(point.fun),
                    step_size=step_size,
                    eta1=penalties.eta1,
                    eta2=penalties.eta2,
                    delta=penalties.delta,
                    num_inner_steps=found.num_steps,
                    residual=found.residual,
                    accurate=found.accurate,
                    regularized=system.regularized,
                )
            )
            if callback is not None:
                callback(history[-1], point.x, point.lam)
    return ConstrainedResult(
        x=point.x,
        lam=point.lam,
        fun=float(point.fun),
        kkt=point.kkt,
        violation=float(torch.linalg.vector_norm(point.con)),
        converged=status == "converged",
        status=status,
        num_steps=count,
        num_inner_steps=inner_steps,
        num_flops=flops,
        evaluations=dict(problem.evaluations),
        history=tuple(history),
        state=AdaSketchState(point.x, point.lam, penalties, count, source.get_state()),
    )


def _least_squares_start(problem: ConstrainedProblem, point: Point) -> Point:
    jacobian = problem.jacobian(point)
    lam = small_lstsq(jacobian.T, -point.fun_gradient.unsqueeze(1)).squeeze(1)
    return problem.at(point.x, lam)


def _is_stuck(point: Point, jacobian: Tensor, rows: RowSpace, rank_tol: float, tol: float) -> bool:
    # whether ‖c‖ cannot fall to first order; only possible where the rows of G are dependent
    violation = float(torch.linalg.vector_norm(point.con))
    slope = float(torch.linalg.vector_norm(jacobian.T @ point.con))
    return violation > tol and slope <= rank_tol**0.5 * max(1.0, rows.size) * violation


def _search(
    problem: ConstrainedProblem, point: Point, z: Tensor, slope: float, penalties: Penalties, beta: float
) -> tuple[Point, float] | None:
    n = len(point.x)
    tried: list[Point] = []

    def value_fn(step: float) -> Tensor:
        tried.append(problem.at(point.x + step * z[:n], point.lam + step * z[n:]))
        # a gradient that is not finite would poison the next step, whatever the value says
        return merit_value(tried[-1], penalties.eta1, penalties.eta2) if tried[-1].is_finite else z.new_tensor(math.nan)

    value = merit_value(point, penalties.eta1, penalties.eta2)
    # near the solution differences of A drown in the rounding of its terms
    slack = 8 * torch.finfo(z.dtype).eps * (abs(float(value)) + abs(float(point.fun)))
    found = armijo(value_fn, value, slope, decrease=beta, slack=slack, max_steps=_HALVINGS)
    return (tried[-1], found.step) if found.converged else None


def _check_rules(rules: Rules) -> None:
    _one_of("solver", rules.solver, get_args(SolverName))
    _one_of("row_sampling", rules.row_sampling, ("norm", "uniform"))
    _one_of("accuracy", rules.accuracy, get_args(AccuracyName))
    check_count("adasketch_newton", "block_size", rules.block_size)
    check_count("adasketch_newton", "max_inner_steps", rules.max_inner_steps)
    _inside("kappa", rules.kappa, 0, 1)
    _inside("beta", rules.beta, 0, 0.5)
    _inside("nu", rules.nu, 1, math.inf)
    _inside("delta_floor", rules.delta_floor, 0, math.inf)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArgumentError(f"adasketch_newton: {name} must be one of {', '.join(choices)}; got {value!r}")


def _inside(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ArgumentError(f"adasketch_newton: expected {low:g} < {name} < {high:g}, got {value}")
