"""Products of functions on the sphere as the interaction of features that turn with the frame."""

from hesse.equivariant.gaunt.convolution import GauntConvolution, gaunt_convolution
from hesse.equivariant.gaunt.harmonics import spherical_harmonics
from hesse.equivariant.gaunt.irreps import from_e3nn, to_e3nn
from hesse.equivariant.gaunt.layers import DegreeLinear, GauntManyBody, GauntTensorProduct
from hesse.equivariant.gaunt.product import (
    antisymmetric_tensor_product,
    fastest_backend,
    gaunt_coefficients,
    gaunt_many_body,
    gaunt_tensor_product,
)
from hesse.equivariant.gaunt.rotation import rotate, wigner_d

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
