"""Classes as subspaces: a classifier head that leaves the features of a class room to vary."""

from hesse.nn.grassmann.layer import GrassmannLinear
from hesse.nn.grassmann.subspaces import class_subspaces, intra_class_variability, overlap_penalty

__all__ = ["GrassmannLinear", "class_subspaces", "intra_class_variability", "overlap_penalty"]
