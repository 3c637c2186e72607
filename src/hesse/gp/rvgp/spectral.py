"""Gaussian processes in a basis of M eigenfields: evidence and posterior from M x M matrices alone.

A field is Φ w with w ~ N(0, diag S); S falls with the eigenvalue. Shapes: N rows of observations, M eigenfields, B
fields that share basis and prior.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from hesse.errors import NumericalError

__all__ = [
    "EvidenceFit",
    "KernelKind",
    "Moments",
    "SpectralPrior",
    "fit_evidence",
    "log_evidence",
    "moments_of",
    "posterior",
]

KernelKind = Literal["matern", "se"]

KAPPA_RANGE = (1e-2, 1e2)  # beyond, the spectrum is flat, or all its weight sits in the lowest eigenfield
VARIANCE_RANGE = (1e-4, 1e6)  # in units of the mean square of the targets
NOISE_RANGE = (1e-9, 10.0)  # likewise; the lower end keeps B's condition below 1e13
NU_RANGE = (0.25, 20.0)  # the upper end can hardly be told from the squared exponential


@dataclass(frozen=True, slots=True)
class Moments:
    """All that evidence and posterior need to know of the observations; those of two sets of rows add up."""

    gram: Tensor  # (M, M), ΦᵀΦ
    projected: Tensor  # (M, B), Φᵀy
    square: Tensor  # (B,), yᵀy
    num_rows: int  # N

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.gram + other.gram,
            self.projected + other.projected,
            self.square + other.square,
            self.num_rows + other.num_rows,
        )


def moments_of(features: Tensor, targets: Tensor) -> Moments:
    """Reduce N rows to their moments.

    Parameters
    ----------
    features : Tensor, shape (N, M)
        Φ.
    targets : Tensor, shape (N, B)
        y.

    Returns
    -------
    Moments
        O(N M (M + B)).
    """
    return Moments(features.mT @ features, features.mT @ targets, targets.square().sum(0), len(targets))


@dataclass(frozen=True, slots=True)
class SpectralPrior:
    """S as a function of θ = log (κ, σ_f, noise variance[, ν]).

    Matérn: S_a ∝ (2ν/κ² + λ_a)^-(ν + shift); squared exponential: S_a ∝ exp(-κ² λ_a / 2). Eigenvalues come divided by
    their median, and S is normalised so that the mean marginal variance of one tangent component is σ_f.
    """

    eigenvalues: Tensor  # (M,), divided by their median
    mean_squares: Tensor  # (M,), of each eigenfield's components over the cloud
    kind: KernelKind
    nu: float  # used where θ does not hold it
    shift: float  # 0: the exponent is ν, as in the paper's code; d/2: the Matérn spectrum of a manifold

    def variances(self, theta: Tensor) -> Tensor:
        """S for given θ.

        Parameters
        ----------
        theta : Tensor, shape (3,) or (4,)
            θ; the fourth entry is log ν.

        Returns
        -------
        Tensor, shape (M,)
            Prior variances of the weights.
        """
        kappa, variance = theta[0].exp(), theta[1].exp()
        if self.kind == "se":
            logs = -kappa.square() * self.eigenvalues / 2
        else:
            nu = theta[3].exp() if len(theta) > 3 else torch.as_tensor(self.nu, dtype=theta.dtype, device=theta.device)
            logs = -(nu + self.shift) * (2 * nu / kappa.square() + self.eigenvalues).log()
        shape = (logs - logs.max()).exp()  # relative to the largest: no overflow at either end
        return variance * shape / (shape * self.mean_squares).sum()


def _factor(moments: Moments, variances: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = variances.sqrt()
    inner = root[:, None] * moments.gram * root / noise
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    lower, failed = torch.linalg.cholesky_ex(identity + inner)
    if int(failed) != 0:
        raise NumericalError(
            f"RVGP: the system of order {len(root)} is not positive definite at noise variance {float(noise):.2g}; the "
            "noise is too small beside the signal for float64"
        )
    right = root[:, None] * moments.projected / noise
    return root, lower, torch.linalg.solve_triangular(lower, right, upper=False)


def log_evidence(moments: Moments, variances: Tensor, noise: Tensor) -> Tensor:
    """-½ [ y·y/s² - c·c + log det B + N log 2πs² ], B = I + S^½ ΦᵀΦ S^½ / s², c = chol(B)⁻¹ S^½ Φᵀy / s².

    Parameters
    ----------
    moments : Moments
        The observations.
    variances : Tensor, shape (M,)
        S.
    noise : Tensor, shape ()
        s², of one component.

    Returns
    -------
    Tensor, shape ()
        In nats, summed over the fields; differentiable. O(M³ + M² B), whatever N.

    Raises
    ------
    NumericalError
        If B cannot be factored.
    """
    _, lower, c = _factor(moments, variances, noise)
    fields = moments.projected.shape[1]
    logdet = 2 * lower.diagonal().log().sum() + moments.num_rows * (2 * math.pi * noise).log()
    return -0.5 * (moments.square.sum() / noise - c.square().sum() + fields * logdet)


def posterior(moments: Moments, variances: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and a root of the covariance of the weights: mean = R c, covariance = R Rᵀ, R = S^½ chol(B)^-ᵀ.

    Parameters
    ----------
    moments : Moments
        The observations.
    variances : Tensor, shape (M,)
        S.
    noise : Tensor, shape ()
        s².

    Returns
    -------
    mean : Tensor, shape (M, B)
        Linear in the observations, and differentiable.
    root : Tensor, shape (M, M)
        R, the same for all fields.

    Raises
    ------
    NumericalError
        If B cannot be factored.
    """
    scale, lower, c = _factor(moments, variances, noise)
    identity = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    root = scale[:, None] * torch.linalg.solve_triangular(lower, identity, upper=False).mT
    return root @ c, root


