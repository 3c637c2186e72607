"""Tall least squares from a sketch, with an error that is spread evenly over the coordinates of the solution.

x' = argmin ‖S A x - S b‖ for A (N, D), b (N,) or (N, K), S (M, N). With a dense structured S, such as the SRHT, and M
of the order of D / eps², every coordinate obeys |x'_i - x*_i| <= (eps / √D) ‖A x* - b‖ ‖A⁺‖: √D better than what the
residual alone promises. Sparse sketches have no such bound.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, same_numbers, single_operator
from hesse.linalg._refinement import SketchedSolveInfo, StoredRegression, described, refined
from hesse.linalg._sketched_system import SketchedFactor, TallMatrix, factor_dims, normal_solve
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.operator import LinearOperator
from hesse.linalg.sketch import SRHT, CountSketch, GaussianSketch, SparseSign
from hesse.linalg.tensor_sketch import TensorSRHT

__all__ = ["SketchName", "SketchedSolveInfo", "lstsq_sketch_size", "sketched_lstsq"]

SketchName = Literal["srht", "gaussian", "sparse_sign", "countsketch"]

_SPARSE_ENTRIES = 8  # a column of the sparse sign sketch


def lstsq_sketch_size(n: int, d: int, *, eps: float = 1.0, delta: float = 0.05, theory: bool = False) -> int:
    """Choose M = min(N, 2 log(2D/δ) D / eps²), the union bound over D near-Gaussian errors.

    Parameters
    ----------
    n, d : int
        Rows and columns of A.
    eps : float, default 1.0
        Accuracy: every coordinate within (eps / √D) ‖A x* - b‖ ‖A⁺‖.
    delta : float, default 0.05
        Probability that some coordinate misses it.
    theory : bool, default False
        Use log³(N/δ) D / eps², what is proved for the SRHT, with the constant one. The default is what the SRHT does in
        practice.

    Returns
    -------
    int
        Between d + 1 and n, or n if n is smaller.

    Raises
    ------
    ArgumentError
        If n or d is below one, eps is not positive, or delta not between 0 and 1.

    References
    ----------
    Z. Song, M. Ye, J. Yin, L. Zhang (2023), ICML, arXiv 2302.00248.
    """
    at_least("lstsq_sketch_size", "n", n, 1)
    at_least("lstsq_sketch_size", "d", d, 1)
    if not 0 < eps < math.inf:
        raise ArgumentError(f"lstsq_sketch_size: expected eps > 0, got {eps}")
    if not 0 < delta < 1:
        raise ArgumentError(f"lstsq_sketch_size: expected 0 < delta < 1, got {delta}")
    factor = math.log(n / delta) ** 3 if theory else 2 * math.log(2 * d / delta)
    wanted = factor * d / eps**2
    return n if wanted >= n else min(n, max(math.ceil(wanted), d + 1))


class _Options(TypedDict, total=False):
    eps: float | None
    delta: float
    theory: bool
    sketch_size: int | None
    sketch: SketchName | LinearOperator
    num_repeats: int
    refine: int
    tol: float
    damping: float
    rcond: float | None
    generator: Generator | None


@overload
def sketched_lstsq(
    A: Any, b: Tensor, *, return_info: Literal[False] = False, **options: Unpack[_Options]
) -> Tensor: ...
@overload
def sketched_lstsq(
    A: Any, b: Tensor, *, return_info: Literal[True], **options: Unpack[_Options]
) -> tuple[Tensor, SketchedSolveInfo]: ...
def sketched_lstsq(
    A: Any,
    b: Tensor,
    *,
    eps: float | None = None,
    delta: float = 0.05,
    theory: bool = False,
    sketch_size: int | None = None,
    sketch: SketchName | LinearOperator = "srht",
    num_repeats: int = 1,
    refine: int = 0,
    tol: float = 0.0,
    damping: float = 0.0,
    rcond: float | None = None,
    return_info: bool = False,
    generator: Generator | None = None,
) -> Tensor | tuple[Tensor, SketchedSolveInfo]:
    """Minimise ‖S (A x - b)‖² + damping ‖x‖² over x, then refine towards the minimiser of ‖A x - b‖² + damping ‖x‖².

    Parameters
    ----------
    A : Tensor, LinearOperator, or anything `as_linear_operator` takes, shape (N, D)
        N >= D, of full column rank unless ``rcond`` or ``damping`` is given. Of an operator D products are made, 64
        columns at a time. A `Kronecker` product with ``sketch="srht"`` is sketched factor by factor (`TensorSRHT`).
    b : Tensor, shape (N,) or (N, K)
        Right-hand sides.
    eps : float, optional
        Accuracy, see `lstsq_sketch_size`. Default: 1. Not together with ``sketch_size``.
    delta : float, default 0.05
        Probability of missing it, and of ``coordinate_bound``.
    theory : bool, default False
        Size of the sketch by the theorem instead of by the Gaussian union bound.
    sketch_size : int, optional
        M >= D. From N on the problem is solved without a sketch.
    sketch : str or LinearOperator of shape (M, N), default "srht"
        "srht" or "gaussian" spread the error over all coordinates. "sparse_sign" (8 entries a column) and "countsketch"
        are cheaper on sparse A, keep the residual, and may put the whole error into one coordinate.
    num_repeats : int, default 1
        Independent sketches, of whose solutions the coordinate-wise median is taken.
    refine : int, default 0
        At most so many steps of conjugate gradients, preconditioned by the sketch, each with one pass over A. Full
        accuracy takes about log(1/ε) / log(M/D) * 2 of them: 15 to 40. This, not a larger sketch, is the way to many
        digits.
    tol : float, default 0.0
        Stop refining where ‖A (x - x*)‖, estimated in preconditioned coordinates, is below ``tol`` ‖b‖. Default: where
        rounding ends it.
    damping : float, default 0.0
        Weight of ‖x‖², in units of AᴴA.
    rcond : float, optional
        Leave out singular values of S A below ``rcond`` times the largest: the solution of least norm. Default: a
        numerically rank-deficient S A is an error.
    return_info : bool, default False
        Also return how good the solution is; costs one more pass over A.
    generator : torch.Generator, optional
        Source of the sketch. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (D,) or (D, K)
        x, in the dtype of A. Differentiable with respect to b and the tensors of A where A has full column rank: as
        written for ``refine=0``, else as the exact least-squares solution.
    SketchedSolveInfo
        Only with ``return_info=True``.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit, or N < D.
    ArgumentError
        If a number is out of range, ``sketch`` unknown, ``eps`` meets ``sketch_size``, or a sketch that is given meets
        ``num_repeats > 1``.
    ArgumentTypeError
        If ``sketch`` is neither a name nor an operator.
    SingularError
        If S A is rank-deficient and neither ``rcond`` nor ``damping`` is given.
    NumericalError
        If A or b has NaN or Inf.

    Notes
    -----
    Half precision is computed in float32. O(N D log M + M D²) time for the SRHT of a stored A, M D memory.
    The guarantee is on the worst case. On matrices without outstanding rows all sketches do alike.

    References
    ----------
    Z. Song, M. Ye, J. Yin, L. Zhang (2023), ICML, arXiv 2302.00248; E. Price, Z. Song, D. Woodruff (2017), ICALP, arXiv
    1705.10723. Refinement: V. Rokhlin, M. Tygert (2008), PNAS 105(36); E. N. Epperly (2024), SIAM J. Matrix Anal. Appl.
    45(4), arXiv 2311.04362.

    Examples
    --------
    >>> import torch
    >>> from hesse.linalg import sketched_lstsq
    >>> g = torch.Generator().manual_seed(0)
    >>> A = torch.randn(2000, 10, dtype=torch.float64, generator=g)
    >>> x = sketched_lstsq(A, A.sum(1), refine=40, generator=g)
    >>> bool((x - 1).abs().max() < 1e-13)
    True
    """
    operator = single_operator("sketched_lstsq", as_linear_operator(A))
    _check(operator, b, num_repeats, refine, tol, damping, rcond, delta)
    matrix = TallMatrix(operator)
    n, d = operator.shape
    block = (b.unsqueeze(-1) if b.ndim == 1 else b).to(matrix.dtype)
    if isinstance(sketch, LinearOperator) and num_repeats > 1:
        raise ArgumentError("sketched_lstsq: num_repeats > 1 needs fresh sketches; pass sketch= by name")
    size = _size(n, d, eps, delta, theory, sketch_size, sketch)
    direct = size >= n and not isinstance(sketch, LinearOperator)
    draw = _drawer(matrix, size, sketch, generator)
    factors = [_factored(matrix, block, draw(), damping, rcond) for _ in range(1 if direct else num_repeats)]
    solutions = [factor.apply(factor.projected) for factor, _ in factors]
    factor, standard_error = factors[0]
    x, steps = _median(solutions), 0
    if refine:
        x, steps = _refined(matrix, factor, block, x, damping, refine, tol)
    found = _shaped(x, b).to(operator.dtype)
    if not return_info:
        return found
    with torch.no_grad():
        regression = StoredRegression(matrix.detached(), block.detach())
        pair = (solutions[0] - solutions[1]).abs().amax(0) / math.sqrt(2) if len(solutions) > 1 else None
        info = described(
            regression,
            factor.detached(),
            x.detach(),
            None if refine or direct else standard_error.detach(),
            shape=b.shape,
            damping=damping,
            delta=delta,
            tol=tol,
            sketch_size=size,
            num_sketches=0 if direct else len(factors),
            two_sketch_error=pair,
            num_steps=steps,
        )
    return found, info


def _check(
    operator: LinearOperator,
    b: Tensor,
    num_repeats: int,
    refine: int,
    tol: float,
    damping: float,
    rcond: float | None,
    delta: float,
) -> None:
    call = "sketched_lstsq"
    n, d = operator.shape
    if d < 1 or n < d:
        raise ShapeError(f"{call}: expected a tall A (N, D) with N >= D >= 1, got ({n}, {d}); use hesse.linalg.solve")
    if not isinstance(b, Tensor):
        raise ArgumentTypeError(f"{call}: expected b to be a tensor, got {type(b).__name__}")
    same_numbers(call, "b", b, operator)
    if b.ndim not in (1, 2) or len(b) != n or b.numel() == 0:
        raise ShapeError(f"{call}: expected b of shape ({n},) or ({n}, K), got {tuple(b.shape)}")
    at_least(call, "num_repeats", num_repeats, 1)
    at_least(call, "refine", refine, 0)
    at_least(call, "tol", tol, 0)
    at_least(call, "damping", damping, 0)
    if rcond is not None and not 0 <= rcond < 1:
        raise ArgumentError(f"{call}: expected 0 <= rcond < 1, got {rcond}")
    if not 0 < delta < 1:
        raise ArgumentError(f"{call}: expected 0 < delta < 1, got {delta}")


def _size(
    n: int,
    d: int,
    eps: float | None,
    delta: float,
    theory: bool,
    sketch_size: int | None,
    sketch: SketchName | LinearOperator,
) -> int:
    given = sketch.shape[0] if isinstance(sketch, LinearOperator) else sketch_size
    if eps is not None and given is not None:
        raise ArgumentError("sketched_lstsq: eps chooses the size of the sketch; leave it out, or sketch_size= and S")
    if sketch_size is not None and sketch_size != given:
        raise ArgumentError(f"sketched_lstsq: sketch_size is {sketch_size}, but the sketch given has {given} rows")
    size = (
        lstsq_sketch_size(n, d, eps=1.0 if eps is None else eps, delta=delta, theory=theory) if given is None else given
    )
    if size < d:
        raise ArgumentError(f"sketched_lstsq: expected a sketch of at least D = {d} rows, got {size}")
    return size if isinstance(sketch, LinearOperator) else min(size, n)


def _drawer(
    matrix: TallMatrix, size: int, sketch: SketchName | LinearOperator, generator: Generator | None
) -> Callable[[], LinearOperator | None]:
    n = matrix.shape[0]
    if isinstance(sketch, LinearOperator):
        if sketch.shape[1] != n or sketch.batch_shape:
            raise ShapeError(f"sketched_lstsq: expected a sketch of shape (M, {n}), got {sketch}")
        if sketch.dtype != matrix.dtype or sketch.device != matrix.device:
            raise ShapeError(
                f"sketched_lstsq: the sketch is {sketch.dtype} on {sketch.device}, the computation {matrix.dtype} on "
                f"{matrix.device}; move it with .to()"
            )
        return lambda: sketch
    options: dict[str, Any] = {"dtype": matrix.dtype, "device": matrix.device, "generator": generator}
    dims = factor_dims(matrix.operator)
    kinds: dict[str, Callable[[], LinearOperator]] = {
        "srht": lambda: SRHT(n, size, **options) if dims is None else TensorSRHT(dims, size, **options),
        "gaussian": lambda: GaussianSketch(n, size, **options),
        "sparse_sign": lambda: SparseSign(n, size, min(_SPARSE_ENTRIES, size), **options),
        "countsketch": lambda: CountSketch(n, size, **options),
    }
    if not isinstance(sketch, str):
        raise ArgumentTypeError(
            f"sketched_lstsq: expected sketch to be a name or an operator, got {type(sketch).__name__}"
        )
    if sketch not in kinds:
        raise ArgumentError(f"sketched_lstsq: unknown sketch {sketch!r}; expected one of {', '.join(kinds)}")
    return (lambda: None) if size >= n else kinds[sketch]


def _factored(
    matrix: TallMatrix, b: Tensor, sketch: LinearOperator | None, damping: float, rcond: float | None
) -> tuple[SketchedFactor, Tensor]:
    # the factor, and ‖S (A x' - b)‖ / √(M - D): an unbiased estimate of ‖A x* - b‖ / √M, the standard error of
    # the regression on M sketched rows
    small_A = matrix.sketched(sketch)
    small_b = b if sketch is None else sketch @ b
    for name, tensor in (("A", small_A), ("b", small_b)):
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"sketched_lstsq: {name} has NaN or Inf, or overflows in the sketch")
    factor = SketchedFactor.build(small_A, small_b, damping=damping, rcond=rcond)
    with torch.no_grad():
        left = torch.linalg.vector_norm(small_b - small_A @ factor.apply(factor.projected), dim=0)
        freedom = len(small_A) - len(factor.projected)
        return factor, left / math.sqrt(freedom) if freedom else torch.full_like(left, math.inf)


def _median(solutions: Sequence[Tensor]) -> Tensor:
    if len(solutions) == 1:
        return solutions[0]
    stack = torch.stack(tuple(solutions))
    if stack.is_complex():
        return torch.complex(_middle(stack.real), _middle(stack.imag))
    return _middle(stack)


def _middle(stack: Tensor) -> Tensor:
    # the mean of the two in the middle where the count is even, which torch.median does not take
    ordered, count = stack.sort(dim=0).values, len(stack)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _shaped(block: Tensor, b: Tensor) -> Tensor:
    return block.squeeze(-1) if b.ndim == 1 else block


def _refined(
    matrix: TallMatrix, factor: SketchedFactor, b: Tensor, x: Tensor, damping: float, limit: int, tol: float
) -> tuple[Tensor, int]:
    plain, own = matrix.detached(), factor.detached()
    with torch.no_grad():
        found, steps = refined(
            StoredRegression(plain, b.detach()), own, x.detach(), damping=damping, limit=limit, tol=tol
        )
    if torch.is_grad_enabled() and (
        b.requires_grad or any(t.requires_grad for t in matrix.operator.tensors().values())
    ):
        # zero in value; its gradient is that of the minimiser: dx = (AᴴA + damping)⁻¹ d[Aᴴ(b - A x) - damping x]
        gradient = matrix.adjoint(b - matrix.product(found)) - damping * found
        found = found + _ImplicitStep.apply(gradient, plain, own, damping)
    return found, steps


class _ImplicitStep(torch.autograd.Function):
    """Zero in the forward pass, (AᴴA + damping)⁻¹ in the backward pass: the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, matrix: TallMatrix, factor: SketchedFactor, damping: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.matrix, ctx.factor, ctx.damping = matrix, factor, damping
        return torch.zeros_like(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rtol = 100 * torch.finfo(grad.dtype).eps
        limit = 10 * len(grad) + 100  # a handful for a good sketch
        dual, _ = normal_solve(
            ctx.matrix, ctx.factor, grad.contiguous(), damping=ctx.damping, max_steps=limit, rtol=rtol
        )
        return dual, None, None, None
