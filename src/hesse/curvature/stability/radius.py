"""The second-moment radius of SGD: does E‖θ_t - θ*‖² stay bounded?   Shapes: N samples, C outputs, P parameters."""

from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.curvature.stability.coordinates import (
    Features,
    RangeCoordinates,
    batch_noise_factor,
    check_step,
    range_coordinates,
)
from hesse.curvature.stability.heavy_ball import heavy_ball_radius
from hesse.curvature.stability.low_rank import as_operator, compress
from hesse.curvature.stability.second_moment import SecondMomentRadius, largest_eigenvalue, second_moment_operator
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg.operator import LinearOperator

__all__ = ["Noise", "RadiusMethod", "second_moment_radius"]

Noise = Literal["exact", "loss_scaled"]
"""Covariance of the gradient noise at displacement δ: that of the samples, or (2L/B) H with 2L = δᵀHδ."""
RadiusMethod = Literal["gram", "dense", "low_rank"]
_DENSE_RANK = 24  # the dense operator has R⁴ entries


def second_moment_radius(
    features: Features | LinearOperator,
    lr: float,
    batch_size: int,
    *,
    momentum: float = 0.0,
    replacement: bool = False,
    noise: Noise = "exact",
    method: RadiusMethod = "gram",
    num_outputs: int = 1,
    rank: int = 48,
    tol: float | None = None,
    max_steps: int | None = None,
    generator: Generator | None = None,
) -> SecondMomentRadius:
    """Compute the spectral radius ρ of the second-moment operator of SGD on range(H); at most 1 means stable.

    Parameters
    ----------
    features : Tensor, shape (N, P) or (N, C, P), RangeCoordinates, or LinearOperator, shape (N C, P)
        Gradients a_i of the outputs at the minimum, scaled so that H = (1/N) Σ a_i a_iᵀ is the Hessian of the loss that
        ``lr`` belongs to: as they are for (1/2N) Σ ‖f - y‖². `linearise` makes them from a module. Of an operator, for
        instance of `hesse.curvature.jacobian`, only products are taken, and the method must be "low_rank".
    lr : float
        η >= 0, per unit of the loss's gradient. At 0 nothing moves: ρ = 1.
    batch_size : int
        B.
    momentum : float, default 0.0
        β in [0, 1) of torch's SGD, v ← β v + g, θ ← θ - η v; methods "gram" and noise "exact" only.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    noise : {"exact", "loss_scaled"}, default "exact"
        "loss_scaled" replaces the noise by (2L/B) H, a model that looks at the eigenvalues of H alone.
    method : {"gram", "dense", "low_rank"}, default "gram"
        "gram" works in sample space, with R x R matrices and Lanczos. "dense" forms all R⁴ entries of T from a singular
        value decomposition of the features, for checks, R <= 24. "low_rank" confines the second moment to 2 ``rank``
        directions that it seeks out: a lower bound on ρ, for more samples than "gram" can hold.
    num_outputs : int, default 1
        C, where ``features`` is an operator.
    rank : int, default 48
        Directions kept by "low_rank"; where SGD is unstable, few directions carry the growth.
    tol : float, optional
        "gram": of the residual, default 1e-9; the error of ρ is about its square over the gap. "low_rank": relative
        change of ρ in a refinement, default 1e-6.
    max_steps : int, optional
        Products with T at most, default 2000; for "low_rank" refinements, default 50.
    generator : torch.Generator, optional
        Source of the first directions of "low_rank". Default: torch's global generator.

    Returns
    -------
    SecondMomentRadius
        Exact for the linearised dynamics with independent batches, up to the tolerance, but for "low_rank". That ρ > 1
        does not make a typical run leave: see `lyapunov_exponent`.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or options do not go together.
    ArgumentTypeError
        If the features are of another kind, or an operator comes with another method than "low_rank".
    ShapeError
        If they have another number of axes.
    NumericalError
        If they hold NaN or Inf.

    Notes
    -----
    "gram": O(N C R²) a product, some ten to fifty of them; R <= min(N C, P). With momentum ρ is the scale at which the
    noise that displacements excite just keeps itself up (`noise_gain`), found by bracketing.

    Examples
    --------
    >>> round(second_moment_radius(torch.tensor([[1.0], [3.0]]), lr=0.1, batch_size=1).value, 6)  # E (1 - η a²)²
    0.41

    References
    ----------
    L. Wu, C. Ma, W. E (2018), NeurIPS. L. Wu, W. J. Su (2023), ICML, arXiv 2305.17490.
    """
    call = "second_moment_radius"
    check_step(call, lr, momentum)
    if noise not in ("exact", "loss_scaled") or method not in ("gram", "dense", "low_rank"):
        raise ArgumentError(f"{call}: unknown noise {noise!r} or method {method!r}")
    if (momentum > 0 or noise != "exact") and method != "gram":
        raise ArgumentError(f"{call}: momentum and noise={noise!r} need method='gram', got {method!r}")
    if momentum > 0 and noise != "exact":
        raise ArgumentError(f"{call}: momentum needs noise='exact'")
    if method == "low_rank":
        operator, outputs = as_operator(call, features, num_outputs)
        precision, limit = 1e-6 if tol is None else tol, 50 if max_steps is None else max_steps
        return _low_rank_radius(operator, outputs, lr, batch_size, replacement, rank, precision, limit, generator)
    if isinstance(features, LinearOperator):
        raise ArgumentTypeError(
            f"{call}: an operator of features needs method='low_rank'; pass a tensor for {method!r}"
        )
    if method == "dense":
        return _dense_radius(features, lr, batch_size, replacement)
    precision, limit = 1e-9 if tol is None else tol, 2000 if max_steps is None else max_steps
    coordinates = range_coordinates(features)
    f = batch_noise_factor(coordinates.num_samples, batch_size, replacement=replacement)
    if lr == 0 or coordinates.rank == 0:
        return SecondMomentRadius(1.0 if lr == 0 else 0.0, True, 0, 0.0)
    if noise == "loss_scaled":
        return _loss_scaled_radius(coordinates.eigenvalues, lr, batch_size)
    if momentum > 0:
        value, num_gains = heavy_ball_radius(coordinates, lr, f, momentum, tol=precision, max_steps=limit)
        return SecondMomentRadius(value, True, num_gains, 0.0)
    return largest_eigenvalue(second_moment_operator(coordinates, lr, f), coordinates, precision, limit)[0]


