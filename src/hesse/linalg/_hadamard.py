"""A few rows of a Walsh-Hadamard transform, in one pass over memory.

Shapes: H is (N, N) with N = P Q a power of two, and H[(a, b), (i, j)] = H_P[a, i] H_Q[b, j]; M rows are wanted.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["parity_sign", "sampled_hadamard", "sylvester"]

_WORKSPACE = {"cpu": 1 << 20, "cuda": 1 << 26}  # numbers in flight: what a core keeps near, and what fills a GPU
_ROWS_A_PRODUCT = 32  # wanted rows to a product: fewer make thin products, more make it all products


def sylvester(n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Form the Walsh-Hadamard matrix H with entries ±1, H[i, j] = (-1)^(bits that i and j share).

    Parameters
    ----------
    n : int
        Order, a power of two.
    dtype : torch.dtype
        Of the entries.
    device : torch.device or str, default "cpu"
        Where they live.

    Returns
    -------
    Tensor, shape (n, n)
        Symmetric, H H = n I.
    """
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while len(matrix) < n:
        upper = torch.cat([matrix, matrix], dim=1)
        matrix = torch.cat([upper, torch.cat([matrix, -matrix], dim=1)], dim=0)
    return matrix


def sampled_hadamard(x: Tensor, signs: Tensor, kept: Tensor, padded: int) -> Tensor:
    """Take rows ``kept`` of H D x, H of order ``padded`` with entries ±1, without transforming all of x.

    Every block of Q rows, Q about M / 32, is transformed by butterflies while it lies in the cache; the other factor
    is a matrix product, and only for rows that are wanted. x is read once, where butterflies over its whole length
    would pass over memory log₂N times. O(N log M) operations a column, and a workspace of 8 MB whatever N is.

    Parameters
    ----------
    x : Tensor, shape (n, d)
        n <= padded; rows that are missing count as zero.
    signs : Tensor, shape (n,)
        The diagonal of D.
    kept : Tensor of int64, shape (M,)
        Rows of H, in any order, repetitions allowed.
    padded : int
        Order of H, a power of two.

    Returns
    -------
    Tensor, shape (M, d)
        Not scaled. Differentiable with respect to x, any number of times.
    """
    return _SampledHadamard.apply(x, signs, kept, padded)


class _SampledHadamard(torch.autograd.Function):
    """The product; its adjoint in the backward pass, itself in forward mode, more columns under vmap."""

    @staticmethod
    def forward(x: Tensor, signs: Tensor, kept: Tensor, padded: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _sampled(x, signs, kept, padded)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, signs, kept, padded = inputs
        ctx.save_for_backward(signs, kept)
        ctx.save_for_forward(signs, kept)
        ctx.padded, ctx.rows = padded, len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from hesse.linalg.sketch import fwht

        signs, kept = ctx.saved_tensors
        full = grad.new_zeros(ctx.padded, grad.shape[-1]).index_add(0, kept, grad)
        spread = fwht(full, dim=0)[: ctx.rows] * math.sqrt(ctx.padded)
        return spread * signs.conj().unsqueeze(-1), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        signs, kept = ctx.saved_tensors
        return sampled_hadamard(tangent, signs, kept, ctx.padded)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        x, signs, kept, padded = args
        if in_dims[0] is None or in_dims[1:] != (None, None, None):
            raise ArgumentError("sampled_hadamard: vmap maps over x alone; signs and rows belong to one sketch")
        columns = x.movedim(in_dims[0], -1)
        out = sampled_hadamard(columns.flatten(1), signs, kept, padded)
        return out.unflatten(1, columns.shape[1:]), 2


def _sampled(x: Tensor, signs: Tensor, kept: Tensor, padded: int) -> Tensor:
    n, d = x.shape
    inner = min(padded, 1 << max(0, len(kept) // _ROWS_A_PRODUCT).bit_length())  # Q
    budget = _WORKSPACE.get(x.device.type, _WORKSPACE["cpu"]) // max(1, inner * d, len(kept))  # x's block, and H_MG
    group = min(padded // inner, 1 << max(0, budget.bit_length() - 1))  # blocks of Q rows taken at a time
    order = torch.argsort(kept % inner, stable=True)
    outer_M = kept[order] // inner
    ends = torch.bincount(kept % inner, minlength=inner).cumsum(0).tolist()
    H_MG = sylvester(group, dtype=x.dtype, device=x.device)[outer_M % group]
    out_Md = x.new_zeros(len(kept), d)
    buffer = x.new_empty(group * inner, d)  # one for all: pages fresh from the system cost more than the arithmetic
    for number, start in enumerate(range(0, n, group * inner)):
        stop = min(start + group * inner, n)
        count = -(-(stop - start) // inner)
        piece = buffer[: count * inner]
        torch.mul(x[start:stop], signs[start:stop].unsqueeze(-1), out=piece[: stop - start])
        piece[stop - start :] = 0
        _butterflies(piece, inner)
        z_GQd = piece.view(count, inner, d)
        left_MG = H_MG[:, :count] * parity_sign(outer_M // group & number).to(x.dtype).unsqueeze(-1)
        first = 0
        for j, last in enumerate(ends):
            if last > first:
                out_Md[first:last].addmm_(left_MG[first:last], z_GQd[:, j])
            first = last
    return torch.empty_like(out_Md).index_copy_(0, order, out_Md)


def _butterflies(x: Tensor, length: int) -> None:
    # H on each run of ``length`` rows, in place; x is contiguous
    half = 1
    while half < length:
        pairs = x.view(len(x) // (2 * half), 2, half * x.shape[1])
        first, second = pairs[:, 0], pairs[:, 1]
        first.add_(second)
        torch.sub(first, second, alpha=2, out=second)
        half *= 2


def parity_sign(bits: Tensor) -> Tensor:
    """Give +1 for an even number of set bits, -1 for an odd one.

    Parameters
    ----------
    bits : Tensor of int64
        Non-negative numbers.

    Returns
    -------
    Tensor of int64
        Of the same shape.
    """
    for shift in (32, 16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return 1 - 2 * (bits & 1)
