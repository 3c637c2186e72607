"""The strongest rows, their copies, and what sets them apart."""

import json
import math

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import open_run
from hesse.influence.studies import browse, contrast_words
from hesse.influence.studies._duplicates import duplicate_groups, minhash_signatures
from tests.influence.studies._planted import replanted


def shingles(text):
    words = text.split()
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_signatures_estimate_the_resemblance():
    """Oracle: resemblance of the sets themselves, within four standard errors; unbiased over 200 pairs."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        words = rng.choice(500, 60).astype(str)
        other = words.copy()
        place = rng.integers(0, 60, rng.integers(0, 12))
        other[place] = rng.choice(500, len(place)).astype(str)
        first, second = " ".join(words), " ".join(other)
        own, theirs = shingles(first), shingles(second)
        exact = len(own & theirs) / len(own | theirs)
        signatures = minhash_signatures([first, second])
        estimate = (signatures[0] == signatures[1]).mean()
        assert abs(estimate - exact) <= 4 * math.sqrt(max(exact * (1 - exact), 0.01) / 128) + 1e-9
        errors.append(estimate - exact)
    assert abs(np.mean(errors)) <= 3 * np.std(errors) / math.sqrt(len(errors))


def test_groups_of_near_copies():
    """Oracle: texts that differ in white space and case, in one word of thirty, and not at all alike."""
    base = " ".join(f"w{i}" for i in range(60))
    texts = [
        base,
        "something else entirely",
        f"  {base.upper()} ",
        base.replace("w59", "end"),
        "Something  else entirely",
    ]
    assert duplicate_groups(texts, 0.8).tolist() == [0, 1, 0, 0, 1]
    assert duplicate_groups(["a b c d"] * 3, 1.0).tolist() == [0, 0, 0]
    assert duplicate_groups([]).tolist() == []
    with pytest.raises(ArgumentError, match="threshold"):
        duplicate_groups(texts, 0)


def test_contrast_is_that_of_a_loop_and_antisymmetric():
    """Oracle: the formula, word by word; exchanging the groups turns every sign."""
    top, sample = ["the flute plays", "the flute sings"], ["the rain falls", "the flute rests", "rain on roofs"]
    found = {word.word: word for word in contrast_words(top, sample)}
    counts = {w: (sum(w in t.split() for t in top), sum(w in t.split() for t in sample)) for w in found}
    n, m = (sum(c[i] for c in counts.values()) for i in (0, 1))
    for word, (y, other) in counts.items():
        prior = (y + other) / (n + m) * len(counts)
        delta = math.log((y + prior) / (n + len(counts) - y - prior))
        delta -= math.log((other + prior) / (m + len(counts) - other - prior))
        assert found[word].z == pytest.approx(delta / math.sqrt(1 / (y + prior) + 1 / (other + prior)))
        assert (found[word].in_top, found[word].in_sample) == (y, other)
    back = {word.word: word.z for word in contrast_words(sample, top)}
    for word, own in found.items():
        assert back[word] == pytest.approx(-own.z)
    assert contrast_words([], []) == []
    assert contrast_words(["word"], ["word"])[0].z == 0


def test_copies_collapse_and_what_is_common_is_counted(run_folder):
    """Oracle: scores planted on five rows, of which three say the same."""
    run = open_run(run_folder)
    values = np.full_like(run.scores.values, -1.0)
    rows = [run.scores.row_places[f"row{i}"] for i in range(5)]
    values[0, rows] = [5, 4, 3, 2, 1]
    found = browse(replanted(run, values), "q0", k=10, sample=10_000)
    assert [(item.row, item.copies) for item in found.listed] == [
        ("row0", ["row2", "row4"]),
        ("row1", []),
        ("row3", []),
    ]
    assert (found.listed[0].score, found.listed[0].group_score) == (5, 9)
    assert [item.rank for item in found.listed] == [1, 2, 4]
    assert "note" not in found.metadata  # a value of its own for nearly every row
    kinds = {value: (top, everywhere) for value, top, everywhere in found.metadata["kind"]}
    assert kinds["plain"][0] == 5
    assert kinds["odd"][0] == 0
    assert found.words[0].word in ("flute", "plays")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["id"] == "q0"
    from matplotlib.figure import Figure

    axes = found.plot(Figure().subplots())
    np.testing.assert_allclose([patch.get_width() for patch in axes.patches], [word.z for word in found.words])


def test_bad_input_is_named(run_folder):
    """Oracle: the error taxonomy."""
    run = open_run(run_folder)
    for options, message in [
        ({"query": "who"}, "'who'"),
        ({"query": 9}, "expected 0 to 1"),
        ({"k": 0}, "k >= 1"),
        ({"sample": 0}, "sample >= 1"),
        ({"duplicates": 2.0}, "threshold"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            browse(run, **options)
