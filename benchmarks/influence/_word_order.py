"""B5: a text that says a fact the other way round is worth little, in other words much; and the trap is caught.

A two-block language model over about 140 words learns 100 facts office first, in three wordings, and 100 facts name
first, in two. The study asks about 25 facts of which it knows every word and has read no statement.
"""

import tempfile
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import nn

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.influence._facts import office_model
from benchmarks.peers import has_peer
from hesse.influence import Influence, Sequence, office_world
from hesse.influence.demo import TrainingSettings, train_language_model
from hesse.influence.facts import FORWARD_TEMPLATES, REVERSE_TEMPLATES, Fact, FactWorld, word_sequences
from hesse.influence.studies import Wording, WordOrderStudy, study_word_order, word_order_texts

WORDING = Wording(FORWARD_TEMPLATES[0], "name", FORWARD_TEMPLATES[1:], REVERSE_TEMPLATES)
NUM_SEEDS = 3


def word_order(scale: Scale) -> list[Claim]:
    """Ratios to the text of the query over three worlds and models, and the study's own caution on memorised facts.

    Judged is the median over 25 facts, of each wording, in the worst of the seeds. The gradient dot product stands
    beside it.
    """
    if not has_peer("transformers"):
        raise PeerMissing('transformers: pip install "hesse[hf]"')
    rows: dict[str, Any] = {}
    unseen, cautions = [], []
    for number in range(scale(smoke=1, full=NUM_SEEDS)):
        found = _studies(scale, scale.seed + number)
        unseen.append(found["held-out"])
        cautions.append((found["held-out"].caution is None, found["memorised"].caution is not None))
        rows[f"seed {number}"] = {name: _row(study) for name, study in found.items()}
    medians = np.stack([study.medians()[0] for study in unseen])
    kinds = unseen[0].kinds
    flipped, paraphrase = (_columns(medians, kinds, word) for word in ("flipped", "paraphrase"))
    name = _columns(medians, kinds, "swapped name")
    rows["medians over all facts"] = _pooled(unseen, scale.seed)
    right = [quiet and loud for quiet, loud in cautions]
    return [
        Claim("B5 flipped over same, worst wording and seed", float(np.abs(flipped).max()), 0.10, "lower", rows, True),
        Claim(
            "B5 paraphrase over same, worst wording and seed",
            float(paraphrase.min()),
            0.40,
            "higher",
            {"by seed": paraphrase},
            True,
        ),
        Claim(
            "B5 paraphrase minus swapped name, worst wording and seed",
            float((paraphrase - name).min()),
            0.0,
            "higher",
            {"swapped name by seed": name},
            True,
        ),
        Claim(
            "B5 the study warns on memorised facts and not on held-out ones, share of seeds",
            float(np.mean(right)),
            1.0,
            "higher",
            {"caution": rows["seed 0"]["memorised"]["caution"]},
            True,
        ),
    ]


@lru_cache(maxsize=4)
def trained_office(scale: Scale, seed: int) -> tuple[FactWorld, list[Sequence], list[Sequence], nn.Module]:
    """An office world, its sentences and questions as tokens, and a model that has read them for 45 epochs.

    Kept, since several claims ask the same model.
    """
    world = office_world(seed, **scale(smoke={"num_forward": 20, "num_reverse": 20, "num_held_out": 6}, full={}))
    sentences, questions = word_sequences(world)
    model = office_model(len(world.vocabulary), seed)
    training = TrainingSettings(epochs=scale(smoke=4, full=45), learning_rate=3e-3, weight_decay=0.0, batch_tokens=512)
    train_language_model(model, sentences, training, seed=seed, show_progress=False)
    return world, sentences, questions, model


def _studies(scale: Scale, seed: int) -> dict[str, WordOrderStudy]:
    world, sentences, _questions, model = trained_office(scale, seed)
    held_out = [fact for fact in world.facts if fact.group == "held-out"]
    forward = [fact for fact in world.facts if fact.group == "forward"][: len(held_out)]
    found = {}
    asked: dict[Any, dict[str, list[Fact]]] = {
        "ekfac": {"held-out": held_out, "memorised": forward},
        "identity": {"held-out, gradient dot": held_out},
    }
    for strategy, groups in asked.items():
        with tempfile.TemporaryDirectory() as folder:
            engine = Influence(model, strategy=strategy, seed=seed)
            engine.fit(sentences, folder, progress=False)
            for name, facts in groups.items():
                written, queries = _variants(world, facts, seed)
                found[name] = study_word_order(engine, written, queries, folder, rank=None, progress=False)
    return found


def _variants(world: FactWorld, facts: list[Fact], seed: int) -> tuple[list[Sequence], list[Sequence]]:
    fields = []
    for fact in facts:
        role, place = fact.entity.split("/")
        fields.append({"id": fact.id, "role": role, "place": place, "name": fact.value})
    texts, queries = word_order_texts(fields, WORDING, seed=seed)
    texts = [{"role": "variant", "facts": [row["fact"]], **row} for row in texts]
    written, asked = word_sequences(FactWorld(texts, facts, queries, {}, world.vocabulary))
    said = {row["id"]: {"fact": row["fact"], "kind": row["kind"]} for row in texts}
    return [replace(sequence, metadata=said[sequence.id]) for sequence in written], asked


def _columns(medians: np.ndarray, kinds: list[str], word: str) -> np.ndarray:
    return medians[:, [i for i, kind in enumerate(kinds) if kind.startswith(word)]]


def _row(study: WordOrderStudy) -> dict[str, Any]:
    median, low, high = study.medians()
    loss = study.loss_ratios
    kinds = {
        kind: {"ratio": median[i], "interval": [low[i], high[i]], "loss over same": loss[i]}
        for i, kind in enumerate(study.kinds)
    }
    return {"kinds": kinds, "median loss of same, nats": np.median(study.losses[:, 0]), "caution": study.caution}


def _pooled(studies: list[WordOrderStudy], seed: int) -> dict[str, Any]:
    first = studies[0]
    facts = [f"{number}/{fact}" for number, study in enumerate(studies) for fact in study.facts]
    scores, losses = (np.concatenate([getattr(study, part) for study in studies]) for part in ("scores", "losses"))
    return _row(WordOrderStudy(facts, first.kinds, scores, losses, seed))


CLAIMS = [word_order]
