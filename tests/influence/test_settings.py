"""What is refused before any work, and what several processes must have been told alike."""

from dataclasses import dataclass, field

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence import settings
from hesse.influence.distributed import Team
from hesse.influence.engine import Influence
from hesse.influence.prefilter import Prefilter
from hesse.influence.settings import fitted_on
from tests.influence._tiny import gpt2, tokens

QUIET = {"progress": False}


@dataclass(frozen=True)
class Noted(Team):
    """Alone, but notes what it was told to agree on."""

    told: list[dict] = field(default_factory=list)

    def agree(self, values):
        self.told.append(dict(values))


def test_a_random_subset_is_drawn_once():
    """Oracle: the invariants: rising, of the size asked for, the same for the same seed, all where there are fewer."""
    chosen = fitted_on(50, 7, 3)
    assert len(chosen) == 7
    assert chosen == sorted(set(chosen)) == fitted_on(50, 7, 3) != fitted_on(50, 7, 4)
    assert fitted_on(5, 7, 3) == fitted_on(5, None, 3) == range(5)
    with pytest.raises(ArgumentError, match="max_sequences: expected >= 1, got 0"):
        fitted_on(5, 0, 3)
    with pytest.raises(ArgumentTypeError, match="max_sequences"):
        fitted_on(5, 2.5, 3)


@pytest.mark.parametrize("name", ["refine_topk", "top_k", "rank"])
def test_whole_numbers_are_asked_for(name, tmp_path):
    """Oracle: the argument in the message, before anybody looks for a run."""
    with pytest.raises(ArgumentTypeError, match=f"{name}: expected a whole number"):
        Influence(gpt2()).score(tokens(2), tokens(2), tmp_path / "none", **{name: "3"})


def test_a_second_stage_that_cannot_be_made_is_refused_first(tmp_path, monkeypatch):
    """Oracle: the argument in the message, before the run is looked for: it is needed at the very end only."""
    monkeypatch.setattr(settings, "is_sharded", lambda _model: True)
    influence = Influence(gpt2(torch.bfloat16))
    with pytest.raises(ArgumentError, match="refine_topk=0"):
        influence.score(tokens(2), tokens(2), tmp_path / "none", team=Team(0, 2))
    with pytest.raises(Exception, match="not a run"):
        influence.score(tokens(2), tokens(2), tmp_path / "none", team=Team(0, 2), refine_topk=0)


def test_processes_agree_on_all_that_names_a_question(tmp_path):
    """Oracle: the stage of the question, in which every setting that decides its answer stands."""
    influence, train = Influence(gpt2(torch.float32)), tokens(9)
    influence.fit(train, tmp_path / "run", **QUIET)
    team = Noted()
    asked = {"prefilter": Prefilter(top=3, random=1), "rank": 4, "refine_topk": 2, "units": "raw"}
    scores = influence.score(tokens(2, seed=5), train, tmp_path / "run", team=team, **asked, **QUIET)
    (told,) = team.told
    for name in ("queries", "data", "rank", "refine_topk", "units", "batch_tokens", "batch_size", "unit_size"):
        assert name in told
    assert told["prefilter"] == scores.state["prefilter"]
    influence.self_influence(train, tmp_path / "run", team=team, **QUIET)
    assert team.told[-1].keys() == {"dataset", "batch_tokens"}
