"""Per-sample gradients in the eigenbasis of H, which is all of them that linearised SGD sees.

    H = (1/N) Σ_i a_i a_iᵀ = V diag(λ) Vᵀ,    g_i = Vᵀ a_i

Shapes: N samples, C outputs each (a_i is P x C), P parameters, R the rank of H.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

__all__ = ["Features", "RangeCoordinates", "batch_noise_factor", "check_step", "range_coordinates"]

_SLACK = 8  # roundings that a gradient has typically been through


@dataclass(frozen=True, slots=True)
class RangeCoordinates:
    """The features of N samples without the directions in which nothing happens.

    SGD leaves the complement of range(H) alone: there every factor is one, which would hide a radius below one.
    """

    eigenvalues: Tensor  # (R,), of H, falling, all positive, float64
    rows: Tensor  # (N, C, R), g_iᵀ, float64: (1/N) Σ_i g_i g_iᵀ = diag(eigenvalues)

    @property
    def num_samples(self) -> int:
        """N."""
        return self.rows.shape[0]

    @property
    def rank(self) -> int:
        """R."""
        return self.rows.shape[2]

    def sample_term(self, X: Tensor) -> Tensor:
        """(1/N) Σ_i g_i (g_iᵀ X g_i) g_iᵀ: what a batch of one adds to a second moment.

        Parameters
        ----------
        X : Tensor of float64, shape (R, R)
            A symmetric matrix.

        Returns
        -------
        Tensor, shape (R, R)
            Positive semi-definite where X is. O(N C R²) work.
        """
        projected = self.rows @ X
        weights = projected @ self.rows.mT  # (N, C, C)
        weighted = (weights @ self.rows).flatten(0, 1)
        return self.rows.flatten(0, 1).mT @ weighted / self.num_samples

    def gradient_noise(self, X: Tensor) -> Tensor:
        """E[(H_i - H) X (H_i - H)] over samples i, the sample term without what full batches do.

        Parameters
        ----------
        X : Tensor of float64, shape (R, R)
            A symmetric matrix.

        Returns
        -------
        Tensor, shape (R, R)
            Positive semi-definite where X is.
        """
        return self.sample_term(X) - self.eigenvalues.unsqueeze(1) * X * self.eigenvalues

    def sample_grams(self) -> Tensor:
        """a_iᵀ a_i of every sample.

        Returns
        -------
        Tensor of float64, shape (N, C, C)
            For one output the squared norm of the gradient.
        """
        return self.rows @ self.rows.mT


Features = Tensor | RangeCoordinates
"""Gradients of the outputs, (N, P) or (N, C, P), or what `range_coordinates` made of them."""


def range_coordinates(features: Features, *, rtol: float | None = None) -> RangeCoordinates:
    """Rotate per-sample gradients into the eigenbasis of H = (1/N) Σ a_i a_iᵀ and leave its null space out.

    Parameters
    ----------
    features : Tensor, shape (N, P) or (N, C, P)
        a_iᵀ: gradients of the output of sample i, of each of its C outputs. Outputs of one sample are drawn together
        into a batch, so they must not be passed as samples. `RangeCoordinates` are handed back as they are.
    rtol : float, optional
        Eigenvalues up to rtol times the largest count as zero. Default: what rounding leaves of a zero, about
        m eps₆₄ + m (8 eps)² with eps of the features' dtype and m = min(N C, P).

    Returns
    -------
    RangeCoordinates
        In float64, on the device of the features. Exact up to rounding.

    Raises
    ------
    ArgumentTypeError
        If ``features`` is not a real floating tensor.
    ShapeError
        If it has another number of axes, or an axis of length zero.
    ArgumentError
        If ``rtol`` is not in [0, 1).
    NumericalError
        If it holds NaN or Inf.

    Notes
    -----
    O(N C P m) work and a copy of the features in float64; then O(m³) for the eigenvectors of the smaller of the two
    Gram matrices.
    """
    if isinstance(features, RangeCoordinates):
        return features
    call = "range_coordinates"
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise ArgumentTypeError(f"{call}: expected a real floating tensor of features, got {_kind(features)}")
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ShapeError(f"{call}: expected features of shape (N, P) or (N, C, P), got {tuple(features.shape)}")
    if rtol is not None and not 0 <= rtol < 1:
        raise ArgumentError(f"{call}: expected rtol in [0, 1), got {rtol}")
    with torch.no_grad():
        wide = features.to(torch.float64)
        if not bool(torch.isfinite(wide).all()):
            raise NumericalError(f"{call}: the features hold NaN or Inf; the model is outside its domain there")
        samples = wide.shape[0]
        outputs = wide.shape[1] if wide.ndim == 3 else 1
        A = wide.reshape(samples * outputs, -1)
        m = min(A.shape)
        rounding = m * torch.finfo(torch.float64).eps + m * (_SLACK * torch.finfo(features.dtype).eps) ** 2
        cut = min(rounding, 0.5) if rtol is None else rtol
        if A.shape[0] <= A.shape[1]:
            values, vectors = torch.linalg.eigh(A @ A.mT / samples)
            kept = _kept(values, cut)
            values = values[kept]
            rows = vectors[:, kept] * (samples * values).sqrt()
        else:
            values, vectors = torch.linalg.eigh(A.mT @ A / samples)
            kept = _kept(values, cut)
            values = values[kept]
            rows = A @ vectors[:, kept]
    return RangeCoordinates(values.flip(0), rows.flip(1).reshape(samples, outputs, -1))


def batch_noise_factor(num_samples: int, batch_size: int, *, replacement: bool = False) -> float:
    """Compute f, the gradient noise of a batch over that of one sample: (N - B) / (B (N - 1)), or 1/B with replacement.

    Parameters
    ----------
    num_samples : int
        N >= 1.
    batch_size : int
        B; without replacement at most N.
    replacement : bool, default False
        Whether a sample can occur twice in a batch. Batches themselves are independent of each other either way, which
        passes over a reshuffled data set are not.

    Returns
    -------
    float
        From 0 (full batch) to 1 (one sample). One sample alone has no noise: 0.

    Raises
    ------
    ArgumentError
        If ``batch_size`` is out of range.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, got {batch_size}")
    if not replacement and batch_size > num_samples:
        raise ArgumentError(
            f"batch_size: expected at most {num_samples}, the number of samples, got {batch_size}; or replacement=True"
        )
    if num_samples == 1:
        return 0.0
    return 1 / batch_size if replacement else (num_samples - batch_size) / (batch_size * (num_samples - 1))


def check_step(call: str, lr: float, momentum: float) -> None:
    """Refuse a learning rate or momentum out of range.

    Parameters
    ----------
    call : str
        The caller, for the message.
    lr, momentum : float
        What came.

    Raises
    ------
    ArgumentError
        If ``lr`` is negative or not finite, or ``momentum`` is not in [0, 1).
    """
    if not 0 <= lr < torch.inf:
        raise ArgumentError(f"{call}: expected a finite lr >= 0, got {lr}")
    if not 0 <= momentum < 1:
        raise ArgumentError(f"{call}: expected momentum in [0, 1), got {momentum}")


def _kept(values: Tensor, cut: float) -> Tensor:
    return values > cut * values[-1].clamp_min(0)


def _kind(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
