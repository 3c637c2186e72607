"""What an `Influence` does about the curvature: factors, a solver, or segments of a recorded training run."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hesse.errors import ArgumentError
from hesse.influence.checks import of_kind
from hesse.influence.solvers.options import FactorStrategy, Solver

__all__ = ["Source", "Strategy"]


@dataclass(frozen=True, slots=True)
class Source:
    """Segments of a recorded training run (SOURCE), each with factors of its own; see `hesse.influence.source`.

    Every matrix then counts once a segment, as "segment-<l>.<layer>": in the factors, and among the layers of the
    scores, which so tell when in training a sequence came to matter. There is no damping. Scores are the effect of one
    more copy from the beginning of training on. A batch of candidates is run once a checkpoint.

    Parameters
    ----------
    record : path
        Folder that a `Recorder`, `trainer_callback` or `lightning_callback` filled, with weights of the last step; of
        AdamW with its running means. Its last weights are those of the model.
    segments : int or sequence of int, default 3
        How many, of equally many steps; or the steps at which all but the first begin. See `split_segments`.

    References
    ----------
    J. Bae, W. Lin, J. Lorraine, R. Grosse (2024), arXiv 2405.12186.
    """

    record: Path | str
    segments: int | tuple[int, ...] = 3

    def __post_init__(self) -> None:
        of_kind("record", self.record, (Path, str), "the folder of a record")
        of_kind("segments", self.segments, (int, Items), "a whole number, or steps")
        if isinstance(self.segments, int):
            if self.segments < 1:
                raise ArgumentError(f"segments: expected >= 1, got {self.segments}")
        else:
            object.__setattr__(self, "segments", tuple(int(step) for step in self.segments))


Strategy = FactorStrategy | Literal["pcg", "cg", "lissa"] | Solver | Source
