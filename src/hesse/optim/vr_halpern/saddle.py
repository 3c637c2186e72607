"""Saddle points as inclusions: matrix games, and losses that some parameters minimise and others maximise.

F(x, y) = (∇_x f, -∇_y f) for min_x max_y f. Shapes: matrices (M, N), n components, B of them in a sample, P parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator
from hesse.linalg.projections import Simplex
from hesse.optim.vr_halpern.finite_sum import FiniteSumOperator

__all__ = ["MatrixGame", "SaddleProblem", "matrix_game", "saddle_operator"]

Parameters = Mapping[str, Tensor]
SaddleLoss = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class MatrixGame:
    """min over x, max over y of yᵀ A x, both probability vectors; u = (x, y) has N + M entries.

    Attributes
    ----------
    matrix : LinearOperator, shape (M, N)
        A: what the row player y wins from the column player x.
    operator : FiniteSumOperator
        F(x, y) = (Aᵀy, -A x) as a mean of max(M, N) components: n times row i of A for x, column i for y.
    start : Tensor, shape (N + M,)
        Both uniform.
    """

    matrix: LinearOperator
    operator: FiniteSumOperator
    start: Tensor

    def resolvent(self, v: Tensor, eta: float) -> Tensor:
        """Project both strategies on their simplices.

        Parameters
        ----------
        v : Tensor, shape (N + M,)
            Any finite vector.
        eta : float
            Plays no part in a projection.

        Returns
        -------
        Tensor, shape (N + M,)
            The nearest pair of strategies.
        """
        x, y = self.strategies(v)
        if len(x) == len(y):
            return Simplex()(v.reshape(2, -1)).reshape(-1)  # both in one sort
        return torch.cat([Simplex()(x), Simplex()(y)])

    def strategies(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a point in two.

        Parameters
        ----------
        u : Tensor, shape (N + M,)
            A point.

        Returns
        -------
        x, y : Tensor, shapes (N,) and (M,)
            Views.
        """
        rows, columns = self.matrix.shape
        x, y = u.split([columns, rows])
        return x, y

    def duality_gap(self, u: Tensor) -> float:
        """Bound how far a pair of strategies is from equilibrium: max_i (A x)_i - min_j (Aᵀ y)_j.

        Parameters
        ----------
        u : Tensor, shape (N + M,)
            A pair of strategies.

        Returns
        -------
        float
            What the players could gain by answering each other best, in the units of A; zero at equilibria only.
        """
        x, y = self.strategies(u)
        return float(self.matrix.matvec(x).max() - self.matrix.rmatvec(y).min())


