"""BO-REP: normalised momentum for x, a refined y at the start, and y held fixed between short loops of SGD.

    every I iterations   y ← N steps of SGD on g(x, ·) from y, averaged
    v ← v - ν (g_yy v - f_y),   m ← β m + (1 - β) d,   d = f_x - g_xy v,   x ← x - η m / ‖m‖

Shapes: N entries of x, M of y.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hesse.bilevel.bo_rep.epoch_sgd import epoch_sgd
from hesse.bilevel.bo_rep.normalized_momentum import unit_direction
from hesse.bilevel.counts import Budget
from hesse.bilevel.hypergradient.lower import solve_lower
from hesse.bilevel.oracle import JointProducts
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive
from hesse.bilevel.trace import BilevelResult, TraceRow
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg.eigen.power import spectral_norm
from hesse.linalg.projections import Ball
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.solution import Status

__all__ = ["BOREP"]

_MEASURE_EVERY = 100  # iterations between two estimates of ‖g_yy‖
_POWER_STEPS = 10  # of two products each; they start from the last eigenvector
_LARGEST_LINEAR = 0.1  # of ν where it is chosen here: above it v was seen to diverge on recurrent networks
_START_STEPS = 10  # of conjugate gradients, for the first v
_WATCH_EVERY = 10  # iterations between two looks at ‖v‖
_GROWTH = 1.5  # of ‖v‖ between two looks, with a residual far above ‖f_y‖, that counts as divergence
_DRIFT = 2.0  # of ‖g_y‖ since the last refresh, that makes an adaptive period end
_LONGEST = 10  # iterations of an adaptive period: where noise drowns the drift, y must not wait for ever
_REFINED = 1e-8  # of the first ‖g_y‖, at which a refinement by Newton's method ends


class BOREP(BilevelSolver):
    """For upper objectives whose curvature grows with their gradient: one step length serves near and far starts.

    A step moves x by exactly η, so that y*(x) moves by at most I η L / μ between two refreshes, however large the
    gradient is: that is what lets y wait.

    Parameters
    ----------
    problem : BilevelProblem
        Its lower level strongly convex: give a network's head a ridge. ``project_x`` and ``project_y`` are obeyed.
    lr : float, default 0.05
        η, the length of a step, over all of x together.
    lr_lower : float, optional
        γ, step of y. Default: 1 / ‖g_yy‖, by power iteration on a fresh batch every 100 iterations.
    lr_linear : float, optional
        ν, step of v, below 2 / ‖g_yy‖. Default: min(0.1, 1 / ‖g_yy‖), likewise.
    momentum : float, default 0.9
        β in [0, 1).
    period : int or "adaptive", default 2
        I, iterations from one refresh of y to the next. "adaptive": when ‖g_y‖ on an iteration's batch exceeds twice
        its value on the first batch after the last refresh, and every 10 iterations at the latest.
    lower_steps : int, default 3
        N, steps of a refresh. A longer period wants more of them, of the order of I.
    radius : float, default inf
        R of the ball around the entry point that a refresh, and the first epoch of the refinement, stays in.
    average : bool, default True
        Whether a refresh ends at the mean of its later half of iterates rather than at the last.
    refine_epochs : int, default 3
        Epochs of SGD before the first step; see `epoch_sgd`. 0: none.
    refine_steps : int, default 20
        Steps of the first of them; about 4 L / μ of the lower level.
    refinement : {"sgd", "newton"}, default "sgd"
        "newton": solve the lower level on all its data instead, by `solve_lower`; exact where that is affordable.
    recursive : bool, default False
        m ← d(x_t) + β (m - d(x_{t-1})), both on one batch: less variance for twice the products (STORM).
    lr_decay : {"linear"} or None, default "linear"
        Whether η falls to 0 over ``horizon``. Without it the hypergradient's norm stays at about η times its curvature.
    horizon : Budget, optional
        Default: the budget of each `run`; bare calls of `step` then do not decay.
    seed : int, default 0
        Of power iteration's first vector.

    Raises
    ------
    ArgumentError
        If a setting is out of range, or "newton" meets a constrained lower level.

    Warns
    -----
    RuntimeWarning
        If the average is exactly zero, which leaves x where it is: f and g do not reach x, or it is stationary. If v
        diverges: ν was above 2 / ‖g_yy‖; it is halved, and v and m start again. If g_yy has negative curvature.

    Notes
    -----
    An iteration takes one gradient of f, one joint double backward of g on a batch that v and d share, and N / I
    gradients of g on fresh batches. Memory: x, y, v, m and one graph; ``recursive`` keeps x, y and v twice. The theory
    asks for independent batches in d and v, for 1 - β of order ε² and η of order ε (1 - β). The first v comes from ten
    steps of conjugate gradients on one batch. Problems of blocks are taken whole, with one length for all of x. Under
    automatic mixed precision keep x and y in float32 and cast inside the losses: norms are accumulated in float64.

    References
    ----------
    J. Hao, X. Gong, M. Liu (2024), ICLR, arXiv 2401.09587; A. Cutkosky, F. Orabona (2019), NeurIPS, arXiv 1905.10018,
    for ``recursive``.
    """

    tensors: ClassVar[tuple[str, ...]] = (
        "x",
        "y",
        "v",
        "average",
        "weight",
        "lipschitz",
        "top",
        "drift",
        "watched",
        "shrink_linear",
        "earlier_x",
        "earlier_y",
        "earlier_v",
    )

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float = 0.05,
        lr_lower: float | None = None,
        lr_linear: float | None = None,
        momentum: float = 0.9,
        period: int | Literal["adaptive"] = 2,
        lower_steps: int = 3,
        radius: float = math.inf,
        average: bool = True,
        refine_epochs: int = 3,
        refine_steps: int = 20,
        refinement: Literal["sgd", "newton"] = "sgd",
        recursive: bool = False,
        lr_decay: Literal["linear"] | None = "linear",
        horizon: Budget | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, seed=seed)
        given = {"lr_lower": lr_lower, "lr_linear": lr_linear}
        positive("BOREP", lr=lr, **{name: value for name, value in given.items() if value is not None})
        if not 0 <= momentum < 1:
            raise ArgumentError(f"BOREP: expected 0 <= momentum < 1, got {momentum}")
        if isinstance(period, str):
            if period != "adaptive":
                raise ArgumentError(f"BOREP: period must be a number of iterations or 'adaptive', got {period!r}")
        else:
            at_least("BOREP", "period", period, 1)
        at_least("BOREP", "lower_steps", lower_steps, 1)
        at_least("BOREP", "refine_epochs", refine_epochs, 0)
        at_least("BOREP", "refine_steps", refine_steps, 1)
        if not radius > 0:
            raise ArgumentError(f"BOREP: expected radius > 0, got {radius}")
        if lr_decay not in ("linear", None):
            raise ArgumentError(f"BOREP: lr_decay must be 'linear' or None, got {lr_decay!r}")
        if refinement not in ("sgd", "newton"):
            raise ArgumentError(f"BOREP: refinement must be 'sgd' or 'newton', got {refinement!r}")
        if refinement == "newton" and (problem.project_y is not None or problem.constraint is not None):
            raise ArgumentError("BOREP: refinement='newton' needs a lower level without constraints; use 'sgd'")
        self.lr, self.lr_lower, self.lr_linear, self.momentum = lr, lr_lower, lr_linear, momentum
        self.period, self.lower_steps, self.radius, self.tail_average = period, lower_steps, radius, average
        self.refine_epochs, self.refine_steps, self.refinement = refine_epochs, refine_steps, refinement
        self.recursive, self.lr_decay, self.horizon = recursive, lr_decay, horizon
        self._budget: Budget | None = None
        self.v = torch.zeros_like(self.y)
        self.average = torch.zeros_like(self.x)
        self.weight = torch.zeros((), dtype=torch.float64)  # of all estimates in the average
        self.lipschitz: Tensor | None = None  # ‖g_yy‖
        self.top: Tensor | None = None  # the eigenvector it came from
        self.drift: Tensor | None = None  # (3,): ‖g_y‖ just after the last refresh, and now; iterations
        self.watched: Tensor | None = None  # ‖v‖ at the last look
        self.shrink_linear = torch.ones((), dtype=torch.float64)
        self.earlier_x: Tensor | None = None
        self.earlier_y: Tensor | None = None
        self.earlier_v: Tensor | None = None

    def run(
        self,
        budget: Budget,
        callback: Callable[[TraceRow], bool | None] | None = None,
        *,
        tol: float = 0.0,
        trace_every: int = 1,
    ) -> BilevelResult:
        """Make steps until the budget is spent; the length of steps falls to 0 with it, unless told otherwise.

        Parameters
        ----------
        budget : Budget
            Counted from the solver's beginning. To stop on the way and go on later along the same schedule, give the
            whole of it as ``horizon``.
        callback, tol, trace_every
            As of `BilevelSolver.run`.

        Returns
        -------
        BilevelResult
            As of `BilevelSolver.run`.
        """
        self._budget = budget
        return super().run(budget, callback, tol=tol, trace_every=trace_every)

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            m, divided by the sum of its weights: the average of the estimates, which x has moved along by η.

        Raises
        ------
        NumericalError
            If a step is to be chosen and g_yy is zero.
        """
        if self.iteration % _MEASURE_EVERY == 0:
            self._measure()
        if self.iteration == 0:
            self._start()
        elif self._is_due():
            self.y, self.drift = self._refreshed(), None
        upper_batch, lower_batch = self.draw_upper(), self.draw_lower()
        products, estimate, upper_y = self._derivatives(self.x, self.y, self.v, upper_batch, lower_batch)
        estimate = self._averaged(estimate, upper_batch, lower_batch)
        self._follow(products)
        if self.recursive:
            self.earlier_x, self.earlier_y, self.earlier_v = self.x, self.y, self.v
        residual = products.hessian_product - upper_y
        self.v = self.v - self._linear_step() * residual
        if not bool(self.average.any()):
            warnings.warn(
                "BOREP: the average of the estimates is exactly zero and x stays; is it stationary, or do the losses "
                "not depend on it?",
                RuntimeWarning,
                stacklevel=2,
            )
        self.x = self.oracle.project_x(self.x - self.lr * self._decay() * self._direction())
        if (self.iteration + 1) % _WATCH_EVERY == 0:
            self._watch(residual, upper_y)
        return estimate

    def _direction(self) -> Tensor:
        return unit_direction(self.average)

    def _decay(self) -> float:
        horizon = self._budget if self.horizon is None else self.horizon
        if self.lr_decay is None or horizon is None:
            return 1.0
        return 1 - horizon.fraction(self.iteration, self.oracle.counts.calls, self.seconds)

    def _derivatives(
        self, x: Tensor, y: Tensor, v: Tensor, upper_batch: Any, lower_batch: Any
    ) -> tuple[JointProducts, Tensor, Tensor]:
        upper_x, upper_y = self.oracle.upper_gradients(x, y, upper_batch)
        products = self.oracle.joint(x, y, v, lower_batch)
        return products, upper_x - products.jacobian_product, upper_y

    def _averaged(self, estimate: Tensor, upper_batch: Any, lower_batch: Any) -> Tensor:
        x, y, v = self.earlier_x, self.earlier_y, self.earlier_v
        if self.recursive and x is not None and y is not None and v is not None:
            _, earlier, _ = self._derivatives(x, y, v, upper_batch, lower_batch)
            self.average = estimate + self.momentum * (self.average - earlier)
            return self.average
        first = self.recursive  # a recursion starts from an estimate, an average from zero
        self.average = estimate if first else torch.lerp(estimate, self.average, self.momentum)
        self.weight = torch.ones_like(self.weight) if first else 1 - self.momentum * (1 - self.weight)
        return self.average / float(self.weight)

    def _start(self) -> None:
        oracle, x = self.oracle, self.x
        if self.refinement == "newton":
            first = float(oracle.lower_gradient(x, self.y).norm())
            self.y = solve_lower(oracle, x, self.y, tol=max(_REFINED * first, 1e-14)).y
        else:
            self.y = epoch_sgd(
                self._lower_gradient,
                self.y,
                step=self._lower_step() / 2,
                epochs=self.refine_epochs,
                radius=self.radius,
                steps0=self.refine_steps,
                project=oracle.project_y,
            )
        _, upper_y = oracle.upper_gradients(x, self.y, self.draw_upper())
        operator = oracle.lower_hessian(x, self.y, self.draw_lower(), is_psd=True)
        found = cg(operator, upper_y, rtol=1e-8, max_steps=_START_STEPS, validate=False)
        if found.status == Status.NEGATIVE_CURVATURE:
            warnings.warn(
                "BOREP: the lower level has negative curvature at its start, where y* is no minimum to follow; add a "
                "ridge to it",
                RuntimeWarning,
                stacklevel=3,
            )
        self.v = found.x

    def _lower_gradient(self, y: Tensor) -> Tensor:
        return self.oracle.lower_gradient(self.x, y, self.draw_lower())

    def _refreshed(self) -> Tensor:
        y, total = self.y, torch.zeros_like(self.y)
        ball = None if math.isinf(self.radius) else Ball(self.radius, y)
        counted = (self.lower_steps + 1) // 2
        size = self._lower_step()
        for step in range(self.lower_steps):
            y = y - size * self._lower_gradient(y)
            y = self.oracle.project_y(y if ball is None else ball(y))
            if step >= self.lower_steps - counted:
                total = total + y
        return total / counted if self.tail_average else y

    def _is_due(self) -> bool:
        if not isinstance(self.period, str):
            return self.iteration % self.period == 0
        return self.drift is not None and bool((self.drift[1] > _DRIFT * self.drift[0]) | (self.drift[2] >= _LONGEST))

    def _follow(self, products: JointProducts) -> None:
        if self.period == "adaptive":
            norm = products.lower_gradient.norm()
            first, waited = (norm, torch.zeros_like(norm)) if self.drift is None else (self.drift[0], self.drift[2])
            self.drift = torch.stack([first, norm, waited + 1])

    def _measure(self) -> None:
        if self.lr_lower is not None and self.lr_linear is not None:
            return
        start = self.top
        if start is None:
            start = torch.randn(len(self.y), generator=self.generator, dtype=torch.float64).to(self.y)
        operator = self.oracle.lower_hessian(self.x, self.y, self.draw_lower(), is_psd=True)
        found = spectral_norm(operator, max_steps=_POWER_STEPS, tol=1e-2, start=start)
        self.lipschitz, self.top = found.eigenvalues[0].double(), found.eigenvectors[:, 0]

    def _lower_step(self) -> float:
        return 1 / self._curvature() if self.lr_lower is None else self.lr_lower

    def _linear_step(self) -> float:
        chosen = min(_LARGEST_LINEAR, 1 / self._curvature()) if self.lr_linear is None else self.lr_linear
        return chosen * float(self.shrink_linear)

    def _curvature(self) -> float:
        value = math.nan if self.lipschitz is None else float(self.lipschitz)
        if not value > 0:
            raise NumericalError("BOREP: g_yy is zero, so that no step can be chosen; pass lr_lower and lr_linear")
        return value

    def _watch(self, residual: Tensor, upper_y: Tensor) -> None:
        norm = torch.linalg.vector_norm(self.v, dtype=torch.float64)
        before, self.watched = self.watched, norm
        if before is None or not bool(norm > _GROWTH * before) or not bool(residual.norm() > 2 * upper_y.norm()):
            return
        self.shrink_linear, self.watched = self.shrink_linear / 2, None
        self.v, self.average = torch.zeros_like(self.v), torch.zeros_like(self.average)
        self.weight = torch.zeros_like(self.weight)
        self.earlier_x = None
        warnings.warn(
            f"BOREP: v diverges, lr_linear is above 2 / ‖g_yy‖; it is halved to {self._linear_step():.3g} and v starts "
            "again",
            RuntimeWarning,
            stacklevel=3,
        )
