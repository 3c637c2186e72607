"""What a perturbed likelihood is compared with: a GAN, a kernel density and mixtures of thin Gaussians.

Shapes: N points of D coordinates, K components of R directions.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from hesse._estimator import Estimator
from hesse._points import points_of
from hesse.errors import ArgumentError, NumericalError
from hesse.generative.gaussian_mixture import GaussianMixture
from hesse.generative.singular.networks import LatentLaw, make_decoder, perceptron

__all__ = ["WGANGP", "kde_resample", "ppca_mixture"]


class WGANGP(Estimator):
    """Fit the same f by Wasserstein distance: a critic, kept nearly 1-Lipschitz by a penalty on its gradient.

    Parameters
    ----------
    network : nn.Module, optional
        f from (N, Z) to (N, D), in standardised coordinates; copied. Default: as `PerturbedGenerativeMLE`.
    latent_dim : int, default 2
        Z.
    latent : {"normal", "uniform"}, default "normal"
        Law of z.
    hidden_sizes : sequence of int, default (64, 64, 64)
        Of the default network and of the critic.
    max_iter : int, default 1000
        Steps of f.
    num_critic : int, default 5
        Steps of the critic to one of f.
    penalty : float, default 10.0
        Weight of (|∇ critic| - 1)² between real and made points, as in the paper.
    one_sided : bool, default False
        Penalise slopes above 1 only. The paper's penalty also holds a critic that slopes the wrong way, since turning
        round leads through flat ones; f then runs away from the data. Seen in one or two coordinates, where a slope
        has little room to turn: use True there.
    batch_size : int, default 200
        Rows a step.
    learning_rate : float, default 1e-3
        Adam's, with β = (0, 0.9) as in the paper, falling to zero along a line.
    random_state : int, default 0
        Seed of weights, batches and z.

    Attributes
    ----------
    module_ : nn.Module
        f, from standard normal z to the units of the data.
    n_features_in_, n_iter_ : int
        D, and the steps of f.

    References
    ----------
    I. Gulrajani, F. Ahmed, M. Arjovsky, V. Dumoulin, A. Courville (2017), NeurIPS, arXiv 1704.00028.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        latent_dim: int = 2,
        latent: LatentLaw = "normal",
        hidden_sizes: Sequence[int] = (64, 64, 64),
        max_iter: int = 1000,
        num_critic: int = 5,
        penalty: float = 10.0,
        one_sided: bool = False,
        batch_size: int = 200,
        learning_rate: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        self.network = network
        self.latent_dim = latent_dim
        self.latent: LatentLaw = latent
        self.hidden_sizes = hidden_sizes
        self.max_iter = max_iter
        self.num_critic = num_critic
        self.penalty = penalty
        self.one_sided = one_sided
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: np.ndarray | Tensor, y: None = None) -> Self:
        """Train f and the critic in turn.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            As for `PerturbedGenerativeMLE`.
        y : None
            Ignored.

        Returns
        -------
        WGANGP
            Itself, trained from the start.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, or all rows are one.
        ShapeError
            If X is no matrix, or the network does not fit it.
        NumericalError
            If X or a loss is not finite.
        """
        del y
        for name in ("max_iter", "num_critic", "batch_size"):
            if not getattr(self, name) >= 1:
                raise ArgumentError(f"WGANGP: expected {name} >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.penalty >= 0:
            raise ArgumentError(
                f"WGANGP: expected learning_rate > 0 and penalty >= 0, got {self.learning_rate}, {self.penalty}"
            )
        points = points_of("WGANGP.fit", "X", X, min_rows=2)
        start = Generator().manual_seed(self.random_state)
        decoder = make_decoder(
            "WGANGP",
            self.network,
            points,
            latent_dim=self.latent_dim,
            latent=self.latent,
            hidden_sizes=self.hidden_sizes,
            generator=start,
        )
        critic = perceptron([points.shape[1], *self.hidden_sizes, 1], start).to(points)
        draws = Generator(points.device).manual_seed(self.random_state)
        rows = (points - decoder.centre) / decoder.scale
        kind = {"dtype": rows.dtype, "device": rows.device, "generator": draws}
        optimizers = [
            torch.optim.Adam(net.parameters(), lr=self.learning_rate, betas=(0.0, 0.9), fused=True)
            for net in (critic, decoder)
        ]
        size = min(self.batch_size, len(rows))
        for step in range(self.max_iter):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.max_iter)
            for _ in range(self.num_critic):
                real = rows[torch.randint(len(rows), (size,), device=rows.device, generator=draws)]
                with torch.no_grad():
                    made = decoder.standard(torch.randn(size, self.latent_dim, **kind))
                between = torch.lerp(real, made, torch.rand(size, 1, **kind)).requires_grad_()
                (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                excess = slope.norm(dim=1) - 1
                penalty = self.penalty * (excess.relu() if self.one_sided else excess).square().mean()
                loss = critic(made).mean() - critic(real).mean() + penalty
                optimizers[0].zero_grad()
                loss.backward()
                optimizers[0].step()
            value = -critic(decoder.standard(torch.randn(size, self.latent_dim, **kind))).mean()
            if not bool(torch.isfinite(value)):
                raise NumericalError(f"WGANGP.fit: the critic is {float(value)} at step {step}; lower learning_rate")
            optimizers[1].zero_grad()
            value.backward()
            optimizers[1].step()
        self.module_ = decoder.eval()
        self.n_features_in_, self.n_iter_ = rows.shape[1], self.max_iter
        return self

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draw f(z).

        Parameters
        ----------
        n : int
            Number of samples.
        generator : torch.Generator, optional
            On the device of the fit. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (n, D)
            In the units and the dtype of the data, without a graph.

        Raises
        ------
        ArgumentError
            If nothing was fitted, or n < 1.
        """
        if not hasattr(self, "module_"):
            raise ArgumentError("WGANGP: not fitted; call fit(X) first")
        if n < 1:
            raise ArgumentError(f"WGANGP.sample: expected n >= 1, got {n}")
        like = self.module_.centre
        with torch.no_grad():
            return self.module_(
                torch.randn(n, self.latent_dim, dtype=like.dtype, device=like.device, generator=generator)
            )


def kde_resample(
    X: np.ndarray | Tensor, bandwidth: float, num_samples: int, *, generator: Generator | None = None
) -> Tensor:
    """Draw rows of X and add N(0, bandwidth² I): a perturbation without a model.

    Parameters
    ----------
    X : array or Tensor, shape (N, D)
        The data.
    bandwidth : float
        In the units of X; zero draws from the empirical law.
    num_samples : int
        At least 1.
    generator : torch.Generator, optional
        On the device of X. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (num_samples, D)
        In the dtype of X.

    Raises
    ------
    ArgumentError
        If the bandwidth is negative, or there is no sample.
    """
    points = points_of("kde_resample", "X", X)
    if not bandwidth >= 0 or num_samples < 1:
        raise ArgumentError(
            f"kde_resample: expected bandwidth >= 0 and num_samples >= 1, got {bandwidth}, {num_samples}"
        )
    rows = points[torch.randint(len(points), (num_samples,), device=points.device, generator=generator)]
    noise = torch.randn(rows.shape, dtype=rows.dtype, device=rows.device, generator=generator)
    return rows + bandwidth * noise


def ppca_mixture(
    X: np.ndarray | Tensor,
    num_components: int,
    rank: int,
    *,
    min_variance: float = 1e-6,
    max_steps: int = 100,
    tol: float = 1e-5,
    generator: Generator | None = None,
) -> GaussianMixture:
    """Mixture of factor analysers with isotropic noise, by expectation maximisation (mixture of probabilistic PCA).

    Parameters
    ----------
    X : array or Tensor, shape (N, D)
        The data.
    num_components : int
        K. One component is probabilistic PCA, in closed form: one step suffices.
    rank : int
        R < D, directions of a component.
    min_variance : float, default 1e-6
        Least variance off the directions, in units of the mean variance of a coordinate: on flat data it would be zero.
    max_steps : int, default 100
        Steps at most.
    tol : float, default 1e-5
        Stop once a step gains less, in nats per row.
    generator : torch.Generator, optional
        Source of the first centres, on the device of X. Default: torch's global generator.

    Returns
    -------
    GaussianMixture
        In the dtype of X; ``directions`` and ``variances`` of the whole covariance, ``floor`` its isotropic part.

    Raises
    ------
    ArgumentError
        If K, R or the number of steps is out of range.

    Notes
    -----
    O(K D² (N + D)) a step.

    References
    ----------
    M. E. Tipping, C. M. Bishop (1999), Neural Comput. 11(2).
    """
    points = points_of("ppca_mixture", "X", X, min_rows=2)
    if not 1 <= num_components <= len(points) or not 1 <= rank < points.shape[1] or max_steps < 1:
        raise ArgumentError(
            f"ppca_mixture: expected 1 <= num_components <= {len(points)}, 1 <= rank < {points.shape[1]} and "
            f"max_steps >= 1, got {num_components}, {rank}, {max_steps}"
        )
    centres = points[torch.randperm(len(points), device=points.device, generator=generator)[:num_components]]
    shares = nn.functional.one_hot(torch.cdist(points, centres).argmin(1), num_components).to(points)
    least = float(points.var(0).mean()) * min_variance
    mixture, last = _maximise(points, shares, rank, least), -float("inf")
    for _ in range(max_steps - 1):
        logs = torch.stack([_component(mixture, k).log_density(points) for k in range(num_components)], 1)
        logs = logs + mixture.weights.log()
        value = float(logs.logsumexp(1).mean())
        if value - last < tol:
            break
        mixture, last = _maximise(points, logs.softmax(1), rank, least), value
    return mixture


def _component(mixture: GaussianMixture, k: int) -> GaussianMixture:
    one = slice(k, k + 1)
    return GaussianMixture(
        torch.ones_like(mixture.weights[one]),
        mixture.means[one],
        mixture.directions[one],
        mixture.variances[one],
        mixture.floor[one],
    )


def _maximise(points: Tensor, shares_NK: Tensor, rank: int, least: float) -> GaussianMixture:
    # weighted PCA of every component; what the directions leave is averaged into the floor
    shares_NK = shares_NK + 1e-8  # a component that lost all its rows keeps the mean of the data
    mass = shares_NK.sum(0)
    means = (shares_NK.mT @ points) / mass.unsqueeze(1)
    centred = points - means.unsqueeze(1)  # (K, N, D)
    covariances = (centred * shares_NK.mT.unsqueeze(2)).mT @ centred / mass.reshape(-1, 1, 1)
    values, vectors = torch.linalg.eigh(covariances)
    floor = values[:, :-rank].mean(1).clamp_min(least)
    variances = torch.maximum(values[:, -rank:], floor.unsqueeze(1))
    return GaussianMixture(mass / mass.sum(), means, vectors[:, :, -rank:], variances, floor)
