"""One pass over the traced graph: which channel each entry of every parameter serves."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from hesse.compress.graph._contractions import CONTRACTIONS, Node
from hesse.compress.graph._elementwise import (
    BINARY,
    KEEPS_ZERO,
    LOSES_ZERO,
    binary,
    clamp,
    masked_fill,
    multiply,
    power,
    where,
)
from hesse.compress.graph._flow import Flow, ParameterView, Value
from hesse.compress.graph._ids import NONE, ZERO, encode, ids_of, is_zero
from hesse.compress.graph._trace import Trace

__all__ = ["propagate"]

_MOVES = frozenset(
    {
        "_unsafe_view",
        "cat",
        "channel_shuffle",
        "chunk",
        "concat",
        "concatenate",
        "expand",
        "expand_as",
        "flatten",
        "flip",
        "mT",
        "movedim",
        "narrow",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "repeat_interleave",
        "reshape",
        "reshape_as",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "swapaxes",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
    }
)
_POOLS = frozenset(
    {
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "lp_pool2d",
        "max_pool1d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "max_pool3d",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "upsample_linear1d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "upsample_trilinear3d",
    }
)
_REDUCTIONS = frozenset({"amax", "amin", "max", "mean", "min", "sum"})
_TURNS = frozenset({"movedim", "permute", "swapaxes", "t", "transpose"})


def propagate(trace: Trace, shapes: dict[str, tuple[int, ...]], head_mode: str) -> Flow:
    # walk the graph from inputs to outputs
    flow = Flow()
    values: dict[fx.Node, Any] = {}
    last_use = {used: node for node in trace.graph.nodes for used in node.all_input_nodes}
    for node in trace.graph.nodes:
        values[node] = _value(flow, trace, node, values, shapes, head_mode)
        for used in node.all_input_nodes:
            if last_use[used] is node:
                del values[used]
    return flow


def _value(
    flow: Flow,
    trace: Trace,
    node: fx.Node,
    values: dict[fx.Node, Any],
    shapes: dict[str, tuple[int, ...]],
    head_mode: str,
) -> Any:
    if node.op == "placeholder":
        for names, trainable in ((trace.parameters, True), (trace.buffers, False)):
            if node.name in names:
                name = names[node.name]
                return ParameterView(name, shapes[name], tuple(range(len(shapes[name]))), trainable)
        return _plain(node)
    args: Any = map_arg(node.args, lambda used: values[used])
    kwargs: Any = map_arg(node.kwargs, lambda used: values[used])
    if node.op == "output":
        flow.pin(args, "it is an output of the model")
        return None
    if node.op != "call_function":
        return _plain(node)
    if node.target is operator.getitem and isinstance(args[0], list | tuple) and isinstance(args[1], int):
        return args[0][args[1]]
    name, in_place = _operator_name(node.target)
    where_from = Node(name, _owner(node), _shape(node), head_mode)
    found = _apply(flow, where_from, node.target, name, args, kwargs)
    if found is None:
        if _shape(node) is not None or isinstance(node.meta.get("val"), list | tuple):
            flow.pin([args, list(kwargs.values())], f"the operator {name} is not known to keep channels apart")
        return _plain(node)
    if in_place and isinstance(node.args[0], fx.Node) and node.args[0] in values:
        values[node.args[0]] = found
    return found


def _mapped(args: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    def one(item: Any) -> Any:
        return function(item) if isinstance(item, kind) else item

    return map_aggregate(args, one)


def _operator_name(target: Any) -> tuple[str, bool]:
    schema = getattr(target, "_schema", None)
    name = str(target) if schema is None else schema.name.split("::")[-1]
    in_place = name.endswith("_") and not name.endswith("__")
    return name.rstrip("_") if in_place else name, in_place


def _owner(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _plain(node: fx.Node) -> Any:
    # what a node gives if no channel passes: tensors of that shape, or the thing itself
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return Value(tuple(value.shape))
    if isinstance(value, list | tuple):
        return [Value(tuple(v.shape)) if isinstance(v, Tensor) else v for v in value]
    return value


def _holds_channels(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(_holds_channels(item) for item in x)
    return isinstance(x, ParameterView) or (isinstance(x, Value) and x.codes is not None)


def _apply(flow: Flow, node: Node, target: Any, name: str, args: Any, kwargs: Any) -> Any:
    # None: no rule; the caller pins what came in
    if name in CONTRACTIONS and node.shape is not None:
        return CONTRACTIONS[name](flow, node, *args, **kwargs)
    if not _holds_channels([args, list(kwargs.values())]):
        return None
    if name in _TURNS and isinstance(args[0], ParameterView):
        order = _order(target, len(args[0].shape), args[1:], kwargs)
        return ParameterView(args[0].name, args[0].sizes, tuple(args[0].dims[i] for i in order), args[0].trainable)
    if name in _ENTRYWISE:
        return _ENTRYWISE[name](flow, *args, **kwargs)
    args = _mapped(args, ParameterView, flow.materialise)
    if name in BINARY and len(args) > 1:
        return binary(flow, args[0], args[1], BINARY[name])
    if name in KEEPS_ZERO or name in LOSES_ZERO:
        return _entry_by_entry(flow, name, args, kwargs)
    if name in _MOVES:
        return _move(flow, node, target, name, args, kwargs)
    if name in _POOLS and isinstance(args[0], Value):
        return _pool(flow, node, args[0])
    if name in _REDUCTIONS and isinstance(args[0], Value):
        return _reduce(flow, node, name, args, kwargs)
    return None


def _order(target: Any, ndim: int, rest: Any, kwargs: Any) -> list[int]:
    # where each dimension of the outcome stood before: its stride tells
    strides = [2**d for d in range(ndim)]
    probe = torch.empty_strided((2,) * ndim, strides, device="meta")
    return [strides.index(stride) for stride in target(probe, *rest, **kwargs).stride()]


def _entry_by_entry(flow: Flow, name: str, args: Any, kwargs: Any) -> Value | None:
    x = args[0]
    if not isinstance(x, Value) or _holds_channels([args[1:], list(kwargs.values())]):
        return None
    if name == "cumsum" and x.codes is not None and flow.channels.varies(x.codes, args[1]):
        return None
    if x.codes is None or name in KEEPS_ZERO:
        return x
    return Value(x.shape, torch.where(x.codes == ZERO, NONE, encode(ids_of(x.codes), False)))


def _softmax(flow: Flow, x: Any, dim: int, *_: Any) -> Value | None:
    if not isinstance(x, Value) or (x.codes is not None and flow.channels.varies(x.codes, dim)):
        return None
    return x if x.codes is None else Value(x.shape, encode(ids_of(x.codes), False))


def _prelu(flow: Flow, x: Any, weight: Any) -> Value | None:
    if not isinstance(x, Value) or not isinstance(weight, ParameterView):
        return None
    if weight.shape[0] > 1:
        flow.join(flow.columns(x, 1)[0], flow.axis(weight, 0, producer=True), "it meets an input of the model")
    return x


def _glu(flow: Flow, x: Any, dim: int = -1) -> Value | None:
    if not isinstance(x, Value) or x.codes is None:
        return None
    value, gate = x.codes.chunk(2, dim)
    return multiply(flow, Value(tuple(value.shape), value), Value(tuple(gate.shape), encode(ids_of(gate), False)))


def _pad(flow: Flow, x: Any, pad: Any, value: Any = 0.0) -> Value | None:
    if not isinstance(x, Value) or x.codes is None:
        return None
    for place in range(0, len(pad), 2):
        dim = x.codes.ndim - 1 - place // 2
        if (pad[place] or pad[place + 1]) and flow.channels.varies(x.codes, dim):
            flow.channels.tie(x.codes, dim)
    if isinstance(value, str):  # "reflect" and its like repeat what is there; they pad places, never channels
        found = F.pad(x.codes.double(), pad, mode=value).long()
    else:
        found = F.pad(x.codes, pad, value=NONE if value else ZERO)
    return Value(tuple(found.shape), found)


def _mode_pad(flow: Flow, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Value | None:
    return _pad(flow, x, pad, (value or 0.0) if mode == "constant" else mode)


def _addc(zero_of: Callable[..., Value | None]) -> Callable[..., Value | None]:
    def rule(flow: Flow, start: Any, a: Any, b: Any, **_: Any) -> Value | None:
        inner = zero_of(flow, a, b)
        return None if inner is None else binary(flow, start, inner, torch.logical_and)

    return rule


_ENTRYWISE: dict[str, Callable[..., Value | None]] = {
    "pow": power,
    "clamp": clamp,
    "clip": clamp,
    "hardtanh": clamp,
    "clamp_min": clamp,
    "where": where,
    "masked_fill": masked_fill,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _softmax,
    "prelu": _prelu,
    "glu": _glu,
    "constant_pad_nd": _pad,
    "pad": _mode_pad,
    "addcmul": _addc(multiply),
}


def _move(flow: Flow, node: Node, target: Any, name: str, args: Any, kwargs: Any) -> Any:
    # the very same operator on the codes
    before = [x for x in (args[0] if isinstance(args[0], list | tuple) else args[:1]) if isinstance(x, Value)]
    # contiguous: views of the codes need not have the strides of the tensor they stand for
    coded = _mapped(args, Value, lambda value: value.full().contiguous())
    found = target(*coded, **kwargs)
    parts = [found] if isinstance(found, Tensor) else list(found)
    if (
        name in ("slice", "select", "narrow", "unbind", "split", "split_with_sizes", "chunk")
        and before[0].codes is not None
    ):
        dim = _dim_of(name, args, kwargs) % len(before[0].shape)
        if flow.channels.varies(before[0].codes, dim):
            if name in ("split", "split_with_sizes", "chunk") and len({tuple(p.shape) for p in parts}) == 1:
                for part in parts[1:]:  # equal parts stay equal if each loses the same places
                    flow.channels.unite(ids_of(parts[0]), ids_of(part))
            elif name not in ("slice", "narrow") or parts[0].shape != before[0].codes.shape:
                flow.channels.tie(before[0].codes, dim)
    for codes in [x.codes for x in before] + parts:
        if codes is not None and bool((codes >= 0).any()):
            flow.boxes.append(codes)
            flow.moved.append((node.owner, codes))
    if isinstance(found, Tensor):
        return Value(tuple(found.shape), found)
    return [Value(tuple(part.shape), part) for part in parts]


def _dim_of(name: str, args: Any, kwargs: Any) -> int:
    place = {"slice": 1, "select": 1, "narrow": 1, "unbind": 1}.get(name, 2)
    return args[place] if len(args) > place else kwargs.get("dim", 0)


def _pool(flow: Flow, node: Node, x: Value) -> Value | None:
    if x.codes is None or node.shape is None:
        return None
    places = tuple(range(2 - (len(node.shape) != len(x.shape)), len(x.shape)))
    return Value(node.shape, flow.collapse(x.codes, places).expand(node.shape))


def _reduce(flow: Flow, node: Node, name: str, args: Any, kwargs: Any) -> Value | None:
    x = args[0]
    if x.codes is None or node.shape is None:
        return None
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = list(range(len(x.shape))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted({d % len(x.shape) for d in dims})
    varies = any(flow.channels.varies(x.codes, d) for d in dims)
    if varies:
        if name != "sum":
            return None
        flow.channels.pin(ids_of(x.codes)[~is_zero(x.codes)], "its zero does not reach a sum")
        return Value(node.shape)
    return Value(node.shape, flow.collapse(x.codes, dims).reshape(node.shape))
