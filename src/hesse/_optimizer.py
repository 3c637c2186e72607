"""What an optimiser of torch needs around its rule: the closure called once, with gradients, before anything moves."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ClosureOptimizer"]


class ClosureOptimizer(Optimizer, ABC):
    """A rule that moves all parameters in one go; its class says when it raises, and what has moved then."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss anew and returns it, after `zero_grad` and with `backward`; called once.

        Returns
        -------
        float or Tensor, optional
            What the closure returned.

        Raises
        ------
        NumericalError
            If a gradient has NaN or Inf.
        ArgumentTypeError
            If a gradient is a sparse tensor.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step(loss)
        return loss

    @abstractmethod
    def _take_step(self, loss: float | Tensor | None) -> None:
        """Move the parameters along their gradients; the loss is what the closure gave, None without one."""
