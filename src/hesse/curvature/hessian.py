"""Hessians of a loss with respect to parameters, as operators: derivatives of the gradient, the matrix never formed.

    H = Σ_b ∂²L_b/∂θ²        or a mean over the batches b

Shapes: P parameters in all, K columns.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten

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
from hesse.curvature._graph import gradient_map, join_columns, leaves_of, push_gradient, split_columns
from hesse.curvature.batches import BatchStream, as_batches, batch_size, to_device
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator

__all__ = ["CurvatureOperator", "Function", "Reduction", "hessian"]

Reduction = Literal["sum", "mean", "weighted_mean"]
_REDUCTIONS = ("sum", "mean", "weighted_mean")

Values = tuple[Tensor, ...]
Column = Callable[[Tensor], Tensor]
"""(P,) -> (P,): one product."""
Columns = Callable[[Tensor, bool], Tensor]
"""(K, P), whether this is the last call -> (K, P): the product with every row, through a graph the last call frees."""


class _Graph:
    """A recorded product, and the state of all that it was recorded from."""

    def __init__(self, product: Columns, batch: Any, parameters: Values, read: Values) -> None:
        self.product, self.batch, self.parameters = product, batch, parameters
        self.tensors = (*parameters, *read)
        self.state = self._state()

    def is_current(self, parameters: Values, batch: Any) -> bool:
        return parameters is self.parameters and batch is self.batch and self._state() == self.state

    def _state(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self.tensors]


class CurvatureOperator(LinearOperator):
    """A symmetric matrix of order P made of second derivatives, one term a batch.

    ``layout`` says which rows belong to which parameter. The tensors that hold the parameters are those given, not
    copies: after an optimiser step the operator is the curvature at the new point. Batches stay where they are, hence
    ``to`` is refused; those of a loader are moved to the parameters' device one at a time.

    Parameters
    ----------
    function : callable
        (parameters or model, batch) -> Tensor.
    target : nn.Module or mapping of str to Tensor
        What is differentiated. Of a module, every parameter that requires a gradient.
    batches : object, list, DataLoader or BatchStream
        One batch, handed to ``function`` as it is; a list of batches; or a loader, read anew in every product and never
        held (see `BatchStream`).
    names : iterable of str, optional
        Restrict the matrix to these parameters, the others held fixed. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches. "weighted_mean" counts every batch by its examples, the leading axis of its first tensor: the
        mean over the data set where ``function`` averages within a batch, whatever the size of the last one.
    block_size : int, default 16
        Columns that share one vectorised pass, hence one forward pass a batch; memory grows with it. 1 is the leanest:
        it loops without `torch.vmap`, which also suits models whose control flow that cannot follow.
    keep_graph : bool, default False
        Keep the graph of the first derivative between products, so that each costs one pass through it instead of
        building it anew: two thirds of the time or less, at the memory of that graph for every batch. It is rebuilt
        after a parameter, a buffer or the batch was changed in place; a write through ``.data``, or another tensor put
        in the place of one, is not noticed. Products are then plain numbers, not differentiable.
    is_psd : bool, default False
        Promise that every term is positive semi-definite.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, an option is out of range, the graph of streamed batches is to be
        kept, or a layer is in training mode that would draw random numbers or change its buffers.
    ArgumentTypeError
        If ``target`` is neither a module nor a mapping of real floating tensors.
    ShapeError
        If the parameters differ in dtype or device.
    """

    _fields: ClassVar[tuple[str, ...]] = ("tensors_in_order",)

    def __init__(
        self,
        function: Function,
        target: Target,
        batches: Any,
        *,
        names: Iterable[str] | None = None,
        reduction: Reduction = "sum",
        block_size: int = 16,
        keep_graph: bool = False,
        is_psd: bool = False,
    ) -> None:
        call = type(self).__name__
        check_function(call, function)
        chosen = choose_parameters(call, target, names)
        if reduction not in _REDUCTIONS:
            raise ArgumentError(f"{call}: reduction must be one of {', '.join(_REDUCTIONS)}; got {reduction!r}")
        if block_size < 1:
            raise ArgumentError(f"{call}: expected block_size >= 1, got {block_size}")
        self.batches: list[Any] | BatchStream = as_batches(call, batches)
        if keep_graph and isinstance(self.batches, BatchStream):
            raise ArgumentError(
                f"{call}: keep_graph holds on to every batch, a stream holds none; pass a list of batches"
            )
        first = next(iter(chosen.values()))
        self.layout = ParameterLayout.of(chosen)
        super().__init__(
            (self.layout.size, self.layout.size), first.dtype, first.device, is_symmetric=True, is_psd=is_psd
        )
        self.function = function
        self.target: Target = target
        self.reduction: Reduction = reduction
        self.block_size = block_size
        self.keep_graph = keep_graph
        self.tensors_in_order = tuple(chosen.values())
        self._graphs: dict[int, _Graph] = {}  # by the number of the batch

    # what a subclass gives ----------------------------------------------------------------------------------------

    @abstractmethod
    def _product(self, function: Callable[[Values], Tensor], batch: Any, index: int) -> Column:
        """One batch's term, differentiable; the answer is called under `torch.vmap`."""

    @abstractmethod
    def _recorded(self, function: Callable[[Values], Tensor], leaves: Values, batch: Any, index: int) -> Columns:
        """One batch's term as numbers, through a graph recorded here."""

    @abstractmethod
    def _numbers(self, function: Callable[[Values], Tensor], batch: Any, index: int, columns: Tensor) -> Tensor:
        """One batch's term on all columns (K, P), as numbers and in as little memory as can be."""

    # products -----------------------------------------------------------------------------------------------------

    def _matmat(self, x: Tensor) -> Tensor:
        columns = x.movedim(-1, 0).reshape(-1, self.layout.size)  # operands may come as a stack: (..., P, K)
        total, weights, unit = None, 0.0, 0
        for index, batch in enumerate(self._each_batch()):
            size = batch_size(batch) if self.reduction == "weighted_mean" else 1
            unit = unit or size or 1  # a single batch then has weight one, and is taken as it is
            weight = size / unit
            total = _add(total, self._term(index, batch, columns), weight)
            weights += weight
        if total is None:
            raise ArgumentError(f"{type(self).__name__}: there are no batches")
        if self.reduction != "sum" and weights != 1:
            total = total / weights
        return total.to(self.dtype).reshape(x.shape[-1], *x.shape[:-1]).movedim(0, -1)

    def _each_batch(self) -> Iterator[Any]:
        if isinstance(self.batches, BatchStream):
            return (to_device(batch, self.device) for batch in self.batches)
        return iter(self.batches)

    def _term(self, index: int, batch: Any, columns: Tensor) -> Tensor:
        if self.keep_graph:
            return self._through(self._kept(index, batch), columns, keep=True)
        function = bind(self.function, self.target, self.layout.names, batch)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            if self._only_numbers(columns):
                return self._numbers(function, batch, index, columns)
            return self._vectorised(self._product(function, batch, index), columns)

    def _vectorised(self, product: Column, columns: Tensor) -> Tensor:
        if self.block_size == 1 or len(columns) == 1:
            return torch.stack([product(column) for column in columns])
        return torch.vmap(product, chunk_size=self.block_size)(columns)

    def _through(self, recorded: Columns, columns: Tensor, *, keep: bool) -> Tensor:
        blocks = columns.detach().split(self.block_size)
        images = [recorded(block, not keep and i == len(blocks)) for i, block in enumerate(blocks, 1)]
        return images[0] if len(images) == 1 else torch.cat(images)

    def _only_numbers(self, columns: Tensor) -> bool:
        # whether nobody can ask for a derivative of the product; a transform of torch.func could, and the lean way
        # would strip its tensors
        if peek_interpreter_stack() is not None:
            return False
        return not torch.is_grad_enabled() or not any(t.requires_grad for t in (columns, *self.tensors_in_order))

    def _kept(self, index: int, batch: Any) -> Columns:
        kept = self._graphs.get(index)
        if kept is None or not kept.is_current(self.tensors_in_order, batch):
            self._graphs.pop(index, None)  # before the new one is built, so that there are never two
            function = bind(self.function, self.target, self.layout.names, batch)
            read = (*_tensors_of(self.target), *(leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)))
            with sdpa_kernel(SDPBackend.MATH):
                product = self._recorded(function, leaves_of(self.tensors_in_order), batch, index)
            kept = self._graphs[index] = _Graph(product, batch, self.tensors_in_order, read)
        return kept.product

    # parts --------------------------------------------------------------------------------------------------------

    def block(self, names: Iterable[str]) -> Self:
        """Restrict the matrix to some of its parameters: a diagonal block.

        Parameters
        ----------
        names : iterable of str
            Some of ``layout.names``; the order of the layout is kept.

        Returns
        -------
        CurvatureOperator
            Of the same kind, over the same batches; products differentiate by these parameters alone.

        Raises
        ------
        ArgumentError
            If a name is unknown, or there is none.
        """
        mine = dict(zip(self.layout.names, self.tensors_in_order, strict=True))
        chosen = choose_parameters(f"{type(self).__name__}.block", mine, names)
        part = copy.copy(self)
        part.layout = ParameterLayout.of(chosen)
        part.shape = (part.layout.size, part.layout.size)
        part.tensors_in_order = tuple(chosen.values())
        part._graphs = {}
        part._symmetry_seen = False
        return part

    def per_layer(self) -> dict[str, Self]:
        """Cut the diagonal into one block a layer, the parameters that share all of their name but its last part.

        Returns
        -------
        dict of str to CurvatureOperator
            In the order of the layout; a parameter without a dot in its name is a layer called "".
        """
        groups: dict[str, list[str]] = {}
        for name in self.layout.names:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        return {layer: self.block(names) for layer, names in groups.items()}

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> Self:
        refuse_move(self, dtype, device)
        return super()._mapped(change, prefix, dtype, device)


