"""Pruning by Optimal Brain Surgeon on the inverse empirical Fisher matrix of M-FAC: one-shot and gradual."""

from hesse.compress.obs.masks import apply_masks, attach_masks, attached_masks, remove_masks, zero_masks
from hesse.compress.obs.patterns import Blocks, NOfM, Pattern, Unstructured
from hesse.compress.obs.pruner import OBSPruner, PruneRound
from hesse.compress.obs.schedule import GradualStep, cubic_sparsities, geometric_sparsities, gradual_prune

__all__ = [
    "Blocks",
    "GradualStep",
    "NOfM",
    "OBSPruner",
    "Pattern",
    "PruneRound",
    "Unstructured",
    "apply_masks",
    "attach_masks",
    "attached_masks",
    "cubic_sparsities",
    "geometric_sparsities",
    "gradual_prune",
    "remove_masks",
    "zero_masks",
]
