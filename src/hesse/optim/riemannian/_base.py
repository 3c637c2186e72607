"""What the Riemannian optimisers share: a step that moves subspaces one way and everything else another."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hesse.linalg import GrassmannParameter

__all__ = ["SubspaceOptimizer"]


class SubspaceOptimizer(Optimizer, ABC):
    """An optimiser of torch that tells a `GrassmannParameter` from other parameters."""

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
        ArgumentError
            If a subspace has left the manifold: another optimiser moves it too, say.
        NumericalError
            If the gradient of a subspace had NaN or Inf in three steps in a row; ordinary parameters have moved then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            self._move_ordinary(group, [p for p in moving if not isinstance(p, GrassmannParameter)])
            for p in moving:
                if isinstance(p, GrassmannParameter):
                    self._move_subspaces(group, p, self.state[p])
        return loss

    @abstractmethod
    def _move_ordinary(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Move parameters that are no subspaces, as torch does."""

    @abstractmethod
    def _move_subspaces(self, group: dict[str, Any], S: Tensor, state: dict[str, Any]) -> None:
        """Move one stack of subspaces."""
