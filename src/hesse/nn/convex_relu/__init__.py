"""Two-layer ReLU networks trained to their global optimum, by convex programmes."""

from hesse.nn.convex_relu.admm import ADMMResult, ADMMState, admm_path, admm_relu
from hesse.nn.convex_relu.adversarial import adversarial_network, attack, robust_patterns
from hesse.nn.convex_relu.estimator import ConvexReLUClassifier, ConvexReLURegressor
from hesse.nn.convex_relu.exact import ExactResult, exact_relu
from hesse.nn.convex_relu.network import (
    cone_outputs,
    constraint_violation,
    convex_objective,
    network_objective,
    network_outputs,
    project_cones,
    recover_network,
)
from hesse.nn.convex_relu.patterns import (
    all_patterns,
    distinct_patterns,
    feasible_patterns,
    sample_patterns,
    scenario_size,
)
from hesse.nn.convex_relu.robust import RobustResult, robust_loss, robust_relu
from hesse.nn.convex_relu.scp import SCPResult, dual_bound, duality_certificate, sampled_relu, violating_directions
from hesse.nn.convex_relu.structured import StructuredSystem

__all__ = [
    "ADMMResult",
    "ADMMState",
    "ConvexReLUClassifier",
    "ConvexReLURegressor",
    "ExactResult",
    "RobustResult",
    "SCPResult",
    "StructuredSystem",
    "admm_path",
    "admm_relu",
    "adversarial_network",
    "all_patterns",
    "attack",
    "cone_outputs",
    "constraint_violation",
    "convex_objective",
    "distinct_patterns",
    "dual_bound",
    "duality_certificate",
    "exact_relu",
    "feasible_patterns",
    "network_objective",
    "network_outputs",
    "project_cones",
    "recover_network",
    "robust_loss",
    "robust_patterns",
    "robust_relu",
    "sample_patterns",
    "sampled_relu",
    "scenario_size",
    "violating_directions",
]
