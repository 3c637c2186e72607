"""Second moments from products with the features alone, confined to a few directions that are sought out.

M = Q S Qᵀ with orthonormal Q turns T into the same operator for the features Qᵀ a_i. T is self-adjoint, so what is
found there never exceeds the true radius, and a learning rate at which it is one is never too small.

Shapes: N samples, C outputs, P parameters, K directions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.curvature.stability.coordinates import Features, RangeCoordinates
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg._arguments import single_operator
from hesse.linalg._random import gaussian_columns
from hesse.linalg.basic import Dense
from hesse.linalg.operator import LinearOperator

__all__ = ["Compression", "as_operator", "compress"]

Solve = Callable[[RangeCoordinates], tuple[float, Tensor, float]]
"""Coordinates -> the number sought, its eigenmatrix (R, R), and the learning rate whose T keeps that matrix."""


@dataclass(frozen=True, slots=True)
class Compression:
    """What the directions found see."""

    coordinates: RangeCoordinates
    value: float
    converged: bool
    num_steps: int  # refinements of the directions
    change: float  # of the value in the last refinement, relative


def compress(
    features: LinearOperator,
    num_outputs: int,
    noise_factor_fn: Callable[[int], float],
    solve: Solve,
    *,
    rank: int,
    tol: float,
    max_steps: int,
    generator: Generator | None,
) -> Compression:
    """Refine K directions until the number that ``solve`` computes in them settles.

    A step applies T once to the best M = Q S Qᵀ so far, adds the range of T(M) Q to Q, solves there, and keeps the K
    leading eigenvectors of what is found: power iteration on a matrix that is kept at low rank.

    Parameters
    ----------
    features : LinearOperator, shape (N C, P)
        Gradients of the outputs, those of a sample side by side.
    num_outputs : int
        C.
    noise_factor_fn : callable
        N -> f.
    solve : callable
        See `Solve`.
    rank : int
        K.
    tol : float
        Relative change of the value to stop at.
    max_steps : int
        Refinements at most.
    generator : torch.Generator, optional
        Source of the first directions.

    Returns
    -------
    Compression
        With coordinates of at most 2 K directions.

    Raises
    ------
    ShapeError
        If the rows are not a multiple of ``num_outputs``.
    ArgumentError
        If ``rank`` or ``max_steps`` is below one.

    Notes
    -----
    A step costs K to 2 K products with the features and 2 K with their adjoint; memory O(P K + N C K).
    """
    if num_outputs < 1 or features.shape[0] % num_outputs:
        raise ShapeError(f"num_outputs: {features.shape[0]} rows of features are no multiple of {num_outputs}")
    if rank < 1 or max_steps < 1:
        raise ArgumentError(f"low_rank: expected rank >= 1 and max_steps >= 1, got {rank} and {max_steps}")
    num_samples = features.shape[0] // num_outputs

    def wide(block: Tensor) -> Tensor:
        return block.to(torch.float64)

    f = noise_factor_fn(num_samples)
    k = min(rank, *features.shape)
    with torch.no_grad():
        Q = torch.linalg.qr(wide(features.rmatmat(_first_rows(features, k, generator)))).Q[:, : min(features.shape)]
        images = wide(features.matmat(Q.to(features.dtype)))  # (N C, K), A Q
        value, change, step = 0.0, torch.inf, 1
        while True:
            coordinates, rotation = _coordinates(images, num_samples, num_outputs)
            previous, (value, X, lr) = value, solve(coordinates)
            if coordinates.rank == 0:
                return Compression(coordinates, value, True, step, 0.0)
            change = abs(value - previous) / max(abs(value), torch.finfo(torch.float64).tiny)
            exhausted = Q.shape[1] == min(features.shape)
            if change <= tol or exhausted or step == max_steps:
                break
            step += 1
            weights, vectors = torch.linalg.eigh(X)
            S, leading = weights[-k:].clamp_min(0), vectors[:, -k:]
            base, rows = Q @ (rotation @ leading), coordinates.rows @ leading  # (P, K), (N, C, K)
            flat = rows.flatten(0, 1)
            noise = lr * f * (((rows * S) @ rows.mT) @ rows).flatten(0, 1)
            stacked = torch.cat([flat, noise], dim=1) / num_samples
            H_base, noise_base = wide(features.rmatmat(stacked.to(features.dtype))).split(len(S), dim=1)
            # T(M) base = base (...) + η fresh: only the second part is new
            h = flat.mT @ flat / num_samples
            fresh = noise_base - H_base @ (torch.diag(S) + lr * (f - 1) * S.unsqueeze(1) * h)
            added = _orthonormal_beside(base, fresh)[:, : min(features.shape) - base.shape[1]]
            Q = torch.cat([base, added], dim=1)
            images = torch.cat([flat, wide(features.matmat(added.to(features.dtype)))], dim=1)
    return Compression(coordinates, value, change <= tol or exhausted, step, float(change))


def as_operator(call: str, features: Features | LinearOperator, num_outputs: int) -> tuple[LinearOperator, int]:
    """Take features of any kind as an operator.

    Parameters
    ----------
    call : str
        The caller, for messages.
    features : Tensor, RangeCoordinates or LinearOperator
        What came.
    num_outputs : int
        C, if it is an operator.

    Returns
    -------
    operator : LinearOperator, shape (N C, P)
        Its rows those of one sample side by side.
    num_outputs : int
        C.

    Raises
    ------
    ArgumentTypeError
        If it is of another kind.
    ShapeError
        If a tensor has another number of axes.
    """
    if isinstance(features, LinearOperator):
        return single_operator(call, features), num_outputs
    if isinstance(features, RangeCoordinates):
        features = features.rows
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise ArgumentTypeError(f"{call}: expected features as a floating tensor or an operator, got {type(features)}")
    if features.ndim not in (2, 3):
        raise ShapeError(f"{call}: expected features of shape (N, P) or (N, C, P), got {tuple(features.shape)}")
    outputs = features.shape[1] if features.ndim == 3 else 1
    return Dense(features.reshape(-1, features.shape[-1])), outputs


def _first_rows(features: LinearOperator, k: int, generator: Generator | None) -> Tensor:
    # weights (N C, 2 K) whose images start the search: samples at random, and those whose gradients are largest, which
    # are the first to make SGD unstable and which power iteration from elsewhere would find late
    kind = {"dtype": features.dtype, "device": features.device, "generator": generator}
    lengths = torch.linalg.vector_norm(features.matmat(gaussian_columns(features.shape[1], k, **kind)), dim=1)
    heaviest = torch.zeros(features.shape[0], k, dtype=features.dtype, device=features.device)
    heaviest[lengths.topk(k).indices, torch.arange(k, device=features.device)] = 1
    return torch.cat([heaviest, gaussian_columns(features.shape[0], k, **kind)], dim=1)


def _orthonormal_beside(base: Tensor, block: Tensor) -> Tensor:
    for _ in range(2):  # once more, for the columns that the first round left small
        block = torch.linalg.qr(block - base @ (base.mT @ block)).Q
    return block


def _coordinates(images: Tensor, num_samples: int, num_outputs: int) -> tuple[RangeCoordinates, Tensor]:
    # the eigenbasis of H within the directions, and the rotation (K, R) into it
    values, vectors = torch.linalg.eigh(images.mT @ images / num_samples)
    kept = values > images.shape[1] * torch.finfo(values.dtype).eps * values[-1]
    values, rotation = values[kept].flip(0), vectors[:, kept].flip(1)
    return RangeCoordinates(values, (images @ rotation).reshape(num_samples, num_outputs, len(values))), rotation
