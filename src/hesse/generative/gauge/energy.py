"""A score that is a gradient by construction: v = ∇E.   Shapes: B points of D coordinates."""

import math

import torch
from torch import Tensor, nn
from torch.func import grad

from hesse.errors import ArgumentError

__all__ = ["EnergyScore"]

_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.Hardswish, nn.Hardsigmoid)


class EnergyScore(nn.Module):
    """E(x, σ) = -|x|² / 2(data_sd² + σ²) + (data_sd / σ) ⟨y, F(y, log(σ)/4)⟩ with y = x / √(data_sd² + σ²); v = ∇E.

    The first term is the log density of noised N(0, data_sd² I), and the second is scaled so that x + σ² v is the
    preconditioned denoiser of `Denoiser` with ∇⟨y, F⟩ in place of its network: the same trunk serves both.

    Parameters
    ----------
    network : nn.Module
        F: (y of shape (B, D), level of shape (B,)) -> (B, D); `VectorNetwork`. It must be smooth.
    data_sd : float, default 0.5
        Standard deviation of a coordinate of the data around zero.
    sigma_min : float, default 0.0
        Least noise level of training: below it a score is refused.

    Raises
    ------
    ArgumentError
        If ``data_sd <= 0`` or ``sigma_min < 0``, or the network has a kinked activation: its gradient would jump.

    Notes
    -----
    A value costs one forward and one backward pass, training a second backward.
    """

    def __init__(self, network: nn.Module, data_sd: float = 0.5, sigma_min: float = 0.0) -> None:
        super().__init__()
        if not 0 < data_sd < math.inf or not sigma_min >= 0:
            raise ArgumentError(f"EnergyScore: expected data_sd > 0 and sigma_min >= 0, got {data_sd}, {sigma_min}")
        if kinked := {type(module).__name__ for module in network.modules() if isinstance(module, _KINKED)}:
            raise ArgumentError(
                f"EnergyScore: {', '.join(sorted(kinked))} has no second derivative; use SiLU or Softplus"
            )
        self.network = network
        self.data_sd = data_sd
        self.sigma_min = sigma_min

    def energy(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Evaluate E, the log density up to a constant that depends on σ.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            x_0 + σ ε.
        sigma : float or Tensor, shape () or (B,)
            Noise level.

        Returns
        -------
        Tensor, shape (B,)
            In nats.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        variance = sigma.square() + self.data_sd**2
        y = x / variance.sqrt().unsqueeze(1)
        inner = (y * self.network(y, sigma.log() / 4)).sum(1)
        return -y.square().sum(1) / 2 + inner * self.data_sd / sigma

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """∇_x E.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            x_0 + σ ε.
        sigma : float or Tensor, shape () or (B,)
            Noise level.

        Returns
        -------
        Tensor, shape (B, D)
            Differentiable in x and in the weights.

        Raises
        ------
        ArgumentError
            If a level is below ``sigma_min``.
        """
        if float(torch.as_tensor(sigma).min()) < self.sigma_min * (1 - 1e-6):
            raise ArgumentError(f"EnergyScore: sigma is below the training range, which starts at {self.sigma_min}")
        return grad(lambda y: self.energy(y, sigma).sum())(x)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Denoise: x + σ² ∇E, what `train_denoiser` trains.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            x_0 + σ ε.
        sigma : float or Tensor, shape () or (B,)
            Noise level.

        Returns
        -------
        Tensor, shape (B, D)
            The estimated mean of x_0.
        """
        wide = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
        return x + wide.square() * self.score(x, sigma)
