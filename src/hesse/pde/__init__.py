"""Partial differential equations: solvers for the systems that they leave, and learned or Gaussian solutions of
them.
"""

from hesse.pde.dcdm import DeepConjugateDirection

__all__ = ["DeepConjugateDirection"]
