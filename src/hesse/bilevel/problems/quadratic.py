"""Two quadratic levels, whose every quantity is one linear solve.   Shapes: N entries of x, M of y, S samples.

g = yᵀHy/2 - (Bx + b)ᵀy,   f = (y - t)ᵀD(y - t)/2 + xᵀCx/2 + cᵀx
y* = H⁺(Bx + b) (the one that f likes best),   ∇Φ = Cx + c + BᵀH⁺D(y* - t)
"""

import math

import torch
from torch import Generator, Tensor

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems.exact import ExactProblem
from hesse.bilevel.samplers import TensorSampler
from hesse.errors import ArgumentError

__all__ = ["quadratic"]


def quadratic(
    x_size: int,
    y_size: int,
    *,
    condition: float = 10.0,
    rank: int | None = None,
    upper_spectrum: tuple[float, float] = (0.5, 1.5),
    num_samples: int | None = None,
    batch_size: int = 1,
    noise: float = 0.5,
    seed: int = 0,
) -> ExactProblem:
    """Draw a problem in float64.

    Parameters
    ----------
    x_size, y_size : int
        N and M.
    condition : float, default 10.0
        Largest over smallest non-zero eigenvalue of H; the largest is 1.
    rank : int, optional
        Of H; below M the lower level has many solutions, B and b lie in the range of H, and y* is the one of them with
        the least f. Default: M.
    upper_spectrum : (float, float), default (0.5, 1.5)
        Smallest and largest eigenvalue of D, > 0.
    num_samples : int, optional
        Split both levels into S samples that average to them, drawn by samplers. Default: no samples.
    batch_size : int, default 1
        Of these samplers.
    noise : float, default 0.5
        How much a sample differs from the mean: entries of standard deviation ``noise`` in the linear terms; H is
        multiplied by 1 ± 0.3 ``noise``, held between 0 and 2 or so.
    seed : int, default 0
        Of everything random.

    Returns
    -------
    ExactProblem
        C = I/2, so that Φ is strongly convex.

    Raises
    ------
    ArgumentError
        If a size or the condition is below 1, the rank is not between 1 and M, or an eigenvalue of D not positive.
    """
    if min(x_size, y_size) < 1 or condition < 1:
        raise ArgumentError(f"quadratic: expected sizes and condition >= 1, got {x_size}, {y_size}, {condition}")
    rank = y_size if rank is None else rank
    if not 1 <= rank <= y_size:
        raise ArgumentError(f"quadratic: expected 1 <= rank <= {y_size}, got {rank}")
    if not min(upper_spectrum) > 0:
        raise ArgumentError(f"quadratic: expected upper_spectrum > 0, got {upper_spectrum}")
    generator = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    basis = torch.linalg.qr(normal(y_size, y_size)).Q[:, :rank]
    values = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    H = (basis * values) @ basis.T
    inside = basis @ basis.T
    B = inside @ normal(y_size, x_size) / x_size**0.5
    b = inside @ normal(y_size)
    rotation = torch.linalg.qr(normal(y_size, y_size)).Q
    D = (rotation * torch.linspace(*upper_spectrum, y_size, dtype=torch.float64)) @ rotation.T
    t, c = normal(y_size), normal(x_size) / 2
    C = torch.eye(x_size, dtype=torch.float64) / 2
    inverse = (basis / values) @ basis.T
    # over the solutions of the lower level, y = H⁺(Bx + b) + Nz, f is least at z = (NᵀDN)⁻¹NᵀD(t - H⁺(Bx + b))
    null = torch.linalg.qr(basis, mode="complete").Q[:, rank:]
    pick = null @ torch.linalg.solve(null.T @ D @ null, null.T @ D) if rank < y_size else torch.zeros_like(D)

    def lower_solution(x: Tensor) -> Tensor:
        base = inverse @ (B @ x + b)
        return base + pick @ (t - base)

    def hypergradient(x: Tensor) -> Tensor:
        return C @ x + c + B.T @ (inverse @ (D @ (lower_solution(x) - t)))

    def value(x: Tensor) -> Tensor:
        gap = lower_solution(x) - t
        return gap @ D @ gap / 2 + x @ C @ x / 2 + c @ x

    zero = torch.zeros(x_size, dtype=torch.float64)
    reduced = torch.stack([hypergradient(e) - hypergradient(zero) for e in torch.eye(x_size, dtype=torch.float64)], 1)
    solution = torch.linalg.solve(reduced, -hypergradient(zero))

    spread = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    lower_sampler, upper_sampler = None, None
    if num_samples is not None:
        scales, shifts = 0.3 * noise * normal(num_samples, 1), noise * normal(num_samples, y_size) @ inside
        tilts = noise * normal(num_samples, y_size)
        scales = (scales - scales.mean(0)).clamp(-0.9, 0.9)
        scales = scales - scales.mean(0)  # clamping moved the mean
        lower_data = (scales, shifts - shifts.mean(0))
        upper_data = (tilts - tilts.mean(0),)
        lower_sampler = TensorSampler(lower_data, batch_size, seed=seed + 1)
        upper_sampler = TensorSampler(upper_data, batch_size, seed=seed + 2)

    def lower(x: Tensor, y: Tensor, batch: tuple[Tensor, Tensor] | None) -> Tensor:
        scale, shift = spread if batch is None else batch
        return (1 + scale.mean()) * (y @ H @ y) / 2 - (B @ x + b + shift.mean(0)) @ y

    def upper(x: Tensor, y: Tensor, batch: tuple[Tensor] | None) -> Tensor:
        gap = y - t
        tilt = spread[0] if batch is None else batch[0]
        return gap @ D @ gap / 2 + (tilt.mean(0) * y).sum() + x @ C @ x / 2 + c @ x

    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x0=zero,
        y0=torch.zeros(y_size, dtype=torch.float64),
        lower_solution=lower_solution,
        exact_hypergradient=hypergradient,
        upper_sampler=upper_sampler,
        lower_sampler=lower_sampler,
    )
    return ExactProblem(problem, lower_solution, hypergradient, value, solution)
