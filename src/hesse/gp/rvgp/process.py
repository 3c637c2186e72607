"""A Gaussian process of tangent vector fields on a cloud of points.

Shapes: P points in D coordinates, tangent dimension d, M eigenfields, Q observations or queries, B fields.
"""

import math
import warnings
from dataclasses import replace
from typing import Literal, Self, overload

import numpy as np
import torch
from torch import Generator, Tensor

from hesse._estimator import Estimator
from hesse._values import check_finite
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.gp.rvgp.bundle import TangentBundle
from hesse.gp.rvgp.spectral import (
    KernelKind,
    Moments,
    SpectralPrior,
    fit_evidence,
    log_evidence,
    moments_of,
    posterior,
)

__all__ = ["RVGP", "Smoothness"]

Smoothness = Literal["paper", "manifold"]

NORMAL_SHARE = 0.2  # of the observations' length: beyond, they hardly are tangent vectors
KAPPA_FACTOR = 0.1  # second start, for fields rougher than the first assumes


class RVGP(Estimator):
    """Regression of a tangent vector field, with error bars, from vectors at some points of a cloud.

    A field is Σ_a w_a u_a, u_a the eigenfields of the connection Laplacian and w_a ~ N(0, S_a) independent, which is
    the process with kernel k(i, j) = Φ_i diag(S) Φ_jᵀ, Φ_i = T_i [u]_i. S falls with the eigenvalue: Matérn, (2ν/κ² +
    λ)^-ν, or squared exponential, exp(-κ²λ/2). Zeros of the field (sources, vortices, saddles) stay where they are,
    predictions are tangent, and nothing depends on the frames.

    Parameters
    ----------
    bundle : TangentBundle
        The surface.
    num_eigenpairs : int, default 100
        M. 50 to 100 for smooth fields, at most N d; a few dozen observations do not support more.
    kernel : {"matern", "se"}, default "matern"
        Spectrum of the prior.
    nu : float, default 1.5
        Smoothness of the Matérn spectrum.
    learn_nu : bool, default False
        Whether ν is fitted too: on very smooth fields that halves the error and more, on rough ones it does nothing.
    smoothness : {"paper", "manifold"}, default "paper"
        Exponent ν, as in the paper's code, or ν + d/2, for which samples have ν derivatives.
    kappa : float, default 5.0
        Length scale, relative: eigenvalues are divided by their median. Start of the fit; a tenth of it is another.
    variance : float, default 1.0
        σ_f, mean prior variance of a tangent component, in units of the observations' mean square. Start of the fit.
    noise : float, default 1e-3
        Noise variance of a component, in the same units. Start of the fit.
    optimize : bool, default True
        Whether κ, σ_f and the noise (and ν) are fitted by marginal likelihood; False keeps the values above.
    max_iter : int, default 1000
        L-BFGS steps at most from each start.

    Attributes
    ----------
    theta_ : Tensor, shape (3,) or (4,)
        log (κ, σ_f, noise variance[, ν]) in the units of F.
    kappa_, variance_, noise_, nu_ : float
        The same, as numbers.
    log_evidence_ : float
        Log marginal likelihood of the observations' tangent parts, in nats.
    eigenvalues_ : Tensor, shape (M,)
        Of the connection Laplacian.
    converged_ : bool
        Whether L-BFGS ended by its own rule.
    n_iter_ : int
        Its steps.

    Notes
    -----
    The likelihood costs O(M³) a call, however many observations there are; the covariance is shared by a batch of
    fields (times of a series), all of which are predicted by one product.

    **When not to use it.** If the surface is smoothly embedded, its coordinates are known, and no two sheets come near
    each other, a Gaussian process in the ambient coordinates is simpler and more accurate. This one is for surfaces
    that fold back on themselves, for fields whose values should be tangent, and for their singularities.

    References
    ----------
    R. L. Peach et al. (2024), ICLR, arXiv 2309.16746. V. Borovitskiy et al. (2020), NeurIPS, arXiv 2006.10160.

    Examples
    --------
    >>> angle = torch.linspace(0, 6.2, 40, dtype=torch.float64)
    >>> X = torch.stack([angle.cos(), angle.sin()], dim=1)
    >>> tangent = torch.stack([-angle.sin(), angle.cos()], dim=1)
    >>> seen = torch.arange(0, 40, 5)
    >>> model = RVGP(TangentBundle(X, num_neighbors=4), num_eigenpairs=10).fit(seen, tangent[seen])
    >>> bool((model.predict() - tangent).abs().max() < 0.05)
    True
    """

    def __init__(
        self,
        bundle: TangentBundle,
        num_eigenpairs: int = 100,
        kernel: KernelKind = "matern",
        nu: float = 1.5,
        learn_nu: bool = False,
        smoothness: Smoothness = "paper",
        kappa: float = 5.0,
        variance: float = 1.0,
        noise: float = 1e-3,
        optimize: bool = True,
        max_iter: int = 1000,
    ) -> None:
        self.bundle = bundle
        self.num_eigenpairs = num_eigenpairs
        self.kernel: KernelKind = kernel
        self.nu = nu
        self.learn_nu = learn_nu
        self.smoothness: Smoothness = smoothness
        self.kappa = kappa
        self.variance = variance
        self.noise = noise
        self.optimize = optimize
        self.max_iter = max_iter

    def fit(self, idx: Tensor | np.ndarray, F: Tensor | np.ndarray) -> Self:
        """Learn from vectors at some points.

        Parameters
        ----------
        idx : Tensor of int64, shape (Q,), or of bool, shape (P,)
            Rows of the cloud that were observed. A row may come twice.
        F : array or Tensor, shape (Q, D) or (Q, D, B)
            Vectors there, in ambient coordinates; a batch of B fields shares κ, σ_f and noise. Predictions have its
            dtype and device; the M x M algebra is in float64.

        Returns
        -------
        RVGP
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, or idx is empty or out of range.
        ArgumentTypeError
            If the bundle is none.
        ShapeError
            If idx and F do not fit each other or the cloud.
        NumericalError
            If F has NaN or Inf.

        Warns
        -----
        UserWarning
            If more than a fifth of the vectors' length is normal to the surface; that part is dropped.
        """
        self._check()
        nodes = self.bundle.nodes_at("RVGP.fit", idx)
        F = torch.as_tensor(F)
        eigen = self.bundle.eigenpairs(self.num_eigenpairs)
        self._moments = self._observe("RVGP.fit", nodes, F, eigen.fields)
        self._eigen = eigen
        self._dtype, self._device, self._batched = F.dtype, F.device, F.ndim == 3
        self.eigenvalues_ = eigen.eigenvalues
        positive = eigen.eigenvalues[eigen.eigenvalues > 1e-10 * eigen.eigenvalues[-1].clamp_min(1e-300)]
        median = positive.median() if len(positive) else torch.ones(())
        shift = self.bundle.dim / 2 if self.smoothness == "manifold" else 0.0
        self._prior = SpectralPrior(
            (eigen.eigenvalues / median).to(F.device), eigen.mean_squares.to(F.device), self.kernel, self.nu, shift
        )
        scale = float(self._moments.square.mean().detach()) / self._moments.num_rows or 1.0
        start = [math.log(value) for value in (self.kappa, self.variance * scale, self.noise * scale)]
        start += [math.log(self.nu)] if self.learn_nu else []
        starts = torch.tensor([start, start], dtype=torch.float64)
        starts[1, 0] += math.log(KAPPA_FACTOR)
        if self.optimize:
            found = fit_evidence(self._moments, self._prior, starts, max_iter=self.max_iter)
            self.theta_, self.converged_, self.n_iter_ = found.theta, found.converged, found.num_steps
        else:
            self.theta_, self.converged_, self.n_iter_ = starts[0].to(F.device), True, 0
        return self._settle()

    def update(self, idx: Tensor | np.ndarray, F: Tensor | np.ndarray) -> Self:
        """Add observations, with κ, σ_f and noise as they are: O(Q M² + M³), without the earlier rows.

        Parameters
        ----------
        idx : Tensor of int64, shape (Q,), or of bool, shape (P,)
            Further rows of the cloud, or the same ones measured again.
        F : array or Tensor, shape (Q, D) or (Q, D, B)
            Vectors there, of the dtype and batch that were fitted.

        Returns
        -------
        RVGP
            Itself.

        Raises
        ------
        ArgumentError
            If idx is empty or out of range, or nothing has been fitted.
        ShapeError
            If idx and F do not fit each other, the cloud or the earlier batch.
        NumericalError
            If F has NaN or Inf.
        """
        self._fitted("update")
        nodes = self.bundle.nodes_at("RVGP.update", idx)
        more = self._observe("RVGP.update", nodes, torch.as_tensor(F, device=self._device), self._eigen.fields)
        if more.projected.shape != self._moments.projected.shape:
            raise ShapeError(
                f"RVGP.update: fitted with {self._moments.projected.shape[1]} fields, got {more.projected.shape[1]}"
            )
        self._moments = self._moments + more
        return self._settle()

    @overload
    def predict(self, at: Tensor | np.ndarray | None = ..., *, return_cov: Literal[False] = ...) -> Tensor: ...

    @overload
    def predict(self, at: Tensor | np.ndarray | None = ..., *, return_cov: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def predict(
        self, at: Tensor | np.ndarray | None = None, *, return_cov: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Posterior mean of the field, and its covariance at each point.

        Parameters
        ----------
        at : Tensor, optional
            Rows of the cloud (integers, shape (Q,), or a mask (P,)), or new points near the surface (floating, shape
            (Q, D)), to which the eigenfields are continued from their neighbours. Default: the whole cloud.
        return_cov : bool, default False
            Whether to return the covariance too.

        Returns
        -------
        mean : Tensor, shape (Q, D) or (Q, D, B)
            Tangent vectors, linear in the observations; differentiable with respect to them where ``optimize=False``
            or θ is taken as given.
        covariance : Tensor, shape (Q, D, D)
            If asked for: of the noise-free field, the same for all fields of a batch; of rank d at most.

        Raises
        ------
        ArgumentError
            If nothing has been fitted, or a row is out of range.
        ShapeError
            If ``at`` is neither rows nor points of the cloud's space.
        NumericalError
            If ``at`` has NaN or Inf.
        """
        self._fitted("predict")
        frames, fields = self._features(at)
        frames, fields = frames.to(self._device), fields.to(self._device)
        mean = torch.einsum("qka,qam,mb->qkb", frames, fields, self._mean)
        mean = (mean if self._batched else mean[..., 0]).to(self._dtype)
        if not return_cov:
            return mean
        root = frames @ (fields @ self._root)
        return mean, (root @ root.mT).to(self._dtype)

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draw whole fields from the posterior.

        Parameters
        ----------
        num_samples : int
            How many, at least 1.
        generator : torch.Generator, optional
            Source, on the device of the observations. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (num_samples, P, D) or (num_samples, P, D, B)
            Noise-free fields at all points of the cloud, consistent over the surface.

        Raises
        ------
        ArgumentError
            If nothing has been fitted, or ``num_samples < 1``.
        """
        self._fitted("sample")
        if num_samples < 1:
            raise ArgumentError(f"RVGP.sample: expected num_samples >= 1, got {num_samples}")
        shape = (num_samples, *self._mean.shape)
        draws = torch.randn(shape, dtype=torch.float64, device=self._device, generator=generator)
        frames, fields = (part.to(self._device) for part in self._features(None))
        found = torch.einsum("qka,qam,smb->sqkb", frames, fields, self._mean + self._root @ draws)
        return (found if self._batched else found[..., 0]).to(self._dtype)

    def log_marginal_likelihood(self, theta: Tensor | None = None) -> Tensor:
        """Log evidence of the observations' tangent parts as a function of θ.

        Parameters
        ----------
        theta : Tensor, shape (3,) or (4,), optional
            log (κ, σ_f, noise variance[, ν]), the latter two in the units of F squared. Default: `theta_`.

        Returns
        -------
        Tensor, shape ()
            In nats, summed over a batch; differentiable with respect to θ.

        Raises
        ------
        ArgumentError
            If nothing has been fitted.
        ShapeError
            If θ has another length.
        """
        self._fitted("log_marginal_likelihood")
        theta = self.theta_ if theta is None else theta
        if theta.shape not in ((3,), (4,)):
            raise ShapeError(f"RVGP.log_marginal_likelihood: expected theta of 3 or 4, got {tuple(theta.shape)}")
        theta = theta.to(self._device, torch.float64)
        return log_evidence(self._moments, self._prior.variances(theta), theta[2].exp())

    def theta_covariance(self) -> Tensor:
        """Laplace approximation of the uncertainty of θ: the inverse of minus the Hessian of the log evidence.

        Returns
        -------
        Tensor, shape (3, 3) or (4, 4)
            Under a flat prior on the logarithms; directions that the evidence does not bend get NaN variances.

        Raises
        ------
        ArgumentError
            If nothing has been fitted.
        """
        self._fitted("theta_covariance")
        moments = self._moments
        fixed = replace(
            moments,
            gram=moments.gram.detach(),
            projected=moments.projected.detach(),
            square=moments.square.detach(),
        )
        bend = -torch.autograd.functional.hessian(
            lambda theta: log_evidence(fixed, self._prior.variances(theta), theta[2].exp()), self.theta_
        )
        covariance, failed = torch.linalg.inv_ex((bend + bend.mT) / 2)
        bad = bool(failed) or bool((torch.linalg.eigvalsh(bend) <= 0).any())
        return torch.full_like(covariance, math.nan) if bad else covariance

    def _check(self) -> None:
        if not isinstance(self.bundle, TangentBundle):
            raise ArgumentTypeError(f"RVGP: bundle must be a TangentBundle, got {type(self.bundle).__name__}")
        if self.kernel not in ("matern", "se"):
            raise ArgumentError(f"RVGP: kernel must be matern or se, got {self.kernel!r}")
        if self.smoothness not in ("paper", "manifold"):
            raise ArgumentError(f"RVGP: smoothness must be paper or manifold, got {self.smoothness!r}")
        if self.learn_nu and self.kernel == "se":
            raise ArgumentError("RVGP: learn_nu needs kernel='matern'; the squared exponential has no nu")
        for name in ("nu", "kappa", "variance", "noise"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ArgumentError(f"RVGP: expected a finite {name} > 0, got {value}")
        for name in ("num_eigenpairs", "max_iter"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"RVGP: expected {name} >= 1, got {getattr(self, name)}")

    def _fitted(self, call: str) -> None:
        if not hasattr(self, "_moments"):
            raise ArgumentError(f"RVGP.{call}: nothing has been fitted yet; call fit first")

    def _observe(self, call: str, nodes: Tensor, F: Tensor, fields: Tensor) -> Moments:
        width = self.bundle.points.shape[1]
        if F.ndim not in (2, 3) or tuple(F.shape[:2]) != (len(nodes), width):
            raise ShapeError(f"{call}: expected F of shape ({len(nodes)}, {width}[, fields]), got {tuple(F.shape)}")
        if F.numel() == 0:
            raise ArgumentError(f"{call}: no observations")
        if not F.is_floating_point():
            raise ShapeError(f"{call}: expected real floating F, got {F.dtype}")
        check_finite(call, "F", F)
        wide = F.to(torch.float64)
        local = self.bundle.coordinates(nodes, wide)
        whole, tangent = float(wide.detach().square().sum()), float(local.detach().square().sum())
        if max(whole - tangent, 0.0) > NORMAL_SHARE**2 * whole:
            warnings.warn(
                f"{call}: {((whole - tangent) / whole) ** 0.5:.0%} of the vectors' length is normal to the surface and "
                "was dropped; are they tangent, and is the surface sampled finely enough?",
                stacklevel=3,
            )
        features = fields[nodes].to(F.device).reshape(-1, fields.shape[-1])
        return moments_of(features, local.reshape(len(features), -1))

    def _settle(self) -> Self:
        variances, noise = self._prior.variances(self.theta_), self.theta_[2].exp()
        self._mean, self._root = posterior(self._moments, variances, noise)
        self.log_evidence_ = float(log_evidence(self._moments, variances, noise).detach())
        self.kappa_, self.variance_, self.noise_ = self.theta_[:3].exp().tolist()
        self.nu_ = float(self.theta_[3].exp()) if len(self.theta_) > 3 else self.nu
        return self

    def _features(self, at: Tensor | np.ndarray | None) -> tuple[Tensor, Tensor]:
        if at is None:
            rows = self.bundle.node_of
        else:
            at = torch.as_tensor(at)
            if at.is_floating_point():
                return self.bundle.extend(at, self._eigen)
            rows = self.bundle.nodes_at("RVGP.predict", at)
        return self.bundle.frames[rows], self._eigen.fields[rows]
