"""Gaussian processes that learn the frequencies of a differential equation's solution (GP-HM)."""

from hesse.pde.gp_hm.conditions import Face, Observations, Periodic
from hesse.pde.gp_hm.equations import Advection, AllenCahn, CustomEquation, Derivatives, Equation, Helmholtz, Poisson
from hesse.pde.gp_hm.kernels import SpectralMixture1d
from hesse.pde.gp_hm.solver import GPHM
from hesse.pde.gp_hm.spectrum import Spectrum

__all__ = [
    "GPHM",
    "Advection",
    "AllenCahn",
    "CustomEquation",
    "Derivatives",
    "Equation",
    "Face",
    "Helmholtz",
    "Observations",
    "Periodic",
    "Poisson",
    "SpectralMixture1d",
    "Spectrum",
]
