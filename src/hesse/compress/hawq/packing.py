"""Small whole numbers in as few bytes as they need.   Shapes: N numbers of b bits."""

import math

import torch
from torch import Tensor

from hesse.compress.hawq.quantizer import check_bits
from hesse.errors import ArgumentError

__all__ = ["pack_integers", "unpack_integers"]


def pack_integers(codes: Tensor, bits: int, low: int) -> Tensor:
    """Write k - low, b bits each, one after the other, lowest bit first.

    Parameters
    ----------
    codes : Tensor of whole numbers
        k, from ``low`` to ``low + 2^b - 1``, in any shape.
    bits : int
        b, from 2 to 8.
    low : int
        The smallest number there may be.

    Returns
    -------
    Tensor of uint8, shape (ceil(N b / 8),)
        The last byte is filled up with zeros. O(8 N) bytes while it works.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    """
    check_bits("pack_integers", bits)
    shifted = codes.reshape(-1).to(torch.int16) - low
    if shifted.numel() and not (int(shifted.min()) >= 0 and int(shifted.max()) < 2**bits):
        raise ArgumentError(f"pack_integers: expected numbers from {low} to {low + 2**bits - 1}")
    places = torch.arange(bits, device=codes.device, dtype=torch.int16)
    stream = ((shifted.unsqueeze(1) >> places) & 1).to(torch.uint8).reshape(-1)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).reshape(-1, 8)
    values = 2 ** torch.arange(8, device=codes.device, dtype=torch.int32)
    return (stream * values).sum(1).to(torch.uint8)


def unpack_integers(packed: Tensor, bits: int, low: int, shape: tuple[int, ...]) -> Tensor:
    """Read what `pack_integers` wrote.

    Parameters
    ----------
    packed : Tensor of uint8
        The bytes.
    bits, low : int
        As they were packed.
    shape : tuple of int
        Of the result; N numbers in all.

    Returns
    -------
    Tensor of int16
        k.

    Raises
    ------
    ArgumentError
        If the number of bytes does not fit the shape.
    """
    check_bits("unpack_integers", bits)
    count = math.prod(shape)
    if packed.numel() != -(-count * bits // 8):
        raise ArgumentError(
            f"unpack_integers: {shape} at {bits} bits needs {-(-count * bits // 8)} bytes, got {packed.numel()}"
        )
    places = torch.arange(8, device=packed.device, dtype=torch.int16)
    stream = (packed.to(torch.int16).unsqueeze(1) >> places) & 1
    digits = stream.reshape(-1)[: count * bits].reshape(count, bits)
    values = 2 ** torch.arange(bits, device=packed.device, dtype=torch.int16)
    return ((digits * values).sum(1).to(torch.int16) + low).reshape(shape)
