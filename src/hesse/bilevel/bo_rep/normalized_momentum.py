"""Steps of a set length along a moving average of gradients.

m ← β m + (1 - β) g,   w ← w - lr · m / max(‖m‖, eps)        ‖·‖ over all parameters together
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hesse._optimizer import ClosureOptimizer
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError

__all__ = ["NormalizedMomentum", "unit_direction"]


class NormalizedMomentum(ClosureOptimizer):
    """Normalised SGD with momentum: every step has the length ``lr``, whatever the gradient.

    For losses whose curvature grows with their gradient (exponentials, recurrent networks, transformers), where a fixed
    multiple of the gradient is far too long at the start or far too short at the end. The length does not shrink near a
    solution: without a schedule that lowers ``lr`` the gradient there stays at about lr times the curvature.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As of any torch optimiser.
    lr : float
        Length of a step, in the units of the parameters. A group moves by its own ``lr`` times its part of m / ‖m‖.
    momentum : float, default 0.9
        β in [0, 1). The average is what makes normalisation safe: the direction of a single noisy gradient is biased.
    eps : float, default 1e-12
        Below this norm the step shrinks in proportion; a zero m does not move.

    Raises
    ------
    ArgumentError
        If a hyper-parameter is out of range.

    Notes
    -----
    Memory: one tensor a parameter. The norm is accumulated in float64, so that neither float16 nor the squares of large
    float32 gradients overflow; m itself has the parameter's dtype, and for bfloat16 or float16 weights should be kept
    by a float32 master copy. m is dense: where only some rows of an embedding have gradients, the others go on moving
    while their average fades. A parameter without a gradient stays, and does not enter the norm. A gradient with NaN or
    Inf raises NumericalError: nothing has moved then, and m is as it was.

    References
    ----------
    A. Cutkosky, H. Mehta (2020), ICML, arXiv 2002.03305.

    Examples
    --------
    >>> w = torch.full((2,), 1e6, requires_grad=True)
    >>> optimizer = NormalizedMomentum([w], lr=0.5)
    >>> w.square().sum().backward()
    >>> optimizer.step()
    >>> round(float((1e6 - w.detach()).norm()), 3)
    0.53
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float = 0.9, eps: float = 1e-12) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, which join the common norm.

        Parameters
        ----------
        param_group : dict
            "params", and any hyper-parameter that shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If a hyper-parameter is out of range; nothing is added then.
        """
        options = {**self.defaults, **param_group}
        for name in ("lr", "eps"):
            if not (options[name] > 0 and math.isfinite(options[name])):
                raise ArgumentError(f"NormalizedMomentum: expected {name} > 0, got {options[name]}")
        if not 0 <= options["momentum"] < 1:
            raise ArgumentError(f"NormalizedMomentum: expected 0 <= momentum < 1, got {options['momentum']}")
        super().add_param_group(param_group)

    def _take_step(self, loss: float | Tensor | None) -> None:
        moving = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not moving:
            return
        if any(gradient.is_sparse for _, _, gradient in moving):
            raise ArgumentTypeError("NormalizedMomentum: a gradient is a sparse tensor; use sparse=False")
        if not math.isfinite(float(_norm([gradient for _, _, gradient in moving]))):
            raise NumericalError("NormalizedMomentum: a gradient has NaN or Inf; no parameter has moved")
        averages = []
        for group, p, gradient in moving:
            state = self.state[p]
            if "average" not in state:
                state["average"] = torch.zeros_like(p)
            averages.append(state["average"].lerp_(gradient, 1 - group["momentum"]))
        norm = _norm(averages)
        for (group, p, _), average in zip(moving, averages, strict=True):
            length = (group["lr"] / norm.clamp_min(group["eps"])).to(p.device)
            p.sub_((average.to(length.dtype) * length).to(p.dtype))


def _norm(tensors: list[Tensor]) -> Tensor:
    first = tensors[0].device
    each = [torch.linalg.vector_norm(t, dtype=torch.float64).to(first) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(each))


def unit_direction(vector: Tensor) -> Tensor:
    """Scale a vector to length one.

    Parameters
    ----------
    vector : Tensor, shape (N,)
        Any dtype; its norm is accumulated in float64.

    Returns
    -------
    Tensor, shape (N,)
        Zero for zero.
    """
    norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return (vector / norm.clamp_min(torch.finfo(torch.float64).tiny)).to(vector.dtype)
