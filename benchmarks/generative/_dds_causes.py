"""What keeps DDS from the exact posterior: one setting changed at a time, then the data step itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks._claims import Scale
from benchmarks.generative._dds_pictures import psnr
from hesse.generative import DDS, DiffusionPrior, InverseProblem, SamplerState
from hesse.linalg import FunctionOperator, LinearOperator, cg

__all__ = ["Task", "causes"]


@dataclass(frozen=True, slots=True)
class Task:
    """Pictures with their data: some to tune on, others to be judged by."""

    physics: LinearOperator
    sigma_y: float
    tune: tuple[Tensor, Tensor]  # pictures (N, n²) and data (N, m)
    test: tuple[Tensor, Tensor]


class FullCovarianceDDS(DDS):
    """DDS whose data step has the prior's covariance given x_t, C = (s²/a) ∂x̂_0/∂x_t, in place of the identity.

    x̂_0' = x̂_0 + C Aᵀ (A C Aᵀ + σ_y²)⁻¹ (y - A x̂_0), the exact mean were p(x_0 | x_t) Gaussian. It differentiates the
    denoiser forwards in every step of CG, which DDS is there to avoid: a measurement, not a method.
    """

    @torch.no_grad()
    def step(self, state: SamplerState, problem: InverseProblem, generator: Generator | None = None) -> SamplerState:
        now, then = self.moment(state.index), self.moment(state.index + 1)
        x = state.x

        def denoise(x: Tensor) -> Tensor:
            return (x - now.s * self.prior.noise(x, now.t)) / now.a

        def covariance(columns: Tensor) -> Tensor:
            _, slope = torch.func.jvp(denoise, (x,), (columns.mT.reshape(x.shape),))
            return now.s**2 / now.a * slope.flatten(1).mT

        denoised = denoise(x)
        noise = (x - now.a * denoised) / now.s
        residual = problem.y - problem.physics.matmat(denoised.flatten(1).mT)
        size = len(problem.y)
        system = FunctionOperator(
            lambda u: problem.physics.matmat(covariance(problem.physics.rmatmat(u))) + problem.sigma_y**2 * u,
            (size, size),
            dtype=x.dtype,
            is_symmetric=True,
        )
        weights = cg(system, residual, max_steps=15, rtol=1e-6, validate=False).x
        denoised = denoised + covariance(problem.physics.rmatmat(weights)).mT.reshape(x.shape)
        if then.s == 0:
            return SamplerState(denoised, state.index + 1, denoised)
        fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        direction = (1 - self.eta**2) ** 0.5 * noise + self.eta * fresh
        return SamplerState(then.a * denoised + then.s * direction, state.index + 1, denoised)


def causes(prior: DiffusionPrior, value: tuple[float, float], tasks: Sequence[Task], scale: Scale) -> dict[str, float]:
    """Decibels of DDS from noise with (γ, η) as given but for one thing."""
    gamma, eta = value
    many = scale(smoke=60, full=200)
    settings: dict[str, dict[str, Any]] = {
        "20 steps of CG": {"cg_steps": 20},
        "no fresh noise": {"eta": 0.0},
        "only fresh noise": {"eta": 1.0},
        f"{many} calls": {"num_steps": many},
        f"{many} calls and a quarter of gamma": {"num_steps": many, "gamma": gamma / 4},
        "the mean of 16 samples": {},
        "the prior's covariance in the data step": {},
    }
    found = {}
    for name, changed in settings.items():
        arguments: dict[str, Any] = {"num_steps": 50, "gamma": gamma, "eta": eta} | changed
        method = FullCovarianceDDS if "covariance" in name else DDS
        scores = []
        for task in tasks:
            sampler, generator = method(prior, task.physics, **arguments), Generator().manual_seed(scale.seed)
            made = sampler.sample(task.test[1], 16 if "mean" in name else 1, task.sigma_y, generator=generator)
            scores.append(float(psnr(made.mean(1).flatten(1), task.test[0]).mean()))
        found[f"DDS, 50 calls but {name}, dB"] = float(sum(scores) / len(scores))
    return found
