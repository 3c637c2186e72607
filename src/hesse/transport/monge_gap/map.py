"""A network trained to carry one cloud of points to another.   Shapes: N, M points in D, E coordinates."""

import copy
import warnings
from collections.abc import Sequence
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from hesse._estimator import Estimator
from hesse._points import Array, points_of
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.transport.costs import Cost, CostLike, Geodesic, as_cost
from hesse.transport.monge_gap._checks import weights_of
from hesse.transport.monge_gap._module import Form, MapModule, mlp, spread
from hesse.transport.monge_gap._training import Batches, FitLoss, Objective, Sampler
from hesse.transport.monge_gap.divergence import sinkhorn_divergence
from hesse.transport.monge_gap.gap import monge_gap

__all__ = ["MongeMap"]

ArrayT = TypeVar("ArrayT", np.ndarray, Tensor)

FEW_POINTS = 32  # in a smaller batch the optimal pairing of the batch itself is far from that of the measures
GAP_POINTS = 1000  # of the source, for the exact gap after training


class MongeMap(Estimator):
    """Fit T with T#μ = ν, optimal for a cost c, to samples of μ and ν.

    Adam on Δ(T#μ, ν) / mean |y - y'|² + lam M(T) / mean c(x, y): Δ is the Sinkhorn divergence with the squared
    distance, whatever c is, and M the Monge gap. Without M any map with the right image is as good as any other.

    Parameters
    ----------
    network : nn.Module, optional
        F, from standardised D coordinates to E. It is copied. Default: a multilayer perceptron, zero at first for the
        residual and the sphere form, so that training starts from the identity, whose gap is zero.
    cost : str, Cost or callable, default "sqeuclidean"
        c; see `hesse.transport.as_cost`.
    lam : float, default 1.0
        Weight of the gap, in units of the mean cost; zero leaves it out. Gaussians in four dimensions come out nearer
        to the optimal map with 1 than with 0.1; clouds on the sphere want 5.
    fit_loss : "sinkhorn" or callable, default "sinkhorn"
        Δ, or a function of T(x) and y, both batches, that returns a scalar.
    form : {"residual", "structured", "sphere", "direct"}, optional
        x + F; x - ∇h*(F), for costs h(x - y), for which every optimal map has that form with F a gradient field; F on
        top of x, divided by its length; F alone, for another number of coordinates. Default: "sphere" for a `Geodesic`
        cost, "residual" where D = E, else "direct".
    eps_fit : float, default 0.05
        Entropy of Δ, relative to mean |y - y'|².
    eps_gap : float, default 0.01
        Entropy of the gap, relative to mean c(x, y).
    reference : "source", array or callable, default "source"
        ρ, where the gap is measured: the source's batch, rows of an array of shape (K, D), or a function of a number
        of points and a generator that draws them.
    conservative : float, default 0.0
        Weight of `conservative_penalty`; for the structured form.
    hidden_sizes : sequence of int, default (64, 64)
        Widths of the default network.
    max_iter : int, default 500
        Steps. 300 do for Gaussians, 1500 or more for curved clouds.
    batch_size : int, default 256
        Points of either side a step, drawn with replacement. Fewer than 32 are warned about.
    learning_rate : float, default 1e-2
        Adam's, falling to zero along a cosine.
    random_state : int, default 0
        Seed of weights and batches.

    Attributes
    ----------
    module_ : nn.Module
        T.
    monge_gap_ : float
        Exact gap (no entropy) of T on up to 1000 points of the source, in units of the cost; at least zero.
    history_ : dict of lists
        For each step "fit", Δ (with its target's own term from the first batch), and "gap" under the KL convention,
        for an optimal map down to -eps log(batch_size); both in units of their costs.
    n_features_in_ : int
        D.
    n_iter_ : int
        Steps made.

    Notes
    -----
    A step costs one pass through the network and three transport problems of batch_size² numbers (two without the gap),
    each of up to 100 sweeps. Samples may differ in number. Memory O(batch_size²) in training.

    References
    ----------
    T. Uscidda, M. Cuturi (2023), ICML, arXiv 2302.04953.

    Examples
    --------
    >>> X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> model = MongeMap(max_iter=5, batch_size=64).fit(X, X + 3)
    >>> model.transform(X).shape
    torch.Size([200, 2])
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        cost: CostLike = "sqeuclidean",
        lam: float = 1.0,
        fit_loss: str | FitLoss = "sinkhorn",
        form: Form | None = None,
        eps_fit: float = 0.05,
        eps_gap: float = 0.01,
        reference: str | Array | Sampler = "source",
        conservative: float = 0.0,
        hidden_sizes: Sequence[int] = (64, 64),
        max_iter: int = 500,
        batch_size: int = 256,
        learning_rate: float = 1e-2,
        random_state: int = 0,
    ) -> None:
        self.network = network
        self.cost: CostLike = cost
        self.lam = lam
        self.fit_loss: str | FitLoss = fit_loss
        self.form: Form | None = form
        self.eps_fit = eps_fit
        self.eps_gap = eps_gap
        self.reference: str | Array | Sampler = reference
        self.conservative = conservative
        self.hidden_sizes = hidden_sizes
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Array, Y: Array, source_weight: Tensor | None = None, target_weight: Tensor | None = None) -> Self:
        """Train on samples of source and target, which need not be paired nor as many.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            Source. T has its dtype (float32 or float64; anything else becomes float32) and, for a tensor, its device.
        Y : array or Tensor, shape (M, E)
            Target.
        source_weight, target_weight : Tensor, shapes (N,) and (M,), optional
            Positive weights; batches are drawn in proportion. Default: uniform.

        Returns
        -------
        MongeMap
            Itself, trained from the start.

        Raises
        ------
        ArgumentError
            If a parameter of the constructor is out of range or contradicts another, or a weight is not positive.
        ShapeError
            If the clouds are no matrices, or the form or the fit needs D = E.
        NumericalError
            If a point or the loss is NaN or infinite.

        Warns
        -----
        UserWarning
            If a batch has fewer than 32 points.
        """
        cost = as_cost(self.cost)
        source = points_of("MongeMap.fit", "X", X)
        target = points_of("MongeMap.fit", "Y", Y).to(source)
        form = self._checked_form(cost, source.shape[1], target.shape[1])
        weights = (
            weights_of("MongeMap.fit", "source_weight", source_weight, source),
            weights_of("MongeMap.fit", "target_weight", target_weight, target),
        )
        draws = Generator().manual_seed(self.random_state)
        module = self._module(form, cost, source, target, draws)
        objective = Objective(
            cost,
            module,
            source,
            target,
            lam=self.lam,
            fit_loss=None if isinstance(self.fit_loss, str) else self.fit_loss,
            eps_fit=self.eps_fit,
            eps_gap=self.eps_gap,
            conservative=self.conservative,
            generator=Generator(source.device).manual_seed(self.random_state),
        )
        reference = None if isinstance(self.reference, str) else self.reference
        batches = Batches((source, target), weights, self.batch_size, reference, draws)
        optimizer = torch.optim.Adam(module.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_iter)
        history: dict[str, list[float]] = {"fit": [], "gap": []}
        for step in range(self.max_iter):
            total, fit, gap = objective(*batches.draw())
            if not bool(torch.isfinite(total)):
                raise NumericalError(f"MongeMap.fit: the loss is {float(total)} at step {step}; lower learning_rate")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            history["fit"].append(float(fit.detach()))
            history["gap"].append(float(gap.detach()))
        self.module_ = module
        self.history_ = history
        self.n_features_in_ = source.shape[1]
        self.n_iter_ = self.max_iter
        sample = source[:GAP_POINTS]
        with torch.no_grad():
            self.monge_gap_ = float(monge_gap(sample, module(sample), cost, eps=0.0))
        return self

    def transform(self, X: ArrayT) -> ArrayT:
        """T(X).

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            Points, of the source or elsewhere. A tensor must be on the device of the fit.

        Returns
        -------
        array or Tensor, shape (N, E)
            Of the kind of X, in the dtype of the fit, without a graph; for gradients call ``module_``.

        Raises
        ------
        ArgumentError
            If the map was not fitted.
        ShapeError
            If X has not D columns.
        """
        if not hasattr(self, "module_"):
            raise ArgumentError("MongeMap: not fitted; call fit(X, Y) first")
        points = points_of("MongeMap", "X", X).to(self.module_.centre.dtype)
        if points.shape[1] != self.n_features_in_:
            raise ShapeError(f"MongeMap: expected X of shape (N, {self.n_features_in_}), got {tuple(points.shape)}")
        with torch.no_grad():
            mapped = self.module_(points)
        return mapped if isinstance(X, Tensor) else mapped.numpy()

    def predict(self, X: ArrayT) -> ArrayT:
        """T(X), under scikit-learn's other name for it.

        Parameters
        ----------
        X : array or Tensor, shape (N, D)
            Points.

        Returns
        -------
        array or Tensor, shape (N, E)
            As `transform`.
        """
        return self.transform(X)

    def score(self, X: Array, Y: Array) -> float:
        """Minus the Sinkhorn divergence of T(X) and Y: how well the images fit, not whether the map is optimal.

        Parameters
        ----------
        X, Y : array or Tensor, shapes (N, D) and (M, E)
            Samples not used in training. O((N + M)²) memory.

        Returns
        -------
        float
            In squared units of Y; higher is better, zero is best.
        """
        mapped = self.transform(points_of("MongeMap.score", "X", X))
        return -float(
            sinkhorn_divergence(mapped, points_of("MongeMap.score", "Y", Y).to(mapped), relative_eps=self.eps_fit)
        )

    def _checked_form(self, cost: Cost, inputs: int, outputs: int) -> Form:
        # refuses what cannot work before anything is built
        for name, low in (("lam", 0), ("conservative", 0), ("max_iter", 1), ("batch_size", 2)):
            if not getattr(self, name) >= low:
                raise ArgumentError(f"MongeMap: expected {name} >= {low}, got {getattr(self, name)}")
        for name in ("eps_fit", "eps_gap", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(f"MongeMap: expected {name} > 0, got {getattr(self, name)}")
        for name, value, word in (("fit_loss", self.fit_loss, "sinkhorn"), ("reference", self.reference, "source")):
            if isinstance(value, str) and value != word:
                raise ArgumentError(f"MongeMap: expected {name} {word!r} or something else than a name, got {value!r}")
        plain: Form = "residual" if inputs == outputs else "direct"
        form: Form = self.form or ("sphere" if isinstance(cost, Geodesic) else plain)
        if form not in ("residual", "structured", "sphere", "direct"):
            raise ArgumentError(f"MongeMap: there is no form {form!r}")
        if form != "direct" and inputs != outputs:
            raise ShapeError(
                f"MongeMap: the {form} form needs as many coordinates in as out, got {inputs} and {outputs}"
            )
        if self.conservative > 0 and form != "structured":
            raise ArgumentError('MongeMap: conservative needs form="structured": no other has a field to be a gradient')
        if form == "structured":
            cost.conjugate_gradient(torch.zeros(1, inputs))  # says so where the cost has none
        if self.batch_size < FEW_POINTS:
            warnings.warn(
                f"MongeMap: {self.batch_size} points a batch say little of the measures; raise batch_size to "
                f"{FEW_POINTS} or more",
                stacklevel=3,
            )
        return form

    def _module(self, form: Form, cost: Cost, source: Tensor, target: Tensor, draws: Generator) -> MapModule:
        if self.network is None:
            sizes = [source.shape[1], *self.hidden_sizes, target.shape[1]]
            # ∇h* may be flat at zero (p < 2), where training would never leave a network that starts there
            network: nn.Module = mlp(sizes, zero_last=form in ("residual", "sphere"), generator=draws)
        else:
            network = copy.deepcopy(self.network)
        centre, scale = source.mean(0), spread(source)
        if form == "sphere":
            centre, scale = torch.zeros_like(centre), torch.ones_like(scale)
        return MapModule(network, form, cost, centre, target.mean(0), scale).to(source)
