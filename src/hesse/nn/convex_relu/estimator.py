"""Convex two-layer ReLU networks in scikit-learn's shape: no learning rate, no seed lottery, and a certificate.

Shapes: N rows, E features, D = E + 1 columns with the bias, T targets (one a class where there are more than two).
"""

from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Generator, Tensor, nn

from hesse._estimator import Estimator, as_generator, determination, sklearn_tags
from hesse._values import check_present
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.nn.convex_relu.fitting import Fit, fit_admm, fit_exact, fit_robust, fit_sampled, refined_patterns
from hesse.nn.convex_relu.losses import LossName
from hesse.nn.convex_relu.network import network_objective, network_outputs
from hesse.nn.convex_relu.patterns import sample_patterns
from hesse.nn.convex_relu.scp import dual_bound, duality_certificate

__all__ = ["ConvexReLUClassifier", "ConvexReLURegressor", "SolverName"]

SolverName = Literal["admm", "scp", "exact"]
"""How to solve: splitting, sampled neurons, or interior points."""


class _ConvexReLU(Estimator):
    """What both estimators share."""

    hidden_: Tensor
    output_: Tensor
    objective_: float
    gap_: float
    duality_certificate_: float
    n_neurons_: int
    n_feasible_patterns_: int
    n_features_in_: int
    n_iter_: int
    converged_: bool
    history_: Tensor | None
    patterns_: Tensor | None

    def __init__(
        self,
        n_patterns: int = 200,
        beta: float = 1e-2,
        loss: LossName = "squared",
        solver: SolverName = "admm",
        robust_eps: float = 0.0,
        fit_intercept: bool = True,
        rho: float = 0.1,
        max_iter: int = 1000,
        tol: float = 1e-4,
        refine: int = 0,
        random_state: int | Generator | None = None,
    ) -> None:
        self.n_patterns = n_patterns
        self.beta = beta
        self.loss: LossName = loss
        self.solver: SolverName = solver
        self.robust_eps = robust_eps
        self.fit_intercept = fit_intercept
        self.rho = rho
        self.max_iter = max_iter
        self.tol = tol
        self.refine = refine
        self.random_state = random_state

    def to_module(self) -> nn.Sequential:
        """Copy the network as Linear, ReLU, Linear; features in, T outputs out.

        Returns
        -------
        nn.Sequential
            The bias of the hidden layer is the last column of ``hidden_``; the output layer has none.

        Raises
        ------
        ArgumentError
            If `fit` was not called.
        """
        self._require_fit()
        first = nn.Linear(self.n_features_in_, max(1, self.n_neurons_), bias=self.fit_intercept)
        last = nn.Linear(max(1, self.n_neurons_), self.output_.shape[1], bias=False)
        module = nn.Sequential(first, nn.ReLU(), last).to(self.hidden_)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            first.weight[: self.n_neurons_] = self.hidden_[:, : self.n_features_in_]
            if self.fit_intercept:
                first.bias[: self.n_neurons_] = self.hidden_[:, -1]
            last.weight[:, : self.n_neurons_] = self.output_.mT
        return module

    def _require_fit(self) -> None:
        if not hasattr(self, "hidden_"):
            raise ArgumentError(f"{type(self).__name__}: call fit first")

    def _outputs(self, X: Any) -> Tensor:
        self._require_fit()
        rows = _as_rows(type(self).__name__, X)
        if rows.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        rows = rows.to(self.hidden_)
        return network_outputs(_with_ones(rows) if self.fit_intercept else rows, self.hidden_, self.output_)

    def _fit(self, rows: Tensor, targets: Tensor) -> None:
        """Fit all columns of targets (N, T) and write down what was learnt."""
        self._check_parameters()
        generator = as_generator(self.random_state, rows.device)
        self.n_features_in_ = rows.shape[1]
        X = _with_ones(rows) if self.fit_intercept else rows
        self.history_, self.patterns_ = None, None
        objective = None
        if self.robust_eps > 0:
            self.patterns_, fits, objective = fit_robust(
                *(X, targets, self.robust_eps),
                num_hyperplanes=self.n_patterns,
                beta=self.beta,
                loss=self.loss,
                tol=self.tol,
                intercept=self.fit_intercept,
                generator=generator,
            )
        elif self.solver == "scp":
            fits = fit_sampled(
                X, targets, beta=self.beta, loss=self.loss, tol=self.tol, max_steps=self.max_iter, generator=generator
            )
        else:
            self.patterns_ = sample_patterns(X, self.n_patterns, generator=generator)
            fits = self._fit_patterns(X, targets, self.patterns_)
            for _ in range(self.refine):
                self.patterns_ = refined_patterns(X, self.patterns_, fits, generator)
                fits = self._fit_patterns(X, targets, self.patterns_)
        self.hidden_ = torch.cat([fit.hidden for fit in fits])
        self.output_ = torch.block_diag(*[fit.output.unsqueeze(1) for fit in fits]).reshape(-1, len(fits)).to(X)
        self.n_neurons_ = len(self.hidden_)
        self.converged_ = all(fit.converged for fit in fits)
        self.n_iter_ = max(fit.num_steps for fit in fits)
        self.n_feasible_patterns_ = 0 if self.patterns_ is None else self.patterns_.shape[1]
        values = [
            float(network_objective(X, y, fit.hidden, fit.output, self.beta, self.loss))
            for y, fit in zip(targets.mT, fits, strict=True)
        ]
        self.objective_ = sum(values) if objective is None else objective
        self.duality_certificate_, self.gap_ = float("nan"), float("nan")
        if self.robust_eps == 0 and self.beta > 0:
            certificates = [duality_certificate(X, fit.dual, self.beta, generator=generator) for fit in fits]
            self.duality_certificate_ = max(certificates)
            bounds = [
                float(dual_bound(fit.dual, y, c, self.loss))
                for y, fit, c in zip(targets.mT, fits, certificates, strict=True)
            ]
            self.gap_ = sum(values) - sum(bounds)

    def _fit_patterns(self, X: Tensor, targets: Tensor, D: Tensor) -> list[Fit]:
        if self.solver == "exact":
            return fit_exact(X, targets, D, beta=self.beta, loss=self.loss, tol=self.tol)
        fits, self.history_ = fit_admm(
            X, targets, D, beta=self.beta, loss=self.loss, rho=self.rho, tol=self.tol, max_steps=self.max_iter
        )
        return fits

    def _check_parameters(self) -> None:
        name = type(self).__name__
        if self.solver not in get_args(SolverName):
            raise ArgumentError(f"{name}: expected solver to be one of {get_args(SolverName)}, got {self.solver!r}")
        if self.loss not in get_args(LossName):
            raise ArgumentError(f"{name}: expected loss to be one of {get_args(LossName)}, got {self.loss!r}")
        if self.n_patterns < 1 or self.refine < 0 or not self.beta >= 0 or not self.robust_eps >= 0:
            raise ArgumentError(
                f"{name}: expected n_patterns >= 1, refine, beta and robust_eps >= 0, got {self.n_patterns}, "
                f"{self.refine}, {self.beta}, {self.robust_eps}"
            )
        if not self.beta and (self.solver == "exact" or self.robust_eps > 0):
            raise ArgumentError(f'{name}: solver "exact" and robust fits need beta > 0')
        if self.solver == "scp" and self.loss == "hinge" and not self.robust_eps:
            raise ArgumentError(f'{name}: loss "hinge" has corners; solver "scp" needs "squared" or "bce"')


