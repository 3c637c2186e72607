"""What a benchmark hands back: a measured number, the bar it must meet, and whether it does.

A claim is a ratio or an error, never a number of seconds: ratios travel between machines. Each benchmark file defines
``CLAIMS``, a list of functions ``(Scale) -> Claim | list[Claim]``; ``benchmarks/__main__.py`` runs them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from hesse.errors import ArgumentError

__all__ = ["Better", "Claim", "ClaimFunction", "PeerMissing", "Scale", "ScaleName", "to_json"]

Better = Literal["higher", "lower", "inside"]
ScaleName = Literal["smoke", "full"]
T = TypeVar("T")


class PeerMissing(RuntimeError):
    """A library the claim compares with is not installed; the claim then does not hold."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run. Called with both sizes of a setting, it returns the one that applies.

    ``seed`` is whatever the command line gave, modulo 2³¹: a claim must hold for seeds nobody has tried.
    """

    name: ScaleName = "full"
    seed: int = 0

    def __call__(self, *, smoke: T, full: T) -> T:
        """Pick a setting: ``n = scale(smoke=200, full=4000)``."""
        return smoke if self.name == "smoke" else full


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of a benchmark.

    Parameters
    ----------
    name : str
        The claim in a few words, unique within its benchmark.
    measured : float or None
        The number measured; None if it could not be (a peer is missing): then the claim does not hold.
    bar : float or (float, float)
        What it must reach. A pair, low and high, both allowed, if and only if ``better="inside"``.
    better : {"higher", "lower", "inside"}
        ``higher``: measured >= bar. ``lower``: measured <= bar.
    rows : mapping
        Everything behind the number, the peers' figures among it. Numbers, strings, lists and mappings.
    full_only : bool, default False
        The bar is meant for the full size: at smoke size the claim is run but not judged (``holds`` is None).
    note : str, optional
        One sentence a reader of the row needs.
    scale : {"smoke", "full"}, default "full"
        Set by the runner.
    """

    name: str
    measured: float | None
    bar: float | tuple[float, float]
    better: Better
    rows: Mapping[str, Any] = field(default_factory=dict)
    full_only: bool = False
    note: str | None = None
    scale: ScaleName = "full"

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower", "inside"):
            raise ArgumentError(f"Claim {self.name!r}: better must be higher, lower or inside, got {self.better!r}")
        if isinstance(self.bar, Sequence) != (self.better == "inside"):
            raise ArgumentError(
                f"Claim {self.name!r}: bar must be a pair exactly when better='inside', got {self.bar!r}"
            )

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; None where this size does not decide it. NaN and a missing number never hold."""
        if self.full_only and self.scale == "smoke":
            return None
        if self.measured is None:
            return False
        value = float(self.measured)
        if isinstance(self.bar, Sequence):
            low, high = self.bar
            return low <= value <= high
        return value >= self.bar if self.better == "higher" else value <= self.bar

    def as_dict(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return {
            "name": self.name,
            "measured": _finite(self.measured),
            "bar": to_json(self.bar),
            "better": self.better,
            "holds": self.holds,
            "rows": to_json(self.rows),
            "full_only": self.full_only,
            "note": self.note,
        }


ClaimFunction = Callable[[Scale], Claim | list[Claim]]


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def to_json(value: Any) -> Any:
    """Arrays, tensors, paths and numpy numbers as what JSON knows; a number that is not finite becomes its name."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return to_json(value.tolist())
    return str(value)
