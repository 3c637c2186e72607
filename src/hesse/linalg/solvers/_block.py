"""What the Krylov solvers share: checking a system, folding its columns into one block, products by column."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers.solution import Solution, Status

__all__ = [
    "Preconditioner",
    "System",
    "column_dot",
    "column_norm",
    "default_rtol",
    "finish",
    "prepare",
    "unit_scale",
]

Preconditioner = LinearOperator | Callable[[Tensor], Tensor]
"""An approximate inverse, applied to a block of columns once a step."""

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class System:
    """A checked system with its columns folded into one block: b is (n, K), or (..., n, k) for a batched operator."""

    product: Product
    adjoint: Product
    precondition: Product | None
    b: Tensor
    x0: Tensor | None
    vector: bool  # whether b was one vector
    lead: torch.Size  # batch that was folded into columns
    dtype: torch.dtype  # the caller's

    def unfold(self, block: Tensor) -> Tensor:
        """Undo the folding for a block of columns; rows are the last but one dimension.

        Parameters
        ----------
        block : Tensor, shape (rows, K) or (..., rows, k)
            In the recurrences' dtype.

        Returns
        -------
        Tensor, shape of b
            In the caller's dtype.
        """
        if self.lead:
            block = block.reshape(block.shape[0], *self.lead, -1).movedim(0, -2)
        if self.vector:
            block = block.squeeze(-1)
        return block.to(self.dtype)

    def unfold_columns(self, entries: Tensor) -> Tensor:
        """Undo the folding for one entry a column; leading dimensions are kept.

        Parameters
        ----------
        entries : Tensor, shape (..., 1, K)
            The row dimension is kept by `column_dot`.

        Returns
        -------
        Tensor, shape (..., batch..., k)
            Without the row dimension; a scalar a step for a vector b.
        """
        flat = entries.squeeze(-2)
        if self.lead:
            flat = flat.unflatten(-1, (*self.lead, -1))
        return flat.squeeze(-1) if self.vector else flat


def prepare(
    name: str,
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    rtol: float,
    atol: float,
    max_steps: int,
    recurrence_dtype: torch.dtype | None = None,
    validate: bool = True,
    square: bool = True,
) -> System:
    """Check a system and fold its columns.

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
    preconditioner : LinearOperator or callable, optional
        Approximate inverse.
    rtol : float
        Relative tolerance, >= 0.
    atol : float
        Absolute tolerance, >= 0.
    max_steps : int
        Limit, >= 0.
    recurrence_dtype : torch.dtype, optional
        Default: that of b, but float32 at least.
    validate : bool, default True
        Whether a declared symmetry is tested at first use, and b for NaN.
    square : bool, default True
        Whether the solver needs a square operator.

    Returns
    -------
    System
        Ready to iterate on.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a tolerance or a limit is negative.
    NumericalError
        If b has NaN or Inf, or a declared symmetry does not hold.
    """
    m, n = operator.shape
    if square and m != n:
        raise ShapeError(f"{name}: expected a square operator, got shape {operator.shape}; use lsmr")
    if b.ndim == 0 or b.shape[-2 if b.ndim > 1 else 0] != m:
        raise ShapeError(
            f"{name}: the operator is {operator.shape}, b has shape {tuple(b.shape)}; expected (..., {m}, k)"
        )
    if b.dtype != operator.dtype or b.device != operator.device:
        raise ShapeError(
            f"{name}: the operator is {operator.dtype} on {operator.device}, b {b.dtype} on {b.device}; convert by .to"
        )
    if not (rtol >= 0 and atol >= 0 and max_steps >= 0):
        raise ArgumentError(
            f"{name}: expected rtol, atol, max_steps >= 0, got rtol={rtol}, atol={atol}, max_steps={max_steps}"
        )
    if validate:
        if not bool(torch.isfinite(b).all()):
            raise NumericalError(f"{name}: b has NaN or Inf")
        operator.validate_symmetry()
    work = recurrence_dtype or torch.promote_types(b.dtype, torch.float32)
    block = b.unsqueeze(-1) if b.ndim == 1 else b
    batch = torch.broadcast_shapes(operator.batch_shape, block.shape[:-2])
    vector = b.ndim == 1
    shape = (*batch, n) if vector else (*batch, n, block.shape[-1])
    fold = not operator.batch_shape and len(batch) > 0 and not _is_batched(preconditioner)
    lead = torch.Size(batch) if fold else torch.Size(())
    start = x0
    if start is not None:
        if start.shape != shape or start.dtype != b.dtype or start.device != b.device:
            raise ShapeError(f"{name}: x0 is {tuple(start.shape)} {start.dtype}, expected {shape} {b.dtype}")
        start = start.unsqueeze(-1) if vector else start

    def folded(t: Tensor) -> Tensor:
        t = t.to(work)
        if fold:
            return t.movedim(-2, 0).reshape(t.shape[-2], -1)
        return t.expand(*batch, *t.shape[-2:])

    def cast(product: Product) -> Product:
        if work == operator.dtype:
            return product
        return lambda x: product(x.to(operator.dtype)).to(work)

    empty = block.shape[-1] == 0 or 0 in operator.shape
    apply = preconditioner.matmat if isinstance(preconditioner, LinearOperator) else preconditioner
    return System(
        product=cast(operator.matmat if empty else operator._matmat),  # shapes are settled: no check a step
        adjoint=cast(operator.rmatmat),
        precondition=None if apply is None else cast(apply),
        b=folded(block),
        x0=None if start is None else folded(start),
        vector=vector,
        lead=lead,
        dtype=b.dtype,
    )


def _is_batched(preconditioner: Preconditioner | None) -> bool:
    return isinstance(preconditioner, LinearOperator) and bool(preconditioner.batch_shape)


def default_rtol(dtype: torch.dtype) -> float:
    """Choose 1e-6 in double precision and 1e-5 in single: three digits above what rounding leaves of the residual.

    Parameters
    ----------
    dtype : torch.dtype
        Of the right-hand side.

    Returns
    -------
    float
        1e-3 in half precision.
    """
    if dtype in (torch.float64, torch.complex128):
        return 1e-6
    return 1e-5 if dtype in (torch.float32, torch.complex64) else 1e-3


def column_dot(left: Tensor, right: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Take the real part of x^H y for each column.

    Parameters
    ----------
    left : Tensor, shape (..., n, k)
        x.
    right : Tensor, shape (..., n, k)
        y.
    scratch : Tensor, shape (..., n, k), optional
        Overwritten; saves an allocation.

    Returns
    -------
    Tensor, shape (..., 1, k)
        Real.
    """
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
        return torch.mul(left, right).sum((-3, -1)).unsqueeze(-2)
    return torch.mul(left, right, out=scratch).sum(-2, keepdim=True)


