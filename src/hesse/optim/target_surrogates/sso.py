"""SSO: one oracle gradient a step, and as many evaluations of the model as it takes to use it."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim.target_surrogates.inner import (
    InnerOptions,
    InnerProblem,
    InnerResult,
    armijo_descent,
    lbfgs,
    optimizer_steps,
)
from hesse.optim.target_surrogates.newton import gauss_newton, newton_line_search
from hesse.optim.target_surrogates.options import check_choices, check_numbers, check_params
from hesse.optim.target_surrogates.oracle import (
    Answer,
    Reduction,
    TargetGradient,
    TargetLoss,
    ask_oracle,
    check_scaling,
)
from hesse.optim.target_surrogates.schedules import (
    CLIP,
    GROWTH,
    INVERSE_SMOOTHNESS,
    EtaSearch,
    Schedule,
    eta_factor,
)
from hesse.optim.target_surrogates.surrogate import Divergence, check_divergence

__all__ = ["SSO", "StepInfo"]

Inner = Literal["armijo", "lbfgs", "gauss-newton"] | Callable[[list[Tensor]], Optimizer]


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What one step did, and what it cost."""

    surrogate_before: float  # at the old parameters, without the constant: 0, plus weight decay
    surrogate_after: float  # never above it
    num_inner_steps: int
    eta: float  # the target step used; the mean over coordinates for "diagonal-adagrad"
    oracle_gradients: int  # 1
    oracle_values: int
    target_loss: float | None  # mean loss at the old parameters, if an oracle said it anyway
    num_forwards: int  # evaluations of the model


