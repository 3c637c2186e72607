"""The surrogate of a loss on model outputs, and what its divergence D implies: step, slope and curvature.

    g(z) = (1/b) Σ_i [ ⟨G_i, z_i - z_ti⟩ + D(z_i, z_ti) / η ]

Shapes: z (b, ..., p), one row a datum; a matrix divergence (p, p) acts on the last axis.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError, SingularError
from hesse.linalg._arguments import wide_dtype

__all__ = ["CurvatureRoot", "Divergence", "check_divergence", "curvature_root", "mirror_step", "target_surrogate"]

Divergence = Literal["euclidean", "kl"] | Tensor


def target_surrogate(
    z: Tensor, z_t: Tensor, gradient: Tensor, eta: float | Tensor, divergence: Divergence = "euclidean"
) -> Tensor:
    """(1/b) Σ_i [ ⟨G_i, z_i - z_ti⟩ + D(z_i, z_ti) / η ]: linear in the loss, plus a price for leaving z_t.

    With D(z, z_t) = ½‖z - z_t‖², loss terms l_i whose gradients have Lipschitz constant L_z, and η <= 1/L_z, this plus
    the mean of l_i(z_ti) lies above the mean loss everywhere and touches it at z_t, whatever function of the parameters
    z is. Lowering it by any means then lowers the loss, without another look at the loss.

    Parameters
    ----------
    z : Tensor, shape (b, ...)
        Outputs of the model, with their graph; b >= 1 data.
    z_t : Tensor, shape (b, ...)
        Outputs where the oracle was asked.
    gradient : Tensor, shape (b, ...)
        G, the derivative of l_i with respect to z_i in row i: not divided by b.
    eta : float or Tensor
        η > 0, a step length in the space of outputs; a tensor (any shape that broadcasts to z) for one a coordinate.
    divergence : {"euclidean", "kl"} or Tensor of shape (p, p), default "euclidean"
        D: ½‖z - z_t‖²; Σ z log(z/z_t) - z + z_t for z of probabilities; or ½(z - z_t)ᵀ A (z - z_t) with A symmetric
        positive definite, given.

    Returns
    -------
    Tensor, shape ()
        Zero at z = z_t: the constant mean of l_i(z_ti) is left out. Differentiable in every tensor; accumulated in
        float32 at least.

    Raises
    ------
    ShapeError
        If the three tensors differ in shape, or the matrix does not fit.
    ArgumentError
        If the divergence is unknown.

    References
    ----------
    J. W. Lavington, S. Vaswani, R. Babanezhad, M. Schmidt, N. Le Roux (2023), ICML, arXiv 2302.02607.

    Examples
    --------
    >>> z_t = torch.zeros(2, 1)
    >>> target_surrogate(z_t - 1.0, z_t, torch.ones(2, 1), eta=1.0)
    tensor(-0.5000)
    """
    if not z.shape == z_t.shape == gradient.shape or z.ndim == 0:
        raise ShapeError(
            "target_surrogate: expected z, z_t and gradient of one shape (b, ...), "
            f"got {tuple(z.shape)}, {tuple(z_t.shape)} and {tuple(gradient.shape)}"
        )
    check_divergence("target_surrogate", divergence, z_t)
    wide = wide_dtype(z.dtype)
    z, z_t = z.to(wide), z_t.to(wide)
    difference = z - z_t
    if isinstance(divergence, Tensor):
        distance = (difference @ divergence.to(wide)) * difference / 2
    elif divergence == "kl":
        tiny = torch.finfo(wide).tiny  # a softmax that underflows keeps a finite logarithm
        distance = z * (z.clamp_min(tiny) / z_t.clamp_min(tiny)).log() - difference
    else:
        distance = difference.square() / 2
    return (gradient.to(wide) * difference + distance / eta).sum() / len(z)


def check_divergence(call: str, divergence: Divergence, z: Tensor | None = None) -> None:
    """Refuse a divergence that is unknown, or does not fit the outputs.

    Parameters
    ----------
    call : str
        The function, for the message.
    divergence : {"euclidean", "kl"} or Tensor
        What came.
    z : Tensor, optional
        Outputs, to compare the shape of a matrix with. Default: not compared.

    Raises
    ------
    ArgumentError
        If it is neither a matrix nor a known name.
    ShapeError
        If the matrix is not square, or not of the order of the last axis of z.
    """
    if isinstance(divergence, Tensor):
        order = divergence.shape[-1] if divergence.ndim == 2 else -1
        fits = z is None or (z.ndim >= 2 and order == z.shape[-1])
        if divergence.ndim != 2 or divergence.shape[0] != order or not fits:
            found = "" if z is None else f" for outputs {tuple(z.shape)}, which must be (b, ..., p)"
            raise ShapeError(f"{call}: expected a divergence matrix (p, p), got {tuple(divergence.shape)}{found}")
    elif divergence not in ("euclidean", "kl"):
        raise ArgumentError(f"{call}: expected divergence 'euclidean', 'kl' or a matrix, got {divergence!r}")


def mirror_step(z_t: Tensor, gradient: Tensor, eta: float | Tensor, divergence: Divergence) -> Tensor:
    """Minimise the surrogate over all outputs: z_t - ηG, z_t - ηA⁻¹G, or for "kl" softmax(log z_t - ηG).

    Parameters
    ----------
    z_t, gradient : Tensor, shape (b, ..., p)
        Outputs and G.
    eta : float or Tensor
        η.
    divergence : {"euclidean", "kl"} or Tensor of shape (p, p)
        D.

    Returns
    -------
    Tensor, shape (b, ..., p)
        The step a model of unlimited capacity would make; of probabilities on the last axis for "kl".
    """
    if isinstance(divergence, Tensor):
        rows = gradient.reshape(-1, gradient.shape[-1])
        return z_t - eta * torch.cholesky_solve(rows.mT, _factor(divergence, rows)).mT.reshape(gradient.shape)
    if divergence == "kl":
        return (z_t.clamp_min(torch.finfo(z_t.dtype).tiny).log() - eta * gradient).softmax(-1)
    return z_t - eta * gradient


@dataclass(frozen=True, slots=True)
class CurvatureRoot:
    """W with WᵀW = D''/η, the curvature of the surrogate in one datum's outputs: elementwise, or a triangle."""

    weights: Tensor  # elementwise: 1/√η (and 1/√z), broadcasts to z
    lower: Tensor | None  # L of A = L Lᵀ for a matrix divergence

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply every row by W.

        Returns
        -------
        Tensor
            Of the shape of ``rows``.
        """
        return self.weights * (rows if self.lower is None else rows @ self.lower)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Multiply every row by Wᵀ.

        Returns
        -------
        Tensor
            Of the shape of ``rows``.
        """
        return self.weights * rows if self.lower is None else (self.weights * rows) @ self.lower.mT

    def inverse_adjoint(self, rows: Tensor) -> Tensor:
        """Multiply every row by W⁻ᵀ.

        Returns
        -------
        Tensor
            Of the shape of ``rows``.
        """
        if self.lower is not None:
            flat = rows.reshape(-1, rows.shape[-1])
            rows = torch.linalg.solve_triangular(self.lower, flat.mT, upper=False).mT.reshape(rows.shape)
        return rows / self.weights


def curvature_root(z: Tensor, eta: float | Tensor, divergence: Divergence) -> CurvatureRoot:
    """Factor the curvature of the surrogate at z.

    Parameters
    ----------
    z : Tensor, shape (b, ..., p)
        Outputs; they matter for "kl" alone, whose curvature is 1/(ηz).
    eta : float or Tensor
        η; one number for a matrix divergence.
    divergence : {"euclidean", "kl"} or Tensor of shape (p, p)
        D.

    Returns
    -------
    CurvatureRoot
        Products with W, Wᵀ and W⁻ᵀ.
    """
    weights = torch.as_tensor(eta, dtype=z.dtype, device=z.device).rsqrt()
    if isinstance(divergence, Tensor):
        return CurvatureRoot(weights, _factor(divergence, z))
    if divergence == "kl":
        weights = weights * z.clamp_min(torch.finfo(z.dtype).tiny).rsqrt()
    return CurvatureRoot(weights, None)


def _factor(metric: Tensor, like: Tensor) -> Tensor:
    lower, failed = torch.linalg.cholesky_ex(metric.to(like.dtype))
    if int(failed) != 0:
        raise SingularError("target_surrogates: the divergence matrix is not positive definite; add a multiple of I")
    return lower
