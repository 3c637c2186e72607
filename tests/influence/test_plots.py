"""Pictures take axes and return them, and draw the numbers of the scores."""

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import (
    load_factors,
    open_scores,
    plot_layers,
    plot_pair,
    plot_scores,
    plot_spectra,
)
from hesse.influence.run import open_folder


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.fixture(scope="module")
def scores(run_folder):
    return open_scores(run_folder)


def test_scores_by_rank(scores, axes):
    """Oracle: the sorted scores."""
    assert plot_scores(scores, "q0", ax=axes) is axes
    values = scores.ranked_by("q0")
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.sort(values[values > 0])[::-1])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.sort(-values[values < 0])[::-1])


def test_layers_of_the_strongest(scores, axes):
    """Oracle: the terms, row by row."""
    assert plot_layers(scores, "q0", k=4, sign=-1, ax=axes) is axes
    drawn = np.asarray(axes.images[0].get_array())
    wanted = [scores.layer_terms("q0", item.id) for item in scores.topk("q0", 4, -1)]
    np.testing.assert_allclose(drawn, np.stack(wanted))


def test_a_pair_and_spectra(scores, axes, run_folder):
    """Oracle: the matrix of terms; the sorted eigenvalues."""
    assert plot_pair(scores, "q0", "row0", ax=axes) is axes
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), scores.pairs("q0", "row0"))
    from matplotlib.figure import Figure

    factors = load_factors(run_folder, open_folder(run_folder).manifest)
    other = plot_spectra(factors, ax=Figure().subplots())
    name = next(iter(factors.layers))
    wanted = np.sort(factors.eigenvalues(name).flatten().numpy())[::-1]
    np.testing.assert_allclose(other.lines[0].get_ydata(), wanted[wanted > 0])


def test_what_was_not_kept_is_named(run_folder, axes):
    """Oracle: the error taxonomy."""
    run = open_folder(run_folder)
    earlier = [name for name, state in run.manifest.stages.items() if state.get("per_token") is False]
    plain = open_scores(run_folder, earlier[0].removeprefix("score:"))
    with pytest.raises(ArgumentError, match="per_layer=True"):
        plot_layers(plain, 0, ax=axes)
    with pytest.raises(ArgumentError, match="per_query_token=True"):
        plot_pair(plain, 0, "row0", ax=axes)
    with pytest.raises(ArgumentError, match="no 'nobody'"):
        plot_scores(plain, "nobody", ax=axes)


def test_frame_holds_every_pair(scores):
    """Oracle: the matrix."""
    pytest.importorskip("pandas")
    frame = scores.to_dataframe()
    assert list(frame.columns) == ["query_id", "train_id", "score"]
    wide = frame.pivot_table(index="query_id", columns="train_id", values="score", sort=False)
    np.testing.assert_allclose(wide.loc[scores.query_ids, scores.train_ids], scores.values)
