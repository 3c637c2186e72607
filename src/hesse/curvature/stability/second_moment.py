"""Does E‖θ_t - θ*‖² stay bounded under SGD linearised at a minimum θ* without residuals?

    θ_{t+1} - θ* = (I - (η/B) Σ_{i in batch} a_i a_iᵀ) (θ_t - θ*)
    T(M) = (I - ηH) M (I - ηH) + η² f [ (1/N) Σ_i a_i (a_iᵀ M a_i) a_iᵀ - H M H ]

Stable iff the spectral radius of T on range(H) is at most one. T is self-adjoint in the Frobenius product and maps
positive semi-definite matrices to such, hence its radius is an eigenvalue, and Lanczos from the identity finds it.

Shapes: N samples, C outputs, P parameters, R the rank of H.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.stability.coordinates import RangeCoordinates
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.eigen.eigsh import eigsh
from hesse.linalg.solvers.cg import cg

__all__ = ["SecondMomentRadius", "largest_eigenvalue", "second_moment_operator", "stationary_moment"]


@dataclass(frozen=True, slots=True)
class SecondMomentRadius:
    """The factor by which E‖θ_t - θ*‖² grows a step in the long run."""

    value: float  # at most 1: stable
    converged: bool
    num_steps: int  # products with T; 0 where it was formed
    residual: float  # ‖T(X) - ρ X‖_F at ‖X‖_F = 1; without momentum some eigenvalue lies that close

    def __float__(self) -> float:
        return self.value


def second_moment_operator(coordinates: RangeCoordinates, lr: float, noise_factor: float) -> Callable[[Tensor], Tensor]:
    """T, in the eigenbasis of H.

    Parameters
    ----------
    coordinates : RangeCoordinates
        The samples.
    lr : float
        η.
    noise_factor : float
        f, of `batch_noise_factor`.

    Returns
    -------
    callable
        (R, R) -> (R, R), symmetric matrices.
    """
    shrink = 1 - lr * coordinates.eigenvalues

    def apply(X: Tensor) -> Tensor:
        kept = shrink.unsqueeze(1) * X * shrink
        return kept + lr**2 * noise_factor * coordinates.gradient_noise(X)

    return apply


def largest_eigenvalue(
    apply_fn: Callable[[Tensor], Tensor], coordinates: RangeCoordinates, tol: float, max_steps: int
) -> tuple[SecondMomentRadius, Tensor]:
    """Find the largest eigenvalue of a self-adjoint map of matrices that keeps the positive semi-definite cone.

    Parameters
    ----------
    apply_fn : callable
        (R, R) -> (R, R).
    coordinates : RangeCoordinates
        Gives R and the device.
    tol : float
        Of the residual, relative.
    max_steps : int
        Products at most.

    Returns
    -------
    radius : SecondMomentRadius
        The eigenvalue.
    X : Tensor of float64, shape (R, R)
        The eigenmatrix, of norm one, positive semi-definite up to rounding.
    """
    r, device = coordinates.rank, coordinates.rows.device
    if r == 0:  # nothing moves, and nothing is there to move
        return SecondMomentRadius(0.0, True, 0, 0.0), torch.zeros(0, 0, dtype=torch.float64, device=device)
    operator = _on_vectors(apply_fn, coordinates)
    # the eigenmatrix of the radius is positive semi-definite, so the identity is never orthogonal to it
    identity = torch.eye(r, dtype=torch.float64, device=device).reshape(-1)
    found = eigsh(
        operator,
        1,
        which="LA",
        tol=tol,
        max_steps=max_steps,
        start=identity,
        generator=torch.Generator().manual_seed(0),  # used where the identity spans too small a Krylov space
    )
    X = found.eigenvectors[:, 0].view(r, r)
    X = (X + X.mT) / 2 * (1.0 if float(X.trace()) >= 0 else -1.0)
    radius = SecondMomentRadius(
        float(found.eigenvalues[0]), found.converged, found.num_matvecs, float(found.residuals[0])
    )
    return radius, X


def stationary_moment(
    coordinates: RangeCoordinates, lr: float, noise_factor: float, covariance: Tensor, *, rtol: float = 1e-8
) -> Tensor:
    """Solve M = T(M) + η² f Σ: the second moment at which SGD settles where residuals leave gradient noise behind.

    Parameters
    ----------
    coordinates : RangeCoordinates
        The samples.
    lr : float
        η > 0, with a radius below one.
    noise_factor : float
        f.
    covariance : Tensor of float64, shape (R, R)
        Σ, of the samples' gradients at the minimum itself, in the eigenbasis of H.
    rtol : float, default 1e-8
        Relative residual, for conjugate gradients.

    Returns
    -------
    Tensor, shape (R, R)
        M; the loss it adds is tr(H M) / 2.
    """
    r, values = coordinates.rank, coordinates.eigenvalues
    step = second_moment_operator(coordinates, lr, noise_factor)
    full_batch = 1 - torch.outer(1 - lr * values, 1 - lr * values).reshape(-1, 1)  # positive where η λ₁ < 2
    system = _on_vectors(lambda X: X - step(X), coordinates)
    right = (lr**2 * noise_factor * covariance).reshape(-1)
    found = cg(system, right, rtol=rtol, preconditioner=lambda block: block / full_batch).require()
    return found.x.view(r, r)


def _on_vectors(apply_fn: Callable[[Tensor], Tensor], coordinates: RangeCoordinates) -> FunctionOperator:
    r = coordinates.rank
    return FunctionOperator(
        lambda columns: torch.stack([apply_fn(x.view(r, r)).reshape(-1) for x in columns.mT], dim=1),
        (r * r, r * r),
        dtype=torch.float64,
        device=coordinates.rows.device,
        is_symmetric=True,
    )
