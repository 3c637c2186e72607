"""Data of known dimension, fields with a gauge part, trained models, and how a dimension is judged."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor
from torch.nn.functional import normalize

from hesse.generative.gauge import EnergyScore, Field, SphereScore
from hesse.generative.score_network import Denoiser, VectorNetwork, train_denoiser

__all__ = [
    "DATA_SETS",
    "Model",
    "noisy_sphere",
    "sphere_score",
    "sphere_with_rotation",
    "swiss_roll",
    "train_model",
    "wasserstein",
]

TRAINED_SIGMA_MIN, TRAINED_SIGMA_MAX = 0.01, 10.0


def sphere_with_rotation(score: SphereScore, amount: float) -> Field:
    """The score of the sphere plus (amount / σ) e_z × x, a rotation that leaves every noised law as it is."""

    def field(x: Tensor, sigma: float) -> Tensor:
        turn = torch.cat([-x[:, 1:2], x[:, :1], torch.zeros_like(x[:, 2:])], 1)
        return score(x, sigma) + amount / sigma * turn

    return field


def swiss_roll(count: int, generator: Generator) -> Tensor:
    """A sheet rolled up in R^3, one and a half turns, with coordinates of standard deviation about one."""
    u, height = torch.rand(2, count, dtype=torch.float64, generator=generator)
    angle = 1.5 * torch.pi * (1 + 2 * u)
    return torch.stack([angle * angle.cos() / 7, 3 * height - 1.5, angle * angle.sin() / 7], 1)


def noisy_sphere(count: int, sphere_dim: int, dim: int, noise: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Points of a unit sphere in the first coordinates of R^dim, and the same with noise."""
    points = torch.zeros(count, dim, dtype=torch.float64)
    points[:, : sphere_dim + 1] = normalize(torch.randn(count, sphere_dim + 1, generator=generator).double())
    return points, points + noise * torch.randn(count, dim, dtype=torch.float64, generator=generator)


def sphere_score(sphere_dim: int, noise: float) -> Field:
    """The score of `noisy_sphere`, from the ratio of Bessel functions I_{p/2}(κ) / I_{p/2-1}(κ), p = sphere_dim + 1.

    The ratio is a continued fraction, 1 / (p/κ + 1 / ((p + 2)/κ + ...)), from far enough out: it needs about κ terms.
    """
    p = sphere_dim + 1

    def field(x: Tensor, sigma: float) -> Tensor:
        variance = sigma**2 + noise**2
        radius = x[:, :p].square().sum(1, keepdim=True).sqrt()
        kappa = radius / variance
        ratio = torch.zeros_like(kappa)
        for k in reversed(range(int(2 * kappa.max()) + 50)):
            ratio = 1 / ((p + 2 * k) / kappa + ratio)
        return torch.cat([x[:, :p] / radius * ratio, torch.zeros_like(x[:, p:])], 1) / variance - x / variance

    return field


DATA_SETS = {
    "sphere in R5": lambda count, generator: SphereScore(5).sample(count, generator=generator),
    "sphere in R3": lambda count, generator: SphereScore(3).sample(count, generator=generator),
    "swiss roll": swiss_roll,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A trained field and what it cost."""

    field: Field
    seconds: float


def train_model(kind: str, data: Tensor, steps: int, seed: int, *, sigma_min: float = TRAINED_SIGMA_MIN) -> Model:
    """Train a free or an energy model on one trunk, three layers of 128, from weights of the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VectorNetwork(data.shape[1])
    data_sd = float(data.square().mean().sqrt())
    denoiser = EnergyScore(network, data_sd, sigma_min) if kind == "energy" else Denoiser(network, data_sd)
    start = time.perf_counter()
    train_denoiser(
        denoiser,
        data.float(),
        data_sd=data_sd,
        sigma_min=sigma_min,
        sigma_max=TRAINED_SIGMA_MAX,
        max_steps=steps,
        generator=torch.Generator().manual_seed(seed + 1),
    )
    seconds = time.perf_counter() - start
    for weight in denoiser.parameters():
        weight.requires_grad_(False)
    return Model(denoiser.score, seconds)


def wasserstein(x: Tensor, y: Tensor) -> float:
    """W2 of two samples of one size, exactly."""
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(np.sqrt(cost[rows, columns].mean()))
