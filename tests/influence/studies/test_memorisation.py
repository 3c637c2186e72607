"""What a completion shares, letter by letter, with its proponents."""

import difflib
import json

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import open_run
from hesse.influence.studies import study_memorisation
from hesse.influence.studies.memorisation import longest_common_run


def test_longest_run_is_that_of_difflib():
    """Oracle: difflib's longest matching block, on random words of a small vocabulary."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        first, second = (rng.choice(list("abcd"), rng.integers(0, 25)).tolist() for _ in range(2))
        wanted = difflib.SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size
        assert longest_common_run(first, second) == wanted


def test_a_planted_copy_is_found(run_folder):
    """Oracle: the completion " the flute" stands in the rows that say so, whatever their white space."""
    run = open_run(run_folder)
    study = study_memorisation(run, k=60, min_words=2)
    query = next(q for q in study.queries if q.query == "q0")
    ranked = {item.id for item in run.scores.topk("q0", 60)}
    wanted = {row for row in ("row0", "row2", "row4") if row in ranked}
    assert wanted
    assert wanted == {copy.row for copy in query.copies if copy.row.startswith("row")}
    # row1 says "a horn plays", row3 "rain on the roof"
    assert all((copy.words, copy.text) == (2, "the flute") for copy in query.copies)
    assert (query.flagged, query.covered, query.threshold) == (True, 1.0, 2)
    assert json.loads(json.dumps(study.to_dict(), allow_nan=False))["queries"][0]["flagged"] is True
    from matplotlib.figure import Figure

    axes = study.plot(Figure().subplots())
    assert [patch.get_width() for patch in axes.patches] == [q.covered for q in study.queries]


def test_a_short_completion_must_be_found_whole(run_folder):
    """Oracle: the threshold is the smaller of min_words and the completion's length."""
    query = study_memorisation(open_run(run_folder), min_words=8).queries[0]
    assert (query.num_words, query.threshold) == (2, 2)
    with pytest.raises(ArgumentError, match="min_words"):
        study_memorisation(open_run(run_folder), min_words=0)
