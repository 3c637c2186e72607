"""A hypergradient with all that says how far to trust it: what every way to one returns."""

from dataclasses import dataclass

from hesse.bilevel.counts import OracleCounts
from hesse.bilevel.tree import Tree
from hesse.errors import ConvergenceError

__all__ = ["HyperGradient"]


@dataclass(frozen=True, slots=True)
class HyperGradient:
    """A hypergradient, and the two residuals its error is bounded by.

    ‖grad - ∇Φ‖ <= C · lower_residual / μ + ‖g_xy‖ · residual / μ, with μ the smallest eigenvalue of g_yy and C a
    constant of the losses: the larger of the two residuals says what to work on.

    Attributes
    ----------
    grad : pytree of Tensor
        Shaped like x.
    y : pytree of Tensor
        Where it was taken.
    adjoint : pytree of Tensor or None
        v, shaped like y; None for "unroll", which has none; for "penalty" the quotient that
        stands for it.
    residual : float
        ‖g_yy v - f_y‖, without the damping; NaN for "unroll", and for "penalty" the residual of s f + g over s.
    lower_residual : float
        ‖g_y(x, y)‖.
    converged : bool
        Whether the linear system, damping included, and the lower level (where it was solved here) met their
        tolerances.
    approximate : bool
        Whether the method has an error of its own that no tolerance governs: the rank of "nystrom", the given inverse
        of "inverse", the finite number of steps of "unroll", the s of "penalty", or a damping.
    method : str
        Which one ran.
    num_steps : int
        Of the linear solver, unrolled, or of all inner solves of "penalty".
    counts : OracleCounts
        What it cost.
    """

    grad: Tree
    y: Tree
    adjoint: Tree | None
    residual: float
    lower_residual: float
    converged: bool
    approximate: bool
    method: str
    num_steps: int
    counts: OracleCounts

    def require(self) -> "HyperGradient":
        """Return the hypergradient if it converged, else raise.

        Returns
        -------
        HyperGradient
            Itself.

        Raises
        ------
        ConvergenceError
            Naming both residuals and the remedy.
        """
        if self.converged:
            return self
        raise ConvergenceError(
            f"hypergradient: {self.method} stopped after {self.num_steps} steps with residual {self.residual:.2e} and "
            f"lower gradient {self.lower_residual:.2e}; raise max_steps, loosen rtol or lower_tol, or pass a "
            "preconditioner"
        )
