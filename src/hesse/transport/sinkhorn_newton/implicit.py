"""Derivatives of the optimal potentials through the optimality conditions: one linear solve, no unrolled iterations.

With P_ij = exp((f_i + g_j - M_ij)/reg), P1 = a, Pᵀ1 = b and H = [[diag(a), P], [Pᵀ, diag(b)]],

    H (df; dg) = (reg da + (P∘dM) 1; reg db + (P∘dM)ᵀ1),

so a gradient (f̄; ḡ) of the potentials turns into w = H⁺(f̄; ḡ), ā = reg w_f, b̄ = reg w_g, M̄ = P ∘ (w_f ⊕ w_g).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hesse.errors import ConvergenceError
from hesse.linalg import FunctionOperator, cg
from hesse.transport.problem import marginals, times, times_transposed
from hesse.transport.sinkhorn_newton.system import newton_system

__all__ = ["implicit_potentials", "solve_hessian"]

SPARSITY = 15  # entries a row that the preconditioner keeps
INNER_RTOL, INNER_STEPS = 1e-2, 100


def implicit_potentials(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """Attach the derivative of the solution to potentials that were found without a graph.

    Parameters
    ----------
    cost : Tensor, shape (B, n, m)
        M.
    a : Tensor, shape (B, n)
        Source weights.
    b : Tensor, shape (B, m)
        Target weights.
    f : Tensor, shape (B, n)
        Optimal potentials of the sources, in units of the cost, with Σf = Σg over the points with weight.
    g : Tensor, shape (B, m)
        Of the targets.
    reg : float
        Weight of the entropy.

    Returns
    -------
    tuple of (Tensor, Tensor)
        f and g, differentiable once with respect to ``cost``, ``a`` and ``b``. Weights are taken to move with their
        totals kept equal: what a gradient has along the direction that would part them is zero.
    """
    return _Potentials.apply(cost, a, b, f, g, reg)  # pyright: ignore[reportReturnType]


class _Potentials(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, reg: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cost, a, b, f, g)
        ctx.reg = reg
        return f.clone(), g.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_f: Tensor, grad_g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cost, a, b, f, g = ctx.saved_tensors
        live = (a > 0).unsqueeze(-1) & (b > 0).unsqueeze(-2)
        plan = torch.where(live, ((f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / ctx.reg).exp(), 0)
        w_f, w_g = solve_hessian(plan, grad_f, grad_g)
        return plan * (w_f.unsqueeze(-1) + w_g.unsqueeze(-2)), ctx.reg * w_f, ctx.reg * w_g, None, None, None


def solve_hessian(plan: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the pseudo-inverse of H = [[diag(P1), P], [Pᵀ, diag(Pᵀ1)]], products with all of P.

    Parameters
    ----------
    plan : Tensor, shape (B, n, m)
        P; its positive entries connect all rows and columns that have any.
    rows : Tensor, shape (B, n)
        Right-hand side of the sources; zero where a row of P is.
    columns : Tensor, shape (B, m)
        Of the targets.

    Returns
    -------
    tuple of (Tensor, Tensor)
        w, orthogonal to the null direction (1; -1) and with no part where P is zero.

    Raises
    ------
    ConvergenceError
        If conjugate gradients, preconditioned by the sparsified H, do not reach a relative residual of 1e-10 (1e-5 in
        single precision) to within a factor of 1000.

    Notes
    -----
    O(n m) per outer step and O(15 max(n, m)) per inner one.
    """
    row_sums, column_sums = marginals(plan)
    live_rows, live_columns = (row_sums > 0).to(plan.dtype), (column_sums > 0).to(plan.dtype)
    rows, columns = _balanced(rows, columns, live_rows, live_columns)
    kept = torch.full((len(plan),), SPARSITY * max(plan.shape[1:]), device=plan.device)
    system = newton_system(plan, kept)
    inverse = system.row_sums.reciprocal()

    def product(y: Tensor) -> Tensor:
        y = y.squeeze(-1)
        return (system.column_sums * y - times_transposed(plan, inverse * times(plan, y))).unsqueeze(-1)

    m = plan.shape[2]
    full = FunctionOperator(
        product, (m, m), dtype=plan.dtype, device=plan.device, batch_shape=(len(plan),), is_symmetric=True
    )
    rtol, rounding = (1e-10, 1e-14) if plan.dtype == torch.float64 else (1e-5, 1e-6)
    size = (rows.square().sum(-1) + columns.square().sum(-1)).sqrt().unsqueeze(-1)
    size = torch.where(size > 0, size, 1)
    rows, columns = rows / size, columns / size
    # of a right-hand side of norm 1 the elimination may leave little but rounding: then atol is what counts
    rhs = columns - times_transposed(plan, inverse * rows)
    solution = cg(
        full,
        rhs.unsqueeze(-1),
        preconditioner=lambda r: system.solve_reduced(r, INNER_RTOL, INNER_STEPS)[0],
        rtol=rtol,
        atol=rounding,
        max_steps=max(200, m),
        flexible=True,
        validate=False,
    )
    allowed = 1000 * (rtol * rhs.norm(dim=-1)).clamp_min(rounding)
    if not bool((solution.residual.squeeze(-1) <= allowed).all()):
        raise ConvergenceError(
            "sinkhorn_newton: the gradient's linear system was not solved; the plan is so concentrated that its pieces "
            "hardly touch: raise reg"
        )
    rows = size * rows
    w_g = size * solution.x.squeeze(-1)
    return _balanced(inverse * (rows - times(plan, w_g)), w_g, live_rows, live_columns)


def _balanced(rows: Tensor, columns: Tensor, live_rows: Tensor, live_columns: Tensor) -> tuple[Tensor, Tensor]:
    # orthogonal to s = (1; -1) on the points with weight
    count = live_rows.sum(-1, keepdim=True) + live_columns.sum(-1, keepdim=True)
    rows, columns = rows * live_rows, columns * live_columns
    along = (rows.sum(-1, keepdim=True) - columns.sum(-1, keepdim=True)) / count
    return rows - along * live_rows, columns + along * live_columns
