"""Candidate filters: the token index against bm25s, what a filter keeps, and projected gradients against whole scores.

Oracles, all computed in the run: the peer's own scores, scores of all rows, scores at full rank.
"""

import tempfile
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks._claims import Claim, ClaimFunction, PeerMissing, Scale
from benchmarks.data import interleave
from benchmarks.influence._oracles import train_language_model
from benchmarks.peers import require_peer
from hesse.influence import Influence, as_examples
from hesse.influence.prefilter import Prefilter, build_index, choose, rank
from hesse.influence.prefilter.missed import missed_of

__all__ = ["CLAIMS", "filter_keeps", "projected_gradients", "token_index"]

VOCABULARY = 30_000
TOP = 100


def token_index(scale: Scale) -> list[Claim]:
    """Build and query times of the index on disk, beside bm25s, whose index is written to disk too."""
    count, length, num_queries = scale(smoke=(400, 32, 4), full=(20_000, 128, 50))
    rng = np.random.default_rng(scale.seed)
    rows = np.minimum(rng.zipf(1.2, (count + num_queries, length)), VOCABULARY) - 1
    documents, queries = rows[:count], rows[count:, :24]
    examples = as_examples(list(documents))
    names = [f"bm25 {what} time of the peer over ours" for what in ("build", "query")]
    with tempfile.TemporaryDirectory() as folder:
        try:
            peer: Any = require_peer("bm25s")
        except PeerMissing as error:
            return [Claim(name, None, 1.0, "higher", {"peer missing": str(error)}, full_only=True) for name in names]
        made: dict[str, Any] = {}
        vocabulary = {str(i): i for i in range(VOCABULARY)}
        lists = documents.tolist()

        def build_ours() -> None:
            made["ours"] = build_index(examples, Path(folder) / f"ours-{len(list(Path(folder).iterdir()))}")

        def build_peer() -> None:
            made["bm25s"] = peer.BM25(method="lucene", k1=1.5, b=0.75)
            made["bm25s"].index((lists, vocabulary), show_progress=False)
            made["bm25s"].save(str(Path(folder) / f"peer-{len(list(Path(folder).iterdir()))}"))

        builds = interleave({"ours": build_ours, "bm25s": build_peer}, scale(smoke=1, full=3), warmup=0)
        found: dict[str, Any] = {}

        def ask_ours() -> None:
            found["ours"] = [numbers for numbers, _values in rank(made["ours"], list(queries), TOP)]

        def ask_peer() -> None:
            found["bm25s"] = [_best(made["bm25s"].get_scores_from_ids(query.tolist()), TOP) for query in queries]

        asks = interleave({"ours": ask_ours, "bm25s": ask_peer}, scale(smoke=1, full=3))
        size = made["ours"].num_bytes
    shared = np.mean(
        [len(set(a.tolist()) & set(b.tolist())) / TOP for a, b in zip(found["ours"], found["bm25s"], strict=True)]
    )
    rows_of: dict[str, Any] = {
        "build, seconds": {name: median(times) for name, times in builds.items()},
        "a query, seconds": {name: median(times) / num_queries for name, times in asks.items()},
        "documents": count,
        "tokens a document": length,
        "queries": num_queries,
        "bytes a document": size / count,
        "peer": f"bm25s {peer.__version__}, lucene; its index in memory, ours mapped from disk",
    }
    ratios = [median(times["bm25s"]) / median(times["ours"]) for times in (builds, asks)]
    claims = [
        Claim(name, ratio, 1.0, "higher", rows_of, full_only=True) for name, ratio in zip(names, ratios, strict=True)
    ]
    name = f"bm25 top {TOP} in common with the peer"
    return [*claims, Claim(name, float(shared), 0.99, "higher", {"documents": count, "queries": num_queries})]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:count]


class _Scored:
    """A language model trained for the purpose, its run, and all scores at full rank."""

    def __init__(self, scale: Scale) -> None:
        torch.set_num_threads(1)
        width, sequences, queries, steps = scale(smoke=(16, 60, 3, 10), full=(64, 1000, 16, 300))
        trained = train_language_model(width=width, sequences=sequences, queries=queries, steps=steps, seed=scale.seed)
        self.folder = tempfile.TemporaryDirectory()
        self.run = Path(self.folder.name) / "run"
        self.train, self.queries = trained.train, trained.queries
        self.influence = Influence(trained.model, seed=scale.seed)
        self.influence.fit(self.train, self.run, progress=False)
        self.values = np.array(self.score().values, dtype=np.float64)

    def score(self, **options: Any) -> Any:
        return self.influence.score(self.queries, self.train, self.run, rank=None, progress=False, **options)


