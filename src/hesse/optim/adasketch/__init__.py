"""Equality-constrained Newton steps with sketched linear systems and an exact augmented Lagrangian."""

from hesse.optim.adasketch.merit import AugmentedLagrangianMerit
from hesse.optim.adasketch.module import ConstrainedModule
from hesse.optim.adasketch.newton import adasketch_newton
from hesse.optim.adasketch.result import AdaSketchState, ConstrainedResult, NewtonStep

__all__ = [
    "AdaSketchState",
    "AugmentedLagrangianMerit",
    "ConstrainedModule",
    "ConstrainedResult",
    "NewtonStep",
    "adasketch_newton",
]