def column_norm(block: Tensor) -> Tensor:
    """Take the norm of each column.

    Parameters
    ----------
    block : Tensor, shape (..., n, k)
        Columns.

    Returns
    -------
    Tensor, shape (..., 1, k)
        Real.
    """
    return torch.linalg.vector_norm(block, dim=-2, keepdim=True)


def unit_scale(b: Tensor) -> Tensor:
    """Find the power of two that takes the largest entry of a column near 1 without rounding: squares stay in range.

    Parameters
    ----------
    b : Tensor, shape (..., n, k)
        Columns; a zero column gets 2.

    Returns
    -------
    Tensor, shape (..., 1, k)
        Divide by it.
    """
    if b.shape[-2] == 0:
        return torch.ones_like(column_norm(b))
    size = b.abs().amax(-2, keepdim=True)
    return torch.ldexp(torch.ones_like(size), torch.frexp(torch.where(size > 0, size, 1)).exponent)


def finish(
    system: System,
    x: Tensor,
    statuses: Tensor,
    *,
    method: str,
    num_steps: int,
    limit: Tensor,
    scale: Tensor,
    history: list[Tensor],
    residual: Tensor | None = None,
) -> Solution:
    """Compute the explicit residual and let it decide what has converged.

    Parameters
    ----------
    system : System
        As prepared.
    x : Tensor, shape (..., n, k)
        Of the scaled system.
    statuses : Tensor of int64, shape (..., 1, k)
        By recurrence; a column that claims convergence and misses it has stagnated.
    method : str
        For the solution.
    num_steps : int
        Of the slowest column.
    limit : Tensor, shape (..., 1, k)
        Tolerance on the residual norm of the scaled system.
    scale : Tensor, shape (..., 1, k)
        From `unit_scale`.
    history : list of Tensor
        Residual norms, may be empty.
    residual : Tensor, shape (..., 1, k), optional
        The norms, where the solver has just computed them: saves a product.

    Returns
    -------
    Solution
        In the caller's shape.
    """
    if residual is None:
        residual = column_norm(system.b / scale - system.product(x))
    met = residual <= limit
    claimed = torch.where(statuses == int(Status.CONVERGED), int(Status.STAGNATED), statuses)
    statuses = torch.where(met, int(Status.CONVERGED), claimed)
    return Solution(
        x=system.unfold(x * scale),
        converged=system.unfold_columns(met),
        num_steps=num_steps,
        residual=system.unfold_columns(residual * scale),
        status=Status(int(statuses.max())) if statuses.numel() else Status.CONVERGED,
        method=method,
        history=system.unfold_columns(torch.stack(history)) if history else None,
        statuses=system.unfold_columns(statuses),
    )
