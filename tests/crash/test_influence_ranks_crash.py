"""kill -9 of a job of several ranks, which goes on with another number of them."""

import pytest

from benchmarks._claims import Scale
from benchmarks.influence._two_processes import resumed_on_another_world_size

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.slow
def test_killed_at_random_moments():
    """Oracle: the scores of one uninterrupted process, to 1e-10 in float64; every file is as its manifest says."""
    claim = resumed_on_another_world_size(Scale("smoke", 11))
    assert claim.rows["kills"] >= 3
    assert claim.rows["ranks before and after"]
    assert claim.measured is not None
    assert claim.measured <= 1e-10