def matrix_game(A: Tensor | LinearOperator) -> MatrixGame:
    """Set up the zero-sum game of a matrix.

    Parameters
    ----------
    A : Tensor or LinearOperator, shape (M, N)
        Real. A strided tensor is used as it is, without a copy; of an operator's columns and rows those sampled are
        formed, by a product with that many columns where it cannot read them off.

    Returns
    -------
    MatrixGame
        Operator, resolvent, start and duality gap. A component costs O(M + N). The game is monotone and not
        cocoercive.

    Raises
    ------
    ArgumentTypeError
        If A is not real and floating.
    ShapeError
        If A is a stack of matrices.
    """
    matrix = as_linear_operator(A)
    if not matrix.dtype.is_floating_point:
        raise ArgumentTypeError(f"matrix_game: expected a real floating matrix, got {matrix.dtype}")
    if matrix.batch_shape:
        raise ShapeError(f"matrix_game: expected one matrix, got a stack of batch shape {matrix.batch_shape}")
    # of a stored matrix the transpose is a view, whose rows can be read off
    transposed = as_linear_operator(A.mT) if isinstance(A, Tensor) and A.layout == torch.strided else matrix.T
    rows, columns = matrix.shape
    n = max(rows, columns)

    def sampled(lines: LinearOperator, weights: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        if len(weights) == n:
            return lines.rows(index), n * weights[index]
        # the shorter side has fewer lines than there are components: the others are zero
        held = index.clamp_max(len(weights) - 1)
        return lines.rows(held), n * weights[held] * (index < len(weights))

    def component(u: Tensor, index: Tensor) -> Tensor:
        x, y = u.split([columns, rows])
        lines_x, weights_y = sampled(matrix, y, index)
        lines_y, weights_x = sampled(transposed, x, index)
        return torch.cat([weights_y @ lines_x, -(weights_x @ lines_y)]) / len(index)

    def batch(u: Tensor, index: Tensor) -> Tensor:
        x, y = u.split([columns, rows])
        lines_x, weights_y = sampled(matrix, y, index)
        lines_y, weights_x = sampled(transposed, x, index)
        return torch.cat([weights_y.unsqueeze(1) * lines_x, -weights_x.unsqueeze(1) * lines_y], dim=1)

    def full(u: Tensor) -> Tensor:
        x, y = u.split([columns, rows])
        return torch.cat([matrix.rmatvec(y), -matrix.matvec(x)])

    uniform = [torch.full((size,), 1 / size, dtype=matrix.dtype, device=matrix.device) for size in (columns, rows)]
    operator = FiniteSumOperator(component, n, rows + columns, batch, full_fn=full)
    return MatrixGame(matrix, operator, torch.cat(uniform))


@dataclass(frozen=True, slots=True, eq=False)
class SaddleProblem:
    """A saddle problem on flat vectors.

    Attributes
    ----------
    operator : FiniteSumOperator
        F(u) = (∇_x f, -∇_y f), one component an example.
    start : Tensor, shape (P,)
        The parameters given, those to be minimised over first.
    min_layout, max_layout : ParameterLayout
        Names and shapes of the two halves.
    """

    operator: FiniteSumOperator
    start: Tensor
    min_layout: ParameterLayout
    max_layout: ParameterLayout

    def parameters(self, u: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Name the entries of a point.

        Parameters
        ----------
        u : Tensor, shape (P,)
            A point.

        Returns
        -------
        min_params, max_params : dict of str to Tensor
            Views.
        """
        x, y = u.split([self.min_layout.size, self.max_layout.size])
        return self.min_layout.unflatten(x), self.max_layout.unflatten(y)


def saddle_operator(
    loss_fn: SaddleLoss,
    min_params: Parameters,
    max_params: Parameters,
    data: Any,
    *,
    chunk_size: int | None = None,
) -> SaddleProblem:
    """Turn min over x, max over y of (1/n) Σ_i f(x, y, example_i) into an operator of n components.

    Parameters
    ----------
    loss_fn : callable
        ``(min_params, max_params, example)`` ↦ f, a scalar, for one example (without the leading axis); convex in the
        first, concave in the second, if F shall be monotone. It is differentiated by torch.func and vectorised over
        examples, and may call a module by ``torch.func.functional_call``.
    min_params : mapping of str to Tensor
        Where to start with what is minimised over, as ``dict(module.named_parameters())``. May be empty.
    max_params : mapping of str to Tensor
        The same for what is maximised over. Empty for plain minimisation: F is then the gradient.
    data : Tensor, or tuples, lists and dictionaries of tensors
        Examples along the leading axis, on the parameters' device.
    chunk_size : int, optional
        Examples at a time in full passes: bounds their memory. Default: all.

    Returns
    -------
    SaddleProblem
        In the dtype of the parameters, which are copied.

    Raises
    ------
    ArgumentError
        If there are no parameters or no data.
    ShapeError
        If the parameters differ in dtype or device, or the data in their leading axis.

    Examples
    --------
    >>> def loss(x, y, example):
    ...     return 0.5 * (x["w"] - example) ** 2 + x["w"] * y["v"] - 0.5 * y["v"] ** 2
    >>> problem = saddle_operator(loss, {"w": torch.tensor(0.0)}, {"v": torch.tensor(0.5)}, torch.tensor([1.0, 3.0]))
    >>> problem.operator.full(problem.start)
    tensor([-1.5000,  0.5000])
    """
    leaves = [*min_params.values(), *max_params.values()]
    if not leaves:
        raise ArgumentError("saddle_operator: expected at least one parameter in min_params or max_params")
    if len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
        raise ShapeError("saddle_operator: expected all parameters of one dtype and device")
    examples = [leaf for leaf in tree_flatten(data)[0] if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in examples}
    if len(sizes) != 1 or sizes == {0}:
        raise ShapeError(
            f"saddle_operator: expected data whose tensors share a leading axis of at least one example, got {sizes}"
        )
    min_layout, max_layout = ParameterLayout.of(min_params), ParameterLayout.of(max_params)
    start = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
    signs = torch.ones_like(start)
    signs[min_layout.size :] = -1

    def loss(u: Tensor, example: Any) -> Tensor:
        x, y = u.split([min_layout.size, max_layout.size])
        return loss_fn(min_layout.unflatten(x), max_layout.unflatten(y), example)

    def mean_loss(u: Tensor, batch: Any) -> Tensor:
        return vmap(loss, in_dims=(None, 0))(u, batch).mean()

    def pick(index: Tensor) -> Any:
        return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, data)

    def component(u: Tensor, index: Tensor) -> Tensor:
        return signs * grad(mean_loss)(u, pick(index))

    def batch_fn(u: Tensor, index: Tensor) -> Tensor:
        return signs * vmap(grad(loss), in_dims=(None, 0))(u, pick(index))

    operator = FiniteSumOperator(component, sizes.pop(), len(start), batch_fn, chunk_size=chunk_size)
    return SaddleProblem(operator, start, min_layout, max_layout)
