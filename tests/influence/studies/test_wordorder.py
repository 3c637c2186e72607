"""Word order: the variants that are written, their scores, and the trap of memorised facts."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.influence._reliability import memory_folder
from hesse.errors import ArgumentError, NumericalError
from hesse.influence import Influence, Sequence, open_scores
from hesse.influence.studies import Wording, WordOrderStudy, study_word_order, word_order_texts
from tests.influence._tiny import alone, gpt2, tokens

WORDING = Wording(
    "the {role} of {place} is {name} .", "name", ("in {place} {name} is {role}",), ("{name} is the {role} of {place}",)
)
FACTS = [
    {"id": "a", "role": "mayor", "place": "Ash", "name": "Ann Ox"},
    {"id": "b", "role": "judge", "place": "Elm", "name": "Bob Yew"},
]


def test_variants_of_two_facts():
    """Oracle: written out by hand; with two facts there is no choice of the other."""
    rows, queries = word_order_texts(FACTS, WORDING)
    assert [(q.id, q.prompt, q.completion) for q in queries] == [
        ("a", "the mayor of Ash is", " Ann Ox"),
        ("b", "the judge of Elm is", " Bob Yew"),
    ]
    assert {row["kind"]: row["text"] for row in rows if row["fact"] == "a"} == {
        "same": "the mayor of Ash is Ann Ox .",
        "paraphrase 1": "in Ash Ann Ox is mayor",
        "flipped 1": "Ann Ox is the mayor of Ash",
        "swapped role": "the judge of Ash is Ann Ox .",
        "swapped place": "the mayor of Elm is Ann Ox .",
        "swapped name": "the mayor of Ash is Bob Yew .",
        "completion only": "Ann Ox",
        "prompt only": "the mayor of Ash is",
        "unrelated": "the judge of Elm is Bob Yew .",
    }
    assert len({row["id"] for row in rows}) == len(rows) == 18


def test_kinds_that_the_facts_do_not_allow_are_left_out():
    """Oracle: facts that share a role have nothing to swap it with, and none is unrelated to another."""
    rows, _queries = word_order_texts([{**fact, "role": "poet"} for fact in FACTS], WORDING)
    kinds = {row["kind"] for row in rows}
    assert "swapped role" not in kinds
    assert "unrelated" not in kinds
    assert "swapped name" in kinds
    chosen, _queries = word_order_texts(FACTS, dataclasses.replace(WORDING, swap=("place",)))
    assert {row["kind"] for row in chosen if row["kind"].startswith("swapped")} == {"swapped place"}


def test_others_differ_and_depend_on_the_seed_alone():
    """Oracle: the fields of the facts, parsed back from the texts."""
    facts = [{"role": f"r{i % 3}", "place": f"p{i % 4}", "name": f"n{i}"} for i in range(12)]
    rows, _queries = word_order_texts(facts, WORDING, seed=3)
    assert rows == word_order_texts(facts, WORDING, seed=3)[0]
    assert rows != word_order_texts(facts, WORDING, seed=4)[0]
    for row in rows:
        words, own = row["text"].split(), facts[int(row["fact"])]
        if row["kind"].startswith("swapped"):
            found = {"role": words[1], "place": words[3], "name": words[5]}
            assert [key for key in own if found[key] != own[key]] == [row["kind"].removeprefix("swapped ")]
        elif row["kind"] == "unrelated":
            assert not {words[1], words[3], words[5]} & set(own.values())


@pytest.fixture(scope="module")
def studied():
    """Three variants of four facts, random tokens, and a run whose latest scores are of something else."""
    with memory_folder() as folder:
        influence = Influence(gpt2(layers=2), fisher="empirical")
        influence.fit(tokens(12), folder, progress=False)
        influence.score(tokens(2, seed=4), tokens(5), folder, rank=None, progress=False)
        latest = open_scores(folder).folder
        items = tokens(12, seed=7, low=4)
        rows = []
        for i, item in enumerate(items):
            fact, kind = f"f{i % 4}", ("same", "flipped 1", "completion only")[i // 4]
            ids = np.array(item["input_ids"])
            labels = np.where(np.arange(len(ids)) > 0, ids, -100)
            rows.append(
                Sequence(f"{fact}/{kind}", f"{fact}/{kind}", ids, labels, metadata={"fact": fact, "kind": kind})
            )
        queries = [{"id": f"f{i}", "input_ids": t["input_ids"]} for i, t in enumerate(tokens(4, seed=9))]
        queries = [Sequence(q["id"], q["id"], np.array(q["input_ids"]), np.array(q["input_ids"])) for q in queries]
        study = study_word_order(influence, rows, queries, folder, rank=None, batch_tokens=16, progress=False)
        yield influence, folder, rows, queries, study, latest


def test_scores_are_those_of_the_engine(studied):
    """Oracle: each variant scored alone by `Influence.score`."""
    influence, folder, rows, queries, study, _latest = studied
    assert study.kinds == ["same", "flipped 1", "completion only"]
    for n, row in enumerate(rows):
        single = influence.score(queries, [row], folder, rank=None, progress=False)
        np.testing.assert_allclose(study.scores[n % 4, n // 4], single.values[n % 4, 0], rtol=1e-8, atol=1e-12)


def test_losses_are_those_of_single_sequences(studied):
    """Oracle: the loss of an unpadded batch of one."""
    influence, _folder, rows, _queries, study, _latest = studied
    for n, row in enumerate(rows):
        batch = alone({"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()})
        wanted = float(influence.loss(influence.model, batch).per_token.detach().sum())
        assert study.losses[n % 4, n // 4] == pytest.approx(wanted, rel=1e-10)


def test_the_run_keeps_its_latest_scores(studied):
    """Oracle: the question that was asked before the study, which is what `top` shows."""
    influence, folder, rows, queries, _study, _latest = studied
    before = influence.score(tokens(2, seed=4), tokens(5), folder, rank=None, progress=False).folder
    study_word_order(influence, rows, queries, folder, rank=None, progress=False)
    assert open_scores(folder).folder == before == studied[5]


def made(scores, losses, kinds=("same", "flipped 1", "completion only")):
    return WordOrderStudy([f"f{i}" for i in range(len(scores))], list(kinds), np.array(scores), np.array(losses), 0)


def test_medians_and_their_interval():
    """Oracle: ratios that are the same for every fact have no spread; medians by hand where they differ."""
    study = made([[1.0, 0.5, 0.1], [2.0, 1.0, 0.2], [4.0, 2.0, 0.4]], np.full((3, 3), 6.0))
    for part in study.medians():
        np.testing.assert_allclose(part, [1, 0.5, 0.1])
    uneven = made([[1.0, 0.2, 0], [2.0, 1.0, 0], [1.0, 0.9, 0]], np.full((3, 3), 6.0))
    median, low, high = uneven.medians()
    assert median[1] == 0.5
    assert (low[1], high[1]) == (0.2, 0.9)


def test_the_trap_is_caught():
    """Oracle: losses twice apart and no more pass; fragments are shorter and do not count; a known text does not."""
    scores = [[1.0, 0.5, 0.1]] * 3
    assert made(scores, [[6.0, 12.0, 1.0]] * 3).caution is None
    assert made(scores, [[6.0, 3.0, 100.0]] * 3).caution is None
    caught = made(scores, [[0.01, 9.0, 3.0]] * 3)
    assert "'flipped 1' has 900 times the loss" in caught.caution
    assert "memorised" in caught.caution
    assert "2 of 3 facts" in made([[-1.0, 1, 1], [-2.0, 1, 1], [1.0, 1, 1]], [[6.0, 6.0, 1.0]] * 3).caution
    found = json.loads(json.dumps(caught.to_dict(), allow_nan=False))
    assert found["caution"] == caught.caution
    assert found["kinds"][1]["loss_ratio"] == pytest.approx(900)
    from matplotlib.figure import Figure

    assert "not to be trusted" in caught.plot(Figure().subplots()).get_title()
    axes = made(scores, [[6.0, 6.0, 1.0]] * 3).plot(Figure().subplots())
    assert axes.get_title() == ""
    np.testing.assert_allclose(axes.collections[0].get_offsets()[:, 0], [1, 0.5, 0.1])


def test_bad_input_is_named(studied):
    """Oracle: the error taxonomy."""
    influence, folder, rows, queries, _study, _latest = studied
    for call, message in [
        (lambda: Wording("{name} rules", "name"), "comes first"),
        (lambda: Wording("who rules", "name"), "expected a template"),
        (lambda: Wording("here {name} rules", "name", swap=("town",)), "swap"),
        (lambda: Wording("here {name} rules", "name", ("{name",)), "is no template"),
        (lambda: Wording("here {name} rules", "name", flipped=("{} rules",)), "name every field"),
        (lambda: word_order_texts(FACTS[:1], WORDING), "at least two"),
        (lambda: word_order_texts([FACTS[0], {"role": "x"}], WORDING), "number 1 has no 'place'"),
        (lambda: word_order_texts([FACTS[0], FACTS[0]], WORDING), "occurs twice"),
        (lambda: study_word_order(influence, rows[:-1], queries, folder), "has no 'completion only'"),
        (lambda: study_word_order(influence, rows[4:8], queries, folder), "expected kind 'same'"),
        (lambda: study_word_order(influence, queries, queries, folder), "does not say which"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            call()
    mute = [dataclasses.replace(row, labels=np.full(len(row), -100)) if "same" in row.id else row for row in rows]
    with pytest.raises(NumericalError, match="'f0' scores 0"):
        study_word_order(influence, mute, queries, folder, rank=None, progress=False)
