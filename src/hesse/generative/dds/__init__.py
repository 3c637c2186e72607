"""The decomposed diffusion sampler, the samplers it is measured against, and the exact posterior that judges both."""

from hesse.generative.dds.baselines import DDNM, DPS, MCG, DiffPIR
from hesse.generative.dds.data_step import TVz
from hesse.generative.dds.loop import DiffusionSampler, InverseProblem, SamplerState
from hesse.generative.dds.posterior import MixturePosterior, mixture_posterior
from hesse.generative.dds.sampler import DDS

__all__ = [
    "DDNM",
    "DDS",
    "DPS",
    "MCG",
    "DiffPIR",
    "DiffusionSampler",
    "InverseProblem",
    "MixturePosterior",
    "SamplerState",
    "TVz",
    "mixture_posterior",
]
