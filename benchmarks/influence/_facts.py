"""B8: does the tracing find the texts that state a fact the model has learned? Beside gradient dot product and BM25.

Three worlds. "Offices" and "regions": formulas over about 140 words, learned by a two-block model, where supporting
texts can be counted. The demo's prose: invented people, towns and firms in English sentences among lures, three seeds.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.peers import has_peer
from hesse.influence import Influence, Sequence, bm25_scores, office_world, recall_at_k, region_world
from hesse.influence.demo import DemoSettings, TrainingSettings, prepare_tiny, recalled, train_language_model
from hesse.influence.demo_answers import Asking
from hesse.influence.facts import FactWorld, word_sequences
from hesse.influence.retrieval import support_mask

METHODS = ("ekfac", "identity", "bm25")
ANSWERED = 0.75  # share of the questions that a model must answer to be asked why


def recalls(
    model: torch.nn.Module, sequences: list[Sequence], queries: list[Sequence], supports: Any, modules: Any, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Recall@3 of every question the model answers right, by method: only those can be asked why."""
    asked = [query for query, right in zip(queries, recalled(model, queries), strict=True) if right]
    if not asked:
        return {name: np.zeros(0) for name in METHODS}
    mask = support_mask(supports, [q.id for q in asked], [s.id for s in sequences])
    scores = {"bm25": bm25_scores([q.input_ids for q in asked], [s.input_ids for s in sequences])}
    for strategy in ("ekfac", "identity"):
        with tempfile.TemporaryDirectory() as folder:
            engine = Influence(model, strategy=strategy, modules=modules, seed=seed)
            engine.fit(sequences, folder, progress=False)
            scores[strategy] = np.array(engine.score(asked, sequences, folder, rank=None, progress=False).values)
    return {name: recall_at_k(scores[name], mask) for name in METHODS}


def mean_recalls(found: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Over the questions answered; NaN if there is none."""
    return {name: float(found[name].mean()) if len(found[name]) else float("nan") for name in METHODS}


def formulas(scale: Scale) -> list[Claim]:
    """Memorised facts in formulas, and two splits in which the words of the question do not lead to the supporting
    texts: another word for the role, and a custom of a town that is stated of its region only.

    How long to train decides what can be traced: a statement known by heart has no gradient left. Memorised facts are
    those of a model trained for long. The two splits ask for what a model infers, of the least trained one, in steps of
    eight epochs, that answers three questions of four: what it answers decides, not what is traced. The recall of long
    training stands beside it.
    """
    _require_transformers()
    longest = scale(smoke=12, full=60)
    claims = []
    for split in ("direct", "paraphrase", "two-hop"):
        name = f"B8 recall@3 on the {split} split, EK-FAC minus BM25"
        world = _Formulas.of(split, scale.seed)
        long = world.means(longest)
        if split == "direct":
            ratio = long["ekfac"] / max(long["identity"], 1e-9)
            name = "B8 recall@3 of memorised facts, EK-FAC over gradient dot"
            claims.append(Claim(name, ratio, 2.0, "higher", long, True))
            continue
        if long["questions answered"] < ANSWERED * long["questions"]:
            note = "the model answers too few questions of this split however long it trains: it was not judged"
            claims.append(Claim(name, None, 0.0, "higher", long, True, note))
            continue
        lengths = (*range(8, longest, 8), longest)
        found = next(found for epochs in lengths if (found := world.means(epochs, least=ANSWERED)))
        rows = {**found, f"after {longest} epochs": long}
        claims.append(Claim(name, found["ekfac"] - found["bm25"], 0.0, "higher", rows, True))
    return claims


@dataclass(frozen=True)
class _Formulas:
    """One world of words, as tokens, and the model that learns it."""

    world: FactWorld
    sequences: list[Sequence]
    queries: list[Sequence]
    seed: int

    @classmethod
    def of(cls, split: str, seed: int) -> "_Formulas":
        if split == "two-hop":
            world = region_world(seed)
        else:
            numbers = {} if split == "direct" else {"num_forward": 60, "num_reverse": 0, "num_both": 120}
            world = office_world(seed, split=split, **numbers)
        sequences, queries = word_sequences(world)
        if split == "paraphrase":
            forward = {fact.id for fact in world.facts if fact.group == "forward"}
            queries = [query for query in queries if query.metadata["fact"] in forward]
        return cls(world, sequences, queries, seed)

    def means(self, epochs: int, least: float = 0.0) -> dict[str, Any]:
        """Mean recalls after so many epochs; nothing if the model answers less than a share ``least``."""
        model = office_model(len(self.world.vocabulary), self.seed)
        training = TrainingSettings(epochs=epochs, learning_rate=3e-3, weight_decay=0.0, batch_tokens=512)
        train_language_model(model, self.sequences, training, seed=self.seed, show_progress=False)
        answered = int(recalled(model, self.queries).sum())
        if answered < least * len(self.queries):
            return {}
        found = recalls(model, self.sequences, self.queries, self.world.supports, "mlp", self.seed)
        return {**mean_recalls(found), "epochs": epochs, "questions answered": answered, "questions": len(self.queries)}


def office_model(vocabulary: int, seed: int) -> torch.nn.Module:
    """A two-block Llama of width 64 for a world of words, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
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
    return LlamaForCausalLM(config)


def demo_world(scale: Scale) -> list[Claim]:
    """The demo's own world over three seeds, two at a time: EK-FAC above both others, on average and by seed."""
    _require_transformers()
    seeds = [scale.seed + i for i in range(scale(smoke=1, full=3))]
    settings = [DemoSettings(seed=seed) if scale.name == "full" else _small_demo(seed) for seed in seeds]
    with ProcessPoolExecutor(min(2, len(seeds)), mp_context=get_context("spawn")) as pool:
        rows = dict(zip([f"seed {seed}" for seed in seeds], pool.map(_one_demo, settings), strict=True))
    means = {name: [row[name] for row in rows.values()] for name in METHODS}
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


def _one_demo(settings: DemoSettings) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        stage = prepare_tiny(settings, Path(cache), show_progress=False)
        found = recalls(
            stage.model, stage.sequences, stage.questions, stage.world.supports, Asking().modules, settings.seed
        )
    sizes = {"questions": len(stage.questions), "sequences": len(stage.sequences)}
    return mean_recalls(found) | {"answered": len(found["ekfac"])} | sizes


def _small_demo(seed: int) -> DemoSettings:
    return DemoSettings(
        seed=seed, num_people=10, num_towns=4, num_companies=4, num_texts=40, training=TrainingSettings(epochs=6)
    )


def _require_transformers() -> None:
    if not has_peer("transformers"):
        raise PeerMissing('transformers: pip install "hesse[hf]"')


CLAIMS = [formulas, demo_world]
