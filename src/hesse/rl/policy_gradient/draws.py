"""Random numbers drawn where their generator lives and handed over where they are used."""

import torch
from torch import Generator, Tensor

__all__ = ["normal", "uniform"]


def uniform(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: Generator | None) -> Tensor:
    """Draw from [0, 1).

    Parameters
    ----------
    shape : tuple of int
        Of the result.
    dtype, device : torch.dtype, torch.device
        Of the result; a CPU generator gives the same numbers for every device.
    generator : torch.Generator or None
        None: torch's global generator of ``device``.

    Returns
    -------
    Tensor
        Independent entries.
    """
    home = device if generator is None else generator.device
    return torch.rand(shape, dtype=dtype, device=home, generator=generator).to(device)


def normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: Generator | None) -> Tensor:
    """Draw standard normal numbers; arguments as of `uniform`.

    Parameters
    ----------
    shape : tuple of int
        Of the result.
    dtype, device : torch.dtype, torch.device
        Of the result.
    generator : torch.Generator or None
        None: torch's global generator of ``device``.

    Returns
    -------
    Tensor
        Independent entries.
    """
    home = device if generator is None else generator.device
    return torch.randn(shape, dtype=dtype, device=home, generator=generator).to(device)
