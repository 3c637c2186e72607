"""Gauss-Newton and Fisher matrices as operators: a forward- and a reverse-mode product a column, no matrix formed.

    G = Σ_b J_bᵀ H_b J_b,    J_b = ∂z_b/∂θ for the outputs z_b,   H_b = ∂²ℓ/∂z² for the loss ℓ on top of them

Shapes: P parameters in all, outputs z (..., V).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.hessian import CurvatureOperator, Function, Reduction
from hesse.errors import ArgumentTypeError, ShapeError

__all__ = ["OutputHessian", "cross_entropy_hessian", "fisher", "ggn", "squared_error_hessian"]

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


class _Ggn(CurvatureOperator):
    def __init__(
        self, output_hessian: OutputHessian, function: Function, target: Any, batches: Any, **options: Any
    ) -> None:
        if not callable(output_hessian):
            raise ArgumentTypeError(f"ggn: output_hessian must be callable, got {type(output_hessian).__name__}")
        super().__init__(function, target, batches, **options)
        self.output_hessian = output_hessian

    def _product(self, batch: Any) -> Callable[[Tensor], Tensor]:
        outputs_of = self._at(batch)

        def product(vector: Tensor) -> Tensor:
            outputs, tangent = torch.func.jvp(outputs_of, (self.tensors_in_order,), (self._split(vector),))[:2]
            curved = self.output_hessian(outputs, tangent, batch)
            if curved.shape != outputs.shape:
                raise ShapeError(
                    f"ggn: output_hessian gave shape {tuple(curved.shape)} for outputs of shape {tuple(outputs.shape)}"
                )
            pull = torch.func.vjp(outputs_of, self.tensors_in_order)[1]
            return self._join(pull(curved)[0])

        return product


def ggn(
    outputs_fn: Function,
    target: nn.Module | Mapping[str, Tensor],
    batches: Any,
    output_hessian: OutputHessian = cross_entropy_hessian,
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    is_psd: bool = True,
) -> CurvatureOperator:
    """G = Σ_b J_bᵀ H_b J_b as an operator of order P.

    Equal to the Hessian where the outputs are linear in the parameters; equal to the Fisher matrix with labels drawn
    from the model where the loss is a negative log-likelihood whose natural parameters are the outputs.

    Parameters
    ----------
    outputs_fn : callable
        (model, batch) -> outputs z, any shape; or (parameters, batch) -> z if ``target`` is a mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object or list
        One batch, or a list of them; anything but a list is one batch.
    output_hessian : callable, default cross_entropy_hessian
        (z, tangent, batch) -> H tangent. Mask padded positions here, or leave them out of z.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean"}, default "sum"
        Over a list of batches.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.
    is_psd : bool, default True
        Whether H is positive semi-definite, as it is for every convex loss; G then is so too.

    Returns
    -------
    CurvatureOperator, shape (P, P)
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
    A product costs about three forward passes a column and batch.

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
    return _Ggn(
        output_hessian,
        outputs_fn,
        target,
        batches,
        names=names,
        reduction=reduction,
        block_size=block_size,
        is_psd=is_psd,
    )


def fisher(
    losses_fn: Function,
    target: nn.Module | Mapping[str, Tensor],
    batches: Any,
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
) -> CurvatureOperator:
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
    batches : object or list
        One batch, or a list of them; anything but a list is one batch.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean"}, default "sum"
        Over a list of batches; within a batch it is always the sum.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.

    Returns
    -------
    CurvatureOperator, shape (P, P)
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
    return ggn(losses_fn, target, batches, _outer_product, names=names, reduction=reduction, block_size=block_size)


def _outer_product(losses: Tensor, tangent: Tensor, _batch: Any) -> Tensor:
    if losses.ndim != 1:
        raise ShapeError(f"fisher: losses_fn must return one loss an example, shape (B,), got {tuple(losses.shape)}")
    return tangent
