"""Partial differential equations: solvers for the systems they leave, and learned or Gaussian solutions of them."""

from hesse.pde.dcdm import (
    DCDMNet,
    DeepConjugateDirection,
    DirectionSolution,
    RitzSet,
    conjugate_directions,
    dcdm_loss,
    ritz_training_set,
)

__all__ = [
    "DCDMNet",
    "DeepConjugateDirection",
    "DirectionSolution",
    "RitzSet",
    "conjugate_directions",
    "dcdm_loss",
    "ritz_training_set",
]
