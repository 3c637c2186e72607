"""The layerwise learner in scikit-learn's shape."""

import copy
import math
import warnings
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from hesse._estimator import Estimator, as_generator, determination, like, sklearn_tags
from hesse._values import check_present
from hesse.errors import ArgumentError, ShapeError
from hesse.nn.hierarchical.features import InnerName, check_inner, draw_directions, inner_features
from hesse.nn.hierarchical.network import LayerwiseNetwork, refine_network
from hesse.nn.hierarchical.stages import ridge_path, stage1_cg, stage1_gd, stage2
from hesse.nn.hierarchical.whitening import Whitening, WhitenName

__all__ = ["HierarchicalPolynomialRegressor", "NotIdentifiableWarning"]

Solver = Literal["ridge", "gd", "cg"]
_INNER_GRID = torch.logspace(2, -6, 25, dtype=torch.float64)
_LEAST = 1e-12  # of the mean eigenvalue: where the grid is extended no further
_OUTER_GRID = torch.logspace(0, -5, 20, dtype=torch.float64)  # smaller ones only let the tails of the link run wild


class NotIdentifiableWarning(UserWarning):
    """The first stage found no feature: the link may have no linear part, or the samples may be too few.

    An even link need not raise it. The degree-2 part of (xᵀA x)² is 4 xᵀA²x, of a share of the variance about 4/d for a
    flat spectrum: a true feature, which is then found in place of xᵀA x.
    """


