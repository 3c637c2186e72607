"""Preconditioned descent u ← u - η (shift - Δ)⁻¹ DE(u) with a certificate of its Barron norm."""

import warnings
from collections.abc import Callable
from math import isfinite, log, nan
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from hesse._estimator import Estimator
from hesse.errors import ArgumentError, ConvergenceError, NumericalError
from hesse.linalg import armijo
from hesse.pde.barron import FourierSeries, next_log_bound
from hesse.pde.variational._acceleration import Anderson, Momentum, newton_direction
from hesse.pde.variational._spaces import GridSpace, Space, SparseSpace
from hesse.pde.variational.energy import EllipticEnergy
from hesse.pde.variational.ledger import CertificateReport, DescentRecord, certificate_report

__all__ = ["PreconditionedDescent"]

_DECREASE = 0.25  # of the slope: Armijo's constant
_ROUNDING = 1e3  # rounding errors of the energy, below which its differences say nothing
_GROWTH = 1e8  # of the gradient's norm: a fixed step beyond 2/β diverges


class PreconditionedDescent(Estimator):
    """Minimise an `EllipticEnergy`; every iterate is a sparse Fourier sum, so a two-layer network.

    The preconditioner is the Riesz map of H¹, which makes the number of steps independent of the resolution. For at
    most three axes finite elements with Newton's method are the better tool; this one offers a bound on the error, a
    bound on the Barron norm, and sparse solutions in many dimensions.

    Parameters
    ----------
    energy : EllipticEnergy
        What to minimise.
    backend : {"sparse", "grid"}, default "sparse"
        ``sparse``: the algebra of series, any dimension, polynomial potentials. ``grid``: all sine frequencies up to
        ``num_modes`` in at most three axes, any integrand.
    step : {"armijo"} or float, default "armijo"
        η. A number is used throughout. ``armijo``: 1/β where β is known, else backtracking from twice the last step
        (from 1 at the start and at most) until the energy falls by a quarter of η‖g‖²; where energies no longer resolve
        that, until the gradient does not grow.
    accelerate : {"nesterov", "anderson", "newton"}, optional
        ``nesterov``: momentum from α and the known β. ``anderson``: the best combination of the last six iterates.
        ``newton``: Newton's direction by conjugate gradients in H¹, on the grid only. Default: plain descent, the only
        one whose Barron norms are certified.
    tol : float, default 1e-10
        Stop where the gradient's H¹ norm is at most ``tol`` times that at u = 0.
    max_steps : int, default 500
        Steps at most.
    max_terms : int, default 20000
        Terms kept after a step, for ``sparse``; hitting it is recorded and warned of.
    truncation : float, default 1e-10
        δ₀: a step drops terms of H¹ norm δ₀ (1 - α/β)^(t/2) times that of the first gradient; in all this shifts the
        solution by O(δ₀ β/α).
    num_modes : int, default 64
        K for ``grid``.
    shift : float, default 1.0
        Of the preconditioner (shift - Δ)⁻¹. With 0, Dirichlet values and V = 0 one step of 1 is exact.
    dtype : torch.dtype, default torch.float64
        Of the grid; single precision reaches relative gradients of some 1e-5. Series keep the source's precision.
    device : str, default "cpu"
        Of the grid.

    Attributes
    ----------
    solution_ : FourierSeries
        The last iterate.
    history_ : list of DescentRecord
        One for each iterate, u_0 among them.
    converged_ : bool
        Whether ``tol`` was reached.
    n_iter_ : int
        Steps taken.

    References
    ----------
    T. Marwah, Z. C. Lipton, J. Lu, A. Risteski (2023), ICML, arXiv 2210.12101.
    """

    def __init__(
        self,
        energy: EllipticEnergy,
        *,
        backend: Literal["sparse", "grid"] = "sparse",
        step: Literal["armijo"] | float = "armijo",
        accelerate: Literal["nesterov", "anderson", "newton"] | None = None,
        tol: float = 1e-10,
        max_steps: int = 500,
        max_terms: int = 20_000,
        truncation: float = 1e-10,
        num_modes: int = 64,
        shift: float = 1.0,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        self.energy = energy
        self.backend: Literal["sparse", "grid"] = backend
        self.step: Literal["armijo"] | float = step
        self.accelerate: Literal["nesterov", "anderson", "newton"] | None = accelerate
        self.tol = tol
        self.max_steps = max_steps
        self.max_terms = max_terms
        self.truncation = truncation
        self.num_modes = num_modes
        self.shift = shift
        self.dtype = dtype
        self.device = device

    def fit(
        self,
        X: object = None,
        y: object = None,
        *,
        initial: FourierSeries | None = None,
        observe_fn: Callable[[int, FourierSeries], None] | None = None,
    ) -> Self:
        """Run the descent.

        Parameters
        ----------
        X, y : object, optional
            Ignored: the equation is the data.
        initial : FourierSeries, optional
            u_0, the solution of a neighbouring problem for continuation. Default: zero.
        observe_fn : callable, optional
            Called with t and u_t, u_0 included.

        Returns
        -------
        PreconditionedDescent
            Itself. That the tolerance was missed is told by ``converged_``.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, or the backend cannot hold the energy.
        ConvergenceError
            If a fixed step makes the iteration diverge.
        NumericalError
            If the energy or its gradient stops being finite.
        """
        del X, y
        self._check()
        space = self._space()
        alpha = self.energy.strong_convexity(self.shift)
        beta = self.energy.smoothness(shift=self.shift)
        u = space.zero() if initial is None else space.from_series(initial)
        scale = space.inner(zero_gradient := space.gradient(space.zero()), zero_gradient) ** 0.5
        gradient = space.gradient(u)
        rule = self._accelerator(space, alpha, beta)
        searching = isinstance(self.step, str) and beta is None
        log_bounds = [log(start) if (start := space.barron_norm(u)) > 0 else -float("inf")]
        source_norm = space.source_norm()
        self.history_: list[DescentRecord] = []
        self.converged_, taken, size, capped, rate = False, 0, 0.0, False, 1.0
        while True:
            norm = space.inner(gradient, gradient) ** 0.5
            self._record(space, u, norm, alpha, log_bounds[-1], size, capped)
            if observe_fn is not None:
                observe_fn(taken, space.to_series(u))
            if norm <= self.tol * scale:
                self.converged_ = True
            if self.converged_ or taken == self.max_steps:
                break
            if norm > _GROWTH * max(scale, 1e-300):
                raise ConvergenceError(
                    f"PreconditionedDescent: diverged after {taken} steps of {size}; a step must stay below 2/β = "
                    f"{2 / self.history_[0].smoothness:.3g} or less: use step='armijo'"
                )
            point, direction, base = rule(u, gradient) if rule else _steepest(space, u, gradient, searching)
            size = self._step_size(space, point, direction, base, size, beta)
            if size == 0:
                break
            rate *= max(1 - alpha / self.history_[-1].smoothness, 0.0) ** 0.5
            u, capped = space.trim(space.step(point, direction, size), self.truncation * rate * scale)
            gradient = space.gradient(u)
            taken += 1
            log_bounds.append(self._next_bound(log_bounds[-1], size, source_norm))
        self.n_iter_ = taken
        self.solution_ = space.to_series(u)
        self._alpha = alpha
        if isinstance(space, GridSpace):
            space.warn_of_aliasing()
        if any(record.capped for record in self.history_):
            warnings.warn(
                f"PreconditionedDescent: the cap of {self.max_terms} terms removed more than the truncation rule "
                "allows; raise max_terms, or read the error bound before trusting the digits",
                stacklevel=2,
            )
        return self

    def predict(self, X: Tensor) -> Tensor:
        """Evaluate the solution.

        Parameters
        ----------
        X : Tensor, shape (N, D)
            Points of the unit cube.

        Returns
        -------
        Tensor, shape (N,)
            u.

        Raises
        ------
        ArgumentError
            Before `fit`.
        """
        if not hasattr(self, "solution_"):
            raise ArgumentError("PreconditionedDescent.predict: call fit first")
        return self.solution_(X)

    def certificate_report(self) -> CertificateReport:
        """Put what is proved beside what was measured.

        Returns
        -------
        CertificateReport
            The energy of the last iterate stands for the minimum in the observed rate.

        Raises
        ------
        ArgumentError
            Before `fit`.
        """
        if not hasattr(self, "solution_"):
            raise ArgumentError("PreconditionedDescent.certificate_report: call fit first")
        return certificate_report(self.history_, self._alpha, self.solution_)

    def _check(self) -> None:
        if self.backend not in ("sparse", "grid"):
            raise ArgumentError(f"PreconditionedDescent: expected backend 'sparse' or 'grid', got {self.backend!r}")
        if isinstance(self.step, str):
            if self.step != "armijo":
                raise ArgumentError(f"PreconditionedDescent: expected step 'armijo' or a number, got {self.step!r}")
        elif not self.step > 0:
            raise ArgumentError(f"PreconditionedDescent: expected step > 0, got {self.step}")
        else:
            beta = self.energy.smoothness(shift=self.shift)
            if beta is not None and self.step >= 2 / beta:
                raise ArgumentError(
                    f"PreconditionedDescent: step={self.step} is not below 2/β = {2 / beta:.4g}: descent would diverge"
                )
        if self.accelerate not in (None, "nesterov", "anderson", "newton"):
            raise ArgumentError(f"PreconditionedDescent: unknown accelerate={self.accelerate!r}")
        if self.accelerate == "newton" and self.backend != "grid":
            raise ArgumentError("PreconditionedDescent: accelerate='newton' needs backend='grid', a fixed set of terms")
        for name, low in (("tol", 0), ("truncation", 0), ("max_steps", 1), ("max_terms", 1), ("num_modes", 1)):
            if not getattr(self, name) >= low:
                raise ArgumentError(f"PreconditionedDescent: expected {name} >= {low}, got {getattr(self, name)}")
        if not self.shift + self.energy.lowest > 0 or self.shift < 0:
            raise ArgumentError(f"PreconditionedDescent: expected shift > 0 (>= 0 with Dirichlet), got {self.shift}")

    def _space(self) -> Space:
        if self.backend == "sparse":
            return SparseSpace(self.energy, self.shift, self.max_terms)
        return GridSpace(self.energy, self.shift, self.num_modes, self.dtype, self.device)

    def _accelerator(self, space: Space, alpha: float, beta: float | None) -> Callable[..., Any] | None:
        if self.accelerate == "nesterov":
            if beta is None or alpha <= 0:
                raise ArgumentError(
                    "PreconditionedDescent: accelerate='nesterov' needs a known β (pass Lam to the energy) and α > 0"
                )
            return Momentum(space, alpha / beta)
        if self.accelerate == "anderson":
            return Anderson(space)
        if self.accelerate == "newton":
            return lambda u, gradient: newton_direction(cast(GridSpace, space), u, gradient)
        return None

    def _record(
        self, space: Space, u: Any, norm: float, alpha: float, log_bound: float, size: float, capped: bool
    ) -> None:
        energy = space.value(u)
        if not (isfinite(energy) and isfinite(norm)):
            raise NumericalError(
                f"PreconditionedDescent: energy {energy} and gradient norm {norm} after {len(self.history_)} iterates; "
                "a fixed step may be too long: use step='armijo'"
            )
        self.history_.append(
            DescentRecord(
                energy=energy,
                gradient_norm=norm,
                error_bound=norm / alpha if alpha > 0 else nan,
                barron_norm=space.barron_norm(u),
                log_certificate=log_bound,
                num_terms=space.num_terms(u),
                step=size,
                smoothness=space.smoothness(u),
                capped=capped,
            )
        )

    def _step_size(
        self, space: Space, point: Any, direction: Any, base: float, last: float, beta: float | None
    ) -> float:
        # η along the direction, zero if no step helps; ``base``² is minus the slope
        if not isinstance(self.step, str):
            return self.step
        if beta is not None and self.accelerate in (None, "nesterov"):
            return 1 / beta
        if self.accelerate == "nesterov" or base == 0:
            return 0.0
        start = 1.0 if last == 0 or self.accelerate == "newton" else min(1.0, 2 * last)
        energy = space.value(point)
        rounding = torch.finfo(self.dtype).eps * max(abs(energy), 1e-300)
        if start * base**2 > _ROUNDING * rounding:
            found = armijo(
                lambda t: space.value(space.step(point, direction, t)),
                energy,
                -(base**2),
                initial_step=start,
                decrease=_DECREASE,
                slack=rounding,
            )
            return found.step

        def dual_norm(t: float) -> float:
            gradient = space.gradient(space.trim(space.step(point, direction, t), 0.0)[0])
            return space.inner(gradient, gradient) ** 0.5

        return armijo(dual_norm, dual_norm(0.0), -base, initial_step=start, decrease=1e-3, slack=0.0, max_steps=20).step

    def _next_bound(self, log_bound: float, size: float, source_norm: float) -> float:
        if self.accelerate is not None or self.energy.integrand is not None:
            return nan
        coefficient = self.energy.coefficient
        return next_log_bound(
            log_bound,
            size,
            self.energy.potential,
            source_norm,
            lowest=self.energy.lowest,
            shift=self.shift,
            coefficient_norm=None if coefficient is None else float(coefficient.barron_norm()),
        )


def _steepest(space: Space, u: Any, gradient: Any, searching: bool) -> tuple[Any, Any, float]:
    direction = space.descent(gradient, searching=searching)
    return u, direction, space.inner(direction, direction) ** 0.5
