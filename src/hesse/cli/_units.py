"""Sizes and durations, as people write and read them."""

import re

import typer

__all__ = ["parse_duration", "parse_size", "show_duration", "show_size"]

_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def parse_size(text: str) -> int:
    """Read "40MB" or "1.5 GiB".

    Parameters
    ----------
    text : str
        As typed.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    BadParameter
        If it is no positive number with a unit.
    """
    size = int(_read(text, _BYTES))
    if size < 1:
        raise typer.BadParameter(f"expected a size, as in 40MB or 2GiB, got {text!r}")
    return size


def parse_duration(text: str) -> float:
    """Read "90s", "30 min", "12h" or "7d".

    Parameters
    ----------
    text : str
        As typed.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    BadParameter
        If it is no positive number with a unit.
    """
    seconds = _read(text, _SECONDS)
    if seconds <= 0:
        raise typer.BadParameter(f"expected a duration, as in 90s, 30min, 12h or 7d, got {text!r}")
    return seconds


def _read(text: str, units: dict[str, int]) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", text.lower())
    return 0.0 if match is None else float(match[1]) * units.get(match[2], 0)


def show_duration(seconds: float) -> str:
    """Write a duration in the unit that suits it.

    Parameters
    ----------
    seconds : float
        How long.

    Returns
    -------
    str
        As in "17.5 min".
    """
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:,.3g} d" if seconds < 86_400_000 else f"{seconds / 86_400:,.0f} d"


def show_size(count: float) -> str:
    """Write a number of bytes in the binary unit that suits it.

    Parameters
    ----------
    count : float
        Bytes.

    Returns
    -------
    str
        As in "2.5 GiB".
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if count < 999.5 else f"{count:,.0f} TiB"
