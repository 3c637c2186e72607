"""What one token of one layer costs: measured on this machine, or reckoned from rates that were stated."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hesse.curvature.capture import Captured
from hesse.curvature.ekfac import second_moment
from hesse.curvature.kfac import InputFactor, OutputFactor
from hesse.curvature.layers import TrackedLayer
from hesse.curvature.scratch import Scratch
from hesse.curvature.shampoo import add_gradient_moments_
from hesse.errors import ArgumentError
from hesse.influence.contraction import DenseQueries, QueryMatrices, contract, empty_queries
from hesse.influence.plan.workload import Workload

__all__ = ["LayerCost", "MeasuredRates", "Rates", "StatedRates"]

_PROBE_FLOPS = 4e9  # of one probe: a fraction of a second on a CPU
_LONG = 2.0  # seconds
_EIGEN_PROBE = 512  # order of the matrix whose eigendecomposition is timed; the time of larger ones grows as n³
_EIGEN_FLOPS = 9.0  # times n³


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Seconds a token of each stage, and seconds a query to precondition it."""

    gram: float
    moment: float
    prepare: float
    score: float


class Rates(Protocol):
    """How fast a machine is."""

    @property
    def rate(self) -> float:
        """FLOP a second of the model's own products."""
        ...

    def eigh(self, order: int) -> float:
        """Seconds of one eigendecomposition in float64."""
        ...

    def layer(self, p: int, inputs: int, has_bias: bool, strategy: str, workload: Workload) -> LayerCost:
        """Cost of one layer from ``inputs`` (and a bias) to ``p``."""
        ...


@dataclass(frozen=True, slots=True)
class StatedRates:
    """Rates of a machine that is not at hand, in FLOP a second; what it reaches, not its peak.

    Raises
    ------
    ArgumentError
        If a rate is not positive.
    """

    rate: float  # forward and backward
    factor_rate: float  # products of factors and scores, mostly in float32
    eigen_rate: float  # 9 n³ of an eigendecomposition in float64

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ArgumentError(f"{field.name}: expected > 0, got {getattr(self, field.name)}")

    def eigh(self, order: int) -> float:
        """Seconds of one eigendecomposition in float64.

        Parameters
        ----------
        order : int
            n.

        Returns
        -------
        float
            9 n³ over the rate.
        """
        return _EIGEN_FLOPS * order**3 / self.eigen_rate

    def layer(self, p: int, inputs: int, has_bias: bool, strategy: str, workload: Workload) -> LayerCost:
        """Cost of one layer, by counting multiplications.

        Parameters
        ----------
        p, inputs : int
            Outputs and inputs.
        has_bias : bool
            One more column.
        strategy : str
            Which stages there are.
        workload : Workload
            Tokens a sequence, queries and their rank.

        Returns
        -------
        LayerCost
            Seconds.
        """
        m, length, count = inputs + has_bias, workload.mean_length, workload.num_queries
        whole = 2 * m * p + 2 * p * m * (p + m) / length  # a sequence's gradient, and its moments on either side
        gram = {"diagonal": 0.0, "identity": 0.0, "shampoo": whole}.get(strategy, 2.0 * (p * p + m * m))
        rotated = min(2 * (m * m + p * p) + 2 * m * p, 2 * m * p + 2 * p * m * (p + m) / length)
        moment = {"ekfac": rotated, "shampoo": rotated, "diagonal": 2.0 * m * p}.get(strategy, 0.0)
        score = 2 * m * p * (1 + count / length)
        if (rank := _low(workload.rank, p, m)) is not None:
            score = min(score, 2 * rank * count * (p + m))
        prepare = _prepare_flops(p, m, strategy, workload.rank)
        return LayerCost(*(flops / self.factor_rate for flops in (gram, moment, prepare, score)))


