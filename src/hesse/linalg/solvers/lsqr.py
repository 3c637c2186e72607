"""LSQR: least squares by conjugate gradients on the normal equations, never formed.

Equivalent to ``scipy.sparse.linalg.lsqr`` column by column, with a right preconditioner.
"""

import torch
from torch import Tensor

from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import column_norm, default_rtol
from hesse.linalg.solvers._least_squares import Tolerances, rotation, safe, setup, stop_tests
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["lsqr"]


@torch.no_grad()
def lsqr(
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    damp: float = 0.0,
    atol: float | None = None,
    btol: float | None = None,
    conlim: float = 1e8,
    max_steps: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    record_history: bool = False,
    validate: bool = True,
) -> Solution:
    """Minimise ‖b - A x‖² + damp² ‖x - x0‖² for any A; the residual ‖r‖ falls monotonically.

    Parameters
    ----------
    operator : LinearOperator, shape (..., m, n)
        A, with an adjoint.
    b : Tensor, shape (m,) or (..., m, k)
        Right-hand sides.
    x0 : Tensor, shape (n,) or (..., n, k), optional
        Start. Default: zero, for which a rank-deficient problem gets its solution of least norm.
    preconditioner : LinearOperator, shape (n, n), optional
        P with A P well conditioned; the iteration is on y with x = x0 + P y. Not together with ``damp``.
    damp : float, default 0.0
        As in SciPy: its square is added to AᴴA.
    atol : float, optional
        See Notes. Default: 1e-6 in double, 1e-5 in single precision, as ``cg``'s rtol.
    btol : float, optional
        See Notes. Default: as ``atol``.
    conlim : float, default 1e8
        A column stops as STAGNATED where the estimated condition number passes it; 0 lifts the limit.
    max_steps : int, optional
        Default: min(10 min(m, n), 1000).
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences. Default: that of b, but float32 at least.
    record_history : bool, default False
        Keep ‖r‖ of every step.
    validate : bool, default True
        Test b for NaN.

    Returns
    -------
    Solution
        ``residual`` is ‖b - A x‖; status CONVERGED for a consistent system, LEAST_SQUARES otherwise, both converged.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a tolerance or limit is negative, or damping meets a preconditioner.
    ArgumentTypeError
        If the preconditioner or the operator has no adjoint.
    NumericalError
        If b has NaN or Inf.

    Notes
    -----
    Stops where ‖r‖ <= btol ‖b‖ + atol ‖A‖ ‖x‖, or ‖Aᴴr‖ <= atol ‖A‖ ‖r‖. One product and one adjoint product a step;
    memory 6 blocks.

    References
    ----------
    C. C. Paige, M. A. Saunders (1982), ACM Trans. Math. Softw. 8(1).
    """
    atol = default_rtol(b.dtype) if atol is None else atol
    t = Tolerances(atol, atol if btol is None else btol, conlim, damp)
    limit_steps = min(10 * min(operator.shape), 1000) if max_steps is None else max_steps
    g = setup(
        "lsqr",
        operator,
        b,
        x0=x0,
        preconditioner=preconditioner,
        tolerances=t,
        max_steps=limit_steps,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
    )
    zero = torch.zeros_like(g.alpha)
    y, w = torch.zeros_like(g.v), g.v
    rho_bar, phi_bar = g.alpha, g.beta
    norm_a2, inverse2, damped = zero, zero, zero
    norm_r = g.beta
    statuses = stop_tests(t, g.b_norm, g.alpha, norm_r, g.alpha * g.beta, zero, zero)
    history = [norm_r * g.scale] if record_history else []
    step = 0
    while step < limit_steps and bool((statuses == int(Status.MAX_STEPS)).any()):
        step += 1
        live = statuses == int(Status.MAX_STEPS)
        alpha_old = g.alpha
        g.advance()
        norm_a2 = norm_a2 + alpha_old**2 + g.beta**2 + damp**2
        c_damp, s_damp, rho_damped = rotation(rho_bar.abs(), damp)
        c_damp = torch.where(rho_bar < 0, -c_damp, c_damp)
        psi, phi_bar = s_damp * phi_bar, c_damp.abs() * phi_bar
        rho_signed = torch.where(rho_bar < 0, -rho_damped, rho_damped)
        c, s, rho = rotation(rho_signed, g.beta)
        theta, rho_bar = s * g.alpha, -c * g.alpha
        phi, phi_bar = c * phi_bar, s * phi_bar
        y = torch.addcmul(y, w, torch.where(live, phi / safe(rho), 0))
        inverse2 = inverse2 + (column_norm(w) / safe(rho)) ** 2
        w = g.v - (theta / safe(rho)) * w
        damped = damped + psi**2
        norm_r = (phi_bar**2 + damped).sqrt()
        norm_a = norm_a2.sqrt()
        judged = stop_tests(
            t, g.b_norm, norm_a, norm_r, g.alpha * (s * phi).abs(), column_norm(y), norm_a * inverse2.sqrt()
        )
        statuses = torch.where(live, judged, statuses)
        if record_history:
            history.append(norm_r * g.scale)
    return g.finish(y, statuses, method="lsqr", num_steps=step, norm_a=norm_a2.sqrt(), tolerances=t, history=history)
