"""Tells one training objective from another: a fingerprint of a loss's code and settings, for the manifest of a run.

A run is taken up again only by the loss that began it. Two losses of one name, or one class with other settings, have
other fingerprints; the same code with the same settings has the same one in any process.
"""

import dataclasses
import enum
import inspect
import logging
import pathlib
import sys
import types
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch

from hesse.errors import ArgumentTypeError
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, Loss, RegressionLoss
from hesse.influence.text_losses import MaskedLMLoss, Seq2SeqLoss
from hesse.io import hash_bytes, hash_tensors

__all__ = ["loss_identity"]

_OURS = (CausalLMLoss, ClassificationLoss, MaskedLMLoss, RegressionLoss, Seq2SeqLoss)
_PLAIN = (bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType, range)
_BY_TEXT = (torch.dtype, torch.device, torch.layout, np.dtype, np.ufunc, types.GenericAlias, types.UnionType)
_MAPPINGS = (dict, OrderedDict, types.MappingProxyType)
_CACHED = type(lru_cache(repr))
_C_MEMBERS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)


class _UnknownError(Exception):
    """A part that no fingerprint covers; its message says which."""


def loss_identity(loss: Loss, stranger: str) -> str:
    """Name a loss so that no other loss has the same name.

    A loss of hesse is its class's name. A loss that has an attribute, property or method ``fingerprint`` is its class
    and that text. Any other is its class and a hash over its attributes, the compiled code of its class, and whatever
    functions, classes and constants of its own package that code mentions; of other packages names enter, not code.
    The code is that which runs, not what a file says by now, so it is known in a notebook too, and differs between
    Python versions. A loss whose attributes change while it works has to declare a fingerprint.

    Parameters
    ----------
    loss : Loss
        The objective.
    stranger : str
        Enters the name of a loss that cannot be fingerprinted, such as one that holds an open file. Unique to the
        caller, it lets such a loss work, and its run be refused to everybody else.

    Returns
    -------
    str
        For the manifest.

    Raises
    ------
    ArgumentTypeError
        If its ``fingerprint`` is no text.
    """
    kind = type(loss)
    if kind in _OURS:
        return kind.__name__
    name = _name(kind)
    # not through getattr: a wrapper that hands attributes on would pass off its inner loss's fingerprint as its own
    if inspect.getattr_static(loss, "fingerprint", None) is not None:
        declared = loss.fingerprint  # pyright: ignore[reportAttributeAccessIssue]
        declared = declared() if callable(declared) else declared
        if not isinstance(declared, str):
            raise ArgumentTypeError(
                "loss: expected its fingerprint to be text, or a method that returns text, got "
                f"{type(declared).__name__}"
            )
        return f"{name}, declared {declared}"
    try:
        return f"{name}, {_Reader(kind.__module__).digest(loss, 'loss')}"
    except (_UnknownError, RecursionError) as error:
        return (
            f"{name}, told from others only within one Influence object ({stranger}) since {error}; "
            "give the loss an attribute `fingerprint` to resume its runs"
        )


