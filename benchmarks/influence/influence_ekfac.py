"""The flagship's claims: exact where theory says so (B1), low rank (B4), the peer (B6), facts (B8), crashes (B10)."""

from benchmarks.influence import _facts, _kronfluence, _oracles
from benchmarks.influence._reliability import damage_is_refused, kills_resume_bit_identical

CLAIMS = [*_oracles.CLAIMS, *_kronfluence.CLAIMS, *_facts.CLAIMS, kills_resume_bit_identical, damage_is_refused]
