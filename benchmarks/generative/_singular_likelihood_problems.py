"""Data on thin sets, and distances of samples to fresh points of them."""

import math
import statistics
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from hesse.generative import PerturbedGenerativeMLE, w1_distance

__all__ = ["LADDER", "cold_fit", "embedded", "fresh_w1", "ladder_fit", "seeded", "single_circle", "touching_circles"]

LADDER = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed % 2**31)


def touching_circles(count: int, generator: Generator) -> Tensor:
    """Radius 0.6 around (-1, 0) and (1, 0)."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    side = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    return torch.stack([side + 0.6 * angle.cos(), 0.6 * angle.sin()], 1)


def single_circle(count: int, generator: Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1)


def embedded(points: Tensor, dim: int, seed: int) -> Tensor:
    """Isometrically and linearly in R^dim, by a frame that the seed decides."""
    if dim == points.shape[1]:
        return points
    frame = torch.linalg.qr(torch.randn(dim, points.shape[1], generator=seeded(seed))).Q
    return points @ frame.mT


def ladder_fit(points: Tensor, steps: int, seed: int, **settings: object) -> PerturbedGenerativeMLE:
    """The estimator as it comes, with the annealed ladder and a fifth of the rows held out."""
    return PerturbedGenerativeMLE(perturbation=LADDER, max_iter=steps, random_state=seed, **settings).fit(points)  # pyright: ignore[reportArgumentType]


def cold_fit(points: Tensor, steps: int, seed: int, level: float = 0.0, **settings: object) -> PerturbedGenerativeMLE:
    """One perturbation from scratch, none by default: plain likelihood. All rows are trained on."""
    return PerturbedGenerativeMLE(perturbation=level, max_iter=steps, random_state=seed, **settings).fit(points)  # pyright: ignore[reportArgumentType]


def fresh_w1(draw_fn: Callable[[int, Generator], Tensor], test: Tensor, seed: int, repeats: int = 2) -> float:
    """Exact W1 of as many samples as test points, averaged over draws of the samples."""
    return statistics.fmean(w1_distance(draw_fn(len(test), seeded(seed + k)), test) for k in range(repeats))
