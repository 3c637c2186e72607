"""Bilevel tasks on a user's own data, ready to run and to copy."""

from hesse.bilevel.tasks.blocks import auc_blocks, temperature_blocks
from hesse.bilevel.tasks.hyper_cleaning import hyper_cleaning
from hesse.bilevel.tasks.hyper_representation import hyper_representation
from hesse.bilevel.tasks.penalties import Penalty, penalized_model

__all__ = [
    "Penalty",
    "auc_blocks",
    "hyper_cleaning",
    "hyper_representation",
    "penalized_model",
    "temperature_blocks",
]
