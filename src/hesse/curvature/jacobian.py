"""The Jacobian of a model's outputs with respect to its parameters, as an operator.

    J = ∂f(θ)/∂θ, rows the outputs in row-major order, columns the parameters

Shapes: R outputs in all (B · C for outputs (B, C)), P parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesse.curvature._binding import (
    Function,
    Target,
    bind,
    check_function,
    choose_parameters,
    join,
    refuse_move,
    split,
)
from hesse.errors import ArgumentError
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator

__all__ = ["JacobianOperator", "jacobian"]


class JacobianOperator(LinearOperator):
    """The Jacobian of one batch; see `jacobian`, which makes it.

    ``layout`` says which columns belong to which parameter, ``output_shape`` how the rows are arranged. The tensors
    that hold the parameters are those given, not copies: after an optimiser step it is the Jacobian at the new point.

    Parameters
    ----------
    function : callable
        (parameters or model, batch) -> Tensor.
    target : nn.Module or mapping of str to Tensor
        What is differentiated.
    batch : object
        Handed to ``function`` as it is.
    names : iterable of str, optional
        Only these parameters. Default: all.
    block_size : int, default 16
        Columns that share one vectorised pass.
    """

    _fields: ClassVar[tuple[str, ...]] = ("tensors_in_order",)

    def __init__(
        self,
        function: Function,
        target: Target,
        batch: Any,
        *,
        names: Iterable[str] | None = None,
        block_size: int = 16,
    ) -> None:
        check_function("jacobian", function)
        chosen = choose_parameters("jacobian", target, names)
        if block_size < 1:
            raise ArgumentError(f"jacobian: expected block_size >= 1, got {block_size}")
        self.layout = ParameterLayout.of(chosen)
        self.tensors_in_order = tuple(chosen.values())
        self.outputs_of: Callable[[tuple[Tensor, ...]], Tensor] = bind(function, target, self.layout.names, batch)
        self.block_size = block_size
        with torch.no_grad():  # the shape of the matrix is known only from a forward pass
            self.output_shape = tuple(self.outputs_of(self.tensors_in_order).shape)
        first = self.tensors_in_order[0]
        super().__init__((torch.Size(self.output_shape).numel(), self.layout.size), first.dtype, first.device)

    def _matmat(self, x: Tensor) -> Tensor:
        def product(column: Tensor) -> Tensor:
            tangents = split(self.layout, column)
            return torch.func.jvp(self.outputs_of, (self.tensors_in_order,), (tangents,))[1].reshape(-1)

        return self._columnwise(product, x, self.shape[1])

    def _rmatmat(self, y: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            pull = torch.func.vjp(self.outputs_of, self.tensors_in_order)[1]
        return self._columnwise(lambda row: join(pull(row.reshape(self.output_shape))[0]), y, self.shape[0])

    def _columnwise(self, product: Callable[[Tensor], Tensor], block: Tensor, length: int) -> Tensor:
        columns = block.movedim(-1, 0).reshape(-1, length)  # operands may come as a stack: (..., P, K)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            if self.block_size == 1:
                images = torch.stack([product(column) for column in columns])
            else:
                images = torch.vmap(product, chunk_size=self.block_size)(columns)
        return images.reshape(block.shape[-1], *block.shape[:-2], -1).movedim(0, -1)

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> Self:
        refuse_move(self, dtype, device)
        return super()._mapped(change, prefix, dtype, device)


def jacobian(
    function: Function, target: Target, batch: Any, *, names: Iterable[str] | None = None, block_size: int = 16
) -> JacobianOperator:
    """J = ∂f(θ)/∂θ as an operator; products J x by forward mode, Jᵀ y by reverse mode, the matrix never formed.

    Parameters
    ----------
    function : callable
        (model, batch) -> outputs (B, C), or of any other shape; or (parameters, batch) -> outputs if ``target`` is a
        mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batch : object
        One batch, handed to ``function`` as it is.
    names : iterable of str, optional
        Only these parameters, the columns in the order of ``target``. Default: all.
    block_size : int, default 16
        Columns that share one vectorised pass; memory grows with it. 1 loops without `torch.vmap`.

    Returns
    -------
    JacobianOperator, shape (B · C, P)
        Rows in row-major order of the outputs; in the dtype and on the device of the parameters. Exact up to rounding;
        in half precision as coarse as any gradient there. ``J @ J.H`` is the empirical tangent kernel.

    Raises
    ------
    ArgumentError
        If a name is unknown, an option is out of range, or a layer is in training mode that would draw random numbers
        or change its buffers.
    ArgumentTypeError
        If ``function`` cannot be called or ``target`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device.

    Notes
    -----
    A product with J costs about two forward passes a column, one with Jᵀ one backward pass a column. Construction makes
    one forward pass, for the shape.

    Examples
    --------
    >>> operator = jacobian(lambda p, x: x * p["a"], {"a": torch.tensor([2.0, 3.0])}, torch.tensor([[1.0, 4.0]]))
    >>> operator.to_dense()
    tensor([[1., 0.],
            [0., 4.]])
    """
    return JacobianOperator(function, target, batch, names=names, block_size=block_size)
