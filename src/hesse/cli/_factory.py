"""From "package.module:function" to what that function of the user's returns."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["from_factory", "names_function", "result_of"]


def names_function(text: str) -> bool:
    """Tell "package.module:function" from a path or a hub id.

    Parameters
    ----------
    text : str
        As typed.

    Returns
    -------
    bool
        Whether it has a colon and is no file.
    """
    return ":" in text and not Path(text).exists()


def result_of(name: str, argument: str) -> Any:
    """Call a function of the user's without arguments.

    Parameters
    ----------
    name : str
        "package.module:function"; modules of the working folder are found too.
    argument : str
        Which argument of the command names it, for messages.

    Returns
    -------
    object
        What it returns.

    Raises
    ------
    ArgumentError
        If there is no such function.
    ModuleNotFoundError
        If the module is there, but one that it imports is not.
    """
    from hesse.errors import ArgumentError

    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but not what it imports
        raise ArgumentError(f"{argument}: there is no module {module_name!r}, nor a file of that name") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ArgumentError(f"{argument}: {module_name} has no function {function_name!r}")
    return function()


def from_factory(name: str) -> "tuple[nn.Module, Any, Any, Any]":
    """Call the user's factory of model, loss and loader.

    Parameters
    ----------
    name : str
        "package.module:function".

    Returns
    -------
    tuple
        Model in evaluation mode, loss_fn(model, batch), loader, and the loss's name where it is a plain one: "mse" or
        "cross_entropy".

    Raises
    ------
    ArgumentError
        If there is no such function, or it does not return a model, a loss and a loader.
    """
    from torch import nn

    from hesse.errors import ArgumentError

    made = result_of(name, "model")
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ArgumentError(f"model: {name} must return (model, loss, loader), got {type(made).__name__}")
    network, loss, loader = made
    named = None
    if isinstance(loss, nn.MSELoss) and loss.reduction == "mean":
        named = "mse"
    if isinstance(loss, nn.CrossEntropyLoss) and loss.reduction == "mean" and loss.weight is None:
        named = "cross_entropy" if loss.label_smoothing == 0 else None

    def loss_fn(model: Any, batch: Any) -> "Tensor":
        return loss(model(batch[0]), batch[1])

    return network.eval(), loss_fn, loader, named
