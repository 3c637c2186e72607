"""Which tensor gets how many bits: the outcome of an allocation, as plain data that survives a round trip to a file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from hesse.compress.hawq.quantizer import check_bits
from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import atomic_write_json, read_json

__all__ = ["BitPlan", "PlanComparison", "uniform_plan"]

_FORMAT, _VERSION = "hesse-bit-plan", 1


@dataclass(frozen=True, slots=True)
class PlanComparison:
    """A plan beside one width for all; ratios below 1 are in favour of the plan."""

    bits: int  # the one width
    size_bits: int  # of the plan
    uniform_size_bits: int
    size_ratio: float
    fewer: tuple[str, ...]  # weights that get fewer bits than the one width
    more: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BitPlan:
    """Bits of every weight, and of the inputs of layers.

    Attributes
    ----------
    weights : mapping of str to int
        By the name of the parameter.
    activations : mapping of str to int
        By the layer whose input is quantised; may be empty.
    numel : mapping of str to int
        Entries of each of them.
    omega : float
        Predicted Ω, twice the rise of the loss to second order; NaN for a plan that nobody predicted.

    Raises
    ------
    ArgumentError
        If a width is out of range, or the entries of something are not known.
    """

    weights: Mapping[str, int]
    activations: Mapping[str, int] = field(default_factory=dict)
    numel: Mapping[str, int] = field(default_factory=dict)
    omega: float = float("nan")

    def __post_init__(self) -> None:
        for name, bits in (*self.weights.items(), *self.activations.items()):
            check_bits("BitPlan", bits, f"bits of {name}")
            if name not in self.numel:
                raise ArgumentError(f"BitPlan: numel does not say how many entries {name} has")

    @property
    def size_bits(self) -> int:
        """Bits that the weights take, scales not counted."""
        return sum(self.numel[name] * bits for name, bits in self.weights.items())

    @property
    def average_bits(self) -> float:
        """Bits a weight; NaN without weights."""
        return _average(self.weights, self.numel)

    @property
    def average_activation_bits(self) -> float:
        """Bits an entry of the inputs; NaN without activations."""
        return _average(self.activations, self.numel)

    def compare(self, uniform: int = 4) -> PlanComparison:
        """Set the plan beside one width for all weights.

        Parameters
        ----------
        uniform : int, default 4
            The one width.

        Returns
        -------
        PlanComparison
            Sizes, and which weights differ.

        Raises
        ------
        ArgumentError
            If the plan has no weights, or the width is out of range.
        """
        check_bits("BitPlan.compare", uniform, "uniform")
        if not self.weights:
            raise ArgumentError("BitPlan.compare: the plan has no weights")
        size = sum(self.numel[name] for name in self.weights) * uniform
        return PlanComparison(
            uniform,
            self.size_bits,
            size,
            self.size_bits / size,
            tuple(name for name, bits in self.weights.items() if bits < uniform),
            tuple(name for name, bits in self.weights.items() if bits > uniform),
        )

    def merge(self, other: "BitPlan") -> "BitPlan":
        """Join a plan for weights and one for activations.

        Parameters
        ----------
        other : BitPlan
            Wins where both name the same tensor.

        Returns
        -------
        BitPlan
            Ω is the sum of both.
        """
        return BitPlan(
            {**self.weights, **other.weights},
            {**self.activations, **other.activations},
            {**self.numel, **other.numel},
            self.omega + other.omega,
        )

    def to_dict(self) -> dict[str, Any]:
        """Lay the plan out as JSON values; `from_dict` reads it back.

        Returns
        -------
        dict
            With format and version; Ω is None where it is NaN.
        """
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "weights": dict(self.weights),
            "activations": dict(self.activations),
            "numel": dict(self.numel),
            "omega": None if self.omega != self.omega else self.omega,
        }

    @classmethod
    def from_dict(cls, value: object) -> "BitPlan":
        """Read what `to_dict` wrote.

        Parameters
        ----------
        value : object
            From a file nobody vouches for.

        Returns
        -------
        BitPlan
            Checked.

        Raises
        ------
        ArtifactError
            If it is no plan, or of a newer version.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise ArtifactError(f"BitPlan: expected a bit plan ({_FORMAT!r})")
        if value.get("version") != _VERSION:
            raise ArtifactError(f"BitPlan: version {value.get('version')!r} is not known here, only {_VERSION}")
        parts = {key: _widths_of(value.get(key), key) for key in ("weights", "activations", "numel")}
        omega = value.get("omega")
        if not (omega is None or isinstance(omega, int | float)):
            raise ArtifactError(f"BitPlan: omega must be a number or nothing, got {omega!r}")
        try:
            return cls(**parts, omega=float("nan") if omega is None else float(omega))
        except (ArgumentError, ArgumentTypeError) as error:
            raise ArtifactError(str(error)) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Parameters
        ----------
        path : str or PathLike
            The file; replaced if there is one.
        """
        atomic_write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BitPlan":
        """Read a plan from a file.

        Parameters
        ----------
        path : str or PathLike
            As `save` wrote it.

        Returns
        -------
        BitPlan
            Checked.
        """
        return cls.from_dict(read_json(path))


def uniform_plan(numel: Mapping[str, int], bits: int) -> BitPlan:
    """Give every weight the same width.

    Parameters
    ----------
    numel : mapping of str to int
        Entries of every weight.
    bits : int
        The width.

    Returns
    -------
    BitPlan
        Without a prediction.
    """
    return BitPlan(dict.fromkeys(numel, bits), numel=dict(numel))


def _widths_of(value: object, key: str) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ArtifactError(f"BitPlan: {key} must map names to whole numbers")
    entries = cast("dict[object, object]", value)
    found = {n: b for n, b in entries.items() if isinstance(n, str) and isinstance(b, int) and not isinstance(b, bool)}
    if len(found) != len(entries):
        raise ArtifactError(f"BitPlan: {key} must map names to whole numbers")
    return found


def _average(bits: Mapping[str, int], numel: Mapping[str, int]) -> float:
    total = sum(numel[name] for name in bits)
    return sum(numel[name] * width for name, width in bits.items()) / total if total else float("nan")
