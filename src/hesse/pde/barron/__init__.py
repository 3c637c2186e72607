"""Sparse Fourier sums: their algebra, their Barron norm, and the two-layer networks that they are."""

from hesse.pde.barron.certificate import barron_certificate, growth_exponent, next_log_bound
from hesse.pde.barron.networks import Activation, Sampling, TwoLayerNetwork, barron_path_norm
from hesse.pde.barron.plane_waves import PlaneWaveSeries
from hesse.pde.barron.series import FourierSeries
from hesse.pde.barron.simulation import ProductBlock, simulate_network
from hesse.pde.barron.sines import SineSeries

__all__ = [
    "Activation",
    "FourierSeries",
    "PlaneWaveSeries",
    "ProductBlock",
    "Sampling",
    "SineSeries",
    "TwoLayerNetwork",
    "barron_certificate",
    "barron_path_norm",
    "growth_exponent",
    "next_log_bound",
    "simulate_network",
]
