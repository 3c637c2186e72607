"""Dependency graphs of networks: which slices belong together, and the network without them."""

from hesse.compress.graph.dependency import DependencyGraph, Family, Group, GroupAxis, Slice
from hesse.compress.graph.norms import CountedLayerNorm, CountedRMSNorm
from hesse.compress.graph.slim import SlimReport, slim, slim_report

__all__ = [
    "CountedLayerNorm",
    "CountedRMSNorm",
    "DependencyGraph",
    "Family",
    "Group",
    "GroupAxis",
    "Slice",
    "SlimReport",
    "slim",
    "slim_report",
]