class SSO(Optimizer):
    """Target-based surrogate optimisation: one gradient on the outputs of a model, many updates of its parameters.

        θ ← argmin_θ  (1/b) Σ_i [ ⟨G_i, z_i(θ) - z_ti⟩ + D(z_i(θ), z_ti) / η ] + (λ/2) ‖θ‖²,   by a few inner steps

    Made for losses whose gradient with respect to the outputs z is dear (a simulator, an expert, a paid teacher) and
    models that are cheap. With D = ½‖·‖² and η <= 1/L_z, L_z the smoothness of the loss *in the outputs*, every step
    over the full batch lowers the loss, for any model and any number of inner steps.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As of any torch optimiser; ``weight_decay`` may differ between groups, all else is shared.
    eta : float or {"auto", "half-squared", "squared", "logistic", "cross-entropy"}, default "auto"
        Target step η. The names of losses stand for 1/L_z: 1 for ½‖z - y‖², 1/2 for ‖z - y‖², 4 for logistic loss, 2
        for cross-entropy; "auto" finds 1/L_z along the first gradient by values of ``target_loss``. A name is four
        times as much with ``schedule="sqrt"``, whose steps fall below 1/L_z from the 16th on.
    schedule : str, default "constant"
        "constant", for full batches; "sqrt", η/√t, for mini-batches; "exponential", η (1/T)^(t/T); "adagrad", η over
        the root of the summed mean squares of the rows of G; "diagonal-adagrad", the same for each coordinate of each
        datum, which needs ``ids``; "line-search", Armijo's rule in output space from 1.8 times the last η, by values of
        ``target_loss``. With "adagrad" a name or "auto" is the first step; a number is divided as it is.
    inner : {"armijo", "lbfgs", "gauss-newton"} or callable, default "armijo"
        Gradient descent with backtracking, the paper's; L-BFGS; Gauss-Newton steps solved by LSQR, exact in one step
        for models linear in their parameters; or ``params -> torch.optim.Optimizer`` for any other, whose state goes on
        from step to step. "gauss-newton" with ``schedule="line-search"`` makes one step a call, η searched along it.
    inner_steps : int, default 10
        m >= 1 at most. On the full batch more are better; on a small batch hundreds fit the batch, not the data.
    inner_tol : float, default 1e-6
        The inner solver stops at this norm of the surrogate's gradient; also LSQR's tolerance.
    inner_lr : float, default 10.0
        First trial step of "armijo" at each call; long, as backtracking costs no oracle.
    warm_start : bool, default False
        Start it from 1.8 times the last accepted step instead, which saves trials.
    min_progress : float, default 0.0
        Stop the inner solver at a step that gains less than this part of what its first did; 0.1 adapts m.
    divergence : {"euclidean", "kl", "online-newton"} or Tensor of shape (p, p), default "euclidean"
        D: ½‖·‖²; relative entropy, for outputs that are probabilities on the last axis; ½ vᵀAv with A = εI + Σ_s
        G_sᵀG_s / b over the steps so far; or with A given, symmetric positive definite.
    metric_damping : float, default 1.0
        ε > 0 of "online-newton", in units of a squared gradient.
    total_steps : int, optional
        T of "exponential", which needs it.
    reduction : {"none", "sum", "mean"}, default "none"
        Whether rows of ``target_gradient`` are divided by b ("mean") or are dl_i/dz_i ("none", "sum").
    weight_decay : float, default 0.0
        λ; part of the surrogate, outside the target term.

    Raises
    ------
    ArgumentError
        If an option is unknown or out of range, or a group overrides a shared one.
    ShapeError
        If the divergence matrix is not square, or parameters of "gauss-newton" differ in dtype or device.
    ArgumentTypeError
        If a parameter is not a real floating tensor.

    Notes
    -----
    A step costs one oracle gradient, one model evaluation more than an ordinary one (to see that it repeats), and a
    forward pass a trial and a backward pass an inner step: 60 to 100 evaluations for ten Armijo steps. Memory is that
    of ordinary training, beside z, G and two copies of the parameters. It beats plain and line-search gradient methods
    in oracle calls; on cheap convex problems a well-tuned Adam may beat it, unless the inner solver is "gauss-newton"
    with ``schedule="line-search"``. Descent steps below 1e-6 are not tried: rescale a model that needs them.
    Gauss-Newton steps are damped by weight decay and a loose ``inner_tol`` (1e-3) alone: without, they suit models
    close to linear in their parameters.
    In half precision the surrogate is summed in float32, the parameters move in their own.

    A gradient that comes late may be used: hand it in with ``target_gradient=lambda z: late``; the proximity term is
    about the present outputs. ``state_dict`` holds η, sums, inner step and the state of an inner torch optimiser;
    schedule, divergence and inner solver are the constructor's.

    References
    ----------
    J. W. Lavington, S. Vaswani, R. Babanezhad, M. Schmidt, N. Le Roux (2023), ICML, arXiv 2302.02607.

    Examples
    --------
    >>> X, y = torch.eye(3), torch.tensor([1.0, 2.0, 3.0])
    >>> w = torch.zeros(3, requires_grad=True)
    >>> optimizer = SSO([w], eta="half-squared", inner="gauss-newton")
    >>> info = optimizer.step(lambda: X @ w, target_gradient=lambda z: z - y)
    >>> w.detach(), info.oracle_gradients
    (tensor([1.0000, 2.0000, 3.0000]), 1)
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        eta: float | str = "auto",
        schedule: Schedule = "constant",
        inner: Inner = "armijo",
        inner_steps: int = 10,
        inner_tol: float = 1e-6,
        inner_lr: float = 10.0,
        warm_start: bool = False,
        min_progress: float = 0.0,
        divergence: Divergence | Literal["online-newton"] = "euclidean",
        metric_damping: float = 1.0,
        total_steps: int | None = None,
        reduction: Reduction = "none",
        weight_decay: float = 0.0,
    ) -> None:
        check_choices(schedule, inner, divergence, reduction)
        self.schedule: Schedule = schedule
        self.inner: Inner = inner
        self.divergence: Divergence | Literal["online-newton"] = divergence
        self.reduction: Reduction = reduction
        self._inner_optimizer: Optimizer | None = None
        defaults = {
            "eta": eta,
            "inner_steps": inner_steps,
            "inner_tol": inner_tol,
            "inner_lr": inner_lr,
            "warm_start": warm_start,
            "min_progress": min_progress,
            "metric_damping": metric_damping,
            "total_steps": total_steps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; they move with the others from the next step on.

        Parameters
        ----------
        param_group : dict
            "params", and optionally "weight_decay".

        Raises
        ------
        ArgumentError
            If the group overrides an option that all share, or its weight decay is out of range.
        ArgumentTypeError
            If a parameter is not a real floating tensor.
        ShapeError
            If the inner solver is "gauss-newton" and parameters differ in dtype or device.
        """
        for name, default in self.defaults.items():
            if name != "weight_decay" and name in param_group and param_group[name] != default:
                raise ArgumentError(f"SSO: {name} is shared by all groups, got {param_group[name]!r} for one of them")
        check_numbers(self.schedule, {**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups.pop()  # back in its place when it has passed
        check_params(
            [p for known in [*self.param_groups, group] for p in known["params"]], self.inner == "gauss-newton"
        )
        self.param_groups.append(group)
        if self._inner_optimizer is not None:
            self._inner_optimizer.add_param_group({"params": [p for p in group["params"] if p.requires_grad]})

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_closure: Callable[[], Tensor],
        target_gradient: TargetGradient | None = None,
        target_loss: TargetLoss | None = None,
        *,
        ids: Tensor | Sequence[int] | None = None,
    ) -> StepInfo:
        """Ask the oracle once, and lower the surrogate it gives.

        Parameters
        ----------
        model_closure : callable
            () -> z of shape (b, ...), the model's outputs on the current batch, with graph; the same each time it is
            called. Called many times: dropout is refused, and batch normalisation, whose running statistics would
            take in the batch at every call, belongs in evaluation mode.
        target_gradient : callable, optional
            z (detached) -> dl_i/dz_i of the same shape, as a tensor, an array or nested lists. Called once.
        target_loss : callable, optional
            z -> the mean of l_i(z_i), a scalar. Differentiated once where ``target_gradient`` is missing; searches for
            η take values of it besides, and so does a check of the first gradient's scale if both are given.
        ids : Tensor or sequence of int, shape (b,), optional
            Numbers of the data, for "diagonal-adagrad".

        Returns
        -------
        StepInfo
            What happened.

        Raises
        ------
        ArgumentError
            If the closure does not repeat its outputs, an oracle that the schedule needs is missing, or the gradient
            is off by the factor b.
        ArgumentTypeError
            If an argument is of the wrong kind, or the outputs have no graph.
        ShapeError
            If shapes do not fit.
        NumericalError
            If outputs, gradient or loss have NaN or Inf. As with all of these, nothing has moved.
        """
        if not callable(model_closure):
            raise ArgumentTypeError("SSO: step needs model_closure, () -> outputs of the model with their graph")
        with torch.enable_grad():
            z = self._outputs(model_closure)
            answer = ask_oracle(z.detach(), target_gradient, target_loss, self.reduction)
            return self._advance(model_closure, z, answer, target_gradient is not None, target_loss, ids)

    def _advance(
        self,
        model: Callable[[], Tensor],
        z: Tensor,
        answer: Answer,
        own_gradient: bool,
        target_loss: TargetLoss | None,
        ids: Tensor | Sequence[int] | None,
    ) -> StepInfo:
        owner = self.param_groups[0]["params"][0]
        state = dict(self.state.get(owner, {}))  # takes the place of the old one when all has gone well
        state["steps"] = state.get("steps", 0) + 1
        num_values = 0
        if state["steps"] == 1 and own_gradient and target_loss is not None:
            num_values = check_scaling(z.detach(), answer.gradient, target_loss)
        search = self._search(state, z.detach(), answer, target_loss)
        pairs = [(p, group["weight_decay"]) for group in self.param_groups for p in group["params"] if p.requires_grad]
        params, decays = [p for p, _ in pairs], [decay for _, decay in pairs]
        divergence = self._metric(state, z.detach(), answer.gradient)
        problem = InnerProblem(model, params, decays, z, answer.gradient, 1.0, divergence)
        # linearised models have one direction for every η: the search can follow the models themselves
        along_models = search if self.inner == "gauss-newton" and self.schedule == "line-search" else None
        if along_models is None:
            problem.eta = self._eta(state, problem, search, ids)
        before = float(problem.value(z.detach()).detach())
        try:
            if along_models is not None:
                result = newton_line_search(problem, z, along_models, self.param_groups[0]["inner_tol"])
            else:
                result = self._solve(problem, z, state)
        except BaseException:
            problem.move(problem.start)
            raise
        if not result.value <= before:
            problem.move(problem.start)
            result = InnerResult(before, result.num_steps)
        eta = float(problem.eta.mean()) if isinstance(problem.eta, Tensor) else problem.eta
        self.state[owner] = state | {"eta": eta, "inner_step": result.step or state.get("inner_step")}
        loss = answer.loss
        if search is not None:
            loss, num_values = search.value, num_values + search.num_values
        return StepInfo(before, result.value, result.num_steps, eta, 1, num_values, loss, problem.num_forwards + 2)

    def _search(
        self, state: Mapping[str, Any], z: Tensor, answer: Answer, target_loss: TargetLoss | None
    ) -> EtaSearch | None:
        # what a search for η starts from, if there is to be one
        eta = self.param_groups[0]["eta"]
        if self.schedule != "line-search" and (eta != "auto" or "base" in state):
            return None
        if target_loss is None:
            raise ArgumentError(
                "SSO: a search for eta takes values of target_loss; give it, or a number or the name of a loss as eta"
            )
        previous = state.get("eta") if self.schedule == "line-search" else None
        if previous is None and eta != "auto":
            previous = INVERSE_SMOOTHNESS.get(eta, eta)
        search = EtaSearch(target_loss, previous)
        search.value = search.loss_at(z) if answer.loss is None else answer.loss
        if not math.isfinite(search.value):
            raise NumericalError(f"SSO: target_loss is {search.value} at the present outputs; nothing has moved")
        return search

    def _outputs(self, model: Callable[[], Tensor]) -> Tensor:
        z = model()
        if not (isinstance(z, Tensor) and z.requires_grad and z.is_floating_point()):
            raise ArgumentTypeError("SSO: model_closure must return the model's outputs, a real tensor with its graph")
        if z.ndim == 0 or z.numel() == 0:
            raise ShapeError(f"SSO: expected outputs of shape (b, ...) with b >= 1, got {tuple(z.shape)}")
        if not bool(torch.isfinite(z).all()):
            raise NumericalError("SSO: the model's outputs have NaN or Inf; nothing has moved")
        if self.divergence == "kl" and not _are_probabilities(z):
            raise ArgumentError(
                "SSO: divergence='kl' needs outputs that are probabilities, summing to 1 on the last axis"
            )
        with torch.no_grad():
            again = model()
        tolerance = torch.finfo(z.dtype).eps ** 0.5
        if again.shape != z.shape or not torch.allclose(again, z.detach(), rtol=tolerance, atol=tolerance):
            raise ArgumentError(
                "SSO: model_closure gave other outputs when called again at the same parameters: draw the batch "
                "outside of it, and put dropout in evaluation mode"
            )
        return z

    def _metric(self, state: dict[str, Any], z: Tensor, gradient: Tensor) -> Divergence:
        if isinstance(self.divergence, Tensor):
            check_divergence("SSO", self.divergence, z)
            return self.divergence.to(dtype=z.dtype, device=z.device)
        if self.divergence != "online-newton":
            return self.divergence
        if z.ndim < 2:
            raise ShapeError(f"SSO: divergence='online-newton' needs outputs (b, ..., p), got {tuple(z.shape)}")
        rows = gradient.reshape(-1, gradient.shape[-1])
        before = state.get("metric")
        if before is None:
            before = self.param_groups[0]["metric_damping"] * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        state["metric"] = before + rows.mT @ rows / len(z)
        return state["metric"]

    def _eta(
        self,
        state: dict[str, Any],
        problem: InnerProblem,
        search: EtaSearch | None,
        ids: Tensor | Sequence[int] | None,
    ) -> float | Tensor:
        eta, gradient = self.param_groups[0]["eta"], problem.gradient
        mean_square = float(gradient.double().square().sum()) / len(gradient)
        if not mean_square:
            return state.get("eta", 1.0)
        if self.schedule == "line-search" and search is not None:
            return search.along_outputs(problem.z_t, gradient, problem.divergence)
        if isinstance(eta, str):
            if "base" not in state:
                if search is not None:
                    found = search.along_outputs(problem.z_t, gradient, problem.divergence)
                else:
                    found = INVERSE_SMOOTHNESS[eta]
                state["base"] = found * self._named_factor(mean_square)
            eta = state["base"]
        if self.schedule == "adagrad":
            state["square_sum"] = state.get("square_sum", 0.0) + mean_square
            return eta / state["square_sum"] ** 0.5
        if self.schedule == "diagonal-adagrad":
            return (eta * _accumulate(state, gradient, ids).rsqrt()).clamp_max(CLIP[1])
        return eta * eta_factor(self.schedule, state["steps"], self.param_groups[0]["total_steps"])

    def _named_factor(self, mean_square: float) -> float:
        # from 1/L_z to the first η of the schedule
        if self.schedule in ("adagrad", "diagonal-adagrad"):
            return mean_square**0.5
        return 4.0 if self.schedule == "sqrt" else 1.0

    def _solve(self, problem: InnerProblem, z: Tensor, state: Mapping[str, Any]) -> InnerResult:
        group = self.param_groups[0]
        first_step = group["inner_lr"]
        if group["warm_start"] and state.get("inner_step") is not None:
            first_step = GROWTH * state["inner_step"]
        options = InnerOptions(group["inner_steps"], group["inner_tol"], first_step, group["min_progress"])
        if callable(self.inner):
            return optimizer_steps(problem, z, options, self._wrapped(self.inner))
        solver = {"armijo": armijo_descent, "lbfgs": lbfgs, "gauss-newton": gauss_newton}[self.inner]
        return solver(problem, z, options)

    def _wrapped(self, factory: Callable[[list[Tensor]], Optimizer]) -> Optimizer:
        # the inner torch optimiser, made when it is first needed
        if self._inner_optimizer is None:
            params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            self._inner_optimizer = factory(params)
        return self._inner_optimizer

    def state_dict(self) -> StateDict:
        """State as plain data: of this optimiser, and under "inner" that of a torch optimiser it wraps.

        Returns
        -------
        dict
            For `load_state_dict` of an optimiser constructed alike.
        """
        found = super().state_dict()
        if self._inner_optimizer is not None:
            found["inner"] = self._inner_optimizer.state_dict()
        return found

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take over the state of another SSO constructed alike; it goes on as that one would have.

        Parameters
        ----------
        state_dict : dict
            From `state_dict`.

        Raises
        ------
        ArgumentError
            If it holds the state of a wrapped optimiser and this one wraps none.
        ValueError
            From torch, if the groups are others.
        """
        inner = state_dict.get("inner")
        if inner is not None and not callable(self.inner):
            raise ArgumentError(
                f"SSO.load_state_dict: the state is of an SSO that wraps a torch optimiser, this one has {self.inner!r}"
            )
        super().load_state_dict(state_dict)
        if inner is not None and callable(self.inner):
            self._wrapped(self.inner).load_state_dict(copy.deepcopy(inner))  # torch takes tensors over uncopied


def _are_probabilities(z: Tensor) -> bool:
    tolerance = torch.finfo(z.dtype).eps ** 0.5
    return bool((z >= 0).all()) and bool(((z.sum(-1) - 1).abs() <= tolerance).all())


def _accumulate(state: dict[str, Any], gradient: Tensor, ids: Tensor | Sequence[int] | None) -> Tensor:
    # add G² to the sums of these data, and return their sums
    if ids is None:
        raise ArgumentError("SSO: schedule='diagonal-adagrad' keeps sums for each datum: give step ids, their numbers")
    numbers = torch.as_tensor(ids, device=gradient.device)
    whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    if not whole or numbers.shape != gradient.shape[:1] or bool((numbers < 0).any()):
        raise ShapeError(f"SSO: expected ids of {len(gradient)} data, integers >= 0, got {ids!r}")
    if len(numbers.unique()) != len(numbers):
        raise ArgumentError("SSO: ids has a datum twice in one batch")
    table = state.get("squares")
    known, needed = 0 if table is None else len(table), int(numbers.max()) + 1
    grown = gradient.new_zeros(max(known, needed), *gradient.shape[1:])
    if table is not None:
        grown[:known] = table
    grown[numbers] += gradient.square()
    state["squares"] = grown
    return grown[numbers]