class HierarchicalPolynomialRegressor(Estimator):
    """y = g(p(x)) with a polynomial p of degree k, from about d^k samples where kernels need d^(k deg g).

    f(x) = Σ_i a_i ReLU(±q(x) + b_i) + f_0,   q = <w, s2(V x)> standardised, V random and frozen. First w by ridge
    regression of y on the frozen features: by Stein's identity the degree-k part of g(p) is E[g'] p, up to O(d^-1/2).
    Then a, by ridge regression on random bumps of q. Both stages are convex; nothing is tuned by hand.

    Made for inputs like N(0, I), a p spread over many terms, and a link with a linear part. Cost: O(N M min(N, M)) with
    M inner features.

    Parameters
    ----------
    degree : int, default 2
        k, of the polynomial.
    inner : {"hermite", "mixed", "relu", "softplus", "exact"}, default "hermite"
        The frozen layer, see `inner_features`.
    n_inner : int, optional
        M. Default: 2 d² for k = 2, min(8000, d³) for k = 3, 4 d for k = 1: about twice the polynomials of degree k.
    n_outer : int, default 200
        Bumps of the second stage.
    solver : {"ridge", "gd", "cg"}, default "ridge"
        Of the first stage: closed form; the gradient steps whose limit it is, 1 / (η λ) of them; conjugate gradients,
        for so many features that no Gram matrix fits, with a penalty given in ``alpha_inner``.
    split : bool, default True
        Fit the second stage on the other half of the samples, as the theory has it. False uses all samples for both,
        with leave-one-out values of the feature in the second (so not with "gd" or "cg"): better in practice.
    refine : int, default 0
        Steps of joint training of all but the frozen layer afterwards, stopped early on a fifth of the samples, which
        the two stages then do not see. 300 take the error far down.
    alpha_inner, alpha_outer : float or "cv", default "cv"
        Penalties of the two stages, λ in H^T H / N + λ I; "cv" picks by leave-one-out error, from a grid that is
        extended where its edge is best.
    bias_range : float, default 3.0
        Biases of the bumps are uniform in ± this: q has unit variance.
    whiten : {False, "zca", "gaussianize"}, default False
        What to do to the inputs first, see `Whitening`.
    clip : bool, optional
        Hold q to the range that the second stage was fitted on. Beyond it the bumps go on linearly, with slopes that a
        few samples set: with a few hundred samples that alone can cost a hundred times the variance. Default: without
        ``refine``, which trains those slopes; refined networks extrapolate better than they clip.
    random_state : int or torch.Generator, optional
        Of V, the biases and the split.

    Attributes
    ----------
    network_ : LayerwiseNetwork
        The fitted network, behind the whitening.
    stage1_score_ : float
        Leave-one-out (for "gd" and "cg": training) R² of the first stage.
    alpha_inner_, alpha_outer_ : float
        As used.
    fit_path_ : dict
        Errors of both stages for every penalty tried, and held-out errors of the refinement.
    n_features_in_ : int
        d.

    References
    ----------
    Z. Wang, E. Nichani, J. D. Lee (2024), Learning Hierarchical Polynomials with Three-Layer Neural Networks, ICLR,
    arXiv 2311.13774.

    Examples
    --------
    >>> x = torch.randn(800, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> p = (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] + x[:, 4] * x[:, 5]) / 3**0.5
    >>> model = HierarchicalPolynomialRegressor(split=False, random_state=0).fit(x, torch.tanh(p))
    >>> bool(torch.corrcoef(torch.stack([model.feature(x), p]))[0, 1].abs() > 0.95)
    True
    """

    network_: LayerwiseNetwork
    stage1_score_: float
    alpha_inner_: float
    alpha_outer_: float
    fit_path_: dict[str, list[float]]
    n_features_in_: int

    def __init__(
        self,
        degree: int = 2,
        inner: InnerName = "hermite",
        n_inner: int | None = None,
        n_outer: int = 200,
        solver: Solver = "ridge",
        split: bool = True,
        refine: int = 0,
        alpha_inner: float | Literal["cv"] = "cv",
        alpha_outer: float | Literal["cv"] = "cv",
        bias_range: float = 3.0,
        whiten: WhitenName | Literal[False] = False,
        clip: bool | None = None,
        random_state: int | Generator | None = None,
    ) -> None:
        self.degree = degree
        self.inner: InnerName = inner
        self.n_inner = n_inner
        self.n_outer = n_outer
        self.solver: Solver = solver
        self.split = split
        self.refine = refine
        self.alpha_inner: float | Literal["cv"] = alpha_inner
        self.alpha_outer: float | Literal["cv"] = alpha_outer
        self.bias_range = bias_range
        self.whiten: WhitenName | Literal[False] = whiten
        self.clip = clip
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the polynomial, then the function of it.

        Parameters
        ----------
        X : array or Tensor, shape (N, d)
            Inputs.
        y : array or Tensor, shape (N,)
            Targets.

        Returns
        -------
        HierarchicalPolynomialRegressor
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, or the data hold NaN or infinity.
        ShapeError
            If X and y do not fit together, or are too few.

        Warns
        -----
        NotIdentifiableWarning
            If the first stage explains less than 1 % of the variance of samples it has not seen.
        UserWarning
            If the inputs are far from N(0, I), or the samples fewer than the polynomials of degree k over four.
        """
        self._validate()
        points, values = _data(X, y)
        generator = as_generator(self.random_state, points.device)
        self.n_features_in_ = points.shape[1]
        self._whitening = Whitening.of(points, self.whiten or None)
        x = self._whitening(points)
        self._warn_of(x)
        order = torch.randperm(len(x), generator=generator, device=x.device)
        held = order[: len(x) // 5] if self.refine else order[:0]
        rest = order[len(held) :]
        half = len(rest) // 2
        first, second = (rest[:half], rest[half:]) if self.split else (rest, rest)
        V = draw_directions(self._width(x.shape[1]), x.shape[1], generator, x)
        H = inner_features(x, V, self.degree, self.inner)
        self.fit_path_ = {}
        w, q = self._first_stage(H, values, first, second)
        spread = q.std()
        scale = spread if bool(spread > 1e-12 * values.abs().amax()) else torch.ones_like(spread)
        center = q.mean() / scale
        biases = self.bias_range * (
            2 * torch.rand(self.n_outer, generator=generator, dtype=x.dtype, device=x.device) - 1
        )
        signs = torch.ones_like(biases)
        signs[1::2] = -1
        grid = _OUTER_GRID if self.alpha_outer == "cv" else torch.tensor([float(self.alpha_outer)], dtype=torch.float64)
        q = q / scale - center
        outer, shift, path = stage2(q, values[second], signs, biases, grid.to(x))
        self._range = float(q.min()), float(q.max())
        self.alpha_outer_ = path.lam
        self.fit_path_["outer"] = path.errors.tolist()
        net = LayerwiseNetwork(V, w / scale, center, signs, biases, outer, shift, self.degree, self.inner)
        if self.refine:
            net, errors = refine_network(net, H[rest], values[rest], H[held], values[held], self.refine)
            self.fit_path_["refinement"] = errors
        self.network_ = net.requires_grad_(False)
        return self

    def predict(self, X: Any) -> Any:
        """Predict y.

        Parameters
        ----------
        X : array or Tensor, shape (M, d)
            Inputs.

        Returns
        -------
        array or Tensor, shape (M,)
            As X came.
        """
        q = self._feature(X, "predict")
        held = not self.refine if self.clip is None else self.clip
        return like(X, self.network_.link(q.clamp(*self._range) if held else q))

    def feature(self, X: Any) -> Any:
        """Evaluate q, the learnt polynomial, of mean 0 and variance 1 on the training data; its sign is arbitrary.

        Parameters
        ----------
        X : array or Tensor, shape (M, d)
            Inputs.

        Returns
        -------
        array or Tensor, shape (M,)
            q(x).
        """
        return like(X, self._feature(X, "feature"))

    def link(self, z: Any) -> Any:
        """Evaluate g, the learnt function of the feature.

        Parameters
        ----------
        z : array or Tensor, shape (M,)
            Values of q.

        Returns
        -------
        array or Tensor, shape (M,)
            g(z).
        """
        self._check_fitted("link")
        return like(z, self.network_.link(torch.as_tensor(z, dtype=torch.float64, device=self._device)))

    def score(self, X: Any, y: Any) -> float:
        """Coefficient of determination, 1 - Σ (y - prediction)² / Σ (y - mean y)².

        Parameters
        ----------
        X : array or Tensor, shape (M, d)
            Inputs.
        y : array or Tensor, shape (M,)
            Targets.

        Returns
        -------
        float
            At most 1.
        """
        points, values = _data(X, y, least=1)
        return determination(torch.as_tensor(self.predict(points)).to(values), values)

    def to_module(self) -> LayerwiseNetwork:
        """Hand out the network, trainable: its inputs are those after whitening, and it clips nothing.

        Returns
        -------
        LayerwiseNetwork
            A copy, in float64.
        """
        self._check_fitted("to_module")
        return copy.deepcopy(self.network_).requires_grad_(True)

    def _first_stage(self, H: Tensor, values: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        # w, and the feature at the points of the second stage
        A, target = H[first], values[first] - values[first].mean()
        means = A.mean(0)
        A = A - means
        size = A.square().sum(1).mean() / min(A.shape)  # mean eigenvalue: penalties are in its units
        if self.solver == "cg":
            lam = float(self.alpha_inner)
            w = stage1_cg(A, target, lam)
            fitted = A @ w
        else:
            grid = _INNER_GRID.to(A) * size if self.alpha_inner == "cv" else A.new_tensor([float(self.alpha_inner)])
            path = ridge_path(A, target, grid)
            while self.alpha_inner == "cv" and path.best == len(grid) - 1 and float(path.lams[-1] / size) > _LEAST:
                path = ridge_path(A, target, path.lams * 1e-4)
            self.fit_path_["inner"] = path.errors.tolist()
            lam, w, fitted = path.lam, path.weights, path.left_out
        if self.solver == "gd":
            top = float(torch.linalg.matrix_norm(A, 2)) ** 2 / len(A) + lam
            w = stage1_gd(A, target, lam, step_size=1 / top, max_steps=math.ceil(top / lam))
            fitted = A @ w
        self.alpha_inner_ = lam
        total = float(target.square().sum())
        self.stage1_score_ = 1 - float((target - fitted).square().sum()) / total if total > 0 else 0.0
        if self.stage1_score_ < 0.01:
            warnings.warn(
                f"HierarchicalPolynomialRegressor: the first stage explains {self.stage1_score_:.1%} of samples it has "
                "not seen: there may be no polynomial of this degree with a linear link, or too few samples",
                NotIdentifiableWarning,
                stacklevel=4,
            )
        return w, H[second] @ w if self.split else fitted + means @ w

    def _width(self, dim: int) -> int:
        if self.n_inner is not None:
            return self.n_inner
        return {1: 4 * dim, 2: 2 * dim**2}.get(self.degree, min(8000, dim**self.degree))

    def _feature(self, X: Any, call: str) -> Tensor:
        self._check_fitted(call)
        points = _points(X, f"{type(self).__name__}.{call}")
        if points.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"{type(self).__name__}.{call}: X has {points.shape[1]} features, but "
                f"{type(self).__name__} is expecting {self.n_features_in_} features as input"
            )
        inner = self.network_.inner_layer(self._whitening(points.to(self._device)))
        return self.network_.feature_of(inner)

    @property
    def _device(self) -> torch.device:
        return self.network_.biases.device

    def _validate(self) -> None:
        check_inner(self.inner, self.degree)
        for name, least in (("n_inner", 1), ("n_outer", 2), ("refine", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | np.integer) or value < least):
                raise ArgumentError(f"{name}: expected a whole number >= {least}, got {value!r}")
        if self.solver not in ("ridge", "gd", "cg"):
            raise ArgumentError(f"solver: expected ridge, gd or cg, got {self.solver!r}")
        for name in ("alpha_inner", "alpha_outer"):
            value = getattr(self, name)
            if value != "cv" and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ArgumentError(f"{name}: expected 'cv' or a number > 0, got {value!r}")
        if self.solver == "cg" and self.alpha_inner == "cv":
            raise ArgumentError("alpha_inner: solver='cg' has no path of penalties; give a number")
        if self.solver != "ridge" and not self.split:
            raise ArgumentError("split: False needs leave-one-out values, which only solver='ridge' has")
        if not 0 < self.bias_range < math.inf:
            raise ArgumentError(f"bias_range: expected > 0, got {self.bias_range!r}")

    def _warn_of(self, x: Tensor) -> None:
        mean, variance = x.mean(0), x.var(0)
        fourth = (x - mean).pow(4).mean(0) / variance.square().clamp(min=1e-30)
        if bool((mean.abs() > 0.5).any() | (variance < 0.5).any() | (variance > 2).any() | (fourth > 9).any()):
            warnings.warn(
                "HierarchicalPolynomialRegressor: some inputs are far from N(0, 1); try whiten='zca' or 'gaussianize'",
                UserWarning,
                stacklevel=3,
            )
        needed = math.comb(x.shape[1] + self.degree - 1, self.degree) / 4
        if len(x) < needed:
            warnings.warn(
                f"HierarchicalPolynomialRegressor: {len(x)} samples are below the d^k regime of degree {self.degree} "
                f"in {x.shape[1]} dimensions ({needed:.0f} at least)",
                UserWarning,
                stacklevel=3,
            )

    def _check_fitted(self, call: str) -> None:
        if not hasattr(self, "network_"):
            raise ArgumentError(f"{type(self).__name__}.{call}: call fit first")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def __sklearn_tags__(self) -> Any:
        return sklearn_tags("regressor", poor_score=True, non_deterministic=self.random_state is None)


def _points(X: Any, call: str) -> Tensor:
    points = torch.as_tensor(np.asarray(X) if not isinstance(X, Tensor) else X)
    if points.ndim != 2 or points.numel() == 0:
        raise ShapeError(f"{call}: expected X of shape (N, d), got {tuple(points.shape)}")
    if points.is_complex():
        raise ArgumentError(f"{call}: Complex data not supported")
    check_present(call, "X", points)
    points = points.detach().to(torch.float64)
    if not bool(torch.isfinite(points).all()):
        raise ArgumentError(f"{call}: X holds NaN or infinity")
    return points


def _data(X: Any, y: Any, least: int = 10) -> tuple[Tensor, Tensor]:
    call = "HierarchicalPolynomialRegressor"
    points = _points(X, call)
    if y is None:
        raise ArgumentError(f"{call}: it requires y to be passed, but the target y is None")
    values = torch.as_tensor(np.asarray(y) if not isinstance(y, Tensor) else y).detach().to(points)
    if values.shape != points.shape[:1]:
        raise ShapeError(f"{call}: y has shape {tuple(values.shape)}, expected ({len(points)},)")
    if not bool(torch.isfinite(values).all()):
        raise ArgumentError(f"{call}: y holds NaN or infinity")
    if len(points) < least:
        raise ShapeError(f"{call}: {len(points)} samples are too few; {least} are needed at least")
    return points, values
