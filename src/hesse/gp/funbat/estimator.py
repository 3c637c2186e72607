"""FunBaT as an estimator: values at points with continuous coordinates in, a low-rank function with errors out."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from hesse._estimator import Estimator, as_generator, determination, like, sklearn_tags
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.gp.funbat.coordinates import Scaling, as_points, as_values, distinct
from hesse.gp.funbat.inference import Entries, Form, Posterior, other_moments, start, sweep
from hesse.gp.funbat.matern import MaternSSM
from hesse.gp.funbat.streaming import absorb, pick, read

__all__ = ["FunBaT"]

_MOST_CORE = 4096  # entries of a core: its covariance is a dense matrix of that order
_STRETCH = 4096  # points predicted at a time
_UNSETTLED = 1e-2


class FunBaT(Estimator):
    """Functional Bayesian Tucker: y(x_1 … x_K) = vec(W)ᵀ(U_1(x_1) ⊗ … ⊗ U_K(x_K)) + noise, U_k Gaussian processes.

    A tensor whose indices are real numbers. Every component of U_k has a Matérn prior, in its exact state-space form;
    vec(W) ~ N(0, I); noise N(0, 1/tau) with tau ~ Gamma. The posterior is approximated by independent q(U_k), q(W) and
    q(tau), each update exact given the others. Predictions have the variance of the factorised posterior, which leaves
    out that factors and core vary together, plus that of the noise.

    A sweep costs O(N Π R_k² + Σ T_k (R_k (nu + 1/2))³) with T_k <= N distinct coordinates, O(N R²) memory: linear in N.

    Parameters
    ----------
    rank : int or sequence of int, default 3
        R_k, components a mode; one number for all, in the CP form the only choice.
    form : {"tucker", "cp"}, default "tucker"
        "cp" fixes W to a superdiagonal of ones, Σ_r Π_k u_kr(x_k): cheaper, and for many modes the only feasible one.
    nu : {0.5, 1.5, 2.5}, default 1.5
        Smoothness of the functions; 0.5 for rough data.
    lengthscale : float, default 0.3
        Of the prior, in units of each mode's range: coordinates are brought to [0, 1].
    variance : float, default 1.0
        Of the prior of each function; values are brought to mean square 1.
    noise_prior : (float, float), default (1e-3, 1e-3)
        a0 and b0 of tau ~ Gamma(a0, b0), for scaled values: next to nothing is said.
    damping : float, default 0.2
        Part of the old messages kept in each sweep, in [0, 1). With 0 the bound rises in every sweep.
    max_iter : int, default 40
        Sweeps.
    tol : float, default 1e-5
        Stop when E[tau], factor and core means all change by less, relative to themselves.
    n_restarts : int, default 3
        Random starts run side by side; that of highest bound is kept. Some starts lose a component for good.
    learn_hyper : bool, default False
        Whether length scale and variance of each mode climb the bound, a gradient step a sweep.
    center : bool, optional
        Whether to subtract the mean of y. It is not for free: a constant is one more component of every mode, and a
        tensor of rank R less its mean has rank R + 1. Default: only if the mean is larger than the spread about it.
    random_state : int or torch.Generator, optional
        Of the starts. Default: torch's global generator.

    Attributes
    ----------
    core_ : array, shape (R_1, …, R_K)
        E[W]. Determined up to rotations between core and factors: compare predictions, not factors.
    noise_ : float
        Standard deviation of the noise, 1/√E[tau], in units of y.
    elbo_ : float
        Evidence bound in nats, of the values in their own units; after `partial_fit` that of the last batch.
    elbo_history_ : list of float
        After every sweep, of the restart that was kept.
    lengthscale_, variance_ : tuple of float
        One a mode, as fixed or learnt.
    n_iter_ : int
        Sweeps made.
    converged_ : bool
        Whether ``tol`` was reached.
    n_features_in_ : int
        K.

    References
    ----------
    S. Fang, X. Yu, Z. Wang, S. Li, R. M. Kirby, S. Zhe (2024), ICLR, arXiv 2311.04829.

    Examples
    --------
    >>> X = torch.rand(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> y = torch.sin(6 * X[:, 0]) * torch.cos(6 * X[:, 1])
    >>> model = FunBaT(rank=1, random_state=0).fit(X, y)
    >>> bool((model.predict(X) - y).abs().max() < 0.05)
    True
    """

    n_iter_: int
    converged_: bool
    n_features_in_: int
    elbo_: float
    elbo_history_: list[float]

    def __init__(
        self,
        rank: int | Sequence[int] = 3,
        form: Form = "tucker",
        nu: float = 1.5,
        lengthscale: float = 0.3,
        variance: float = 1.0,
        noise_prior: tuple[float, float] = (1e-3, 1e-3),
        damping: float = 0.2,
        max_iter: int = 40,
        tol: float = 1e-5,
        n_restarts: int = 3,
        learn_hyper: bool = False,
        center: bool | None = None,
        random_state: int | Generator | None = None,
    ) -> None:
        self.rank = rank
        self.form: Form = form
        self.nu = nu
        self.lengthscale = lengthscale
        self.variance = variance
        self.noise_prior = noise_prior
        self.damping = damping
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.learn_hyper = learn_hyper
        self.center = center
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Infer factors, core and noise from scattered entries.

        Parameters
        ----------
        X : array or Tensor, shape (N, K)
            Coordinates in any units. Equal ones of a mode, and those closer than 1e-9 of its range, are one.
        y : array or Tensor, shape (N,)
            Values; several at one point are fine.

        Returns
        -------
        FunBaT
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, the core has more than 4096 entries, X has NaN or infinity, or y infinity.
        ShapeError
            If X and y do not fit together.
        ArgumentTypeError
            If X is sparse, or of objects that are no numbers.
        NumericalError
            If the inference overflows.

        Warns
        -----
        UserWarning
            If values are NaN (their entries are dropped), a mode has one coordinate only (its factor is a constant),
            or the last sweep still changed something by more than 1 %.
        """
        points, values = _entries("FunBaT.fit", X, y)
        ranks = self._validate(points.shape[1])
        scaling = Scaling.of(points, values, self.center)
        merged = [distinct(column) for column in scaling.points(points).T]
        if single := [k for k, (times, _) in enumerate(merged) if len(times) == 1 and len(values) > 1]:
            warnings.warn(
                f"FunBaT.fit: mode {single[0]} has one distinct coordinate; its factor is a constant",
                UserWarning,
                stacklevel=2,
            )
        ones = points.new_ones(self.n_restarts)
        ssm = MaternSSM(self.nu, self.lengthscale * ones, self.variance * ones)
        generator = as_generator(self.random_state, points.device)
        begin = start(
            [times for times, _ in merged],
            ranks,
            self.form,
            [ssm] * len(ranks),
            (float(self.noise_prior[0]), float(self.noise_prior[1])),
            self.n_restarts,
            generator,
        )
        self._scaling = scaling
        self._as_numpy = not isinstance(X, Tensor)
        self.n_features_in_ = points.shape[1]
        self._run(begin, Entries(scaling.values(values), tuple(place for _, place in merged)))
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Take in further entries without the earlier ones: their messages stay, the new entries add to them.

        The first call is `fit`. A later one starts from the posterior so far, whose natural parameters act as the
        prior, and sweeps over the new entries only, in time that does not depend on how many there were (but on the
        number of distinct coordinates). Approximate: earlier messages are not refined in the light of later entries.
        The scaling of coordinates and values stays that of the first call.

        Parameters
        ----------
        X : array or Tensor, shape (N, K)
            Coordinates of the new entries; new values of a coordinate are inserted.
        y : array or Tensor, shape (N,)
            Values.

        Returns
        -------
        FunBaT
            Itself.

        Raises
        ------
        ShapeError
            If X has another number of modes than before.
        ArgumentError
            As for `fit`.
        ArgumentTypeError
            If X is sparse, or of objects that are no numbers.
        NumericalError
            If the inference overflows.
        """
        if not hasattr(self, "_posterior"):
            return self.fit(X, y)
        points, values = _entries("FunBaT.partial_fit", X, y)
        self._validate(points.shape[1])
        self._check_modes("FunBaT.partial_fit", points)
        begin, index = absorb(self._posterior, self._scaling.points(points))
        self._run(begin, Entries(self._scaling.values(values), index))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean of y at any points, and its standard deviation.

        Exact moments of the product of independent core and factors. Away from all data they return to the prior's:
        the mean that was subtracted, and the spread of the prior.

        Parameters
        ----------
        X : array or Tensor, shape (M, K)
            Coordinates, inside the range of the data or not.
        return_std : bool, default False
            Whether to return the standard deviation of a new observation, noise included, as well.

        Returns
        -------
        array of shape (M,), or two of them
            In units of y; tensors in the dtype of X if X is a floating tensor, NumPy arrays otherwise.

        Raises
        ------
        ArgumentError
            If `fit` was not called, or X has NaN or infinity.
        ShapeError
            If X has another number of modes than in `fit`.
        """
        self._check_fitted("predict")
        points = as_points("FunBaT.predict", X)
        self._check_modes("FunBaT.predict", points)
        posterior, scaling = self._posterior, self._scaling
        points = scaling.points(points.to(scaling.low.device))
        means, variances = [], []
        for some in points.split(_STRETCH):
            moments = []
            for factor, column in zip(posterior.factors, some.T, strict=True):
                times, place = column.unique(return_inverse=True)
                mean, covariance = read(factor, times)
                moments.append((mean[:, place], (covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2))[:, place]))
            first, second = ([pair[i] for pair in moments] for i in (0, 1))
            weight, spread = other_moments(first, second, posterior.core, 0)
            mean = (weight * first[0]).sum(-1)[0]
            means.append(mean)
            variances.append(((spread * second[0]).sum((-2, -1))[0] - mean.square()).clamp(min=0.0))
        mean = torch.cat(means) * scaling.scale + scaling.center
        if not return_std:
            return like(X, mean)
        std = (torch.cat(variances) + 1 / posterior.noise.mean[0]).sqrt() * scaling.scale
        return like(X, mean), like(X, std)

    def score(self, X: Any, y: Any) -> float:
        """Coefficient of determination, 1 - Σ (y - prediction)² / Σ (y - mean y)².

        Parameters
        ----------
        X : array or Tensor, shape (M, K)
            Coordinates.
        y : array or Tensor, shape (M,)
            Values.

        Returns
        -------
        float
            At most 1; 0 for a constant.
        """
        values = as_values("FunBaT.score", y, as_points("FunBaT.score", X))
        return determination(torch.as_tensor(self.predict(X)).to(values), values)

    def factor(self, mode: int, t: Any) -> tuple[Any, Any]:
        """Posterior of the functions of one mode, in the scaled units of the model.

        Parameters
        ----------
        mode : int
            k, from 0; negative ones from the end.
        t : array or Tensor, shape (T,)
            Coordinates of that mode, in units of X.

        Returns
        -------
        tuple of arrays, shapes (T, R_k) and (T, R_k, R_k)
            Means and covariances.

        Raises
        ------
        ArgumentError
            If `fit` was not called or there is no such mode.
        """
        self._check_fitted("factor")
        if not -self.n_features_in_ <= mode < self.n_features_in_:
            raise ArgumentError(f"FunBaT.factor: there are {self.n_features_in_} modes, no mode {mode}")
        column = as_points("FunBaT.factor", torch.as_tensor(t).unsqueeze(-1)).squeeze(-1)
        low, span = self._scaling.low[mode], self._scaling.span[mode]
        mean, covariance = read(self._posterior.factors[mode], (column.to(low.device) - low) / span)
        return like(t, mean[0]), like(t, covariance[0])

    @property
    def core_(self) -> Any:
        """E[W]."""
        self._check_fitted("core_")
        core = self._posterior.core
        if core.is_cp:
            found = core.mean.new_zeros(core.ranks)
            for r in range(core.ranks[0]):
                found[(r,) * len(core.ranks)] = 1.0
        else:
            found = core.mean[0].reshape(core.ranks)
        return found.numpy(force=True) if self._as_numpy else found

    @property
    def noise_(self) -> float:
        """Standard deviation of the noise."""
        self._check_fitted("noise_")
        return float(self._scaling.scale / self._posterior.noise.mean[0].sqrt())

    @property
    def lengthscale_(self) -> tuple[float, ...]:
        """Length scale of each mode."""
        self._check_fitted("lengthscale_")
        return tuple(float(torch.as_tensor(f.ssm.lengthscale)[0]) for f in self._posterior.factors)

    @property
    def variance_(self) -> tuple[float, ...]:
        """Prior variance of each mode."""
        self._check_fitted("variance_")
        return tuple(float(torch.as_tensor(f.ssm.variance)[0]) for f in self._posterior.factors)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_posterior")

    def __sklearn_tags__(self) -> Any:
        return sklearn_tags("regressor", poor_score=True, non_deterministic=self.random_state is None)

    def _run(self, posterior: Posterior, entries: Entries) -> None:
        history = []
        steps = 0
        for steps in range(1, self.max_iter + 1):  # noqa: B007 - the count is wanted after the loop
            posterior = sweep(posterior, entries, self.damping, learn_hyper=self.learn_hyper)
            history.append(posterior.bound)
            if bool((posterior.change < self.tol).all()):
                break
        bounds = posterior.bound.nan_to_num(nan=-math.inf)
        best = int(bounds.argmax())
        if not math.isfinite(float(bounds[best])):
            raise NumericalError("FunBaT: the inference overflowed in every restart; raise damping or the lengthscale")
        units = len(entries.y) * float(self._scaling.scale.log())
        self._posterior = pick(posterior, best)
        self.elbo_history_ = [float(bound[best]) - units for bound in history]
        self.elbo_ = self.elbo_history_[-1]
        self.n_iter_ = steps
        self.converged_ = bool(posterior.change[best] < self.tol)
        if bool(posterior.change[best] > _UNSETTLED):
            warnings.warn(
                f"FunBaT: the last of {steps} sweeps changed a mean or E[tau] by {float(posterior.change[best]):.2g}, "
                f"relative to itself; raise max_iter or lower damping",
                UserWarning,
                stacklevel=3,
            )

    def _validate(self, num_modes: int) -> tuple[int, ...]:
        ranks = (self.rank,) * num_modes if isinstance(self.rank, int | np.integer) else tuple(self.rank)
        if len(ranks) != num_modes or any(not isinstance(r, int | np.integer) or r < 1 for r in ranks):
            raise ArgumentError(f"FunBaT: expected rank >= 1, or one a mode for {num_modes} modes, got {self.rank!r}")
        if self.form not in ("tucker", "cp"):
            raise ArgumentError(f"FunBaT: expected form 'tucker' or 'cp', got {self.form!r}")
        if self.form == "cp" and len(set(ranks)) > 1:
            raise ArgumentError(f"FunBaT: the CP form has one rank for all modes, got {ranks}")
        if self.form == "tucker" and math.prod(ranks) > _MOST_CORE:
            raise ArgumentError(
                f"FunBaT: a core of ranks {ranks} has {math.prod(ranks)} entries, more than {_MOST_CORE}; lower the "
                "ranks or use form='cp'"
            )
        for name, least in (("max_iter", 1), ("n_restarts", 1)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ArgumentError(f"FunBaT: expected an integer {name} >= {least}, got {value!r}")
        if not 0 <= self.damping < 1:
            raise ArgumentError(f"FunBaT: expected damping in [0, 1), got {self.damping!r}")
        if not self.tol >= 0:
            raise ArgumentError(f"FunBaT: expected tol >= 0, got {self.tol!r}")
        if len(self.noise_prior) != 2 or not all(0 < v < math.inf for v in self.noise_prior):
            raise ArgumentError(f"FunBaT: expected two positive numbers noise_prior, got {self.noise_prior!r}")
        MaternSSM(self.nu, self.lengthscale, self.variance)  # says what is wrong with them
        return tuple(int(r) for r in ranks)

    def _check_fitted(self, call: str) -> None:
        if not hasattr(self, "_posterior"):
            raise ArgumentError(f"FunBaT.{call}: call fit first")

    def _check_modes(self, call: str, points: Tensor) -> None:
        if points.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"{call}: X has {points.shape[1]} features, but FunBaT is expecting {self.n_features_in_} features as "
                "input, one a mode"
            )


def _entries(call: str, X: Any, y: Any) -> tuple[Tensor, Tensor]:
    points = as_points(call, X)
    values = as_values(call, y, points)
    known = ~torch.isnan(values)
    if not bool(known.all()):
        if not bool(known.any()):
            raise ArgumentError(f"{call}: every value of y is NaN")
        warnings.warn(
            f"{call}: {int((~known).sum())} of {len(values)} values are NaN and are left out", UserWarning, stacklevel=3
        )
    return points[known], values[known]
