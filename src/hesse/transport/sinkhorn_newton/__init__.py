"""Entropic optimal transport to high accuracy: Sinkhorn's sweeps, then Newton steps with a sparse plan."""

from hesse.transport.problem import marginal_error
from hesse.transport.sinkhorn_newton.alternating import sinkhorn
from hesse.transport.sinkhorn_newton.entropic import entropic, linear_bound, proximal
from hesse.transport.sinkhorn_newton.newton import sinkhorn_newton
from hesse.transport.sinkhorn_newton.plan import TransportPlan, TransportStep
from hesse.transport.sinkhorn_newton.system import NewtonSystem, newton_system

__all__ = [
    "NewtonSystem",
    "TransportPlan",
    "TransportStep",
    "entropic",
    "linear_bound",
    "marginal_error",
    "newton_system",
    "proximal",
    "sinkhorn",
    "sinkhorn_newton",
]
