"""Hessians of a loss with respect to parameters, as operators: two backward passes a column, the matrix never formed.

    H = Σ_b ∂²L_b/∂θ²        or its mean over the batches b

Shapes: P parameters in all, K columns.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator

__all__ = ["CurvatureOperator", "hessian"]

Function = Callable[[Any, Any], Tensor]
"""(parameters or model, batch) -> Tensor: first a mapping of tensors, or something that is called like the model."""
Reduction = Literal["sum", "mean"]


class CurvatureOperator(LinearOperator):
    """A symmetric matrix of order P made of second derivatives, one term a batch.

    ``layout`` says which rows belong to which parameter. The tensors that hold the parameters are those given, not
    copies: after an optimiser step the operator is the curvature at the new point. Batches stay where they are, hence
    ``to`` is refused.

    Parameters
    ----------
    function : callable
        (parameters or model, batch) -> Tensor.
    target : nn.Module or mapping of str to Tensor
        What is differentiated. Of a module, every parameter that requires a gradient.
    batches : object or list
        One batch, handed to ``function`` as it is, or a list of batches.
    names : iterable of str, optional
        Restrict the matrix to these parameters, the others held fixed. Default: all.
    reduction : {"sum", "mean"}, default "sum"
        Over the batches.
    block_size : int, default 16
        Columns that share one vectorised pass, hence one forward pass a batch; memory grows with it. 1 loops without
        `torch.vmap`, for models whose control flow it cannot follow.
    is_psd : bool, default False
        Promise that every term is positive semi-definite.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, or an option is out of range.
    ArgumentTypeError
        If ``target`` is neither a module nor a mapping of real floating tensors.
    ShapeError
        If the parameters differ in dtype or device.
    """

    _fields: ClassVar[tuple[str, ...]] = ("tensors_in_order",)

    def __init__(
        self,
        function: Function,
        target: nn.Module | Mapping[str, Tensor],
        batches: Any,
        *,
        names: Iterable[str] | None = None,
        reduction: Reduction = "sum",
        block_size: int = 16,
        is_psd: bool = False,
    ) -> None:
        call = type(self).__name__
        if not callable(function):
            raise ArgumentTypeError(f"{call}: expected a function of (parameters or model, batch), got {function!r}")
        every = _named_tensors(call, target)
        chosen = _choose(call, every, names)
        if reduction not in ("sum", "mean"):
            raise ArgumentError(f"{call}: reduction must be 'sum' or 'mean', got {reduction!r}")
        if block_size < 1:
            raise ArgumentError(f"{call}: expected block_size >= 1, got {block_size}")
        self.batches: list[Any] = list(batches) if isinstance(batches, list) else [batches]
        if not self.batches:
            raise ArgumentError(f"{call}: the list of batches is empty")
        first = next(iter(chosen.values()))
        for name, tensor in chosen.items():
            if tensor.dtype != first.dtype or tensor.device != first.device:
                raise ShapeError(
                    f"{call}: {name} is {tensor.dtype} on {tensor.device}, others {first.dtype} on {first.device}; "
                    "restrict the matrix with names="
                )
        self.layout = ParameterLayout.of(chosen)
        super().__init__(
            (self.layout.size, self.layout.size), first.dtype, first.device, is_symmetric=True, is_psd=is_psd
        )
        self.function = function
        self.target = target
        self.reduction: Reduction = reduction
        self.block_size = block_size
        self.tensors_in_order = tuple(chosen.values())

    @abstractmethod
    def _product(self, batch: Any) -> Callable[[Tensor], Tensor]:
        """(P,) -> (P,), the product with this batch's term; called under `torch.vmap`."""

    def _matmat(self, x: Tensor) -> Tensor:
        columns = x.movedim(-1, 0).reshape(-1, self.layout.size)  # operands may come as a stack: (..., P, K)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            terms = [self._on_columns(self._product(batch), columns) for batch in self.batches]
        total = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        total = total / len(terms) if self.reduction == "mean" else total
        return total.reshape(x.shape[-1], *x.shape[:-1]).movedim(0, -1)

    def _on_columns(self, product: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
        if self.block_size == 1:
            return torch.stack([product(column) for column in columns])
        return torch.vmap(product, chunk_size=self.block_size)(columns)

    def _at(self, batch: Any) -> Callable[[tuple[Tensor, ...]], Tensor]:
        # the function of the chosen parameters alone
        names = self.layout.names

        def call(values: tuple[Tensor, ...]) -> Tensor:
            chosen = dict(zip(names, values, strict=True))
            if not isinstance(self.target, nn.Module):
                return self.function({**self.target, **chosen}, batch)
            model = self.target

            def stand_in(*args: Any, **kwargs: Any) -> Any:
                return torch.func.functional_call(model, chosen, args, kwargs)

            return self.function(stand_in, batch)

        return call

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        layout = self.layout
        return tuple(vector[layout.slice(n)].reshape(s) for n, s in zip(layout.names, layout.shapes, strict=True))

    def _join(self, values: Iterable[Tensor]) -> Tensor:
        return torch.cat([value.reshape(-1) for value in values])

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> Self:
        if (dtype, device) != (self.dtype, self.device):
            raise ArgumentError(
                f"{type(self).__name__}.to: the batches and the function cannot be moved; build the operator anew on a "
                "converted model"
            )
        return super()._mapped(change, prefix, dtype, device)


class _Hessian(CurvatureOperator):
    def _product(self, batch: Any) -> Callable[[Tensor], Tensor]:
        loss = self._at(batch)

        def scalar(values: tuple[Tensor, ...]) -> Tensor:
            value = loss(values)
            if value.ndim != 0:
                raise ShapeError(f"hessian: loss_fn must return a scalar, got shape {tuple(value.shape)}")
            return value

        gradient = torch.func.grad(scalar)

        def product(vector: Tensor) -> Tensor:
            # the matrix is symmetric, so its transpose, a reverse-mode product, does
            pull = torch.func.vjp(gradient, self.tensors_in_order)[1]
            return self._join(pull(self._split(vector))[0])

        return product


def hessian(
    loss_fn: Function,
    target: nn.Module | Mapping[str, Tensor],
    batches: Any,
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
) -> CurvatureOperator:
    """H = ∂²L/∂θ² as an operator of order P.

    Parameters
    ----------
    loss_fn : callable
        (model, batch) -> scalar, where the model is called as usual; or (parameters, batch) -> scalar if ``target`` is
        a mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object or list
        One batch, or a list of them; anything but a list is one batch.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean"}, default "sum"
        Over a list of batches. Whether ``loss_fn`` sums or averages over examples is its own business.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.

    Returns
    -------
    CurvatureOperator, shape (P, P)
        Symmetric, in the dtype and on the device of the parameters; its ``layout`` names the rows. Not definite in
        general. Exact up to rounding; products in half precision are as coarse as half-precision gradients.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, or an option is out of range.
    ArgumentTypeError
        If ``target`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device; in a product, if the loss is not a scalar.

    Notes
    -----
    A product costs about four gradients a column and batch, and the memory of ``block_size`` backward passes.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([1.0, 3.0]))
    >>> operator = hessian(lambda p, a: p["x"] @ a @ p["x"] / 2, {"x": torch.ones(2)}, matrix)
    >>> operator @ torch.tensor([1.0, 1.0])
    tensor([1., 3.])

    References
    ----------
    B. A. Pearlmutter (1994), Neural Computation 6(1).
    """
    return _Hessian(loss_fn, target, batches, names=names, reduction=reduction, block_size=block_size)


def _named_tensors(call: str, target: Any) -> dict[str, Tensor]:
    if isinstance(target, nn.Module):
        found: dict[str, Tensor] = {name: p for name, p in target.named_parameters() if p.requires_grad}
    elif isinstance(target, Mapping):
        found = dict(target)
    else:
        raise ArgumentTypeError(f"{call}: expected a module or a mapping of tensors, got {type(target).__name__}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ArgumentTypeError(f"{call}: parameter {name!r} must be a real floating tensor, got {kind}")
    if not found:
        raise ArgumentError(f"{call}: there are no parameters that require a gradient")
    return found


def _choose(call: str, every: dict[str, Tensor], names: Iterable[str] | None) -> dict[str, Tensor]:
    if names is None:
        return every
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in every]
    if unknown or not wanted:
        raise ArgumentError(f"{call}: names must be some of {', '.join(every)}; got {', '.join(unknown) or 'none'}")
    return {name: tensor for name, tensor in every.items() if name in set(wanted)}
