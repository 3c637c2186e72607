"""LSMR: least squares by MINRES on the normal equations, never formed.

Equivalent to ``scipy.sparse.linalg.lsmr`` column by column, with a right preconditioner.
"""

import torch
from torch import Tensor

from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import column_norm, default_rtol
from hesse.linalg.solvers._least_squares import Tolerances, rotation, safe, setup, stop_tests
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["lsmr"]


@torch.no_grad()
def lsmr(
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
    """Minimise ‖b - A x‖² + damp² ‖x - x0‖² for any A; the gradient ‖Aᴴr‖ falls monotonically.

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
    memory 7 blocks.

    References
    ----------
    D. C.-L. Fong, M. A. Saunders (2011), SIAM J. Sci. Comput. 33(5), arXiv 1006.0758.
    """
    atol = default_rtol(b.dtype) if atol is None else atol
    t = Tolerances(atol, atol if btol is None else btol, conlim, damp)
    limit_steps = min(10 * min(operator.shape), 1000) if max_steps is None else max_steps
    g = setup(
        "lsmr",
        operator,
        b,
        x0=x0,
        preconditioner=preconditioner,
        tolerances=t,
        max_steps=limit_steps,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
    )
    one, zero = torch.ones_like(g.alpha), torch.zeros_like(g.alpha)
    y = torch.zeros_like(g.v)
    h, h_bar = g.v, torch.zeros_like(g.v)
    zeta_bar, alpha_bar, zeta = g.alpha * g.beta, g.alpha, zero
    rho, rho_bar, c_bar, s_bar = one, one, one, zero
    # a second bidiagonalisation, on paper only, whose entries give the norm of the residual
    beta_dd, beta_d, rho_d, tau_tilde, theta_tilde, damped = g.beta, zero, one, zero, zero, zero
    norm_a2, largest, smallest = g.alpha**2, zero, torch.full_like(zero, torch.inf)
    norm_r = g.beta
    statuses = stop_tests(t, g.b_norm, norm_a2.sqrt(), norm_r, g.alpha * g.beta, zero, zero)
    history = [norm_r * g.scale] if record_history else []
    step = 0
    while step < limit_steps and bool((statuses == int(Status.MAX_STEPS)).any()):
        step += 1
        live = statuses == int(Status.MAX_STEPS)
        g.advance()
        c_hat, s_hat, alpha_hat = rotation(alpha_bar, damp)
        rho_old, (c, s, rho) = rho, rotation(alpha_hat, g.beta)
        theta_new, alpha_bar = s * g.alpha, c * g.alpha
        rho_bar_old, zeta_old, theta_bar, rho_temp = rho_bar, zeta, s_bar * rho, c_bar * rho
        c_bar, s_bar, rho_bar = rotation(c_bar * rho, theta_new)
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar

        h_bar = h - (theta_bar * rho / safe(rho_old * rho_bar_old)) * h_bar
        y = torch.addcmul(y, h_bar, torch.where(live, zeta / safe(rho * rho_bar), 0))
        h = g.v - (theta_new / safe(rho)) * h

        beta_acute, beta_check = c_hat * beta_dd, -s_hat * beta_dd
        beta_hat, beta_dd = c * beta_acute, -s * beta_acute
        theta_tilde_old, (c_tilde, s_tilde, rho_tilde) = theta_tilde, rotation(rho_d, theta_bar)
        theta_tilde, rho_d = s_tilde * rho_bar, c_tilde * rho_bar
        beta_d = -s_tilde * beta_d + c_tilde * beta_hat
        tau_tilde = (zeta_old - theta_tilde_old * tau_tilde) / safe(rho_tilde)
        tau_d = (zeta - theta_tilde * tau_tilde) / torch.where(rho_d != 0, rho_d, 1)
        damped = damped + beta_check**2
        norm_r = (damped + (beta_d - tau_d) ** 2 + beta_dd**2).sqrt()

        norm_a2 = norm_a2 + g.beta**2
        norm_a = norm_a2.sqrt()
        norm_a2 = norm_a2 + g.alpha**2
        largest = torch.maximum(largest, rho_bar_old)
        if step > 1:
            smallest = torch.minimum(smallest, rho_bar_old)
        cond = torch.maximum(largest, rho_temp) / safe(torch.minimum(smallest, rho_temp))
        judged = stop_tests(t, g.b_norm, norm_a, norm_r, zeta_bar.abs(), column_norm(y), cond)
        statuses = torch.where(live, judged, statuses)
        if record_history:
            history.append(norm_r * g.scale)
    return g.finish(y, statuses, method="lsmr", num_steps=step, norm_a=norm_a2.sqrt(), tolerances=t, history=history)
