"""From whatever has a shape and a product to a LinearOperator, and back to SciPy."""

from collections.abc import Callable
from typing import Any, TypedDict, cast

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from hesse.errors import ArgumentTypeError, ShapeError
from hesse.linalg.basic import Dense, FunctionOperator, Sparse
from hesse.linalg.operator import LinearOperator

__all__ = ["as_linear_operator", "to_scipy"]


class _Flags(TypedDict):
    is_symmetric: bool
    is_psd: bool


def as_linear_operator(
    matrix: Any,
    *,
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    rmatmat_fn: Callable[[Tensor], Tensor] | None = None,
    is_symmetric: bool = False,
    is_psd: bool = False,
) -> LinearOperator:
    """Wrap a matrix, or anything that multiplies like one.

    Parameters
    ----------
    matrix : LinearOperator, Tensor, numpy array, SciPy sparse matrix or operator, callable, or peer
        Tensors are dense, sparse COO or sparse CSR. A callable maps (..., n, k) to (..., m, k). A peer is any object
        with ``shape``, and ``matmul`` or ``__matmul__`` on torch tensors (curvlinops, linear_operator).
    shape : tuple of int, optional
        (m, n); needed for a callable, read off everything else.
    dtype : torch.dtype, optional
        Default: the matrix's own; float32 for a callable. Entries are converted, functions are not.
    device : torch.device or str, optional
        Default: the matrix's own; the CPU for a callable.
    rmatmat_fn : callable, optional
        The adjoint of a callable.
    is_symmetric : bool, default False
        Promise that A = A^H; not tested here, see `LinearOperator.validate_symmetry`.
    is_psd : bool, default False
        Promise that A is positive semi-definite.

    Returns
    -------
    LinearOperator
        The argument itself if it is one already and no flag is added. Dense CPU arrays are shared, not copied.
        SciPy operators run on the CPU through NumPy, and gradients do not pass through them.

    Raises
    ------
    ArgumentTypeError
        If the object has neither shape nor product.
    ShapeError
        If a callable comes without ``shape``, or a peer's shape is not (..., m, n).
    """
    flags = _Flags(is_symmetric=is_symmetric, is_psd=is_psd)
    if isinstance(matrix, LinearOperator):
        if (is_symmetric and not matrix.is_symmetric) or (is_psd and not matrix.is_psd):
            return _relabelled(matrix, is_psd=is_psd).to(device, dtype)
        return matrix.to(device, dtype)
    if isinstance(matrix, Tensor):
        tensor = matrix.to(device=device, dtype=dtype)
        return Dense(tensor, **flags) if tensor.layout == torch.strided else Sparse(tensor, **flags)
    if isinstance(matrix, np.ndarray):
        return Dense(_from_numpy(matrix).to(device=device, dtype=dtype), **flags)
    if scipy.sparse.issparse(matrix):
        csr = scipy.sparse.csr_array(matrix)
        csr.sum_duplicates()
        size = matrix.shape
        return Sparse.from_csr(
            torch.from_numpy(csr.indptr.astype(np.int64)).to(device),
            torch.from_numpy(csr.indices.astype(np.int64)).to(device),
            _from_numpy(csr.data).to(device=device, dtype=dtype),
            (size[0], size[1]),
            **flags,
        )
    if isinstance(matrix, scipy.sparse.linalg.LinearOperator):
        return _ScipyProduct(matrix, **flags).to(device, dtype)
    if hasattr(matrix, "shape") and (hasattr(matrix, "matmul") or hasattr(matrix, "__matmul__")):
        return _from_peer(matrix, dtype, device, flags)
    if callable(matrix):
        if shape is None:
            raise ShapeError("as_linear_operator: a callable needs shape=(m, n)")
        return FunctionOperator(
            cast(Callable[..., Tensor], matrix),
            shape,
            dtype=dtype or torch.float32,
            device=device or "cpu",
            rmatmat_fn=rmatmat_fn,
            **flags,
        )
    raise ArgumentTypeError(
        "as_linear_operator: expected a tensor, array, sparse matrix, operator or function, "
        f"got {type(matrix).__name__}"
    )


