"""How channels pass through operators that work entry by entry."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.compress.graph._flow import Flow, ParameterView, Value
from hesse.compress.graph._ids import NONE, ZERO, encode, ids_of, is_zero

__all__ = ["BINARY", "KEEPS_ZERO", "LOSES_ZERO", "add", "binary", "clamp", "masked_fill", "multiply", "power", "where"]

KEEPS_ZERO = frozenset(
    {
        "_to_copy",
        "abs",
        "alias",
        "arctan",
        "asin",
        "asinh",
        "atan",
        "bfloat16",
        "ceil",
        "celu",
        "clone",
        "contiguous",
        "cumsum",
        "detach",
        "double",
        "dropout",
        "elu",
        "erf",
        "expm1",
        "feature_dropout",
        "fix",
        "float",
        "floor",
        "gelu",
        "half",
        "hardshrink",
        "hardswish",
        "leaky_relu",
        "lift_fresh_copy",
        "log1p",
        "mish",
        "nan_to_num",
        "neg",
        "negative",
        "positive",
        "relu",
        "relu6",
        "round",
        "rrelu",
        "selu",
        "sgn",
        "sign",
        "silu",
        "sin",
        "sinh",
        "softshrink",
        "softsign",
        "sqrt",
        "square",
        "tan",
        "tanh",
        "tanhshrink",
        "to",
        "trunc",
        "type_as",
    }
)
"""f(0) = 0, entry by entry (or along a dimension that no channel varies along, for cumsum)."""

LOSES_ZERO = frozenset(
    {
        "acos",
        "alpha_dropout",
        "bitwise_not",
        "cos",
        "cosh",
        "eq",
        "erfc",
        "exp",
        "exp2",
        "ge",
        "gt",
        "hardsigmoid",
        "isinf",
        "isnan",
        "le",
        "log",
        "log10",
        "log2",
        "log_sigmoid",
        "logical_not",
        "lt",
        "ne",
        "reciprocal",
        "rsqrt",
        "sigmoid",
        "softplus",
    }
)
"""f(0) may be anything; what comes out still belongs to the channel."""


def _align(value: Value, ndim: int) -> Tensor | None:
    if value.codes is None:
        return None
    return value.codes.reshape([1] * (ndim - len(value.shape)) + list(value.shape))


def _combine(
    flow: Flow, a: Value, b: Value, zero: Callable[[Tensor, Tensor], Tensor], shape: Sequence[int] | None = None
) -> Value:
    # the union of the channels of two operands; ``zero`` says when the outcome is zero
    shape = torch.broadcast_shapes(a.shape, b.shape) if shape is None else tuple(shape)
    ndim = len(shape)
    sides = [_align(a, ndim), _align(b, ndim)]
    sizes = [(1,) * (ndim - len(s.shape)) + tuple(s.shape) for s in (a, b)]
    for me, other in ((0, 1), (1, 0)):
        codes = sides[me]
        if codes is None:
            continue
        theirs = sides[other]
        for dim in flow.channels.varying(codes):
            if theirs is None and sizes[other][dim] > 1:
                flow.channels.tie(codes, dim)  # the other operand has a size there that no cut can follow
            elif theirs is not None and sizes[other][dim] == 1:
                # one entry meets many channels: it is not one of them
                flow.channels.pin(ids_of(theirs), "it is spread over several channels")
                sides[other] = None
    if sides[0] is None and sides[1] is None:
        return Value(shape)
    left, right = (torch.full((1,) * ndim, NONE) if s is None else s for s in sides)
    ids_left, ids_right = ids_of(left).expand(shape), ids_of(right).expand(shape)
    flow.channels.unite(ids_left, ids_right)
    if sides[0] is not None and sides[1] is not None:
        for mine, others in ((ids_left, ids_right), (ids_right, ids_left)):
            flow.channels.pin(mine[(mine >= 0) & (others < 0)], "part of the tensor it meets is no channel's")
    ids = torch.where(ids_left >= 0, ids_left, ids_right)
    vanishes = zero(is_zero(left).expand(shape), is_zero(right).expand(shape))
    codes = torch.where(ids >= 0, encode(ids, vanishes), torch.where(vanishes, ZERO, NONE))
    return Value(shape, codes if bool((codes != NONE).any()) else None)


def _operand(flow: Flow, x: Any) -> Value | None:
    if isinstance(x, ParameterView):
        return flow.materialise(x)
    if isinstance(x, Value):
        return x
    if isinstance(x, bool | int | float):
        return Value(())
    return None


def add(flow: Flow, a: Any, b: Any, *, shape: Sequence[int] | None = None) -> Value | None:
    # A sum, difference, maximum or minimum: zero where both are
    return binary(flow, a, b, torch.logical_and, shape)


def multiply(flow: Flow, a: Any, b: Any, *, shape: Sequence[int] | None = None) -> Value:
    # A product: zero where one factor is
    found = binary(flow, a, b, torch.logical_or, shape)
    return Value(()) if found is None else found


def binary(
    flow: Flow,
    a: Any,
    b: Any,
    zero: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int] | None = None,
) -> Value | None:
    # an operator of two operands; None if one of them is neither tensor nor number
    if zero is torch.logical_and and any(isinstance(x, bool | int | float) and x == 0 for x in (a, b)):
        return _operand(flow, a if isinstance(a, Value | ParameterView) else b)  # x + 0
    left, right = _operand(flow, a), _operand(flow, b)
    return None if left is None or right is None else _combine(flow, left, right, zero, shape)


def _first(left: Tensor, _right: Tensor) -> Tensor:
    return left


def _never(left: Tensor, _right: Tensor) -> Tensor:
    return torch.zeros_like(left)


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.logical_and,
    "sub": torch.logical_and,
    "rsub": torch.logical_and,
    "maximum": torch.logical_and,
    "minimum": torch.logical_and,
    "lerp": torch.logical_and,
    "mul": torch.logical_or,
    "div": _first,
    "true_divide": _first,
    "eq": _never,
    "ne": _never,
    "lt": _never,
    "le": _never,
    "gt": _never,
    "ge": _never,
    "atan2": _never,
}
"""When the outcome of two operands is zero, given whether each is."""


def _with_zero(value: Value, keeps: bool) -> Value:
    if keeps or value.codes is None:
        return value
    return Value(value.shape, torch.where(value.codes == ZERO, NONE, encode(ids_of(value.codes), False)))


def power(flow: Flow, x: Any, exponent: Any) -> Value | None:
    # A power: zero where the base is, if the exponent is a positive number
    value = _operand(flow, x)
    if value is None or not isinstance(exponent, int | float):
        return None
    return _with_zero(value, exponent > 0)


def clamp(flow: Flow, x: Any, low: Any = None, high: Any = None) -> Value | None:
    # A clamp between numbers: zero stays zero if it lies between them
    value = _operand(flow, x)
    if value is None or isinstance(low, Value | ParameterView) or isinstance(high, Value | ParameterView):
        return None
    return _with_zero(value, (low is None or low <= 0) and (high is None or high >= 0))


def where(flow: Flow, condition: Any, a: Any, b: Any) -> Value | None:
    # A choice between two tensors by a condition that belongs to no channel
    if not isinstance(condition, Value) or condition.codes is not None:
        return None
    found = add(flow, a, b)
    return None if found is None else _combine(flow, found, condition, _first)


def masked_fill(flow: Flow, x: Any, mask: Any, value: Any) -> Value | None:
    # A number put where a mask says so
    return where(flow, mask, value, x)
