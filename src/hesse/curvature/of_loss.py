"""The Hessian or the Gauss-Newton matrix of a loss function as users write it, from that one function."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse.curvature.ggn import ggn
from hesse.curvature.hessian import CurvatureOperator, Function, Reduction, hessian
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["Matrix", "loss_curvature"]

Matrix = Literal["hessian", "ggn"]


def loss_curvature(
    loss_fn: Function,
    target: Any,
    batches: Any,
    *,
    matrix: Matrix = "hessian",
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    keep_graph: bool = False,
) -> CurvatureOperator:
    """Hessian or Gauss-Newton matrix of one loss function, which is all that has to be written.

    For "ggn" the outputs are what the model returns inside ``loss_fn``, and the output Hessian comes from
    differentiating ``loss_fn`` with the outputs put in the model's place; its reduction over examples is kept.

    Parameters
    ----------
    loss_fn : callable
        (model, batch) -> scalar, or (parameters, batch) -> scalar if ``target`` is a mapping. For "ggn" it calls the
        model exactly once, and is convex in what the model returns, a tensor.
    target : nn.Module or mapping of str to Tensor
        As in `hessian`; for "ggn" a module.
    batches : object, list, DataLoader or BatchStream
        As in `hessian`.
    matrix : {"hessian", "ggn"}, default "hessian"
        Which one.
    names : iterable of str, optional
        Only these parameters. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches; see `CurvatureOperator`.
    block_size, keep_graph : int and bool, default 16 and False
        See `CurvatureOperator`.

    Returns
    -------
    CurvatureOperator, shape (P, P)
        In the units of ``loss_fn``.

    Raises
    ------
    ArgumentError
        If ``matrix`` is unknown, or ``loss_fn`` does not call the model once for one tensor.
    ArgumentTypeError
        If "ggn" is asked of a mapping, which is not called.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    >>> loss_curvature(loss_fn, net, (torch.eye(2), torch.zeros(2, 1)), matrix="ggn").to_dense().detach()
    tensor([[1., 0.],
            [0., 1.]])
    """
    if matrix == "hessian":
        return hessian(
            loss_fn,
            target,
            batches,
            names=names,
            reduction=reduction,
            block_size=block_size,
            keep_graph=keep_graph,
        )
    if matrix != "ggn":
        raise ArgumentError(f"loss_curvature: matrix must be 'hessian' or 'ggn', got {matrix!r}")
    if not isinstance(target, nn.Module):
        raise ArgumentTypeError(
            "loss_curvature: matrix='ggn' needs a module, whose outputs it can tell from the loss; "
            "for a mapping of tensors use hesse.curvature.ggn"
        )

    def outputs_fn(model: Callable[..., Tensor], batch: Any) -> Tensor:
        seen: list[Tensor] = []

        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            seen.append(model(*args, **kwargs))
            return seen[-1]

        loss_fn(recorded, batch)
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            raise ArgumentError(
                f"loss_curvature: matrix='ggn' needs a loss_fn that calls the model once for one tensor; it was called "
                f"{len(seen)} times, for {type(seen[0]).__name__ if seen else 'nothing'}"
            )
        return seen[0]

    def output_hessian(outputs: Tensor, tangent: Tensor, batch: Any) -> Tensor:
        gradient = torch.func.grad(lambda z: loss_fn(lambda *_args, **_kwargs: z, batch))
        # symmetric, so the transpose does: torch cannot differentiate every loss's backward pass in forward mode
        return torch.func.vjp(gradient, outputs)[1](tangent)[0]

    return ggn(
        outputs_fn,
        target,
        batches,
        output_hessian,
        names=names,
        reduction=reduction,
        block_size=block_size,
        keep_graph=keep_graph,
    )