class _Hessian(CurvatureOperator):
    _has_forward_mode = True  # until torch says that an operation's backward pass has no forward-mode derivative

    def _product(self, function: Callable[[Values], Tensor], batch: Any, index: int) -> Column:
        gradient, values = torch.func.grad(_scalar(function)), self.tensors_in_order
        # the matrix is symmetric, so its transpose, a reverse-mode product, does: in forward mode torch cannot
        # differentiate the backward pass of some losses, squared error and Huber's among them
        return lambda vector: join(torch.func.vjp(gradient, values)[1](split(self.layout, vector))[0])

    def _recorded(self, function: Callable[[Values], Tensor], leaves: Values, batch: Any, index: int) -> Columns:
        with torch.enable_grad():
            loss = _scalar(function)(leaves)
            if not loss.requires_grad:
                return lambda columns, _last: torch.zeros_like(columns)
            gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        pull = gradient_map(gradient, leaves)  # the matrix is symmetric, so its transpose, a reverse-mode product, does
        return lambda columns, last: join_columns(pull(split_columns(self.layout, columns), last))

    def _numbers(self, function: Callable[[Values], Tensor], batch: Any, index: int, columns: Tensor) -> Tensor:
        if self.block_size == 1 and self._has_forward_mode:
            try:
                return self._pushed(function, columns)
            except RuntimeError as error:
                if not (isinstance(error, NotImplementedError) or "ZeroTensor" in str(error)):
                    raise
                self._has_forward_mode = False  # squared error and Huber's among others: the numbers are the same
        recorded = self._recorded(function, leaves_of(self.tensors_in_order), batch, index)
        return self._through(recorded, columns, keep=False)

    def _pushed(self, function: Callable[[Values], Tensor], columns: Tensor) -> Tensor:
        images = [push_gradient(_scalar(function), self.tensors_in_order, split(self.layout, c)) for c in columns]
        return torch.stack([join(image) for image in images])


