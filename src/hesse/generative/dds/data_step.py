"""Bring data into a denoised picture by a few steps of conjugate gradients.   Shapes: data (m, R), pictures (n, R)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.generative.dds.loop import InverseProblem
from hesse.linalg import LinearOperator, cg, multishift_cg

__all__ = [
    "SliceDifference",
    "TVz",
    "circulant_inverse",
    "discrepancy_proximal",
    "least_squares_step",
    "proximal_step",
    "total_variation_step",
]

_WEIGHTS = 16  # trial weights of the discrepancy principle
_WEIGHT_SPAN = 1e4  # largest over smallest


def least_squares_step(problem: InverseProblem, x: Tensor, num_steps: int) -> Tensor:
    """Make M steps of CG on A^T A x = A^T y from x: noiseless data.

    Where A A^T = I (missing pixels, one coil) the first step is the projection x - A^T(A x - y), and CG stops there.
    Elsewhere small singular values come last: few steps regularise.

    Parameters
    ----------
    problem : InverseProblem
        A and y.
    x : Tensor, shape (n, R)
        Start.
    num_steps : int
        M.

    Returns
    -------
    Tensor, shape (n, R)
        x plus a member of the Krylov space of A^T A and the residual.
    """
    floor = 100 * torch.finfo(x.dtype).eps  # below it directions are rounding, and those in the kernel would grow
    return cg(problem.gram, problem.back, x0=x, rtol=floor, max_steps=num_steps, validate=False).x


def proximal_step(
    problem: InverseProblem,
    x: Tensor,
    gamma: float,
    num_steps: int,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Minimise ½‖z - x‖² + (γ/2)‖y - A z‖² by M steps of CG on (I + γ A^T A) z = x + γ A^T y from x.

    Parameters
    ----------
    problem : InverseProblem
        A and y.
    x : Tensor, shape (n, R)
        The denoised picture.
    gamma : float
        Weight of the data, in units of x² / y².
    num_steps : int
        M.
    preconditioner : callable, optional
        Approximates (I + γ A^T A)⁻¹; see `circulant_inverse`.

    Returns
    -------
    Tensor, shape (n, R)
        The proximal point, to M steps.
    """
    system, target = (gamma * problem.gram).shift(1.0), x + gamma * problem.back
    floor = torch.finfo(x.dtype).eps
    return cg(system, target, x0=x, rtol=floor, max_steps=num_steps, preconditioner=preconditioner, validate=False).x


def discrepancy_proximal(problem: InverseProblem, x: Tensor, gamma_max: float, num_steps: int) -> Tensor:
    """Take the proximal step with the least weight that explains the data: ‖A z - y‖ <= σ_y √m, column by column.

    All weights share one Krylov space, so the search costs one product a weight beyond a single solve.

    Parameters
    ----------
    problem : InverseProblem
        A, y and σ_y.
    x : Tensor, shape (n, R)
        The denoised picture.
    gamma_max : float
        The largest weight tried, and what is taken where none suffices; sixteen weights down to its 1e-4 are tried.
    num_steps : int
        M.

    Returns
    -------
    Tensor, shape (n, R)
        The proximal points.
    """
    residual = problem.y - problem.physics.matmat(x)
    powers = torch.linspace(0, 1, _WEIGHTS, dtype=x.dtype, device=x.device)
    shifts = _WEIGHT_SPAN / gamma_max * _WEIGHT_SPAN**-powers  # 1/γ from the least weight to the largest
    moves = multishift_cg(
        problem.gram, problem.physics.rmatmat(residual), shifts, rtol=0.0, max_steps=num_steps, validate=False
    ).x
    misfits = torch.linalg.vector_norm(residual - problem.physics.matmat(moves), dim=1)  # (weights, R)
    enough = misfits <= problem.sigma_y * len(residual) ** 0.5
    enough[-1] = True
    chosen = enough.to(torch.int8).argmax(0)
    return x + moves[chosen, :, torch.arange(x.shape[1], device=x.device)].mT


@dataclass(frozen=True, slots=True)
class TVz:
    """Total variation across slices, λ ‖D_z x‖_1, by one sweep of ADMM a step.

    Parameters
    ----------
    rho : float, default 10.0
        Weight of the splitting, as in the paper.
    lam : float, default 0.04
        λ, in units of y²/x; the paper takes 0.04 for sparse views and 0.4 for limited angles.
    boundary : {"periodic", "neumann"}, default "periodic"
        Whether the last slice is the first one's neighbour.

    Raises
    ------
    ArgumentError
        If a weight is not positive, or the boundary unknown.
    """

    rho: float = 10.0
    lam: float = 0.04
    boundary: Literal["periodic", "neumann"] = "periodic"

    def __post_init__(self) -> None:
        if not (self.rho > 0 and self.lam > 0):
            raise ArgumentError(f"TVz: expected rho > 0 and lam > 0, got rho={self.rho}, lam={self.lam}")
        if self.boundary not in ("periodic", "neumann"):
            raise ArgumentError(f"TVz: boundary must be periodic or neumann, got {self.boundary!r}")


