"""Whether a cloud of particles contracts: what one step does to the distance from a consensus that stands still."""

import math
from dataclasses import dataclass

import torch
from scipy.special import digamma
from scipy.stats import poisson

from hesse.errors import ArgumentError

__all__ = ["CloudContraction", "cloud_contraction"]


@dataclass(frozen=True, slots=True)
class CloudContraction:
    """What one step does to D = X - x_α; for anisotropic noise, to each coordinate of D.

    Attributes
    ----------
    mean_square : float
        Factor of E‖D‖². Below 1 the variance of the cloud decays.
    log_rate : float
        E log(‖D after‖ / ‖D before‖). Below 0 almost every path contracts, also where ``mean_square`` exceeds 1: then
        few particles that go far carry the variance, which explores, and the cloud closes all the same.
    """

    mean_square: float
    log_rate: float


def cloud_contraction(*, dt: float, drift: float, sigma: float, dim: int, isotropic: bool) -> CloudContraction:
    """Rates of D ↦ (1 - λ dt) D + σ √dt ‖D‖ z (isotropic) or (1 - λ dt) D + σ √dt D * z (anisotropic), in closed form.

    The mean square is (1 - λ dt)² + m σ² dt, with m = d for isotropic noise and 1 for anisotropic. The logarithm is
    that of a noncentral chi-square variable with m degrees of freedom, a Poisson mixture of digammas.

    Parameters
    ----------
    dt, drift, sigma : float
        Step > 0, λ >= 0 and σ >= 0.
    dim : int
        d >= 1. Only isotropic noise depends on it.
    isotropic : bool
        Which noise.

    Returns
    -------
    CloudContraction
        Exact, for a consensus that does not move.

    Raises
    ------
    ArgumentError
        If a number is out of range.

    References
    ----------
    J. A. Carrillo, S. Jin, L. Li, Y. Zhu (2021), ESAIM: COCV 27, arXiv 1909.09249, for the mean square.

    Examples
    --------
    >>> wide = cloud_contraction(dt=0.01, drift=1.0, sigma=5.1, dim=20, isotropic=False)
    >>> wide.mean_square > 1, wide.log_rate < 0
    (True, True)
    """
    if not (dt > 0 and drift >= 0 and sigma >= 0 and dim >= 1):
        raise ArgumentError(
            "cloud_contraction: expected dt > 0, drift >= 0, sigma >= 0 and dim >= 1; "
            f"got {dt}, {drift}, {sigma}, {dim}"
        )
    kept, noise = 1 - drift * dt, sigma * math.sqrt(dt)
    degrees = dim if isotropic else 1
    mean_square = kept**2 + degrees * noise**2
    if noise == 0:
        return CloudContraction(mean_square, math.log(abs(kept)) if kept else -math.inf)
    rate = kept**2 / (2 * noise**2)
    reach = 12 * math.sqrt(rate) + 40  # of the Poisson law: what lies further out is below 1e-16
    counts = torch.arange(max(0, math.floor(rate - reach)), math.ceil(rate + reach) + 1).numpy()
    mixture = float((poisson.pmf(counts, rate) * digamma(degrees / 2 + counts)).sum())
    return CloudContraction(mean_square, math.log(noise) + (math.log(2) + mixture) / 2)
