"""Vector fields on surfaces known by points alone: neighbour graphs, tangent bundles and a Gaussian process on them."""

from hesse.gp.rvgp.bundle import EigenFields, TangentBundle, Transport
from hesse.gp.rvgp.fields import Singularities
from hesse.gp.rvgp.graph import GraphKind, NeighbourGraph, furthest_point_sampling
from hesse.gp.rvgp.process import RVGP, Smoothness
from hesse.gp.rvgp.spectral import KernelKind

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
