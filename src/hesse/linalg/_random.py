"""Random vectors, drawn one column at a time so that the numbers do not depend on how columns are grouped."""

import torch
from torch import Generator, Tensor

__all__ = ["gaussian_columns", "sign_columns", "sphere_columns"]


def _home(device: torch.device, generator: Generator | None) -> torch.device:
    # torch draws where the generator lives; a CPU generator gives the same numbers for every device
    return device if generator is None else generator.device


def gaussian_columns(
    n: int, k: int, *, dtype: torch.dtype, device: torch.device, generator: Generator | None = None
) -> Tensor:
    """Draw k standard normal columns of length n.

    Parameters
    ----------
    n, k : int
        Length and number of columns.
    dtype : torch.dtype
        Of the result; complex entries have E|x|² = 1. Half precision is drawn in float32 and rounded.
    device : torch.device
        Of the result.
    generator : torch.Generator, optional
        Source of the numbers, on any device. Default: torch's global generator of ``device``.

    Returns
    -------
    Tensor, shape (n, k)
        Column j depends on the generator and on j alone, not on k.
    """
    drawn = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    home = _home(device, generator)
    columns = [torch.randn(n, generator=generator, dtype=drawn, device=home) for _ in range(k)]
    if not columns:
        return torch.zeros(n, 0, dtype=dtype, device=device)
    return torch.stack(columns, dim=1).to(device=device, dtype=dtype)


def sign_columns(
    n: int, k: int, *, dtype: torch.dtype, device: torch.device, generator: Generator | None = None
) -> Tensor:
    """Draw k columns of independent fair signs, +1 and -1 (Rademacher vectors).

    Parameters
    ----------
    n, k : int
        Length and number of columns.
    dtype : torch.dtype
        Of the result; the signs stay real in a complex dtype.
    device : torch.device
        Of the result.
    generator : torch.Generator, optional
        Source of the numbers, on any device. Default: torch's global generator of ``device``.

    Returns
    -------
    Tensor, shape (n, k)
        Column j depends on the generator and on j alone, not on k.
    """
    home = _home(device, generator)
    columns = [torch.randint(2, (n,), generator=generator, dtype=torch.int8, device=home) for _ in range(k)]
    if not columns:
        return torch.zeros(n, 0, dtype=dtype, device=device)
    return (torch.stack(columns, dim=1) * 2 - 1).to(device=device, dtype=dtype)


def sphere_columns(
    n: int, k: int, *, dtype: torch.dtype, device: torch.device, generator: Generator | None = None
) -> Tensor:
    """Draw k columns uniformly from the sphere of radius √n.

    Parameters
    ----------
    n, k : int
        Length and number of columns.
    dtype : torch.dtype
        Of the result.
    device : torch.device
        Of the result.
    generator : torch.Generator, optional
        Source of the numbers, on any device. Default: torch's global generator of ``device``.

    Returns
    -------
    Tensor, shape (n, k)
        Isotropic, E[z zᴴ] = I, as the sign vectors are, but without two equal directions for small n.
    """
    columns = gaussian_columns(n, k, dtype=dtype, device=device, generator=generator)
    return columns * (n**0.5 / torch.linalg.vector_norm(columns, dim=0, keepdim=True))
