"""Second-order machine learning in PyTorch, without ever forming the matrix.

The families are subpackages; import the one you need: ``from hesse.influence import Influence``.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