def hessian(
    loss_fn: Function,
    target: Target,
    batches: Any,
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    keep_graph: bool = False,
) -> CurvatureOperator:
    """H = ∂²L/∂θ² as an operator of order P.

    Parameters
    ----------
    loss_fn : callable
        (model, batch) -> scalar, where the model is called as usual; or (parameters, batch) -> scalar if ``target`` is
        a mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object, list, DataLoader or BatchStream
        One batch, a list of them, or a loader that is streamed; see `CurvatureOperator`.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches; see `CurvatureOperator`. Whether ``loss_fn`` sums or averages over examples is its own
        business.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.
    keep_graph : bool, default False
        Keep the graph of the gradient between products; see `CurvatureOperator`.

    Returns
    -------
    CurvatureOperator, shape (P, P)
        Symmetric, in the dtype and on the device of the parameters; its ``layout`` names the rows. Not definite in
        general. Exact up to rounding; products in half precision are as coarse as half-precision gradients.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, an option is out of range, or a layer is in training mode that
        would draw random numbers or change its buffers.
    ArgumentTypeError
        If ``target`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device; in a product, if the loss is not a scalar.

    Notes
    -----
    A product costs about three gradients a column and batch, two for further columns or with ``keep_graph``, in the
    memory of three backward passes and that of two more for each further column of a block. ``block_size=1`` takes a
    tenth less memory and a third more time. Call it under `torch.no_grad`, as every solver here does, unless the
    product is to be differentiated, which records a graph of third derivatives. ``block_size=1`` takes forward mode;
    where torch has no such derivative, as of squared error, it takes reverse mode and the memory of larger blocks.

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
    return _Hessian(
        loss_fn, target, batches, names=names, reduction=reduction, block_size=block_size, keep_graph=keep_graph
    )


def _tensors_of(target: Target) -> list[Tensor]:
    return [*target.parameters(), *target.buffers()] if isinstance(target, nn.Module) else list(target.values())


def _scalar(function: Callable[[Values], Tensor]) -> Callable[[Values], Tensor]:
    def checked(values: Values) -> Tensor:
        value = function(values)
        if value.ndim != 0:
            raise ShapeError(f"hessian: loss_fn must return a scalar, got shape {tuple(value.shape)}")
        return value

    return checked


def _add(total: Tensor | None, term: Tensor, weight: float) -> Tensor:
    if term.dtype in (torch.float16, torch.bfloat16):
        term = term.float()  # a sum over many batches must not round to half precision each time
    if total is None:
        return term if weight == 1 else term * weight
    if total.requires_grad or term.requires_grad:
        return total + term * weight
    return total.add_(term, alpha=weight)
