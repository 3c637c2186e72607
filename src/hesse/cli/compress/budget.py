"""What a bit plan may cost, as people write it: bits a weight, a size, or bit operations."""

import re

import typer

from hesse.cli._units import parse_size

__all__ = ["parse_budget"]

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}


def parse_budget(text: str) -> tuple[float, str]:
    """Read "3.5", "40MB" or "30GBOPs".

    Parameters
    ----------
    text : str
        As typed.

    Returns
    -------
    float
        The bound.
    str
        The constraint of `allocate_bits` that it is of: "average_bits", "size" (in bits) or "bitops".

    Raises
    ------
    BadParameter
        If it is none of these, or not positive.
    """
    work = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgtp]?)bops?\s*", text.lower())
    if work is not None:
        amount, constraint = float(work[1]) * _PREFIXES[work[2]], "bitops"
    else:
        try:
            amount, constraint = float(text), "average_bits"
        except ValueError:
            return parse_size(text) * 8.0, "size"
    if not 0 < amount < float("inf"):
        raise typer.BadParameter(
            f"expected bits a weight, as in 3.5, a size, as in 40MB, or bit operations, as in 30GBOPs; got {text!r}"
        )
    return amount, constraint
