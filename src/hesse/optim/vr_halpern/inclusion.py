"""Inclusions 0 in F(u) + G(u): the residual that certifies a solution, and what every solver of them gives back.

Shapes: D entries of u.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ConvergenceError, ShapeError
from hesse.optim.vr_halpern.finite_sum import FiniteSumOperator, check_point

__all__ = [
    "Certificate",
    "InclusionResult",
    "InclusionRun",
    "Resolvent",
    "check_limits",
    "checked_resolvent",
    "inclusion_residual",
]

Resolvent = Callable[[Tensor, float], Tensor]
"""(v, eta) ↦ (I + eta G)⁻¹ v; a projection, which has no eta, is wrapped: ``lambda v, _: project(v)``."""
_DIVERGED = 1e3  # times the first residual


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one full pass over the components says about a point.

    Attributes
    ----------
    residual : float
        ‖u - J_{eta G}(u - eta F(u))‖ / eta; ‖F(u)‖ where G = 0. Zero at solutions and nowhere else.
    eta : float
        The step in it.
    evaluations : int
        Components evaluated by the run up to here, this pass among them.
    cost : int
        Evaluations made for the sake of the certificate: n, or 0 where the solver needed F(u) anyway.
    """

    residual: float
    eta: float
    evaluations: int
    cost: int


@dataclass(frozen=True, slots=True)
class InclusionResult:
    """Where a solver of 0 in F(u) + G(u) ended.

    Attributes
    ----------
    u : Tensor, shape (D,)
        The last iterate.
    residual : float
        Of ``u``, from a full pass.
    residual_history : tuple of Certificate
        In the order of the run; the last is of ``u``.
    evaluations : int
        Components evaluated, those for certificates among them.
    epochs : float
        The same over n.
    converged : bool
        Whether ``residual <= tol``.
    num_steps : int
        Steps made.
    num_restarts : int
        How often the anchor was moved.
    state : object or None
        What the solver goes on from, where it can.
    """

    u: Tensor
    residual: float
    residual_history: tuple[Certificate, ...]
    evaluations: int
    epochs: float
    converged: bool
    num_steps: int
    num_restarts: int = 0
    state: Any = None


def checked_resolvent(resolvent: Resolvent | None) -> Resolvent:
    """Wrap a resolvent so that a wrong shape, dtype or device is found at once.

    Parameters
    ----------
    resolvent : callable, optional
        Default: the identity, G = 0.

    Returns
    -------
    callable
        Its results have no graph; it raises ShapeError or ArgumentTypeError.
    """
    if resolvent is None:
        return lambda v, _eta: v

    def apply(v: Tensor, eta: float) -> Tensor:
        out = resolvent(v, eta)
        if not isinstance(out, Tensor):
            raise ArgumentTypeError(f"resolvent: expected a tensor, got {type(out).__name__}")
        if out.shape != v.shape or out.dtype != v.dtype or out.device != v.device:
            raise ShapeError(
                f"resolvent: maps {tuple(v.shape)}, {v.dtype} on {v.device} to {tuple(out.shape)}, {out.dtype} on "
                f"{out.device}; it must change none of them"
            )
        return out.detach()

    return apply


def check_limits(call: str, tol: float, max_epochs: float) -> None:
    """Refuse a tolerance or a budget that cannot be meant.

    Parameters
    ----------
    call : str
        The solver, for the message.
    tol : float
        >= 0.
    max_epochs : float
        >= 1, for one certificate costs one epoch.

    Raises
    ------
    ArgumentError
        If one is out of range or NaN.
    """
    if not tol >= 0:
        raise ArgumentError(f"{call}: expected tol >= 0, got {tol}")
    if not 1 <= max_epochs < math.inf:
        raise ArgumentError(f"{call}: expected 1 <= max_epochs < inf, got {max_epochs}; a certificate costs one epoch")


def _residual(u: Tensor, value: Tensor, resolve: Resolvent, eta: float) -> float:
    return float((u - resolve(u - eta * value, eta)).norm()) / eta


def inclusion_residual(
    op: FiniteSumOperator, u: Tensor, *, resolvent: Resolvent | None = None, eta: float = 1.0
) -> Certificate:
    """Certify a point: Res_eta(u) = ‖u - J_{eta G}(u - eta F(u))‖ / eta, by one full pass.

    Parameters
    ----------
    op : FiniteSumOperator
        F.
    u : Tensor, shape (D,)
        The point.
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v. Default: G = 0.
    eta : float, default 1.0
        > 0. Residuals of different eta differ by a factor of at most their ratio; G = 0 does not depend on it.

    Returns
    -------
    Certificate
        Cost n.

    Raises
    ------
    ArgumentError
        If ``eta`` is not positive.
    """
    if not (eta > 0 and math.isfinite(eta)):
        raise ArgumentError(f"inclusion_residual: expected eta > 0, got {eta}")
    u = check_point("inclusion_residual", "u", u, op.dim)
    residual = _residual(u, op.full(u), checked_resolvent(resolvent), eta)
    return Certificate(residual, eta, op.n, op.n)


