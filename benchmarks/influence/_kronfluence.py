"""B6: the same EK-FAC scores as kronfluence 1.0.1, to rounding, in less time and less memory.

Everything is measured in one run on one machine: the two arms of a time take turns in one process with the same
number of threads and the same batch size; each arm of a memory figure is a fresh process. Rows are bytes of CPython's
own help text.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.data import peak_rss_growth, pydoc_topics
from benchmarks.influence._kronfluence_peer import Kronfluence
from benchmarks.peers import has_peer
from hesse.influence import Influence
from hesse.influence.sequences import Sequence, collate

THREADS = 1  # one thread and CPU seconds: what other processes do on the machine then moves both arms alike
ARMS = ("hesse", "kronfluence")
LAYERS = {"mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
LAYERS["all-linear"] = (*(f"self_attn.{n}_proj" for n in "qkvo"), *LAYERS["mlp"])


@dataclass(frozen=True)
class Shape:
    """Model and data of one comparison."""

    blocks: int = 4
    width: int = 256
    hidden: int = 1024
    vocabulary: int = 1000
    length: int = 128
    sequences: int = 256
    queries: int = 32
    batch: int = 16
    ragged: bool = True
    dtype: str = "float32"
    seed: int = 0


SMALL = Shape(
    blocks=3, width=32, hidden=96, vocabulary=256, length=24, sequences=40, queries=5, batch=8, dtype="float64"
)


def build(shape: Shape) -> tuple[torch.nn.Module, list[Sequence], list[Sequence]]:
    """A Llama with random weights, and rows of a third to the whole of ``length`` bytes (all whole if not ragged)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2 * shape.length,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).eval()
    text = np.frombuffer(pydoc_topics().encode("ascii", "replace"), dtype=np.uint8).astype(np.int64)
    rng = np.random.default_rng(shape.seed)

    def rows(count: int, prefix: str) -> list[Sequence]:
        out = []
        for i in range(count):
            length = int(rng.integers(shape.length // 3, shape.length + 1)) if shape.ragged else shape.length
            start = int(rng.integers(0, len(text) - length))
            tokens = text[start : start + length] % shape.vocabulary
            labels = tokens.copy()
            labels[0] = -100
            out.append(Sequence(f"{prefix}{i}", f"{prefix}{i}", tokens, labels))
        return out

    return model, rows(shape.sequences, "t"), rows(shape.queries, "q")


@dataclass
class Arms:
    """Both libraries on one model, data set and folder."""

    shape: Shape
    modules: str = "mlp"
    weights: dict[str, torch.Tensor] | None = None  # in place of random ones

    def __post_init__(self) -> None:
        if not has_peer("kronfluence"):
            raise PeerMissing("kronfluence: run `make peers`")
        self.model, self.train, self.queries = build(self.shape)
        if self.weights is not None:
            self.model.load_state_dict(self.weights)
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        names = [f"model.layers.{i}.{n}" for i in range(self.shape.blocks) for n in LAYERS[self.modules]]
        self.peer = Kronfluence(self.model, names, self.folder / "peer", self.shape.batch)
        self.ours = Influence(self.model, modules=self.modules, fisher="empirical", positions="attended")

    def fit(self, ours: Influence | None = None, run: str = "ours") -> None:
        (ours or self.ours).fit(
            self.train, self.folder / run, batch_size=self.shape.batch, overwrite=True, progress=False
        )

    def score(self, rank: int | None, ours: Influence | None = None, run: str = "ours") -> np.ndarray:
        # a new question each time: the same one would be answered from the run
        self._asked = getattr(self, "_asked", 0) + 1
        queries = [Sequence(f"{q.id}.{self._asked}", q.row, q.input_ids, q.labels) for q in self.queries]
        scores = (ours or self.ours).score(
            queries,
            self.train,
            self.folder / run,
            rank=rank,
            refine_topk=0,  # the peer has no second stage
            batch_size=self.shape.batch,
            progress=False,
        )
        return np.array(scores.values)


def take_turns(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of every arm over the rounds, the arms in turn and the order reversed each round."""
    best = dict.fromkeys(arms, float("inf"))
    for turn in range(rounds):
        for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
            start = time.process_time()
            arms[name]()
            best[name] = min(best[name], time.process_time() - start)
    return best


def equal_scores(scale: Scale) -> list[Claim]:
    """Same numbers: 1e-10 in float64, correlation 0.999 in float32; ragged rows, MLP and all linear layers."""
    torch.set_num_threads(THREADS)
    worst, rows = 0.0, {}
    for modules in ("mlp", "all-linear"):
        for ragged in (True, False):
            arms = Arms(Shape(**{**vars(SMALL), "ragged": ragged, "seed": scale.seed}), modules)
            arms.fit()
            arms.peer.fit(arms.train)
            ours = arms.score(None)
            theirs = arms.peer.score(arms.queries, arms.train).numpy() / len(arms.train)
            difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            rows[f"{modules}, {'ragged' if ragged else 'full'} rows"] = difference
            worst = max(worst, difference)
    arms = Arms(Shape(**{**vars(SMALL), "dtype": "float32", "seed": scale.seed}), "mlp")
    arms.fit()
    arms.peer.fit(arms.train)
    ours, theirs = arms.score(None), arms.peer.score(arms.queries, arms.train).numpy()
    correlation = min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours, theirs, strict=True))
    return [
        Claim("B6 float64 scores equal kronfluence's / N", worst, 1e-10, "lower", rows),
        Claim("B6 float32 scores correlate with kronfluence's, worst query", correlation, 0.999, "higher"),
    ]


def timed_shape(scale: Scale, **settings: Any) -> Shape:
    """Three blocks: what the peer does for a block, it does for each."""
    sizes = {"sequences": scale(smoke=32, full=128), "queries": scale(smoke=4, full=32)}
    return Shape(blocks=3, seed=scale.seed, **sizes, **settings)


def ragged_speed(scale: Scale) -> list[Claim]:
    """Fit and score rows of mixed length at equal settings; and in bfloat16 where this processor multiplies it faster.

    One measurement of the peer, in float32, serves both precisions of ours.
    """
    torch.set_num_threads(THREADS)
    probe = _bfloat16_probe()
    arms = Arms(timed_shape(scale))
    half = Influence(build(arms.shape)[0].bfloat16(), fisher="empirical", positions="attended")
    got: dict[str, np.ndarray] = {}
    fit = take_turns(
        {
            "hesse": arms.fit,
            "hesse bfloat16": lambda: arms.fit(half, "half"),
            "kronfluence": lambda: arms.peer.fit(arms.train),
        },
        1,
    )
    score = take_turns(
        {
            "hesse": lambda: arms.score(None),
            "hesse bfloat16": lambda: got.update(half=arms.score(None, half, "half")),
            "kronfluence": lambda: got.update(peer=arms.peer.score(arms.queries, arms.train).numpy()),
            "hesse rank 32": lambda: arms.score(32),
            "kronfluence rank 32": lambda: arms.peer.score(arms.queries, arms.train, 32),
        },
        1,
    )
    seen = {"fit": fit, "score": score, "threads": THREADS, "rows": "ragged", "bf16 GEMM over float32": probe}
    fitting, scoring = (arm["kronfluence"] / arm["hesse"] for arm in (fit, score))
    at_rank = score["kronfluence rank 32"] / score["hesse rank 32"]
    correlation = min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(got["half"], got["peer"], strict=True))
    claims = [
        Claim("B6 fitting speed over kronfluence, ragged rows", fitting, 1.4, "higher", seen, True),
        Claim("B6 scoring speed over kronfluence, ragged rows", scoring, 1.2, "higher", seen, True),
        Claim("B6 scoring speed at rank 32, ragged rows", at_rank, 1.4, "higher", seen, True),
        Claim("B6 bfloat16 scores correlate with float32, worst query", correlation, 0.98, "higher", seen),
    ]
    if probe >= 2:  # without native bfloat16 products there is no speed to claim, and a bar of nothing would claim it
        whole = {name: fit[name] + score[name] for name in fit}
        ratio = whole["kronfluence"] / whole["hesse bfloat16"]
        claims.append(Claim("B6 bfloat16 end to end over kronfluence", ratio, 2.2, "higher", seen, True))
    return claims


def full_speed(scale: Scale) -> list[Claim]:
    """Fit and score rows of one length; the plain forward and backward pass beside it as the physical limit."""
    torch.set_num_threads(THREADS)
    arms = Arms(timed_shape(scale, ragged=False))
    fit = take_turns({"hesse": arms.fit, "kronfluence": lambda: arms.peer.fit(arms.train)}, 1)
    score = take_turns(
        {
            "hesse": lambda: arms.score(None),
            "kronfluence": lambda: arms.peer.score(arms.queries, arms.train),
            "forward+backward": partial(plain_pass, arms.model, arms.train, arms.shape.batch),
            "candidates only": lambda: _candidate_pass(arms),
        },
        scale(smoke=1, full=2),
    )
    seen = {"fit": fit, "score": score, "threads": THREADS, "rows": "full"}
    fitting, scoring = (arm["kronfluence"] / arm["hesse"] for arm in (fit, score))
    limit = score["forward+backward"] / score["candidates only"]
    return [
        Claim("B6 fitting speed over kronfluence, full rows", fitting, 1.4, "higher", seen, True),
        Claim("B6 scoring speed over kronfluence, full rows", scoring, 1.2, "higher", seen, True),
        Claim("B6 scoring throughput over forward+backward", limit, 0.8, "higher", seen, True),
    ]


def all_linear_speed(scale: Scale) -> Claim:
    """End to end with every linear layer tracked, where shared inputs pay."""
    torch.set_num_threads(THREADS)
    arms = Arms(timed_shape(scale), "all-linear")

    def ours() -> None:
        arms.fit()
        arms.score(None)

    def theirs() -> None:
        arms.peer.fit(arms.train)
        arms.peer.score(arms.queries, arms.train)

    best = take_turns({"hesse": ours, "kronfluence": theirs}, 1)
    ratio = best["kronfluence"] / best["hesse"]
    return Claim("B6 all-linear end to end over kronfluence", ratio, 1.6, "higher", {**best, "rows": "ragged"}, True)


def memory(scale: Scale) -> list[Claim]:
    """Growth of peak resident memory over model and data, a fresh process an arm.

    Three batches are enough: what either library holds at once does not grow with their number.
    """
    shape = Shape(blocks=3, seed=scale.seed, sequences=scale(smoke=32, full=48), ragged=False)
    many = Shape(**{**vars(shape), "queries": scale(smoke=16, full=256), "sequences": scale(smoke=16, full=48)})
    growth: dict[tuple[str, str], int] = {}
    for name, what, one, rank in (
        ("fit", "fit", shape, None),
        ("score", "score", shape, None),
        ("score, 256 queries of rank 32", "score", many, 32),
    ):
        measure = partial(_growth, what=what, shape=one, rank=rank)
        with ThreadPoolExecutor(len(ARMS)) as pool:  # the two may run side by side: a process's memory is its own
            growth |= {(name, arm): size for arm, size in zip(ARMS, pool.map(measure, ARMS), strict=True)}
    ratios = {name: growth[name, "hesse"] / growth[name, "kronfluence"] for name, arm in growth if arm == "hesse"}
    rows = {f"{name}: {arm} MiB": value / 2**20 for (name, arm), value in growth.items()}
    worst = max(ratios["fit"], ratios["score"])
    return [
        Claim("B6 peak memory over kronfluence, fit and score, worst", worst, 1.0, "lower", {**rows, **ratios}, True),
        Claim(
            "B6 peak memory, 256 queries of rank 32", ratios["score, 256 queries of rank 32"], 0.5, "lower", rows, True
        ),
    ]


def _growth(arm: str, *, what: str, shape: Shape, rank: int | None) -> int:
    return peak_rss_growth(_MEASURED[arm, what], _prepare, arm, what, shape, rank, threads=THREADS)


def _prepare(arm: str, what: str, shape: Shape, rank: int | None) -> Any:
    """Model, data and, for scoring, the fitted factors on disk; imports done, so that only the work itself counts."""
    arms = Arms(shape)
    if what == "score":
        few = Shape(**{**vars(shape), "sequences": 16, "queries": 1})
        arms.train, everything = build(few)[1], arms.train
        arms.fit() if arm == "hesse" else arms.peer.fit(arms.train)
        arms.train = everything
    return arms, rank


def _fit_ours(state: Any) -> None:
    state[0].fit()


def _fit_theirs(state: Any) -> None:
    state[0].peer.fit(state[0].train)


def _score_ours(state: Any) -> None:
    arms, rank = state
    arms.ours.score(
        arms.queries,
        arms.train,
        arms.folder / "ours",
        rank=rank,
        refine_topk=0,
        batch_size=arms.shape.batch,
        progress=False,
    )


def _score_theirs(state: Any) -> None:
    arms, rank = state
    arms.peer.score(arms.queries, arms.train, rank)


_MEASURED = {
    ("hesse", "fit"): _fit_ours,
    ("kronfluence", "fit"): _fit_theirs,
    ("hesse", "score"): _score_ours,
    ("kronfluence", "score"): _score_theirs,
}


def plain_pass(model: torch.nn.Module, train: list[Sequence], batch: int) -> None:
    """The forward and backward pass of a training step over the same rows, weight gradients included."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for first in range(0, len(train), batch):
        rows = collate(train[first : first + batch])
        logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False).logits[
            :, :-1
        ]
        F.cross_entropy(
            logits.flatten(0, 1), rows["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
        ).backward()
        model.zero_grad(set_to_none=True)


def _candidate_pass(arms: Arms) -> None:
    """Scoring of all candidates for the first query: the part that is paid again for every row of a corpus."""
    kept, arms.queries = arms.queries, arms.queries[:1]
    try:
        arms.score(None)
    finally:
        arms.queries = kept


def _bfloat16_probe() -> float:
    a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
    half = a.bfloat16(), b.bfloat16()
    best = take_turns(
        {"float32": lambda: [a @ b for _ in range(20)], "bfloat16": lambda: [half[0] @ half[1] for _ in range(20)]}, 3
    )
    return best["float32"] / best["bfloat16"]


CLAIMS = [equal_scores, ragged_speed, full_speed, all_linear_speed, memory]