class ConvexReLURegressor(_ConvexReLU):
    """Regress by a two-layer ReLU network trained to the global optimum of its convex programme.

    Minimises ½ Σ (f(x_k) - y_k)² + (β/2) Σ_j (‖u_j‖² + a_j²), f(x) = Σ_j (x·u_j)₊ a_j, over networks whose neurons
    have the patterns sampled; with enough of them (`scenario_size`) a further one seldom helps. The bias is a column of
    ones and decays too. Standardise X and y first.

    Parameters
    ----------
    n_patterns : int, default 200
        Distinct activation patterns; about min(2 N, 200). Not used by ``solver="scp"``, which draws 2000 neurons.
    beta : float, default 1e-2
        β, against a sum of squares: let it grow with N. Positive for ``"exact"``.
    loss : {"squared"}, default "squared"
        The only one for numbers.
    solver : {"admm", "scp", "exact"}, default "admm"
        `admm_relu`: cheap steps, three digits. `exact_relu`: some thirty costlier ones, all digits. `sampled_relu`: no
        patterns at all.
    robust_eps : float, default 0.0
        Radius of the l∞ ball around each row, in units of X, to train the worst case over. Positive: `robust_relu` on
        feasible patterns, 60 at most, whatever the solver.
    fit_intercept : bool, default True
        Whether to add the column of ones.
    rho : float, default 0.1
        First penalty of ADMM.
    max_iter : int, default 1000
        Steps of ADMM.
    tol : float, default 1e-4
        Relative residuals of ADMM; the others are solved to 1e-6 at least.
    refine : int, default 0
        Rounds of column generation: add the patterns that the dual variable asks for, and solve again.
    random_state : int or torch.Generator, optional
        Of patterns and certificates. Default: torch's global generator.

    Attributes
    ----------
    hidden_ : Tensor, shape (M, D)
        u_j, the bias last.
    output_ : Tensor, shape (M, T)
        a_j.
    n_neurons_ : int
        M.
    objective_ : float
        Of the network itself; of the robust programme where ``robust_eps`` is positive.
    duality_certificate_ : float
        max |zᵀ (X u)₊|/β over 2000 fresh u: at most about 1 where no neuron would help. NaN for robust fits.
    gap_ : float
        ``objective_`` less the dual bound scaled by the certificate: what could be gained, as far as the sample of u
        can tell. NaN for robust fits.
    patterns_ : Tensor of bool, shape (N, P), or None
        Patterns used.
    n_feasible_patterns_ : int
        P; 1 in a robust fit says that only the robust linear model is left.
    history_ : Tensor, shape (checks, 3), or None
        ADMM's steps and residuals.
    converged_ : bool
        Whether every solve met its tolerance.
    n_iter_ : int
        Steps of the longest solve.
    n_features_in_ : int
        E.

    References
    ----------
    Y. Bai, T. Gautam, S. Sojoudi (2023), SIAM J. Math. Data Sci., arXiv 2201.01965. M. Pilanci, T. Ergen (2020), ICML,
    arXiv 2002.10553.

    Examples
    --------
    >>> X = torch.linspace(-1, 1, 41, dtype=torch.float64).unsqueeze(1)
    >>> model = ConvexReLURegressor(beta=1e-3, solver="exact", random_state=0).fit(X, X.squeeze(1).abs())
    >>> model.score(X, X.squeeze(1).abs()) > 0.999
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows; float32 stays float32.
        y : Tensor or array, shape (N,)
            Targets.

        Returns
        -------
        ConvexReLURegressor
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, or X or y have NaN or Inf.
        ShapeError
            If shapes do not fit.
        ArgumentTypeError
            If X is sparse, or y is not of numbers.
        """
        rows = _as_rows("ConvexReLURegressor", X)
        if self.loss != "squared":
            raise ArgumentError(f'ConvexReLURegressor: expected loss="squared" for numbers, got {self.loss!r}')
        numbers = _plain("ConvexReLURegressor", "y", y)
        if numbers.dtype.kind not in "fiub":
            try:
                numbers = numbers.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise ArgumentTypeError(
                    f"ConvexReLURegressor: Unknown label type: y has dtype {numbers.dtype}"
                ) from error
        targets = torch.as_tensor(numbers).to(rows)
        if targets.shape != (len(rows),):
            raise ShapeError(f"ConvexReLURegressor: expected y of shape ({len(rows)},), got {tuple(targets.shape)}")
        self._fit(rows, targets.unsqueeze(1))
        return self

    def predict(self, X: Any) -> Any:
        """Evaluate the network.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows.

        Returns
        -------
        Tensor or array, shape (N,)
            Of the kind of X.
        """
        return _like(X, self._outputs(X).squeeze(1))

    def score(self, X: Any, y: Any) -> float:
        """1 - Σ (y - prediction)² / Σ (y - mean y)²: 1 is perfect, 0 no better than a constant.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows.
        y : Tensor or array, shape (N,)
            Targets.

        Returns
        -------
        float
            At most 1.
        """
        found = self._outputs(X).squeeze(1)
        return determination(found, torch.as_tensor(_plain("ConvexReLURegressor", "y", y)).to(found))

    def __sklearn_tags__(self) -> Any:
        return sklearn_tags("regressor")