@dataclass(frozen=True, slots=True)
class EvidenceFit:
    """Where the evidence is largest."""

    theta: Tensor  # (3,) or (4,), logarithms
    value: float  # nats
    converged: bool
    num_steps: int


def fit_evidence(moments: Moments, prior: SpectralPrior, starts: Tensor, *, max_iter: int) -> EvidenceFit:
    """Maximise the evidence over θ by L-BFGS within bounds, from several starts.

    Parameters
    ----------
    moments : Moments
        The observations.
    prior : SpectralPrior
        S(θ).
    starts : Tensor, shape (K, 3) or (K, 4)
        Values of θ to start from; the best end counts.
    max_iter : int
        Steps from each.

    Returns
    -------
    EvidenceFit
        The best of the ends.
    """
    scale = float(moments.square.sum()) / (moments.num_rows * moments.projected.shape[1])
    scale = scale if scale > 0 else 1.0  # a field of zeros is explained by any small variance
    ranges = [
        KAPPA_RANGE,
        (VARIANCE_RANGE[0] * scale, VARIANCE_RANGE[1] * scale),
        (NOISE_RANGE[0] * scale, NOISE_RANGE[1] * scale),
        NU_RANGE,
    ]
    bounds = np.log(np.array(ranges[: starts.shape[1]]))
    detached = Moments(moments.gram.detach(), moments.projected.detach(), moments.square.detach(), moments.num_rows)
    device = moments.gram.device

    def loss(position: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(position, dtype=torch.float64, device=device, requires_grad=True)
        with torch.enable_grad():
            value = -log_evidence(detached, prior.variances(theta), theta[2].exp()) / moments.num_rows
        (slope,) = torch.autograd.grad(value, theta)
        return float(value.detach()), slope.cpu().numpy()

    ends = []
    for start in starts.cpu().numpy():
        inside = np.clip(start, bounds[:, 0], bounds[:, 1])
        ends.append(minimize(loss, inside, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": max_iter}))
    best = min(ends, key=lambda end: end.fun)
    theta = torch.tensor(best.x, dtype=torch.float64, device=device)
    return EvidenceFit(theta, -float(best.fun) * moments.num_rows, bool(best.success), int(best.nit))
