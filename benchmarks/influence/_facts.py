"""B8: does the tracing find the texts that state a fact the model has learned? Beside gradient dot product and BM25.

Two worlds. "Offices": formulas over about 140 words, memorised for long by a two-block model, where supporting texts
can be counted. The demo's prose: invented people, towns and firms in English sentences among lures, three seeds.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.peers import has_peer
from hesse.influence import Influence, Sequence, bm25_scores, office_world, recall_at_k
from hesse.influence.demo import DemoSettings, TrainingSettings, prepare_tiny, recalled, train_language_model
from hesse.influence.demo_answers import Asking
from hesse.influence.facts import word_sequences
from hesse.influence.retrieval import support_mask

METHODS = ("ekfac", "identity", "bm25")


def recalls(
    model: torch.nn.Module, sequences: list[Sequence], queries: list[Sequence], supports: Any, modules: Any, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Recall@3 of every question the model answers right, by method; numbers of questions beside it."""
    right = recalled(model, queries)
    mask = support_mask(supports, [q.id for q in queries], [s.id for s in sequences])
    scores = {"bm25": bm25_scores([q.input_ids for q in queries], [s.input_ids for s in sequences])}
    for strategy in ("ekfac", "identity"):
        with tempfile.TemporaryDirectory() as folder:
            engine = Influence(model, strategy=strategy, modules=modules, seed=seed)
            engine.fit(sequences, folder, progress=False)
            scores[strategy] = np.array(engine.score(queries, sequences, folder, rank=None, progress=False).values)
    return {name: recall_at_k(scores[name], mask)[right] for name in METHODS} | {"answered": right}


def offices(scale: Scale) -> list[Claim]:
    """Memorised facts in formulas, and two splits in which the words of the question do not lead to the supporting
    texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _require_transformers()
    claims = []
    for split in ("direct", "paraphrase", "two-hop"):
        numbers = {} if split == "direct" else {"num_forward": 60, "num_reverse": 0, "num_both": 120}
        world = office_world(scale.seed, split=split, **numbers)
        sequences, queries = word_sequences(world)
        torch.manual_seed(scale.seed)
        config = LlamaConfig(
            vocab_size=len(world.vocabulary),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=32,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config)
        training = TrainingSettings(
            epochs=scale(smoke=12, full=60), learning_rate=3e-3, weight_decay=0.0, batch_tokens=512
        )
        train_language_model(model, sequences, training, seed=scale.seed, show_progress=False)
        if split != "direct":
            asked = {q.id for q in world.queries if _group(world, q) == "forward"}
            queries = [q for q in queries if q.id in asked]
        found = recalls(model, sequences, queries, world.supports, "mlp", scale.seed)
        mean = {name: float(found[name].mean()) if found[name].size else float("nan") for name in METHODS}
        rows = {**mean, "questions answered": int(found["answered"].sum()), "questions": len(queries)}
        if split == "direct":
            ratio = mean["ekfac"] / max(mean["identity"], 1e-9)
            claims.append(
                Claim("B8 recall@3 of memorised facts, EK-FAC over gradient dot", ratio, 2.0, "higher", rows, True)
            )
        elif rows["questions answered"] >= 5:
            margin = mean["ekfac"] - mean["bm25"]
            claims.append(
                Claim(f"B8 recall@3 on the {split} split, EK-FAC minus BM25", margin, 0.0, "higher", rows, True)
            )
        else:
            note = "the model answers too few questions of this split for a recall: it was not judged"
            claims.append(
                Claim(f"B8 recall@3 on the {split} split, EK-FAC minus BM25", None, 0.0, "higher", rows, True, note)
            )
    return claims


def demo_world(scale: Scale) -> list[Claim]:
    """The demo's own world over three seeds: EK-FAC above both others, on average and counted by seed."""
    _require_transformers()
    seeds = [scale.seed + i for i in range(scale(smoke=1, full=3))]
    means: dict[str, list[float]] = {name: [] for name in METHODS}
    rows: dict[str, Any] = {}
    for seed in seeds:
        settings = DemoSettings(seed=seed) if scale.name == "full" else _small_demo(seed)
        with tempfile.TemporaryDirectory() as cache:
            stage = prepare_tiny(settings, Path(cache), show_progress=False)
            found = recalls(stage.model, stage.sequences, stage.questions, stage.world.supports, Asking().modules, seed)
        for name in METHODS:
            means[name].append(float(found[name].mean()))
        rows[f"seed {seed}"] = {name: means[name][-1] for name in METHODS} | {
            "answered": int(found["answered"].sum()),
            "questions": len(stage.questions),
            "sequences": len(stage.sequences),
        }
    gaps = {name: np.array(means["ekfac"]) - np.array(means[name]) for name in ("identity", "bm25")}
    return [
        Claim(
            "B8 demo world, recall@3 over gradient dot, least margin of three seeds",
            float(gaps["identity"].min()),
            0.0,
            "higher",
            rows,
            True,
        ),
        Claim(
            "B8 demo world, recall@3 over BM25, least margin of three seeds",
            float(gaps["bm25"].min()),
            0.0,
            "higher",
            rows,
            True,
        ),
    ]


def _small_demo(seed: int) -> DemoSettings:
    return DemoSettings(
        seed=seed, num_people=10, num_towns=4, num_companies=4, num_texts=40, training=TrainingSettings(epochs=6)
    )


def _group(world: Any, query: Any) -> str:
    facts = {fact.id: fact.group for fact in world.facts}
    return facts[query.metadata["fact"]]


def _require_transformers() -> None:
    if not has_peer("transformers"):
        raise PeerMissing('transformers: pip install "hesse[hf]"')


CLAIMS = [offices, demo_world]
