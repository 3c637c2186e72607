"""Masks that keep dropped weights at zero whatever an optimiser does, and how to be rid of them afterwards.

An attached mask is a parametrization: the layer computes with ``where(kept, weight, 0)``, so that no gradient reaches
a dropped weight either. The parameter stays the same object, and optimisers that hold it go on.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["Include", "apply_masks", "attach_masks", "attached_masks", "plain_parameters", "remove_masks", "zero_masks"]

Include = Callable[[str, Tensor], bool]
"""(plain name, parameter) -> whether it belongs."""


class _Mask(nn.Module):
    """A weight with its dropped entries at zero, whatever is assigned to it."""

    kept: Tensor

    def __init__(self, kept: Tensor, order: list[str]) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone())
        self.order = order  # of the layer's parameters without masks, which states of optimisers go by

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.kept, weight, 0)

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.where(self.kept, value, 0)


def plain_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under the names they have without masks, in the order of ``module.named_parameters()``.

    Parameters
    ----------
    module : nn.Module
        With or without attached masks. A tied parameter comes once, under its first name.

    Returns
    -------
    dict of str to nn.Parameter
        The parameters themselves. Names of parameters behind other parametrizations stay as torch has them.
    """
    masked = {id(_parametrizations(owner)[attribute].original): name for owner, attribute, name in _attached(module)}
    return {masked.get(id(p), name): p for name, p in module.named_parameters()}


def attach_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hold weights at zero from now on: through training, and in ``state_dict``.

    Parameters
    ----------
    module : nn.Module
        Changed in place; a parameter "weight" is then "parametrizations.weight.original" in its ``state_dict``, beside
        its mask. Every place of a tied parameter is masked.
    masks : mapping of str to bool Tensor
        True where a weight is kept, by plain name. A mask that is there already is replaced.

    Raises
    ------
    ArgumentError
        If a name is unknown, or its parameter is computed from others already.
    ArgumentTypeError
        If a mask is not a bool tensor.
    ShapeError
        If a mask does not have the shape of its parameter.

    Notes
    -----
    Costs one pass over the weights at each use. To load a ``state_dict`` with masks, attach masks of ones first. A
    module with masks is saved by ``state_dict``, not pickled whole.
    """
    parameters = _checked("attach_masks", module, masks)
    apply_masks(module, masks)
    for name, kept in masks.items():
        p = parameters[name]
        for owner, attribute in _places(module, p):
            mask = _mask_of(owner, attribute)
            if mask is None:
                parametrize.register_parametrization(owner, attribute, _Mask(kept.to(p.device), _plain_order(owner)))
            else:
                mask.kept.copy_(kept)


@torch.no_grad()
def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set dropped weights to exactly zero, once.

    Parameters
    ----------
    module : nn.Module
        Changed in place, with or without attached masks.
    masks : mapping of str to bool Tensor
        True where a weight is kept, by plain name.

    Raises
    ------
    ArgumentError
        If a name is unknown, or its parameter is computed from others.
    ArgumentTypeError
        If a mask is not a bool tensor.
    ShapeError
        If a mask does not have the shape of its parameter.
    """
    parameters = _checked("apply_masks", module, masks)
    for name, kept in masks.items():
        p = parameters[name]
        p.masked_fill_(~kept.to(p.device), 0)  # also over NaN and Inf, which a product with zero would keep


def attached_masks(module: nn.Module) -> dict[str, Tensor]:
    """Read the masks that are attached.

    Parameters
    ----------
    module : nn.Module
        Searched with all its submodules.

    Returns
    -------
    dict of str to bool Tensor
        Copies, by plain name; empty if there are none.
    """
    found: dict[str, Tensor] = {}
    for owner, attribute, name in _attached(module):
        mask = _mask_of(owner, attribute)
        if mask is not None:
            found[name] = mask.kept.clone()
    return found


def remove_masks(module: nn.Module) -> None:
    """Take all attached masks off; the weights keep their zeros, their plain names and their order.

    Parameters
    ----------
    module : nn.Module
        Changed in place. From here on training moves the zeros again.
    """
    for owner, attribute, _ in list(_attached(module, tied=True)):
        order = _plain_order(owner)
        parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
        for name in order:
            p = dict(owner.named_parameters(recurse=False, remove_duplicate=False)).get(name)
            if p is not None:
                delattr(owner, name)
                owner.register_parameter(name, p)


def zero_masks(module: nn.Module, include: Include | None = None) -> dict[str, Tensor]:
    """Read masks off the zeros of a pruned network, such as one from a file without masks.

    Parameters
    ----------
    module : nn.Module
        With plain weights or attached masks.
    include : callable, optional
        (name, parameter) -> whether to read it. Default: parameters with at least two axes.

    Returns
    -------
    dict of str to bool Tensor
        False where a weight is exactly zero.
    """
    parameters = plain_parameters(module)
    return {name: p.detach() != 0 for name, p in parameters.items() if (include or _is_matrix)(name, p)}


def _is_matrix(name: str, p: Tensor) -> bool:
    return p.ndim > 1


def _checked(call: str, module: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    parameters = plain_parameters(module)
    for name, kept in masks.items():
        if name not in parameters:
            raise ArgumentError(f"{call}: no parameter {name!r}; there are {', '.join(parameters)}")
        if "parametrizations." in name:
            raise ArgumentError(f"{call}: {name} feeds another parametrization; remove that one before masking")
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
            kind = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
            raise ArgumentTypeError(f"{call}: expected a bool mask for {name}, got {kind}")
        if kept.shape != parameters[name].shape:
            raise ShapeError(
                f"{call}: the mask of {name} is {tuple(kept.shape)}, the parameter {tuple(parameters[name].shape)}"
            )
    return parameters


def _parametrizations(owner: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    if not parametrize.is_parametrized(owner):
        return {}
    found = cast(nn.ModuleDict, owner.parametrizations)
    return {attribute: cast(parametrize.ParametrizationList, held) for attribute, held in found.items()}


def _plain_order(owner: nn.Module) -> list[str]:
    # names of the layer's own parameters in the order they have without masks
    for held in _parametrizations(owner).values():
        first = held[0]
        if isinstance(first, _Mask):
            return first.order
    return [name for name, _ in owner.named_parameters(recurse=False, remove_duplicate=False)]


def _mask_of(owner: nn.Module, attribute: str) -> _Mask | None:
    held = _parametrizations(owner).get(attribute)
    first = None if held is None else held[0]
    return first if isinstance(first, _Mask) else None


def _attached(module: nn.Module, *, tied: bool = False) -> Iterator[tuple[nn.Module, str, str]]:
    # (owner, attribute, plain name) of every mask, or of the first of each tied parameter
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        for attribute, held in _parametrizations(owner).items():
            if isinstance(held[0], _Mask) and (tied or id(held.original) not in seen):
                seen.add(id(held.original))
                yield owner, attribute, f"{prefix}.{attribute}" if prefix else attribute


def _places(module: nn.Module, p: nn.Parameter) -> list[tuple[nn.Module, str]]:
    # every (owner, attribute) at which a layer reads the parameter, masked or plain
    found = [
        (owner, attribute)
        for owner in module.modules()
        if not isinstance(owner, parametrize.ParametrizationList)
        for attribute, held in owner.named_parameters(recurse=False, remove_duplicate=False)
        if held is p
    ]
    masked = [
        (owner, attribute)
        for owner, attribute, _ in _attached(module, tied=True)
        if _parametrizations(owner)[attribute].original is p
    ]
    return found + masked
