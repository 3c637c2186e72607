"""Curvature of a loss as operators and factors: captured layer statistics, K-FAC, EK-FAC, Hessian and Gauss-Newton products."""

from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.ekfac import Absolute, Damping, Relative, rotate, rotate_back, second_moment, sequence_gradients
from hesse.curvature.kfac import (
    FactorEigen,
    InputFactor,
    OutputFactor,
    add_gram_,
    eigendecompose,
    mirror_,
    reduce_positions,
)
from hesse.curvature.layers import TrackedLayer, select_layers

__all__ = [
    "Absolute",
    "Captured",
    "Damping",
    "FactorEigen",
    "InputFactor",
    "LayerStream",
    "OutputFactor",
    "Relative",
    "TrackedLayer",
    "add_gram_",
    "dgrad_only",
    "eigendecompose",
    "mirror_",
    "reduce_positions",
    "rotate",
    "rotate_back",
    "second_moment",
    "select_layers",
    "sequence_gradients",
]
