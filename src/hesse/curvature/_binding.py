"""What a user's function is differentiated with respect to: chosen parameters, in a fixed order.

Shapes: P parameters in all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator

__all__ = [
    "Function",
    "Target",
    "bind",
    "check_function",
    "choose_parameters",
    "evaluation_mode",
    "join",
    "refuse_move",
    "split",
]

Function = Callable[[Any, Any], Tensor]
"""(parameters or model, batch) -> Tensor: first a mapping of tensors, or something that is called like the model."""
Target = nn.Module | Mapping[str, Tensor]


def check_function(call: str, function: object) -> None:
    """Refuse what cannot be called.

    Parameters
    ----------
    call : str
        The caller, for the message.
    function : object
        What came.

    Raises
    ------
    ArgumentTypeError
        If it is not callable.
    """
    if not callable(function):
        raise ArgumentTypeError(f"{call}: expected a function of (parameters or model, batch), got {function!r}")


def choose_parameters(call: str, target: Target, names: Iterable[str] | None) -> dict[str, Tensor]:
    """Pick the tensors to differentiate by, and refuse a model that would not compute the same function twice.

    Parameters
    ----------
    call : str
        The caller, for messages.
    target : nn.Module or mapping of str to Tensor
        Of a module, every parameter that requires a gradient.
    names : iterable of str, optional
        Only these. Default: all.

    Returns
    -------
    dict of str to Tensor
        The tensors themselves, not copies, in the order of ``target``.

    Raises
    ------
    ArgumentError
        If a name is unknown, nothing is left, or a layer of the model draws random numbers (dropout) or changes its
        buffers (batch normalisation) because it is in training mode.
    ArgumentTypeError
        If ``target`` is neither a module nor a mapping of real floating tensors.
    ShapeError
        If the tensors differ in dtype or device.
    """
    if isinstance(target, nn.Module):
        _refuse_training_layers(call, target)
    chosen = _named(call, _every(call, target), names)
    first = next(iter(chosen.values()))
    for name, tensor in chosen.items():
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ShapeError(
                f"{call}: {name} is {tensor.dtype} on {tensor.device}, others {first.dtype} on {first.device}; "
                "restrict the matrix with names="
            )
    return chosen


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module and its parts to evaluation mode inside the block, and each back to the mode it was in.

    Parameters
    ----------
    module : nn.Module
        Switched.

    Yields
    ------
    None
        The mode is restored after an error too.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def bind(
    function: Function, target: Target, names: tuple[str, ...], batch: Any
) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """Turn the user's function into one of the chosen parameters alone.

    Parameters
    ----------
    function : callable
        (parameters or model, batch) -> Tensor.
    target : nn.Module or mapping of str to Tensor
        Where the other parameters come from.
    names : tuple of str
        The chosen ones.
    batch : object
        Handed on as it is.

    Returns
    -------
    callable
        Takes the values, one a name.
    """

    def call(values: tuple[Tensor, ...]) -> Tensor:
        chosen = dict(zip(names, values, strict=True))
        if not isinstance(target, nn.Module):
            return function({**target, **chosen}, batch)
        model = target

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, chosen, args, kwargs)

        return function(stand_in, batch)

    return call


def split(layout: ParameterLayout, vector: Tensor) -> tuple[Tensor, ...]:
    """Cut a flat vector into the shapes of the parameters.

    Parameters
    ----------
    layout : ParameterLayout
        Names, shapes and offsets.
    vector : Tensor, shape (P,)
        The vector.

    Returns
    -------
    tuple of Tensor
        Views, in the layout's order.
    """
    return tuple(vector[layout.slice(n)].reshape(s) for n, s in zip(layout.names, layout.shapes, strict=True))


def join(values: Iterable[Tensor]) -> Tensor:
    """Lay tensors end to end; the inverse of `split`.

    Parameters
    ----------
    values : iterable of Tensor
        In the layout's order.

    Returns
    -------
    Tensor, shape (P,)
        A copy.
    """
    return torch.cat([value.reshape(-1) for value in values])


def refuse_move(operator: LinearOperator, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse to convert an operator around a user's function.

    Parameters
    ----------
    operator : LinearOperator
        What was asked to move.
    dtype, device : torch.dtype, torch.device
        Where to.

    Raises
    ------
    ArgumentError
        If that is not where it is already.
    """
    if (dtype, device) != (operator.dtype, operator.device):
        raise ArgumentError(
            f"{type(operator).__name__}.to: the batches and the function cannot be moved; build the operator anew on a "
            "converted model"
        )


def _every(call: str, target: Any) -> dict[str, Tensor]:
    if isinstance(target, nn.Module):
        found: dict[str, Tensor] = {name: p for name, p in target.named_parameters() if p.requires_grad}
    elif isinstance(target, Mapping):
        found = dict(target)
    else:
        raise ArgumentTypeError(f"{call}: expected a module or a mapping of tensors, got {type(target).__name__}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ArgumentTypeError(f"{call}: parameter {name!r} must be a real floating tensor, got {kind}")
    if not found:
        raise ArgumentError(f"{call}: there are no parameters that require a gradient")
    return found


def _named(call: str, every: dict[str, Tensor], names: Iterable[str] | None) -> dict[str, Tensor]:
    if names is None:
        return every
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in every]
    if unknown or not wanted:
        raise ArgumentError(f"{call}: names must be some of {', '.join(every)}; got {', '.join(unknown) or 'none'}")
    return {name: tensor for name, tensor in every.items() if name in set(wanted)}


def _refuse_training_layers(call: str, model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise ArgumentError(
                f"{call}: {name or 'the model'} is a dropout layer in training mode, so every pass would differentiate "
                "another function; call model.eval() first"
            )
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise ArgumentError(
                f"{call}: {name or 'the model'} is a {type(module).__name__} in training mode, so every pass would "
                "change its running statistics; call model.eval(), or build it with track_running_stats=False"
            )
