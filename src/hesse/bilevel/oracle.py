"""The derivatives of a bilevel problem, on flat vectors and counted: the only place where autograd is called.

    v  ↦  g_y,  g_yy v,  g_xy v     by one double backward: the gradient of ⟨g_y, v⟩ with respect to (x, y)

Shapes: x (N,), y and v (M,); g_xy is N x M and, like g_yy, only ever applied.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.bilevel.counts import OracleCounts
from hesse.bilevel.problem import BilevelProblem, Loss
from hesse.curvature.batches import batch_size
from hesse.curvature.hessian import hessian
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.operator import LinearOperator

__all__ = ["JointProducts", "Oracle"]


@dataclass(frozen=True, slots=True)
class JointProducts:
    """What one double backward gives."""

    lower_gradient: Tensor  # (M,): g_y
    hessian_product: Tensor  # (M,): g_yy v
    jacobian_product: Tensor  # (N,): g_xy v


class Oracle:
    """Gradients and products of a problem, each added to ``counts``.

    A batch left out is the whole data: what the sampler's ``full`` gives, read once.

    Parameters
    ----------
    problem : BilevelProblem
        Its losses are called with pytrees; here everything is a flat vector in the order of its layouts.
    counts : OracleCounts, optional
        What to add to. Default: new ones.
    """

    def __init__(self, problem: BilevelProblem, counts: OracleCounts | None = None) -> None:
        self.problem = problem
        self.counts = OracleCounts() if counts is None else counts
        self._full: tuple[Any, Any] | None = None

    @property
    def full_batches(self) -> tuple[Any, Any]:
        """The whole data of the upper and of the lower level, or None."""
        if self._full is None:
            self._full = self.problem.full_batches()
        return self._full

    def value(self, x: Tensor, y: Tensor, batch: Any = None) -> Tensor:
        """Evaluate f.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y : Tensor, shape (M,)
            Lower variable.
        batch : object, optional
            Of the upper level. Default: all data.

        Returns
        -------
        Tensor, shape ()
            Differentiable in x and y; not counted.
        """
        return self._call("upper", self.problem.upper, x, y, self._upper_batch(batch))

    def lower_value(self, x: Tensor, y: Tensor, batch: Any = None) -> Tensor:
        """Evaluate g.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y : Tensor, shape (M,)
            Lower variable.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        Tensor, shape ()
            Differentiable in x and y; not counted.
        """
        return self._call("lower", self.problem.lower, x, y, self._lower_batch(batch))

    def upper_gradients(self, x: Tensor, y: Tensor, batch: Any = None) -> tuple[Tensor, Tensor]:
        """Differentiate f by both variables in one backward.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y : Tensor, shape (M,)
            Lower variable.
        batch : object, optional
            Of the upper level. Default: all data.

        Returns
        -------
        f_x, f_y : Tensor, shapes (N,) and (M,)
            Zeros for a variable that f is free of.
        """
        batch = self._upper_batch(batch)
        self.counts.upper_gradients += self._size(batch)
        return self._gradients("upper", self.problem.upper, x, y, batch)

    def lower_gradient(self, x: Tensor, y: Tensor, batch: Any = None) -> Tensor:
        """Differentiate g by y alone.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y : Tensor, shape (M,)
            Lower variable.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        Tensor, shape (M,)
            g_y.

        Raises
        ------
        ArgumentError
            If g does not depend on y.
        """
        batch = self._lower_batch(batch)
        self.counts.lower_gradients += self._size(batch)
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            value = self._call("lower", self.problem.lower, x.detach(), y, batch)
        return _require_dependence(value, y, create_graph=False)

    def lower_gradients(self, x: Tensor, y: Tensor, batch: Any = None) -> tuple[Tensor, Tensor]:
        """Differentiate g by both variables in one backward.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y : Tensor, shape (M,)
            Lower variable.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        g_x, g_y : Tensor, shapes (N,) and (M,)
            Zeros for a variable that g is free of.
        """
        batch = self._lower_batch(batch)
        self.counts.lower_gradients += self._size(batch)
        return self._gradients("lower", self.problem.lower, x, y, batch)

    def joint(self, x: Tensor, y: Tensor, v: Tensor, batch: Any = None) -> JointProducts:
        """Give g_y, g_yy v and g_xy v from one graph and one batch, so that they share their noise.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y, v : Tensor, shape (M,)
            Lower variable, and the vector.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        JointProducts
            Counted as one gradient and one product of each kind.

        Raises
        ------
        ArgumentError
            If g does not depend on y.
        """
        batch = self._lower_batch(batch)
        size = self._size(batch)
        self.counts.lower_gradients += size
        self.counts.hessian_products += size
        self.counts.jacobian_products += size
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        with torch.enable_grad():
            value = self._call("lower", self.problem.lower, x, y, batch)
            gradient = _require_dependence(value, y, create_graph=True)
        if not gradient.requires_grad:  # g is linear in y, with coefficients free of x
            return JointProducts(gradient, torch.zeros_like(y), torch.zeros_like(x))
        across, along = torch.autograd.grad(gradient, (x, y), v, allow_unused=True, materialize_grads=True)
        return JointProducts(gradient.detach(), along, across)

    def hessian_product(self, x: Tensor, y: Tensor, v: Tensor, batch: Any = None) -> Tensor:
        """Give g_yy v alone.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y, v : Tensor, shape (M,)
            Lower variable, and the vector.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        Tensor, shape (M,)
            Counted as one gradient and one product.
        """
        batch = self._lower_batch(batch)
        self.counts.hessian_products += self._size(batch)
        y = y.detach().requires_grad_()
        return self._second(x.detach(), y, y, v, batch)

    def jacobian_product(self, x: Tensor, y: Tensor, v: Tensor, batch: Any = None) -> Tensor:
        """Give g_xy v alone.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y, v : Tensor, shape (M,)
            Lower variable, and the vector.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        Tensor, shape (N,)
            Counted as one gradient and one product.
        """
        batch = self._lower_batch(batch)
        self.counts.jacobian_products += self._size(batch)
        x = x.detach().requires_grad_()
        return self._second(x, y.detach().requires_grad_(), x, v, batch)

    def lower_hessian(
        self, x: Tensor, y: Tensor, batch: Any = None, *, damping: float = 0.0, is_psd: bool = False
    ) -> LinearOperator:
        """Give g_yy + damping · I as an operator whose products are counted.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y : Tensor, shape (M,)
            Lower variable.
        batch : object, optional
            Of the lower level. Default: all data.
        damping : float, default 0.0
            Multiple of the identity, in the units of g_yy.
        is_psd : bool, default False
            Promise that the lower level is convex.

        Returns
        -------
        LinearOperator, shape (M, M)
            Of the problem's ``lower_curvature`` if it has one, else the exact Hessian; the graph of g_y is recorded
            once and kept, so that a product is one backward.

        Raises
        ------
        ShapeError
            If ``lower_curvature`` gives another order.
        """
        problem, batch = self.problem, self._lower_batch(batch)
        x, y = x.detach(), y.detach()
        order = problem.y_layout.size
        if problem.lower_curvature is not None:
            inner = problem.lower_curvature(problem.x_layout.unflatten(x), problem.y_layout.unflatten(y), batch)
            if tuple(inner.shape) != (order, order):
                raise ShapeError(f"lower_curvature: expected an operator of order {order}, got {tuple(inner.shape)}")
        else:

            def loss(variables: dict[str, Tensor], held: Any) -> Tensor:
                return self._call("lower", problem.lower, x, variables["y"], held[0])

            inner = hessian(loss, {"y": y}, [(batch,)], keep_graph=True)
        size = self._size(batch)

        def matmat(columns: Tensor) -> Tensor:
            self.counts.hessian_products += size * columns.shape[-1]
            return inner.matmat(columns)

        counted = FunctionOperator(
            matmat, (order, order), dtype=y.dtype, device=y.device, is_symmetric=True, is_psd=is_psd or inner.is_psd
        )
        return counted.shift(damping) if damping else counted

    def project_x(self, x: Tensor) -> Tensor:
        """Project the upper variable, where the problem has a set for it.

        Parameters
        ----------
        x : Tensor, shape (N,)
            A point.

        Returns
        -------
        Tensor, shape (N,)
            The nearest point of the set.
        """
        layout, project = self.problem.x_layout, self.problem.project_x
        return x if project is None else layout.flatten(project(layout.unflatten(x)))

    def project_y(self, y: Tensor) -> Tensor:
        """Project the lower variable, where the problem has a set for it.

        Parameters
        ----------
        y : Tensor, shape (M,)
            A point.

        Returns
        -------
        Tensor, shape (M,)
            The nearest point of the set.
        """
        layout, project = self.problem.y_layout, self.problem.project_y
        return y if project is None else layout.flatten(project(layout.unflatten(y)))

    def _second(self, x: Tensor, y: Tensor, by: Tensor, v: Tensor, batch: Any) -> Tensor:
        self.counts.lower_gradients += self._size(batch)
        with torch.enable_grad():
            value = self._call("lower", self.problem.lower, x, y, batch)
            gradient = _require_dependence(value, y, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(by)
        return torch.autograd.grad(gradient, by, v, allow_unused=True, materialize_grads=True)[0]

    def _upper_batch(self, batch: Any) -> Any:
        return self.full_batches[0] if batch is None else batch

    def _lower_batch(self, batch: Any) -> Any:
        return self.full_batches[1] if batch is None else batch

    def _size(self, batch: Any) -> int:
        if batch is None:
            return 1
        return batch_size(batch)

    def _gradients(self, name: str, loss: Loss, x: Tensor, y: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        with torch.enable_grad():
            value = self._call(name, loss, x, y, batch)
        if not value.requires_grad:
            return torch.zeros_like(x), torch.zeros_like(y)
        by_x, by_y = torch.autograd.grad(value, (x, y), allow_unused=True, materialize_grads=True)
        return by_x, by_y

    def _call(self, name: str, loss: Loss, x: Tensor, y: Tensor, batch: Any) -> Tensor:
        versions = x._version, y._version
        value = loss(self.problem.x_layout.unflatten(x), self.problem.y_layout.unflatten(y), batch)
        if not isinstance(value, Tensor) or value.ndim != 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(f"{name}: expected the loss to be a scalar tensor, got {shape}")
        if (x._version, y._version) != versions:
            raise ArgumentError(f"{name}: the loss changes its variables in place; it must leave x and y as they are")
        return value


def _require_dependence(value: Tensor, y: Tensor, *, create_graph: bool) -> Tensor:
    found = torch.autograd.grad(value, y, create_graph=create_graph, allow_unused=True) if value.requires_grad else None
    if found is None or found[0] is None:
        raise ArgumentError("lower: the loss does not depend on y, so that there is no lower solution")
    return found[0]
