"""The flagship: exactness, ground truths, solvers, low rank, word order, the peer, facts and crashes (B1 to B10)."""

from benchmarks.influence import (
    _facts,
    _kronfluence,
    _lds,
    _oracles,
    _pbrf,
    _solver_speed,
    _tail,
    _word_order,
)
from benchmarks.influence._reliability import damage_is_refused, kills_resume_bit_identical

CLAIMS = [
    *_oracles.CLAIMS,
    *_pbrf.CLAIMS,
    *_solver_speed.CLAIMS,
    *_kronfluence.CLAIMS,
    *_word_order.CLAIMS,
    *_lds.CLAIMS,
    *_facts.CLAIMS,
    *_tail.CLAIMS,
    kills_resume_bit_identical,
    damage_is_refused,
]
