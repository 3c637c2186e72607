"""How channels pass through operators with parameters, and through products of tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.compress.graph._elementwise import add, multiply
from hesse.compress.graph._flow import Flow, ParameterView, Value
from hesse.compress.graph._ids import NONE, encode, ids_of, is_zero

__all__ = ["CONTRACTIONS", "Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """What a rule may know of the operator it is for."""

    name: str
    owner: str  # path of the module whose code calls it
    shape: tuple[int, ...]  # of what comes out
    head_mode: str


_NO_CHANNEL = "it meets entries that are no channel's, such as an input of the model"


def _spread(ids: Tensor, zero: Tensor | bool, shape: Sequence[int], dim: int) -> Value:
    codes = encode(ids, zero)
    place = [1] * len(shape)
    place[dim] = -1
    return Value(tuple(shape), codes.reshape(place).expand(*shape))


def _bias(flow: Flow, bias: Any, rows: Tensor) -> bool:
    # whether the output is zero once the rows are
    if bias is None:
        return True
    if isinstance(bias, ParameterView) and len(bias.shape) == 1:
        flow.channels.unite(rows, flow.axis(bias, 0, producer=True))
        return bias.trainable
    flow.pin(bias, "it is a bias that was computed")
    return False


def linear(flow: Flow, node: Node, x: Any, weight: Any, bias: Any = None) -> Value | None:
    # x Wᵀ + b: rows of W make channels, its columns take them
    if not isinstance(weight, ParameterView) or isinstance(x, ParameterView) or not weight.trainable:
        return None
    return _linear(flow, node, x, weight, bias, out_place=0)


def _linear(flow: Flow, node: Node, x: Value, weight: ParameterView, bias: Any, out_place: int) -> Value:
    flow.join(flow.consume(x, -1, node.name), flow.axis(weight, 1 - out_place, producer=False), _NO_CHANNEL)
    rows = flow.axis(weight, out_place, producer=True)
    _count_uses(flow, weight, node.shape, rows)
    return _spread(rows, _bias(flow, bias, rows), node.shape, -1)


def _count_uses(flow: Flow, weight: ParameterView, shape: Sequence[int], rows: Tensor) -> None:
    places = float(torch.Size(shape).numel()) / len(rows)
    flow.uses[weight.name] = flow.uses.get(weight.name, 0.0) + places


def addmm(flow: Flow, node: Node, bias: Any, x: Any, weight: Any) -> Value | None:
    # b + x W, with W a parameter of shape (inputs, outputs)
    if not isinstance(weight, ParameterView) or isinstance(x, ParameterView) or not weight.trainable:
        return None
    return _linear(flow, node, x, weight, bias, out_place=1)


def _convolution(
    flow: Flow, node: Node, x: Any, weight: Any, bias: Any, groups: int, *, transposed: bool
) -> Value | None:
    if not isinstance(weight, ParameterView) or isinstance(x, ParameterView) or not weight.trainable:
        return None
    channel = 1 if len(node.shape) == len(weight.shape) else 0  # an input without a batch
    if groups == 1:
        inputs, outputs = (0, 1) if transposed else (1, 0)
        flow.join(flow.consume(x, channel, node.name), flow.axis(weight, inputs, producer=False), _NO_CHANNEL)
        rows = flow.axis(weight, outputs, producer=True)
    else:
        # a group of a grouped convolution is cut whole: its inputs, its filters and its outputs are one class
        column = flow.consume(x, channel, node.name)
        filters = flow.axis(weight, 0, producer=True)
        if transposed:
            flow.join(column, filters, _NO_CHANNEL)
            rows = flow.channels.fresh(node.shape[channel])
        else:
            rows = filters
        together = torch.cat([column.reshape(groups, -1), filters.reshape(groups, -1), rows.reshape(groups, -1)], 1)
        flow.channels.unite(together, together.amax(1, keepdim=True).expand_as(together))
        flow.channels.pin(rows.reshape(groups, -1)[(column.reshape(groups, -1) < 0).any(1)], _NO_CHANNEL)
    _count_uses(flow, weight, node.shape, rows)
    return _spread(rows, _bias(flow, bias, rows), node.shape, channel)


def conv(
    flow: Flow,
    node: Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value | None:
    # A convolution, of any number of dimensions and groups
    return _convolution(flow, node, x, weight, bias, groups, transposed=False)


def conv_transpose(
    flow: Flow,
    node: Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value | None:
    # A transposed convolution, whose weight has the inputs first
    return _convolution(flow, node, x, weight, bias, groups, transposed=True)


def embedding(flow: Flow, node: Node, weight: Any, indices: Any, *_: Any) -> Value | None:
    # rows of a table: its columns make channels, its rows are not cut
    if not isinstance(weight, ParameterView) or not weight.trainable:
        return None
    flow.channels.pin(flow.axis(weight, 0, producer=False), "any index may ask for this row")
    return _spread(flow.axis(weight, 1, producer=True), True, node.shape, -1)


def _affine(flow: Flow, column: Tensor, weight: Any, bias: Any) -> bool:
    # unite channels with the scale and shift they meet; whether these take them to zero
    zero = True
    for parameter in (weight, bias):
        if isinstance(parameter, ParameterView):
            ids = flow.axis(parameter, 0, producer=parameter.trainable)
            flow.join(column, ids, _NO_CHANNEL)
            zero = zero and parameter.trainable
        elif parameter is not None:
            flow.channels.pin(column, "it is scaled or shifted by something computed")
            zero = False
    return zero and weight is not None


def batch_norm(flow: Flow, node: Node, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *_: Any) -> Value | None:
    # batch norm: scale, shift and running statistics belong to the channel, which they take to zero
    if isinstance(x, ParameterView):
        return None
    column = flow.columns(x, 1)[0]
    zero = _affine(flow, column, weight, bias)
    for statistics in (mean, var):
        if isinstance(statistics, ParameterView):
            flow.join(column, flow.axis(statistics, 0, producer=False), _NO_CHANNEL)
    return _spread(column, zero, node.shape, 1)


def layer_norm(flow: Flow, node: Node, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any):
    # layer norm over the last dimension; what is cut goes on counting as zero, see CountedLayerNorm
    if isinstance(x, ParameterView) or len(shape) != 1:
        return None
    column = flow.consume(x, -1, node.name)
    flow.norms.append((node.owner, column))
    return _spread(column, _affine(flow, column, weight, bias), node.shape, -1)


def rms_norm(flow: Flow, node: Node, x: Any, shape: Sequence[int], weight: Any = None, *_: Any) -> Value | None:
    # RMS norm over the last dimension: zeros stay zeros with or without a scale
    if isinstance(x, ParameterView) or len(shape) != 1:
        return None
    column = flow.consume(x, -1, node.name)
    _affine(flow, column, weight, None)
    flow.norms.append((node.owner, column))
    return _spread(column, True, node.shape, -1)


def group_norm(flow: Flow, node: Node, x: Any, groups: int, weight: Any = None, bias: Any = None, *_: Any):
    # group norm: its groups share their statistics, so that each is cut whole
    if isinstance(x, ParameterView):
        return None
    column = flow.columns(x, 1)[0]
    together = column.reshape(groups, -1)
    flow.channels.unite(together, together.amax(1, keepdim=True).expand_as(together))
    flow.channels.pin(together[(together < 0).any(1)], _NO_CHANNEL)
    return _spread(column, _affine(flow, column, weight, bias), node.shape, 1)


def matmul(flow: Flow, node: Node, a: Any, b: Any) -> Value | None:
    # A product of tensors: channels that are summed over are united, those of the free dimensions pass
    if isinstance(b, ParameterView) and len(b.shape) == 2 and not isinstance(a, ParameterView):
        return addmm(flow, node, None, a, b)
    if isinstance(a, ParameterView) or isinstance(b, ParameterView) or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    return product(flow, a, b, node.head_mode)


def baddbmm(flow: Flow, node: Node, start: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Value | None:
    # start + A B
    found = matmul(flow, node, a, b)
    return None if found is None or isinstance(start, ParameterView) else add(flow, start, found)


def einsum(flow: Flow, node: Node, equation: str, operands: Any, **_: Any) -> Value | None:
    # two operands, each label at most once in each: a product of stacks of matrices after a change of order
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if len(operands) != 2 or not arrow or "." in equation or any(isinstance(x, ParameterView) for x in operands):
        return None
    a, b = inputs.split(",")
    stack = [x for x in a if x in b and x in output]
    summed = [x for x in a if x in b and x not in output]
    rows, columns = [x for x in a if x not in b], [x for x in b if x not in a]
    if set(rows + columns) - set(output) or any(len(set(labels)) < len(labels) for labels in (a, b, output)):
        return None
    sizes = dict(zip(a + b, operands[0].shape + operands[1].shape, strict=True))

    def arranged(value: Value, labels: str, *parts: list[str]) -> Value:
        lead = [sizes[x] for x in stack]
        shape = (*lead, *(math.prod(sizes[x] for x in part) for part in parts))
        order = [labels.index(x) for part in (stack, *parts) for x in part]
        return Value(shape, None if value.codes is None else value.codes.permute(order).reshape(shape))

    left, right = arranged(operands[0], a, rows, summed), arranged(operands[1], b, summed, columns)
    found = product(flow, left, right, node.head_mode)
    if found.codes is None:
        return Value(node.shape)
    labels = [*stack, *rows, *columns]
    codes = found.codes.reshape([sizes[x] for x in labels]).permute([labels.index(x) for x in output])
    return Value(node.shape, codes)


def product(flow: Flow, a: Value, b: Value, head_mode: str) -> Value:
    # A B over the last two dimensions, stacks of matrices with broadcasting. A head is a place in the stack. With
    # ``head_mode="head"`` a head is cut whole, with "dim" all heads lose the same entries of the dimension that is
    # summed over or free
    channels = flow.channels
    for side in (a, b):
        if side.codes is None:
            continue
        dims, matrix = channels.varying(side.codes), side.codes.ndim - 2
        stack, inner = [d for d in dims if d < matrix], [d for d in dims if d >= matrix]
        if head_mode == "head" and matrix > 1:
            for dim in inner:  # also where a single head is left, whose place does not vary
                channels.tie(side.codes, dim)
        keep = None if not (stack and inner) else stack[0] if head_mode == "head" else inner[-1]
        channels.box(side.codes, keep=keep)
    left, right = a.full(), b.full()
    stack_shape = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left = left.expand(*stack_shape, *left.shape[-2:])
    right = right.expand(*stack_shape, *right.shape[-2:])
    summed_left, summed_right = left[..., 0, :], right[..., :, 0]
    free = channels.varies(summed_left, -1) or channels.varies(summed_right, -1)
    if free and (a.codes is None or b.codes is None):
        for side, dim in ((a, -1), (b, -2)):
            if side.codes is not None:
                channels.tie(side.codes, dim)  # the other factor cannot be cut to match
        free = False
    if free:
        channels.unite(ids_of(left).amax(-2), ids_of(right).amax(-1))
        for side, dim in ((left, -2), (right, -1)):
            channels.unite(ids_of(side), ids_of(side).amax(dim, keepdim=True).expand_as(side))
        reached = is_zero(left).all(-2) | is_zero(right).all(-1)
        channels.pin(ids_of(summed_left)[~reached], "its zero does not reach a product of tensors")
    shape = (*stack_shape, left.shape[-2], right.shape[-1])
    rows = _without(flow, left, -1, summed_away=free)
    columns = _without(flow, right, -2, summed_away=free)
    return multiply(flow, Value(rows.shape, rows), Value(columns.shape, columns), shape=shape)


def _without(flow: Flow, codes: Tensor, dim: int, *, summed_away: bool) -> Tensor:
    # what is left of a factor when one dimension is summed over
    if summed_away:
        return torch.full_like(codes.narrow(dim, 0, 1), NONE)
    return flow.collapse(codes, [dim])


def attention(
    flow: Flow,
    node: Node,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value | None:
    # softmax(q kᵀ + mask) v
    if any(isinstance(side, ParameterView) for side in (query, key, value, mask)):
        return None
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (
            Value((*s.shape[:-3], query.shape[-3], *s.shape[-2:]), s.full().repeat_interleave(repeats, -3))
            for s in (key, value)
        )
    turned = Value((*key.shape[:-2], key.shape[-1], key.shape[-2]), None if key.codes is None else key.codes.mT)
    scores = product(flow, query, turned, node.head_mode)
    if isinstance(mask, Value):
        scores = add(flow, scores, mask) or scores
    if scores.codes is not None:
        scores = Value(scores.shape, encode(ids_of(scores.codes), False))
    return product(flow, scores, value, node.head_mode)


CONTRACTIONS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "addmm": addmm,
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
    "baddbmm": baddbmm,
    "einsum": einsum,
    "conv1d": conv,
    "conv2d": conv,
    "conv3d": conv,
    "conv_transpose1d": conv_transpose,
    "conv_transpose2d": conv_transpose,
    "conv_transpose3d": conv_transpose,
    "embedding": embedding,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,  # the same arguments in the same order, and one channel at a time as well
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "scaled_dot_product_attention": attention,
}
