"""Consensus-based optimisation and consensus hopping: minimisation by particles that only evaluate."""

from hesse.optim.cbo.consensus import consensus_point, ess_alpha, polarized_consensus
from hesse.optim.cbo.contraction import CloudContraction, cloud_contraction
from hesse.optim.cbo.dynamics import CBO, minimize_cbo
from hesse.optim.cbo.hopping import ConsensusHopping, HopShift, hop_shift, minimize_consensus_hopping
from hesse.optim.cbo.module import ModuleCBO
from hesse.optim.cbo.schedules import CoolingSchedule, GeometricSchedule, reduced_count
from hesse.optim.cbo.swarm import OptimHistory, OptimResult

__all__ = [
    "CBO",
    "CloudContraction",
    "ConsensusHopping",
    "CoolingSchedule",
    "GeometricSchedule",
    "HopShift",
    "ModuleCBO",
    "OptimHistory",
    "OptimResult",
    "cloud_contraction",
    "consensus_point",
    "ess_alpha",
    "hop_shift",
    "minimize_cbo",
    "minimize_consensus_hopping",
    "polarized_consensus",
    "reduced_count",
]
