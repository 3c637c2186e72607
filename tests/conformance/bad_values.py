"""Ways in which a tensor can be wrong, hard or merely unusual, and the verdict on what a method makes of each.

The rule: bad input raises an error of hesse that names the argument, or comes out as NaN or Inf; a finite number never
comes out of NaN; what is only unusual (strides, gradients, memory that may not be written) changes nothing. Warnings
are allowed. Where a function or a module of the user's meets the tensor first, errors raised there pass unchanged.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hesse.errors import HesseError

__all__ = ["KINDS", "VARIANTS", "verdict"]


def with_entry(value: float) -> Callable[[Tensor], Tensor]:
    """The tensor with its middle entry replaced."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[x.numel() // 2] = value
        return x

    return change


def strided(x: Tensor) -> Tensor:
    """The same values, every second place of a larger block."""
    block = torch.full((*x.shape, 2), 7.0, dtype=x.dtype)
    block[..., 0] = x
    return block[..., 0]


def read_only(x: Tensor) -> Tensor:
    """The same values in an array that may not be written to; torch takes it and warns, which is not our business."""
    array = x.numpy().copy()
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def whole(x: Tensor) -> Tensor:
    """Integers near the values, as int64."""
    return (4 * x).round().long()


VARIANTS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "NaN": ("poison", with_entry(float("nan"))),
    "Inf": ("poison", with_entry(float("inf"))),
    "-Inf": ("poison", with_entry(float("-inf"))),
    "all NaN": ("poison", lambda x: torch.full_like(x, float("nan"))),
    "empty": ("wrong", lambda x: x[:0]),
    "0-d": ("wrong", lambda x: x.reshape(-1)[0]),
    "an axis too many": ("wrong", lambda x: x.expand(2, 2, *x.shape)),
    "meta device": ("wrong", lambda x: x.to("meta")),
    "integers": ("integers", whole),
    "1e38": ("extreme", lambda x: 1e38 * (x.sign() + (x == 0))),
    "subnormal": ("extreme", lambda x: x.sign() * torch.finfo(x.dtype).tiny / 8),
    "float16": ("extreme", lambda x: x.half()),
    "bfloat16": ("extreme", lambda x: x.bfloat16()),
    "strided": ("harmless", strided),
    "needs grad": ("harmless", lambda x: x.clone().requires_grad_()),
    "read-only": ("harmless", read_only),
    "untouched": ("untouched", lambda x: x),
}
KINDS = {name: kind for name, (kind, _) in VARIANTS.items()}


def numbers(result: Any) -> list[Tensor]:
    """All numbers in a result, as detached tensors in one order."""
    found = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            found.append(leaf.detach().to_dense() if leaf.layout != torch.strided else leaf.detach())
        elif isinstance(leaf, float | int | np.number | np.ndarray):
            found.append(torch.as_tensor(leaf))
    return found


def is_finite(values: Iterable[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values if value.device.type != "meta")


def same(found: list[Tensor], expected: list[Tensor], rtol: float) -> bool:
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=rtol, atol=rtol, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def verdict(name: str, call: Callable[[Any], Any], x: Tensor, argument: str, *, user_code: bool = False) -> str | None:
    """What is wrong with how ``call`` answers this variant of ``x``; None where it keeps the rule.

    ``argument`` is a regular expression that an error's message must hold: the name the user knows the input by.
    ``user_code`` says that a function of the user's meets the tensor first, and may refuse it in its own words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _verdict(name, call, x, argument, user_code=user_code)


def _verdict(name: str, call: Callable[[Any], Any], x: Tensor, argument: str, *, user_code: bool) -> str | None:
    kind, change = VARIANTS[name]
    given = change(x.clone())
    before = given.detach().clone()
    try:
        found = numbers(call(given))
    except HesseError as error:
        if kind in ("harmless", "untouched"):
            return f"refused: {error}"
        named = kind == "extreme" or re.search(argument, str(error))
        return None if named else f"the message does not name the argument: {error}"
    except Exception as error:
        if user_code and kind in ("wrong", "integers", "extreme"):
            return None
        return f"{type(error).__name__}, which is no error of hesse: {error}"
    if kind == "poison" and is_finite(found):
        return "finite numbers came out"
    if kind == "wrong" and any(value.numel() and value.device.type != "meta" for value in found):
        return "was taken"
    if kind == "integers" and not any(
        same(found, numbers(call(given.to(dtype))), 1e-4) for dtype in (x.dtype, torch.float32)
    ):
        return "not what the same values as floating-point numbers give"
    if kind == "harmless" and not same(found, numbers(call(x.clone())), 1e-6):
        return "another result than from the plain tensor"
    if kind == "untouched" and not torch.equal(given, before):
        return "the input was changed in place"
    return None
