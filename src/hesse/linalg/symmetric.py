"""Functions of symmetric matrices through their eigenvalues, with gradients that survive equal eigenvalues.

Shapes: A is (..., N, N), symmetric (Hermitian); f(A) = Q diag(f(λ)) Qᴴ.

The derivative in direction E is Q (Γ ⊙ QᴴEQ) Qᴴ with the divided differences Γ_ij = (f(λ_i) - f(λ_j)) / (λ_i - λ_j)
(Daleckii-Krein). Differentiating an eigendecomposition instead divides by λ_i - λ_j and gives NaN where two agree.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hesse.errors import ArgumentTypeError, ShapeError, SingularError

__all__ = ["symmetric_exp", "symmetric_function", "symmetric_log", "symmetric_power", "symmetric_sqrt"]

Differences = Callable[[Tensor, Tensor], Tensor]
"""Maps two tensors of eigenvalues, broadcast, to the divided differences of f between them."""


def symmetric_function(matrix: Tensor, fn: Callable[[Tensor], Tensor], divided_differences: Differences) -> Tensor:
    """Apply a function to the eigenvalues of a symmetric matrix.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        A, float32, float64 or complex; its Hermitian part is used. Half precision has no eigendecomposition in torch.
    fn : callable
        f, elementwise.
    divided_differences : callable
        (a, b) ↦ (f(a) - f(b)) / (a - b), and f'(a) where a = b; accurate also where they nearly agree, which the
        quotient itself is not.

    Returns
    -------
    Tensor, shape (..., N, N)
        f(A), Hermitian. Differentiable once. O(N³).

    Raises
    ------
    ShapeError
        If the matrix is not square.
    ArgumentTypeError
        If it is in half precision or of whole numbers.

    References
    ----------
    N. J. Higham (2008), Functions of Matrices, SIAM, ch. 3.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(f"symmetric_function: expected square matrices, got shape {tuple(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise ArgumentTypeError(f"symmetric_function: {matrix.dtype} has no eigendecomposition; use .to(torch.float32)")
    return _Spectral.apply(matrix, fn, divided_differences)


def symmetric_exp(matrix: Tensor) -> Tensor:
    """Take the exponential of a symmetric matrix.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        Symmetric (Hermitian).

    Returns
    -------
    Tensor, shape (..., N, N)
        exp(A), positive definite. Differentiable once, also at equal eigenvalues.
    """
    return symmetric_function(matrix, torch.exp, lambda a, b: torch.exp((a + b) / 2) * _sinhc((a - b) / 2))


def symmetric_log(matrix: Tensor) -> Tensor:
    """Take the logarithm of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        Symmetric positive definite.

    Returns
    -------
    Tensor, shape (..., N, N)
        log(A), in nats. Differentiable once, also at equal eigenvalues.

    Raises
    ------
    SingularError
        If an eigenvalue is not positive.
    """

    def fn(values: Tensor) -> Tensor:
        _require_positive("symmetric_log", values)
        return values.log()

    return symmetric_function(matrix, fn, _log_differences)


def symmetric_sqrt(matrix: Tensor) -> Tensor:
    """Take the positive square root of a symmetric positive semi-definite matrix.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        Symmetric positive semi-definite; eigenvalues down to -8 N eps ‖A‖ count as zero.

    Returns
    -------
    Tensor, shape (..., N, N)
        √A. Differentiable once, also at equal eigenvalues, but not at a double zero.

    Raises
    ------
    SingularError
        If an eigenvalue is negative beyond rounding, or the gradient is wanted where two eigenvalues are zero (also
        for N = 1: where one is).
    """
    return symmetric_power(matrix, 0.5)


def symmetric_power(matrix: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric positive matrix to a real power.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        Symmetric positive definite; semi-definite is enough for an exponent above zero, and eigenvalues down to
        -8 N eps ‖A‖ then count as zero.
    exponent : float
        p, any real number; -1/2 whitens.

    Returns
    -------
    Tensor, shape (..., N, N)
        Aᵖ. Differentiable once, also at equal eigenvalues; for p < 1 not at a singular A.

    Raises
    ------
    SingularError
        If an eigenvalue does not allow the power, or the gradient does not exist.
    """
    p = float(exponent)
    wants_gradient = matrix.requires_grad and torch.is_grad_enabled()

    def fn(values: Tensor) -> Tensor:
        if p <= 0:
            _require_positive("symmetric_power", values)
            return values.pow(p)
        clipped = _clip(values)
        if p < 1 and wants_gradient and bool((clipped == 0).any()):
            raise SingularError(
                f"symmetric_power: the power {p} of a singular matrix has no gradient; add a shift to the diagonal"
            )
        return clipped.pow(p)

    def differences(a: Tensor, b: Tensor) -> Tensor:
        if p > 0:
            a, b = _clip(a), _clip(b)
        return _power_differences(a, b, p)

    return symmetric_function(matrix, fn, differences)


class _Spectral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, fn: Callable[[Tensor], Tensor], differences: Differences) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.mH) / 2)
        ctx.save_for_backward(values, vectors)
        ctx.differences = differences
        out = vectors * fn(values).unsqueeze(-2).to(vectors.dtype) @ vectors.mH
        return (out + out.mH) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = ctx.saved_tensors
        gamma = ctx.differences(values.unsqueeze(-1), values.unsqueeze(-2))
        inner = vectors.mH @ ((grad + grad.mH) / 2) @ vectors
        return vectors @ (gamma.to(inner.dtype) * inner) @ vectors.mH, None, None


def _require_positive(call: str, values: Tensor) -> None:
    if not bool((values > 0).all()):
        raise SingularError(
            f"{call}: expected positive eigenvalues, the smallest is {float(values.min()):.3e}; add a shift"
        )


def _clip(values: Tensor) -> Tensor:
    size = values.abs().amax() if values.numel() else values.sum()
    least = (
        -8 * max(values.shape[-1], values.shape[-2] if values.ndim > 1 else 1) * torch.finfo(values.dtype).eps * size
    )
    if not bool((values >= least).all()):
        raise SingularError(f"symmetric_power: expected eigenvalues >= 0, the smallest is {float(values.min()):.3e}")
    return values.clamp_min(0)


def _sinhc(x: Tensor) -> Tensor:
    # sinh(x) / x
    small = x.abs() < 0.1
    square = x.square()
    series = 1 + square / 6 * (1 + square / 20 * (1 + square / 42 * (1 + square / 72)))
    divisor = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, series, torch.sinh(divisor) / divisor)


def _log_differences(a: Tensor, b: Tensor) -> Tensor:
    # a, b = g exp(±h) with g the geometric mean: log a - log b = 2h and a - b = 2 g sinh h
    h = (a.log() - b.log()) / 2
    return 1 / ((a.log() / 2 + b.log() / 2).exp() * _sinhc(h))


def _power_differences(a: Tensor, b: Tensor, p: float) -> Tensor:
    # as above: aᵖ - bᵖ = 2 gᵖ sinh(p h); a zero eigenvalue has no logarithm, and no cancellation either
    a, b = torch.broadcast_tensors(a, b)
    zero = (a <= 0) | (b <= 0)
    one = torch.ones_like(a)
    log_a, log_b = torch.where(zero, one, a).log(), torch.where(zero, one, b).log()
    h = (log_a - log_b) / 2
    regular = p * ((p - 1) * (log_a + log_b) / 2).exp() * _sinhc(p * h) / _sinhc(h)
    larger = torch.maximum(a, b)
    at_zero = larger.pow(p - 1)  # (aᵖ - 0) / (a - 0), and f'(0) where both are zero
    return torch.where(zero, at_zero, regular)