def to_scipy(operator: LinearOperator) -> scipy.sparse.linalg.LinearOperator:
    """Wrap an operator for SciPy: matvec, rmatvec, matmat and rmatmat through NumPy.

    Parameters
    ----------
    operator : LinearOperator, shape (m, n)
        Without a batch; half precision has no NumPy counterpart that SciPy's solvers take.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Of the same dtype.

    Raises
    ------
    ShapeError
        If the operator is batched, or in half precision.
    """
    if operator.batch_shape:
        raise ShapeError(f"to_scipy: expected one matrix, got batch shape {operator.batch_shape}")
    if operator.dtype in (torch.float16, torch.bfloat16):
        raise ShapeError(f"to_scipy: {operator.dtype} is not supported by SciPy; use A.to(dtype=torch.float32)")
    kind = torch.empty(0, dtype=operator.dtype).numpy().dtype

    def through(product: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        def run(block: np.ndarray) -> np.ndarray:
            columns = torch.from_numpy(np.ascontiguousarray(block, dtype=kind)).to(operator.device)
            with torch.no_grad():
                out = product(columns.reshape(len(columns), -1))
            out = out.resolve_conj().cpu().numpy()
            return out[:, 0] if block.ndim == 1 else out

        return run

    wrapper: Any = scipy.sparse.linalg.LinearOperator  # SciPy's own stubs know the subclass only
    return wrapper(
        shape=operator.shape,
        dtype=kind,
        matvec=through(operator.matmat),
        rmatvec=through(operator.rmatmat),
        matmat=through(operator.matmat),
        rmatmat=through(operator.rmatmat),
    )


class _ScipyProduct(LinearOperator):
    """A SciPy operator, run on the CPU; results return to the operand's device and dtype."""

    def __init__(self, base: scipy.sparse.linalg.LinearOperator, *, is_symmetric: bool, is_psd: bool) -> None:
        kind = np.dtype(base.dtype if base.dtype is not None else np.float64)
        dtype = torch.from_numpy(np.empty(0, dtype=kind)).dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            dtype = torch.float64  # SciPy's operators of whole numbers multiply floats as they are
        rows, columns = base.shape
        super().__init__((rows, columns), dtype, "cpu", is_symmetric=is_symmetric, is_psd=is_psd)
        self.base = base

    def _through(self, product: Callable[[np.ndarray], np.ndarray], x: Tensor) -> Tensor:
        n, k = x.shape[-2:]
        wide = x.detach().movedim(-2, 0).reshape(n, -1).resolve_conj().cpu().numpy()
        out = torch.from_numpy(np.ascontiguousarray(product(wide)))
        return out.reshape(len(out), *x.shape[:-2], k).movedim(0, -2).to(device=self.device, dtype=self.dtype)

    def _matmat(self, x: Tensor) -> Tensor:
        return self._through(self.base.matmat, x)

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self._matmat(y) if self.is_symmetric else self._through(self.base.rmatmat, y)


def _product_of(peer: Any) -> Callable[[Tensor], Tensor]:
    return peer.matmul if hasattr(peer, "matmul") else peer.__matmul__


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    elif array.dtype.kind not in "fc":
        raise ArgumentTypeError(f"as_linear_operator: expected numbers, got an array of {array.dtype}")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _relabelled(operator: LinearOperator, *, is_psd: bool) -> LinearOperator:
    if operator.shape[0] != operator.shape[1]:
        raise ShapeError(f"as_linear_operator: a symmetric operator is square, got shape {operator.shape}")
    clone = operator.with_tensors(operator.tensors())
    clone.is_symmetric = True
    clone.is_psd = clone.is_psd or is_psd
    return clone


def _from_peer(
    peer: Any, dtype: torch.dtype | None, device: torch.device | str | None, flags: _Flags
) -> LinearOperator:
    size = tuple(peer.shape)
    if len(size) < 2:
        raise ShapeError(f"as_linear_operator: {type(peer).__name__} has shape {size}, expected (..., m, n)")
    multiply = _product_of(peer)
    adjoint: Callable[[Tensor], Tensor] | None = None
    for name in ("adjoint", "mH", "H", "T"):
        flipped = getattr(peer, name, None)
        if flipped is not None:
            turned = flipped() if callable(flipped) and not hasattr(flipped, "shape") else flipped
            adjoint = _product_of(turned)
            break
    own_dtype = dtype or getattr(peer, "dtype", None) or torch.float32
    own_device = device or getattr(peer, "device", None) or "cpu"
    return FunctionOperator(
        multiply,
        (int(size[-2]), int(size[-1])),
        dtype=own_dtype,
        device=own_device,
        rmatmat_fn=adjoint,
        batch_shape=tuple(int(s) for s in size[:-2]),
        **flags,
    )
