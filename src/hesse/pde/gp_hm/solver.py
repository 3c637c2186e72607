"""GP-HM: solve F[u] = f on a box by a Gaussian process that learns which frequencies the solution has.

Shapes: grid (N_1, …, N_d), d <= 3; Q components an axis.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn

from hesse._estimator import Estimator
from hesse._progress import progress
from hesse._values import check_present
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import multi_mode_product
from hesse.pde.gp_hm.conditions import Boundary, build_conditions, kernel_rows
from hesse.pde.gp_hm.equations import Equation, Orders
from hesse.pde.gp_hm.inner import InnerSolver
from hesse.pde.gp_hm.kernels import Envelope, SpectralMixture1d, WeightMap
from hesse.pde.gp_hm.problem import Problem, Sum, make_grids, orders_used
from hesse.pde.gp_hm.spectrum import Spectrum, fft_frequencies, spectrum_of
from hesse.pde.gp_hm.system import (
    LOG_PRECISION_CAP,
    AxisFactors,
    Conditions,
    Precisions,
    Rows,
    axis_factors,
    log_joint,
    unwhiten,
    whiten,
)

__all__ = ["GPHM", "KernelName", "OptimizerName"]

KernelName = Literal["student_t", "gaussian", "matern52", "rbf"]
OptimizerName = Literal["profile", "lbfgs", "joint"]
STD_LIMIT = 1500  # unknowns whose dense posterior covariance is still cheap
Source = Tensor | Callable[..., Tensor] | float


class GPHM(Estimator):
    """Solve a partial differential equation by a Gaussian process with a learned mixture spectrum.

    The unknowns are the values U on a grid, the weights, frequencies and length scales of one mixture kernel an axis,
    and the precisions τ of the boundary and v of the equation. What is maximised is the log density of all of them,
    boundary and equation (see `log_joint`); derivatives of u are derivatives of the kernel. A comb of many
    frequencies thins out by itself, because the weights are optimised in logarithms, and its teeth move onto the lines
    of the solution.

    Parameters
    ----------
    equation : Equation
        `Poisson`, `AllenCahn`, `Helmholtz`, `Advection` or `CustomEquation`; one with parameters has them learned.
    domain : sequence of (float, float)
        The box, an interval an axis; one to three axes.
    n_grid : int or sequence of int or of Tensor
        Points an axis, faces included; a tensor gives an axis's own increasing coordinates, for which kernel matrices
        cost N_j² evaluations instead of N_j.
    boundary : float, Tensor, callable or list of conditions, default 0.0
        A value means u = g on all faces; else a list of `Face`, `Periodic`, `Observations`.
    kernel : {"student_t", "gaussian", "matern52", "rbf"}, default "student_t"
        Bumps of the mixture, or a plain kernel without frequencies, for comparison. Derivatives above the second need
        a Gaussian one.
    n_components : int, default 30
        Q.
    f_max : float, optional
        Highest frequency of the comb, in periods a unit of length. Default: what the grid can tell apart,
        (N_j - 1) / (2 length); with a known bound, give it.
    boundary_weight : float, default 200.0
        λ_b, how many times a boundary point outweighs one inside; the authors take 500 for advection.
    optimizer : {"profile", "lbfgs", "joint"}, default "profile"
        "profile" solves for U exactly in every step, and makes Adam steps in the rest; "lbfgs" does L-BFGS steps
        instead; "joint" is the authors' way, Adam in everything from U = 0, and needs 10⁵ steps or more.
    max_iter : int, default 200
        Outer steps.
    learning_rate : float, optional
        Default: 0.05 with cosine decay for "profile", 0.01 for "joint", 1 for "lbfgs".
    tol : float, default 0.0
        Stop where U changes by less than this share of its norm; 0 makes all steps.
    jitter : float, default 1e-6
        On the diagonal of every K_j, in units of k(0).
    init : {"comb", "fft"}, default "comb"
        Frequencies at the start: evenly up to f_max, or the peaks of the source's periodogram first.
    weights : {"log", "softplus"}, default "log"
        See `SpectralMixture1d`.
    residual_gp : bool, default False
        Whether a second Gaussian process with a plain Matérn kernel then fits what the first one leaves.
    inner_steps : int, default 5
        Gauss-Newton steps an outer step, for equations that are not linear.
    warm_start : bool, default False
        Whether ``fit`` goes on from what was learned (or loaded) before: for more steps, or another coefficient.

    Attributes
    ----------
    values_ : Tensor, shape (N_1, …, N_d)
        U.
    grids_ : list of Tensor
        The axes' points.
    history_ : list of float
        The objective J in nats, before every outer step.
    n_iter_ : int
        Outer steps made.
    converged_ : bool
        Whether ``tol`` was met.
    inner_converged_ : bool
        Whether the conjugate gradients of the last solve for U met their tolerance; dense solves always do. Where not,
        U is less accurate than the spectrum allows.

    Notes
    -----
    Everything is in float64: second derivatives of a 20-period kernel leave float32 no digits. A step costs
    O(Σ N_j³) for the kernels; for U O(N³) with one axis or up to 1,500 unknowns, else up to 600 steps of conjugate
    gradients, each O(N Σ N_j), and now and then M² N for the M boundary rows; memory O(N + Σ N_j² + M²).
    The equation is left in its own units: dividing it by its size makes v dimensionless and hides what is slow, because
    a slow component hardly shows in u''.

    References
    ----------
    S. Fang, M. Cooley, D. Long, S. Li, R. M. Kirby, S. Zhe (2024), ICLR, arXiv 2311.04465; G. H. Golub, V. Pereyra
    (2003), Inverse Problems 19(2), for the elimination of U.
    """

    values_: Tensor
    grids_: list[Tensor]
    history_: list[float]
    n_iter_: int
    converged_: bool
    inner_converged_: bool

    def __init__(
        self,
        equation: Equation,
        domain: Sequence[tuple[float, float]],
        n_grid: int | Sequence[int] | Sequence[Tensor],
        boundary: Boundary = 0.0,
        *,
        kernel: KernelName = "student_t",
        n_components: int = 30,
        f_max: float | None = None,
        boundary_weight: float = 200.0,
        optimizer: OptimizerName = "profile",
        max_iter: int = 200,
        learning_rate: float | None = None,
        tol: float = 0.0,
        jitter: float = 1e-6,
        init: Literal["comb", "fft"] = "comb",
        weights: WeightMap = "log",
        residual_gp: bool = False,
        inner_steps: int = 5,
        warm_start: bool = False,
    ) -> None:
        self.equation = equation
        self.domain = domain
        self.n_grid = n_grid
        self.boundary = boundary
        self.kernel = kernel
        self.n_components = n_components
        self.f_max = f_max
        self.boundary_weight = boundary_weight
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.tol = tol
        self.jitter = jitter
        self.init = init
        self.weights: WeightMap = weights
        self.residual_gp = residual_gp
        self.inner_steps = inner_steps
        self.warm_start = warm_start

    def fit(self, source: Source, *, callback_fn: Callable[[int, "GPHM"], bool | None] | None = None) -> Self:
        """Find u.

        Parameters
        ----------
        source : Tensor, callable or float
            f: on the grid, (N_1, …, N_d), or a function of d coordinate tensors of that shape.
        callback_fn : callable, optional
            Called with the number of steps made and the estimator after each; True stops the fit.

        Returns
        -------
        GPHM
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, the source is not finite, or the kernel lacks a derivative.
        ShapeError
            If source or boundary values do not fit the grid.
        SingularError
            If a kernel matrix cannot be factored; the message names the axis.
        """
        self._check()
        self.grids_ = make_grids(self.domain, self.n_grid)
        f = self._on_grid(source)
        if not (self.warm_start and hasattr(self, "kernels_")):
            self._start(f)
        problem = self._problem(self.equation, f)
        self.history_, self.n_iter_, self.converged_, self.inner_converged_ = [], 0, False, True
        self._second = None
        run = {"profile": self._fit_profile, "lbfgs": self._fit_lbfgs, "joint": self._fit_joint}[self.optimizer]
        run(problem, callback_fn)
        self._problem_solved = problem
        if self.residual_gp:
            self._fit_second(problem)
        return self

    # ------------------------------------------------------------------------------------------------- before the fit

    def _check(self) -> None:
        dim = len(self.domain)
        if not 1 <= dim <= 3:
            raise ArgumentError(f"GPHM: expected a domain of 1 to 3 axes, got {dim}")
        if not all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in self.domain):
            raise ArgumentError(f"GPHM: expected intervals (low, high) with low < high, got {self.domain}")
        for name, options in {
            "kernel": ("student_t", "gaussian", "matern52", "rbf"),
            "optimizer": ("profile", "lbfgs", "joint"),
            "init": ("comb", "fft"),
        }.items():
            if getattr(self, name) not in options:
                raise ArgumentError(f"GPHM: {name} must be one of {options}, got {getattr(self, name)!r}")
        for name in ("max_iter", "n_components", "inner_steps"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"GPHM: expected {name} >= 1, got {getattr(self, name)}")
        if not 0 < self.jitter <= 1e-4:
            raise ArgumentError(f"GPHM: expected 0 < jitter <= 1e-4, got {self.jitter}")
        if not self.boundary_weight > 0:
            raise ArgumentError(f"GPHM: expected boundary_weight > 0, got {self.boundary_weight}")
        if self.f_max is not None and not 0 <= self.f_max < math.inf:
            raise ArgumentError(f"GPHM: expected f_max >= 0, got {self.f_max}")

    def _on_grid(self, source: Source) -> Tensor:
        shape = tuple(len(g) for g in self.grids_)
        f = source(*torch.meshgrid(*self.grids_, indexing="ij")) if callable(source) else torch.as_tensor(source)
        if f.dtype != torch.float64:
            if f.ndim:
                warnings.warn(f"GPHM: the source is {f.dtype}; it is solved for in float64", stacklevel=3)
            f = f.to(torch.float64)
        if f.ndim == 0:
            f = f.expand(shape).clone()
        if f.shape != shape:
            raise ShapeError(f"GPHM: expected a source on the grid {shape}, got shape {tuple(f.shape)}")
        check_present("GPHM", "the source", f)
        if not bool(torch.isfinite(f).all()):
            raise ArgumentError("GPHM: the source has NaN or infinite values")
        return f.detach()

    def _start(self, f: Tensor) -> None:
        self.kernels_ = nn.ModuleList(self._kernel(axis, f) for axis in range(len(self.grids_)))
        self._log_tau = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self._log_v = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self._z = torch.zeros(f.shape, dtype=torch.float64)

    def _kernel(self, axis: int, f: Tensor) -> SpectralMixture1d:
        if self.kernel in ("matern52", "rbf"):
            return _plain_kernel("matern52" if self.kernel == "matern52" else "gaussian")
        grid, (low, high) = self.grids_[axis], self.domain[axis]
        nyquist = (len(grid) - 1) / (2 * (high - low))
        f_max = nyquist if self.f_max is None else self.f_max
        if f_max > nyquist * (1 + 1e-9):
            warnings.warn(
                f"GPHM: f_max = {f_max:g} is above {nyquist:g}, what the {len(grid)} points of axis {axis} can tell "
                "from a lower frequency; take more points or a lower f_max",
                stacklevel=4,
            )
        envelope: Envelope = "matern52" if self.kernel == "student_t" else "gaussian"
        kernel = SpectralMixture1d(self.n_components, envelope, f_max, weights=self.weights)
        if self.init == "fft":
            with torch.no_grad():
                kernel.frequency.copy_(fft_frequencies(f, grid, axis, self.n_components, f_max))
        return kernel

    def _problem(self, equation: Equation, f: Tensor) -> Problem:
        conditions = build_conditions(self.boundary, self.grids_, list(self._kernels))
        asked = orders_used(equation, f)
        used = [frozenset(orders[j] for orders in asked) for j in range(f.ndim)]
        orders = tuple(a | b for a, b in zip(used, conditions.orders, strict=True))
        for kernel, needed in zip(self._kernels, orders, strict=True):
            kernel.check_order(max(needed, default=0))
        return Problem(equation, f, conditions, orders)

    # -------------------------------------------------------------------------------------------------------- the fit

    @property
    def _kernels(self) -> list[SpectralMixture1d]:
        return [kernel for kernel in self.kernels_ if isinstance(kernel, SpectralMixture1d)]

    @property
    def _precisions(self) -> Precisions:
        return Precisions(self.boundary_weight, self._log_tau, self._log_v)

    def _parameters(self) -> list[nn.Parameter]:
        own = [p for p in self.kernels_.parameters() if p.requires_grad]
        unknown = list(self.equation.parameters()) if isinstance(self.equation, nn.Module) else []
        return [*own, self._log_tau, self._log_v, *unknown]

    def _factors(self, orders: Sequence[frozenset[int]]) -> list[AxisFactors]:
        return [
            axis_factors(kernel, grid, needed, self.jitter, axis)
            for axis, (kernel, grid, needed) in enumerate(zip(self._kernels, self.grids_, orders, strict=True))
        ]

    def _cap(self) -> None:
        with torch.no_grad():
            self._log_tau.clamp_(max=LOG_PRECISION_CAP)
            self._log_v.clamp_(max=LOG_PRECISION_CAP)

    def _profiled(self, problem: Problem, inner: InnerSolver) -> tuple[Tensor, Tensor]:
        # -J with the best U, whose dependence on the parameters does not change the gradient (envelope theorem)
        axes = self._factors(problem.orders)
        fixed = [axis.detach() for axis in axes]
        self._z = inner.solve(fixed, self._z, self._precisions)
        U = unwhiten(fixed, self._z)
        z = whiten(axes, U)
        return -log_joint(axes, z, problem.equation, problem.source, problem.conditions, self._precisions), U

    def _inner(self, problem: Problem) -> InnerSolver:
        return InnerSolver(problem.equation, problem.source, problem.conditions, max_steps=self.inner_steps)

    def _finish(self, problem: Problem, inner: InnerSolver) -> None:
        # the last parameter step has left U behind
        with torch.no_grad():
            self._axes = [axis.detach() for axis in self._factors(problem.orders)]
            self._z = inner.solve(self._axes, self._z, self._precisions)
            self.values_ = unwhiten(self._axes, self._z)
        self.inner_converged_ = inner.converged

    def _fit_profile(self, problem: Problem, callback_fn: Callable[[int, "GPHM"], bool | None] | None) -> None:
        inner, parameters = self._inner(problem), self._parameters()
        adam = torch.optim.Adam(parameters, lr=self.learning_rate or 0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.max_iter)
        before: Tensor | None = None
        with progress("GP-HM", self.max_iter, unit="step") as advance:
            for step in range(1, self.max_iter + 1):
                adam.zero_grad()
                loss, self.values_ = self._profiled(problem, inner)
                loss.backward()
                adam.step()
                schedule.step()
                self._cap()
                self.history_.append(-float(loss.detach()))
                self.n_iter_ = step
                advance(1)
                if callback_fn is not None and callback_fn(step, self):
                    break
                if before is not None and _moved(before, self.values_) < self.tol:
                    self.converged_ = True
                    break
                before = self.values_
        self._finish(problem, inner)

    def _fit_lbfgs(self, problem: Problem, callback_fn: Callable[[int, "GPHM"], bool | None] | None) -> None:
        inner, parameters = self._inner(problem), self._parameters()
        lbfgs = torch.optim.LBFGS(
            parameters, lr=self.learning_rate or 1.0, max_iter=1, history_size=20, line_search_fn="strong_wolfe"
        )
        before: Tensor | None = None

        def closure() -> Tensor:
            self._cap()  # a line search looks far ahead
            lbfgs.zero_grad()
            loss, self.values_ = self._profiled(problem, inner)
            loss.backward()
            return loss.detach()

        for step in range(1, self.max_iter + 1):
            self.history_.append(-float(lbfgs.step(closure)))
            self._cap()
            self.n_iter_ = step
            if callback_fn is not None and callback_fn(step, self):
                break
            if before is not None and _moved(before, self.values_) < self.tol:
                self.converged_ = True
                break
            before = self.values_
        self._finish(problem, inner)

    def _fit_joint(self, problem: Problem, callback_fn: Callable[[int, "GPHM"], bool | None] | None) -> None:
        U = nn.Parameter(self.values_.clone() if hasattr(self, "values_") and self.warm_start else self._z.clone())
        adam = torch.optim.Adam([U, *self._parameters()], lr=self.learning_rate or 0.01)
        for step in range(1, self.max_iter + 1):
            adam.zero_grad()
            axes = self._factors(problem.orders)
            z = whiten(axes, U)
            loss = -log_joint(axes, z, problem.equation, problem.source, problem.conditions, self._precisions)
            loss.backward()
            before = U.detach().clone()
            adam.step()
            self._cap()
            self.values_ = U.detach()
            self.history_.append(-float(loss.detach()))
            self.n_iter_ = step
            if callback_fn is not None and callback_fn(step, self):
                break
            if _moved(before, self.values_) < self.tol:
                self.converged_ = True
                break
        with torch.no_grad():
            self._axes = [axis.detach() for axis in self._factors(problem.orders)]
            self._z = whiten(self._axes, self.values_)

    def _fit_second(self, problem: Problem) -> None:
        first = {orders: self._derivative(orders) for orders in orders_used(problem.equation, problem.source)}
        left = problem.conditions.values - problem.conditions.rows_fn(self._axes).apply(self._z)
        second = GPHM(**self.get_params() | {"kernel": "matern52", "residual_gp": False, "optimizer": "profile"})
        second.grids_ = self.grids_
        second._start(problem.source)
        asked = build_conditions(self.boundary, self.grids_, second._kernels)
        conditions = Conditions(asked.rows_fn, left, asked.orders)
        rest = Problem(Sum(problem.equation, self.values_, first), problem.source, conditions, problem.orders)
        second.history_, second.n_iter_, second.converged_, second._second = [], 0, False, None
        second._fit_profile(rest, None)
        second._problem_solved = rest
        self._second = second
        self.values_ = self.values_ + second.values_

    def _derivative(self, orders: Orders) -> Tensor:
        return multi_mode_product(self._z, [axis.orders[p] for axis, p in zip(self._axes, orders, strict=True)])

    # -------------------------------------------------------------------------------------------------- after the fit

    @overload
    def predict(
        self,
        coordinates: Tensor | Sequence[Tensor],
        *,
        order: Sequence[int] | None = None,
        return_std: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def predict(
        self, coordinates: Tensor | Sequence[Tensor], *, order: Sequence[int] | None = None, return_std: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def predict(
        self,
        coordinates: Tensor | Sequence[Tensor],
        *,
        order: Sequence[int] | None = None,
        return_std: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate u, or a derivative of it, anywhere in the box.

        Parameters
        ----------
        coordinates : Tensor of shape (M, d), or sequence of d Tensors of shapes (M_j,)
            Points, or the axes of a grid of points.
        order : sequence of int, optional
            Derivatives along each axis. Default: none.
        return_std : bool, default False
            Whether to give the standard deviation as well: the process's own between grid points, given U, and that
            of U by Laplace's approximation. Kernels and precisions count as known, so it errs on the small side where
            few data decide them.

        Returns
        -------
        Tensor, shape (M,) or (M_1, …, M_d)
            The posterior mean.
        Tensor, of the same shape
            The standard deviation, only if asked for; one dense O(N³) factorisation.

        Raises
        ------
        ArgumentError
            If nothing was fitted, an order does not exist, or a deviation is asked of a derivative or of more than
            1,500 unknowns.
        ShapeError
            If the coordinates do not fit the domain.
        """
        if not hasattr(self, "_axes"):
            raise ArgumentError("GPHM.predict: call fit first")
        dim = len(self.grids_)
        orders = (0,) * dim if order is None else tuple(order)
        if len(orders) != dim:
            raise ArgumentError(f"GPHM.predict: expected {dim} orders, got {orders}")
        is_grid = not isinstance(coordinates, Tensor)
        axes = [c.to(torch.float64) for c in (coordinates if is_grid else _points(coordinates, dim))]
        if is_grid and len(axes) != dim:
            raise ShapeError(f"GPHM.predict: expected {dim} axes of coordinates, got {len(axes)}")
        with torch.no_grad():
            rows = kernel_rows(self._kernels, self.grids_, self._axes, axes, orders)
            mean = multi_mode_product(self._z, rows) if is_grid else Rows(tuple(rows)).apply(self._z)
            second, more = self._second, rows
            if second is not None:
                more = kernel_rows(second._kernels, self.grids_, second._axes, axes, orders)
                mean = mean + (multi_mode_product(second._z, more) if is_grid else Rows(tuple(more)).apply(second._z))
            if not return_std:
                return mean
            if any(orders):
                raise ArgumentError("GPHM.predict: standard deviations are those of u; leave out order")
            variance = self._variance(axes, rows, is_grid)
            if second is not None:
                variance = variance + second._variance(axes, more, is_grid)
            return mean, variance.clamp_min(0).sqrt().reshape(mean.shape)

    def _variance(self, axes: Sequence[Tensor], rows: Sequence[Tensor], is_grid: bool) -> Tensor:
        problem = self._problem_solved
        if problem is None:
            raise ArgumentError("GPHM.predict: a loaded state has no source to take deviations from; call fit")
        if self._z.numel() > STD_LIMIT:
            raise ArgumentError(
                f"GPHM.predict: standard deviations factor a dense matrix of {self._z.numel()} unknowns; the limit is "
                f"{STD_LIMIT}"
            )
        if is_grid:
            index = [i.reshape(-1) for i in torch.meshgrid(*(torch.arange(len(a)) for a in axes), indexing="ij")]
            rows = [r[i] for r, i in zip(rows, index, strict=True)]
        normal, _ = self._inner(problem).normal_equations(self._axes, self._z, self._precisions)
        flat = Rows(tuple(rows)).dense()
        prior = math.prod(float(kernel.weight.sum()) for kernel in self._kernels)
        _, upper = normal.factor(problem.conditions.values, problem.source)
        learned = torch.linalg.solve_triangular(upper.mT, flat.mT, upper=False).square().sum(0)
        return prior - flat.square().sum(1) + learned

    @property
    def frequencies_(self) -> list[Spectrum]:
        """The spectrum of each axis, the heaviest component first."""
        return [spectrum_of(kernel) for kernel in self._kernels]

    def state_dict(self) -> dict[str, Any]:
        """Collect what was learned, to save with ``torch.save`` or compare.

        Returns
        -------
        dict
            Kernels, precisions, values and the equation's own parameters; a residual process is not part of it.

        Raises
        ------
        ArgumentError
            If nothing was fitted.
        """
        if not hasattr(self, "kernels_"):
            raise ArgumentError("GPHM.state_dict: call fit first")
        own = self.equation.state_dict() if isinstance(self.equation, nn.Module) else {}
        return {
            "kernels": self.kernels_.state_dict(),
            "log_tau": self._log_tau.detach().clone(),
            "log_v": self._log_v.detach().clone(),
            "z": self._z.clone(),
            "equation": own,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Self:
        """Take up what another estimator of the same parameters learned; ``fit`` with ``warm_start=True`` goes on.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Returns
        -------
        GPHM
            Itself.

        Raises
        ------
        ShapeError
            If the grid is another one.
        """
        self._check()
        self.grids_ = make_grids(self.domain, self.n_grid)
        shape = tuple(len(g) for g in self.grids_)
        if tuple(state["z"].shape) != shape:
            raise ShapeError(f"GPHM.load_state_dict: the state has grid {tuple(state['z'].shape)}, this one {shape}")
        self._start(torch.zeros(shape, dtype=torch.float64))
        self.kernels_.load_state_dict(state["kernels"])
        if isinstance(self.equation, nn.Module):
            self.equation.load_state_dict(state["equation"])
        with torch.no_grad():
            self._log_tau.copy_(state["log_tau"])
            self._log_v.copy_(state["log_v"])
            self._z = state["z"].clone()
            self._axes = [axis.detach() for axis in self._factors([frozenset[int]()] * len(shape))]
            self.values_ = unwhiten(self._axes, self._z)
        self._second, self._problem_solved = None, None
        return self


def _moved(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / after.norm().clamp_min(1e-300))


def _points(coordinates: Tensor, dim: int) -> list[Tensor]:
    if coordinates.ndim != 2 or coordinates.shape[1] != dim:
        raise ShapeError(f"GPHM.predict: expected points of shape (M, {dim}), got {tuple(coordinates.shape)}")
    return list(coordinates.T)


def _plain_kernel(envelope: Literal["matern52", "gaussian"]) -> SpectralMixture1d:
    kernel = SpectralMixture1d(1, envelope, 0.0)
    kernel.frequency.requires_grad_(False)
    return kernel
