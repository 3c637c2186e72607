"""Kronecker products and sums, multiplied and inverted by their factors, never formed.

Row-major convention: (A ⊗ B) vec(X) = vec(A X Bᵀ) with X of shape (n_A, n_B) and vec = reshape.
Shapes: factors A_i (..., m_i, n_i), N = Π n_i, operands (..., N, k).
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.basic import Dense
from hesse.linalg.eigh import EighKronecker, each_mode
from hesse.linalg.operator import LinearOperator

__all__ = ["Kronecker", "KroneckerSum"]


class Kronecker(LinearOperator):
    """A₁ ⊗ A₂ ⊗ ⋯ ⊗ A_p.

    A product costs N k Σ m_i operations for square factors, those that shrink the operand first. Solve, determinant,
    trace, eigen-decomposition, Cholesky factor, pseudo-inverse and powers are exact, each from the factors' own.

    Parameters
    ----------
    factors : sequence of LinearOperator or Tensor, shapes (..., m_i, n_i)
        At least one, of one dtype and device.
    is_symmetric : bool, default False
        Promise that every tensor among the factors is symmetric; operators carry their own flags.
    is_psd : bool, default False
        Promise that every tensor among the factors is positive semi-definite.

    Raises
    ------
    ArgumentError
        If there is no factor.
    ShapeError
        If dtypes, devices or batches do not agree.
    """

    _fields = ("factors",)

    def __init__(
        self, factors: Sequence[LinearOperator | Tensor], *, is_symmetric: bool = False, is_psd: bool = False
    ) -> None:
        wrapped = _factors("Kronecker", factors, is_symmetric=is_symmetric, is_psd=is_psd)
        super().__init__(
            (math.prod(f.shape[0] for f in wrapped), math.prod(f.shape[1] for f in wrapped)),
            wrapped[0].dtype,
            wrapped[0].device,
            batch_shape=tuple(torch.broadcast_shapes(*(f.batch_shape for f in wrapped))),
            is_symmetric=all(f.is_symmetric for f in wrapped),
            is_psd=all(f.is_psd for f in wrapped),
        )
        self.factors = wrapped

    def _matmat(self, x: Tensor) -> Tensor:
        sizes = [f.shape[1] for f in self.factors]
        order = sorted(range(len(sizes)), key=lambda i: self.factors[i].shape[0] / max(1, sizes[i]))
        return each_mode([f.matmat for f in self.factors], sizes, x, order)

    def _rmatmat(self, y: Tensor) -> Tensor:
        sizes = [f.shape[0] for f in self.factors]
        order = sorted(range(len(sizes)), key=lambda i: self.factors[i].shape[1] / max(1, sizes[i]))
        return each_mode([f.rmatmat for f in self.factors], sizes, y, order)

    @property
    def has_direct_solve(self) -> bool:
        """Whether every factor is square: the inverse of a Kronecker product is the product of the inverses."""
        return all(f.shape[0] == f.shape[1] for f in self.factors)

    def _solve(self, b: Tensor) -> Tensor:
        sizes = [f.shape[0] for f in self.factors]
        return each_mode([_solver_of(f) for f in self.factors], sizes, b, range(len(sizes)))

    def _logdet(self) -> Tensor:
        if not self.has_direct_solve:
            raise ArgumentTypeError("Kronecker.logdet: the factors are not square")
        parts = [self.shape[0] // f.shape[0] * _logdet_of(f) for f in self.factors]
        return reduce(torch.add, parts)

    def _trace(self) -> Tensor:
        if not self.has_direct_solve:
            return super()._trace()
        return reduce(torch.mul, [f.trace() for f in self.factors])

    def _diagonal(self) -> Tensor:
        if not self.has_direct_solve:
            return super()._diagonal()
        outer = reduce(
            lambda a, d: (a.unsqueeze(-1) * d.unsqueeze(-2)).flatten(-2), [f.diagonal() for f in self.factors]
        )
        return outer.expand(*self.batch_shape, self.shape[0])

    def _dense(self) -> Tensor:
        def pair(a: Tensor, b: Tensor) -> Tensor:
            wide = a[..., :, None, :, None] * b[..., None, :, None, :]
            return wide.flatten(-4, -3).flatten(-2, -1)

        return reduce(pair, [f.to_dense() for f in self.factors])

    @property
    def H(self) -> "LinearOperator":
        """The Kronecker product of the adjoints."""
        if self.is_symmetric:
            return self
        turned = Kronecker([f.H for f in self.factors])
        turned._adjoint_of = self
        return turned

    @property
    def has_spectral_form(self) -> bool:
        """Whether the factors are symmetric."""
        return self.is_symmetric

    def _spectral_form(self) -> EighKronecker:
        return self.eigh()

    def eigh(self) -> EighKronecker:
        """Decompose exactly: eigenvalues are products of the factors' eigenvalues.

        Returns
        -------
        EighKronecker
            The same operator in its eigenbasis. Costs Σ n_i³.

        Raises
        ------
        ArgumentTypeError
            If a factor is not symmetric.
        """
        _require_symmetric("Kronecker.eigh", self)
        pairs = [torch.linalg.eigh(f.to_dense()) for f in self.factors]
        table = reduce(_outer(torch.mul), [values for values, _ in pairs])
        table = table.unflatten(-1, [f.shape[0] for f in self.factors])
        return EighKronecker([q for _, q in pairs], table)

    def damped_inverse(self, damping: float | Tensor) -> EighKronecker:
        """Invert (A₁ ⊗ ⋯ ⊗ A_p + damping · I) exactly, through the eigenbases.

        Parameters
        ----------
        damping : float or Tensor, shape ()
            The shift, in the units of the operator; it must make every eigenvalue nonzero.

        Returns
        -------
        EighKronecker
            The inverse as an operator.

        Raises
        ------
        ArgumentTypeError
            If a factor is not symmetric.
        SingularError
            If the damped operator is singular.
        """
        return self.eigh().damped_inverse(damping)

    def cholesky(self) -> "Kronecker":
        """Factor L L^H, L the Kronecker product of the factors' lower Cholesky factors.

        Returns
        -------
        Kronecker
            L, lower triangular.

        Raises
        ------
        ArgumentTypeError
            If a factor is not symmetric.
        SingularError
            If a factor is not positive definite.
        """
        _require_symmetric("Kronecker.cholesky", self)
        lowers: list[LinearOperator | Tensor] = []
        for i, factor in enumerate(self.factors):
            lower, info = torch.linalg.cholesky_ex(factor.to_dense())
            if bool((info != 0).any()):
                raise SingularError(f"Kronecker.cholesky: factor {i} is not positive definite; add damping to it")
            lowers.append(lower)
        return Kronecker(lowers)

    def pinv(self, rtol: float | None = None) -> "Kronecker":
        """Take the Moore-Penrose inverse, the Kronecker product of the factors' own.

        Parameters
        ----------
        rtol : float, optional
            Singular values of a factor below ``rtol`` times its largest count as zero. Default: n eps, as torch.

        Returns
        -------
        Kronecker
            Of shape (N, M).
        """
        inverses: list[LinearOperator | Tensor] = [
            Dense(
                torch.linalg.pinv(f.to_dense(), rtol=rtol, hermitian=f.is_symmetric),
                is_symmetric=f.is_symmetric,
                is_psd=f.is_psd,
            )
            for f in self.factors
        ]
        return Kronecker(inverses)

    def power(self, exponent: float) -> LinearOperator:
        """Raise to a power: each factor is raised by itself.

        Parameters
        ----------
        exponent : float
            A whole number for any square factors; any real number for positive semi-definite ones (negative: definite).

        Returns
        -------
        LinearOperator
            A `Kronecker` for whole exponents, else an `EighKronecker`.

        Raises
        ------
        ShapeError
            If a factor is not square.
        ArgumentTypeError
            If the exponent is fractional and a factor is not symmetric.
        """
        if not self.has_direct_solve:
            raise ShapeError(f"Kronecker.power: expected square factors, got {[f.shape for f in self.factors]}")
        if float(exponent).is_integer():
            raised: list[LinearOperator | Tensor] = [
                Dense(
                    torch.linalg.matrix_power(f.to_dense(), int(exponent)),
                    is_symmetric=f.is_symmetric,
                    is_psd=f.is_psd or (f.is_symmetric and int(exponent) % 2 == 0),
                )
                for f in self.factors
            ]
            return Kronecker(raised)
        return self.eigh().power(exponent)


class KroneckerSum(LinearOperator):
    """A₁ ⊕ A₂ ⊕ ⋯: A ⊕ B = A ⊗ I + I ⊗ B, the operator of separable stencils and Sylvester equations.

    Eigenvalues are sums of the factors' eigenvalues in the Kronecker basis, so solve and shift are exact where the
    factors are symmetric; the exponential factorises for any.

    Parameters
    ----------
    factors : sequence of LinearOperator or Tensor, shapes (..., n_i, n_i)
        At least one, square, of one dtype and device.
    is_symmetric : bool, default False
        Promise that every tensor among the factors is symmetric.
    is_psd : bool, default False
        Promise that every tensor among the factors is positive semi-definite.

    Raises
    ------
    ArgumentError
        If there is no factor.
    ShapeError
        If a factor is not square, or dtypes, devices or batches do not agree.
    """

    _fields = ("factors",)

    def __init__(
        self, factors: Sequence[LinearOperator | Tensor], *, is_symmetric: bool = False, is_psd: bool = False
    ) -> None:
        wrapped = _factors("KroneckerSum", factors, is_symmetric=is_symmetric, is_psd=is_psd)
        for factor in wrapped:
            if factor.shape[0] != factor.shape[1]:
                raise ShapeError(f"KroneckerSum: expected square factors, got shape {factor.shape}")
        order = math.prod(f.shape[0] for f in wrapped)
        super().__init__(
            (order, order),
            wrapped[0].dtype,
            wrapped[0].device,
            batch_shape=tuple(torch.broadcast_shapes(*(f.batch_shape for f in wrapped))),
            is_symmetric=all(f.is_symmetric for f in wrapped),
            is_psd=all(f.is_psd for f in wrapped),
        )
        self.factors = wrapped

    def _matmat(self, x: Tensor) -> Tensor:
        return self._sum([f.matmat for f in self.factors], x)

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self._sum([f.rmatmat for f in self.factors], y)

    def _sum(self, products: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        sizes = [f.shape[0] for f in self.factors]
        return reduce(torch.add, [each_mode(products, sizes, x, [i]) for i in range(len(sizes))])

    def _diagonal(self) -> Tensor:
        outer = reduce(_outer(torch.add), [f.diagonal() for f in self.factors])
        return outer.expand(*self.batch_shape, self.shape[0])

    @property
    def has_spectral_form(self) -> bool:
        """Whether the factors are symmetric."""
        return self.is_symmetric

    @property
    def has_direct_solve(self) -> bool:
        """Whether the factors are symmetric: division in the eigenbasis."""
        return self.is_symmetric

    def _spectral_form(self) -> EighKronecker:
        return self.eigh()

    def _solve(self, b: Tensor) -> Tensor:
        return self.eigh().solve(b)

    def _logdet(self) -> Tensor:
        return self.eigh().logdet()

    def eigh(self) -> EighKronecker:
        """Decompose exactly: eigenvalues are sums of the factors' eigenvalues.

        Returns
        -------
        EighKronecker
            The same operator in its eigenbasis. Costs Σ n_i³; keep it for repeated solves.

        Raises
        ------
        ArgumentTypeError
            If a factor is not symmetric.
        """
        _require_symmetric("KroneckerSum.eigh", self)
        pairs = [torch.linalg.eigh(f.to_dense()) for f in self.factors]
        table = reduce(_outer(torch.add), [values for values, _ in pairs])
        return EighKronecker([q for _, q in pairs], table.unflatten(-1, [f.shape[0] for f in self.factors]))

    def exp(self) -> Kronecker:
        """Take the matrix exponential, exp(A ⊕ B) = exp(A) ⊗ exp(B).

        Returns
        -------
        Kronecker
            Of the factors' exponentials.
        """
        raised: list[LinearOperator | Tensor] = [
            Dense(torch.linalg.matrix_exp(f.to_dense()), is_symmetric=f.is_symmetric, is_psd=f.is_symmetric)
            for f in self.factors
        ]
        return Kronecker(raised)


def _factors(
    name: str, factors: Sequence[LinearOperator | Tensor], *, is_symmetric: bool, is_psd: bool
) -> tuple[LinearOperator, ...]:
    if not factors:
        raise ArgumentError(f"{name}: expected at least one factor")
    wrapped = tuple(
        f if isinstance(f, LinearOperator) else Dense(f, is_symmetric=is_symmetric, is_psd=is_psd) for f in factors
    )
    for i, factor in enumerate(wrapped):
        if factor.dtype != wrapped[0].dtype or factor.device != wrapped[0].device:
            raise ShapeError(
                f"{name}: factor 0 is {wrapped[0].dtype} on {wrapped[0].device}, "
                f"factor {i} is {factor.dtype} on {factor.device}; convert one by .to"
            )
    try:
        torch.broadcast_shapes(*(f.batch_shape for f in wrapped))
    except RuntimeError as error:
        raise ShapeError(f"{name}: batch shapes {[f.batch_shape for f in wrapped]} do not broadcast") from error
    return wrapped


def _solver_of(factor: LinearOperator) -> Callable[[Tensor], Tensor]:
    if factor.has_direct_solve:
        return factor.solve

    def run(b: Tensor) -> Tensor:
        solution, info = torch.linalg.solve_ex(factor.to_dense(), b)
        if bool((info != 0).any()):
            raise SingularError(f"Kronecker.solve: a factor of order {factor.shape[0]} is singular; use damped_inverse")
        return solution

    return run


def _logdet_of(factor: LinearOperator) -> Tensor:
    return factor.logdet() if factor.has_direct_solve else torch.linalg.slogdet(factor.to_dense()).logabsdet


def _outer(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda left, right: combine(left.unsqueeze(-1), right.unsqueeze(-2)).flatten(-2)


def _require_symmetric(name: str, operator: LinearOperator) -> None:
    if not operator.is_symmetric:
        raise ArgumentTypeError(
            f"{name}: expected symmetric factors; construct with is_symmetric=True or is_psd=True if they are"
        )
