"""A⁻¹ as an operator: every product is a solve, direct where the structure allows it, else by the solver given."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesse.errors import ArgumentTypeError, ShapeError
from hesse.linalg.operator import LinearOperator

if TYPE_CHECKING:
    from hesse.linalg.solvers.solution import Solution  # which leads to the preconditioners, which lead here

__all__ = ["InverseOperator"]


class InverseOperator(LinearOperator):
    """A⁻¹, applied by solving.

    Parameters
    ----------
    base : LinearOperator, shape (..., n, n)
        A.
    solver : callable, optional
        ``solver(A, b)`` returns a `Solution`, as `functools.partial(cg, rtol=1e-8)` does. Default: A's own direct
        solve.
        With a loose tolerance the inverse is not a linear map: use it in `cg` with ``flexible=True`` only.

    Raises
    ------
    ShapeError
        If A is not square.
    ArgumentTypeError
        If there is neither a solver nor a direct solve.

    Notes
    -----
    A product raises ConvergenceError where the solver does not converge.
    """

    _fields = ("base",)

    def __init__(
        self, base: LinearOperator, solver: "Callable[[LinearOperator, Tensor], Solution] | None" = None
    ) -> None:
        if base.shape[0] != base.shape[1]:
            raise ShapeError(f"InverseOperator: expected a square operator, got shape {base.shape}")
        if solver is None and not base.has_direct_solve:
            raise ArgumentTypeError(
                f"InverseOperator: {type(base).__name__} has no direct solve; pass solver=, for example cg"
            )
        super().__init__(
            base.shape,
            base.dtype,
            base.device,
            batch_shape=base.batch_shape,
            is_symmetric=base.is_symmetric,
            is_psd=base.is_psd,
        )
        self.base = base
        self.solver = solver

    def _apply(self, operator: LinearOperator, b: Tensor) -> Tensor:
        if self.solver is None:
            return operator.solve(b)
        return self.solver(operator, b).require().x

    def _matmat(self, x: Tensor) -> Tensor:
        return self._apply(self.base, x)

    def _rmatmat(self, y: Tensor) -> Tensor:
        if self.is_symmetric:
            return self._apply(self.base, y)
        if self.solver is None and not self.base.H.has_direct_solve:
            with torch.enable_grad():  # the direct solve is differentiable, and its derivative is its adjoint
                x = torch.zeros_like(y).requires_grad_()
                (adjoint,) = torch.autograd.grad(self.base.solve(x), x, y)
            return adjoint
        return self._apply(self.base.H, y)

    @property
    def has_direct_solve(self) -> bool:
        """True: the inverse of the inverse is a product."""
        return True

    def _solve(self, b: Tensor) -> Tensor:
        return self.base.matmat(b)

    def _logdet(self) -> Tensor:
        return -self.base.logdet()
