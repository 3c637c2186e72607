"""The correlation that is reported of a projected index."""

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import Influence
from tests.influence import _tiny


def test_the_sample_correlates_as_the_whole_does(tmp_path):
    """Oracle: `numpy.corrcoef` of all scores, the sample being all rows; with all eigenvectors it is 1."""
    influence, train = Influence(_tiny.gpt2(), fisher="empirical"), _tiny.tokens(30, seed=2)
    queries = _tiny.tokens(3, seed=9)
    run = tmp_path / "run"
    influence.fit(train, run, progress=False)
    full = influence.score(queries, train, run, rank=None, progress=False).values
    influence.index(train, run, k_in=2, k_out=2, dtype="float64", progress=False)
    found = influence.ask(queries, run, check=train, sample=500)
    wanted = [np.corrcoef(full[q], found.values[q])[0, 1] for q in range(3)]
    np.testing.assert_allclose(found.agreement, wanted, rtol=1e-9)
    with pytest.raises(ArgumentError, match="sample"):
        influence.ask(queries, run, check=train, sample=2)
    with pytest.raises(ArgumentError, match="check"):
        influence.ask(queries, run, check=train[:-1])
    (run / "projected").rename(tmp_path / "old")
    influence.index(train, run, k_in=50, k_out=50, dtype="float64", progress=False)
    np.testing.assert_allclose(influence.ask(queries, run, check=train, sample=9).agreement, 1.0, rtol=1e-9)
