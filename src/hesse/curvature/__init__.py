"""Curvature of a loss: Hessian and Gauss-Newton products, captured layer statistics, K-FAC and EK-FAC factors."""

from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.ekfac import Absolute, Damping, Relative, rotate, rotate_back, second_moment, sequence_gradients
from hesse.curvature.ggn import cross_entropy_hessian, fisher, ggn, squared_error_hessian
from hesse.curvature.hessian import CurvatureOperator, hessian
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
from hesse.curvature.scratch import Scratch

__all__ = [
    "Absolute",
    "Captured",
    "CurvatureOperator",
    "Damping",
    "FactorEigen",
    "InputFactor",
    "LayerStream",
    "OutputFactor",
    "Relative",
    "Scratch",
    "TrackedLayer",
    "add_gram_",
    "cross_entropy_hessian",
    "dgrad_only",
    "eigendecompose",
    "fisher",
    "ggn",
    "hessian",
    "mirror_",
    "reduce_positions",
    "rotate",
    "rotate_back",
    "second_moment",
    "select_layers",
    "sequence_gradients",
    "squared_error_hessian",
]
