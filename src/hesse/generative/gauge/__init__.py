"""Which part of a score field is a gradient, which part no sample can see, and what each part does to read-outs."""

from hesse.generative.gauge.decomposition import GaugeDecomposition, decompose, decompose_linear
from hesse.generative.gauge.energy import EnergyScore
from hesse.generative.gauge.features import Features
from hesse.generative.gauge.fields import Field, SphereScore, asymmetry, field_jacobian, gauge_residual, score_field
from hesse.generative.gauge.flow import Divergence, FlowJacobian, flow_jacobian, flow_log_density, probability_flow

__all__ = [
    "Divergence",
    "EnergyScore",
    "Features",
    "Field",
    "FlowJacobian",
    "GaugeDecomposition",
    "SphereScore",
    "asymmetry",
    "decompose",
    "decompose_linear",
    "field_jacobian",
    "flow_jacobian",
    "flow_log_density",
    "gauge_residual",
    "probability_flow",
    "score_field",
]
