"""Kaczmarz steps on random combinations of all equations, one at a time.

Shapes: A is (M, N), b (M,), x (N,).
"""

import torch
from torch import Generator, Tensor

from hesse.linalg._arguments import single_operator
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._projecting import BLOCK, StopFunction, drive, equation_limits, prepare, project_in_turn
from hesse.linalg.solvers.solution import Solution

__all__ = ["gaussian_kaczmarz"]


def gaussian_kaczmarz(
    operator: LinearOperator | Tensor,
    b: Tensor,
    *,
    start: Tensor | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    check_every: int | None = None,
    stop_fn: StopFunction | None = None,
    generator: Generator | None = None,
) -> Solution:
    """Solve a consistent system by x ← x - a aᵀ(x - x*) / ‖a‖² with a = Aᵀs, s normal: aᵀx* = sᵀb is all that is read.

    `sketch_and_project` with blocks of one, many times faster: the very same iteration, sixty-four steps at once.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (M, N)
        A, real, with an adjoint.
    b : Tensor, shape (M,)
        Right-hand side.
    start : Tensor, shape (N,), optional
        First x. Default: zero, which leads to the solution of least norm.
    rtol, atol : float, default 1e-6 and 0
        Stop when ‖A x - b‖ <= max(rtol ‖b‖, atol).
    max_steps : int, optional
        Projections at most. Default: 200 M.
    check_every : int, optional
        Projections between two looks at the residual, one product each. Default: M, rounded up to blocks of 64.
    stop_fn : callable, optional
        A test of the caller's own, asked at each look besides.
    generator : torch.Generator, optional
        Source of the s. Default: torch's global generator.

    Returns
    -------
    Solution
        ``num_steps`` counts projections, ``history`` holds the residuals at each look.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If an argument is out of range.
    NumericalError
        If A or b has NaN or Inf.

    Notes
    -----
    One product Aᵀs a step, against one row of `randomized_kaczmarz`; which equations are
    long and which are short does not matter to the choice, only the spectrum of A does.

    References
    ----------
    R. M. Gower, P. Richtárik (2015), SIAM J. Matrix Anal. Appl. 36(4), arXiv 1506.03296.
    """
    call = "gaussian_kaczmarz"
    operator = single_operator(call, as_linear_operator(operator))
    m = operator.shape[0]
    x, b, wide = prepare(call, operator, b, start)
    home = operator.device if generator is None else generator.device

    def advance(x: Tensor, width: int) -> Tensor:
        mixing = torch.randn(m, width, generator=generator, dtype=wide, device=home).to(operator.device, operator.dtype)
        rows = operator.rmatmat(mixing).mT.to(wide)
        return project_in_turn(x, rows, b @ mixing.to(wide))

    limit, every = equation_limits(m, max_steps, check_every)
    return drive(call, operator, b, x, advance, BLOCK, limit, every, rtol, atol, stop_fn)
