"""Gauss-Newton and Fisher matrices as operators: a forward- and a reverse-mode product a column, no matrix formed.

    G = Σ_b J_bᵀ H_b J_b,    J_b = ∂z_b/∂θ for the outputs z_b,   H_b = ∂²ℓ/∂z² for the loss ℓ on top of them

Shapes: P parameters in all, outputs z (..., V).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hesse.curvature._binding import Function, Target, join, split
from hesse.curvature._graph import gradient_map, join_columns, pull_once, push_once, split_columns
from hesse.curvature.hessian import Column, Columns, CurvatureOperator, Reduction, Values
from hesse.errors import ArgumentTypeError, ShapeError

__all__ = ["GgnOperator", "OutputHessian", "cross_entropy_hessian", "fisher", "ggn", "squared_error_hessian"]

OutputHessian = Callable[[Tensor, Tensor, Any], Tensor]
"""(outputs z, tangent of z, batch) -> H times the tangent, shaped like z and linear in the tangent."""


def cross_entropy_hessian(outputs: Tensor, tangent: Tensor, _batch: Any = None) -> Tensor:
    """(diag(p) - p pᵀ) t, p = softmax(z) over the last axis: output Hessian of summed cross-entropy, for any labels.

    Parameters
    ----------
    outputs : Tensor, shape (..., V)
        Logits z.
    tangent : Tensor, shape (..., V)
        t.

    Returns
    -------
    Tensor, shape (..., V)
        Of a *sum* over rows; a mean is a factor for the caller.
    """
    p = outputs.softmax(-1)
    return p * (tangent - (p * tangent).sum(-1, keepdim=True))


def squared_error_hessian(_outputs: Tensor, tangent: Tensor, _batch: Any = None) -> Tensor:
    """Return the tangent as it is: the output Hessian of ½ ‖z - y‖² is the identity.

    Parameters
    ----------
    tangent : Tensor, shape (..., V)
        t.

    Returns
    -------
    Tensor, shape (..., V)
        The tangent.
    """
    return tangent


class GgnOperator(CurvatureOperator):
    """J^T H J with the output Hessian H of a function given; see `ggn`, which makes it.

    Parameters
    ----------
    output_hessian : callable
        (z, tangent, batch) -> H tangent.
    function, target, batches, **options
        As of `CurvatureOperator`.
    """

    def __init__(
        self, output_hessian: OutputHessian, function: Function, target: Target, batches: Any, **options: Any
    ) -> None:
        if not callable(output_hessian):
            raise ArgumentTypeError(f"ggn: output_hessian must be callable, got {type(output_hessian).__name__}")
        super().__init__(function, target, batches, **options)
        self.output_hessian = output_hessian

    def _curve(self, outputs: Tensor, batch: Any, index: int) -> Callable[[Tensor], Tensor]:
        # H of one batch as a function of the tangent alone; a subclass may draw something once a batch
        def curve(tangent: Tensor) -> Tensor:
            curved = self.output_hessian(outputs, tangent, batch)
            if curved.shape != outputs.shape:
                raise ShapeError(
                    f"ggn: output_hessian gave shape {tuple(curved.shape)} for outputs of shape {tuple(outputs.shape)}"
                )
            return curved

        return curve

    def _product(self, function: Callable[[Values], Tensor], batch: Any, index: int) -> Column:
        values = self.tensors_in_order
        outputs, pull = torch.func.vjp(function, values)[:2]
        curve = self._curve(outputs, batch, index)

        def product(vector: Tensor) -> Tensor:
            tangent = torch.func.jvp(function, (values,), (split(self.layout, vector),))[1]
            return join(pull(curve(tangent))[0])

        return product

    def _recorded(self, function: Callable[[Values], Tensor], leaves: Values, batch: Any, index: int) -> Columns:
        with torch.enable_grad():
            outputs = function(leaves)
            if not outputs.requires_grad:
                return lambda columns, _last: torch.zeros_like(columns)
            # J^T u is linear in u, so that its own reverse-mode derivative is J v, whatever u
            anywhere = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(
                outputs, leaves, anywhere, create_graph=True, allow_unused=True, materialize_grads=True
            )
        curve = self._curve(outputs.detach(), batch, index)
        push, pull = gradient_map(pulled, [anywhere]), gradient_map([outputs], leaves)

        def product(columns: Tensor, last: bool) -> Tensor:
            (tangents,) = push(split_columns(self.layout, columns), False)  # both maps share the graph of the outputs
            curved = torch.vmap(curve)(tangents) if len(tangents) > 1 else curve(tangents[0]).unsqueeze(0)
            return join_columns(pull([curved], last))

        return product

    def _numbers(self, function: Callable[[Values], Tensor], batch: Any, index: int, columns: Tensor) -> Tensor:
        if self.block_size > 1 and len(columns) > 1:
            return self._vectorised(self._product(function, batch, index), columns)
        values = self.tensors_in_order
        products: list[Tensor] = []
        for column in columns:
            # forward mode first: it keeps nothing, so that the backward pass has the memory to itself
            outputs, tangent = push_once(function, values, split(self.layout, column))
            products.append(join(pull_once(function, values, self._curve(outputs, batch, index)(tangent))))
        return torch.stack(products)


def ggn(
    outputs_fn: Function,
    target: Target,
    batches: Any,
    output_hessian: OutputHessian = cross_entropy_hessian,
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    keep_graph: bool = False,
    is_psd: bool = True,
) -> GgnOperator:
    """G = Σ_b J_bᵀ H_b J_b as an operator of order P.

    Equal to the Hessian where the outputs are linear in the parameters; equal to the Fisher matrix with labels drawn
    from the model where the loss is a negative log-likelihood whose natural parameters are the outputs.

    Parameters
    ----------
    outputs_fn : callable
        (model, batch) -> outputs z, any shape; or (parameters, batch) -> z if ``target`` is a mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object, list, DataLoader or BatchStream
        One batch, a list of them, or a loader that is streamed; see `CurvatureOperator`.
    output_hessian : callable, default cross_entropy_hessian
        (z, tangent, batch) -> H tangent. Mask padded positions here, or leave them out of z.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches; see `CurvatureOperator`.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.
    keep_graph : bool, default False
        Keep the graph of the outputs between products; see `CurvatureOperator`.
    is_psd : bool, default True
        Whether H is positive semi-definite, as it is for every convex loss; G then is so too.

    Returns
    -------
    GgnOperator, shape (P, P)
        Symmetric, in the dtype and on the device of the parameters; its ``layout`` names the rows. Exact up to
        rounding.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, or an option is out of range.
    ArgumentTypeError
        If ``target`` or ``output_hessian`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device; in a product, if H does not keep the shape of the outputs.

    Notes
    -----
    A product costs about a forward and a gradient a column and batch, in the memory of little more than one backward
    pass for each column of a block. J v is taken in forward mode; an operation of the model that has no forward-mode
    derivative needs ``keep_graph=True``, which uses reverse mode alone.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> operator = ggn(lambda model, x: model(x), net, torch.eye(2) * 3, squared_error_hessian)
    >>> operator.to_dense().detach()
    tensor([[9., 0.],
            [0., 9.]])

    References
    ----------
    N. N. Schraudolph (2002), Neural Computation 14(7). J. Martens (2020), JMLR 21(146), arXiv 1412.1193.
    """
    return GgnOperator(
        output_hessian,
        outputs_fn,
        target,
        batches,
        names=names,
        reduction=reduction,
        block_size=block_size,
        keep_graph=keep_graph,
        is_psd=is_psd,
    )


def fisher(
    losses_fn: Function,
    target: Target,
    batches: Any,
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    keep_graph: bool = False,
) -> GgnOperator:
    """F = Σ_n g_n g_nᵀ, the sum of outer products of per-example gradients, as an operator of order P.

    Whose labels the losses use decides which Fisher matrix it is: drawn from the model, an unbiased sample of the
    Fisher (and Gauss-Newton) matrix; the data's own, the *empirical* Fisher, which is neither. For the exact Fisher of
    a softmax use `ggn`.

    Parameters
    ----------
    losses_fn : callable
        (model, batch) -> (B,), the loss of every example, not averaged; or (parameters, batch) -> (B,) for a mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object, list, DataLoader or BatchStream
        One batch, a list of them, or a loader that is streamed; see `CurvatureOperator`.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches; within a batch it is always the sum.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.
    keep_graph : bool, default False
        Keep the graph of the losses between products; see `CurvatureOperator`.

    Returns
    -------
    GgnOperator, shape (P, P)
        Positive semi-definite, of rank at most the number of examples.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, or an option is out of range.
    ArgumentTypeError
        If ``target`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device; in a product, if the losses are not a vector.

    References
    ----------
    F. Kunstner, L. Balles, P. Hennig (2019), NeurIPS, arXiv 1905.12558.
    """
    return ggn(
        losses_fn,
        target,
        batches,
        _outer_product,
        names=names,
        reduction=reduction,
        block_size=block_size,
        keep_graph=keep_graph,
    )


def _outer_product(losses: Tensor, tangent: Tensor, _batch: Any) -> Tensor:
    if losses.ndim != 1:
        raise ShapeError(f"fisher: losses_fn must return one loss an example, shape (B,), got {tuple(losses.shape)}")
    return tangent
