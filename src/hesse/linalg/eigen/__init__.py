"""Eigenvalues, singular values and functions of the spectrum."""

from hesse.linalg.eigen.eigsh import ThickRestart, Which, eigsh, shift_inverse
from hesse.linalg.eigen.lanczos import (
    BlockLanczos,
    LanczosState,
    Reorthogonalization,
    block_lanczos,
    lanczos,
    tridiagonal,
)
from hesse.linalg.eigen.lobpcg import lobpcg
from hesse.linalg.eigen.power import power_iteration, spectral_norm
from hesse.linalg.eigen.result import EigenResult
from hesse.linalg.eigen.slq import SpectralDensity, logdet, slq, spectral_density
from hesse.linalg.eigen.svds import SingularTriplets, svds

__all__ = [
    "BlockLanczos",
    "EigenResult",
    "LanczosState",
    "Reorthogonalization",
    "SingularTriplets",
    "SpectralDensity",
    "ThickRestart",
    "Which",
    "block_lanczos",
    "eigsh",
    "lanczos",
    "lobpcg",
    "logdet",
    "power_iteration",
    "shift_inverse",
    "slq",
    "spectral_density",
    "spectral_norm",
    "svds",
    "tridiagonal",
]
