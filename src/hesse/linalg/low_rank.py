"""Low rank, and low rank plus a diagonal, solved by Woodbury's identity.   Shapes: U (..., m, r), V (..., n, r)."""

import torch
from torch import Tensor

from hesse.errors import ShapeError, SingularError
from hesse.linalg.operator import LinearOperator, Scalar

__all__ = ["LowRank", "LowRankPlusDiagonal"]


class LowRank(LinearOperator):
    """U diag(s) V^H.

    Parameters
    ----------
    left : Tensor, shape (..., m, r)
        U.
    weights : Tensor, shape (..., r), optional
        s. Default: ones.
    right : Tensor, shape (..., n, r), optional
        V. Default: U, and the operator is symmetric, and psd if no weight is negative.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    """

    _fields = ("left", "weights", "right")

    def __init__(self, left: Tensor, weights: Tensor | None = None, right: Tensor | None = None) -> None:
        _require_fit("LowRank", left, weights, right)
        self.left = left
        self.weights = weights if weights is not None else left.new_ones(left.shape[-1])
        self.right = right
        columns = (left if right is None else right).shape[-2]
        symmetric, psd = _flags(right, weights)
        super().__init__(
            (left.shape[-2], columns),
            left.dtype,
            left.device,
            batch_shape=_batch(left, self.weights, right),
            is_symmetric=symmetric,
            is_psd=psd,
        )

    @property
    def _other(self) -> Tensor:
        return self.left if self.right is None else self.right

    def _matmat(self, x: Tensor) -> Tensor:
        return self.left @ (self.weights.unsqueeze(-1) * (self._other.mH @ x))

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self._other @ (self.weights.conj().unsqueeze(-1) * (self.left.mH @ y))

    def _trace(self) -> Tensor:
        inner = (self._other.conj() * self.left).sum(-2)
        return (self.weights * inner).sum(-1)

    def _diagonal(self) -> Tensor:
        length = min(self.shape)
        rows = self.left[..., :length, :] * self._other[..., :length, :].conj()
        return (rows * self.weights.unsqueeze(-2)).sum(-1)

    def _shifted(self, shift: Scalar) -> LinearOperator:
        if self.shape[0] != self.shape[1]:
            return super()._shifted(shift)
        amount = shift.unsqueeze(-1) if isinstance(shift, Tensor) else shift
        diagonal = self.left.new_zeros(self.shape[0]) + amount
        return LowRankPlusDiagonal(diagonal, self.left, self.weights, self.right)


