"""The exact posterior of a Gaussian mixture under linear data: what samplers are judged by.

Shapes: B data vectors, K components, D coordinates, m data.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.gaussian_mixture import GaussianMixture
from hesse.linalg import LinearOperator, safe_cholesky

__all__ = ["MixturePosterior", "mixture_posterior"]


@dataclass(frozen=True, slots=True)
class MixturePosterior:
    """p(x | y) = Σ_k w_k N(μ_k, P_k⁻¹), a mixture for each of B data vectors."""

    weights: Tensor  # w, (B, K)
    means: Tensor  # μ, (B, K, D)
    factors: Tensor  # lower Cholesky factors of the precisions P_k, which all data share, (K, D, D)

    @property
    def mean(self) -> Tensor:
        """The estimate of least expected square error, (B, D): the ceiling of every method in decibels."""
        return torch.einsum("bk,bkd->bd", self.weights, self.means)

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draw exactly.

        Parameters
        ----------
        num_samples : int
            Of each data vector, at least 1.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (B, num_samples, D)
            Independent samples.

        Raises
        ------
        ArgumentError
            If ``num_samples < 1``.
        """
        if num_samples < 1:
            raise ArgumentError(f"MixturePosterior.sample: expected num_samples >= 1, got {num_samples}")
        which = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)  # (B, num_samples)
        kind = {"dtype": self.means.dtype, "device": self.means.device}
        out = torch.randn(*which.shape, self.means.shape[2], generator=generator, **kind)
        for k, factor in enumerate(self.factors):
            chosen = which == k
            out[chosen] = torch.linalg.solve_triangular(factor.mT, out[chosen].mT, upper=True).mT
        return out + self.means.gather(1, which.unsqueeze(2).expand_as(out))


def mixture_posterior(mixture: GaussianMixture, physics: LinearOperator, y: Tensor, sigma_y: float) -> MixturePosterior:
    """Condition a mixture on y = A x + n, n ~ N(0, σ_y² I).

    With C_k = U_k diag(λ_k) U_k^T + f_k (I - U_k U_k^T): P_k = C_k⁻¹ + A^T A / σ_y²,
    μ_k = m_k + P_k⁻¹ A^T (y - A m_k) / σ_y², and log w_k grows by the log evidence of y under component k.

    Parameters
    ----------
    mixture : GaussianMixture
        p(x), of D coordinates, with λ_k > 0 and f_k > 0 (f_k is not read where there are D directions).
    physics : LinearOperator, real, shape (m, D)
        A; a complex one through `RealView`.
    y : Tensor, shape (B, m)
        Data.
    sigma_y : float
        σ_y > 0, in units of y.

    Returns
    -------
    MixturePosterior
        With one mixture for each row of y.

    Raises
    ------
    ShapeError
        If y, A and the mixture do not fit.
    ArgumentError
        If ``sigma_y <= 0``, or a component is flat.

    Notes
    -----
    The matrix A^T A is formed: D products with it, K Cholesky factors of order D, K D² memory.
    """
    if y.ndim != 2 or y.shape[1] != physics.shape[0] or physics.shape[1] != mixture.dim:
        raise ShapeError(
            f"mixture_posterior: expected y (B, {physics.shape[0]}) and {mixture.dim} columns of A, got "
            f"{tuple(y.shape)} and {physics.shape[1]}"
        )
    partial = mixture.directions.shape[2] < mixture.dim
    thinnest = torch.cat([mixture.variances.flatten(), mixture.floor if partial else mixture.floor[:0]])
    if not sigma_y > 0 or not bool((thinnest > 0).all()):
        raise ArgumentError(
            f"mixture_posterior: expected sigma_y > 0 and positive variances, got {sigma_y} and {float(thinnest.min())}"
        )
    gram = (physics.H @ physics).to_dense() / sigma_y**2
    logs, means, factors = [], [], []
    for weight, mean, U, variances, floor in zip(
        mixture.weights, mixture.means, mixture.directions, mixture.variances, mixture.floor, strict=True
    ):
        level = 1 / floor if partial else torch.zeros_like(floor)
        precision = gram + (U * (1 / variances - level)) @ U.mT
        precision.diagonal().add_(level)
        factor = safe_cholesky(precision).L
        residual = y - physics.matvec(mean)
        pull = physics.rmatvec(residual) / sigma_y**2
        move = torch.cholesky_solve(pull.mT, factor).mT
        # of the evidence what depends on k: log det(C P) is that of the data's covariance, up to a constant
        log_det = variances.log().sum() + 2 * factor.diagonal().log().sum()
        if partial:
            log_det = log_det + (mixture.dim - U.shape[1]) * floor.log()
        distance = residual.square().sum(1) / sigma_y**2 - (pull * move).sum(1)
        logs.append(weight.log() - (log_det + distance) / 2)
        means.append(mean + move)
        factors.append(factor)
    return MixturePosterior(torch.stack(logs, 1).softmax(1), torch.stack(means, 1), torch.stack(factors))
