"""min f(x) subject to c(x) = 0: the functions with their derivatives, every call counted.

Shapes: N variables, M constraints; x (N,), multipliers λ (M,), Jacobian G (M, N), L = f + λᵀc.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse._values import check_present
from hesse.curvature import hessian
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg import FunctionOperator, LinearOperator

__all__ = ["ConstrainedProblem", "HessianProduct", "Point", "VectorFunction"]

VectorFunction = Callable[[Tensor], Tensor]
HessianProduct = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, λ, v) -> ∇²ₓL(x, λ) v, for one vector v."""


@dataclass(frozen=True, slots=True)
class Point:
    """First-order information at (x, λ)."""

    x: Tensor  # (N,)
    lam: Tensor  # (M,)
    fun: Tensor  # ()
    con: Tensor  # (M,)
    fun_gradient: Tensor  # (N,)
    gradient: Tensor  # (N,): ∇f + Gᵀλ

    @property
    def kkt(self) -> float:
        """‖(∇ₓL, c)‖₂, zero at a KKT point; the units are those of the gradient and of the constraints, mixed."""
        return float(torch.linalg.vector_norm(torch.cat([self.gradient, self.con])))

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor Inf turned up."""
        return bool(torch.isfinite(torch.cat([self.fun.reshape(1), self.gradient, self.con])).all())


class ConstrainedProblem:
    """Functions and derivatives of an equality-constrained problem; what is not supplied comes from torch.func.

    Parameters
    ----------
    fun : callable
        f, (N,) -> (), twice differentiable.
    con : callable or None
        c, (N,) -> (M,), twice differentiable; None for no constraints.
    grad : callable, optional
        ∇f, (N,) -> (N,).
    jac : callable, optional
        G, (N,) -> (M, N).
    hvp : callable, optional
        (x, λ, v) -> ∇²ₓL(x, λ) v: the Hessian of the Lagrangian, not of f.

    Attributes
    ----------
    evaluations : Counter
        Calls of "fun", "con", "grad", "jac" (whole Jacobians), "vjp" (products Gᵀλ) and "hvp" (Hessian products).

    Raises
    ------
    ArgumentTypeError
        If one of them is not callable.
    """

    def __init__(
        self,
        fun: VectorFunction,
        con: VectorFunction | None,
        *,
        grad: VectorFunction | None = None,
        jac: VectorFunction | None = None,
        hvp: HessianProduct | None = None,
    ) -> None:
        for name, given in (("fun", fun), ("con", con), ("grad", grad), ("jac", jac), ("hvp", hvp)):
            if not (callable(given) or (given is None and name != "fun")):
                raise ArgumentTypeError(f"ConstrainedProblem: expected {name} to be callable, got {given!r}")
        self.fun = fun
        self.con = con if con is not None else lambda x: x[:0]
        self.grad, self.jac, self.hvp = grad, jac, hvp
        self.evaluations: Counter[str] = Counter()

    def start(self, call: str, x: Tensor, lam: Tensor | None) -> Point:
        """Evaluate the first point, and refuse what does not fit.

        Parameters
        ----------
        call : str
            Whose arguments they are, for messages.
        x : Tensor, shape (N,)
            In float32 or float64.
        lam : Tensor, shape (M,), optional
            Default: zero.

        Returns
        -------
        Point
            At (x, λ), detached.

        Raises
        ------
        ArgumentTypeError
            If x or λ is not a tensor.
        ShapeError
            If shapes, dtypes or devices do not fit.
        ArgumentError
            If there are more constraints than variables.
        NumericalError
            If a value there is NaN or Inf.
        """
        check_present(call, "x0", x)
        if lam is not None:
            check_present(call, "lam0", lam)
        if x.ndim != 1 or x.dtype not in (torch.float32, torch.float64) or len(x) == 0:
            raise ShapeError(
                f"{call}: expected x0 of shape (N,), in float32 or float64, got {x.dtype} of {tuple(x.shape)}"
            )
        x = x.detach().clone()
        con = self.con(x)
        if con.ndim != 1 or con.dtype != x.dtype or con.device != x.device:
            raise ShapeError(
                f"{call}: expected con(x) of shape (M,), {x.dtype} on {x.device}, "
                f"got {con.dtype} of {tuple(con.shape)} on {con.device}"
            )
        if len(con) > len(x):
            raise ArgumentError(f"{call}: {len(con)} equality constraints on {len(x)} variables; leave some out")
        lam = torch.zeros_like(con) if lam is None else lam
        if lam.shape != con.shape or lam.dtype != x.dtype or lam.device != x.device:
            raise ShapeError(
                f"{call}: expected lam0 of shape {tuple(con.shape)}, {x.dtype} on {x.device}, "
                f"got {lam.dtype} of {tuple(lam.shape)} on {lam.device}"
            )
        value = self.fun(x)
        if value.numel() != 1 or value.dtype != x.dtype:
            raise ShapeError(f"{call}: expected fun(x) to be one {x.dtype}, got {value.dtype} of {tuple(value.shape)}")
        for name, given, shape in (("grad", self.grad, x.shape), ("jac", self.jac, (len(con), len(x)))):
            if given is not None and (found := given(x)).shape != shape:
                raise ShapeError(f"{call}: expected {name}(x) of shape {tuple(shape)}, got {tuple(found.shape)}")
        point = self.at(x, lam.detach().clone())
        if not point.is_finite:
            raise NumericalError(f"{call}: fun(x0), its gradient or con(x0) has NaN or Inf; start elsewhere")
        return point

    def at(self, x: Tensor, lam: Tensor) -> Point:
        """Evaluate f, c and the gradients of f and L, by one reverse pass each.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Variables.
        lam : Tensor, shape (M,)
            Multipliers.

        Returns
        -------
        Point
            Differentiable with respect to both.
        """
        self.evaluations.update(("fun", "grad", "con"))
        if self.grad is None:
            slope, value = torch.func.grad_and_value(lambda v: self.fun(v).reshape(()))(x)
        else:
            slope, value = self.grad(x), self.fun(x).reshape(())
        if len(lam) == 0:
            return Point(x, lam, value, self.con(x), slope, slope)
        if self.jac is None:
            self.evaluations["vjp"] += 1
            pull: Any
            con, pull, *_ = torch.func.vjp(self.con, x)
            (pulled,) = pull(lam)
        else:
            self.evaluations["jac"] += 1
            con, pulled = self.con(x), self.jac(x).T @ lam
        return Point(x, lam, value, con, slope, slope + pulled)

    def jacobian(self, point: Point) -> Tensor:
        """Form G, by M reverse passes in one batch unless it is supplied.

        Parameters
        ----------
        point : Point
            Where.

        Returns
        -------
        Tensor, shape (M, N)
            Dense.
        """
        m, n = len(point.lam), len(point.x)
        if m == 0:
            return point.x.new_zeros(0, n)
        self.evaluations["jac"] += 1
        return torch.func.jacrev(self.con)(point.x) if self.jac is None else self.jac(point.x)

    def hessian(self, point: Point) -> LinearOperator:
        """Give ∇²ₓL at a point as an operator; each column multiplied counts as one "hvp".

        Parameters
        ----------
        point : Point
            Where.

        Returns
        -------
        LinearOperator, shape (N, N)
            Symmetric.
        """
        n = len(point.x)
        if self.hvp is None:
            inner = hessian(self._lagrangian, {"x": point.x}, point.lam)

            def product(columns: Tensor) -> Tensor:
                return inner.matmat(columns)
        else:
            supplied = self.hvp

            def product(columns: Tensor) -> Tensor:
                return torch.stack([supplied(point.x, point.lam, v) for v in columns.unbind(-1)], dim=-1)

        def counted(columns: Tensor) -> Tensor:
            self.evaluations["hvp"] += columns.shape[-1]
            return product(columns)

        return FunctionOperator(counted, (n, n), dtype=point.x.dtype, device=point.x.device, is_symmetric=True)

    def _lagrangian(self, variables: dict[str, Tensor], lam: Tensor) -> Tensor:
        x = variables["x"]
        value = self.fun(x).reshape(())
        return value + self.con(x) @ lam if len(lam) else value
