"""Mixtures of Gaussians with full or low-rank covariances, whose noised score is known in closed form.

Shapes: B points of D coordinates, K components, R directions a component.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError, SingularError

__all__ = ["GaussianMixture"]

Level = float | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GaussianMixture:
    """p = Σ_k w_k N(m_k, U_k diag(λ_k) U_kᵀ + f_k (I - U_k U_kᵀ)): an oracle for whatever reads a score.

    With x_t = a x_0 + s ε each eigenvalue becomes a² λ + s², so that density, score and denoiser are exact at every
    noise level for O(B K D R) operations, and a low-rank component (R < D) needs no D × D matrix. A component with
    f_k = 0 lies on an affine subspace of dimension R; its density exists for s > 0 only. Make one with
    `from_covariances` or `from_factors`. Everything is differentiable in x, to any order.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        w_k > 0, with sum one.
    means : Tensor, shape (K, D)
        m_k.
    directions : Tensor, shape (K, D, R)
        U_k, with orthonormal columns.
    variances : Tensor, shape (K, R)
        λ_k >= 0, in squared units of x.
    floor : Tensor, shape (K,)
        f_k >= 0, the variance off the directions; of no effect where R = D.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    ArgumentError
        If weights are not positive with sum one, or a variance is negative.
    """

    weights: Tensor
    means: Tensor
    directions: Tensor
    variances: Tensor
    floor: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or self.directions.ndim != 3:
            raise ShapeError(
                f"GaussianMixture: expected means (K, D) and directions (K, D, R), got {tuple(self.means.shape)}, "
                f"{tuple(self.directions.shape)}"
            )
        k, d = self.means.shape
        r = self.directions.shape[2]
        for name, expected in (("weights", (k,)), ("directions", (k, d, r)), ("variances", (k, r)), ("floor", (k,))):
            if tuple(getattr(self, name).shape) != expected:
                raise ShapeError(
                    f"GaussianMixture: expected {name} of shape {expected}, got {tuple(getattr(self, name).shape)}"
                )
        if not bool((self.weights > 0).all()) or abs(float(self.weights.detach().sum()) - 1) > 1e-5:
            raise ArgumentError("GaussianMixture: expected weights > 0 with sum one; divide them by their sum")
        if not bool((self.variances >= 0).all()) or not bool((self.floor >= 0).all()):
            raise ArgumentError("GaussianMixture: expected variances >= 0 and floor >= 0")

    @classmethod
    def from_covariances(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> "GaussianMixture":
        """Make one of full covariances.

        Parameters
        ----------
        weights : Tensor, shape (K,)
            Positive, with sum one.
        means : Tensor, shape (K, D)
            m_k.
        covariances : Tensor, shape (K, D, D)
            Symmetric and positive definite.

        Returns
        -------
        GaussianMixture
            With R = D; one eigendecomposition a component, O(K D³).

        Raises
        ------
        ShapeError
            If they are not K square matrices.
        SingularError
            If one is not positive definite.
        """
        if covariances.ndim != 3 or covariances.shape[1] != covariances.shape[2]:
            raise ShapeError(
                f"from_covariances: expected covariances of shape (K, D, D), got {tuple(covariances.shape)}"
            )
        values, vectors = torch.linalg.eigh(covariances)
        if not bool((values > 0).all()):
            raise SingularError(
                f"from_covariances: expected positive definite covariances, the least eigenvalue is "
                f"{float(values.min()):.3e}; a flat component is made with from_factors"
            )
        return cls(weights, means, vectors, values, torch.zeros_like(weights))

    @classmethod
    def from_factors(
        cls, weights: Tensor, means: Tensor, factors: Tensor, noise_variance: float = 0.0
    ) -> "GaussianMixture":
        """Make one of low-rank factors: covariances F_k F_kᵀ + noise_variance · I.

        Parameters
        ----------
        weights : Tensor, shape (K,)
            Positive, with sum one.
        means : Tensor, shape (K, D)
            m_k.
        factors : Tensor, shape (K, D, R)
            F_k, with R <= D.
        noise_variance : float, default 0.0
            Zero leaves a law on K affine subspaces, without a density until noise is added.

        Returns
        -------
        GaussianMixture
            One thin SVD a component, O(K D R²).

        Raises
        ------
        ShapeError
            If the factors are not K matrices of no more columns than rows.
        """
        if factors.ndim != 3 or factors.shape[2] > factors.shape[1]:
            raise ShapeError(
                f"from_factors: expected factors of shape (K, D, R) with R <= D, got {tuple(factors.shape)}"
            )
        U, S, _ = torch.linalg.svd(factors, full_matrices=False)
        return cls(weights, means, U, S.square() + noise_variance, torch.full_like(weights, noise_variance))

    @property
    def dim(self) -> int:
        """Number of coordinates, D."""
        return self.means.shape[1]

    def log_density(self, x: Tensor, noise_sd: Level = 0.0, signal: Level = 1.0) -> Tensor:
        """Log density of a x_0 + s ε.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        noise_sd : float or Tensor, shape () or (B,), default 0.0
            s, in units of x.
        signal : float or Tensor, shape () or (B,), default 1.0
            a > 0.

        Returns
        -------
        Tensor, shape (B,)
            In nats.

        Raises
        ------
        ShapeError
            If x has other than D columns.
        ArgumentError
            If a component is flat and there is no noise.
        """
        return self._terms(x, noise_sd, signal)[0].logsumexp(1)

    def score(self, x: Tensor, noise_sd: Level = 0.0, signal: Level = 1.0) -> Tensor:
        """∇_x log density of a x_0 + s ε, in closed form.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        noise_sd : float or Tensor, shape () or (B,), default 0.0
            s, in units of x.
        signal : float or Tensor, shape () or (B,), default 1.0
            a > 0.

        Returns
        -------
        Tensor, shape (B, D)
            - Σ_k P(k | x) C_k⁻¹ (x - a m_k).

        Raises
        ------
        ShapeError
            If x has other than D columns.
        ArgumentError
            If a component is flat and there is no noise.
        """
        log_terms, pulls = self._terms(x, noise_sd, signal)
        return -torch.einsum("bk,bkd->bd", log_terms.softmax(1), pulls)

    def denoise(self, x: Tensor, noise_sd: Level, signal: Level = 1.0) -> Tensor:
        """Mean of x_0 given a x_0 + s ε = x.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Noisy points.
        noise_sd : float or Tensor, shape () or (B,)
            s, in units of x.
        signal : float or Tensor, shape () or (B,), default 1.0
            a > 0.

        Returns
        -------
        Tensor, shape (B, D)
            (x + s² score) / a.
        """
        a, s = _column(signal, x), _column(noise_sd, x)
        return (x + s.square() * self.score(x, noise_sd, signal)) / a

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draw from p, without noise.

        Parameters
        ----------
        num_samples : int
            At least 1.
        generator : torch.Generator, optional
            On the device of the means. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (num_samples, D)
            In the dtype of the means.

        Raises
        ------
        ArgumentError
            If fewer than one is wanted.
        """
        if num_samples < 1:
            raise ArgumentError(f"GaussianMixture.sample: expected num_samples >= 1, got {num_samples}")
        kind = {"dtype": self.means.dtype, "device": self.means.device, "generator": generator}
        which = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        U, scale = self.directions[which], self.variances[which].sqrt()
        inside = torch.einsum("bdr,br->bd", U, scale * torch.randn(scale.shape, **kind))
        around = torch.randn(num_samples, self.dim, **kind)
        around = around - torch.einsum("bdr,br->bd", U, torch.einsum("bdr,bd->br", U, around))
        return self.means[which] + inside + self.floor[which].sqrt().unsqueeze(1) * around

    def _terms(self, x: Tensor, noise_sd: Level, signal: Level) -> tuple[Tensor, Tensor]:
        # log of w_k N(x; a m_k, C_k), shape (B, K), and C_k⁻¹ (x - a m_k), shape (B, K, D)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(f"GaussianMixture: expected x of shape (B, {self.dim}), got {tuple(x.shape)}")
        a, s = _column(signal, x), _column(noise_sd, x)
        rank = self.directions.shape[2]
        thinnest = self.variances if rank == self.dim else torch.cat([self.variances, self.floor.unsqueeze(1)], 1)
        if not bool((thinnest.amin() + s.detach().abs().amin() > 0).all()):
            raise ArgumentError("GaussianMixture: a component is flat and has no density; give noise_sd > 0")
        inside = a.square().unsqueeze(2) * self.variances + s.square().unsqueeze(2)  # (B or 1, K, R)
        outside = a.square() * self.floor + s.square()  # (B or 1, K)
        offset = x.unsqueeze(1) - a.unsqueeze(2) * self.means
        along = torch.einsum("kdr,bkd->bkr", self.directions, offset)
        if rank == self.dim:
            pulls = torch.einsum("kdr,bkr->bkd", self.directions, along / inside)
            log_volume = inside.log().sum(2)
        else:
            rest = offset - torch.einsum("kdr,bkr->bkd", self.directions, along)
            pulls = torch.einsum("kdr,bkr->bkd", self.directions, along / inside) + rest / outside.unsqueeze(2)
            log_volume = inside.log().sum(2) + (self.dim - rank) * outside.log()
        distance = (offset * pulls).sum(2)
        return self.weights.log() - (distance + log_volume + self.dim * math.log(2 * math.pi)) / 2, pulls


def _column(value: Level, x: Tensor) -> Tensor:
    # one number, or one a row, as (1, 1) or (B, 1)
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(-1, 1)
