"""Likelihood for data on a thin set: perturb, fit, and drop the noise.   Shapes: N points, D coordinates, Z latent."""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from hesse._estimator import Estimator
from hesse._points import points_of
from hesse._progress import progress
from hesse.errors import ArgumentError, ShapeError
from hesse.generative.singular.distance import w1_distance
from hesse.generative.singular.likelihood import latent_nodes
from hesse.generative.singular.networks import LatentLaw, make_decoder, perceptron
from hesse.generative.singular.perturbation import cluster_gap, quantisation_step
from hesse.generative.singular.training import LatentModel, Likelihood, Settings, train

__all__ = ["Perturbation", "PerturbedGenerativeMLE", "Rung"]

Perturbation = str | float | Sequence[float]
LADDER = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # in units of the scale
START_SIGMA = 0.37
MIN_ROWS = 50
EXACT_ROWS = 1000  # held out; more are compared by the sliced distance
EXACT_DIM = 2  # latent; likewise
NODES_PER_SAMPLE = 100  # of the grid, for each of num_importance


@dataclass(frozen=True, slots=True)
class Rung:
    """One perturbation of a ladder and the fit to it, noise levels in the units of the data."""

    perturbation: float
    sigma: float
    w1: float  # of noiseless samples to held-out rows; NaN where nothing was held out
    log_likelihood: float  # of perturbed batches at the end, in nats; not comparable between rungs
    module: nn.Module  # f, from standard normal z to the units of the data