class MeasuredRates:
    """Times the stages' own code on random rows of the model's shapes, each shape once.

    Parameters
    ----------
    dtype : torch.dtype
        Of the model.
    device : torch.device
        Where it would run.
    clock : callable, default time.perf_counter
        Seconds; ``time.process_time`` on a machine that others use.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.dtype, self.device, self.clock = dtype, device, clock
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._known: dict[tuple[Any, ...], float] = {}

    @property
    def rate(self) -> float:
        """FLOP a second of the model's own products."""
        x, w = (torch.randn(1024, 512, dtype=self.dtype, device=self.device) for _ in range(2))
        return 2 * 1024 * 1024 * 512 / self._once(("products",), lambda: self._seconds(lambda: x @ w.T))

    def eigh(self, order: int) -> float:
        """Seconds of one eigendecomposition in float64.

        Parameters
        ----------
        order : int
            n.

        Returns
        -------
        float
            Scaled from one of order 512.
        """
        n = _EIGEN_PROBE
        matrix = torch.randn(n, n, dtype=torch.float64, device=self.device)
        once = self._once(("eigh",), lambda: self._seconds(lambda: torch.linalg.eigh(matrix @ matrix.T)))
        return once * (order / n) ** 3

    def layer(self, p: int, inputs: int, has_bias: bool, strategy: str, workload: Workload) -> LayerCost:
        """Cost of one layer, measured.

        Parameters
        ----------
        p, inputs : int
            Outputs and inputs.
        has_bias : bool
            One more column.
        strategy : str
            Which stages there are.
        workload : Workload
            Tokens a sequence and a batch, queries and their rank.

        Returns
        -------
        LayerCost
            Seconds.
        """
        m = inputs + has_bias
        wanted = min(workload.batch_tokens, int(_PROBE_FLOPS / (2 * (p * p + m * m + p * m))))
        length = min(max(1, round(workload.mean_length)), max(128, wanted))  # huge layers: part of a sequence
        tokens = max(1, wanted // length) * length

        def rows() -> Captured:
            layer = TrackedLayer("probe", nn.Linear(inputs, p, bias=has_bias, device="meta"), inputs, p, has_bias)
            x, d = (torch.randn(tokens // length, length, n, dtype=self.dtype, device=self.device) for n in (inputs, p))
            return Captured(layer, x, d, None, "probe")

        shape = (p, inputs, has_bias, length)
        gram = moment = 0.0
        if strategy in ("ekfac", "kfac", "shampoo"):
            whole = strategy == "shampoo"
            gram = self._once(("gram", whole, *shape), lambda: self._gram(rows(), whole)) / tokens
        if strategy in ("ekfac", "shampoo", "diagonal"):
            moment = self._once(("moment", *shape), lambda: self._moment(rows())) / tokens
        prepare = _prepare_flops(p, m, strategy, workload.rank) / self.rate
        count, rank = workload.num_queries, _low(workload.rank, p, m)
        score = self._once(("score", *shape, count, rank), lambda: self._score(rows(), count, rank))
        return LayerCost(gram, moment, prepare, score / tokens)

    def _gram(self, rows: Captured, whole: bool) -> float:
        layer = rows.layer
        a = InputFactor.zeros(layer.columns, dtype=self.wide, device=self.device)
        s = OutputFactor.zeros(layer.out_features, dtype=self.wide, device=self.device)
        return self._seconds(lambda: add_gradient_moments_(a, s, rows) if whole else (a.add_(rows), s.add_(rows)))

    def _moment(self, rows: Captured) -> float:
        p, m = rows.layer.out_features, rows.layer.columns
        narrow = torch.bfloat16 if self.dtype == torch.bfloat16 else self.wide
        left, right = (torch.randn(n, n, dtype=narrow, device=self.device) for n in (p, m))
        table, scratch = torch.zeros(p, m, dtype=self.wide, device=self.device), Scratch()
        return self._seconds(lambda: second_moment(rows, left, right, table, scratch))

    def _score(self, rows: Captured, count: int, rank: int | None) -> float:
        kind, scratch = self.dtype if self.dtype == torch.bfloat16 else self.wide, Scratch()
        queries = empty_queries(rows.layer, count, rank, kind, self.device)
        for part in _tensors(queries):
            part.zero_()  # zeros take as long as anything else
        return self._seconds(lambda: contract(rows, queries, kind, scratch))

    def _once(self, key: tuple[Any, ...], measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def _seconds(self, call: Callable[[], Any], repeats: int = 3) -> float:
        times: list[float] = []
        for _ in range(repeats + 1):
            self._wait()
            start = self.clock()
            call()
            self._wait()
            times.append(self.clock() - start)
            if times[0] > _LONG:  # long enough not to need a second look
                return times[0]
        return max(sorted(times[1:])[repeats // 2], 1e-9)  # the first warms up

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _prepare_flops(p: int, m: int, strategy: str, rank: int | None) -> float:
    # into the eigenbasis and back; then the sketch, two power iterations and the projection
    there = 0.0 if strategy == "identity" else 4.0 * p * m * (p + m)
    low = _low(rank, p, m)
    return there if low is None else there + 12.0 * p * m * (low + 8)


def _low(rank: int | None, p: int, m: int) -> int | None:
    return rank if rank is not None and rank < min(p, m) else None


def _tensors(queries: QueryMatrices) -> Iterator[Tensor]:
    parts = (queries.weight, queries.bias) if isinstance(queries, DenseQueries) else (queries.left, queries.right)
    yield from (part for part in parts if part is not None)
