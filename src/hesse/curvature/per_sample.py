"""The gradient of the loss of every example by itself, in one vectorised pass.   Shapes: B examples, P parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from hesse.curvature._binding import Function, Target, bind, check_function, choose_parameters, join
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.layout import ParameterLayout

__all__ = ["per_sample_gradients"]


def per_sample_gradients(
    loss_fn: Function,
    target: Target,
    batch: Any,
    *,
    names: Iterable[str] | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute g_i = ∂L(θ; example i)/∂θ for every example of a batch.

    Parameters
    ----------
    loss_fn : callable
        (model, batch of one) -> scalar, where the model is called as usual; or (parameters, batch of one) -> scalar if
        ``target`` is a mapping. The leading axis of the batch, of length 1, is kept, so that a loss written for batches
        serves unchanged.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batch : tensor, or tuples, lists and dictionaries of tensors
        Every tensor has the leading axis B; anything else in it is handed on as it is.
    names : iterable of str, optional
        Only these parameters. Default: all.
    chunk_size : int, optional
        Examples to a pass; memory grows with it, the numbers stay the same to rounding. Default: all at once.

    Returns
    -------
    Tensor, shape (B, P)
        In the units of the loss per unit of the parameter; columns as ``ParameterLayout.of`` the chosen parameters has
        them. In the dtype and on the device of the parameters; in half precision as coarse as any gradient there.
        Differentiable once more: call under `torch.no_grad` to have the numbers without their graph.

    Raises
    ------
    ArgumentError
        If a name is unknown, the batch holds no tensor, ``chunk_size < 1``, or a layer is in training mode that would
        draw random numbers or change its buffers.
    ArgumentTypeError
        If ``loss_fn`` cannot be called or ``target`` is of another kind.
    ShapeError
        If the tensors of the batch differ in their leading axis, or a loss is not a scalar.

    Notes
    -----
    About the time of one backward pass over the batch and O(B P) memory, of which the answer is one part; a loop over
    examples gives the same numbers, much slower for small models.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.0, 1.0])
    >>> loss_fn = lambda p, b: (b[0] @ p["w"] - b[1]).square().sum() / 2
    >>> per_sample_gradients(loss_fn, {"w": torch.ones(2)}, (x, y))
    tensor([[1., 0.],
            [0., 2.]])
    """
    call = "per_sample_gradients"
    check_function(call, loss_fn)
    chosen = choose_parameters(call, target, names)
    if chunk_size is not None and chunk_size < 1:
        raise ArgumentError(f"{call}: expected chunk_size >= 1, got {chunk_size}")
    layout, values = ParameterLayout.of(chosen), tuple(chosen.values())
    leaves, structure = tree_flatten(batch)
    count = _batch_size(leaves)
    if count == 0:
        return values[0].new_zeros(0, layout.size)

    def scalar(at: tuple[Tensor, ...], one: list[Any]) -> Tensor:
        value = bind(loss_fn, target, layout.names, tree_unflatten(one, structure))(at)
        if value.ndim != 0:
            raise ShapeError(f"{call}: loss_fn must return a scalar, got shape {tuple(value.shape)}")
        return value

    gradient = torch.func.grad(scalar)

    def row(*example: Any) -> Tensor:
        one = [leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in example]
        return join(gradient(values, one))

    axes = tuple(0 if isinstance(leaf, Tensor) else None for leaf in leaves)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for a further batch axis
        return torch.vmap(row, in_dims=axes, chunk_size=chunk_size)(*leaves)


def _batch_size(leaves: list[Any]) -> int:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise ArgumentError("per_sample_gradients: the batch holds no tensor")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(not shape or shape[0] != (shapes[0] or (None,))[0] for shape in shapes):
        raise ShapeError(
            f"per_sample_gradients: every tensor of the batch needs one leading axis of examples, got shapes {shapes}"
        )
    return shapes[0][0]