class PerturbedGenerativeMLE(Estimator):
    """Fit x = f(z) + σ ε to x_i + s e_i by maximum likelihood, and sample f(z) alone.

    Where the data lie on a curve or a surface, the likelihood is unbounded: σ goes to zero, and what is left rewards
    closeness to the set and no longer how mass is spread along it. Noise of known size s on the data bounds it; the
    fit then finds σ² ≈ σ*² + s², and W1 of f(z) to the structure is what counts. It helps where the data are singular
    and training is long enough for σ to collapse, and costs about s where not.

    Parameters
    ----------
    network : nn.Module, optional
        f from (N, Z) to (N, D), in standardised coordinates; copied. Default: leaky perceptron of ``hidden_sizes``.
    latent_dim : int, default 2
        Z: the suspected dimension of the structure, or one to three more. Less leaves W1 on a plateau.
    likelihood : {"exact", "iwae", "vae"}, default "vae"
        By a jittered grid (Z <= 2), by importance samples of an encoder, or the evidence lower bound.
    perturbation : "auto", float or sequence of float, default "auto"
        s in units of ``scale_``: a ladder of which the rung with the least W1 to held-out rows is kept, or one value.
        "auto" is (0, 0.02, 0.05, 0.1, 0.2, 0.4). A ladder is climbed down from its largest rung, each fit starting from
        the last, since a blurred problem is the easier one.
    fresh : bool, default True
        Perturb each batch anew, which averages the noise out; False draws once, as in the theorem.
    latent : {"normal", "uniform"}, default "normal"
        Law of z; the uniform one is on the cube of unit variance.
    num_importance : int, default 10
        Samples of "iwae"; a hundredth of the nodes of "exact".
    sigma_bounds : pair of float, default (1e-3, 2.0)
        Of σ, in units of ``scale_``.
    hidden_sizes : sequence of int, default (64, 64, 64)
        Of the default network and of the encoder. Pictures want four times 200.
    max_iter : int, default 3000
        Steps of the first fit.
    warm_iter : int, optional
        Steps of each further rung. Default: half of ``max_iter``: where the largest noise drowned a direction of the
        structure, a fit that starts there needs that long to find it again, the more so in many coordinates.
    batch_size : int, default 200
        Rows a step, drawn with replacement.
    learning_rate : float, default 3e-3
        Adam's highest, in a one-cycle schedule; log σ has three times that.
    validation_fraction : float, default 0.2
        Rows held out to choose a rung where there are several and `fit` is given none.
    random_state : int, default 0
        Seed of weights, batches, noise and the split.

    Attributes
    ----------
    module_ : nn.Module
        f of the chosen rung, from standard normal z to the units of the data.
    model_ : nn.Module
        The same with encoder and log σ, in standardised coordinates.
    sigma_, perturbation_ : float
        Fitted σ and chosen s, in the units of the data; σ includes s.
    scale_ : float
        sqrt(tr C² / tr C) of the covariance C of X: one global scale; columns are never scaled one by one.
    path_ : tuple of Rung
        The ladder, from the largest s down.
    degenerate_ : bool
        Whether σ ended at its lower bound: the likelihood was unbounded.
    n_features_in_, n_iter_ : int
        D, and the steps made in all.

    Notes
    -----
    A step costs one pass of ``batch_size`` · ``num_importance`` points through f ("vae": one to a row; "exact": 100
    ``num_importance`` nodes). Distances to held-out rows are exact up to 1000 of them in up to two latent dimensions,
    sliced beyond: from a few hundred points of a body of many dimensions the exact distance is mostly sampling error,
    which is least for samples that shrink to the mean. A ladder of six takes 10500 steps by default.

    References
    ----------
    M. Chae, D. Kim, Y. Kim, L. Lin (2023), JMLR 24, arXiv 2105.04046.

    Examples
    --------
    >>> angle = torch.linspace(0, 6.28, 200)
    >>> circle = torch.stack([angle.cos(), angle.sin()], 1)
    >>> model = PerturbedGenerativeMLE(perturbation=0.1, max_iter=5).fit(circle)
    >>> model.sample(3).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        latent_dim: int = 2,
        likelihood: Likelihood = "vae",
        perturbation: Perturbation = "auto",
        fresh: bool = True,
        latent: LatentLaw = "normal",
        num_importance: int = 10,
        sigma_bounds: tuple[float, float] = (1e-3, 2.0),
        hidden_sizes: Sequence[int] = (64, 64, 64),
        max_iter: int = 3000,
        warm_iter: int | None = None,
        batch_size: int = 200,
        learning_rate: float = 3e-3,
        validation_fraction: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.network = network
        self.latent_dim = latent_dim
        self.likelihood: Likelihood = likelihood
        self.perturbation: Perturbation = perturbation
        self.fresh = fresh
        self.latent: LatentLaw = latent
        self.num_importance = num_importance
        self.sigma_bounds = sigma_bounds
        self.hidden_sizes = hidden_sizes
        self.max_iter = max_iter
        self.warm_iter = warm_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: np.ndarray | Tensor, y: None = None, *, validation: np.ndarray | Tensor | None = None) -> Self:
        """Fit every rung, and keep the one whose samples are nearest to held-out rows.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            At least 50 rows. f has its dtype (float32 or float64; anything else becomes float32) and, for a tensor,
            its device.
        y : None
            Ignored; scikit-learn's pipelines pass it.
        validation : array or Tensor, shape (M, D), optional
            Rows to choose by. Default: ``validation_fraction`` of X, which is then not trained on.

        Returns
        -------
        PerturbedGenerativeMLE
            Itself, trained from the start.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, all rows are one, or the exact likelihood has more than two dimensions.
        ShapeError
            If there are too few rows, or network or held-out rows do not fit them.
        NumericalError
            If X or the likelihood is not finite.

        Warns
        -----
        UserWarning
            If σ ended at its lower bound; if the chosen s is an end of the ladder other than zero, less than the step
            of discrete data, or enough to join clusters.
        """
        del y
        ladder = self._checked_ladder()
        points = points_of("PerturbedGenerativeMLE.fit", "X", X, min_rows=MIN_ROWS)
        generator = Generator().manual_seed(self.random_state)
        decoder = make_decoder(
            "PerturbedGenerativeMLE",
            self.network,
            points,
            latent_dim=self.latent_dim,
            latent=self.latent,
            hidden_sizes=self.hidden_sizes,
            generator=generator,
        )
        dim, scale = points.shape[1], float(decoder.scale)
        points = points[torch.randperm(len(points), generator=generator).to(points.device)]
        held_out: Tensor | None = None
        rows = points
        if validation is not None:
            held_out = points_of("PerturbedGenerativeMLE.fit", "validation", validation).to(points)
            if held_out.shape[1] != dim:
                raise ShapeError(f"PerturbedGenerativeMLE.fit: validation has {held_out.shape[1]} columns, X {dim}")
        elif len(ladder) > 1:
            count = max(1, round(self.validation_fraction * len(points)))
            held_out, rows = points[:count], points[count:]
        encoder = None
        if self.likelihood != "exact":
            encoder = perceptron([dim, *self.hidden_sizes, 2 * self.latent_dim], generator).to(points)
        low, high = self.sigma_bounds
        model = LatentModel(decoder, encoder, self.latent_dim, min(max(START_SIGMA, low), high))
        self._climb(model, (rows - decoder.centre) / decoder.scale, held_out, ladder, scale)
        self._warn(points, ladder)
        return self

    def _climb(
        self, model: LatentModel, rows: Tensor, held_out: Tensor | None, ladder: list[float], scale: float
    ) -> None:
        # all rungs, then back to the best: sets what fit learns
        draws = Generator(rows.device).manual_seed(self.random_state)
        settings = Settings(self._num_samples(), self.sigma_bounds, self.fresh, self.batch_size, self.learning_rate)
        warm = self.max_iter // 2 if self.warm_iter is None else self.warm_iter
        lengths = [self.max_iter] + [max(1, warm)] * (len(ladder) - 1)
        path, states = [], []
        with progress("perturbed likelihood", sum(lengths), unit="steps") as advance:
            for level, steps in zip(ladder, lengths, strict=True):
                value = train(model, rows, level, settings, steps, draws, on_step=advance)
                states.append(copy.deepcopy(model).eval())
                decoder = states[-1].decoder
                w1 = float("nan") if held_out is None else self._w1(decoder, held_out)
                value -= rows.shape[1] * math.log(scale)
                path.append(Rung(level * scale, float(model.sigma.detach()) * scale, w1, value, decoder))
        best = 0 if held_out is None else min(range(len(path)), key=lambda index: path[index].w1)
        self.path_ = tuple(path)
        self.model_ = states[best]
        self.module_ = path[best].module
        self.sigma_, self.perturbation_, self.scale_ = path[best].sigma, path[best].perturbation, scale
        self.degenerate_ = self.sigma_ <= self.sigma_bounds[0] * scale * 1.01
        self.n_features_in_ = rows.shape[1]
        self.n_iter_ = sum(lengths)

    def sample(self, n: int, noise: bool = False, *, generator: Generator | None = None) -> Tensor:
        """Draw f(z).

        Parameters
        ----------
        n : int
            Number of samples.
        noise : bool, default False
            Add σ ε: a sample of the perturbed law instead, for a check against perturbed held-out data.
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
        self._fitted()
        if n < 1:
            raise ArgumentError(f"PerturbedGenerativeMLE.sample: expected n >= 1, got {n}")
        like = self.model_.decoder.centre
        kind = {"dtype": like.dtype, "device": like.device, "generator": generator}
        with torch.no_grad():
            points = self.model_.decoder(torch.randn(n, self.latent_dim, **kind))
            return points + self.sigma_ * torch.randn(points.shape, **kind) if noise else points

    def log_prob(
        self, X: np.ndarray | Tensor, num_importance: int = 1000, *, generator: Generator | None = None
    ) -> Tensor:
        """Log density of the fitted f(z) + σ ε: of the perturbed law, not of the structure, which has none.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            Points.
        num_importance : int, default 1000
            Samples of the encoder a point, or nodes of the grid, here as many as given. In float64 inside.
        generator : torch.Generator, optional
            On the device of the fit. Default: seeded with ``random_state``, so that the same call gives the same.

        Returns
        -------
        Tensor, shape (N,)
            In nats per row, in the units of the data; a lower bound in expectation. ``num_importance=1`` is the
            evidence lower bound.

        Raises
        ------
        ArgumentError
            If nothing was fitted, or there is no sample.
        ShapeError
            If X has not D columns.
        """
        points = self._points(X).double()
        if num_importance < 1:
            raise ArgumentError(f"PerturbedGenerativeMLE.log_prob: expected num_importance >= 1, got {num_importance}")
        model = copy.deepcopy(self.model_).double()
        draws = generator or Generator(points.device).manual_seed(self.random_state)
        standard = (points - model.decoder.centre) / model.decoder.scale
        size = len(points) if model.encoder is None else max(1, 200_000 // num_importance)
        with torch.no_grad():
            parts = [model.log_likelihood(part, num_importance, draws)[0] for part in standard.split(size)]
        return (torch.cat(parts) - points.shape[1] * math.log(self.scale_)).to(self.model_.decoder.centre)

    def encode(self, X: np.ndarray | Tensor) -> Tensor:
        """Mean of z given x.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            Points.

        Returns
        -------
        Tensor, shape (N, Z)
            The encoder's mean, or the exact likelihood's posterior mean over 10000 nodes; in standard normal z.

        Raises
        ------
        ArgumentError
            If nothing was fitted.
        ShapeError
            If X has not D columns.
        """
        points = self._points(X)
        model = self.model_
        standard = (points - model.decoder.centre) / model.decoder.scale
        with torch.no_grad():
            if model.encoder is not None:
                return model.posterior(standard)[0]
            draws = Generator(points.device).manual_seed(self.random_state)
            nodes = latent_nodes(10_000, self.latent_dim, like=points, generator=draws)
            images = model.decoder.standard(nodes)
            parts = [
                (-torch.cdist(part, images).square() / (2 * model.sigma.square())).softmax(1) @ nodes
                for part in standard.split(400)
            ]
        return torch.cat(parts)

    def score(self, X: np.ndarray | Tensor, y: None = None) -> float:
        """Minus W1 of noiseless samples to X; likelihoods of fits with different s cannot be compared.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            Rows not used in training.
        y : None
            Ignored.

        Returns
        -------
        float
            In the units of the data; higher is better. Zero is out of reach: two samples of one law are apart too.
        """
        del y
        points = self._points(X)
        return -self._w1(self.model_.decoder, points)

    def _w1(self, decoder: nn.Module, rows: Tensor) -> float:
        # the same z for all rungs; many samples to a held-out row, since samples cost nothing
        draws = Generator(rows.device).manual_seed(self.random_state + 1)
        copies = max(1, EXACT_ROWS // len(rows))
        z = torch.randn(copies * len(rows), self.latent_dim, dtype=rows.dtype, device=rows.device, generator=draws)
        with torch.no_grad():
            samples = decoder(z)
        # beyond a surface the exact distance is mostly sampling error, and favours samples that shrink to the mean
        method = "exact" if len(rows) <= EXACT_ROWS and self.latent_dim <= EXACT_DIM else "sliced"
        return w1_distance(samples, rows, method, generator=Generator().manual_seed(self.random_state))

    def _num_samples(self) -> int:
        return {"vae": 1, "iwae": self.num_importance, "exact": NODES_PER_SAMPLE * self.num_importance}[self.likelihood]

    def _fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise ArgumentError("PerturbedGenerativeMLE: not fitted; call fit(X) first")

    def _points(self, X: np.ndarray | Tensor) -> Tensor:
        self._fitted()
        points = points_of("PerturbedGenerativeMLE", "X", X).to(self.model_.decoder.centre)
        if points.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"PerturbedGenerativeMLE: expected X of shape (N, {self.n_features_in_}), got {tuple(points.shape)}"
            )
        return points

    def _checked_ladder(self) -> list[float]:
        # refuses what cannot work before anything is built; the rungs come largest first
        call = "PerturbedGenerativeMLE"
        if self.likelihood not in ("exact", "iwae", "vae"):
            raise ArgumentError(f'{call}: expected likelihood "exact", "iwae" or "vae", got {self.likelihood!r}')
        if self.likelihood == "exact" and self.latent_dim > 2:
            raise ArgumentError(f'{call}: likelihood="exact" is for latent_dim <= 2, got {self.latent_dim}; use "iwae"')
        for name, low in (("num_importance", 1), ("max_iter", 1), ("batch_size", 1), ("warm_iter", 1)):
            if getattr(self, name) is not None and not getattr(self, name) >= low:
                raise ArgumentError(f"{call}: expected {name} >= {low}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ArgumentError(f"{call}: expected learning_rate > 0, got {self.learning_rate}")
        if not 0 < self.validation_fraction < 1:
            raise ArgumentError(f"{call}: expected 0 < validation_fraction < 1, got {self.validation_fraction}")
        if len(self.sigma_bounds) != 2 or not 0 < self.sigma_bounds[0] < self.sigma_bounds[1] < math.inf:
            raise ArgumentError(f"{call}: expected 0 < low < high in sigma_bounds, got {self.sigma_bounds}")
        if isinstance(self.perturbation, str):
            if self.perturbation != "auto":
                raise ArgumentError(f'{call}: expected perturbation "auto" or numbers, got {self.perturbation!r}')
            ladder = list(LADDER)
        elif isinstance(self.perturbation, int | float):
            ladder = [float(self.perturbation)]
        else:
            ladder = [float(level) for level in self.perturbation]
        if not ladder or not all(0 <= level < math.inf for level in ladder):
            raise ArgumentError(f"{call}: expected finite perturbation >= 0, got {self.perturbation!r}")
        return sorted(set(ladder), reverse=True)

    def _warn(self, points: Tensor, ladder: list[float]) -> None:
        chosen = self.perturbation_
        says = []
        if self.degenerate_:
            says.append(
                f"degenerate likelihood: sigma went to its lower bound {self.sigma_:.2g}; the data are singular, "
                "raise perturbation"
            )
        if len(ladder) > 1 and (chosen >= ladder[0] * self.scale_ or 0 < chosen <= ladder[-1] * self.scale_):
            says.append(f"the chosen perturbation {chosen:.2g} is the end of the ladder; widen it")
        step = quantisation_step(points)
        if chosen < step:
            says.append(
                f"the data are discrete with a step of {step:.2g}, more than the perturbation {chosen:.2g}; raise it"
            )
        gap = cluster_gap(points)
        if chosen * points.shape[1] ** 0.5 > gap / 2:
            says.append(
                f"the perturbation {chosen:.2g} may join clusters, {gap:.2g} apart in {points.shape[1]} coordinates; "
                "lower it"
            )
        for text in says:
            warnings.warn(f"PerturbedGenerativeMLE: {text}", stacklevel=3)
