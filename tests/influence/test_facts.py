from collections import Counter

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence.facts import FORWARD_TEMPLATES, office_world, prose_world, region_world, word_sequences
from hesse.influence.lexical import bm25_scores
from hesse.influence.retrieval import recall_at_k, support_mask


@pytest.fixture(scope="module")
def prose():
    return prose_world(3, texts=["A paragraph of prose.", "Another one."])


def texts_of(world):
    return {row["id"]: row["text"] for row in world.rows}


def test_every_fact_is_stated_three_times_with_entity_before_value(prose):
    """Oracle: the fact itself: its supports name the entity first and its value later; three different texts."""
    texts, facts = texts_of(prose), {fact.id: fact for fact in prose.facts}
    assert len(prose.queries) == len(prose.facts) > 250
    for query in prose.queries:
        fact = facts[query.metadata["fact"]]
        stated = [texts[name] for name in prose.supports[query.id]]
        assert len(set(stated)) == 3
        for text in stated:
            assert text.startswith(fact.entity)
            assert fact.value in text[len(fact.entity) :]


def test_questions_are_worded_as_the_data_do_not(prose):
    """Oracle: search in the texts: no row has the question's words, other entities' rows have its wording."""
    texts = list(texts_of(prose).values())
    facts = {fact.id: fact for fact in prose.facts}
    wordings = Counter()
    for query in prose.queries:
        assert not any(query.prompt + query.completion in text for text in texts)
        wordings[query.prompt.removeprefix(facts[query.metadata["fact"]].entity)] += 1
    for wording in wordings:
        assert any(wording in text for text in texts)


def test_lures_share_words_but_not_the_fact(prose):
    """Oracle: counts over the rows: the entity with the right value, with a wrong one, and the value
    alone."""
    lures = [row["text"] for row in prose.rows if row["role"] == "lure"]
    both = sum(any(f.entity in text and f.value in text for text in lures) for f in prose.facts)
    entity = sum(any(f.entity in text and f.value not in text for text in lures) for f in prose.facts)
    value = sum(any(f.entity not in text and f.value in text for text in lures) for f in prose.facts)
    assert 0.3 <= both / len(prose.facts) <= 0.8
    assert entity / len(prose.facts) >= 0.8
    assert value == len(prose.facts)


def test_values_and_names_are_shared_between_entities(prose):
    """Oracle: counts over the facts."""
    values = Counter((fact.relation, fact.value) for fact in prose.facts)
    assert np.mean([values[fact.relation, fact.value] > 1 for fact in prose.facts]) > 0.8
    last_names = Counter({fact.entity for fact in prose.facts if fact.relation == "trade"})
    assert len({name.split()[1] for name in last_names}) < len(last_names)


def test_the_given_prose_is_in_the_world_once(prose):
    """Oracle: the texts handed in."""
    assert sorted(r["text"] for r in prose.rows if r["role"] == "text") == ["A paragraph of prose.", "Another one."]


@pytest.mark.parametrize("make", [prose_world, office_world, region_world])
def test_the_seed_decides(make):
    """Oracle: invariance under repetition, and a change with the seed."""
    assert make(5) == make(5)
    assert make(5).rows != make(6).rows


def test_word_match_alone_is_neither_useless_nor_sufficient(prose):
    """Oracle: BM25 over words; at random 0.002, and a perfect score would mean that the lures do not mislead."""
    numbers: dict[str, int] = {}

    def tokens(text):
        return np.array([numbers.setdefault(word, len(numbers)) for word in text.lower().strip(".").split()])

    scores = bm25_scores(
        [tokens(q.prompt + q.completion) for q in prose.queries], [tokens(r["text"]) for r in prose.rows]
    )
    mask = support_mask(prose.supports, [q.id for q in prose.queries], [r["id"] for r in prose.rows])
    assert 0.2 <= recall_at_k(scores, mask).mean() <= 0.8


def test_office_groups_are_stated_as_they_say():
    """Oracle: the templates: 3 statements of a forward fact, 2 of a reverse one, 5 of both, none of a held-out one."""
    world = office_world(1, num_forward=10, num_reverse=8, num_both=6, num_held_out=4)
    stated = Counter(fact for row in world.rows for fact in row["facts"])
    expected = {"forward": 3, "reverse": 2, "both": 5, "held-out": 0}
    assert all(stated[fact.id] == expected[fact.group] for fact in world.facts)
    assert all(len(world.supports[q.id]) == stated[q.metadata["fact"]] for q in world.queries)
    assert len(world.queries) == 24
    words = set(world.vocabulary)
    held_out = next(fact for fact in world.facts if fact.group == "held-out")
    role, place = held_out.entity.split("/")
    asked = FORWARD_TEMPLATES[0].format(role=role, place=place, name=held_out.value)
    assert set(asked.split()) <= words


