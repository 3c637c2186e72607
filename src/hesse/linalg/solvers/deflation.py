"""Directions that a solver need not search: solved for exactly, and kept out of the iteration.

With UᴴAU = I and Π = I - AU Uᴴ the preconditioner M becomes Πᴴ M Π + U Uᴴ, and the start x0 + U Uᴴ r0. The spectrum
that conjugate gradients sees is that of M A without the part that U spans. In exact arithmetic the residual stays
orthogonal to U, and Πᴴ M alone would do; but that is not symmetric, and diverges on what rounding adds to the residual.

Where A is indefinite, UᴴAU is no inner product. MINRES works on residuals: with C = AU orthonormal and P = I - C Cᴴ it
solves P A P y = P r0, and x0 + P y + U Cᴴ (r0 - A P y) has the same residual, the least over U and the Krylov space.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.errors import NumericalError, ShapeError
from hesse.linalg._arguments import single_operator, wide_dtype
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import System

__all__ = ["Deflation", "deflated", "gram_factor", "projected"]


@dataclass(frozen=True, slots=True)
class Deflation:
    """A subspace and its image under A, in coordinates where UᴴAU = I."""

    U: Tensor  # (n, d), float32 at least
    AU: Tensor  # (n, d)
    ritz_values: Tensor | None = None  # (d,), rising: eigenvalues of M A that U stands for, where known

    @classmethod
    def of(cls, operator: LinearOperator, U: Tensor) -> "Deflation":
        """Multiply the subspace out; also the way to take one over to another operator.

        Parameters
        ----------
        operator : LinearOperator, shape (n, n)
            Hermitian positive definite A.
        U : Tensor, shape (n, d)
            Any basis; directions that depend on others to rounding are dropped.

        Returns
        -------
        Deflation
            One product with d columns.

        Raises
        ------
        ShapeError
            If U does not fit the operator, or the operator is a stack.
        NumericalError
            If A is not positive definite on U, or gives NaN or Inf.
        """
        operator = single_operator("Deflation.of", operator)
        n = operator.shape[0]
        if U.ndim != 2 or operator.shape != (len(U), n) or U.device != operator.device:
            raise ShapeError(
                f"Deflation.of: expected U of shape ({n}, d) on {operator.device} for a square operator, got "
                f"{tuple(U.shape)} on {U.device} and {operator.shape}"
            )
        work = wide_dtype(operator.dtype)
        with torch.no_grad():
            U = U.detach().to(work)
            lengths = torch.linalg.vector_norm(U, dim=0)
            U = U / torch.where(lengths > 0, lengths, 1)
            AU = operator.matmat(U.to(operator.dtype)).to(work)
            G = U.mH @ AU
            if not bool(torch.isfinite(G).all()):
                raise NumericalError("Deflation.of: UᴴAU has NaN or Inf; check U and the operator")
            values = torch.linalg.eigvalsh((G + G.mH) / 2)
            if len(G) and bool(values[0] < -100 * len(G) * torch.finfo(values.dtype).eps * values.abs().max()):
                raise NumericalError(
                    f"Deflation.of: uᴴAu = {float(values[0]):.1e} ‖u‖² for a u in the span of U; the operator is not "
                    "positive definite"
                )
            C = gram_factor(G)
            return cls(U @ C, AU @ C)

    def balanced(self, r: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the deflated preconditioner, Hermitian positive definite as M is.

        Parameters
        ----------
        r : Tensor, shape (n, k)
            Residuals.
        precondition : callable
            M.

        Returns
        -------
        Tensor, shape (n, k)
            Πᴴ M Π r + U Uᴴ r.
        """
        coarse = self.U.mH @ r
        z = precondition(r - self.AU @ coarse)
        return z + self.U @ (coarse - self.AU.mH @ z)


