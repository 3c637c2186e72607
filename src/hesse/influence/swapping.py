"""A model evaluated at other weights than its own, with all derivatives in them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["call_with", "differentiable_attention"]


class _Call(nn.Module):
    """A function of model and batch as a module, so that a functional call can swap the model's weights."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Mapping[str, Any]) -> Any:
        return self.function(self.model, batch)


def call_with(
    model: nn.Module, function: Callable[[nn.Module, Any], Any], weights: Mapping[str, Tensor], batch: Any
) -> Any:
    """Evaluate a loss or a measurement with other weights than the model's.

    Parameters
    ----------
    model : nn.Module
        Where code, buffers and the weights that are not named come from.
    function : callable
        (model, batch) -> anything.
    weights : mapping of str to Tensor
        By the model's names.
    batch : mapping
        As the function takes it.

    Returns
    -------
    object
        What it returns, differentiable in the weights.
    """
    swapped = {f"model.{name}": tensor for name, tensor in weights.items()}
    return functional_call(_Call(model, function), swapped, (batch,))


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Compute attention by the kernel that has all derivatives, and vectorises, inside the block.

    Yields
    ------
    None
        The choice of kernels is restored.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield
