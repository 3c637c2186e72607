"""One description of a bilevel problem, which every solver of this family accepts.

    min_x Φ(x) = f(x, y*(x)),   y*(x) = argmin_y g(x, y)

Shapes: N entries of x, M of y, m blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from hesse.bilevel._over_blocks import over_blocks
from hesse.bilevel.samplers import Sampler
from hesse.bilevel.tree import Tree, TreeLayout
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.operator import LinearOperator

__all__ = ["BilevelProblem", "BlockLoss", "Loss"]

Loss = Callable[[Tree, Tree, Any], Tensor]
"""(x, y, batch) -> scalar; ``batch`` is None where the problem has no sampler."""
BlockLoss = Callable[[Tree, Tree, Tensor, Any], Tensor]
"""(x, y_i, i, batch) -> scalar, traced by `torch.vmap` over the block's number i (called once a block on torch 2.6)."""


@dataclass(frozen=True, slots=True)
class BilevelProblem:
    """Two losses, two starting points, and what else is known about them.

    Parameters
    ----------
    upper : callable
        f(x, y, batch) -> scalar; it need not depend on x.
    lower : callable
        g(x, y, batch) -> scalar; a mean over the batch, so that batches estimate the whole.
    x0, y0 : pytree of Tensor
        Where solvers start: a tensor, or nested dictionaries, lists and tuples of tensors. They are copied.
    upper_sampler, lower_sampler : Sampler, optional
        Where batches come from. Default: none, the losses are always called with ``batch=None``.
    constraint : callable, optional
        c(x, y) -> (p,), the lower level's inequalities c <= 0.
    equality : callable, optional
        h(x, y) -> (q,), the lower level's equalities h = 0.
    project_x, project_y : callable, optional
        Nearest point of a convex set, pytree to pytree: one of `hesse.linalg`'s sets where the variable is one vector.
    project_joint : callable, optional
        (x, y) -> (x, y), the nearest point of a set that couples them.
    block_upper, block_lower : callable, optional
        f_i and g_i as functions (x, y_i, i, batch). `from_blocks` sets them, and makes ``upper`` and ``lower`` of them.
    blocks : int, optional
        m; every tensor of ``y0`` then has the blocks along its leading axis.
    upper_rows, lower_rows : int or Tensor of int64, shape (m,), optional
        How many rows each block has: solvers that draw rows of single blocks hand their numbers, int64 of shape (B,),
        to the block loss as its batch. Default: such solvers use whole blocks.
    lower_solution : callable, optional
        x -> y*(x), where it is known. Used for exact metrics and tests, never by a solver.
    exact_hypergradient : callable, optional
        x -> ∇Φ(x), where it is known. Written to the trace, never used by a solver.
    lower_curvature : callable, optional
        (x, y, batch) -> LinearOperator of order M in place of g_yy, as `hesse.curvature.ggn` gives it.
    metrics : mapping of str to callable, optional
        (x, y) -> float, evaluated for every row of the trace.

    Raises
    ------
    ArgumentTypeError
        If a loss is not callable, or a variable holds something else than real floating tensors.
    ShapeError
        If x and y differ in dtype or device, or the leading axis of y is not the number of blocks.
    ArgumentError
        If x and y share memory, only one of the block losses is given, or a block has no rows.

    Examples
    --------
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> problem = BilevelProblem(
    ...     upper=lambda x, y, batch: ((y - 2) ** 2).sum() / 2,
    ...     lower=lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     x0=one,
    ...     y0=0 * one,
    ... )
    >>> problem.x_layout.size, problem.y_layout.size
    (1, 1)
    """

    upper: Loss
    lower: Loss
    x0: Tree
    y0: Tree
    upper_sampler: Sampler | None = None
    lower_sampler: Sampler | None = None
    constraint: Callable[[Tree, Tree], Tensor] | None = None
    equality: Callable[[Tree, Tree], Tensor] | None = None
    project_x: Callable[[Tree], Tree] | None = None
    project_y: Callable[[Tree], Tree] | None = None
    project_joint: Callable[[Tree, Tree], tuple[Tree, Tree]] | None = None
    block_upper: BlockLoss | None = None
    block_lower: BlockLoss | None = None
    blocks: int | None = None
    upper_rows: int | Tensor | None = None
    lower_rows: int | Tensor | None = None
    lower_solution: Callable[[Tree], Tree] | None = None
    exact_hypergradient: Callable[[Tree], Tree] | None = None
    lower_curvature: Callable[[Tree, Tree, Any], LinearOperator] | None = None
    metrics: Mapping[str, Callable[[Tree, Tree], float]] = field(default_factory=dict)
    x_layout: TreeLayout = field(init=False)
    y_layout: TreeLayout = field(init=False)

    def __post_init__(self) -> None:
        for name in ("upper", "lower"):
            if not callable(getattr(self, name)):
                raise ArgumentTypeError(f"BilevelProblem: expected {name} to be a function of (x, y, batch)")
        for name in ("upper_sampler", "lower_sampler"):
            sampler = getattr(self, name)
            if sampler is not None and not isinstance(sampler, Sampler):
                raise ArgumentTypeError(
                    f"BilevelProblem: {name} lacks one of draw, full, state_dict and load_state_dict: "
                    f"{type(sampler).__name__}"
                )
        x, y = TreeLayout.of("x", self.x0), TreeLayout.of("y", self.y0)
        if (x.dtype, x.device) != (y.dtype, y.device):
            raise ShapeError(
                f"BilevelProblem: x is {x.dtype} on {x.device}, y {y.dtype} on {y.device}; solvers need one of each"
            )
        storages = {leaf.untyped_storage().data_ptr() for leaf in tree_flatten(self.x0)[0] if leaf.numel()}
        if any(leaf.untyped_storage().data_ptr() in storages for leaf in tree_flatten(self.y0)[0] if leaf.numel()):
            raise ArgumentError("BilevelProblem: x0 and y0 share memory; a tensor belongs to one level, clone it")
        if (self.block_upper is None) != (self.block_lower is None) or (self.blocks is None) != (
            self.block_lower is None
        ):
            raise ArgumentError("BilevelProblem: block_upper, block_lower and blocks come together; use from_blocks")
        if self.blocks is not None and any(shape[:1] != (self.blocks,) for shape in y.layout.shapes):
            raise ShapeError(
                f"BilevelProblem: expected {self.blocks} blocks along the leading axis of y0, got {y.layout.shapes}"
            )
        for name in ("upper_rows", "lower_rows"):
            rows = getattr(self, name)
            if rows is None:
                continue
            sizes = torch.as_tensor(rows)
            if self.blocks is None or sizes.dtype != torch.int64 or sizes.shape not in ((), (self.blocks,)):
                raise ShapeError(f"BilevelProblem: expected {name} to be an integer, or one for each block; got {rows}")
            if int(sizes.min()) < 1:
                raise ArgumentError(f"BilevelProblem: {name} has a block without rows; leave it out of the problem")
        for name, value in (("x0", self.x0), ("y0", self.y0)):
            object.__setattr__(self, name, tree_map(lambda leaf: leaf.detach().clone(), value))
        object.__setattr__(self, "x_layout", x)
        object.__setattr__(self, "y_layout", y)

    @classmethod
    def from_modules(
        cls,
        upper_module: nn.Module,
        lower_module: nn.Module,
        upper_loss: Callable[[Callable[..., Any], Callable[..., Any], Any], Tensor],
        lower_loss: Callable[[Callable[..., Any], Callable[..., Any], Any], Tensor],
        **options: Any,
    ) -> "BilevelProblem":
        """Take the parameters of two ordinary modules as the variables.

        Parameters
        ----------
        upper_module, lower_module : nn.Module
            x and y are their parameters that require a gradient, as dictionaries by name; buffers and frozen parameters
            stay as they are. The modules are not changed: `torch.nn.Module.load_state_dict` with ``strict=False``
            takes a solution back.
        upper_loss, lower_loss : callable
            (upper, lower, batch) -> scalar, where ``upper`` and ``lower`` are called as the modules are.
        **options
            Further fields, samplers among them.

        Returns
        -------
        BilevelProblem
            Its losses run the modules by `torch.func.functional_call`.

        Raises
        ------
        ArgumentError
            If the modules share a parameter.
        """
        upper_parameters, lower_parameters = _trainable(upper_module), _trainable(lower_module)
        shared = {id(p) for p in upper_parameters.values()} & {id(p) for p in lower_parameters.values()}
        if shared:
            names = [name for name, p in lower_parameters.items() if id(p) in shared]
            raise ArgumentError(f"BilevelProblem: both modules hold {', '.join(names)}; freeze it in one of them")

        def bound(loss: Callable[..., Tensor]) -> Loss:
            def call(x: Tree, y: Tree, batch: Any) -> Tensor:
                return loss(_stand_in(upper_module, x), _stand_in(lower_module, y), batch)

            return call

        return cls(
            upper=bound(upper_loss), lower=bound(lower_loss), x0=upper_parameters, y0=lower_parameters, **options
        )

    @classmethod
    def from_blocks(
        cls, block_upper: BlockLoss, block_lower: BlockLoss, x0: Tree, y0: Tree, **options: Any
    ) -> "BilevelProblem":
        """Φ(x) = (1/m) Σ_i f_i(x, y_i*(x)): one upper variable over many independent lower problems.

        Parameters
        ----------
        block_upper, block_lower : callable
            (x, y_i, i, batch) -> scalar; i is a tensor without axes, to index data with.
        x0 : pytree of Tensor
            Shared by the blocks.
        y0 : pytree of Tensor, shapes (m, ...)
            One entry of the leading axis a block.
        **options
            Further fields.

        Returns
        -------
        BilevelProblem
            f and g are both means over the blocks, so that block i of the adjoint solves g_i,yy v_i = ∇_y f_i whatever
            m. Its `blocks_at` restricts it to some blocks.
        """
        leaves = tree_flatten(y0)[0]
        blocks = leaves[0].shape[0] if leaves and isinstance(leaves[0], Tensor) and leaves[0].ndim else 0
        return cls(
            upper=_mean_over_blocks(block_upper, None),
            lower=_mean_over_blocks(block_lower, None),
            x0=x0,
            y0=y0,
            blocks=blocks,
            block_upper=block_upper,
            block_lower=block_lower,
            **options,
        )

    def blocks_at(self, index: Tensor) -> "BilevelProblem":
        """Restrict a problem of blocks to some of them.

        Parameters
        ----------
        index : Tensor of int64, shape (I,)
            Numbers of the blocks, each once.

        Returns
        -------
        BilevelProblem
            Its y has I blocks, its losses are means over these: unbiased for the whole where the index is drawn
            uniformly. It keeps the samplers and ``project_x``, not what speaks of all of y.

        Raises
        ------
        ArgumentError
            If the problem has no blocks, or an index is out of range.
        """
        if self.block_upper is None or self.block_lower is None or self.blocks is None:
            raise ArgumentError("BilevelProblem.blocks_at: the problem has no blocks; make it by from_blocks")
        if index.ndim != 1 or not index.numel() or int(index.min()) < 0 or int(index.max()) >= self.blocks:
            raise ArgumentError(f"BilevelProblem.blocks_at: expected numbers from 0 to {self.blocks - 1}, got {index}")
        return replace(
            self,
            upper=_mean_over_blocks(self.block_upper, index),
            lower=_mean_over_blocks(self.block_lower, index),
            y0=tree_map(lambda leaf: leaf[index.to(leaf.device)], self.y0),
            blocks=len(index),
            upper_rows=_rows_at(self.upper_rows, index),
            lower_rows=_rows_at(self.lower_rows, index),
            constraint=None,
            equality=None,
            project_y=None,
            project_joint=None,
            lower_solution=None,
            exact_hypergradient=None,
            lower_curvature=None,
            metrics={},
            block_upper=_renumbered(self.block_upper, index),
            block_lower=_renumbered(self.block_lower, index),
        )

    def full_batches(self) -> tuple[Any, Any]:
        """Give what stands for all data.

        Returns
        -------
        upper, lower : object
            The samplers' whole data, or None.
        """
        upper, lower = self.upper_sampler, self.lower_sampler
        return None if upper is None else upper.full(), None if lower is None else lower.full()


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _stand_in(module: nn.Module, parameters: dict[str, Tensor]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(module, parameters, args, kwargs)

    return call


def _mean_over_blocks(loss: BlockLoss, index: Tensor | None) -> Loss:
    def mean(x: Tree, y: Tree, batch: Any) -> Tensor:
        first = tree_flatten(y)[0][0]
        numbers = torch.arange(first.shape[0]) if index is None else index
        each = over_blocks(loss, (None, 0, 0, None), len(first))
        return each(x, y, numbers.to(first.device), batch).mean()

    return mean


def _rows_at(rows: int | Tensor | None, index: Tensor) -> int | Tensor | None:
    return rows[index.to(rows.device)] if isinstance(rows, Tensor) and rows.ndim else rows


def _renumbered(loss: BlockLoss, index: Tensor) -> BlockLoss:
    return lambda x, y, i, batch: loss(x, y, index.to(i.device)[i], batch)
