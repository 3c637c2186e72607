"""One fit of f and σ by likelihood to perturbed points, in coordinates of unit scale.   Shapes: N, B points of D."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, NumericalError
from hesse.generative.singular.likelihood import exact_log_likelihood, importance_log_likelihood
from hesse.generative.singular.networks import Decoder

__all__ = ["LatentModel", "Likelihood", "Settings", "train"]

Likelihood = Literal["exact", "iwae", "vae"]
SIGMA_RATE = 3.0  # log σ has far to go: its own learning rate, in units of that of the networks


class LatentModel(nn.Module):
    """f, the encoder and log σ: all that is trained.

    Parameters
    ----------
    decoder : Decoder
        f.
    encoder : nn.Module or None
        From (N, D) to (N, 2 Z), mean and log variance of z; None for the exact likelihood.
    latent_dim : int
        Z.
    sigma : float
        Its start, in units of the scale.
    """

    def __init__(self, decoder: Decoder, encoder: nn.Module | None, latent_dim: int, sigma: float) -> None:
        super().__init__()
        self.decoder, self.encoder, self.latent_dim = decoder, encoder, latent_dim
        self.log_sigma = nn.Parameter(decoder.scale.new_tensor(sigma).log())

    @property
    def sigma(self) -> Tensor:
        """σ, in units of the scale."""
        return self.log_sigma.exp()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x).

        Parameters
        ----------
        x : Tensor, shape (B, D)
            In units of the scale.

        Returns
        -------
        tuple of Tensor, shapes (B, Z)
            From the encoder, which must exist; standard deviations from e⁻⁶ to e².

        Raises
        ------
        ArgumentError
            If there is no encoder.
        """
        if self.encoder is None:
            raise ArgumentError("LatentModel.posterior: the exact likelihood has no encoder")
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def log_likelihood(self, x: Tensor, num_samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Estimate log p(x), with what to differentiate in its place.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            In units of the scale.
        num_samples : int
            Nodes of the grid, or importance samples.
        generator : torch.Generator
            Their source.

        Returns
        -------
        tuple of Tensor, shapes (B,)
            In nats.
        """
        decode_fn = self.decoder.standard
        if self.encoder is None:
            value = exact_log_likelihood(
                x, decode_fn, self.sigma, self.latent_dim, num_nodes=num_samples, generator=generator
            )
            return value, value
        mean, log_variance = self.posterior(x)
        return importance_log_likelihood(
            x, decode_fn, self.sigma, mean, log_variance, num_samples=num_samples, generator=generator
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """What stays the same on all rungs of a ladder."""

    num_samples: int  # of `LatentModel.log_likelihood`
    sigma_bounds: tuple[float, float]  # in units of the scale
    fresh: bool
    batch_size: int
    learning_rate: float


def train(
    model: LatentModel,
    points: Tensor,
    perturbation: float,
    settings: Settings,
    max_steps: int,
    generator: Generator,
    *,
    on_step: Callable[[int], None],
) -> float:
    """Maximise Σ log p(x_i + s e_i) by Adam with a one-cycle rate.

    Parameters
    ----------
    model : LatentModel
        Trained in place.
    points : Tensor, shape (N, D)
        In units of the scale.
    perturbation : float
        s, in units of the scale.
    settings : Settings
        The rest.
    max_steps : int
        Steps.
    generator : torch.Generator
        Source of batches, perturbations and samples, on the device of the points.
    on_step : callable
        Called with 1 after each step.

    Returns
    -------
    float
        Mean log-likelihood of the last tenth of the batches, in nats.

    Raises
    ------
    NumericalError
        If the likelihood is not finite, with the step.
    """
    weights = [*model.decoder.parameters(), *(model.encoder.parameters() if model.encoder else ())]
    rates = [settings.learning_rate, SIGMA_RATE * settings.learning_rate]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": [model.log_sigma]}], lr=rates[0], fused=True)
    low, high = (points.new_tensor(bound).log() for bound in settings.sigma_bounds)

    def perturbed(x: Tensor) -> Tensor:
        return x + perturbation * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    if not settings.fresh:
        points = perturbed(points)
    size = min(settings.batch_size, len(points))
    tail: list[float] = []
    for step in range(max_steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _one_cycle(step, max_steps)
        rows = torch.randint(len(points), (size,), device=points.device, generator=generator)
        batch = points[rows]
        if settings.fresh and perturbation > 0:
            batch = perturbed(batch)
        value, surrogate = model.log_likelihood(batch, settings.num_samples, generator)
        optimizer.zero_grad()
        (-surrogate.mean()).backward()
        mean = float(value.detach().mean())
        if not math.isfinite(mean):
            raise NumericalError(
                f"PerturbedGenerativeMLE.fit: the log-likelihood is {mean} at step {step}; lower learning_rate"
            )
        optimizer.step()
        with torch.no_grad():
            model.log_sigma.clamp_(low, high)
        if step >= max_steps - max(1, max_steps // 10):
            tail.append(mean)
        on_step(1)
    return sum(tail) / len(tail)


def _one_cycle(step: int, max_steps: int) -> float:
    # up over the first three tenths, then down to nothing along a straight line
    place = (step + 1) / (max_steps + 1)
    return max(place / 0.3, 0.04) if place < 0.3 else (1 - place) / 0.7
