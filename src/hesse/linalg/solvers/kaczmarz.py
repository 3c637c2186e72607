"""Solvers that see a few random rows, or random combinations of rows, at a time.

Shapes: A is (M, N), b (M,), x (N,); Q rows or combinations a step.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least, single_operator
from hesse.linalg.basic import Dense
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.operator import LinearOperator
from hesse.linalg.sketch import SRHT, CountSketch, GaussianSketch, SparseSign
from hesse.linalg.solvers._projecting import BLOCK, StopFunction, drive, equation_limits, prepare, project_in_turn
from hesse.linalg.solvers.solution import Solution

__all__ = ["SketchName", "StopFunction", "randomized_kaczmarz", "sketch_and_project"]

SketchName = Literal["gaussian", "rows", "countsketch", "srht", "sparse_sign"]
_SKETCHES = {"gaussian": GaussianSketch, "countsketch": CountSketch, "srht": SRHT, "sparse_sign": SparseSign}


def randomized_kaczmarz(
    operator: LinearOperator | Tensor,
    b: Tensor,
    *,
    start: Tensor | None = None,
    sampling: Literal["norm", "uniform"] = "norm",
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    check_every: int | None = None,
    stop_fn: StopFunction | None = None,
    generator: Generator | None = None,
) -> Solution:
    """Solve a consistent system by projecting on random equations in turn, x ← x + (b_i - a_iᵀx) a_i / ‖a_i‖².

    The mean squared distance to the solution falls by 1 - σ_min² / ‖A‖²_F a step (norm sampling), whatever M.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (M, N)
        A, real; an operator needs row access (`LinearOperator.rows`).
    b : Tensor, shape (M,)
        Right-hand side; where the system is inconsistent the iterates hover about the least-squares solution.
    start : Tensor, shape (N,), optional
        First x. Default: zero, which leads to the solution of least norm.
    sampling : {"norm", "uniform"}, default "norm"
        Rows in proportion to ‖a_i‖², which needs all norms once, or all alike. Rows of zeros are passed over.
    rtol, atol : float, default 1e-6 and 0
        Stop when ‖A x - b‖ <= max(rtol ‖b‖, atol).
    max_steps : int, optional
        Projections at most. Default: 200 M.
    check_every : int, optional
        Projections between two looks at the residual, one product each. Default: M, rounded up to blocks of 64.
    stop_fn : callable, optional
        A test of the caller's own, asked at each look besides.
    generator : torch.Generator, optional
        Source of the rows. Default: torch's global generator.

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
    Sixty-four steps are taken at once: with the rows R and G = R Rᵀ they amount to x + Rᵀ tril(G)⁻¹ (b - R x), the very
    same iterates in three matrix operations.

    References
    ----------
    T. Strohmer, R. Vershynin (2009), J. Fourier Anal. Appl. 15(2), arXiv math/0702226.
    """
    call = "randomized_kaczmarz"
    operator = single_operator(call, as_linear_operator(operator))
    m = operator.shape[0]
    x, b, wide = prepare(call, operator, b, start)
    if sampling not in ("norm", "uniform"):
        raise ArgumentError(f"{call}: sampling must be norm or uniform, got {sampling!r}")
    if sampling == "norm":
        blocks = torch.arange(m, device=operator.device).split(1024)
        with torch.no_grad():
            weights = torch.cat([operator.rows(block).to(wide).square().sum(1) for block in blocks])
        if not bool(torch.isfinite(weights).all()):
            raise NumericalError(f"{call}: the operator has NaN or Inf")
        weights = weights if float(weights.sum()) > 0 else torch.ones_like(weights)
    else:
        weights = torch.ones(m, dtype=wide, device=operator.device)
    home = operator.device if generator is None else generator.device
    weights = weights.double().cumsum(0).to(home)

    def advance(x: Tensor, width: int) -> Tensor:
        # by inversion rather than torch.multinomial, which stops at 2^24 categories
        points = torch.rand(width, generator=generator, dtype=torch.float64, device=home) * weights[-1]
        index = torch.searchsorted(weights, points, right=True).clamp_max(m - 1).to(operator.device)
        rows = operator.rows(index).to(wide)
        return project_in_turn(x, rows, b[index])

    limit, every = equation_limits(m, max_steps, check_every)
    return drive(call, operator, b, x, advance, BLOCK, limit, every, rtol, atol, stop_fn)


def sketch_and_project(
    operator: LinearOperator | Tensor,
    b: Tensor,
    *,
    sketch: SketchName | Callable[[int, int], LinearOperator] = "gaussian",
    block_size: int = 32,
    start: Tensor | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_steps: int | None = None,
    check_every: int | None = None,
    stop_fn: StopFunction | None = None,
    generator: Generator | None = None,
) -> Solution:
    """Solve a consistent system by projecting on Q random combinations of its equations at a time.

    x ← x - AᵀS (SᵀA AᵀS)⁺ Sᵀ(A x - b): the nearest point that satisfies Sᵀ A x = Sᵀ b, S a fresh random M × Q block.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (M, N)
        A, real, with an adjoint; with row access for ``sketch="rows"``.
    b : Tensor, shape (M,)
        Right-hand side.
    sketch : {"gaussian", "rows", "countsketch", "srht", "sparse_sign"} or callable, default "gaussian"
        How S is drawn: "rows" takes Q different equations (block Kaczmarz). A callable maps (M, Q) to a fresh operator
        of shape (Q, M), Sᵀ.
    block_size : int, default 32
        Q; at most M is used. One gives the vector methods, 8 to 64 make good use of the processor.
    start : Tensor, shape (N,), optional
        First x, for instance that of an earlier call which is to go on. Default: zero.
    rtol, atol : float, default 1e-6 and 0
        Stop when ‖A x - b‖ <= max(rtol ‖b‖, atol).
    max_steps : int, optional
        Blocks at most. Default: 200 M / Q.
    check_every : int, optional
        Blocks between two looks at the residual, one product each. Default: M / Q.
    stop_fn : callable, optional
        A test of the caller's own, asked at each look besides.
    generator : torch.Generator, optional
        Source of the sketches; a callable brings its own. Default: torch's global generator.

    Returns
    -------
    Solution
        ``num_steps`` counts blocks, ``history`` holds the residuals at each look.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If an argument is out of range.
    NumericalError
        If A or b has NaN or Inf.

    References
    ----------
    R. M. Gower, P. Richtárik (2015), SIAM J. Matrix Anal. Appl. 36(4), arXiv 1506.03296.
    """
    call = "sketch_and_project"
    operator = single_operator(call, as_linear_operator(operator))
    m = operator.shape[0]
    at_least(call, "block_size", block_size, 1)
    width = min(block_size, m)
    x, b, wide = prepare(call, operator, b, start)
    if isinstance(sketch, str) and sketch != "rows" and sketch not in _SKETCHES:
        raise ArgumentError(f"{call}: sketch must be a function or one of rows, {', '.join(_SKETCHES)}; got {sketch!r}")
    home = operator.device if generator is None else generator.device

    def draw() -> tuple[Tensor, Tensor]:
        # SᵀA and Sᵀb
        if sketch == "rows":
            index = torch.randperm(m, generator=generator, device=home)[:width].to(operator.device)
            return operator.rows(index).to(wide), b[index]
        if callable(sketch):
            S = sketch(m, width)
        else:
            # a sparse sign sketch cannot have more entries a column than rows
            options = {"s": min(8, width)} if sketch == "sparse_sign" else {}
            S = _SKETCHES[sketch](
                m, width, dtype=operator.dtype, device=operator.device, generator=generator, **options
            )
        if isinstance(operator, Dense):
            return (S @ operator.to_dense()).to(wide), (S @ b.to(operator.dtype)).to(wide)
        columns = S.to_dense().mT
        return operator.rmatmat(columns).mT.to(wide), columns.mT.to(wide) @ b

    def advance(x: Tensor, _width: int) -> Tensor:
        rows, target = draw()
        Q, R = torch.linalg.qr(rows.T)
        # the triangle may be singular: equations that were drawn twice, or a rank below Q
        left, values, right_h = torch.linalg.svd(R, full_matrices=False)
        kept = values > torch.finfo(values.dtype).eps * max(rows.shape) * values[0]
        inverse = torch.where(kept, 1 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
        return x + Q @ (left @ (inverse * (right_h @ (target - rows @ x))))

    limit = max_steps if max_steps is not None else max(200 * m // width, 1)
    every = check_every if check_every is not None else max(m // width, 1)
    return drive(call, operator, b, x, advance, 1, limit, every, rtol, atol, stop_fn)
