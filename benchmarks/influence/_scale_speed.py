"""Time and memory of factors and scores against kronfluence, dattri and bergson, and against a training step.

One model and one set of rows for all, one thread, CPU seconds, arms in turn. Each library runs at full precision and at
the fastest settings of its own that keep the scores: a setting counts if every query's scores correlate 0.98 with the
full-rank scores in float32.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.data import peak_rss_growth
from benchmarks.influence._kronfluence import Arms, Shape, build, plain_pass, take_turns
from benchmarks.influence._kronfluence_peer import EXACT, LOW, MIXED, Precision
from benchmarks.influence._scale_peers import Bergson, dattri_attempt
from hesse.influence import Influence
from hesse.influence.sequences import Sequence, collate

__all__ = ["CLAIMS"]

FIDELITY = 0.98
RANK = 64


def full_shape(scale: Scale) -> Shape:
    """A four-block Llama at full size, on rows of a third to the whole of 128 bytes."""
    small = Shape(1, 32, 64, length=24, sequences=16, queries=4, batch=8, seed=scale.seed)
    return scale(smoke=small, full=Shape(sequences=128, queries=32, batch=8, seed=scale.seed))


@dataclass
class Contest:
    """Both libraries on one trained model, at several precisions; times and scores of every arm."""

    shape: Shape
    steps: int
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arms = Arms(self.shape, weights=trained_weights(self.shape, self.steps))
        model = build(self.shape)[0]
        model.load_state_dict(self.arms.model.state_dict())
        self.half = Influence(model.bfloat16(), fisher="empirical", positions="attended")

    def ours(self, name: str, rank: int | None, influence: Influence | None = None) -> None:
        """Fit and score with hesse."""
        self._note(name, partial(self.arms.fit, influence), partial(self.arms.score, rank, influence))

    def theirs(self, name: str, precision: Precision, rank: int | None = None) -> None:
        """Fit and score with kronfluence."""
        peer, arms = self.arms.peer, self.arms
        self._note(
            name,
            lambda: peer.fit(arms.train, precision),
            lambda: peer.score(arms.queries, arms.train, rank, precision).float().numpy(),
        )

    def bergson(self) -> dict[str, Any]:
        """Fit and score with bergson at all its settings; what stops it, by setting."""
        try:
            peer = Bergson(self.arms)
            for name in peer.SETTINGS:
                self.seconds[name], self.scores[name] = peer.run(name)
        except (PeerMissing, RuntimeError) as error:
            return {"bergson": {"error": str(error)[-300:]}}
        return {}

    def _note(self, name: str, fit: Callable[[], Any], score: Callable[[], np.ndarray]) -> None:
        start = time.process_time()
        fit()
        middle = time.process_time()
        self.scores[name] = score()
        end = time.process_time()
        times = {"fit": middle - start, "score": end - middle, "end to end": end - start}
        if name not in self.seconds or times["end to end"] < self.seconds[name]["end to end"]:
            self.seconds[name] = times

    def fidelity(self, name: str, reference: str = "hesse float32, full rank") -> float:
        """Correlation with the reference, of the worst query."""
        pairs = zip(self.scores[name], self.scores[reference], strict=True)
        return min(float(np.corrcoef(mine, wanted)[0, 1]) for mine, wanted in pairs)


def trained_weights(shape: Shape, steps: int) -> dict[str, torch.Tensor]:
    """A short training run on the rows: the spectrum of random weights is flat, which flatters nobody and helps low
    ranks least."""
    model, rows, _queries = build(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(shape.seed)
    for _ in range(steps):
        batch = collate([rows[i] for i in rng.choice(len(rows), min(16, len(rows)), replace=False)])
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def against_the_peers(scale: Scale) -> list[Claim]:
    """End to end, each library at its own fastest settings that keep the scores; all settings in the table."""
    torch.set_num_threads(1)
    contest = Contest(full_shape(scale), steps=scale(smoke=2, full=30))
    fast = f"hesse bfloat16, rank {RANK}"
    quick = [
        partial(contest.ours, fast, RANK, contest.half),
        partial(contest.theirs, "kronfluence autocast to bfloat16, full rank", MIXED),
    ]
    turns: list[Callable[[], None]] = [
        partial(contest.ours, "hesse float32, full rank", None),
        partial(contest.theirs, "kronfluence float32, full rank", EXACT),
        *quick,
        partial(contest.ours, "hesse bfloat16, full rank", None, contest.half),
        partial(contest.theirs, "kronfluence bfloat16, full rank", LOW),
        *scale(smoke=[], full=quick[::-1]),
    ]
    for turn in turns:
        turn()
    stopped = {} if scale.name == "smoke" else contest.bergson() | {"dattri": dattri_attempt(contest.arms)}
    table = {name: {**times, "worst correlation": contest.fidelity(name)} for name, times in contest.seconds.items()}
    table |= stopped
    peers = {
        name: row["end to end"]
        for name, row in table.items()
        if not name.startswith("hesse") and row.get("worst correlation", 0.0) >= FIDELITY
    }
    if not peers:
        raise PeerMissing("no other library kept the scores on this machine")
    fastest = min(peers, key=lambda name: peers[name])
    rows = {"arms": table, "fastest peer": fastest, "threads": 1}
    equal = contest.seconds["kronfluence float32, full rank"], contest.seconds["hesse float32, full rank"]
    return [
        Claim(
            "end to end over the fastest peer, both at settings that keep the scores",
            peers[fastest] / table[fast]["end to end"],
            2.0,
            "higher",
            rows,
            full_only=True,
        ),
        Claim(
            "scores at those settings correlate with float32 at full rank, worst query",
            table[fast]["worst correlation"],
            FIDELITY,
            "higher",
        ),
        Claim(
            "bfloat16 scores correlate with float32, worst query",
            table["hesse bfloat16, full rank"]["worst correlation"],
            0.98,
            "higher",
        ),
        Claim(
            "end to end over kronfluence, float32 at full rank both",
            equal[0]["end to end"] / equal[1]["end to end"],
            1.2,
            "higher",
            {"kronfluence": equal[0], "hesse": equal[1]},
            full_only=True,
        ),
    ]


def peak_memory(scale: Scale) -> Claim:
    """Growth of peak resident memory over model and data: fit and score in one fresh process an arm, same batches."""
    shape = full_shape(scale)
    shape = Shape(**{**vars(shape), "sequences": scale(smoke=16, full=48), "ragged": False})
    settings: dict[str, tuple[str, Precision, int | None]] = {
        f"hesse bfloat16, rank {RANK}": ("hesse", LOW, RANK),
        "kronfluence float32, full rank": ("kronfluence", EXACT, None),
        "hesse float32, full rank": ("hesse", EXACT, None),
        "kronfluence autocast to bfloat16, full rank": ("kronfluence", MIXED, None),
        f"kronfluence autocast to bfloat16, rank {RANK}": ("kronfluence", MIXED, RANK),
    }
    growth = {
        name: peak_rss_growth(_end_to_end, _prepared, *setting, shape, threads=1) / 2**20
        for name, setting in list(settings.items())[: scale(smoke=2, full=None)]  # a process takes seconds to start
    }
    leanest = min(value for name, value in growth.items() if name.startswith("kronfluence"))
    rows = {f"{name}, MiB": value for name, value in growth.items()}
    ratio = leanest / growth[f"hesse bfloat16, rank {RANK}"]
    return Claim("peak memory of kronfluence over hesse, end to end", ratio, 2.0, "higher", rows, full_only=True)


def _prepared(arm: str, precision: Precision, rank: int | None, shape: Shape) -> Any:
    arms = Arms(shape)
    influence = arms.ours
    if precision.factors == torch.bfloat16:
        influence = Influence(build(shape)[0].bfloat16(), fisher="empirical", positions="attended")
    return arms, arm, precision, rank, influence


def _end_to_end(state: Any) -> None:
    arms, arm, precision, rank, influence = state
    if arm == "hesse":
        arms.fit(influence)
        arms.score(rank, influence)
    else:
        arms.peer.fit(arms.train, precision)
        arms.peer.score(arms.queries, arms.train, rank, precision)


def scoring_throughput(scale: Scale) -> list[Claim]:
    """What one more candidate costs, for one query and for 32: the difference between many candidates and few."""
    torch.set_num_threads(1)
    shape = Shape(**{**vars(full_shape(scale)), "ragged": False, "batch": scale(smoke=8, full=16)})
    arms = Arms(shape)
    arms.fit()
    everyone, questions = list(arms.train), list(arms.queries)
    few = everyone[: len(everyone) // 4]

    def ask(queries: list[Sequence], candidates: list[Sequence]) -> None:
        arms.queries, arms.train = queries, candidates
        arms.score(None)

    one, many = questions[:1], questions
    best = take_turns(
        {
            "1 query, all": partial(ask, one, everyone),
            "32 queries, all": partial(ask, many, everyone),
            "1 query, few": partial(ask, one, few),
            "32 queries, few": partial(ask, many, few),
            "forward+backward, all": partial(plain_pass, arms.model, everyone, shape.batch),
            "forward+backward, few": partial(plain_pass, arms.model, few, shape.batch),
        },
        scale(smoke=1, full=2),
    )
    more = {arm: best[f"{arm}, all"] - best[f"{arm}, few"] for arm in ("1 query", "32 queries", "forward+backward")}
    rows = {**best, "differences": more, "candidates": {"all": len(everyone), "few": len(few)}, "queries": len(many)}
    return [
        Claim(
            "scoring throughput of one query over forward+backward",
            more["forward+backward"] / more["1 query"],
            0.9,
            "higher",
            rows,
            full_only=True,
        ),
        Claim(
            "cost of a candidate for 32 queries over one",
            more["32 queries"] / more["1 query"],
            1.4,
            "lower",
            rows,
            full_only=True,
        ),
    ]


CLAIMS = [against_the_peers, peak_memory, scoring_throughput]
