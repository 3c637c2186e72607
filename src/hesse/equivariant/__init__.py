"""Layers that commute with rotations and with linear deformations."""

from hesse.equivariant.gaunt import (
    DegreeLinear,
    GauntConvolution,
    GauntManyBody,
    GauntTensorProduct,
    antisymmetric_tensor_product,
    fastest_backend,
    from_e3nn,
    gaunt_coefficients,
    gaunt_convolution,
    gaunt_many_body,
    gaunt_tensor_product,
    rotate,
    spherical_harmonics,
    to_e3nn,
    wigner_d,
)

__all__ = [
    "DegreeLinear",
    "GauntConvolution",
    "GauntManyBody",
    "GauntTensorProduct",
    "antisymmetric_tensor_product",
    "fastest_backend",
    "from_e3nn",
    "gaunt_coefficients",
    "gaunt_convolution",
    "gaunt_many_body",
    "gaunt_tensor_product",
    "rotate",
    "spherical_harmonics",
    "to_e3nn",
    "wigner_d",
]
