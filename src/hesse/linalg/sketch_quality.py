"""How good a sketch S is: its distortion of one subspace, and how evenly it preserves inner products.

Both properties together give least squares with an error spread over all coordinates; see `sketched_lstsq`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg._arguments import at_least, wide_dtype
from hesse.linalg.operator import LinearOperator

__all__ = ["CoordinatewiseStatistics", "oce_statistics", "ose_distortion"]


def ose_distortion(sketch: LinearOperator, basis: Tensor) -> Tensor:
    """Compute the distortion ‖(S U)ᴴ S U - I‖₂ of a subspace.

    Parameters
    ----------
    sketch : LinearOperator, shape (M, N)
        S.
    basis : Tensor, shape (N, D)
        U with orthonormal columns, such as the Q of a QR decomposition.

    Returns
    -------
    Tensor, shape ()
        0 where S keeps every length in the subspace; from 1 on S may lose a direction altogether. O(M D²) after the
        product.

    Raises
    ------
    ShapeError
        If ``basis`` is not a matrix of N rows.
    ArgumentError
        If its columns are not orthonormal.

    References
    ----------
    T. Sarlós (2006), FOCS.
    """
    if basis.ndim != 2:
        raise ShapeError(f"ose_distortion: expected basis of shape (N, D), got {tuple(basis.shape)}")
    wide = basis.to(wide_dtype(basis.dtype))
    identity = torch.eye(basis.shape[1], dtype=wide.dtype, device=wide.device)
    gap = float((wide.detach().mH @ wide.detach() - identity).abs().max()) if basis.shape[1] else 0.0
    if not gap <= 100 * torch.finfo(basis.dtype).eps * max(1.0, len(basis) ** 0.5):
        raise ArgumentError(
            f"ose_distortion: expected orthonormal columns, UᴴU is off the identity by {gap:.1e}; "
            "pass torch.linalg.qr(U).Q"
        )
    small = (sketch @ basis).to(wide.dtype)
    return torch.linalg.matrix_norm(small.mH @ small - identity, ord=2)


@dataclass(frozen=True, slots=True)
class CoordinatewiseStatistics:
    """The random number X = gᴴSᴴS h over many draws of S; an unbiased sketch has E[X] = gᴴh.

    Attributes
    ----------
    mean : float
        Of X (its real part).
    standard_error : float
        Of ``mean``.
    second_moment : float
        ``E|X|²``.
    alpha : float
        ``M (E|X|² - |gᴴh|²) / (‖g‖² ‖h‖²)``, the constant of the variance.
    levels : tuple of float
        Probabilities of the quantiles.
    quantiles : tuple of float
        Of ``|X - gᴴh| / (‖g‖ ‖h‖)``, one a level; times √M they are the constant beta of the tail.
    num_trials : int
        Draws.
    """

    mean: float
    standard_error: float
    second_moment: float
    alpha: float
    levels: tuple[float, ...]
    quantiles: tuple[float, ...]
    num_trials: int


@torch.no_grad()
def oce_statistics(
    sketch_fn: Callable[[], LinearOperator],
    g: Tensor,
    h: Tensor,
    num_trials: int,
    *,
    levels: tuple[float, ...] = (0.5, 0.95, 0.999),
) -> CoordinatewiseStatistics:
    """Sample gᴴSᴴS h: the property "oblivious coordinate-wise embedding", measured.

    Parameters
    ----------
    sketch_fn : callable
        Draws a fresh S of shape (M, N) at every call, such as ``lambda: SRHT(n, m, generator=generator)``.
    g, h : Tensor, shape (N,)
        Fixed vectors, not zero.
    num_trials : int
        Draws, at least two; a quantile p needs a good many more than 1 / (1 - p).
    levels : tuple of float, default (0.5, 0.95, 0.999)
        Probabilities of the quantiles, in the order wanted.

    Returns
    -------
    CoordinatewiseStatistics
        One product of S with two columns a draw.

    Raises
    ------
    ArgumentError
        If ``num_trials < 2``, a level lies outside [0, 1], or g or h is zero.
    ShapeError
        If g and h are not vectors of one length.

    References
    ----------
    Z. Song, Z. Yu (2021), ICML, for the definition; Z. Song, M. Ye, J. Yin, L. Zhang (2023), ICML, arXiv 2302.00248.
    """
    at_least("oce_statistics", "num_trials", num_trials, 2)
    if g.ndim != 1 or g.shape != h.shape:
        raise ShapeError(
            f"oce_statistics: expected g and h of one shape (N,), got {tuple(g.shape)} and {tuple(h.shape)}"
        )
    if not all(0 <= level <= 1 for level in levels):
        raise ArgumentError(f"oce_statistics: expected levels in [0, 1], got {levels}")
    size = float(g.norm() * h.norm())
    if not size > 0:
        raise ArgumentError("oce_statistics: g or h is zero, and there is nothing to compare with")
    pair = torch.stack([g, h], dim=1)
    samples, rows = [], 0
    for _ in range(num_trials):
        sketch = sketch_fn()
        images = sketch @ pair
        rows = sketch.shape[0]
        samples.append(torch.vdot(images[:, 0], images[:, 1]))
    values = torch.stack(samples).cpu()
    true = torch.vdot(g, h).cpu()
    errors = (values - true).abs().double() / size
    second = float(values.abs().double().square().mean())
    return CoordinatewiseStatistics(
        mean=float(values.real.double().mean()),
        standard_error=float(values.real.double().std()) / num_trials**0.5,
        second_moment=second,
        alpha=rows * (second - float(true.abs()) ** 2) / size**2,
        levels=tuple(levels),
        quantiles=tuple(torch.quantile(errors, torch.tensor(levels, dtype=torch.float64)).tolist()),
        num_trials=num_trials,
    )
