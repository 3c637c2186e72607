"""Descent on convex variational energies whose iterates are two-layer networks, and the deep Ritz method."""

from hesse.pde.variational._potentials import chebyshev_potential
from hesse.pde.variational.deep_ritz import DeepRitz
from hesse.pde.variational.descent import PreconditionedDescent
from hesse.pde.variational.energy import EllipticEnergy
from hesse.pde.variational.ledger import CertificateReport, DescentRecord

__all__ = [
    "CertificateReport",
    "DeepRitz",
    "DescentRecord",
    "EllipticEnergy",
    "PreconditionedDescent",
    "chebyshev_potential",
]
