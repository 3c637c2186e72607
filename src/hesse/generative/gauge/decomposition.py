"""Weighted Helmholtz decomposition v = ∇φ + r with div(p r) = 0, from samples of p or in closed form.

Shapes: B points of D coordinates, M features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse._values import check_finite
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.generative.gauge.features import Features, random_features
from hesse.generative.gauge.fields import Field, check_points
from hesse.linalg import safe_cholesky

__all__ = ["GaugeDecomposition", "decompose", "decompose_linear"]

_BLOCK = 500  # points whose D M derivatives are held at once
_LEAST_TESTS = 200  # waves on which the rest is tested, so that few features do not mean few tests


@dataclass(frozen=True, slots=True, eq=False)
class GaugeDecomposition:
    """A field split into a gradient and the rest, at one noise level."""

    field: Field
    sigma: float
    features: Features
    coefficients: Tensor  # (M,)
    energy: tuple[float, float]  # mean |∇φ|² and |r|² on the points, as fractions of that of v
    orthogonality: float  # mean ∇φ · r over √(mean |∇φ|² mean |r|²)
    gauge_residual: float  # on held-out points; see `decompose`

    def potential(self, x: Tensor) -> Tensor:
        """Evaluate φ, up to a constant.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.

        Returns
        -------
        Tensor, shape (B,)
            φ(x).
        """
        return self.features.value(x, self.coefficients)

    def conservative(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Evaluate ∇φ; it may stand in for the field where that is read.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        sigma : float, optional
            Taken so that the method is a field; it must be that of the decomposition.

        Returns
        -------
        Tensor, shape (B, D)
            ∇φ(x).

        Raises
        ------
        ArgumentError
            If ``sigma`` is another noise level.
        """
        if sigma is not None and not math.isclose(sigma, self.sigma):
            raise ArgumentError(f"conservative: decomposed at sigma = {self.sigma}, asked at {sigma}; decompose again")
        return self.features.gradient(x, self.coefficients)

    def remainder(self, x: Tensor) -> Tensor:
        """Evaluate r = v - ∇φ.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.

        Returns
        -------
        Tensor, shape (B, D)
            r(x).
        """
        return self.field(x, self.sigma) - self.conservative(x)


def decompose(
    field: Field,
    x: Tensor,
    sigma: float,
    *,
    num_features: int = 500,
    length_scale: float = 1.0,
    reg: float = 1e-6,
    held_out: float = 0.2,
    generator: Generator | None = None,
) -> GaugeDecomposition:
    """Minimise mean |∇φ - v|² over φ = Σ c_j ψ_j, whose minimum over all φ leaves r with div(p r) = 0.

    The normal equations (G + reg I) c = b, in units where each feature's gradient has mean square one, are
    formed, M × M, and factored: conjugate gradients need thousands of products where waves are nearly dependent.

    Parameters
    ----------
    field : Field
        v.
    x : Tensor, shape (B, D)
        Samples of the noised law at this level, in random order: the last of them are held out. B D should be several
        times M.
    sigma : float
        Noise level.
    num_features : int, default 500
        Waves beside linear and quadratic terms; more resolve finer structure of φ and need more samples.
    length_scale : float, default 1.0
        Of the waves, in units of x: the frequencies are N(0, 1/length_scale²).
    reg : float, default 1e-6
        Against dependent features.
    held_out : float, default 0.2
        Fraction of the points on which the gauge residual is measured, by fresh waves, 200 or more, as test functions.
    generator : torch.Generator, optional
        Source of the waves. Default: torch's global generator.

    Returns
    -------
    GaugeDecomposition
        Its gauge residual is max_j |mean r · ∇ψ_j| / √(mean |r|² mean |∇ψ_j|²): about √(2 log M / B_held) for a gauge
        field, larger where the features are too poor.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ArgumentTypeError
        If x is neither float32 nor float64.
    ShapeError
        If x is not (B, D), or too few points are left.
    NumericalError
        If x has NaN or Inf.

    Notes
    -----
    O(B D M² + M³) operations, O(M²) memory. In one dimension every field is a gradient, and r = 0 but for the features'
    poverty.
    """
    check_points("decompose", x, sigma)
    if x.dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"decompose: expected x in float32 or float64, got {x.dtype}")
    check_finite("decompose", "x", x)
    if num_features < 1 or not length_scale > 0 or not reg > 0 or not 0 < held_out < 1:
        raise ArgumentError(
            "decompose: expected num_features >= 1, length_scale, reg > 0 and 0 < held_out < 1, got "
            f"{num_features}, {length_scale}, {reg}, {held_out}"
        )
    train, test = x.split([len(x) - int(held_out * len(x)), int(held_out * len(x))])
    if not len(train) or not len(test):
        raise ShapeError(f"decompose: {len(x)} points are too few to hold out a fraction of {held_out}")
    features = random_features(num_features, length_scale, x, generator)
    v = field(train, sigma).detach()
    scale = features.energy(train).clamp_min(torch.finfo(x.dtype).tiny).rsqrt()

    gram = x.new_zeros(features.count, features.count)
    for block in train.split(_BLOCK):
        rows = features.rows(block).flatten(0, 1) * scale
        gram += rows.T @ rows / len(train)
    lower = safe_cholesky(gram + reg * torch.eye(features.count, dtype=x.dtype, device=x.device)).L
    right = (scale * features.project(train, v)).unsqueeze(1)
    coefficients = scale * torch.cholesky_solve(right, lower).squeeze(1)
    gradient = features.gradient(train, coefficients)
    rest = v - gradient
    whole, first, second = (float(part.square().sum(1).mean()) for part in (v, gradient, rest))
    size = max(whole, torch.finfo(x.dtype).tiny)
    fresh = random_features(max(num_features, _LEAST_TESTS), length_scale, x, generator)
    held = field(test, sigma).detach() - features.gradient(test, coefficients)
    spread = (held.square().sum(1).mean() * fresh.energy(test)).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    return GaugeDecomposition(
        field=field,
        sigma=sigma,
        features=features,
        coefficients=coefficients,
        energy=(first / size, second / size),
        orthogonality=float((gradient * rest).sum(1).mean()) / max((first * second) ** 0.5, 1e-300),
        gauge_residual=float((fresh.project(test, held).abs() / spread).max()),
    )


def decompose_linear(M: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Split v = M x under N(0, S): ∇φ = A x with A symmetric, r = (M - A) x with (M - A) S antisymmetric.

    A solves A S + S A = M S + S Mᵀ, in the eigenbasis of S.

    Parameters
    ----------
    M : Tensor, shape (D, D)
        The field's matrix.
    S : Tensor, shape (D, D)
        Covariance, positive definite.

    Returns
    -------
    tuple of Tensor, both of shape (D, D)
        A and M - A; O(D³), differentiable where the eigenvalues of S differ.

    Raises
    ------
    ShapeError
        If the matrices are not square and of one shape.
    ArgumentError
        If S is not positive definite.
    """
    if M.ndim != 2 or M.shape[0] != M.shape[1] or M.shape != S.shape:
        raise ShapeError(
            f"decompose_linear: expected M and S of one shape (D, D), got {tuple(M.shape)}, {tuple(S.shape)}"
        )
    values, Q = torch.linalg.eigh(S)
    if float(values[0].detach()) <= 0:
        raise ArgumentError(f"decompose_linear: S is not positive definite, least eigenvalue {float(values[0]):.3e}")
    right = Q.T @ (M @ S + S @ M.T) @ Q
    A = Q @ (right / (values.unsqueeze(0) + values.unsqueeze(1))) @ Q.T
    A = (A + A.T) / 2
    return A, M - A