class ConvexReLUClassifier(_ConvexReLU):
    """Classify by two-layer ReLU networks trained to the global optimum of their convex programmes.

    Two classes take one network, more take one against the rest each; with ADMM these share patterns and factors.
    Losses of labels ±1: ½ Σ (f - y)², or the mean of hinge or logistic losses.

    Parameters
    ----------
    n_patterns, beta, solver, robust_eps, fit_intercept, rho, max_iter, tol, refine, random_state : optional
        As for `ConvexReLURegressor`. Note that β stands against a mean for "hinge" and "bce", and should be smaller
        there: 1e-4 to 1e-2.
    loss : {"squared", "hinge", "bce"}, default "squared"
        Squared has the quickest steps; hinge is not for ``solver="scp"``.

    Attributes
    ----------
    classes_ : array, shape (K,)
        Labels, sorted.
    hidden_, output_, objective_, gap_, duality_certificate_, patterns_, history_ : Tensor or float
        As for `ConvexReLURegressor`; the objective and the gap are sums over the networks, the certificate their worst.
    n_neurons_, n_feasible_patterns_, n_features_in_, n_iter_, converged_ : int or bool
        As for `ConvexReLURegressor`.

    References
    ----------
    Y. Bai, T. Gautam, S. Sojoudi (2023), SIAM J. Math. Data Sci., arXiv 2201.01965.
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows; float32 stays float32.
        y : Tensor or array, shape (N,)
            Labels of any kind that sorts.

        Returns
        -------
        ConvexReLUClassifier
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, X or y have NaN or Inf, or there is only one class.
        ShapeError
            If shapes do not fit.
        ArgumentTypeError
            If X is sparse.
        """
        rows = _as_rows("ConvexReLUClassifier", X)
        labels = _plain("ConvexReLUClassifier", "y", y)
        if labels.shape != (len(rows),):
            raise ShapeError(f"ConvexReLUClassifier: expected y of shape ({len(rows)},), got {labels.shape}")
        if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
            raise ArgumentError("ConvexReLUClassifier: Unknown label type: y is continuous; use ConvexReLURegressor")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentError("ConvexReLUClassifier: y has one class; expected two or more")
        kinds = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        targets = np.stack([np.where(codes == kind, 1.0, -1.0) for kind in kinds], 1)
        self._fit(rows, torch.as_tensor(targets).to(rows))
        return self

    def decision_function(self, X: Any) -> Any:
        """Evaluate the networks.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows.

        Returns
        -------
        Tensor or array, shape (N,) for two classes, else (N, K)
            Positive for the second of two classes; for more the largest wins. Of the kind of X.
        """
        found = self._outputs(X)
        return _like(X, found.squeeze(1) if len(self.classes_) == 2 else found)

    def predict(self, X: Any) -> np.ndarray:
        """Name the class.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows.

        Returns
        -------
        array, shape (N,)
            Labels as given to `fit`.
        """
        found = self._outputs(X)
        codes = (found.squeeze(1) > 0).long() if len(self.classes_) == 2 else found.argmax(1)
        return self.classes_[codes.cpu().numpy()]

    def score(self, X: Any, y: Any) -> float:
        """Count the share that is right.

        Parameters
        ----------
        X : Tensor or array, shape (N, E)
            Rows.
        y : Tensor or array, shape (N,)
            Labels.

        Returns
        -------
        float
            In [0, 1].
        """
        return float(np.mean(self.predict(X) == _plain("ConvexReLUClassifier", "y", y)))

    def __sklearn_tags__(self) -> Any:
        return sklearn_tags("classifier")


