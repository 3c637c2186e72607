"""Which sequences are worth scoring at all? A token index on disk, and an estimate of what it leaves out."""

from hesse.influence.prefilter.agreement import check_sample, sample_agreement
from hesse.influence.prefilter.choice import Choice, ChosenExamples, Prefilter, choose, chosen_examples
from hesse.influence.prefilter.index import TokenIndex, build_index, open_index
from hesse.influence.prefilter.missed import Missed, estimate_missed
from hesse.influence.prefilter.projected import (
    ProjectedIndex,
    ProjectedScores,
    build_projected,
    open_projected,
)
from hesse.influence.prefilter.ranking import index_scores, rank
from hesse.influence.prefilter.stored import choose_for_run

__all__ = [
    "Choice",
    "ChosenExamples",
    "Missed",
    "Prefilter",
    "ProjectedIndex",
    "ProjectedScores",
    "TokenIndex",
    "build_index",
    "build_projected",
    "check_sample",
    "choose",
    "choose_for_run",
    "chosen_examples",
    "estimate_missed",
    "index_scores",
    "open_index",
    "open_projected",
    "rank",
    "sample_agreement",
]
