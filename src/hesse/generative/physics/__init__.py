"""Measurements of pictures as linear operators: tomography, magnetic resonance, missing pixels, blur."""

from hesse.generative.physics.adapters import RealView, from_deepinv, require_adjoint
from hesse.generative.physics.ct import ParallelBeamCT, filtered_back_projection
from hesse.generative.physics.local import Blur, Inpainting
from hesse.generative.physics.mri import MaskKind, MultiCoilMRI, coil_maps, sampling_mask

__all__ = [
    "Blur",
    "Inpainting",
    "MaskKind",
    "MultiCoilMRI",
    "ParallelBeamCT",
    "RealView",
    "coil_maps",
    "filtered_back_projection",
    "from_deepinv",
    "require_adjoint",
    "sampling_mask",
]
