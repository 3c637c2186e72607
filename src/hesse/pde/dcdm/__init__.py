"""Deep conjugate directions: line searches along directions that a convolutional network reads off the residual."""

from hesse.pde.dcdm.directions import DirectionFunction, DirectionSolution, conjugate_directions
from hesse.pde.dcdm.network import DCDMNet
from hesse.pde.dcdm.schedule import OperatorFunction
from hesse.pde.dcdm.solver import DeepConjugateDirection
from hesse.pde.dcdm.training import RitzSet, dcdm_loss, ritz_training_set

__all__ = [
    "DCDMNet",
    "DeepConjugateDirection",
    "DirectionFunction",
    "DirectionSolution",
    "OperatorFunction",
    "RitzSet",
    "conjugate_directions",
    "dcdm_loss",
    "ritz_training_set",
]
