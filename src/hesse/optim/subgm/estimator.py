"""SubGM as an estimator: fit measurements, read off the matrix, its factor and its numerical rank."""

import warnings
from typing import Self

import torch
from torch import Generator, Tensor

from hesse._estimator import Estimator, as_generator
from hesse._values import check_present
from hesse.errors import ArgumentError, ShapeError
from hesse.optim.subgm.descent import Initialization, RecoveryResult, numerical_rank, recover_psd
from hesse.optim.subgm.measurements import (
    EntryMeasurements,
    Measurements,
    MeasurementsLike,
    OperatorMeasurements,
    RankOneDifferences,
    as_measurements,
)
from hesse.optim.subgm.steps import Normalization, StepFunction, StepName, StepRule

__all__ = ["SubGM"]

_NOISE_FACTOR = 2.0  # by which a negative eigenvalue must stand out of what random signs give
_MANY_SIGNS = 20  # targets of one sign by chance: below 2⁻¹⁹


class SubGM(Estimator):
    """Recover a positive semi-definite low-rank X from y_i = ⟨A_i, X⟩ + s_i, many of the s_i grossly wrong.

    Minimises mean |y_i - ⟨A_i, UUᵀ⟩| by sub-gradient steps from a tiny U; see `recover_psd`. Needs neither the rank nor
    the fraction of outliers nor their size.

    Parameters
    ----------
    rank : int, optional
        Columns of U; an upper bound of the true rank. Default: d, since over-estimating does little harm.
    init_scale : float, default 1e-8
        ‖U_0‖₂ in units of the data. Smaller ones, down to 1e-12, recover more digits under many outliers with the
        plateau rule, for a few more steps.
    step : {"plateau", "geometric", "adaptive"} or callable, default "plateau"
        The `StepRule`.
    eta0, decay, normalize : optional
        Of the `StepRule`: 0.3, its default for the rule, "spectral".
    max_iter : int, default 3000
        Steps at most.
    tol : float, default 1e-8
        Stop when a step moves U by no more than this, relative to ‖U‖_F.
    init : {"spectral", "random"}, default "spectral"
        The start.
    smoothing : float, default 0.0
        Half width of Huber's band in units of y; 0 is the absolute value itself.
    batch_size : int, optional
        Measurements to a step. Default: all.
    holdout : float, default 0.0
        Fraction of the measurements set aside to stop early, below 1. Use 0.1 under dense noise, where the loss can be
        over-fitted; it is of no use against sparse outliers.
    validate_psd : bool, default True
        Whether to refuse targets whose spectral start says that X has a negative eigenvalue. The test compares with
        random signs and expects matrices A_i without structure; it is left out for operators, whose A_i may be single
        entries. Turn it off if your dense A_i are.
    warm_start : bool, default False
        Whether ``fit`` goes on from the last one, if there is one, with the same data; raise ``max_iter`` before it.
    random_state : int or torch.Generator, optional
        Of random starts, batches and the hold-out. Default: torch's global generator.

    Attributes
    ----------
    factor_ : Tensor, shape (d, k)
        U.
    matrix_ : Tensor, shape (d, d)
        UUᵀ.
    numerical_rank_ : int
        Singular values of U above the widest gap.
    loss_history_ : Tensor, shape (T,)
        Mean absolute residual at the start of each step, in units of y.
    n_iter_ : int
        Steps made.
    converged_ : bool
        Whether ``tol`` was reached.
    result_ : RecoveryResult
        Everything else.

    References
    ----------
    J. Ma, S. Fattahi (2023), JMLR 24, arXiv 2202.08788.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> A = torch.randn(400, 5, 5, generator=g, dtype=torch.float64)
    >>> y = A[:, 0, 0].clone()  # X has a single one in its corner
    >>> y[:40] += 100
    >>> SubGM(random_state=0).fit(A, y).matrix_[0, 0].round(decimals=6).item()
    1.0
    """

    factor_: Tensor
    matrix_: Tensor
    numerical_rank_: int
    loss_history_: Tensor
    n_iter_: int
    converged_: bool
    result_: RecoveryResult

    def __init__(
        self,
        rank: int | None = None,
        init_scale: float = 1e-8,
        step: StepName | StepFunction = "plateau",
        eta0: float = 0.3,
        decay: float | None = None,
        max_iter: int = 3000,
        tol: float = 1e-8,
        init: Initialization = "spectral",
        normalize: Normalization = "spectral",
        smoothing: float = 0.0,
        batch_size: int | None = None,
        holdout: float = 0.0,
        validate_psd: bool = True,
        warm_start: bool = False,
        random_state: int | Generator | None = None,
    ) -> None:
        self.rank = rank
        self.init_scale = init_scale
        self.step: StepName | StepFunction = step
        self.eta0 = eta0
        self.decay = decay
        self.max_iter = max_iter
        self.tol = tol
        self.init: Initialization = init
        self.normalize: Normalization = normalize
        self.smoothing = smoothing
        self.batch_size = batch_size
        self.holdout = holdout
        self.validate_psd = validate_psd
        self.warm_start = warm_start
        self.random_state = random_state

    def fit(self, A: MeasurementsLike, y: Tensor) -> Self:
        """Recover X.

        Parameters
        ----------
        A : Tensor, LinearOperator or Measurements
            Dense matrices (m, d, d); or factors (m, d) of A_i = a_i a_iᵀ, whose first half is then paired with the
            second and the targets subtracted, because such matrices have a mean that would drown the signal (an odd
            one out is dropped, and an outlier spoils its pair); or an operator (m, d²); or measurements. Half the
            memory is used for dense ones, O(m d) for factors.
        y : Tensor, shape (m,)
            Targets, in the dtype of ``A``.

        Returns
        -------
        SubGM
            Itself.

        Raises
        ------
        ArgumentError
            If a parameter is out of range, ``y`` or ``A`` have NaN or Inf, or X is not positive semi-definite.
        ShapeError
            If shapes, dtypes or devices do not fit.
        ArgumentTypeError
            If ``A`` is of a kind not listed, complex, or of half precision.
        NumericalError
            If U overflows.

        Warns
        -----
        UserWarning
            If all targets have one sign, or there are fewer measurements than d times the rank found.
        """
        measurements, y = _with_pairs(A, y)
        if not 0 <= self.holdout < 1:
            raise ArgumentError(f"SubGM: expected holdout in [0, 1), got {self.holdout}")
        if y.ndim != 1 or len(y) != measurements.num_measurements:
            raise ShapeError(f"SubGM: expected y of shape ({measurements.num_measurements},), got {tuple(y.shape)}")
        check_present("SubGM", "y", y)
        generator = as_generator(self.random_state, y.device)
        _warn_one_sign(measurements, y)
        if self.validate_psd and not isinstance(measurements, OperatorMeasurements | EntryMeasurements):
            _require_psd(measurements, y)
        mask = None
        if self.holdout > 0:
            mask = torch.zeros(len(y), dtype=torch.bool, device=y.device)
            # of its own seed, so that a warm start holds out the same
            home = torch.Generator().manual_seed(0 if generator is None else generator.initial_seed())
            mask[torch.randperm(len(y), generator=home)[: max(1, round(self.holdout * len(y)))].to(y.device)] = True
        self.result_ = recover_psd(
            measurements,
            y,
            rank=self.rank,
            init_scale=self.init_scale,
            rule=StepRule(self.step, self.eta0, self.decay, normalize=self.normalize),
            max_steps=self.max_iter,
            tol=self.tol,
            init=self.init,
            smoothing=self.smoothing,
            batch_size=self.batch_size,
            holdout=mask,
            resume=self.result_ if self.warm_start and hasattr(self, "result_") else None,
            generator=generator,
        )
        self.factor_ = self.result_.factor
        self.matrix_ = self.result_.matrix
        self.numerical_rank_ = numerical_rank(self.factor_)
        self.loss_history_ = self.result_.losses
        self.n_iter_ = self.result_.num_steps
        self.converged_ = bool(self.result_.converged)
        d, m = measurements.order, measurements.num_measurements
        if m < d * self.numerical_rank_:
            warnings.warn(
                f"SubGM: {m} measurements do not determine a matrix of order {d} and the rank found, "
                f"{self.numerical_rank_}; bring more than {d * self.numerical_rank_}",
                UserWarning,
                stacklevel=2,
            )
        return self

    def predict(self, A: MeasurementsLike) -> Tensor:
        """Measure the recovered matrix.

        Parameters
        ----------
        A : Tensor, LinearOperator or Measurements
            As for `fit`; factors (m, d) are not paired here.

        Returns
        -------
        Tensor, shape (m,)
            ⟨A_i, UUᵀ⟩.

        Raises
        ------
        ArgumentError
            If `fit` was not called.
        ShapeError
            If ``A`` is of another order.
        """
        if not hasattr(self, "factor_"):
            raise ArgumentError("SubGM.predict: call fit first")
        if isinstance(A, Tensor) and A.ndim == 2:
            found: Measurements = RankOneDifferences(A, torch.zeros_like(A))
        else:
            found = as_measurements(A)
        if found.order != len(self.factor_):
            raise ShapeError(f"SubGM.predict: A is of order {found.order}, the fitted matrix of {len(self.factor_)}")
        return found.apply(self.factor_)

    def score(self, A: MeasurementsLike, y: Tensor) -> float:
        """1 - mean |y - prediction| / mean |y - median y|: 1 is perfect, 0 no better than a constant.

        Parameters
        ----------
        A : Tensor, LinearOperator or Measurements
            As for `predict`.
        y : Tensor, shape (m,)
            Targets. Outliers among them lower the score of any estimate.

        Returns
        -------
        float
            At most 1; of absolute values, not of squares, since those would only see the outliers.
        """
        spread = float((y - y.median()).abs().mean())
        error = float((y - self.predict(A)).abs().mean())
        return 1 - error / spread if spread > 0 else float(error == 0)


