"""The eigenvalue of largest magnitude, and the spectral norm, by repeated multiplication."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._random import gaussian_columns
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.result import EigenResult
from hesse.linalg.operator import LinearOperator

__all__ = ["power_iteration", "spectral_norm"]


def power_iteration(
    operator: LinearOperator | Tensor,
    *,
    max_steps: int = 100,
    tol: float = 1e-3,
    start: Tensor | None = None,
    generator: Generator | None = None,
) -> EigenResult:
    """Find the eigenvalue of largest magnitude by v ← A v / ‖A v‖, with the Rayleigh quotient λ = vᴴAv.

    For a symmetric operator the error of λ is at most residual² / gap and the residual falls by ``|λ₂/λ₁|`` a step:
    enough for step sizes and damping. `eigsh` needs far fewer products where digits matter, or the gap is small.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A. If it is not symmetric, the dominant eigenvalue must be real and simple.
    max_steps : int, default 100
        Products at most; 1 or more.
    tol : float, default 1e-3
        Stop when ``‖A v - λ v‖ <= tol · |λ|``. For a symmetric A that is a relative error of λ of 1e-3 at most,
        usually about 1e-6.
    start : Tensor, shape (N,), optional
        First vector, for instance the eigenvector of a nearby operator. Default: Gaussian.
    generator : torch.Generator, optional
        Source of the start. Default: torch's global generator.

    Returns
    -------
    EigenResult
        With one pair; ``num_steps`` is the number of products.

    Raises
    ------
    ShapeError
        If the operator is not square or a stack, or ``start`` does not fit it.
    ArgumentError
        If ``max_steps < 1``, ``tol < 0``, or ``start`` is zero.
    NumericalError
        If a product has NaN or Inf.

    References
    ----------
    R. von Mises, H. Pollaczek-Geiringer (1929), ZAMM 9.
    """
    operator = single_operator("power_iteration", square_operator("power_iteration", operator))

    def multiply(vector: Tensor) -> Tensor:
        return operator.matmat(vector.to(operator.dtype).unsqueeze(1)).squeeze(1).to(vector.dtype)

    first = _start("power_iteration", start, operator.shape[1], operator, generator)
    value, vector, residual, converged, steps = _iterate("power_iteration", multiply, first, max_steps, tol)
    if operator.is_symmetric:
        value = value.real
    return EigenResult(
        value.reshape(1), vector.to(operator.dtype).unsqueeze(1), residual.reshape(1), converged, steps, steps
    )


def spectral_norm(
    operator: LinearOperator | Tensor,
    *,
    max_steps: int = 100,
    tol: float = 1e-3,
    start: Tensor | None = None,
    generator: Generator | None = None,
) -> EigenResult:
    """Find the largest singular value ‖A‖₂ by power iteration on AᴴA; the estimate never exceeds it.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (M, N)
        A, of any shape.
    max_steps : int, default 100
        Steps at most, of two products each.
    tol : float, default 1e-3
        Stop when ‖AᴴA v - σ² v‖ <= tol · σ².
    start : Tensor, shape (N,), optional
        First right vector. Default: Gaussian.
    generator : torch.Generator, optional
        Source of the start. Default: torch's global generator.

    Returns
    -------
    EigenResult
        σ in ``eigenvalues``, the right singular vector in ``eigenvectors``, ‖AᴴA v - σ² v‖ in ``residuals``.

    Raises
    ------
    ShapeError
        If the operator is a stack, or ``start`` does not fit it.
    ArgumentError
        If ``max_steps < 1``, ``tol < 0``, or ``start`` is zero.
    NumericalError
        If a product has NaN or Inf.
    """
    operator = single_operator("spectral_norm", as_linear_operator(operator))

    def multiply(vector: Tensor) -> Tensor:
        column = vector.to(operator.dtype).unsqueeze(1)
        return operator.rmatmat(operator.matmat(column)).squeeze(1).to(vector.dtype)

    first = _start("spectral_norm", start, operator.shape[1], operator, generator)
    value, vector, residual, converged, steps = _iterate("spectral_norm", multiply, first, max_steps, tol)
    return EigenResult(
        value.real.clamp_min(0).sqrt().reshape(1),
        vector.to(operator.dtype).unsqueeze(1),
        residual.reshape(1),
        converged,
        steps,
        2 * steps,
    )


def _start(call: str, start: Tensor | None, n: int, operator: LinearOperator, generator: Generator | None) -> Tensor:
    wide = wide_dtype(operator.dtype)
    if start is None:
        return gaussian_columns(n, 1, dtype=wide, device=operator.device, generator=generator).squeeze(1)
    if start.shape != (n,) or start.device != operator.device:
        raise ShapeError(
            f"{call}: expected start of shape ({n},) on {operator.device}, got {tuple(start.shape)} on {start.device}"
        )
    if not bool(torch.linalg.vector_norm(start) > 0):
        raise ArgumentError(f"{call}: start is zero or not finite")
    return start.detach().to(wide)


def _iterate(
    call: str, multiply: Callable[[Tensor], Tensor], start: Tensor, max_steps: int, tol: float
) -> tuple[Tensor, Tensor, Tensor, bool, int]:
    at_least(call, "max_steps", max_steps, 1)
    at_least(call, "tol", tol, 0)
    vector = start / torch.linalg.vector_norm(start)
    value = residual = vector.new_zeros(())
    with torch.no_grad():
        for step in range(1, max_steps + 1):
            image = multiply(vector)
            value = torch.linalg.vecdot(vector, image)
            residual = torch.linalg.vector_norm(image - value * vector)
            if not bool(torch.isfinite(residual)):
                raise NumericalError(f"{call}: the product has NaN or Inf at step {step}")
            if float(residual) <= tol * float(value.abs()):
                return value, vector, residual, True, step
            if step < max_steps:
                vector = image / torch.linalg.vector_norm(image)
    return value, vector, residual, False, max_steps
