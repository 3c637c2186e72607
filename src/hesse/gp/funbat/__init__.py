"""FunBaT: Bayesian Tucker and CP models of tensors with continuous indices, on Matérn processes in state space."""

from hesse.gp.funbat.estimator import FunBaT
from hesse.gp.funbat.matern import MaternSSM
from hesse.gp.funbat.smoother import SmoothedChain, interpolate, kalman_smoother

__all__ = ["FunBaT", "MaternSSM", "SmoothedChain", "interpolate", "kalman_smoother"]
