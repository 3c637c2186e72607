"""Gaussian processes on surfaces known by points alone, and under tensors with continuous indices."""

from hesse.gp.funbat import FunBaT, MaternSSM, SmoothedChain, interpolate, kalman_smoother
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
    "FunBaT",
    "GraphKind",
    "KernelKind",
    "MaternSSM",
    "NeighbourGraph",
    "Singularities",
    "SmoothedChain",
    "Smoothness",
    "TangentBundle",
    "Transport",
    "furthest_point_sampling",
    "interpolate",
    "kalman_smoother",
]
