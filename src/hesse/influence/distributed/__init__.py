"""Fitting and scoring by several processes: who does what, how sums meet, and who is still alive."""

from hesse.influence.distributed.dealing import Share, contiguous, deal_spans, in_step, owners
from hesse.influence.distributed.heartbeat import Heartbeat
from hesse.influence.distributed.sharded import is_sharded, whole_tensors
from hesse.influence.distributed.team import ALONE, Team, join_team

__all__ = [
    "ALONE",
    "Heartbeat",
    "Share",
    "Team",
    "contiguous",
    "deal_spans",
    "in_step",
    "is_sharded",
    "join_team",
    "owners",
    "whole_tensors",
]
