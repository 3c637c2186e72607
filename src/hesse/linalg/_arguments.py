"""Checks that several routines of `hesse.linalg` make on their arguments before they start."""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.operator import LinearOperator

__all__ = ["at_least", "same_numbers", "single_operator", "square_operator", "wide_dtype"]


def at_least(call: str, name: str, value: float, low: float) -> None:
    """Refuse a number below its bound.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    value, low : float
        What came and the least that is allowed.

    Raises
    ------
    ArgumentError
        If ``value < low`` or is NaN.
    """
    if not value >= low:
        raise ArgumentError(f"{call}: expected {name} >= {low}, got {value}")


def square_operator(
    call: str, operator: LinearOperator | Tensor, *, symmetric: bool = False, tested: bool = True
) -> LinearOperator:
    """Convert, and refuse a rectangle.

    Parameters
    ----------
    call : str
        The function, for the message.
    operator : LinearOperator or anything `as_linear_operator` takes
        What came.
    symmetric : bool, default False
        Whether the method relies on A = Aᴴ. An operator that declares it is tested once with two products; a plain
        tensor is compared with its adjoint, because it has no flag to declare anything with.
    tested : bool, default True
        False leaves the two products out, for methods whose own products tell.

    Returns
    -------
    LinearOperator
        The operator.

    Raises
    ------
    ShapeError
        If it is not square.
    ArgumentError
        If symmetry is needed and neither declared nor true.
    """
    if symmetric and isinstance(operator, Tensor) and operator.ndim >= 2 and operator.layout == torch.strided:
        operator = _symmetric_tensor(call, operator)
    found = as_linear_operator(operator)
    rows, columns = found.shape
    if rows != columns:
        raise ShapeError(f"{call}: expected a square operator, got shape ({rows}, {columns})")
    if symmetric:
        if not found.is_symmetric:
            raise ArgumentError(
                f"{call}: {type(found).__name__} is not declared symmetric; "
                "if it is, construct it with is_symmetric=True"
            )
        if tested:
            found.validate_symmetry()
    return found


def _symmetric_tensor(call: str, matrix: Tensor) -> LinearOperator:
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(f"{call}: expected a square matrix, got shape {tuple(matrix.shape)}")
    with torch.no_grad():
        gap = float((matrix - matrix.mH).abs().max()) if matrix.numel() else 0.0
        size = float(matrix.abs().max()) if matrix.numel() else 0.0
    if gap > 64 * torch.finfo(matrix.dtype).eps * size:
        raise ArgumentError(
            f"{call}: expected a symmetric matrix; entries differ from their mirror image by up to {gap:.1e}"
        )
    return as_linear_operator(matrix, is_symmetric=True)


def single_operator(call: str, operator: LinearOperator) -> LinearOperator:
    """Refuse a stack of operators.

    Parameters
    ----------
    call : str
        The function, for the message.
    operator : LinearOperator
        What came.

    Returns
    -------
    LinearOperator
        The operator itself.

    Raises
    ------
    ShapeError
        If it has batch dimensions.
    """
    if operator.batch_shape:
        raise ShapeError(
            f"{call}: expected one operator, got a stack of batch shape {operator.batch_shape}; call it on each"
        )
    return operator


def same_numbers(call: str, name: str, tensor: Tensor, operator: LinearOperator) -> None:
    """Refuse a tensor of another dtype or device than the operator's.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    tensor : Tensor
        What came.
    operator : LinearOperator
        What it must go with.

    Raises
    ------
    ShapeError
        If dtype or device differ.
    """
    if tensor.dtype != operator.dtype or tensor.device != operator.device:
        raise ShapeError(
            f"{call}: {name} is {tensor.dtype} on {tensor.device}, the operator {operator.dtype} on {operator.device}; "
            "convert one with .to()"
        )


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Widen half precision, in which torch has no factorisations, to float32.

    Parameters
    ----------
    dtype : torch.dtype
        Any floating or complex dtype.

    Returns
    -------
    torch.dtype
        float32 for float16 and bfloat16, else ``dtype``.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
