"""What every operation of this package checks before it starts."""

from hesse.equivariant.gaunt._arguments import check_degree as check_count
from hesse.errors import ArgumentError

__all__ = ["check_choice", "check_count"]


def check_choice(call: str, name: str, choice: str, known: tuple[str, ...]) -> None:
    """Refuse an unknown name.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    choice : str
        What came.
    known : tuple of str
        What there is.

    Raises
    ------
    ArgumentError
        If it is none of them.
    """
    if choice not in known:
        raise ArgumentError(f"{call}: expected {name} to be one of {', '.join(known)}, got {choice!r}")
