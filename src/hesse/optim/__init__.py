"""Optimisers: torch.optim's interface, second-order or otherwise unusual steps."""

from hesse.optim.kfac import KFAC
from hesse.optim.mfac import MFAC

__all__ = ["KFAC", "MFAC"]