@lru_cache(maxsize=1)
def _scored(name: str, seed: int) -> _Scored:
    return _Scored(Scale("smoke" if name == "smoke" else "full", seed))


def filter_keeps(scale: Scale) -> list[Claim]:
    """What the filters keep of the strongest proponents, and whether the random slice says how much they miss."""
    scored = _scored(scale.name, scale.seed)
    k, draws = scale(smoke=(5, 5), full=(50, 200))
    train, queries = as_examples(scored.train), as_examples(scored.queries)
    count = len(train)
    tops = np.argsort(-scored.values, axis=1)[:, :k]
    with tempfile.TemporaryDirectory() as folder:
        index = build_index(train, Path(folder) / "index")
        tokens = [sequence.input_ids for sequence in scored.queries]
        recall: dict[str, float] = {}
        for method in ("bm25", "tfidf_paper"):
            ranked = rank(index, tokens, max(1, count // 10), method=method)
            recall[method] = float(
                np.mean([np.isin(top, numbers).mean() for top, (numbers, _v) in zip(tops, ranked, strict=True)])
            )
        inside = choose(index, queries, train, Prefilter(top=max(1, count // 100), random=0)).numbers
    outside = np.setdiff1d(np.arange(count), inside)
    truth = np.maximum(scored.values[:, outside], 0).sum(1)
    drawn, hits = max(2, len(outside) // 5), []
    for seed in range(draws):
        picked = np.random.default_rng([scale.seed, seed]).choice(outside, drawn, replace=False)
        both = np.concatenate([inside, picked])
        found = missed_of(scored.values[:, both], np.arange(len(both)) >= len(inside), count, k=k)
        hits.append(np.abs(found.positive - truth) <= 2 * found.positive_error)
    rows = {"recall of the top, a tenth of the rows kept a query": recall, "k": k, "rows": count, "random": 0.1}
    rows |= {"tokens": "bytes: words are not seen, so this is the hardest case for a filter"}
    covered = {"queries": len(truth), "draws": draws, "outside": len(outside), "drawn": drawn}
    covered |= {"share of positive influence outside": (truth / np.maximum(scored.values, 0).sum(1)).tolist()}
    return [
        Claim("bm25 filter's recall over that of a random one", recall["bm25"] / 0.1, 1.5, "higher", rows, True),
        Claim(
            "missed positive influence lies within 2 standard errors of its estimate",
            float(np.mean(hits)),
            (0.90, 1.0),
            "inside",
            covered,
            full_only=True,
        ),
    ]


def projected_gradients(scale: Scale) -> list[Claim]:
    """Correlation with full-rank scores, time of a question, and bytes, by the directions kept."""
    scored = _scored(scale.name, scale.seed)
    sizes = scale(smoke=(4, 999), full=(8, 16, 32, 999))
    table: dict[str, dict[str, float]] = {}
    for k in sizes:
        with tempfile.TemporaryDirectory() as folder:
            kept = scored.run / "projected"
            index = scored.influence.index(
                scored.train, scored.run, k_in=k, k_out=k, dtype="float32" if k == 999 else "float16", progress=False
            )
            times = interleave({"ask": lambda: scored.influence.ask(scored.queries, scored.run)}, 3)
            found = scored.influence.ask(scored.queries, scored.run).values
            correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, scored.values, strict=True)]
            table["all" if k == 999 else str(k)] = {
                "correlation": float(np.mean(correlations)),
                "least": float(np.min(correlations)),
                "largest error": float(np.abs(found - scored.values).max() / np.abs(scored.values).max()),
                "bytes a sequence": index.num_bytes / len(index),
                "seconds a question": median(times["ask"]),
            }
            kept.rename(Path(folder) / "old")
    scoring = interleave({"score": lambda: scored.score(batch_tokens=4095, top_k=7)}, 1, warmup=0)["score"][0]
    rows = {"by directions kept": table, "full pass, seconds": scoring, "sequences": len(scored.train)}
    rows |= {"queries": len(scored.queries), "layers": len(scored.influence.layers)}
    default = table.get("16", table[str(sizes[0])])
    return [
        Claim(
            "projected 16 x 16: correlation with full-rank scores", default["correlation"], 0.9, "higher", rows, True
        ),
        Claim(
            "projected on all directions: largest error, float32", table["all"]["largest error"], 1e-5, "lower", rows
        ),
        Claim(
            "time of a full pass over that of a question to the index",
            scoring / default["seconds a question"],
            5.0,
            "higher",
            rows,
            full_only=True,
        ),
    ]


CLAIMS: list[ClaimFunction] = [token_index, filter_keeps, projected_gradients]
