"""The flagship's claims: exact where theory says so (B1), low rank (B4), the peer (B6), facts (B8), crashes (B10)."""

from benchmarks.influence import _kronfluence

CLAIMS = [*_kronfluence.CLAIMS]