def _loss_scaled_radius(eigenvalues: Tensor, lr: float, batch_size: int) -> SecondMomentRadius:
    # off the diagonal nothing but shrinking happens; on it the moments obey a symmetric matrix
    matrix = torch.diag((1 - lr * eigenvalues).square()) + lr**2 / batch_size * torch.outer(eigenvalues, eigenvalues)
    return SecondMomentRadius(float(torch.linalg.eigvalsh(matrix)[-1]), True, 0, 0.0)


def _dense_radius(features: Features, lr: float, batch_size: int, replacement: bool) -> SecondMomentRadius:
    tensor = features.rows if isinstance(features, RangeCoordinates) else features
    samples = tensor.shape[0]
    wide = tensor.detach().to(torch.float64).reshape(samples, -1, tensor.shape[-1])
    _, singular, Vh = torch.linalg.svd(wide.flatten(0, 1), full_matrices=False)
    cut = max(wide.flatten(0, 1).shape) * torch.finfo(tensor.dtype).eps * singular[0]
    V = Vh[singular > cut].mT
    r = V.shape[1]
    if r > _DENSE_RANK:
        raise ArgumentError(
            f"second_moment_radius: method='dense' would form {r**4} entries; use 'gram' above rank {_DENSE_RANK}"
        )
    f = batch_noise_factor(samples, batch_size, replacement=replacement)
    outer = (wide @ V).mT @ (wide @ V)  # (N, R, R), H_i
    H = outer.mean(0)
    step = torch.eye(r, dtype=H.dtype, device=H.device) - lr * H
    squares = torch.stack([torch.kron(one, one) for one in outer]).mean(0)
    T = torch.kron(step, step) + lr**2 * f * (squares - torch.kron(H, H))
    return SecondMomentRadius(float(torch.linalg.eigvalsh(T)[-1]), True, 0, 0.0)


def _low_rank_radius(
    operator: LinearOperator,
    num_outputs: int,
    lr: float,
    batch_size: int,
    replacement: bool,
    rank: int,
    tol: float,
    max_steps: int,
    generator: Generator | None,
) -> SecondMomentRadius:
    def factor(num_samples: int) -> float:
        return batch_noise_factor(num_samples, batch_size, replacement=replacement)

    def solve(coordinates: RangeCoordinates) -> tuple[float, Tensor, float]:
        apply_fn = second_moment_operator(coordinates, lr, factor(coordinates.num_samples))
        found, X = largest_eigenvalue(apply_fn, coordinates, 1e-9, 2000)
        return found.value, X, lr

    found = compress(operator, num_outputs, factor, solve, rank=rank, tol=tol, max_steps=max_steps, generator=generator)
    return SecondMomentRadius(found.value, found.converged, found.num_steps, found.change)
