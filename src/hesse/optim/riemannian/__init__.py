"""Optimisers that keep subspaces subspaces: steps along geodesics of the Grassmann manifold."""

from hesse.optim.riemannian.adam import RiemannianAdam
from hesse.optim.riemannian.geodesic import geodesic_step, split_parameters
from hesse.optim.riemannian.sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianSGD", "geodesic_step", "split_parameters"]
