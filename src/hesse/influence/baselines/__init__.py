"""What influence is compared with: called alike, ``baseline(model, queries, dataset, ...) -> Tensor`` of shape (Q, N).

Rows are queries and columns sequences, in the order of the data. Units differ, and each says its own.
"""

from hesse.influence.baselines.datainf import datainf
from hesse.influence.baselines.dots import gradient_cosine, gradient_dot, tracin
from hesse.influence.baselines.texts import bm25, embedding_cosine
from hesse.influence.baselines.trak import trak

__all__ = ["bm25", "datainf", "embedding_cosine", "gradient_cosine", "gradient_dot", "tracin", "trak"]