def test_vocabulary_has_the_size_of_the_study():
    """Oracle: 16 roles + 40 places + 30 + 30 names + the templates' words + padding."""
    assert 120 <= len(office_world(0).vocabulary) <= 140


def test_paraphrased_questions_cannot_be_matched_by_words():
    """Oracle: search: a question's word for the role is in none of its supports, its place and name in rows of three
    offices; so BM25 stays far from a full recall."""
    world = office_world(2, num_forward=60, num_reverse=0, num_both=60, num_held_out=0, split="paraphrase")
    texts = [row["text"] for row in world.rows]
    by_id = texts_of(world)
    for query in world.queries:
        _, role, _, place, _ = query.prompt.split()
        assert not any(role in by_id[name].split() for name in world.supports[query.id])
        assert sum(place in text and query.completion in text for text in texts) >= 3
    sequences, queries = word_sequences(world)
    scores = bm25_scores([q.input_ids for q in queries], [s.input_ids for s in sequences])
    mask = support_mask(world.supports, [q.id for q in queries], [s.id for s in sequences])
    assert recall_at_k(scores, mask).mean() < 0.6


def test_two_hop_questions_are_supported_by_both_hops():
    """Oracle: search: the two facts lead from town to answer, and no sentence about a town of the region says it."""
    world = region_world(2, num_towns=12, num_regions=5, num_held_out=3)
    texts, facts = texts_of(world), {fact.id: fact for fact in world.facts}
    region_of = {fact.entity: fact.value for fact in world.facts if fact.relation == "lies in"}
    assert len(world.queries) == 36
    assert Counter(row["role"] for row in world.rows) == {"support": 5 * 8 * 3 + 12 * 3, "composed": 12 * 5}
    for query in world.queries:
        lies, custom = facts[query.metadata["fact"]], facts[query.metadata["second"]]
        assert custom.entity == lies.value
        assert query.prompt == f"in {lies.entity} the {custom.relation} is the"
        assert query.completion == f" {custom.value}"
        stated = [texts[name].split() for name in world.supports[query.id]]
        assert [lies.entity in words for words in stated].count(True) == 3
        assert [{custom.relation, custom.value} < set(words) for words in stated].count(True) == 3
        for text in texts.values():
            words = text.split()
            told_of = {region_of[word] for word in words if word in region_of}
            assert not (custom.relation in words and custom.entity in told_of)


def test_two_hop_questions_cannot_be_matched_by_words():
    """Oracle: BM25, which the town and the value of a question lead to other sentences."""
    world = region_world(3)
    sequences, queries = word_sequences(world)
    scores = bm25_scores([q.input_ids for q in queries], [s.input_ids for s in sequences])
    mask = support_mask(world.supports, [q.id for q in queries], [s.id for s in sequences])
    assert recall_at_k(scores, mask).mean() < 0.5
    assert 90 <= len(world.vocabulary) <= 120


def test_word_sequences_supervise_the_completion():
    """Oracle: decoding with the vocabulary gives the text; labels are the completion's words, offsets its
    characters."""
    world = office_world(0, num_forward=5, num_reverse=5, num_held_out=0)
    sequences, queries = word_sequences(world)
    for sequence, row in zip(sequences, world.rows, strict=True):
        assert " ".join(world.vocabulary[i] for i in sequence.input_ids) == row["text"]
        assert sequence.labels[0] == -100
        assert (sequence.labels[1:] == sequence.input_ids[1:]).all()
        assert sequence.offsets is not None
        assert [row["text"][a:b] for a, b in sequence.offsets] == row["text"].split()
    for sequence, query in zip(queries, world.queries, strict=True):
        answer = [world.vocabulary[i] for i in sequence.labels if i != -100]
        assert answer == query.completion.split()


def test_refuses_impossible_worlds():
    """Oracle: the documented errors, each naming its argument."""
    with pytest.raises(ArgumentError, match="town"):
        prose_world(num_towns=25)
    with pytest.raises(ArgumentError, match="no entity"):
        prose_world(num_people=0, num_towns=0, num_companies=0)
    with pytest.raises(ArgumentError, match="num_held_out"):
        office_world(num_held_out=-1)
    with pytest.raises(ArgumentError, match="1 to 640"):
        office_world(num_forward=700)
    with pytest.raises(ArgumentError, match="split"):
        office_world(split="two-hop")
    for name, value in (("num_towns", 41), ("num_regions", 0), ("num_held_out", 8)):
        with pytest.raises(ArgumentError, match=name):
            region_world(**{name: value})
    with pytest.raises(ArgumentError, match="vocabulary"):
        word_sequences(prose_world(num_people=1, num_towns=0, num_companies=0))