class InclusionRun:
    """Book-keeping of one run: its budget of evaluations, its certificates, and the guard against divergence.

    Parameters
    ----------
    call : str
        The solver, for messages.
    op : FiniteSumOperator
        F; its counter is read.
    resolvent : callable, optional
        Of G.
    eta : float
        Step of the residual, > 0.
    tol : float
        Residual at which the run has converged, >= 0.
    max_epochs : float
        Budget in units of n evaluations, >= 1.
    callback : callable, optional
        Called with each certificate and its point; its own evaluations are not counted.
    history : tuple of Certificate, optional
        Of the run that this one goes on from.
    spent : int, default 0
        Evaluations of the run so far, before this object was made.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    """

    def __init__(
        self,
        call: str,
        op: FiniteSumOperator,
        *,
        resolvent: Resolvent | None,
        eta: float,
        tol: float,
        max_epochs: float,
        callback: Callable[[Certificate, Tensor], None] | None,
        history: tuple[Certificate, ...] = (),
        spent: int = 0,
    ) -> None:
        if not (eta > 0 and math.isfinite(eta)):
            raise ArgumentError(f"{call}: expected a positive finite step, got {eta}")
        check_limits(call, tol, max_epochs)
        self.call = call
        self.op = op
        self.resolve = checked_resolvent(resolvent)
        self.eta = eta
        self.tol = tol
        self.budget = max_epochs * op.n
        self.history = list(history)
        self._callback = callback
        self._origin = op.evaluations - spent

    @property
    def evaluations(self) -> int:
        """Of the whole run so far."""
        return self.op.evaluations - self._origin

    def affords(self, cost: int) -> bool:
        """Say whether a step of that many evaluations leaves enough for the closing certificate.

        Parameters
        ----------
        cost : int
            Evaluations of the step.

        Returns
        -------
        bool
            Whether the budget holds for both.
        """
        return self.evaluations + cost + self.op.n <= self.budget

    def certify(self, u: Tensor, value: Tensor, cost: int = 0) -> Certificate:
        """Turn F(u) into a certificate, and stop a run that has left all bounds.

        Parameters
        ----------
        u : Tensor, shape (D,)
            The point.
        value : Tensor, shape (D,)
            F(u).
        cost : int, default 0
            Evaluations made for this alone.

        Returns
        -------
        Certificate
            Kept in ``history``.

        Raises
        ------
        ConvergenceError
            If the residual is NaN, infinite, or a thousand times the first one.
        """
        finite = bool(torch.isfinite(value).all()) and bool(torch.isfinite(u).all())
        residual = _residual(u, value, self.resolve, self.eta) if finite else math.nan
        first = self.history[0].residual if self.history else residual
        if not math.isfinite(residual) or residual > max(_DIVERGED * first, self.tol):
            raise ConvergenceError(
                f"{self.call}: diverged: residual {residual:.3g} after {self.evaluations} evaluations, {first:.3g} at "
                f"the start. Lower the step (now {self.eta:.3g}) or raise L; if that does not help, F may not be "
                "monotone"
            )
        certificate = Certificate(residual, self.eta, self.evaluations, cost)
        self.history.append(certificate)
        if self._callback is not None:
            before = self.op.evaluations
            self._callback(certificate, u)
            self._origin += self.op.evaluations - before  # what a callback evaluates is not the run's expense
        return certificate

    def result(
        self, u: Tensor, *, certified: bool, num_steps: int, num_restarts: int = 0, state: Any = None
    ) -> InclusionResult:
        """Close the run.

        Parameters
        ----------
        u : Tensor, shape (D,)
            The last iterate.
        certified : bool
            Whether the last certificate is of ``u``; if not, a full pass is made.
        num_steps, num_restarts : int
            Of the whole run.
        state : object, optional
            What to go on from.

        Returns
        -------
        InclusionResult
            Of the whole run.
        """
        if not certified:
            self.certify(u, self.op.full(u), cost=self.op.n)
        last = self.history[-1].residual
        return InclusionResult(
            u,
            last,
            tuple(self.history),
            self.evaluations,
            self.evaluations / self.op.n,
            last <= self.tol,
            num_steps,
            num_restarts,
            state,
        )
