"""What a run of `adasketch_newton` hands back.   Shapes: N variables, M constraints."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from hesse.errors import ConvergenceError
from hesse.optim.adasketch.direction import Penalties

__all__ = ["AdaSketchState", "ConstrainedResult", "NewtonStep", "StopReason"]

StopReason = Literal["converged", "max_steps", "line_search", "no_descent", "infeasible_stationary"]

_REMEDIES: dict[str, str] = {
    "max_steps": "raise max_steps or loosen tol",
    "line_search": "no step along the direction lowers the merit function; use float64, check the derivatives",
    "no_descent": "the inner solver met its cap before its direction descended; raise max_inner_steps, or use minres",
    "infeasible_stationary": "no small step reduces the constraints; they may contradict each other, start elsewhere",
}


@dataclass(frozen=True, slots=True)
class NewtonStep:
    """One outer step."""

    kkt: float  # ‖(∇ₓL, c)‖ at its end
    fun: float  # f at its end
    step_size: float  # α
    eta1: float
    eta2: float
    delta: float
    num_inner_steps: int
    residual: float  # ‖Γz - b‖ of the direction
    accurate: bool  # whether that met its target
    regularized: bool  # whether the Hessian was shifted


@dataclass(frozen=True, slots=True)
class AdaSketchState:
    """Where a run stands: give it in place of ``x0`` to go on as if it had not stopped.

    Attributes
    ----------
    x : Tensor, shape (N,)
        Variables.
    lam : Tensor, shape (M,)
        Multipliers.
    penalties : Penalties
        η₁, η₂ and δ.
    num_steps : int
        Outer steps so far.
    generator_state : Tensor of uint8
        Of the generator before the next draw.
    """

    x: Tensor
    lam: Tensor
    penalties: Penalties
    num_steps: int
    generator_state: Tensor


@dataclass(frozen=True, slots=True)
class ConstrainedResult:
    """The last point of a run and what is known of it.

    Attributes
    ----------
    x : Tensor, shape (N,)
        Variables.
    lam : Tensor, shape (M,)
        Multipliers of L = f + λᵀc.
    fun : float
        f(x).
    kkt : float
        ‖(∇ₓL, c)‖₂.
    violation : float
        ‖c(x)‖₂.
    converged : bool
        Whether ``kkt <= tol``.
    status : {"converged", "max_steps", "line_search", "no_descent", "infeasible_stationary"}
        Why the run stopped.
    num_steps : int
        Outer steps, those before a state was handed in included.
    num_inner_steps : int
        Rows, blocks, or products of the inner solver, of this call.
    num_flops : float
        Of the inner solver, by formula, of this call; a multiply-add counts two.
    evaluations : dict
        Calls of "fun", "con", "grad", "jac", "vjp" and "hvp", of this call.
    history : tuple of NewtonStep
        Of this call.
    state : AdaSketchState
        To go on from.
    """

    x: Tensor
    lam: Tensor
    fun: float
    kkt: float
    violation: float
    converged: bool
    status: StopReason
    num_steps: int
    num_inner_steps: int
    num_flops: float
    evaluations: dict[str, int]
    history: tuple[NewtonStep, ...] = field(repr=False)
    state: AdaSketchState = field(repr=False)

    def require(self) -> "ConstrainedResult":
        """Return the result if it converged, else raise.

        Returns
        -------
        ConstrainedResult
            Itself.

        Raises
        ------
        ConvergenceError
            With cause and remedy.
        """
        if not self.converged:
            raise ConvergenceError(
                f"adasketch_newton: stopped after {self.num_steps} steps ({self.status}) with KKT residual "
                f"{self.kkt:.1e}: {_REMEDIES[self.status]}"
            )
        return self
