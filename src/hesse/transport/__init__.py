"""Optimal transport: entropic plans to high accuracy, and maps learnt from samples."""

from hesse.transport.costs import Cost, CostLike, Euclidean, FunctionCost, Geodesic, PNorm, SquaredEuclidean, as_cost
from hesse.transport.monge_gap import (
    Entropy,
    MongeMap,
    Optimality,
    conservative_penalty,
    monge_gap,
    optimality_ratio,
    sinkhorn_divergence,
)
from hesse.transport.sinkhorn_newton import (
    NewtonSystem,
    TransportPlan,
    TransportStep,
    entropic,
    linear_bound,
    marginal_error,
    newton_system,
    proximal,
    sinkhorn,
    sinkhorn_newton,
)

__all__ = [
    "Cost",
    "CostLike",
    "Entropy",
    "Euclidean",
    "FunctionCost",
    "Geodesic",
    "MongeMap",
    "NewtonSystem",
    "Optimality",
    "PNorm",
    "SquaredEuclidean",
    "TransportPlan",
    "TransportStep",
    "as_cost",
    "conservative_penalty",
    "entropic",
    "linear_bound",
    "marginal_error",
    "monge_gap",
    "newton_system",
    "optimality_ratio",
    "proximal",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_newton",
]
