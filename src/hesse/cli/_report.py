"""What all commands share: data on stdout, talk on stderr, and text that cannot act on the terminal."""

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "emit_json", "exit_code", "say", "visible"]

# control, bidirectional and zero-width characters, and the two line separators of Unicode
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_NAMED = {"\n": "↵", "\t": "→", "\x7f": "␡"}


def visible(text: str) -> str:
    """Show every character that would act on a terminal as a glyph, so that the result is one harmless line.

    Parameters
    ----------
    text : str
        Anything, training text above all.

    Returns
    -------
    str
        Newline as ↵, tab as →, other control characters as their pictures (ESC is ␛), the rest as ⟨code⟩.
    """
    return _ACTING.sub(_glyph, text)


def _glyph(match: re.Match[str]) -> str:
    character = match[0]
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨{code:04X}⟩"


def say(message: str) -> None:
    """Write one line of talk to stderr; of several processes that a launcher started, each says which it is.

    Parameters
    ----------
    message : str
        Made harmless first.
    """
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    typer.echo(visible(message if rank is None else f"[rank {rank}] {message}"), err=True)


def emit_json(value: dict[str, Any]) -> None:
    """Write one JSON object to stdout, in ASCII, so that no text in it acts on the terminal.

    Parameters
    ----------
    value : dict
        JSON values only, no NaN.
    """
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def console() -> "Console":
    """Return a console on stdout that reads no markup and honours NO_COLOR.

    Returns
    -------
    rich.console.Console
        100 columns wide when stdout is no terminal.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=False, width=width)


def exit_code(error: BaseException) -> int | None:
    """Return the exit code of an error that hesse raises on purpose, None for any other.

    Parameters
    ----------
    error : BaseException
        Whatever a command raised.

    Returns
    -------
    int or None
        1, 3 or 4; 130 for an interrupt.
    """
    if isinstance(error, KeyboardInterrupt):
        return 130
    from hesse.errors import HesseError  # numpy comes with it: not needed unless something went wrong

    return error.exit_code if isinstance(error, HesseError) else None
