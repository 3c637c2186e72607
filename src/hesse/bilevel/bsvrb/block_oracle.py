"""The derivatives of many lower problems at once, each block at a point of its own, and counted.

Shapes: S blocks asked for, N entries of x, D of y_i, B rows a block; x (S, N), y and v (S, D), index (S,), rows (S, B).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from hesse.bilevel._over_blocks import over_blocks
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BlockLoss
from hesse.bilevel.tree import TreeLayout
from hesse.errors import ArgumentError, ShapeError

__all__ = ["BlockHessians", "BlockMatrices", "BlockOracle", "BlockProducts", "draw_blocks", "draw_rows"]


@dataclass(frozen=True, slots=True)
class BlockProducts:
    """Products with one vector a block."""

    gradient: Tensor  # (S, D): ∇_y g_i
    hessian_product: Tensor  # (S, D): g_i,yy v_i
    jacobian_product: Tensor  # (S, N): g_i,xy v_i


@dataclass(frozen=True, slots=True)
class BlockHessians:
    """A Hessian a block, and one product across the levels."""

    gradient: Tensor  # (S, D): ∇_y g_i
    hessian: Tensor  # (S, D, D): g_i,yy
    jacobian_product: Tensor  # (S, N): g_i,xy v_i


@dataclass(frozen=True, slots=True)
class BlockMatrices:
    """Both matrices of second derivatives of each block."""

    gradient: Tensor  # (S, D): ∇_y g_i
    hessian: Tensor  # (S, D, D): g_i,yy
    jacobian: Tensor  # (S, N, D): g_i,xy


class BlockOracle:
    """Gradients and products of single blocks, each counted once a sample and block.

    The losses are vectorised by `torch.vmap`; because blocks do not meet, one backward of their sum serves all.

    Parameters
    ----------
    whole : Oracle
        Of a problem made by `BilevelProblem.from_blocks`; what is asked for here is added to its counts.

    Raises
    ------
    ArgumentError
        If the problem has no blocks; in a method, if g_i does not depend on y.
    """

    def __init__(self, whole: Oracle) -> None:
        problem = whole.problem
        if problem.block_upper is None or problem.block_lower is None or problem.blocks is None:
            raise ArgumentError("BlockOracle: the problem has no blocks; make it by BilevelProblem.from_blocks")
        self.whole, self.problem, self.num_blocks = whole, problem, problem.blocks
        self.block_layout = TreeLayout.of("y", tree_map(lambda leaf: leaf[0], problem.y0))
        self._widths = [math.prod(shape) for shape in self.block_layout.layout.shapes]
        self._upper = self._stacked(problem.block_upper)
        self._lower = self._stacked(problem.block_lower)

    def stack(self, y: Tensor) -> Tensor:
        """Cut the flat lower variable into blocks.

        Parameters
        ----------
        y : Tensor, shape (M,)
            In the order of the problem's layout.

        Returns
        -------
        Tensor, shape (m, D)
            A copy where y has several tensors.
        """
        return torch.cat([leaf.reshape(self.num_blocks, -1) for leaf in self._leaves(y)], dim=1)

    def flatten(self, blocks: Tensor) -> Tensor:
        """Undo `stack`.

        Parameters
        ----------
        blocks : Tensor, shape (m, D)
            One row a block.

        Returns
        -------
        Tensor, shape (M,)
            In the order of the problem's layout.
        """
        return torch.cat([part.reshape(-1) for part in blocks.split(self._widths, dim=1)])

    def upper(self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Differentiate f_i by both variables.

        Parameters
        ----------
        x : Tensor, shape (S, N)
            Upper variable of each entry.
        y : Tensor, shape (S, D)
            Lower variable of each entry.
        index : Tensor of int64, shape (S,)
            Which block each entry speaks of.
        rows : Tensor of int64, shape (S, B), or None
            Numbers of rows; None for whole blocks.

        Returns
        -------
        f_x, f_y : Tensor, shapes (S, N) and (S, D)
            Zeros for a variable that f_i is free of.
        """
        self.whole.counts.upper_gradients += self.samples(index, rows, self.problem.upper_rows)
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        with torch.enable_grad():
            total = self._upper(x, y, index, rows)
        if not total.requires_grad:
            return torch.zeros_like(x), torch.zeros_like(y)
        by_x, by_y = torch.autograd.grad(total, (x, y), allow_unused=True, materialize_grads=True)
        return by_x, by_y

    def gradient(self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None) -> Tensor:
        """Differentiate g_i by y.

        Parameters
        ----------
        x : Tensor, shape (S, N)
            Upper variable of each entry.
        y : Tensor, shape (S, D)
            Lower variable of each entry.
        index : Tensor of int64, shape (S,)
            Which block each entry speaks of.
        rows : Tensor of int64, shape (S, B), or None
            Numbers of rows; None for whole blocks.

        Returns
        -------
        Tensor, shape (S, D)
            ∇_y g_i.
        """
        self._count(index, rows)
        return self._differentiate(x.detach(), y.detach().requires_grad_(), index, rows, create_graph=False)

    def products(self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None, v: Tensor) -> BlockProducts:
        """Give ∇_y g_i, g_i,yy v_i and g_i,xy v_i from one graph and one batch.

        Parameters
        ----------
        x : Tensor, shape (S, N)
            Upper variable of each entry.
        y, v : Tensor, shape (S, D)
            Lower variable and vector of each entry.
        index : Tensor of int64, shape (S,)
            Which block each entry speaks of.
        rows : Tensor of int64, shape (S, B), or None
            Numbers of rows; None for whole blocks.

        Returns
        -------
        BlockProducts
            Counted as a gradient and a product of each kind.
        """
        self._count(index, rows, hessian=1, jacobian=1)
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        gradient = self._differentiate(x, y, index, rows)
        across, along = torch.autograd.grad(gradient, (x, y), v, allow_unused=True, materialize_grads=True)
        return BlockProducts(gradient.detach(), along, across)

    def hessians(self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None, v: Tensor) -> BlockHessians:
        """Give ∇_y g_i, the matrix g_i,yy and g_i,xy v_i from one graph and one batch.

        Parameters
        ----------
        x : Tensor, shape (S, N)
            Upper variable of each entry.
        y, v : Tensor, shape (S, D)
            Lower variable and vector of each entry.
        index : Tensor of int64, shape (S,)
            Which block each entry speaks of.
        rows : Tensor of int64, shape (S, B), or None
            Numbers of rows; None for whole blocks.

        Returns
        -------
        BlockHessians
            Counted as a gradient, D Hessian products and one across.
        """
        self._count(index, rows, hessian=y.shape[1], jacobian=1)
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        gradient = self._differentiate(x, y, index, rows)
        (hessian,) = _columns(gradient, (y,))
        (across,) = torch.autograd.grad(gradient, x, v, allow_unused=True, materialize_grads=True)
        return BlockHessians(gradient.detach(), hessian, across)

    def matrices(self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None) -> BlockMatrices:
        """Give ∇_y g_i and the matrices g_i,yy and g_i,xy from one graph and one batch.

        Parameters
        ----------
        x : Tensor, shape (S, N)
            Upper variable of each entry.
        y : Tensor, shape (S, D)
            Lower variable of each entry.
        index : Tensor of int64, shape (S,)
            Which block each entry speaks of.
        rows : Tensor of int64, shape (S, B), or None
            Numbers of rows; None for whole blocks.

        Returns
        -------
        BlockMatrices
            Counted as a gradient and D products of each kind.
        """
        self._count(index, rows, hessian=y.shape[1], jacobian=y.shape[1])
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        gradient = self._differentiate(x, y, index, rows)
        jacobian, hessian = _columns(gradient, (x, y))
        return BlockMatrices(gradient.detach(), hessian, jacobian)

    def samples(self, index: Tensor, rows: Tensor | None, sizes: int | Tensor | None) -> int:
        """Count the samples of one call.

        Parameters
        ----------
        index : Tensor of int64, shape (S,)
            Blocks.
        rows : Tensor of int64, shape (S, B), or None
            What is drawn of each.
        sizes : int or Tensor of int64, shape (m,), or None
            The problem's numbers of rows; a whole block of unknown size counts as one sample.

        Returns
        -------
        int
            Over all entries.
        """
        if rows is not None:
            return rows.numel()
        if isinstance(sizes, Tensor) and sizes.ndim:
            return int(sizes[index.to(sizes.device)].sum())
        return len(index) * (1 if sizes is None else int(sizes))

    def _count(self, index: Tensor, rows: Tensor | None, *, hessian: int = 0, jacobian: int = 0) -> None:
        size = self.samples(index, rows, self.problem.lower_rows)
        counts = self.whole.counts
        counts.lower_gradients += size
        counts.hessian_products += size * hessian
        counts.jacobian_products += size * jacobian

    def _differentiate(
        self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None, *, create_graph: bool = True
    ) -> Tensor:
        with torch.enable_grad():
            total = self._lower(x, y, index, rows)
            found = None
            if total.requires_grad:
                found = torch.autograd.grad(total, y, create_graph=create_graph, allow_unused=True)[0]
            if found is None:
                raise ArgumentError("block_lower: the loss does not depend on y, so that there is no lower solution")
            if create_graph and not found.requires_grad:  # linear in y, with coefficients free of x
                found = found + 0 * y
        return found

    def _leaves(self, y: Tensor) -> list[Tensor]:
        return list(self.problem.y_layout.layout.unflatten(y).values())

    def _stacked(self, loss: BlockLoss) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
        x_layout, y_layout = self.problem.x_layout, self.block_layout

        def one(x: Tensor, y: Tensor, i: Tensor, rows: Tensor | None) -> Tensor:
            value = loss(x_layout.unflatten(x), y_layout.unflatten(y), i, rows)
            if value.ndim != 0:
                raise ShapeError(f"block loss: expected a scalar for one block, got shape {tuple(value.shape)}")
            return value

        def total(x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None) -> Tensor:
            return over_blocks(one, (0, 0, 0, None if rows is None else 0), len(index))(x, y, index, rows).sum()

        return total


