"""Operators made of operators: sums, multiples, shifts, products, blocks.   Flags follow the algebra.

Symmetric and psd survive: sums of both; a real multiple (psd: if not negative); a shift; a congruence B^H A B; blocks.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.operator import LinearOperator, Scalar

__all__ = [
    "BlockDiagonal",
    "ProductOperator",
    "ScaledOperator",
    "ShiftedOperator",
    "SumOperator",
    "add",
    "product",
    "scale",
]


def add(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """Add: A + B, as a shift where one of them is a multiple of the identity.

    Parameters
    ----------
    left : LinearOperator, shape (..., m, n)
        A.
    right : LinearOperator, shape (..., m, n)
        B.

    Returns
    -------
    LinearOperator
        Flat: sums of sums are one sum.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices differ.
    """
    from hesse.linalg.basic import ScaledIdentity

    _require_alike("A + B", left, right)
    if left.shape != right.shape:
        raise ShapeError(f"A + B: shapes {left.shape} and {right.shape} differ")
    if isinstance(right, ScaledIdentity):
        return left.shift(right.scale)
    if isinstance(left, ScaledIdentity):
        return right.shift(left.scale)
    terms = [t for side in (left, right) for t in (side.terms if isinstance(side, SumOperator) else (side,))]
    return SumOperator(terms)


def scale(operator: LinearOperator, scalar: Scalar) -> LinearOperator:
    """Multiply by a number: c A; a factor of one is dropped.

    Parameters
    ----------
    operator : LinearOperator
        A.
    scalar : float, complex or Tensor
        c; a tensor must broadcast to the operator's ``batch_shape``.

    Returns
    -------
    LinearOperator
        Flat: multiples of multiples are one.

    Raises
    ------
    ArgumentTypeError
        If ``scalar`` is no number.
    """
    if not isinstance(scalar, int | float | complex | Tensor):
        raise ArgumentTypeError(f"c * A: expected a number or a tensor, got {type(scalar).__name__}")
    if not isinstance(scalar, Tensor) and scalar == 1:
        return operator
    if isinstance(operator, ScaledOperator):
        return scale(operator.base, operator.factor * scalar)
    return ScaledOperator(operator, scalar)


def product(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """Compose: A B, flat, and known to be psd where it is a Gram matrix B^H B or a congruence B^H A B.

    Parameters
    ----------
    left : LinearOperator, shape (..., m, r)
        A.
    right : LinearOperator, shape (..., r, n)
        B.

    Returns
    -------
    LinearOperator
        A `ProductOperator`.

    Raises
    ------
    ShapeError
        If inner dimensions, dtypes or devices differ.
    """
    sides = (left, right)
    return ProductOperator([f for s in sides for f in (s.factors if isinstance(s, ProductOperator) else (s,))])


class SumOperator(LinearOperator):
    """The sum of operators of one shape.

    Parameters
    ----------
    terms : sequence of LinearOperator
        At least one.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices differ.
    """

    _fields = ("terms",)

    def __init__(self, terms: Sequence[LinearOperator]) -> None:
        first = _first("SumOperator", terms)
        for term in terms:
            _require_alike("SumOperator", first, term)
            if term.shape != first.shape:
                raise ShapeError(f"SumOperator: shapes {first.shape} and {term.shape} differ")
        super().__init__(
            first.shape,
            first.dtype,
            first.device,
            batch_shape=_joint_batch(terms),
            is_symmetric=all(t.is_symmetric for t in terms),
            is_psd=all(t.is_psd for t in terms),
        )
        self.terms = tuple(terms)

    def _matmat(self, x: Tensor) -> Tensor:
        total = self.terms[0].matmat(x)
        for term in self.terms[1:]:
            total = total + term.matmat(x)
        return total

    def _rmatmat(self, y: Tensor) -> Tensor:
        total = self.terms[0].rmatmat(y)
        for term in self.terms[1:]:
            total = total + term.rmatmat(y)
        return total

    def _diagonal(self) -> Tensor:
        total = self.terms[0].diagonal()
        for term in self.terms[1:]:
            total = total + term.diagonal()
        return total


class ScaledOperator(LinearOperator):
    """c A.

    Parameters
    ----------
    base : LinearOperator
        A.
    factor : float, complex or Tensor
        c; a tensor must broadcast to ``base.batch_shape``.

    Raises
    ------
    ArgumentTypeError
        If a real operator is given a complex factor.
    ShapeError
        If a tensor factor does not fit the batch.
    """

    _fields = ("base", "factor")

    def __init__(self, base: LinearOperator, factor: Scalar) -> None:
        _require_scalar("c * A", base, factor)
        real, positive = _sign_of(factor)
        super().__init__(
            base.shape,
            base.dtype,
            base.device,
            batch_shape=base.batch_shape,
            is_symmetric=base.is_symmetric and real,
            is_psd=base.is_psd and positive,
        )
        self.base = base
        self.factor = factor

    def _matmat(self, x: Tensor) -> Tensor:
        return _columns(self.factor) * self.base.matmat(x)

    def _rmatmat(self, y: Tensor) -> Tensor:
        factor = self.factor.conj() if isinstance(self.factor, Tensor) else self.factor
        factor = factor.conjugate() if isinstance(factor, complex) else factor
        return _columns(factor) * self.base.rmatmat(y)

    @property
    def has_direct_solve(self) -> bool:
        """As the base."""
        return self.base.has_direct_solve

    def _solve(self, b: Tensor) -> Tensor:
        if not isinstance(self.factor, Tensor) and self.factor == 0:
            raise SingularError("ScaledOperator.solve: the factor is zero")
        return self.base.solve(b) / _columns(self.factor)

    def _logdet(self) -> Tensor:
        size = torch.as_tensor(self.factor, device=self.device).abs().to(self.dtype.to_real())
        return self.base.logdet() + self.shape[0] * size.log()

    def _diagonal(self) -> Tensor:
        factor = self.factor.unsqueeze(-1) if isinstance(self.factor, Tensor) else self.factor
        return factor * self.base.diagonal()

    def _trace(self) -> Tensor:
        return self.factor * self.base.trace()


class ShiftedOperator(LinearOperator):
    """A + shift · I.

    Parameters
    ----------
    base : LinearOperator, shape (..., n, n)
        A.
    shift : float, complex or Tensor
        The multiple of the identity; a tensor must broadcast to ``base.batch_shape``.

    Raises
    ------
    ShapeError
        If A is not square, or a tensor shift does not fit the batch.
    ArgumentTypeError
        If a real operator is given a complex shift.
    """

    _fields = ("base", "amount")

    def __init__(self, base: LinearOperator, shift: Scalar) -> None:
        if base.shape[0] != base.shape[1]:
            raise ShapeError(f"ShiftedOperator: expected a square operator, got shape {base.shape}")
        _require_scalar("A + shift * I", base, shift)
        real, positive = _sign_of(shift)
        super().__init__(
            base.shape,
            base.dtype,
            base.device,
            batch_shape=base.batch_shape,
            is_symmetric=base.is_symmetric and real,
            is_psd=base.is_psd and positive,
        )
        self.base = base
        self.amount = shift

    def _matmat(self, x: Tensor) -> Tensor:
        return self.base.matmat(x) + _columns(self.amount) * x

    def _rmatmat(self, y: Tensor) -> Tensor:
        amount = self.amount
        amount = amount.conj() if isinstance(amount, Tensor) else complex(amount).conjugate()
        if not isinstance(amount, Tensor) and amount.imag == 0:
            amount = amount.real
        return self.base.rmatmat(y) + _columns(amount) * y

    @property
    def has_direct_solve(self) -> bool:
        """Whether the base has an eigenbasis, in which the shift is exact."""
        return self.base.has_spectral_form

    def _solve(self, b: Tensor) -> Tensor:
        return self.base._spectral_form().shift(self.amount).solve(b)

    def _logdet(self) -> Tensor:
        return self.base._spectral_form().shift(self.amount).logdet()

    def _diagonal(self) -> Tensor:
        amount = self.amount.unsqueeze(-1) if isinstance(self.amount, Tensor) else self.amount
        return self.base.diagonal() + amount

    def _shifted(self, shift: Scalar) -> LinearOperator:
        return ShiftedOperator(self.base, self.amount + shift)


class ProductOperator(LinearOperator):
    """A₁ A₂ ⋯ A_p, applied from the right.

    Parameters
    ----------
    factors : sequence of LinearOperator
        At least one.

    Raises
    ------
    ShapeError
        If inner dimensions, dtypes or devices differ.
    """

    _fields = ("factors",)

    def __init__(self, factors: Sequence[LinearOperator]) -> None:
        first = _first("ProductOperator", factors)
        for left, right in pairwise(factors):
            _require_alike("A @ B", left, right)
            if left.shape[1] != right.shape[0]:
                raise ShapeError(f"A @ B: inner dimensions differ, {left.shape} @ {right.shape}")
        symmetric, psd = _congruence(factors)
        super().__init__(
            (first.shape[0], factors[-1].shape[1]),
            first.dtype,
            first.device,
            batch_shape=_joint_batch(factors),
            is_symmetric=symmetric,
            is_psd=psd,
        )
        self.factors = tuple(factors)

    def _matmat(self, x: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            x = factor.matmat(x)
        return x

    def _rmatmat(self, y: Tensor) -> Tensor:
        for factor in self.factors:
            y = factor.rmatmat(y)
        return y

    @property
    def has_direct_solve(self) -> bool:
        """Whether every factor has."""
        return all(f.has_direct_solve and f.shape[0] == f.shape[1] for f in self.factors)

    def _solve(self, b: Tensor) -> Tensor:
        for factor in self.factors:
            b = factor.solve(b)
        return b

    @property
    def H(self) -> LinearOperator:
        """The adjoints in reverse."""
        if self.is_symmetric:
            return self
        turned = ProductOperator([f.H for f in reversed(self.factors)])
        turned._adjoint_of = self
        return turned

    def _logdet(self) -> Tensor:
        total = self.factors[0].logdet()
        for factor in self.factors[1:]:
            total = total + factor.logdet()
        return total


class BlockDiagonal(LinearOperator):
    """Blocks along the diagonal, square or not.

    Parameters
    ----------
    blocks : sequence of LinearOperator
        At least one; of one dtype and device.

    Raises
    ------
    ShapeError
        If dtypes or devices differ.
    """

    _fields = ("blocks",)

    def __init__(self, blocks: Sequence[LinearOperator]) -> None:
        first = _first("BlockDiagonal", blocks)
        for block in blocks:
            _require_alike("BlockDiagonal", first, block)
        super().__init__(
            (sum(b.shape[0] for b in blocks), sum(b.shape[1] for b in blocks)),
            first.dtype,
            first.device,
            batch_shape=_joint_batch(blocks),
            is_symmetric=all(b.is_symmetric for b in blocks),
            is_psd=all(b.is_psd for b in blocks),
        )
        self.blocks = tuple(blocks)

    def _matmat(self, x: Tensor) -> Tensor:
        parts = x.split([b.shape[1] for b in self.blocks], dim=-2)
        return self._stack([b.matmat(part) for b, part in zip(self.blocks, parts, strict=True)])

    def _rmatmat(self, y: Tensor) -> Tensor:
        parts = y.split([b.shape[0] for b in self.blocks], dim=-2)
        return self._stack([b.rmatmat(part) for b, part in zip(self.blocks, parts, strict=True)])

    def _stack(self, parts: list[Tensor]) -> Tensor:
        batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], dim=-2)

    @property
    def has_direct_solve(self) -> bool:
        """Whether every block has."""
        return all(b.has_direct_solve and b.shape[0] == b.shape[1] for b in self.blocks)

    def _solve(self, b: Tensor) -> Tensor:
        parts = b.split([block.shape[0] for block in self.blocks], dim=-2)
        return self._stack([block.solve(part) for block, part in zip(self.blocks, parts, strict=True)])

    def _logdet(self) -> Tensor:
        total = self.blocks[0].logdet()
        for block in self.blocks[1:]:
            total = total + block.logdet()
        return total

    def _diagonal(self) -> Tensor:
        if any(b.shape[0] != b.shape[1] for b in self.blocks):
            return super()._diagonal()
        parts = [b.diagonal() for b in self.blocks]
        return torch.cat([part.expand(*self.batch_shape, part.shape[-1]) for part in parts], dim=-1)

    def _shifted(self, shift: Scalar) -> LinearOperator:
        if any(b.shape[0] != b.shape[1] for b in self.blocks):
            return super()._shifted(shift)
        return BlockDiagonal([b.shift(shift) for b in self.blocks])


def _first(name: str, operators: Sequence[LinearOperator]) -> LinearOperator:
    if not operators:
        raise ArgumentError(f"{name}: expected at least one operator")
    return operators[0]


def _require_alike(name: str, left: LinearOperator, right: LinearOperator) -> None:
    if left.dtype != right.dtype or left.device != right.device:
        raise ShapeError(
            f"{name}: operators are {left.dtype} on {left.device} and {right.dtype} on {right.device}; convert by .to"
        )


def _joint_batch(operators: Sequence[LinearOperator]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*(op.batch_shape for op in operators)))
    except RuntimeError as error:
        shapes = ", ".join(str(op.batch_shape) for op in operators)
        raise ShapeError(f"batch shapes {shapes} do not broadcast") from error


def _require_scalar(name: str, base: LinearOperator, scalar: Scalar) -> None:
    is_complex = scalar.is_complex() if isinstance(scalar, Tensor) else isinstance(scalar, complex)
    if is_complex and not base.dtype.is_complex:
        raise ArgumentTypeError(f"{name}: the operator is {base.dtype}, the scalar complex; convert A by .to")
    if not isinstance(scalar, Tensor):
        return
    if scalar.device != base.device and scalar.ndim:
        raise ShapeError(f"{name}: the operator is on {base.device}, the scalar on {scalar.device}")
    try:
        fits = torch.broadcast_shapes(scalar.shape, base.batch_shape) == base.batch_shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(f"{name}: scalars of shape {tuple(scalar.shape)} do not fit batch shape {base.batch_shape}")


def _sign_of(scalar: Scalar) -> tuple[bool, bool]:
    # whether the scalars are real, and whether they are real and not negative
    if isinstance(scalar, Tensor):
        real = not scalar.is_complex()
        return real, real and bool((scalar >= 0).all())
    real = not isinstance(scalar, complex)
    return real, isinstance(scalar, int | float) and scalar >= 0


def _columns(scalar: Scalar) -> Scalar:
    return scalar[..., None, None] if isinstance(scalar, Tensor) and scalar.ndim else scalar


def _adjoint_pair(left: LinearOperator, right: LinearOperator) -> bool:
    if left is right:
        return left.is_symmetric
    return left._adjoint_of is right or right._adjoint_of is left


def _congruence(factors: Sequence[LinearOperator]) -> tuple[bool, bool]:
    # whether a product reads B^H A B with A symmetric, and with A psd; an even one has A = I
    half = len(factors) // 2
    if not all(_adjoint_pair(factors[i], factors[-1 - i]) for i in range(half)):
        return False, False
    if len(factors) % 2 == 0:
        return True, True
    return factors[half].is_symmetric, factors[half].is_psd
