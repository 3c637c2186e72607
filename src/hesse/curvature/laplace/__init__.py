"""Laplace posteriors over the weights of a trained model."""

from hesse.curvature.laplace.fit import laplace
from hesse.curvature.laplace.posterior import Laplace, Predictive, load_laplace

__all__ = ["Laplace", "Predictive", "laplace", "load_laplace"]
