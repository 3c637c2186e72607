"""Functions of one hidden polynomial, learnt layer by layer: y = g(p(x)) from about d^k samples, k the degree of p."""

from hesse.nn.hierarchical.estimator import HierarchicalPolynomialRegressor, NotIdentifiableWarning
from hesse.nn.hierarchical.features import HierarchicalTarget, InnerName, hermite, hierarchical_target, inner_features
from hesse.nn.hierarchical.network import LayerwiseNetwork
from hesse.nn.hierarchical.stages import RidgePath, ridge_path, stage1_gd, stage1_ridge, stage2

__all__ = [
    "HierarchicalPolynomialRegressor",
    "HierarchicalTarget",
    "InnerName",
    "LayerwiseNetwork",
    "NotIdentifiableWarning",
    "RidgePath",
    "hermite",
    "hierarchical_target",
    "inner_features",
    "ridge_path",
    "stage1_gd",
    "stage1_ridge",
    "stage2",
]
