"""What operations of this family check before they start."""

from hesse.errors import ArgumentError, ArgumentTypeError

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


def check_count(call: str, name: str, count: int, low: int = 0) -> None:
    """Refuse what is not an integer >= low.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    count : int
        What came.
    low : int, default 0
        The least that is allowed.

    Raises
    ------
    ArgumentTypeError
        If it is not an integer.
    ArgumentError
        If it is too small.
    """
    if not isinstance(count, int) or isinstance(count, bool):
        raise ArgumentTypeError(f"{call}: expected {name} to be an integer, got {type(count).__name__}")
    if count < low:
        raise ArgumentError(f"{call}: expected {name} >= {low}, got {count}")
