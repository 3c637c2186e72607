"""What LSQR and LSMR share: Golub-Kahan bidiagonalisation by column, and when to stop.

A V = U B with B lower bidiagonal: β u = A v - α u, then α v = Aᴴ u - β v.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import Product, System, column_norm, prepare, unit_scale
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["Bidiagonal", "Tolerances", "rotation", "safe", "setup", "stop_tests"]


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The three limits of SciPy's lsqr and lsmr, and the damping."""

    atol: float
    btol: float
    conlim: float
    damp: float


@dataclass(slots=True)
class Bidiagonal:
    """The recurrence in (A P), and the way back from y to x = x0 + P y."""

    system: System
    product: Product
    adjoint: Product
    precondition: Product | None
    scale: Tensor
    u: Tensor
    v: Tensor
    alpha: Tensor
    beta: Tensor
    b_norm: Tensor

    def advance(self) -> None:
        """Make one step: one product and one adjoint product."""
        u = self.product(self.v) - self.alpha * self.u
        self.beta = column_norm(u)
        self.u = u / safe(self.beta)
        v = self.adjoint(self.u) - self.beta * self.v
        self.alpha = column_norm(v)
        self.v = v / safe(self.alpha)

    def finish(
        self,
        y: Tensor,
        statuses: Tensor,
        *,
        method: str,
        num_steps: int,
        norm_a: Tensor,
        tolerances: Tolerances,
        history: list[Tensor],
    ) -> Solution:
        """Recompute the residual and its gradient, which decide what has converged.

        Parameters
        ----------
        y : Tensor, shape (..., n, k)
            Of the scaled, preconditioned system.
        statuses : Tensor of int64, shape (..., 1, k)
            By recurrence.
        method : str
            For the solution.
        num_steps : int
            Of the slowest column.
        norm_a : Tensor, shape (..., 1, k)
            Estimate of the Frobenius norm of A P.
        tolerances : Tolerances
            What the recurrence stopped by; the explicit check allows twice as much for rounding.
        history : list of Tensor
            Residual norms, may be empty.

        Returns
        -------
        Solution
            Status LEAST_SQUARES counts as converged.
        """
        system, t = self.system, tolerances
        x = y if self.precondition is None else self.precondition(y)
        start = None if system.x0 is None else system.x0 / self.scale
        x = x if start is None else x + start
        r = system.b / self.scale - system.product(x)
        norm_r, norm_x = column_norm(r), column_norm(x)
        gradient = self.adjoint(r) - t.damp**2 * (x if start is None else x - start)
        met = norm_r <= 2 * (t.btol * self.b_norm + t.atol * norm_a * norm_x)
        level = torch.hypot(norm_r, t.damp * norm_x)
        flat = column_norm(gradient) <= (2 * t.atol + 10 * torch.finfo(level.dtype).eps) * norm_a * level
        claimed = torch.where(statuses <= int(Status.LEAST_SQUARES), int(Status.STAGNATED), statuses)
        statuses = torch.where(flat, int(Status.LEAST_SQUARES), claimed)
        statuses = torch.where(met, int(Status.CONVERGED), statuses)
        return Solution(
            x=system.unfold(x * self.scale),
            converged=system.unfold_columns(statuses <= int(Status.LEAST_SQUARES)),
            num_steps=num_steps,
            residual=system.unfold_columns(norm_r * self.scale),
            status=Status(int(statuses.max())) if statuses.numel() else Status.CONVERGED,
            method=method,
            history=system.unfold_columns(torch.stack(history)) if history else None,
            statuses=system.unfold_columns(statuses),
        )


