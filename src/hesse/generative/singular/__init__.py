"""Likelihood for data on thin sets: perturb the data, fit f(z) + σ ε, sample f(z)."""

from hesse.generative.singular.baselines import WGANGP, kde_resample, ppca_mixture
from hesse.generative.singular.distance import w1_distance
from hesse.generative.singular.estimator import PerturbedGenerativeMLE, Rung
from hesse.generative.singular.likelihood import Importance, exact_log_likelihood, importance_log_likelihood
from hesse.generative.singular.perturbation import suggested_perturbation

__all__ = [
    "WGANGP",
    "Importance",
    "PerturbedGenerativeMLE",
    "Rung",
    "exact_log_likelihood",
    "importance_log_likelihood",
    "kde_resample",
    "ppca_mixture",
    "suggested_perturbation",
    "w1_distance",
]
