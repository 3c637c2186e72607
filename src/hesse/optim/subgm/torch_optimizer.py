"""SubGM's steps for any loss of absolute residuals in a closure: relative to the parameter, with the same schedules."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hesse._optimizer import ClosureOptimizer
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError
from hesse.optim.subgm.steps import StepRule, has_stalled

__all__ = ["SubGMOptimizer"]

_AWAKE = 1e-2
_TINY = 1e-12  # a zero parameter is given this length, or it could never leave zero


class SubGMOptimizer(ClosureOptimizer):
    """Steps W ← W - lr_t ‖W‖ G/‖G‖ (Frobenius norms, per tensor), or W ← W - lr (π/4) f G for ``step="adaptive"``.

    For a loss that sees W only as WWᵀ the gradient is G = 2QW, and what `recover_psd` normalises by ‖Q‖ is here
    normalised by ‖G‖/(2‖W‖) <= ‖Q‖, which an optimiser can see: the same growth out of a tiny start, by 1 + lr a step,
    and the same steps under the adaptive rule. The length of a step follows that of the parameter, so start tiny.

    Parameters
    ----------
    params : iterable
        Parameters or groups.
    lr : float, default 0.3
        First relative length; 0 stands still. ``step="adaptive"``: in units of 1/‖WWᵀ‖.
    step : {"geometric", "plateau", "adaptive"}, default "geometric"
        The `StepRule`. The last two look at the loss and therefore need ``step(closure)``.
    decay : float, default 0.995
        In (0, 1), factor on the length a step: from the start (geometric), or from where the loss has stopped falling
        (plateau).
    window : int, default 50
        Steps to a median of the plateau rule.

    Raises
    ------
    ArgumentError
        If an option is out of range; by `step`, if the rule needs a closure and there is none.

    References
    ----------
    J. Ma, S. Fattahi (2023), JMLR 24, arXiv 2202.08788.

    Examples
    --------
    >>> u = torch.tensor([[1e-3], [1e-3]], requires_grad=True)
    >>> optimizer = SubGMOptimizer([u], lr=0.5)
    >>> (u @ u.mT - 1).abs().mean().backward()
    >>> optimizer.step()
    >>> round(float(u[0, 0].detach()), 6)  # grown by 1 + lr
    0.0015
    """

    def __init__(
        self, params: ParamsT, lr: float = 0.3, step: str = "geometric", decay: float = 0.995, window: int = 50
    ) -> None:
        super().__init__(params, {"lr": lr, "step": step, "decay": decay, "window": window})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Parameters
        ----------
        param_group : dict
            "params", and any option that shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If an option is out of range; nothing is added then.
        ArgumentTypeError
            If ``step`` is a function, or ``window`` no integer.
        """
        options = {**self.defaults, **param_group}
        if not (math.isfinite(options["lr"]) and options["lr"] >= 0):
            raise ArgumentError(f"SubGMOptimizer: expected a finite lr >= 0, got {options['lr']}")
        if callable(options["step"]):
            raise ArgumentTypeError("SubGMOptimizer: step is a name here; use a scheduler of torch on lr")
        StepRule(options["step"], 1.0, options["decay"], options["window"])
        super().add_param_group(param_group)
        self.param_groups[-1].update(multiplier=1.0, decaying=options["step"] == "geometric", recent=[])

    def _take_step(self, loss: float | Tensor | None) -> None:
        if loss is None and any(group["step"] != "geometric" for group in self.param_groups):
            raise ArgumentError("SubGMOptimizer: step 'plateau' or 'adaptive' needs step(closure), to see the loss")
        moving = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        for number, parameters in enumerate(moving):
            if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
                raise NumericalError(f"SubGMOptimizer: a gradient of group {number} has NaN or Inf; nothing has moved")
        value = 0.0 if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
        for group, parameters in zip(self.param_groups, moving, strict=True):
            _move(group, parameters, value)


def _move(group: dict[str, Any], parameters: list[Tensor], loss: float) -> None:
    if not parameters:
        return
    if group["step"] == "adaptive":
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"] * math.pi / 4 * loss)
        return
    lengths = [float(torch.linalg.vector_norm(p)) for p in parameters]
    if group["step"] == "plateau" and not group["decaying"]:
        awake = bool(group["recent"]) or math.hypot(*lengths) > _AWAKE
        group["recent"] = [*group["recent"], loss][-2 * group["window"] :] if awake else []
        full = len(group["recent"]) == 2 * group["window"]
        group["decaying"] = full and bool(has_stalled(torch.tensor(group["recent"]), group["window"]))
    for p, length in zip(parameters, lengths, strict=True):
        size = 0.0 if p.grad is None else float(torch.linalg.vector_norm(p.grad))
        if p.grad is not None and size > 0:
            p.add_(p.grad, alpha=-group["lr"] * group["multiplier"] * max(length, _TINY) / size)
    if group["decaying"]:
        group["multiplier"] *= group["decay"]