def setup(
    name: str,
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None,
    preconditioner: LinearOperator | None,
    tolerances: Tolerances,
    max_steps: int,
    recurrence_dtype: torch.dtype | None,
    validate: bool,
) -> Bidiagonal:
    """Check the system and make the first half step.

    Parameters
    ----------
    name : str
        The solver, for messages.
    operator : LinearOperator, shape (..., m, n)
        A.
    b : Tensor, shape (m,) or (..., m, k)
        Right-hand sides.
    x0 : Tensor, shape of x, optional
        Start.
    preconditioner : LinearOperator, shape (n, n), optional
        P, applied from the right: x = x0 + P y.
    tolerances : Tolerances
        Limits and damping.
    max_steps : int
        Limit.
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences.
    validate : bool
        Whether b is tested for NaN.

    Returns
    -------
    Bidiagonal
        With u, v, α, β of the first column.

    Raises
    ------
    ArgumentError
        If damping meets a preconditioner, or a limit is negative.
    ArgumentTypeError
        If the preconditioner is not an operator: its adjoint is needed.
    """
    t = tolerances
    if t.damp < 0 or t.conlim < 0:
        raise ArgumentError(f"{name}: expected damp, conlim >= 0, got damp={t.damp}, conlim={t.conlim}")
    if preconditioner is not None and not isinstance(preconditioner, LinearOperator):
        raise ArgumentTypeError(f"{name}: the preconditioner must be a LinearOperator, its adjoint is needed")
    if preconditioner is not None and t.damp > 0:
        raise ArgumentError(f"{name}: damp would weigh y = P⁻¹ x, not x; leave out the preconditioner or the damping")
    system = prepare(
        name,
        operator,
        b,
        x0=x0,
        preconditioner=preconditioner,
        rtol=t.btol,
        atol=t.atol,
        max_steps=max_steps,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
        square=False,
    )
    precondition = system.precondition
    product, adjoint = _preconditioned(system, preconditioner)
    scale = unit_scale(system.b)
    start = system.b / scale
    b_norm = column_norm(start)
    u = start if system.x0 is None else start - system.product(system.x0 / scale)
    beta = column_norm(u)
    u = u / safe(beta)
    v = adjoint(u)
    alpha = column_norm(v)
    return Bidiagonal(system, product, adjoint, precondition, scale, u, v / safe(alpha), alpha, beta, b_norm)


def _preconditioned(system: System, preconditioner: LinearOperator | None) -> tuple[Product, Product]:
    precondition = system.precondition
    if preconditioner is None or precondition is None:
        return system.product, system.adjoint

    def forward(y: Tensor) -> Tensor:
        return system.product(precondition(y))

    def backward(r: Tensor) -> Tensor:
        return preconditioner.rmatmat(system.adjoint(r).to(preconditioner.dtype)).to(r.dtype)

    return forward, backward


def rotation(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the Givens rotation that takes (a, b) to (r, 0), r >= 0.

    Parameters
    ----------
    a : Tensor
        First entries.
    b : Tensor or float
        Second entries.

    Returns
    -------
    tuple of Tensor
        c, s, r with c a + s b = r.
    """
    other = torch.as_tensor(b, dtype=a.dtype, device=a.device)
    r = torch.hypot(a, other)
    return torch.where(r > 0, a / safe(r), 1), other / safe(r), r


def stop_tests(
    tolerances: Tolerances,
    b_norm: Tensor,
    norm_a: Tensor,
    norm_r: Tensor,
    norm_ar: Tensor,
    norm_x: Tensor,
    cond: Tensor,
) -> Tensor:
    """Judge each column by SciPy's rules.

    Parameters
    ----------
    tolerances : Tolerances
        Limits.
    b_norm : Tensor
        ‖b‖.
    norm_a : Tensor
        Estimate of ‖A‖.
    norm_r : Tensor
        ‖b - A x‖, with the damped part.
    norm_ar : Tensor
        Norm of the gradient of the least-squares problem.
    norm_x : Tensor
        ‖x‖.
    cond : Tensor
        Estimate of the condition number.

    Returns
    -------
    Tensor of int64
        CONVERGED: ‖r‖ <= btol ‖b‖ + atol ‖A‖ ‖x‖. LEAST_SQUARES: ‖Aᴴr‖ <= atol ‖A‖ ‖r‖. STAGNATED: cond >= conlim.
    """
    t, eps = tolerances, torch.finfo(norm_r.dtype).eps
    statuses = torch.full_like(norm_r, int(Status.MAX_STEPS), dtype=torch.int64)
    lost = torch.isnan(norm_r) | ((cond >= t.conlim) if t.conlim > 0 else torch.zeros_like(norm_r, dtype=torch.bool))
    statuses = torch.where(lost, int(Status.STAGNATED), statuses)
    statuses = torch.where(norm_ar <= max(t.atol, eps) * norm_a * norm_r, int(Status.LEAST_SQUARES), statuses)
    return torch.where(norm_r <= t.btol * b_norm + t.atol * norm_a * norm_x, int(Status.CONVERGED), statuses)


def safe(norm: Tensor) -> Tensor:
    """Replace zeros by one, to divide by.

    Parameters
    ----------
    norm : Tensor
        Not negative.

    Returns
    -------
    Tensor
        Positive.
    """
    return torch.where(norm > 0, norm, 1)
