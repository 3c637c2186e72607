"""The conformance suite of layers: what a model and its training loop rely on, beside the values that come out.

Every check builds its layer anew. A layer is a module whose inputs and output have a leading batch axis.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError
from hesse.testing.linear_operator import ConformanceError

__all__ = ["check_layer"]

Shapes = tuple[tuple[int, ...], ...]
_DTYPES = (torch.float32, torch.float64)
_SMALL = 1e-12  # float64 sums taken in another order
_HALF_WIDTH = 1e-3  # float32 against float64, of the size of the output


@dataclass(frozen=True, slots=True)
class _Suite:
    factory: Callable[[], nn.Module]
    shapes: Shapes
    batch: int
    device: torch.device

    def layer(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same weights in every check
            module = self.factory()
        return module.to(device=self.device, dtype=dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> tuple[Tensor, ...]:
        generator = Generator().manual_seed(1)
        rows = self.batch if batch is None else batch
        drawn = (torch.randn((rows, *shape), generator=generator, dtype=torch.float64) for shape in self.shapes)
        return tuple(x.to(device=self.device, dtype=dtype) for x in drawn)


def check_layer(
    factory: Callable[[], nn.Module],
    *input_shapes: tuple[int, ...],
    batch_size: int = 3,
    skip: Collection[str] = (),
    device: torch.device | str = "cpu",
) -> tuple[str, ...]:
    """Run every check of a layer: 14 of them, some fifty passes forward and ten backward in all.

    The layer is looked at in evaluation mode, but for the check of the two modes.

    Parameters
    ----------
    factory : callable
        ``factory()`` -> Module, whose ``forward(*inputs)`` returns a tensor of shape (B, ...). It may draw its weights
        from torch's global generator.
    *input_shapes : tuple of int
        Shape of every input, without the batch axis. Inputs are standard normal.
    batch_size : int, default 3
        B >= 2.
    skip : collection of str, optional
        Checks to leave out, by the names returned.
    device : torch.device or str, default "cpu"
        Of layer and inputs.

    Returns
    -------
    tuple of str
        Names of the checks that ran.

    Raises
    ------
    ArgumentError
        If ``skip`` names no check, no shape is given, or ``batch_size < 2``.
    ConformanceError
        Listing every check that failed, each with what was found. Also an AssertionError.
    """
    if batch_size < 2:
        raise ArgumentError(f"check_layer: expected batch_size >= 2, got {batch_size}")
    if not input_shapes:
        raise ArgumentError(
            "check_layer: input_shapes: expected the shape of at least one input, without the batch axis"
        )
    checks = {check.__name__.removeprefix("_check_"): check for check in _CHECKS}
    if unknown := sorted(set(skip) - set(checks)):
        raise ArgumentError(f"check_layer: skip names no check: {', '.join(unknown)}; there are {', '.join(checks)}")
    suite = _Suite(factory, input_shapes, batch_size, torch.device(device))
    ran: list[str] = []
    failed: list[str] = []
    for name, check in checks.items():
        if name in skip:
            continue
        ran.append(name)
        try:
            check(suite)
        except Exception as error:  # whatever a layer under test may raise is a finding
            failed.append(f"{name}: {error if isinstance(error, ConformanceError) else repr(error)}")
    if failed:
        raise ConformanceError(f"the layer breaks {len(failed)} of {len(ran)} promises:\n  " + "\n  ".join(failed))
    return tuple(ran)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConformanceError(what)


def _require_close(found: Tensor, expected: Tensor, rtol: float, what: str) -> None:
    _require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    found, expected = found.detach().double(), expected.detach().double()
    gap = float((found - expected).abs().max()) if found.numel() else 0.0
    size = float(expected.abs().max()) if expected.numel() else 0.0
    _require(gap <= rtol * max(size, 1.0), f"{what}: off by {gap:.3g}, where the output is of size {size:.3g}")


def _check_keeps_dtype(suite: _Suite) -> None:
    outputs = []
    for dtype in _DTYPES:
        output = suite.layer(dtype)(*suite.inputs(dtype))
        _require(isinstance(output, Tensor), f"forward returned a {type(output).__name__}, not a tensor")
        _require(output.dtype == dtype, f"{dtype} inputs gave a {output.dtype} output")
        _require(output.shape[:1] == (suite.batch,), f"a batch of {suite.batch} gave shape {tuple(output.shape)}")
        outputs.append(output)
    _require_close(outputs[0], outputs[1], _HALF_WIDTH, "float32 against float64")


def _check_is_finite(suite: _Suite) -> None:
    for dtype in _DTYPES:
        for scale in (0.0, 1.0, 1e3):
            output = suite.layer(dtype)(*(scale * x for x in suite.inputs(dtype)))
            _require(bool(torch.isfinite(output).all()), f"{dtype} inputs of size {scale:g} gave NaN or Inf")


def _check_is_deterministic(suite: _Suite) -> None:
    layer, inputs = suite.layer(), suite.inputs()
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        first, second = layer(*inputs), layer(*inputs)
        _require(torch.equal(state, torch.get_rng_state()), "in evaluation mode it draws from torch's global generator")
    _require(torch.equal(first, second), "in evaluation mode two passes over the same inputs differ")


def _check_rows_are_independent(suite: _Suite) -> None:
    layer, inputs = suite.layer(), suite.inputs()
    whole = layer(*inputs)
    rows = [layer(*(x[i : i + 1] for x in inputs)) for i in range(suite.batch)]
    _require_close(torch.cat(rows), whole, _SMALL, "rows alone against the batch")


def _check_empty_batch(suite: _Suite) -> None:
    expected = suite.layer()(*suite.inputs()).shape[1:]
    found = suite.layer()(*suite.inputs(batch=0)).shape
    _require(found == (0, *expected), f"an empty batch gave shape {tuple(found)}, expected {(0, *expected)}")


def _check_leaves_inputs(suite: _Suite) -> None:
    inputs = suite.inputs()
    kept = [x.clone() for x in inputs]
    suite.layer()(*inputs)
    for i, (x, old) in enumerate(zip(inputs, kept, strict=True)):
        _require(torch.equal(x, old), f"input {i} was changed in place")


def _check_any_strides(suite: _Suite) -> None:
    inputs = suite.inputs()
    strided = tuple(torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] for x in inputs)
    _require_close(suite.layer()(*strided), suite.layer()(*inputs), _SMALL, "inputs that are not contiguous")


def _check_input_gradients(suite: _Suite) -> None:
    layer = suite.layer()
    inputs = tuple(x.requires_grad_() for x in suite.inputs(batch=2))
    try:
        torch.autograd.gradcheck(layer, inputs, fast_mode=True)
    except RuntimeError as error:
        raise ConformanceError(f"gradients of the inputs: {str(error).splitlines()[0]}") from error


def _check_parameter_gradients(suite: _Suite) -> None:
    layer = suite.layer()
    inputs = suite.inputs()
    trained: dict[str, Tensor] = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    weights = torch.randn(layer(*inputs).shape, generator=Generator().manual_seed(2), dtype=torch.float64)

    def value(point: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(layer, point, inputs)
        return (output * weights.to(output)).sum()

    value(trained).backward()
    for name, p in trained.items():
        _require(p.grad is not None and bool(p.grad.any()), f"no gradient reaches {name}, or zeros only")


def _check_state_dict_round_trip(suite: _Suite) -> None:
    layer, inputs = suite.layer(), suite.inputs()
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.25)
    saved = copy.deepcopy(layer.state_dict())
    for name, value in saved.items():
        _require(isinstance(value, Tensor), f"{name} of its state_dict is a {type(value).__name__}, not a tensor")
    restored = suite.layer()
    restored.load_state_dict(saved)
    _require(
        torch.equal(layer(*inputs), restored(*inputs)), "a layer restored from its state_dict gives another output"
    )


def _check_deepcopy(suite: _Suite) -> None:
    layer, inputs = suite.layer(), suite.inputs()
    before = layer(*inputs)
    other = copy.deepcopy(layer)
    _require(torch.equal(before, other(*inputs)), "a deep copy gives another output")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    _require(torch.equal(before, layer(*inputs)), "a change to a deep copy changed the layer")


def _check_modes(suite: _Suite) -> None:
    layer, inputs = suite.layer(), suite.inputs()
    before = layer(*inputs)
    layer.train()
    _require(all(module.training for module in layer.modules()), "train() did not reach every submodule")
    layer.eval()
    _require(torch.equal(before, layer(*inputs)), "train() and eval() changed the output")


def _check_keeps_no_graph(suite: _Suite) -> None:
    layer, inputs = suite.layer(), suite.inputs()
    with torch.no_grad():
        _require(not layer(*inputs).requires_grad, "under no_grad the output requires a gradient")
    layer(*inputs)
    for name, buffer in layer.named_buffers():
        _require(not buffer.requires_grad, f"buffer {name} holds a graph")


def _check_refuses_wrong_shapes(suite: _Suite) -> None:
    inputs = suite.inputs()
    for i, x in enumerate(inputs):
        grown = [torch.cat([x, x.narrow(axis, 0, 1)], axis) for axis in range(1, x.ndim)]
        tried = [(*inputs[:i], wrong, *inputs[i + 1 :]) for wrong in grown]
        _require(
            not tried or any(_is_refused(suite, wrong) for wrong in tried),
            f"input {i} of shape {tuple(x.shape)} may grow along any axis",
        )


def _is_refused(suite: _Suite, inputs: tuple[Tensor, ...]) -> bool:
    try:
        suite.layer()(*inputs)
    except (ValueError, TypeError, RuntimeError, AssertionError):
        return True
    return False


_CHECKS: tuple[Callable[[_Suite], None], ...] = (
    _check_keeps_dtype,
    _check_is_finite,
    _check_is_deterministic,
    _check_rows_are_independent,
    _check_empty_batch,
    _check_leaves_inputs,
    _check_any_strides,
    _check_input_gradients,
    _check_parameter_gradients,
    _check_state_dict_round_trip,
    _check_deepcopy,
    _check_modes,
    _check_keeps_no_graph,
    _check_refuses_wrong_shapes,
)
