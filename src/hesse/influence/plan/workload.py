"""How much there is to do, and what it takes: plain records."""

from dataclasses import asdict, dataclass
from typing import Any

from hesse.errors import ArgumentError

__all__ = ["Plan", "StagePlan", "Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """How much there is to do.

    Raises
    ------
    ArgumentError
        If a number is below one.
    """

    num_sequences: int  # N, those to score
    mean_length: float  # tokens a sequence
    num_queries: int = 1
    rank: int | None = 32
    fitted_on: int | None = None  # sequences of the two fitting passes; default: N, at most 100,000
    batch_tokens: int = 4096
    query_length: float | None = None  # tokens; default: mean_length

    def __post_init__(self) -> None:
        for name in (
            "num_sequences",
            "mean_length",
            "num_queries",
            "batch_tokens",
            "rank",
            "fitted_on",
            "query_length",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ArgumentError(f"{name}: expected >= 1, got {value}")

    @property
    def fitted(self) -> int:
        """Sequences of the two fitting passes."""
        return min(self.num_sequences, 100_000) if self.fitted_on is None else self.fitted_on


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: seconds on this machine, bytes resident at its peak beside the model, bytes it leaves on disk."""

    name: str
    seconds: float
    memory: int
    disk: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take.

    ``seconds`` adds up; memory and disk do not: ``memory`` is the largest of the stages with the model on top, and the
    covariances are deleted once their eigenvectors are there.
    """

    stages: tuple[StagePlan, ...]
    model_bytes: int
    workload: Workload

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> int:
        """Peak, bytes, model included."""
        return self.model_bytes + max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """Peak, bytes: covariances and eigenvectors lie there together for a while."""
        return sum(stage.disk for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values.

        Returns
        -------
        dict
            For JSON.
        """
        return asdict(self) | {"seconds": self.seconds, "memory": self.memory, "disk": self.disk}

    def _repr_html_(self) -> str:
        from hesse.influence.notebook import plan_html

        return plan_html(self)
