"""Gradients of a loss at the present parameters of a module, one a row: what an empirical Fisher matrix is made of.

Shapes: N examples, m gradients, P parameters in all.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hesse.curvature._binding import bind, choose_parameters, evaluation_mode
from hesse.curvature.mean_loss import batch_gradient
from hesse.curvature.per_sample import per_sample_gradients
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least
from hesse.linalg.layout import ParameterLayout

__all__ = ["Fisher", "Loss", "gradient_rows"]

Loss = Callable[[Any, Any], Tensor]
"""(model, batch) -> scalar."""
Fisher = Literal["empirical", "mc"]


def gradient_rows(
    module: nn.Module,
    loss_fn: Loss,
    data: Any,
    num_grads: int,
    batch_size: int = 32,
    *,
    per_sample: bool = False,
    mask: Mapping[str, Tensor] | Tensor | None = None,
    fisher: Fisher = "empirical",
    generator: Generator | None = None,
) -> Tensor:
    """Collect m gradients of a module's loss, in evaluation mode, each on examples drawn at random.

    Parameters
    ----------
    module : nn.Module
        Its parameters that require a gradient are the columns, ordered as ``ParameterLayout.of`` has them. Switched to
        evaluation mode for the call: a gradient must not depend on dropout or on the batch's statistics.
    loss_fn : callable
        (model, batch) -> scalar. Whether it sums or averages over the batch decides the scale of F.
    data : tensor, or tuples, lists and dictionaries of tensors
        Every tensor has the leading axis N. Examples are drawn without replacement until all have served, then anew.
    num_grads : int
        m >= 1.
    batch_size : int, default 32
        Examples behind a gradient; with ``per_sample``, examples to a vectorised pass.
    per_sample : bool, default False
        One gradient an example, so that m examples are used. Mini-batch gradients of an averaging loss have a Fisher
        matrix about ``batch_size`` times smaller away from a minimum's mean gradient, but see more data.
    mask : mapping of str to bool Tensor, or bool Tensor of shape (P,), optional
        Coordinates to keep; parameters not named are kept whole. Default: all.
    fisher : {"empirical", "mc"}, default "empirical"
        "mc" replaces the labels of a batch ``(inputs, labels)`` by draws from softmax(model(inputs)), which makes F a
        sample of the true Fisher, hence Gauss-Newton, matrix where the loss is cross-entropy.
    generator : torch.Generator, optional
        Source of the order and of the labels, on the CPU. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (m, P) or (m, coordinates kept)
        Detached, in the dtype and on the device of the parameters. A parameter that the loss does not reach has zeros.

    Raises
    ------
    ArgumentError
        If a number is below 1, there are no examples, no coordinate is left, or ``fisher`` is unknown.
    ArgumentTypeError
        If ``module`` is not a module, or "mc" meets something else than (inputs, integer labels).
    ShapeError
        If the leading axes of ``data`` differ, ``mask`` does not fit, the parameters differ in dtype or device, or the
        loss is not a scalar.
    NumericalError
        If a gradient has NaN or Inf; the message names the parameter.

    Notes
    -----
    One backward pass a gradient; with ``per_sample`` one for ``batch_size`` gradients. O(m P) memory.
    """
    call = "gradient_rows"
    for name, value in (("num_grads", num_grads), ("batch_size", batch_size)):
        at_least(call, name, value, 1)
    if fisher not in ("empirical", "mc"):
        raise ArgumentError(f"{call}: fisher must be 'empirical' or 'mc', got {fisher!r}")
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"{call}: expected a module, got {type(module).__name__}")
    with evaluation_mode(module):
        parameters = choose_parameters(call, module, None)
    layout = ParameterLayout.of(parameters)
    kept = _kept(call, layout, mask)
    examples = _examples(call, data, num_grads if per_sample else num_grads * batch_size, generator)
    first = next(iter(parameters.values()))
    rows = torch.empty(
        num_grads, layout.size if kept is None else int(kept.sum()), dtype=first.dtype, device=first.device
    )
    done = 0
    with evaluation_mode(module):
        for index in examples.split(batch_size):
            batch = tree_map(lambda t, index=index: t[index.to(t.device)] if isinstance(t, Tensor) else t, data)
            batch = batch if fisher == "empirical" else _with_sampled_labels(call, module, batch, generator)
            if per_sample:
                found = per_sample_gradients(loss_fn, module, batch).detach()
            else:
                function = bind(loss_fn, module, layout.names, batch)
                found = batch_gradient(call, function, tuple(parameters.values()))[1].unsqueeze(0)
            _require_finite(call, found, layout)
            found = found if kept is None else found[:, kept.to(found.device)]
            rows[done : done + len(found)] = found
            done += len(found)
    return rows


def _kept(call: str, layout: ParameterLayout, mask: Mapping[str, Tensor] | Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if isinstance(mask, Mapping):
        unknown = sorted(set(mask) - set(layout.names))
        if unknown:
            raise ArgumentError(f"{call}: mask names no parameter: {', '.join(unknown)}")
        whole = {
            name: torch.ones(shape, dtype=torch.bool) for name, shape in zip(layout.names, layout.shapes, strict=True)
        }
        mask = layout.flatten(whole | {name: piece.cpu() for name, piece in mask.items()})
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (layout.size,):
        raise ShapeError(f"{call}: expected a bool mask of {layout.size} coordinates, got {mask!r:.60}")
    if not bool(mask.any()):
        raise ArgumentError(f"{call}: the mask leaves no coordinate")
    return mask


def _examples(call: str, data: Any, count: int, generator: Generator | None) -> Tensor:
    lengths = {len(t) if t.ndim else 0 for t in tree_leaves(data) if isinstance(t, Tensor)}
    if len(lengths) != 1:
        raise ShapeError(
            f"{call}: every tensor of data needs one leading axis of examples, got lengths {sorted(lengths)}"
        )
    (length,) = lengths
    if length == 0:
        raise ArgumentError(f"{call}: data holds no examples")
    rounds = [torch.randperm(length, generator=generator) for _ in range(-(-count // length))]
    return torch.cat(rounds)[:count]


def _with_sampled_labels(call: str, module: nn.Module, batch: Any, generator: Generator | None) -> tuple[Any, Tensor]:
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise ArgumentTypeError(f"{call}: fisher='mc' needs data of the form (inputs, labels)")
    inputs, labels = batch
    with torch.no_grad():
        p = module(inputs).softmax(-1)
    if labels.is_floating_point() or labels.shape != p.shape[:-1]:
        raise ArgumentTypeError(
            f"{call}: fisher='mc' needs integer labels of shape {tuple(p.shape[:-1])}, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]).cpu(), 1, generator=generator)
    return inputs, drawn.reshape(labels.shape).to(labels)


def _require_finite(call: str, found: Tensor, layout: ParameterLayout) -> None:
    bad = ~torch.isfinite(found).all(0)
    if bool(bad.any()):
        names = [name for name in layout.names if bool(bad[layout.slice(name)].any())]
        raise NumericalError(f"{call}: the gradient of {', '.join(names)} has NaN or Inf")