def _columns(gradient: Tensor, variables: tuple[Tensor, ...]) -> list[Tensor]:
    # differentiate (S, D) by every (S, K): the matrices (S, K, D), by D backwards in one batch
    order = gradient.shape[1]
    units = torch.eye(order, dtype=gradient.dtype, device=gradient.device).unsqueeze(1).expand(order, *gradient.shape)
    found = torch.autograd.grad(
        gradient,
        variables,
        units,
        is_grads_batched=True,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [part.permute(1, 2, 0) for part in found]


def draw_blocks(num_blocks: int, count: int, generator: Generator) -> Tensor:
    """Draw some of the blocks, uniformly and without replacement.

    Parameters
    ----------
    num_blocks : int
        m.
    count : int
        I <= m.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor of int64, shape (I,)
        In rising order, on the CPU. O(I) work where I is below m / 4.
    """
    if 4 * count >= num_blocks:
        return torch.randperm(num_blocks, generator=generator)[:count].sort().values
    seen: dict[int, None] = {}
    while len(seen) < count:  # draws that were seen already are passed over, which leaves every set equally likely
        drawn = torch.randint(num_blocks, (count,), generator=generator).tolist()
        seen.update(dict.fromkeys(drawn))
    return torch.tensor(sorted(list(seen)[:count]))


def draw_rows(sizes: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw rows of each block: without replacement where every block has enough, else with.

    Parameters
    ----------
    sizes : Tensor of int64, shape (S,)
        Rows that each block has.
    count : int
        B.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor of int64, shape (S, B)
        On the CPU. O(S max(sizes)) work without replacement, O(S B) with.
    """
    sizes = sizes.cpu()
    if count > int(sizes.min()):
        return (torch.rand(len(sizes), count, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
    keys = torch.rand(len(sizes), int(sizes.max()), generator=generator)
    keys[torch.arange(keys.shape[1]) >= sizes[:, None]] = 2.0  # beyond the block's end: never among the smallest
    return keys.topk(count, dim=1, largest=False).indices
