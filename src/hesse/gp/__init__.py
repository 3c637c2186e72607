"""Gaussian processes on surfaces known by points alone, and under tensors with continuous indices."""

from hesse.gp.rvgp import (
    RVGP,
    EigenFields,
    GraphKind,
    KernelKind,
    NeighbourGraph,
    Singularities,
    Smoothness,
    TangentBundle,
    Transport,
    furthest_point_sampling,
)

__all__ = [
    "RVGP",
    "EigenFields",
    "GraphKind",
    "KernelKind",
    "NeighbourGraph",
    "Singularities",
    "Smoothness",
    "TangentBundle",
    "Transport",
    "furthest_point_sampling",
]
