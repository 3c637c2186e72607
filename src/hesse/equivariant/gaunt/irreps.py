"""Features of e3nn, such as ``32x0e+16x1o``, as one tensor of channels, and back."""

import re

import torch
from torch import Tensor

from hesse.equivariant.gaunt.rotation import degree_of
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["from_e3nn", "to_e3nn"]

_TERM = re.compile(r"(?:(\d+)x)?(\d+)([eo])")


def from_e3nn(irreps: object, x: Tensor, *, parity: int = 1) -> Tensor:
    """Lay out features of e3nn with one channel to a row.

    Parameters
    ----------
    irreps : str or e3nn.o3.Irreps
        Degrees with their multiplicities and parities, in any order; a degree named twice gets the channels of both.
    x : Tensor, shape (..., dimension of the irreps)
        Features.
    parity : {1, -1}, default 1
        All irreps must have parity · (-1)ˡ: "0e", "1o", "2e" for 1, as Gaunt products need it; "0o", "1e", "2o" for -1,
        what `antisymmetric_tensor_product` makes of those.

    Returns
    -------
    Tensor, shape (..., C, (L + 1)²)
        C is the largest multiplicity. Channels that a degree does not have are zero.

    Raises
    ------
    ArgumentError
        If the irreps cannot be read, or one has the other parity; the message names it.
    ArgumentTypeError
        If x is not real floating point.
    ShapeError
        If the last dimension is not that of the irreps.
    """
    terms = _parse("from_e3nn", irreps, parity)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(f"from_e3nn: expected x to be a real floating-point tensor, got {found}")
    length = sum(count * (2 * degree + 1) for count, degree in terms)
    if x.ndim == 0 or x.shape[-1] != length:
        raise ShapeError(f"from_e3nn: {irreps} has dimension {length}, got x of shape {tuple(x.shape)}")
    multiplicities = _multiplicities(terms)
    l_max, channels = max(multiplicities), max(multiplicities.values())
    parts = x.split([count * (2 * degree + 1) for count, degree in terms], -1)
    columns = []
    for degree in range(l_max + 1):
        own = [
            part.unflatten(-1, (count, 2 * degree + 1))
            for part, (count, found) in zip(parts, terms, strict=True)
            if found == degree
        ]
        missing = x.new_zeros(*x.shape[:-1], channels - multiplicities.get(degree, 0), 2 * degree + 1)
        columns.append(torch.cat([*own, missing], -2))
    return torch.cat(columns, -1)


def to_e3nn(irreps: object, x: Tensor, *, parity: int = 1) -> Tensor:
    """Lay out channels as e3nn does: the inverse of `from_e3nn` for the same irreps.

    Parameters
    ----------
    irreps : str or e3nn.o3.Irreps
        What to hand out: of each degree as many channels as its multiplicity says, the first ones.
    x : Tensor, shape (..., C, (L + 1)²)
        Features; channels and degrees that the irreps do not name are left out.
    parity : {1, -1}, default 1
        As for `from_e3nn`.

    Returns
    -------
    Tensor, shape (..., dimension of the irreps)
        Ready for e3nn.

    Raises
    ------
    ArgumentError
        If the irreps cannot be read, or one has the other parity; the message names it.
    ArgumentTypeError
        If x is not real floating point.
    ShapeError
        If x has fewer channels or degrees than the irreps ask for, or is not of that shape.
    """
    terms = _parse("to_e3nn", irreps, parity)
    l_max = degree_of("to_e3nn", "x", x)
    multiplicities = _multiplicities(terms)
    if x.ndim < 2 or max(multiplicities) > l_max or max(multiplicities.values()) > x.shape[-2]:
        raise ShapeError(
            f"to_e3nn: {irreps} asks for {max(multiplicities.values())} channels up to degree {max(multiplicities)}, "
            f"got x of shape {tuple(x.shape)}"
        )
    taken = dict.fromkeys(multiplicities, 0)
    pieces = []
    for count, degree in terms:
        rows = x[..., taken[degree] : taken[degree] + count, degree**2 : (degree + 1) ** 2]
        pieces.append(rows.flatten(-2))
        taken[degree] += count
    return torch.cat(pieces, -1)


def _parse(call: str, irreps: object, parity: int) -> list[tuple[int, int]]:
    if parity not in (1, -1):
        raise ArgumentError(f"{call}: expected parity 1 or -1, got {parity}")
    terms = []
    for term in str(irreps).replace(" ", "").split("+"):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ArgumentError(f"{call}: cannot read {term!r} in {irreps}; expected terms such as 16x1o")
        count, degree = int(match[1] or 1), int(match[2])
        if (match[3] == "e") != ((degree % 2 == 0) == (parity == 1)):
            raise ArgumentError(
                f"{call}: {term} has not the parity {'' if parity == 1 else '-'}(-1)^l that goes with parity={parity}. "
                "Gaunt products keep natural parity, (-1)^l; antisymmetric_tensor_product makes features of the other, "
                "which are converted apart, with parity=-1"
            )
        if count:
            terms.append((count, degree))
    if not terms:
        raise ArgumentError(f"{call}: {irreps} is empty")
    return terms


def _multiplicities(terms: list[tuple[int, int]]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for count, degree in terms:
        counts[degree] = counts.get(degree, 0) + count
    return counts