class LowRankPlusDiagonal(LinearOperator):
    """diag(d) + U diag(s) V^H: product O(nr), solve and log-determinant O(nr²) by Woodbury.

        A⁻¹ b = D⁻¹b - D⁻¹U (I + S V^H D⁻¹ U)⁻¹ S V^H D⁻¹ b,   log|A| = log|D| + log|I + S V^H D⁻¹ U|

    Parameters
    ----------
    diagonal : Tensor, shape (..., n)
        d, without zeros where a solve is wanted.
    left : Tensor, shape (..., n, r)
        U.
    weights : Tensor, shape (..., r), optional
        s, zeros allowed. Default: ones.
    right : Tensor, shape (..., n, r), optional
        V. Default: U, and the operator is symmetric, and psd if neither d nor s is negative.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.

    Notes
    -----
    Accuracy is that of the r x r system: for ‖U S V^H‖ / min|d| beyond 1/sqrt(eps) expect the loss of half the digits.
    """

    _fields = ("values", "left", "weights", "right")

    def __init__(
        self, diagonal: Tensor, left: Tensor, weights: Tensor | None = None, right: Tensor | None = None
    ) -> None:
        _require_fit("LowRankPlusDiagonal", left, weights, right)
        n = left.shape[-2]
        square = right is None or right.shape[-2] == n
        if not square or diagonal.ndim < 1 or diagonal.shape[-1] != n or diagonal.dtype != left.dtype:
            raise ShapeError(
                f"LowRankPlusDiagonal: expected d (..., {n}) {left.dtype} and square U V^H, got d "
                f"{tuple(diagonal.shape)} {diagonal.dtype}, U {tuple(left.shape)}"
            )
        self.values = diagonal
        self.left = left
        self.weights = weights if weights is not None else left.new_ones(left.shape[-1])
        self.right = right
        symmetric, psd = _flags(right, weights)
        real = not diagonal.is_complex() or bool((diagonal.imag == 0).all())
        super().__init__(
            (n, n),
            left.dtype,
            left.device,
            batch_shape=tuple(torch.broadcast_shapes(diagonal.shape[:-1], _batch(left, self.weights, right))),
            is_symmetric=symmetric and real,
            is_psd=psd and real and bool((diagonal.real >= 0).all()),
        )

    @property
    def _other(self) -> Tensor:
        return self.left if self.right is None else self.right

    def _matmat(self, x: Tensor) -> Tensor:
        return self.values.unsqueeze(-1) * x + self.left @ (self.weights.unsqueeze(-1) * (self._other.mH @ x))

    def _rmatmat(self, y: Tensor) -> Tensor:
        inner = self.weights.conj().unsqueeze(-1) * (self.left.mH @ y)
        return self.values.conj().unsqueeze(-1) * y + self._other @ inner

    @property
    def has_direct_solve(self) -> bool:
        """True: Woodbury."""
        return True

    def _capacitance(self) -> tuple[Tensor, Tensor]:
        # D⁻¹U and I + S V^H D⁻¹ U
        if bool((self.values == 0).any()):
            raise SingularError("LowRankPlusDiagonal: Woodbury needs a diagonal without zeros; add a shift")
        scaled = self.left / self.values.unsqueeze(-1)
        inner = self.weights.unsqueeze(-1) * (self._other.mH @ scaled)
        return scaled, inner + torch.eye(inner.shape[-1], dtype=self.dtype, device=self.device)

    def _solve(self, b: Tensor) -> Tensor:
        scaled, capacitance = self._capacitance()
        start = b / self.values.unsqueeze(-1)
        inner, info = torch.linalg.solve_ex(capacitance, self.weights.unsqueeze(-1) * (self._other.mH @ start))
        if bool((info != 0).any()):
            raise SingularError("LowRankPlusDiagonal.solve: the matrix is singular; add a shift")
        return start - scaled @ inner

    def _logdet(self) -> Tensor:
        _, capacitance = self._capacitance()
        return self.values.abs().log().sum(-1) + torch.linalg.slogdet(capacitance).logabsdet

    def _diagonal(self) -> Tensor:
        return self.values + (self.left * self._other.conj() * self.weights.unsqueeze(-2)).sum(-1)

    def _shifted(self, shift: Scalar) -> LinearOperator:
        amount = shift.unsqueeze(-1) if isinstance(shift, Tensor) else shift
        return LowRankPlusDiagonal(self.values + amount, self.left, self.weights, self.right)


def _require_fit(name: str, left: Tensor, weights: Tensor | None, right: Tensor | None) -> None:
    if left.ndim < 2:
        raise ShapeError(f"{name}: expected U of shape (..., n, r), got {tuple(left.shape)}")
    rank = left.shape[-1]
    for letter, other, at in (("s", weights, -1), ("V", right, -1)):
        if other is None:
            continue
        short = other.ndim < (1 if letter == "s" else 2)
        if short or other.shape[at] != rank or other.dtype != left.dtype or other.device != left.device:
            raise ShapeError(
                f"{name}: U is {tuple(left.shape)} {left.dtype} on {left.device}, "
                f"{letter} is {tuple(other.shape)} {other.dtype} on {other.device}; they must share r, dtype and device"
            )


def _batch(left: Tensor, weights: Tensor, right: Tensor | None) -> tuple[int, ...]:
    shapes = [left.shape[:-2], weights.shape[:-1]] + ([] if right is None else [right.shape[:-2]])
    return tuple(torch.broadcast_shapes(*shapes))


def _flags(right: Tensor | None, weights: Tensor | None) -> tuple[bool, bool]:
    if right is not None:
        return False, False
    if weights is None:
        return True, True
    if weights.is_complex():
        real = bool((weights.imag == 0).all())
        return real, real and bool((weights.real >= 0).all())
    return True, bool((weights >= 0).all())
