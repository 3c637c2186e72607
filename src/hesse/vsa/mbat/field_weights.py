"""Weights of fields from a few labelled pairs, in closed form.   Shapes: P pairs, F patterns."""

from collections.abc import Sequence
from typing import Any

import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.vsa.mbat.encoder import JSONEncoder

__all__ = ["learn_field_weights"]


def learn_field_weights(
    encoder: JSONEncoder, pairs: Sequence[tuple[Any, Any]], labels: Sequence[float], *, damping: float = 0.1
) -> dict[str, float]:
    """Learn which fields tell whether two documents belong together.

    Ridge regression of the labels on what every pattern contributes to the cosine, C θ + c ≈ y:

        θ = (Cᵀ C / P + damping · mean(diag(Cᵀ C / P)) I)⁻¹ Cᵀ y / P,   columns of C and y centred.

    A weight enters both documents, hence w = √max(θ, 0), scaled to mean 1.

    Parameters
    ----------
    encoder : JSONEncoder
        With the weights that contributions are measured under; leave them equal.
    pairs : sequence of (object, object)
        P >= 2 pairs of documents.
    labels : sequence of float
        P similarities: 1 for pairs that belong together, 0 for others, or any number.
    damping : float, default 0.1
        In units of the mean variance of a contribution; holds fields down whose worth the pairs do not show.

    Returns
    -------
    dict of str to float
        By pattern of the leaves, for ``key_weights`` of another `JSONEncoder`. Patterns ending in a position of an
        array are left out: arrays weigh by their own key.

    Raises
    ------
    ShapeError
        If there are not as many labels as pairs.
    ArgumentError
        If there are fewer than two pairs, ``damping <= 0``, or no field helps.
    """
    if len(pairs) != len(labels):
        raise ShapeError(f"learn_field_weights: {len(pairs)} pairs came with {len(labels)} labels")
    if len(pairs) < 2:
        raise ArgumentError(f"learn_field_weights: expected at least 2 pairs, got {len(pairs)}")
    if not damping > 0:
        raise ArgumentError(f"learn_field_weights: expected damping > 0, got {damping}")
    explained = [encoder.explain(left, right).contributions for left, right in pairs]
    patterns = sorted({name for row in explained for name in row if name and not name.endswith("/*")})
    contributions_PF = torch.tensor(
        [[row.get(name, 0.0) for name in patterns] for row in explained], dtype=torch.float64
    ).reshape(len(pairs), len(patterns))
    contributions_PF = contributions_PF - contributions_PF.mean(0)
    y = torch.tensor(labels, dtype=torch.float64)
    second = contributions_PF.T @ contributions_PF / len(pairs)
    scale = float(second.diagonal().mean()) if patterns else 0.0
    if scale == 0:
        raise ArgumentError("learn_field_weights: no field differs between the pairs")
    ridge = second + damping * scale * torch.eye(len(patterns), dtype=torch.float64)
    theta = torch.linalg.solve(ridge, contributions_PF.T @ (y - y.mean()) / len(pairs))
    weights = theta.clamp_min(0).sqrt()
    if not bool(weights.any()):
        raise ArgumentError("learn_field_weights: no field is larger where labels are; are they similarities?")
    return dict(zip(patterns, (weights / weights.mean()).tolist(), strict=True))