class _Reader:
    """Hashes an object with the code behind it, following that code as far as its own package goes."""

    def __init__(self, module: str) -> None:
        self._package = module.partition(".")[0]
        self._digests: dict[int, str] = {}
        self._depth = 0
        self._kept: list[Any] = []  # else another object could take the place, and the id, of one that is gone

    def digest(self, value: Any, where: str) -> str:
        """Hash one value; ``where`` is what an error calls it."""  # noqa: DOC201
        known = self._digests.get(id(value))
        if known is None:
            self._depth += 1
            self._digests[id(value)] = f"within {self._depth}"  # what refers to itself meets this in place of its own
            self._kept.append(value)
            text = self._text(value, where)
            known = self._digests[id(value)] = hash_bytes(text.encode("utf-8", "surrogatepass"))
            self._depth -= 1
        return known

    def _text(self, value: Any, where: str) -> str:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, (pathlib.PurePath, *_BY_TEXT)) or kind.__module__ == "typing":
            return f"{_name(kind)} {value!r}"
        if isinstance(value, enum.Enum):
            return f"{_name(kind)} {value.name} {self.digest(value.value, where)}"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, types.BuiltinFunctionType):
            return f"builtin {value.__module__}.{value.__qualname__} {self.digest(value.__self__, where)}"
        if isinstance(value, logging.Logger):  # says nothing about what is computed
            return "logger"
        if isinstance(value, torch.Tensor):
            return f"tensor {hash_tensors({'': value.detach()})}"
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
            return f"array {value.dtype} {value.shape} {hash_bytes(np.ascontiguousarray(value).tobytes())}"
        return self._container(value, where) or self._code(value, where) or self._object(value, where)

    def _container(self, value: Any, where: str) -> str:
        kind = type(value)
        if kind in _MAPPINGS:
            pairs = [(self.digest(key, where), self.digest(value[key], f"{where}[{key!r}]")) for key in value]
            return f"{_name(kind)} {pairs}"
        if kind in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            return f"{_name(kind)} {self._each(value, where)}"
        if kind in (set, frozenset):
            return f"{_name(kind)} {sorted(self._each(value, where))}"
        return ""

    def _code(self, value: Any, where: str) -> str:
        if isinstance(value, type):
            return self._class(value, where)
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, types.CodeType):
            signature = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
            names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
            return f"code {signature} {names} {value.co_code.hex()} {self._each(value.co_consts, where)}"
        parts: tuple[Any, ...] = ()
        if isinstance(value, types.MethodType):
            parts = (value.__func__, value.__self__)
        elif isinstance(value, (staticmethod, classmethod, _CACHED)):
            parts = (value.__wrapped__,)
        elif isinstance(value, property):
            parts = (value.fget, value.fset, value.fdel)
        elif isinstance(value, cached_property):
            parts = (value.func,)
        elif isinstance(value, partial):
            parts = (value.func, value.args, value.keywords)
        return f"{_name(type(value))} {self._each(parts, where)}" if parts else ""

    def _object(self, value: Any, where: str) -> str:
        kind = type(value)
        if not _is_python(kind):
            raise _UnknownError(f"{where} is a {_name(kind)}, whose state cannot be seen")
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        state = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
        attributes = [(name, self.digest(state[name], f"{where}.{name}")) for name in sorted(state)]
        return f"object of {self.digest(kind, where)} {attributes}"

    def _class(self, kind: type, where: str) -> str:
        parts: list[str] = []
        for base in kind.__mro__:
            parts.append(_name(base))
            if not self._is_own(base.__module__):
                continue
            for name, member in sorted(vars(base).items()):
                if _matters(base, name, member):
                    parts.append(f"{name} {self.digest(member, f'{where}: {_name(base)}.{name}')}")
        return f"class {parts}"

    def _function(self, function: types.FunctionType, where: str) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        if not self._is_own(function.__module__):
            return f"function {name}"
        code, outside = function.__code__, function.__globals__
        bound = [self.digest(_content(cell), f"{where}: {free}") for free, cell in _cells(function)]
        used = sorted(_names(code) & outside.keys())
        seen = [(key, self.digest(outside[key], f"{where}: {key}")) for key in used]
        defaults = self._each((function.__defaults__, function.__kwdefaults__), where)
        return f"function {name} {self.digest(code, where)} {bound} {seen} {defaults}"

    def _each(self, values: Iterable[Any], where: str) -> list[str]:
        return [self.digest(value, where) for value in values]

    def _is_own(self, module: str | None) -> bool:
        return module is not None and module.partition(".")[0] == self._package


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _matters(kind: type, name: str, member: Any) -> bool:
    # whether an attribute of a class says what it computes: its code and constants, not what Python notes beside them
    if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)) or name == "_abc_impl":
        return False
    if not (name.startswith("__") and name.endswith("__")):
        return True
    if not isinstance(member, (types.FunctionType, classmethod, staticmethod, property)):
        return False
    # what @dataclass writes follows from the fields, which are attributes
    written = isinstance(member, types.FunctionType) and member.__code__.co_filename == "<string>"
    return name == "__call__" or not (written and dataclasses.is_dataclass(kind))


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    hidden = f"_{kind.__name__.lstrip('_')}"  # Python keeps a name that begins with two underscores under this prefix
    return [hidden + name if name.startswith("__") and not name.endswith("__") else name for name in names]


def _names(code: types.CodeType) -> set[str]:
    # globals that a function, or one written inside it, may mean; an attribute of the same name does no harm
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _cells(function: types.FunctionType) -> Iterable[tuple[str, types.CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not bound yet


def _is_python(kind: type) -> bool:
    # whether all state of its instances is in their attributes: so it is for classes written in Python, down to object
    for base in kind.__mro__[:-1]:
        if base.__module__ in ("typing", "abc"):
            continue
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if base.__module__ != "__main__" and not str(file).endswith((".py", ".pyc")):
            return False
        if any(isinstance(member, _C_MEMBERS) for member in vars(base).values()):
            return False
    return True
