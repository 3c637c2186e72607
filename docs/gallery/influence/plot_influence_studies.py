"""
Thin, deep, one way round: four studies of what a model learns from
====================================================================

The demo's small model has read invented facts in English prose. Four questions about its answers: how thinly is
influence spread, in which layers does it sit, does a text help that says a fact the other way round, and what would a
lexical filter have missed? Each is one call here and one command, ``hesse influence tail|layers|wordorder|coverage``.
"""

# %%
# A model that has read some facts
# --------------------------------
# A quarter of the demo's world, so that the page is quick. All its questions that the model answers are traced.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from hesse.influence import Influence, keep_corpus, open_run, prose_world, tokenize_query, tokenize_rows
from hesse.influence.demo import DemoSettings, TrainingSettings, prepare_tiny, recalled
from hesse.influence.studies import (
    Wording,
    study_coverage,
    study_layers,
    study_tail,
    study_word_order,
    word_order_texts,
)

folder = tempfile.TemporaryDirectory()
settings = DemoSettings(
    num_people=24,
    num_towns=8,
    num_companies=6,
    num_texts=30,
    width=96,
    hidden=384,
    num_layers=4,
    num_heads=6,
    training=TrainingSettings(epochs=14, learning_rate=3e-3, warm_up=20),
)
stage = prepare_tiny(settings, Path(folder.name) / "cache", show_progress=False)
right = recalled(stage.model, stage.questions)
questions = [question for question, known in zip(stage.questions, right, strict=True) if known]
print(f"{len(stage.sequences)} texts; {len(questions)} of {len(stage.questions)} questions answered right")

run_folder = Path(folder.name) / "run"
influence = Influence(stage.model)
influence.fit(stage.sequences, run_folder, progress=False)
keep_corpus(run_folder, "train", stage.sequences)
keep_corpus(run_folder, "queries", questions)
influence.score(questions, stage.sequences, run_folder, rank=None, per_layer=True, progress=False)
run = open_run(run_folder)

# %%
# How thinly is it spread?
# ------------------------
# A straight line on these scales is a power law: few texts carry much, and the many others are never quite nothing. In
# so small a world one more copy is no small change, so trust the shape of the curve here, not the size of the numbers.

tail = study_tail(run.scores)
shares = np.array([query.share_of_top for query in tail.queries])
halves = np.array([query.num_for_half for query in tail.queries])
print(f"top 1 % of the proponents: {100 * shares.mean():.0f} % of the positive influence, on average over questions")
print(f"half of it: {np.median(halves):.0f} of {tail.queries[0].num_rows} texts, for the median question")

# %%
# In which layers?
# ----------------
# Means over the 20 strongest texts, by the relation that is asked for. They are shares of a sum, not what cutting a
# layer out would do.

relation = {fact.id: fact.relation for fact in stage.world.facts}
tags = {question.id: relation[question.metadata["fact"]] for question in questions}
layers = study_layers(run.scores, k=20, tags=tags)
for tag, share in layers.by_tag().items():
    print(f"{tag:12s} block shares {np.round(share, 2)}")

# %%
# The other way round
# -------------------
# Of invented people that the model has never read about. Every variant is scored as if it were one more training text.
# Then the same of people whose birthplace it was taught: the text of the question is known, hardly any gradient is left
# of it, and ratios to it mean nothing. The study notices. (A town alone is one token with nothing before it to predict
# it from: "completion only" scores nothing here.)

wording = Wording(
    "{name} was born in {town}.",
    "town",
    paraphrases=("{name} comes from {town}.", "{name} grew up in {town}."),
    flipped=("{town} is where {name} was born.", "In {town} {name} was born."),
)


def births(world):
    return [
        {"id": fact.id, "name": fact.entity, "town": fact.value}
        for fact in world.facts
        if fact.relation == "birthplace"
    ]


def word_order(facts):
    rows, queries = word_order_texts(facts, wording)
    texts = tokenize_rows(rows, stage.tokenizer, 64)
    asked = [tokenize_query(query, stage.tokenizer, 64) for query in queries]
    return study_word_order(influence, texts, asked, run_folder, rank=None, progress=False)


taught = {fact.entity for fact in stage.world.facts}
strangers = [fact for fact in births(prose_world(7)) if fact["name"] not in taught][:20]
unseen, memorised = word_order(strangers), word_order(births(stage.world))
for kind in unseen.to_dict()["kinds"]:
    print(
        f"{kind['kind']:16s} {kind['ratio']:+.2f} ({kind['low']:+.2f} to {kind['high']:+.2f})  loss {kind['loss']:.1f}"
    )
print("strangers:", unseen.caution)
print("taught:   ", memorised.caution)

# %%
# What a filter misses
# --------------------
# Searching by influence is dear, so candidates are often chosen by shared words first. These are the strongest 30 texts
# of each question: which of them would have been candidates?

coverage = study_coverage(run, k=30)
mean = coverage.mean()
place = int(np.argmin(np.abs(coverage.sizes - coverage.num_rows / 10)))
print(f"of {coverage.sizes[place]} texts: BM25 keeps {mean['bm25'][place]:.2f}, chance {mean['random'][place]:.2f}")

# %%
# All four
# --------

figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
study_tail(run.scores, queries=run.scores.query_ids[:4]).plot(axes[0, 0])
layers.plot(axes[0, 1])
unseen.plot(axes[1, 0])
coverage.plot(axes[1, 1])
for axis, title in zip(
    axes.flat, ("how thinly spread", "in which layers", "the other way round", "what a filter keeps"), strict=True
):
    axis.set_title(title, loc="left", fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
plt.show()
folder.cleanup()