def _with_pairs(A: MeasurementsLike, y: Tensor) -> tuple[Measurements, Tensor]:
    if not (isinstance(A, Tensor) and A.ndim == 2):
        return as_measurements(A), y
    if len(A) < 2 or y.shape != (len(A),):
        raise ShapeError(f"SubGM: expected y of shape ({len(A)},) and two factors or more, got {tuple(y.shape)}")
    if A.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(A).all()):
        raise ArgumentError(f"SubGM: expected finite factors A in float32 or float64, got {A.dtype}")
    half = len(A) // 2
    return RankOneDifferences(A[:half], A[half : 2 * half]), y[:half] - y[half : 2 * half]


def _warn_one_sign(measurements: Measurements, y: Tensor) -> None:
    one_sign = bool((y > 0).all()) or bool((y < 0).all())
    if one_sign and len(y) >= _MANY_SIGNS and not isinstance(measurements, EntryMeasurements):
        warnings.warn(
            "SubGM: all targets have one sign, so the A_i have a mean that hides the signal; subtract it from A_i and "
            "y_i, or pass a_i aᵢᵀ as factors (m, d)",
            UserWarning,
            stacklevel=3,
        )


def _require_psd(measurements: Measurements, y: Tensor) -> None:
    # (1/m) Σ sign(y_i) A_i points along X; random signs in place of y show how far its eigenvalues scatter about that
    if not bool(torch.isfinite(y).all()) or y.dtype != measurements.dtype:
        return  # recover_psd says so
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, y.shape, generator=generator).to(y) * 2 - 1
    noise = torch.linalg.eigvalsh(measurements.adjoint(signs / len(y))).abs().amax()
    lowest = torch.linalg.eigvalsh(measurements.adjoint(y.sign() / len(y)))[0]
    if bool(lowest < -_NOISE_FACTOR * noise):
        raise ArgumentError(
            f"SubGM: the targets say that X has a negative eigenvalue ({float(lowest):.2g}, beyond {_NOISE_FACTOR:g} "
            f"times the {float(noise):.2g} of chance), and UUᵀ has none; use a rectangular factorisation LRᵀ "
            "(robust_matrix_completion for entries), or validate_psd=False if the A_i are structured"
        )