class SliceDifference(LinearOperator):
    """(D_z x)_s = x_{s+1} - x_s, slice by slice.

    Parameters
    ----------
    num_slices : int
        S; x has S slices of n / S pixels, one after the other.
    like : LinearOperator, shape (m, n)
        Gives n, dtype and device.
    boundary : {"periodic", "neumann"}, default "periodic"
        x_S is x_0, or the last difference is zero.
    """

    def __init__(
        self, num_slices: int, like: LinearOperator, boundary: Literal["periodic", "neumann"] = "periodic"
    ) -> None:
        super().__init__((like.shape[1], like.shape[1]), like.dtype, like.device)
        self.num_slices = num_slices
        self.boundary = boundary

    def _matmat(self, x: Tensor) -> Tensor:
        slices = x.unflatten(-2, (self.num_slices, -1))
        out = slices.roll(-1, -3) - slices
        if self.boundary == "neumann":
            out = torch.cat([out[..., :-1, :, :], torch.zeros_like(out[..., :1, :, :])], -3)
        return out.flatten(-3, -2)

    def _rmatmat(self, y: Tensor) -> Tensor:
        slices = y.unflatten(-2, (self.num_slices, -1))
        if self.boundary == "neumann":
            slices = torch.cat([slices[..., :-1, :, :], torch.zeros_like(slices[..., :1, :, :])], -3)
        return (slices.roll(1, -3) - slices).flatten(-3, -2)


def total_variation_step(
    problem: InverseProblem,
    x: Tensor,
    splitting: tuple[Tensor, Tensor] | None,
    difference: LinearOperator,
    tv: TVz,
    num_steps: int,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One sweep of ADMM on ½‖y - A x‖² + λ‖D x‖_1.

    CG on (A^T A + ρ D^T D) x = A^T y + ρ D^T (d - w), then d = soft(D x + w, λ/ρ), w += D x - d.

    Parameters
    ----------
    problem : InverseProblem
        A and y.
    x : Tensor, shape (n, R)
        Start.
    splitting : tuple of Tensor or None
        d and w of the sweep before; None stands for zeros.
    difference : LinearOperator, shape (p, n)
        D.
    tv : TVz
        ρ and λ.
    num_steps : int
        M.

    Returns
    -------
    x : Tensor, shape (n, R)
        The picture.
    splitting : tuple of Tensor
        d and w for the next sweep.
    """
    zero = torch.zeros_like(x)
    d, w = (zero, zero) if splitting is None else splitting
    system = problem.gram + tv.rho * (difference.H @ difference)
    target = problem.back + tv.rho * difference.rmatmat(d - w)
    floor = 100 * torch.finfo(x.dtype).eps
    x = cg(system, target, x0=x, rtol=floor, max_steps=num_steps, validate=False).x
    moved = difference.matmat(x) + w
    d = moved.sign() * (moved.abs() - tv.lam / tv.rho).clamp_min(0)
    return x, (d, moved - d)


def circulant_inverse(problem: InverseProblem, shape: tuple[int, ...], gamma: float) -> Callable[[Tensor], Tensor]:
    """Approximate (I + γ A^T A)⁻¹ by a convolution, read off the response of A^T A to a point in the middle.

    Exact for `Blur`; for tomography it undoes the blur of back-projection, for MRI it weights sampled frequencies.

    Parameters
    ----------
    problem : InverseProblem
        A.
    shape : tuple of int
        (..., H, W) of a picture; channels are treated alike.
    gamma : float
        γ.

    Returns
    -------
    callable
        Maps (n, R) to (n, R), symmetric positive definite.
    """
    height, width = shape[-2:]
    point = problem.y.new_zeros(problem.physics.shape[1], 1)
    middle = height // 2 * width + width // 2
    point[middle] = 1
    response = problem.gram.matmat(point)[: height * width].reshape(height, width)
    response = response.roll((-(height // 2), -(width // 2)), (0, 1))
    # the real part belongs to the even half of the response, and A^T A is psd
    spectrum = 1 / (1 + gamma * torch.fft.rfft2(response).real.clamp_min(0))

    def apply(x: Tensor) -> Tensor:
        pictures = x.mT.unflatten(-1, (-1, height, width))
        out = torch.fft.irfft2(torch.fft.rfft2(pictures) * spectrum, s=(height, width))
        return out.flatten(-3).mT

    return apply
