"""One entry for linear systems: choose a method by stated rules, differentiate through the answer, fail loudly.

For A x = b the backward pass solves A^H λ = g once more, with the same method and preconditioner; then
∂L/∂b = λ and ∂L/∂A = -λ x^H, pulled back to the operator's own tensors by one vector-Jacobian product.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import Preconditioner
from hesse.linalg.solvers.block_cg import block_cg
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.gmres import gmres
from hesse.linalg.solvers.lsmr import lsmr
from hesse.linalg.solvers.lsqr import lsqr
from hesse.linalg.solvers.minres import minres
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["Method", "solve"]

Method = Literal["auto", "direct", "dense", "cg", "block_cg", "minres", "gmres", "lsmr", "lsqr"]

_DENSE_LIMIT = 2000  # order up to which forming the matrix and factoring it beats iterating, and is exact
_ITERATIVE = {"cg": cg, "block_cg": block_cg, "minres": minres, "gmres": gmres, "lsmr": lsmr, "lsqr": lsqr}


def solve(
    operator: LinearOperator | Tensor | Any,
    b: Tensor,
    *,
    method: Method = "auto",
    strict: bool = True,
    preconditioner: Preconditioner | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    x0: Tensor | None = None,
) -> Solution:
    """Solve A x = b, or its least-squares problem if A is not square.

    Parameters
    ----------
    operator : LinearOperator or anything `as_linear_operator` takes, shape (..., m, n)
        A. Gradients reach the tensors it is made of.
    b : Tensor, shape (m,) or (..., m, k)
        Right-hand sides.
    method : str, default "auto"
        In this order: "lsmr" where A is not square; "direct" where its structure has an exact inverse; "dense" up to
        order 2000; "cg" where A is psd; "minres" where it is symmetric; else "gmres". A preconditioner or a start asks
        for an iterative method whatever the order. What ran stands in ``Solution.method``. "block_cg" is never chosen:
        it needs fewer products for many columns, and more work beside them.
    strict : bool, default True
        Raise where a column did not converge; else return the Solution as it is.
    preconditioner : LinearOperator or callable, optional
        As the method takes it; used in the backward pass too.
    rtol : float, optional
        Default: 1e-6 in double, 1e-5 in single precision. For least squares both ``atol`` and ``btol`` of SciPy.
    atol : float, default 0.0
        In the units of b; square iterative methods only.
    max_steps : int, optional
        As the method's own default.
    x0 : Tensor, shape of x, optional
        Start of the iterative methods.

    Returns
    -------
    Solution
        ``x`` carries gradients for b and for the operator's tensors where they ask for them.

    Raises
    ------
    ConvergenceError
        If ``strict`` and a column did not converge.
    SingularError
        If a direct or dense method meets a singular matrix.
    ArgumentError
        If the method is unknown, or does not fit the operator.
    ShapeError
        If shapes, dtypes or devices do not fit.
    MemoryLimitError
        If a matrix to be formed, or a basis to be kept, would not fit.

    Notes
    -----
    Through least squares the gradient is that of the normal equations, x = (A^H A)⁻¹ A^H b, and needs full column rank.
    """
    a = operator if isinstance(operator, LinearOperator) else as_linear_operator(operator)
    chosen = _choose(a, method, preconditioner is not None or x0 is not None)
    if chosen in ("direct", "dense"):
        solution = _exact(a, b, chosen)
        return solution.require() if strict and solution.status != Status.CONVERGED else solution
    options: dict[str, Any] = {"rtol": rtol, "max_steps": max_steps, "preconditioner": preconditioner}
    if chosen in ("lsmr", "lsqr"):
        options["atol"] = options.pop("rtol")
    else:
        options["atol"] = atol
    tensors = a.tensors()
    tracked = tuple(name for name, tensor in tensors.items() if tensor.requires_grad)
    call = _Call(a, tracked, chosen, options, strict)
    if not torch.is_grad_enabled() or not (tracked or b.requires_grad):
        return call.run(a, b, x0)
    vector = b.ndim == 1  # one column from here on: with a batched operator a vector's solution would look like a block
    block = b.unsqueeze(-1) if vector else b
    call.x0 = x0 if x0 is None or not vector else x0.unsqueeze(-1)
    x = _ImplicitSolve.apply(call, block, *(tensors[name] for name in tracked))
    found = replace(call.found, x=x, history=None)
    return _as_vector(found) if vector else found


def _choose(a: LinearOperator, method: Method, iterate: bool) -> str:
    m, n = a.shape
    if method not in ("auto", "direct", "dense", *_ITERATIVE):
        raise ArgumentError(f"solve: unknown method {method!r}; expected auto, direct, dense, {', '.join(_ITERATIVE)}")
    if method != "auto":
        if m != n and method not in ("lsmr", "lsqr"):
            raise ShapeError(f"solve: {method} needs a square operator, got shape {a.shape}; use lsmr")
        if method == "direct" and not a.has_direct_solve:
            raise ArgumentError(f"solve: {type(a).__name__} has no exact inverse of its own; use method='auto'")
        return method
    if m != n:
        return "lsmr"
    if a.has_direct_solve and not iterate:
        return "direct"
    if n <= _DENSE_LIMIT and not iterate:
        return "dense"
    return "cg" if a.is_psd else "minres" if a.is_symmetric else "gmres"


def _exact(a: LinearOperator, b: Tensor, method: str) -> Solution:
    block = b.unsqueeze(-1) if b.ndim == 1 else b
    if method == "direct":
        x = a.solve(block)
    else:
        if block.ndim < 2 or block.shape[-2] != a.shape[0] or b.dtype != a.dtype or b.device != a.device:
            raise ShapeError(
                f"solve: the operator is {a.shape} {a.dtype} on {a.device}, b {tuple(b.shape)} {b.dtype} on {b.device}"
            )
        require_memory("dense", a)
        x, info = torch.linalg.solve_ex(a.to_dense(), block)
        if bool(info.any()):
            raise SingularError("solve: the matrix is singular; add a shift, or use method='minres' or 'lsmr'")
    with torch.no_grad():
        residual = torch.linalg.vector_norm(block - a.matmat(x), dim=-2)
        converged = residual < torch.inf
    if b.ndim == 1:
        x, residual, converged = x.squeeze(-1), residual.squeeze(-1), converged.squeeze(-1)
    status = Status.CONVERGED if bool(converged.all()) else Status.BREAKDOWN
    return Solution(x=x, converged=converged, num_steps=0, residual=residual, status=status, method=method)


class _Call:
    """One differentiable solve: with A, or with its adjoint around the same tensors."""

    __slots__ = ("base", "chosen", "found", "options", "strict", "tracked", "turned", "x0")

    def __init__(
        self,
        base: LinearOperator,
        tracked: tuple[str, ...],
        chosen: str,
        options: dict[str, Any],
        strict: bool,
        *,
        turned: bool = False,
    ) -> None:
        self.base, self.tracked, self.chosen, self.options = base, tracked, chosen, options
        self.strict, self.turned = strict, turned
        self.x0: Tensor | None = None
        self.found: Solution

    def around(self, tensors: Sequence[Tensor]) -> LinearOperator:
        if not self.tracked:
            return self.base.H if self.turned else self.base
        own = {**self.base.tensors(), **dict(zip(self.tracked, tensors, strict=True))}
        operator = self.base.with_tensors(own)
        return operator.H if self.turned else operator

    def run(self, operator: LinearOperator, b: Tensor, x0: Tensor | None = None) -> Solution:
        solution = _ITERATIVE[self.chosen](operator, b, x0=x0, **self.options)
        return solution.require() if self.strict else solution

    def adjoint(self) -> "_Call":
        if self.base.is_symmetric:
            return _Call(self.base, self.tracked, self.chosen, self.options, self.strict)
        options = dict(self.options)
        if self.chosen in ("lsmr", "lsqr"):
            options["preconditioner"] = None  # it acts on x, and the dual lives in the space of b
        elif isinstance(options["preconditioner"], LinearOperator):
            options["preconditioner"] = options["preconditioner"].H
        return _Call(self.base, self.tracked, self.chosen, options, self.strict, turned=not self.turned)


class _ImplicitSolve(torch.autograd.Function):
    """x(b, θ) of A(θ) x = b by implicit differentiation; of square systems any number of times."""

    @staticmethod
    def forward(ctx: Any, call: _Call, b: Tensor, *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        call.found = call.run(call.around(tensors), b, call.x0)
        ctx.call = call
        ctx.save_for_backward(b, call.found.x, *tensors)
        return call.found.x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        b, x, *tensors = ctx.saved_tensors
        call: _Call = ctx.call
        again = torch.is_grad_enabled()
        square = call.base.shape[0] == call.base.shape[1]
        if again and not square:
            raise ArgumentTypeError("solve: second derivatives through least squares are not available")
        dual = _ImplicitSolve.apply(call.adjoint(), grad.contiguous(), *tensors)
        grad_b = dual.sum_to_size(b.shape)
        if not tensors:
            return None, grad_b
        with torch.enable_grad():
            # through aliases: x depends on the tensors too, and that path is the dual's
            aliases = [t.view_as(t) for t in tensors]
            operator = call.around(aliases)
            outputs, duals = [operator.matmat(x)], [-dual]
            if not square:  # the residual depends on A as well: ⟨A z, r⟩ with z = (AᴴA)⁻¹ g
                outputs.append(operator.matmat(_ITERATIVE[call.chosen](operator, dual, atol=call.options["atol"]).x))
                duals.append(b - outputs[0].detach())
            grads = torch.autograd.grad(outputs, aliases, duals, create_graph=again, allow_unused=True)
        return None, grad_b, *grads


def _as_vector(found: Solution) -> Solution:
    return replace(
        found,
        x=found.x.squeeze(-1),
        converged=found.converged.squeeze(-1),
        residual=found.residual.squeeze(-1),
        statuses=None if found.statuses is None else found.statuses.squeeze(-1),
        direction=None if found.direction is None else found.direction.squeeze(-1),
    )
