"""An immutable object made of tensors: list them by name, put others in their place, move them, save and load them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["TensorTree"]


class TensorTree:
    """What a `LinearOperator` is beside its products.

    ``_fields`` names the attributes that hold tensors, trees, or tuples of these.
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    dtype: torch.dtype
    device: torch.device

    def _forget(self) -> None:
        # a subclass drops here what it remembers about its entries
        return

    def _named(self) -> Iterator[tuple[str, Any]]:
        for field in self._fields:
            value = getattr(self, field)
            if isinstance(value, tuple):
                yield from ((f"{field}.{i}", item) for i, item in enumerate(value))
            else:
                yield field, value

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the object is made of, by dotted name, without a copy.

        Returns
        -------
        dict of str to Tensor
            In a fixed order.
        """
        found: dict[str, Tensor] = {}
        for name, value in self._named():
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, TensorTree):
                found.update({f"{name}.{inner}": tensor for inner, tensor in value.tensors().items()})
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the same object around other tensors.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            One for each name of `tensors`, of the same shape, dtype and device.

        Returns
        -------
        TensorTree
            A shallow copy; the original is untouched.

        Raises
        ------
        ArgumentError
            If names are missing or unknown.
        ShapeError
            If a shape, dtype or device differs.
        """
        own = self.tensors()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise ArgumentError(f"{type(self).__name__}.with_tensors: names missing or unknown: {', '.join(odd)}")
        for name, old in own.items():
            new = tensors[name]
            if new.shape != old.shape or new.dtype != old.dtype or new.device != old.device:
                raise ShapeError(
                    f"{type(self).__name__}.with_tensors: {name} is {tuple(old.shape)} {old.dtype} on {old.device}, "
                    f"got {tuple(new.shape)} {new.dtype} on {new.device}"
                )
        return self._mapped(lambda name, _old: tensors[name], "", self.dtype, self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Detached tensors by name, for saving; read back by ``load_state_dict`` of an object built alike.

        Returns
        -------
        dict of str to Tensor
            Without a copy.
        """
        return {name: tensor.detach() for name, tensor in self.tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Return the object with the tensors of ``state``; unlike a module's, this leaves the original as it was.

        Parameters
        ----------
        state : mapping of str to Tensor
            From `state_dict`.

        Returns
        -------
        TensorTree
            Of the same class and flags.
        """
        return self.with_tensors(state)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the object to another device or dtype.

        Parameters
        ----------
        device : torch.device or str, optional
            Default: where it is.
        dtype : torch.dtype, optional
            Default: as it is. Index tensors keep theirs; a complex one cannot become real.

        Returns
        -------
        TensorTree
            Itself if nothing changes.

        Raises
        ------
        ArgumentError
            If a complex one is asked to become real.
        """
        target = torch.device(device) if device is not None else self.device
        kind = dtype if dtype is not None else self.dtype
        if target == self.device and kind == self.dtype:
            return self
        if self.dtype.is_complex and not kind.is_complex:
            raise ArgumentError(f"{type(self).__name__}.to: {self.dtype} to {kind} would drop the imaginary part")
        was_complex = self.dtype.is_complex

        def cast(_name: str, tensor: Tensor) -> Tensor:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                return tensor.to(target)
            keep_real = was_complex and not tensor.is_complex()
            return tensor.to(device=target, dtype=kind.to_real() if keep_real else kind)

        return self._mapped(cast, "", kind, target)

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> Self:
        # a copy with every tensor replaced by change(name, tensor)
        def convert(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(prefix + name, value)
            if isinstance(value, TensorTree):
                return value._mapped(change, f"{prefix}{name}.", dtype, device)
            return value

        clone = copy.copy(self)
        for field in self._fields:
            value = getattr(self, field)
            if isinstance(value, tuple):
                setattr(clone, field, tuple(convert(f"{field}.{i}", item) for i, item in enumerate(value)))
            else:
                setattr(clone, field, convert(field, value))
        clone.dtype, clone.device = dtype, device
        clone._forget()
        return clone
