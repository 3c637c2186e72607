"""Checks of what SSO is constructed with."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.optim.target_surrogates.oracle import Reduction
from hesse.optim.target_surrogates.schedules import INVERSE_SMOOTHNESS, SCHEDULES
from hesse.optim.target_surrogates.surrogate import check_divergence

__all__ = ["check_choices", "check_numbers", "check_params"]

_INNER = ("armijo", "lbfgs", "gauss-newton")


def check_choices(schedule: Any, inner: Any, divergence: Any, reduction: Any) -> None:
    """Refuse a choice that is unknown, or contradicts another.

    Parameters
    ----------
    schedule, inner, divergence, reduction : object
        As of `SSO`.

    Raises
    ------
    ArgumentError
        If one is unknown, a matrix is not symmetric positive definite, or diagonal AdaGrad meets a divergence with a
        metric of its own.
    ShapeError
        If the matrix is not square.
    """
    if schedule not in SCHEDULES:
        raise ArgumentError(f"SSO: expected schedule among {', '.join(SCHEDULES)}, got {schedule!r}")
    if not (callable(inner) or inner in _INNER):
        raise ArgumentError(f"SSO: expected inner among {', '.join(_INNER)}, or an optimiser factory, got {inner!r}")
    if reduction not in get_args(Reduction):
        raise ArgumentError(f"SSO: expected reduction among {', '.join(get_args(Reduction))}, got {reduction!r}")
    if isinstance(divergence, Tensor) or divergence != "online-newton":
        check_divergence("SSO", divergence)
    if isinstance(divergence, Tensor):
        wide = divergence.detach().double()
        # any other form would let the surrogate fall without end
        if not torch.allclose(wide, wide.mT) or bool(torch.linalg.cholesky_ex(wide).info != 0):
            raise ArgumentError("SSO: expected a divergence matrix that is symmetric and positive definite")
    plain = isinstance(divergence, str) and divergence == "euclidean"
    if schedule == "diagonal-adagrad" and not plain:
        raise ArgumentError("SSO: schedule='diagonal-adagrad' is a metric of its own: leave divergence='euclidean'")


def check_numbers(schedule: str, options: Mapping[str, Any]) -> None:
    """Refuse a number out of range.

    Parameters
    ----------
    schedule : str
        As of `SSO`.
    options : mapping
        The numbers, by name.

    Raises
    ------
    ArgumentError
        Naming the option.
    """
    eta = options["eta"]
    if isinstance(eta, str):
        names = ("auto", *INVERSE_SMOOTHNESS)
        if eta not in names:
            raise ArgumentError(f"SSO: expected eta > 0 or one of {', '.join(names)}, got {eta!r}")
    elif not (math.isfinite(eta) and eta > 0):
        raise ArgumentError(f"SSO: expected a finite eta > 0, got {eta}")
    for name in ("inner_lr", "metric_damping"):
        if not (math.isfinite(options[name]) and options[name] > 0):
            raise ArgumentError(f"SSO: expected a finite {name} > 0, got {options[name]}")
    for name in ("inner_tol", "weight_decay"):
        if not (math.isfinite(options[name]) and options[name] >= 0):
            raise ArgumentError(f"SSO: expected a finite {name} >= 0, got {options[name]}")
    if not 0 <= options["min_progress"] < 1:
        raise ArgumentError(f"SSO: expected 0 <= min_progress < 1, got {options['min_progress']}")
    if not isinstance(options["inner_steps"], int) or options["inner_steps"] < 1:
        raise ArgumentError(f"SSO: expected an integer inner_steps >= 1, got {options['inner_steps']!r}")
    total = options["total_steps"]
    if total is None and schedule == "exponential":
        raise ArgumentError("SSO: schedule='exponential' needs total_steps, the number of steps it is made for")
    if total is not None and (not isinstance(total, int) or total < 1):
        raise ArgumentError(f"SSO: expected an integer total_steps >= 1, got {total!r}")


def check_params(params: Sequence[Tensor], alike: bool) -> None:
    """Refuse parameters that the inner solver cannot move.

    Parameters
    ----------
    params : sequence of Tensor
        Of all groups.
    alike : bool
        Whether they must share dtype and device.

    Raises
    ------
    ArgumentTypeError
        If one is not a real floating tensor.
    ShapeError
        If they differ where they must not.
    """
    for i, p in enumerate(params):
        if not p.is_floating_point():
            raise ArgumentTypeError(f"SSO: parameter {i} must be a real floating tensor, got {p.dtype}")
        if alike and (p.dtype, p.device) != (params[0].dtype, params[0].device):
            raise ShapeError(
                f"SSO: inner='gauss-newton' needs parameters of one dtype and device; parameter {i} is {p.dtype} on "
                f"{p.device}, the first {params[0].dtype} on {params[0].device}"
            )
