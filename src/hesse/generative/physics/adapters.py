"""Operators as a sampler needs them: real, with an adjoint that is one.   Shapes: (m, n)."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.generative.physics.mri import MultiCoilMRI, NormalMRI
from hesse.linalg import FunctionOperator, LinearOperator

__all__ = ["RealView", "from_deepinv", "normal_operator", "require_adjoint"]


class RealView(LinearOperator):
    """A complex operator on real numbers.

    Data become pairs (Re y_i, Im y_i), as ``torch.view_as_real`` lays them out; pictures are real, or two channels
    [Re x; Im x]. Of a real picture the adjoint is Re(A^H y), the transpose of x ↦ A x.

    Parameters
    ----------
    operator : LinearOperator, complex, shape (m, n)
        A.
    real_picture : bool, default False
        Whether x is real: shape (2 m, n). Otherwise (2 m, 2 n).

    Raises
    ------
    ArgumentTypeError
        If the operator is real already.
    """

    _fields = ("operator",)

    def __init__(self, operator: LinearOperator, *, real_picture: bool = False) -> None:
        if not operator.dtype.is_complex:
            raise ArgumentTypeError(f"RealView: expected a complex operator, got {operator.dtype}")
        m, n = operator.shape
        super().__init__(
            (2 * m, n if real_picture else 2 * n),
            operator.dtype.to_real(),
            operator.device,
            batch_shape=operator.batch_shape,
        )
        self.operator = operator
        self.real_picture = real_picture

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "RealView":
        """Move the operator to another device or real dtype.

        Parameters
        ----------
        device : torch.device or str, optional
            Default: where it is.
        dtype : torch.dtype, optional
            float32 or float64; the operator inside takes the complex dtype of that precision. Default: as it is.

        Returns
        -------
        RealView
            Around the moved operator; itself if nothing changes.
        """
        inner = self.operator.to(device, None if dtype is None else dtype.to_complex())
        return self if inner is self.operator else RealView(inner, real_picture=self.real_picture)

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> "RealView":
        clone = copy.copy(self)
        clone.operator = self.operator._mapped(change, f"{prefix}operator.", dtype.to_complex(), device)
        clone.dtype, clone.device = dtype, device
        clone._forget()
        return clone

    def _matmat(self, x: Tensor) -> Tensor:
        if self.real_picture:
            y = self.operator.matmat(x.to(self.operator.dtype))
        else:
            y = self.operator.matmat(torch.complex(*x.tensor_split(2, -2)))
        return torch.view_as_real(y.mT.resolve_conj()).flatten(-2).mT

    def _rmatmat(self, y: Tensor) -> Tensor:
        x = self.operator.rmatmat(torch.view_as_complex(y.mT.unflatten(-1, (-1, 2)).contiguous()).mT)
        return x.real if self.real_picture else torch.cat([x.real, x.imag], -2)


def normal_operator(physics: LinearOperator) -> LinearOperator:
    """Form A^T A, by a short cut where there is one.

    Parameters
    ----------
    physics : LinearOperator, real, shape (m, n)
        A.

    Returns
    -------
    LinearOperator, shape (n, n)
        Known to be positive semi-definite.
    """
    if isinstance(physics, RealView) and physics.real_picture and isinstance(physics.operator, MultiCoilMRI):
        return NormalMRI(physics.operator)
    return physics.H @ physics


def require_adjoint(operator: LinearOperator, *, rtol: float = 1e-3, seed: int = 0) -> None:
    """Test <A x, y> = <x, A^H y> on one random pair.

    Parameters
    ----------
    operator : LinearOperator, shape (m, n)
        A.
    rtol : float, default 1e-3
        Largest gap, relative to ‖A x‖ ‖y‖: it passes half precision and fails a back-projector that interpolates
        otherwise than the projector.
    seed : int, default 0
        Of the pair; equal seeds test alike.

    Raises
    ------
    ArgumentError
        If the two differ: conjugate gradients would solve a system that nobody posed.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if operator.dtype.is_complex else torch.float64
    pair = [torch.randn(side, dtype=wide, generator=generator) for side in reversed(operator.shape)]
    x, y = (vector.to(dtype=operator.dtype, device=operator.device) for vector in pair)
    forward, back = operator.matvec(x), operator.rmatvec(y)
    gap = float((torch.vdot(y, forward) - torch.vdot(back, x)).abs())
    size = float(forward.norm() * y.norm())
    if not gap <= rtol * size:
        raise ArgumentError(
            f"{type(operator).__name__}: the adjoint is not one: <Ax, y> and <x, A^H y> differ by {gap:.2e}, "
            f"‖Ax‖‖y‖ is {size:.2e}"
        )


def from_deepinv(physics: Any, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> LinearOperator:
    """Wrap a linear physics object of deepinv, or anything with ``A(x)`` and ``A_adjoint(y)`` on batches of pictures.

    Parameters
    ----------
    physics : object
        ``A`` maps (B, *shape) to (B, ...) and is linear; no noise is added by it.
    shape : sequence of int
        Of one picture.
    dtype : torch.dtype, default torch.float32
        Of pictures and data, which are real.

    Returns
    -------
    LinearOperator, shape (m, n)
        Pictures and data flattened.

    Raises
    ------
    ArgumentTypeError
        If a method is missing.
    """
    if not callable(getattr(physics, "A", None)) or not callable(getattr(physics, "A_adjoint", None)):
        raise ArgumentTypeError(f"from_deepinv: {type(physics).__name__} has no methods A and A_adjoint")
    shape = tuple(shape)
    data_shape = tuple(physics.A(torch.zeros(1, *shape, dtype=dtype)).shape[1:])

    def apply(function: Any, columns: Tensor, inner: tuple[int, ...]) -> Tensor:
        rows = columns.mT
        out = function(rows.reshape(-1, *inner))
        return out.reshape(*rows.shape[:-1], -1).mT

    return FunctionOperator(
        lambda x: apply(physics.A, x, shape),
        (math.prod(data_shape), math.prod(shape)),
        dtype=dtype,
        rmatmat_fn=lambda y: apply(physics.A_adjoint, y, data_shape),
    )
