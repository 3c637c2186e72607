"""Pairs of clouds for the Monge gap: Gaussians with their known map, a line with a monotone one, curves, a sphere."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

__all__ = ["GaussianPair", "Pair", "curves", "gaussians", "line", "sphere", "uvp"]

TRAIN, TEST = 4096, 2000


@dataclass(frozen=True, slots=True)
class Pair:
    """Samples to train on, points of the source held out, and their images under the optimal map where it is known."""

    source: Tensor
    target: Tensor
    test: Tensor
    images: Tensor | None = None


@dataclass(frozen=True, slots=True)
class GaussianPair(Pair):
    """Two Gaussians, the source centred; T*(x) = mean + A x is optimal for the squared distance.   float64."""

    mean: Tensor | None = None
    source_covariance: Tensor | None = None
    covariance: Tensor | None = None
    A: Tensor | None = None


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values.sqrt().unsqueeze(1) * vectors.mT)


def gaussians(d: int, seed: int, *, train: int = TRAIN, test: int = TEST) -> GaussianPair:
    """Covariances B Bᵀ/d + I/10 with normal B, a normal mean; A = S1^(-1/2) (S1^(1/2) S2 S1^(1/2))^(1/2) S1^(-1/2)."""
    generator = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second = (b @ b.mT / d + torch.eye(d, dtype=torch.float64) / 10 for b in (normal(d, d), normal(d, d)))
    mean, root = normal(d), _root(first)
    inverse = torch.linalg.inv(root)
    A = inverse @ _root(root @ second @ root) @ inverse
    source, target, held = normal(train, d) @ root, normal(train, d) @ _root(second) + mean, normal(test, d) @ root
    return GaussianPair(
        source.float(),
        target.float(),
        held.float(),
        (held @ A + mean).float(),
        mean=mean,
        source_covariance=first,
        covariance=second,
        A=A,
    )


def line(seed: int) -> Pair:
    """Standard normal t on a line of the plane, moved to 2 + t + tanh(2 t): monotone, so optimal for every convex h."""
    generator = Generator().manual_seed(seed)
    direction = torch.tensor([0.8, 0.6])

    def moved(t: Tensor) -> Tensor:
        return 2 + t + (2 * t).tanh()

    t, s, held = (torch.randn(n, 1, generator=generator) for n in (TRAIN, TRAIN, TEST))
    return Pair(t * direction, moved(s) * direction, held * direction, moved(held) * direction)


def curves(seed: int) -> Pair:
    """A turned half moon to a turned letter S, with the sizes, places and noise of the tutorial of ott-jax."""
    datasets: Any = importlib.import_module("sklearn.datasets")

    def turned(points: Tensor, angle: float) -> Tensor:
        c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
        return points @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])]).mT

    def moon(n: int, state: int) -> Tensor:
        points, _ = datasets.make_moons(n_samples=(n, 0), random_state=state % 2**32, noise=0.05)
        return turned(torch.as_tensor(points).float(), torch.pi / 6) + torch.tensor([0.0, -0.5])

    points, _ = datasets.make_s_curve(n_samples=TRAIN, random_state=(3 * seed + 1) % 2**32, noise=0.05)
    letter = turned(torch.as_tensor(points[:, [2, 0]].copy()).float(), torch.pi / 2)
    return Pair(moon(TRAIN, 3 * seed), 0.6 * letter + torch.tensor([1.0, -2.0]), moon(TEST, 3 * seed + 2))


def sphere(seed: int) -> Pair:
    """Two clouds on the unit sphere, some 23 degrees wide and 100 degrees apart, as von Mises-Fisher of kappa 12."""
    generator = Generator().manual_seed(seed)

    def cloud(centre: list[float], n: int) -> Tensor:
        noise = torch.randn(n, 3, generator=generator) * 12**-0.5
        return torch.nn.functional.normalize(torch.tensor(centre) + noise, dim=-1)

    south = [0.985, 0.0, -0.174]
    return Pair(cloud([0.0, 0.0, 1.0], TRAIN), cloud(south, TRAIN), cloud([0.0, 0.0, 1.0], TEST))


def uvp(mapper: Callable[[Tensor], Tensor], pair: GaussianPair) -> float:
    """L2-UVP: 100 E|T(x) - T*(x)|² / Var(target), in percent, on points held out."""
    assert pair.images is not None
    assert pair.covariance is not None
    errors = (mapper(pair.test) - pair.images).double().square().sum(1)
    return 100 * float(errors.mean() / pair.covariance.trace())
