"""Least squares of small dense systems, the same to the last bit every time.

LAPACK's gelsy, which torch takes by default on the CPU, reads a list of pivots that torch does not fill in: which
columns come first, and so the last bits, depend on what the memory held before.
"""

import torch
from torch import Tensor

__all__ = ["small_lstsq"]


def small_lstsq(A: Tensor, B: Tensor) -> Tensor:
    """Solve min ‖A X - B‖, by the singular values of A where it lies on the CPU, else by QR as torch does there.

    Parameters
    ----------
    A : Tensor, shape (..., M, N)
        Of any rank on the CPU: the solution of least norm is found. Of full rank elsewhere.
    B : Tensor, shape (..., M, K)
        Right sides.

    Returns
    -------
    Tensor, shape (..., N, K)
        X. O(M N min(M, N)) operations a system.
    """
    return torch.linalg.lstsq(A, B, driver="gelsd" if A.device.type == "cpu" else None).solution
