"""What a run will take, before it starts: time, memory and disk of every stage, from a few seconds of measuring.

The time of a stage is that of its own code on random rows of the model's own shapes, on this machine, scaled to the
whole data set. The model may live on the meta device: no weights are needed.

Shapes: p outputs, m columns, T tokens a sequence.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import second_moment
from hesse.curvature.kfac import InputFactor, OutputFactor
from hesse.curvature.layers import TrackedLayer, output_embedding
from hesse.curvature.routed import RoutedLinear
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError
from hesse.influence.contraction import DenseQueries, QueryMatrices, contract, empty_queries

__all__ = ["Plan", "StagePlan", "Workload", "plan_stages"]

_PROBE_FLOPS = 4e9  # of one probe: a fraction of a second on a CPU
_LONG = 2.0  # seconds
_EIGEN_PROBE = 512  # order of the matrix whose eigendecomposition is timed; the time of larger ones grows as n³


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


def plan_stages(
    model: nn.Module,
    layers: Mapping[str, TrackedLayer],
    workload: Workload,
    *,
    strategy: str = "ekfac",
    blocks: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Plan:
    """Estimate time, memory and disk of every stage of a run.

    Parameters
    ----------
    model : nn.Module
        On any device; one on "meta" is planned for this machine's CPU, or its GPU if there is one.
    layers : mapping of str to TrackedLayer
        Those that will be tracked.
    workload : Workload
        How much there is to do.
    strategy : {"ekfac", "kfac", "diagonal", "identity"}, default "ekfac"
        Which stages there are.
    blocks : int, default 1
        Diagonal blocks of the factors.
    clock : callable, default time.perf_counter
        Seconds; ``time.process_time`` on a machine that others use.

    Returns
    -------
    Plan
        Within a factor of two, as a rule, of what the run takes.

    Notes
    -----
    Takes a few seconds, half a minute for layers of an 8B model: one probe a distinct shape. Forward and backward of
    all matrices are counted, attention by its two products; what is neither (norms, softmax over the vocabulary) is
    left out, so that very small models come out too fast. Memory counts factors, what the backward pass keeps of every
    matrix, five copies of the logits and the gradients formed at a time. Block-diagonal bases are stored whole: blocks
    save time only. Inputs that layers share are counted for each. A busy machine makes everything look slower.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = next(model.parameters()).dtype
    probe = _Probe(workload, dtype, torch.float64 if dtype == torch.float64 else torch.float32, device, clock)
    share_of = dict(_multiplying(model))
    shapes: dict[tuple[int, int, bool], float] = {}
    for layer in layers.values():
        key = (layer.out_features, layer.in_features, layer.has_bias)
        shapes[key] = shapes.get(key, 0.0) + share_of[layer.module]
    costs = {key: probe.layer(*key, strategy) for key in shapes}

    def total(name: str) -> float:
        return sum(costs[key][name] * count for key, count in shapes.items())

    length, fitted = workload.mean_length, workload.fitted
    head = output_embedding(model)
    matrices = [
        (w.numel() * share, sum(w.shape) * share, m is head)
        for m, share in _multiplying(model)
        for w in m.parameters(recurse=False)
        if w.dim() == 2
    ]
    flops = 4 * sum(numbers for numbers, _, _ in matrices) + 3 * _attention_flops(model, length)
    passes = flops / probe.rate  # seconds a token, forward and dgrad
    size = 8 if dtype == torch.float64 else 4
    ends = [(one.out_features, one.columns) for one in layers.values()]
    factors, tables = size * sum(p * p + m * m for p, m in ends), size * sum(p * m for p, m in ends)
    widest = max(max(pair) for pair in ends)
    # kept for the backward pass: what goes into and comes out of each matrix; and of the logits five copies at once
    kept = dtype.itemsize * sum(both for _, both, is_head in matrices if not is_head)
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 0)
    held = round(workload.batch_tokens * (kept + 5 * size * vocabulary))
    sequences = max(1, round(workload.batch_tokens / length))
    block = size * max(min(BLOCK_ENTRIES, sequences * p * m) for p, m in ends)  # gradients formed at a time
    queries = _query_bytes(layers, workload, size)
    stages = []
    if strategy in ("ekfac", "kfac"):
        stages.append(StagePlan("covariance", fitted * length * (passes + total("gram")), factors + held, factors))
        eigen = sum(probe.eigh(-(-n // blocks)) * blocks for pair in ends for n in pair)
        stages.append(StagePlan("eigendecomposition", eigen, size * widest**2 + 24 * (widest // blocks) ** 2, factors))
    bases = factors if strategy in ("ekfac", "kfac") else 0
    if strategy in ("ekfac", "diagonal"):
        seconds = fitted * length * (passes + total("moment"))
        stages.append(StagePlan("eigenvalues", seconds, bases + tables + held + block, tables))
    tokens = workload.num_queries * (workload.query_length or length)
    prepare = tokens * passes + workload.num_queries * total("prepare")
    few = round(held * min(1.0, min(tokens, 2048) / workload.batch_tokens))
    stages.append(StagePlan("queries", prepare, bases + tables + queries + few + block, queries))
    scoring = workload.num_sequences * length * (passes + total("score"))
    values = size * workload.num_queries * workload.num_sequences
    stages.append(StagePlan("scores", scoring, queries + held + block + values, 2 * values))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Plan(tuple(stages), weights, workload)


class _Probe:
    """Times the stages' own code on random rows."""

    def __init__(
        self,
        workload: Workload,
        dtype: torch.dtype,
        wide: torch.dtype,
        device: torch.device,
        clock: Callable[[], float],
    ) -> None:
        self.workload, self.dtype, self.wide, self.device, self.clock = workload, dtype, wide, device, clock
        x, w = (torch.randn(n, 512, dtype=dtype, device=device) for n in (1024, 1024))
        self.rate = 2 * 1024 * 1024 * 512 / self.seconds(lambda: x @ w.T)  # FLOP a second of the model's own products
        self._eigen = 0.0

    def seconds(self, call: Callable[[], Any], repeats: int = 3) -> float:
        self._wait()
        start = self.clock()
        call()
        self._wait()
        times = []
        if self.clock() - start > _LONG:  # long enough not to need a second look
            return self.clock() - start
        for _ in range(repeats):
            self._wait()
            start = self.clock()
            call()
            self._wait()
            times.append(self.clock() - start)
        return max(sorted(times)[len(times) // 2], 1e-9)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def eigh(self, order: int) -> float:
        if not self._eigen:
            n = _EIGEN_PROBE
            matrix = torch.randn(n, n, dtype=torch.float64, device=self.device)
            self._eigen = self.seconds(lambda: torch.linalg.eigh(matrix @ matrix.T)) / n**3
        return self._eigen * order**3

    def layer(self, p: int, inputs: int, has_bias: bool, strategy: str) -> dict[str, float]:
        """Seconds a token of each stage, and seconds a query to precondition it."""  # noqa: DOC201
        m = inputs + has_bias
        wanted = min(self.workload.batch_tokens, int(_PROBE_FLOPS / (2 * (p * p + m * m + p * m))))
        length = min(max(1, round(self.workload.mean_length)), max(128, wanted))  # huge layers: part of a sequence
        count = max(1, wanted // length)
        module = nn.Linear(inputs, p, bias=has_bias, device="meta")
        layer = TrackedLayer("probe", module, inputs, p, has_bias)
        x = torch.randn(count, length, inputs, dtype=self.dtype, device=self.device)
        d = torch.randn(count, length, p, dtype=self.dtype, device=self.device)
        rows, tokens = Captured(layer, x, d, None, "probe"), count * length
        out: dict[str, float] = {"gram": 0.0, "moment": 0.0, "prepare": 0.0, "score": 0.0}
        if strategy in ("ekfac", "kfac"):
            a = InputFactor.zeros(m, dtype=self.wide, device=self.device)
            s = OutputFactor.zeros(p, dtype=self.wide, device=self.device)
            out["gram"] = self.seconds(lambda: (a.add_(rows), s.add_(rows))) / tokens
        scratch = Scratch()
        if strategy in ("ekfac", "diagonal"):
            narrow = torch.bfloat16 if self.dtype == torch.bfloat16 else self.wide
            left, right = (torch.randn(n, n, dtype=narrow, device=self.device) for n in (p, m))
            table = torch.zeros(p, m, dtype=self.wide, device=self.device)
            out["moment"] = self.seconds(lambda: second_moment(rows, left, right, table, scratch)) / tokens
        if strategy != "identity":
            out["prepare"] = 4 * p * m * (p + m) / self.rate
        rank = self.workload.rank
        if rank is not None and rank < min(p, m):
            out["prepare"] += 6 * 2 * p * m * (rank + 8) / self.rate  # the sketch, two power iterations, the projection
        queries = _filled(layer, self.workload, self.wide if self.dtype != torch.bfloat16 else self.dtype, self.device)
        kind = self.dtype if self.dtype == torch.bfloat16 else self.wide
        out["score"] = self.seconds(lambda: contract(rows, queries, kind, scratch)) / tokens
        return out


def _filled(layer: TrackedLayer, workload: Workload, dtype: torch.dtype, device: torch.device) -> QueryMatrices:
    # zeros take as long as anything else
    queries = empty_queries(layer, workload.num_queries, workload.rank, dtype, device)
    for part in _tensors(queries):
        part.zero_()
    return queries


def _tensors(queries: QueryMatrices) -> Iterator[Tensor]:
    parts = (queries.weight, queries.bias) if isinstance(queries, DenseQueries) else (queries.left, queries.right)
    yield from (part for part in parts if part is not None)


def _query_bytes(layers: Mapping[str, TrackedLayer], workload: Workload, size: int) -> int:
    total, rank = 0, workload.rank
    for layer in layers.values():
        p, m = layer.out_features, layer.columns
        if rank is None or rank >= min(p, m):
            total += size * p * m
        else:
            total += (8 if size == 8 else 2) * rank * (p + m)
    return total * workload.num_queries


def _multiplying(model: nn.Module) -> Iterator[tuple[nn.Module, float]]:
    # modules that multiply by their weights, and the share of the tokens each sees: of an expert those routed to it
    experts: dict[nn.Module, int] = {
        module: len(group)
        for group in model.modules()
        if isinstance(group, nn.ModuleList)
        for module in group
        if isinstance(module, RoutedLinear)
    }
    chosen = getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            number = experts.get(module, 1)
            yield module, min(1.0, (chosen or number) / number)


def _attention_flops(model: nn.Module, length: float) -> float:
    # of one token: two products with all T keys and values, in every block
    config: Any = getattr(model, "config", None)
    width, depth = (getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers"))
    return 4.0 * length * width * depth if isinstance(width, int) and isinstance(depth, int) else 0.0
