"""What the Riemannian optimisers share: a step that moves subspaces one way and everything else another."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from hesse._optimizer import ClosureOptimizer
from hesse.linalg import GrassmannParameter

__all__ = ["SubspaceOptimizer"]


class SubspaceOptimizer(ClosureOptimizer, ABC):
    """An optimiser of torch that tells a `GrassmannParameter` from other parameters.

    A step raises ArgumentError if a subspace has left the manifold (another optimiser moves it too, say), and
    NumericalError if its gradient had NaN or Inf in three steps in a row; ordinary parameters have moved then.
    """

    def _take_step(self, loss: float | Tensor | None) -> None:
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            self._move_ordinary(group, [p for p in moving if not isinstance(p, GrassmannParameter)])
            for p in moving:
                if isinstance(p, GrassmannParameter):
                    self._move_subspaces(group, p, self.state[p])

    @abstractmethod
    def _move_ordinary(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Move parameters that are no subspaces, as torch does."""

    @abstractmethod
    def _move_subspaces(self, group: dict[str, Any], S: Tensor, state: dict[str, Any]) -> None:
        """Move one stack of subspaces."""
