"""Convolutions over the plane and a group of linear maps, through h = exp(X) R."""

from hesse.equivariant.lie.groups import SL, SO, GLPlus, GroupSamples, MatrixGroup, haar_log_density
from hesse.equivariant.lie.kernels import BasisKernel, SirenKernel, group_harmonics, ring_harmonics
from hesse.equivariant.lie.layers import LieConv2d, LieLift2d, LieProject
from hesse.equivariant.lie.network import FrozenLieResNet, LieResNet
from hesse.equivariant.lie.norm import RMSNormG, recalibrate
from hesse.equivariant.lie.points import LieConvPoints
from hesse.equivariant.lie.report import EquivarianceReport, equivariance_report, transform_images
from hesse.equivariant.lie.sampling import SampleContext

__all__ = [
    "SL",
    "SO",
    "BasisKernel",
    "EquivarianceReport",
    "FrozenLieResNet",
    "GLPlus",
    "GroupSamples",
    "LieConv2d",
    "LieConvPoints",
    "LieLift2d",
    "LieProject",
    "LieResNet",
    "MatrixGroup",
    "RMSNormG",
    "SampleContext",
    "SirenKernel",
    "equivariance_report",
    "group_harmonics",
    "haar_log_density",
    "recalibrate",
    "ring_harmonics",
    "transform_images",
]
