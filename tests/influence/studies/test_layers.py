"""In which layers influence sits: averages of what the run holds."""

import json

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import open_scores
from hesse.influence.studies import LayerStudy, study_layers
from tests.influence.studies._planted import planted


@pytest.mark.parametrize("sign", [1, -1])
def test_shares_are_those_of_a_loop(run_folder, sign):
    """Oracle: a loop over the dense terms of the run."""
    scores = open_scores(run_folder)
    study = study_layers(scores, k=7, sign=sign)
    for q in range(len(scores.query_ids)):
        total = np.zeros(len(scores.layer_names))
        order = np.argsort(-sign * scores.values[q])[:7]
        for n in order:
            total += scores.layers[q, n] / np.abs(scores.layers[q, n]).sum()
        np.testing.assert_allclose(study.shares[q], total / 7, rtol=1e-6)
    assert study.num_rows.tolist() == [7, 7]
    assert study.layer_names == scores.layer_names


def by_hand(tags=None):
    names = ["h.0.mlp.up", "h.0.mlp.down", "h.1.mlp.up", "h.2.mlp.up", "head"]
    shares = np.array([[0.25, 0.25, 0.25, 0.0, 0.25], [1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0], [np.nan] * 5])
    return LayerStudy(["a", "b", "c", "d"], names, shares, np.array([3, 3, 3, 0]), tags)


def test_blocks_centre_and_tags_in_closed_form():
    """Oracle: sums and means done by hand."""
    study = by_hand(["x", "y", "x", "y"])
    names, shares = study.blocks()
    assert names == ["0", "1", "2", "head"]
    np.testing.assert_allclose(shares[0], [0.5, 0.25, 0, 0.25])
    np.testing.assert_allclose(study.centre()[:3], [1 / 3, 0, 1])
    assert np.isnan(study.centre()[3])
    means = study.by_tag()
    assert list(means) == ["x", "y"]
    np.testing.assert_allclose(means["x"], [0.25, 0.125, 0, 0.625])
    np.testing.assert_allclose(means["y"], [1, 0, 0, 0])
    assert list(by_hand().by_tag()) == ["all"]
    found = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert found["queries"][3] == {
        "id": "d", "tag": "y", "rows": 0, "shares": None, "block_shares": None, "centre": None,
    }  # fmt: skip


@pytest.mark.parametrize("tags", [None, ["x", "y", "x", "y"]])
def test_blocks_are_drawn_by_query_or_by_tag(tags):
    """Oracle: the shares of the blocks, or their means by tag, in the order of the labels."""
    from matplotlib.figure import Figure

    study = by_hand(tags)
    axes = study.plot(Figure().subplots())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == (["a", "b", "c", "d"] if tags is None else ["x", "y"])
    wanted = np.nan_to_num(study.blocks()[1]) if tags is None else np.stack(list(study.by_tag().values()))
    np.testing.assert_allclose(axes.images[0].get_array(), wanted)


def test_what_is_missing_is_named(run_folder):
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="per_layer=True"):
        study_layers(planted([[1.0, 2.0]]))
    scores = open_scores(run_folder)
    with pytest.raises(ArgumentError, match="tags: query"):
        study_layers(scores, tags={"q0": "x"})
    with pytest.raises(ArgumentError, match="k >= 1"):
        study_layers(scores, k=0)