def gram_factor(G: Tensor, floor: float | None = None) -> Tensor:
    """Find C with CᴴGC = I.

    Parameters
    ----------
    G : Tensor, shape (d, d)
        Hermitian positive semi-definite.
    floor : float, optional
        Directions with a smaller squared share in columns of length one are dropped; 1/√floor is how much rounding
        errors can grow. Default: 100 d eps, all that rounding resolves.

    Returns
    -------
    Tensor, shape (d, r)
        r <= d.
    """
    sizes = G.diagonal().real
    positive = sizes > 0
    inverse = torch.where(positive, torch.where(positive, sizes, 1).rsqrt(), 0)
    values, vectors = torch.linalg.eigh(inverse.unsqueeze(1) * ((G + G.mH) / 2) * inverse)
    kept = values > (100 * len(G) * torch.finfo(sizes.dtype).eps if floor is None else floor)
    return inverse.unsqueeze(1) * vectors[:, kept] * values[kept].rsqrt()


def deflated(name: str, system: System, operator: LinearOperator, deflation: Deflation | Tensor) -> System:
    """Put the deflation into the start and the preconditioner of a system.

    Parameters
    ----------
    name : str
        The solver, for messages.
    system : System
        As prepared.
    operator : LinearOperator, shape (n, n)
        A.
    deflation : Deflation or Tensor of shape (n, d)
        A tensor is multiplied out first.

    Returns
    -------
    System
        For the same solutions.

    Raises
    ------
    ShapeError
        If the subspace does not fit, or the operator is a stack.
    """
    operator = single_operator(name, operator)
    found = deflation if isinstance(deflation, Deflation) else Deflation.of(operator, deflation)
    _fits(name, found.U, system)
    space = Deflation(found.U.to(system.b.dtype), found.AU.to(system.b.dtype))
    start = torch.zeros_like(system.b) if system.x0 is None else system.x0
    r = system.b if system.x0 is None else system.b - system.product(start)
    precondition = system.precondition or (lambda block: block)
    return replace(
        system,
        x0=start + space.U @ (space.U.mH @ r),
        precondition=lambda block: space.balanced(block, precondition),
    )


def projected(
    name: str, system: System, operator: LinearOperator, deflation: Deflation | Tensor
) -> tuple[System, Callable[[Tensor, Tensor], Tensor]]:
    """Take the image of a subspace out of a Hermitian system of any signature.

    Parameters
    ----------
    name : str
        The solver, for messages.
    system : System
        As prepared.
    operator : LinearOperator, shape (n, n)
        Hermitian A.
    deflation : Deflation or Tensor of shape (n, d)
        Any basis; directions whose images depend on others to rounding are dropped. A tensor costs one product with d
        columns.

    Returns
    -------
    System
        P A P y = P r0, from zero.
    callable
        From y and a scale s, (..., 1, k), that it is divided by, to x / s of the given system; one product.

    Raises
    ------
    ShapeError
        If the subspace does not fit, or the operator is a stack.
    NumericalError
        If A U has NaN or Inf.
    """
    operator = single_operator(name, operator)
    given = deflation.U if isinstance(deflation, Deflation) else deflation.detach()
    _fits(name, given, system)
    U = given.to(system.b.dtype)
    lengths = torch.linalg.vector_norm(U, dim=0)
    U = U / torch.where(lengths > 0, lengths, 1)
    AU = system.product(U) if U.shape[1] else U
    if not bool(torch.isfinite(AU).all()):
        raise NumericalError(f"{name}: A times the deflation has NaN or Inf; check it and the operator")
    image, sizes, turn = torch.linalg.svd(AU, full_matrices=False)
    kept = sizes > 100 * len(AU) * torch.finfo(sizes.dtype).eps * sizes.max() if len(sizes) else sizes > 0
    C, U = image[:, kept], U @ (turn.mH[:, kept] / sizes[kept])

    def off(block: Tensor) -> Tensor:
        return block - C @ (C.mH @ block)

    start = torch.zeros_like(system.b) if system.x0 is None else system.x0
    r = system.b if system.x0 is None else system.b - system.product(start)

    def lift(y: Tensor, scale: Tensor) -> Tensor:
        y = off(y)
        return start / scale + y + U @ (C.mH @ (r / scale - system.product(y)))

    inner = replace(system, b=off(r), x0=None, product=lambda block: off(system.product(off(block))))
    return inner, lift


def _fits(name: str, U: Tensor, system: System) -> None:
    if U.ndim != 2 or len(U) != len(system.b) or U.device != system.b.device:
        raise ShapeError(
            f"{name}: the deflation is {tuple(U.shape)} on {U.device}, the system of order "
            f"{len(system.b)} on {system.b.device}"
        )