def _with_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def _plain(call: str, name: str, data: Any) -> np.ndarray:
    if data is None:
        raise ArgumentError(f"{call}: requires y to be passed, but the target y is None")
    if hasattr(data, "toarray"):
        raise ArgumentTypeError(f"{call}: Sparse data was passed for {name}; pass {name}.toarray()")
    if isinstance(data, Tensor):
        check_present(call, name, data)
        data = (data.float() if data.dtype == torch.bfloat16 else data).detach().cpu().numpy()  # numpy has no bfloat16
    found = np.asarray(data)
    if found.dtype.kind == "c":
        raise ArgumentError(f"{call}: Complex data not supported for {name}")
    if name == "X" and found.dtype.kind not in "fiub":
        found = found.astype(np.float64)  # strings of numbers and objects; what is no number raises here
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ArgumentError(f"{call}: {name} has NaN or inf")
    return found


def _as_rows(call: str, X: Any) -> Tensor:
    found = _plain(call, "X", X)
    if found.ndim != 2:
        raise ShapeError(f"{call}: Expected 2D array, got {found.ndim}D array. Reshape your data to (N, E)")
    if not found.size:
        what = "sample" if not len(found) else "feature"
        raise ShapeError(
            f"{call}: Found array with 0 {what}(s) (shape={found.shape}) while a minimum of 1 is required."
        )
    device = X.device if isinstance(X, Tensor) else "cpu"
    dtype = np.float32 if found.dtype == np.float32 else np.float64
    return torch.tensor(found.astype(dtype), device=device)


def _like(X: Any, result: Tensor) -> Any:
    return result if isinstance(X, Tensor) else result.cpu().numpy()
