"""Products with the inverse of a damped empirical Fisher matrix made of m gradients, in the memory of the gradients."""

from hesse.curvature.mfac.gradients import gradient_rows
from hesse.curvature.mfac.inverse import MFACInverse
from hesse.curvature.mfac.window import GradientWindow

__all__ = ["GradientWindow", "MFACInverse", "gradient_rows"]
