"""Small denoisers for vectors and pictures, and the loop that trains them.   Shapes: B samples, C channels."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["Denoiser", "PictureNetwork", "VectorNetwork", "train_denoiser"]

_FEATURES = 8  # of the noise level, at four frequencies


class Denoiser(nn.Module):
    """D(x, σ) = c_skip x + c_out F(c_in x, log(σ)/4), the mean of x_0 given x = x_0 + σ ε.

    With v = σ² + data_sd²: c_skip = data_sd² / v, c_out = σ data_sd / √v, c_in = 1 / √v. Inputs and targets of F then
    have unit variance at every σ, and with F = 0 the denoiser is exact for data that are N(0, data_sd² I).

    Parameters
    ----------
    network : nn.Module
        F: (x of shape (B, ...), level of shape (B,)) -> (B, ...); `VectorNetwork` or `PictureNetwork`.
    data_sd : float, default 0.5
        Standard deviation of a coordinate of the data around zero.

    Raises
    ------
    ArgumentError
        If ``data_sd <= 0``.

    References
    ----------
    T. Karras, M. Aittala, T. Aila, S. Laine (2022), NeurIPS, arXiv 2206.00364.
    """

    def __init__(self, network: nn.Module, data_sd: float = 0.5) -> None:
        super().__init__()
        if not 0 < data_sd < math.inf:
            raise ArgumentError(f"Denoiser: expected data_sd > 0, got {data_sd}")
        self.network = network
        self.data_sd = data_sd

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Denoise.

        Parameters
        ----------
        x : Tensor, shape (B, ...)
            x_0 + σ ε.
        sigma : float or Tensor, shape () or (B,)
            Noise level, in units of the data.

        Returns
        -------
        Tensor, shape (B, ...)
            The estimated mean of x_0.

        Raises
        ------
        ShapeError
            If there are neither one nor B levels.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) not in (1, len(x))):
            raise ShapeError(f"Denoiser: expected sigma of shape () or ({len(x)},), got {tuple(sigma.shape)}")
        sigma = sigma.expand(len(x))
        wide = sigma.reshape(-1, *[1] * (x.ndim - 1))
        variance = wide.square() + self.data_sd**2
        out = self.network(x / variance.sqrt(), sigma.log() / 4)
        return x * (self.data_sd**2 / variance) + out * (wide * self.data_sd / variance.sqrt())

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """∇ log p_σ(x) = (D(x, σ) - x) / σ².

        Parameters
        ----------
        x : Tensor, shape (B, ...)
            x_0 + σ ε.
        sigma : float or Tensor, shape () or (B,)
            Noise level.

        Returns
        -------
        Tensor, shape (B, ...)
            The score of the noised data.
        """
        wide = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        return (self(x, sigma) - x) / wide.square()


def _level_features(level: Tensor, count: int) -> Tensor:
    # sines and cosines of the level at frequencies 1, 2, 4, ...; the level moves over a few units
    frequencies = 2.0 ** torch.arange(count // 2, dtype=level.dtype, device=level.device)
    angles = level.unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class VectorNetwork(nn.Module):
    """A multilayer perceptron with SiLU (smooth, so that its Jacobian may be differentiated) on [x, features of level].

    Parameters
    ----------
    dim : int
        Length of a vector.
    width : int, default 128
        Of the hidden layers.
    depth : int, default 3
        Number of hidden layers.

    Raises
    ------
    ArgumentError
        If a size is below one.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        if min(dim, width, depth) < 1:
            raise ArgumentError(f"VectorNetwork: expected dim, width, depth >= 1, got {dim}, {width}, {depth}")
        widths = [dim + _FEATURES, *[width] * depth]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Apply F.

        Parameters
        ----------
        x : Tensor, shape (B, dim)
            Vectors of unit variance.
        level : Tensor, shape (B,)
            log(σ) / 4.

        Returns
        -------
        Tensor, shape (B, dim)
            What `Denoiser` scales.
        """
        return self.body(torch.cat([x, _level_features(level, _FEATURES)], 1))


class _Block(nn.Module):
    """A residual block of two convolutions; the noise level scales and shifts between them."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels, 3, 1, 1))
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.skip = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.modulate(embedded)[..., None, None].chunk(2, 1)
        inner = self.norm(self.first(x)) * (1 + scale) + shift
        return self.skip(x) + self.second(functional.silu(inner))


class PictureNetwork(nn.Module):
    """A U-Net that works on patches: pixels are folded into channels first, and each level halves the picture.

    Parameters
    ----------
    channels : int, default 1
        Of a picture.
    widths : sequence of int, default (32, 96)
        Channels of each level, multiples of 8; the defaults give 0.5 million parameters. One block down and one up a
        level, two at the bottom.
    patch : int, default 2
        Side of the patches that become one position. It saves a factor of patch² in time; sides of pictures must be
        multiples of patch · 2^(levels - 1).

    Raises
    ------
    ArgumentError
        If a width is no multiple of 8, or there is none.
    """

    def __init__(self, channels: int = 1, widths: Sequence[int] = (32, 96), patch: int = 2) -> None:
        super().__init__()
        if not widths or any(width < 8 or width % 8 for width in widths) or patch < 1 or channels < 1:
            raise ArgumentError(
                f"PictureNetwork: expected channels, patch >= 1 and widths in multiples of 8, got {channels}, {patch}, "
                f"{tuple(widths)}"
            )
        self.multiple = patch * 2 ** (len(widths) - 1)
        embedding = 4 * widths[0]
        self.embed = nn.Sequential(nn.Linear(_FEATURES, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, 1, 1)
        self.down = nn.ModuleList(_Block(width, width, embedding) for width in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(low, high, 2, 2) for low, high in pairwise(widths))
        self.bottom = nn.ModuleList(_Block(widths[-1], widths[-1], embedding) for _ in range(2))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(high, low, 2, 2) for low, high in pairwise(widths))
        self.up = nn.ModuleList(_Block(2 * width, width, embedding) for width in widths[:-1])
        self.head = nn.Sequential(
            nn.GroupNorm(8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels * patch**2, 3, 1, 1)
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Apply F.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Pictures of unit variance.
        level : Tensor, shape (B,)
            log(σ) / 4.

        Returns
        -------
        Tensor, shape (B, C, H, W)
            What `Denoiser` scales.

        Raises
        ------
        ShapeError
            If the sides are no multiples of patch · 2^(levels - 1).
        """
        if x.ndim != 4 or x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ShapeError(
                f"PictureNetwork: expected (B, C, H, W) with sides in multiples of {self.multiple}, got "
                f"{tuple(x.shape)}"
            )
        embedded = self.embed(_level_features(level, _FEATURES))
        x, kept = self.stem(self.fold(x)), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, embedded)
            kept.append(x)
            x = shrink(x)
        for block in self.bottom:
            x = block(x, embedded)
        for block, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = block(torch.cat([grow(x), kept.pop()], 1), embedded)
        return self.unfold(self.head(x))


def train_denoiser(
    denoiser: nn.Module,
    data: Tensor | Callable[[int], Tensor],
    *,
    data_sd: float = 0.5,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    max_steps: int = 2500,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    ema_decay: float = 0.995,
    generator: Generator | None = None,
) -> Tensor:
    """Train D by denoising: minimise E w(σ) |D(x_0 + σ ε, σ) - x_0|², with w = (σ² + data_sd²) / (σ data_sd)².

    The weight makes the loss of the best linear denoiser the same at every σ. σ is drawn log-uniformly, the learning
    rate falls along a cosine, and in the end the weights are replaced by their running mean.

    Parameters
    ----------
    denoiser : nn.Module
        Called as ``denoiser(x, sigma)`` with sigma of shape (B,); `Denoiser`, or the denoiser of an energy. Trained in
        place, in the dtype and on the device of its parameters.
    data : Tensor, shape (N, ...), or callable
        The samples x_0, or a function of a batch size that draws some.
    data_sd : float, default 0.5
        As in `Denoiser`.
    sigma_min, sigma_max : float, default 0.01, 50.0
        Range of noise levels, in units of the data; it must span those that are used later.
    max_steps : int, default 2500
        Steps of Adam; there is no early stop.
    batch_size : int, default 256
        Samples a step, drawn with replacement.
    learning_rate : float, default 2e-3
        At the start.
    ema_decay : float, default 0.995
        Of the running mean of the weights, over some 200 steps; 0 keeps the last weights.
    generator : torch.Generator, optional
        Source of batches and noise, on the device of the denoiser. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (max_steps,)
        The losses; 1 is what the best linear denoiser of white data reaches.

    Raises
    ------
    ArgumentError
        If a number is out of range, or there are no data.
    NumericalError
        If the loss is not finite, with the step.

    Notes
    -----
    One forward and one backward pass a step.
    """
    if not 0 < sigma_min < sigma_max < math.inf or not data_sd > 0:
        raise ArgumentError(
            f"train_denoiser: expected 0 < sigma_min < sigma_max and data_sd > 0, got {sigma_min}, {sigma_max}, "
            f"{data_sd}"
        )
    if min(max_steps, batch_size) < 1 or not learning_rate > 0 or not 0 <= ema_decay < 1:
        raise ArgumentError(
            "train_denoiser: expected max_steps, batch_size >= 1, learning_rate > 0 and 0 <= ema_decay < 1, got "
            f"{max_steps}, {batch_size}, {learning_rate}, {ema_decay}"
        )
    if isinstance(data, Tensor) and not len(data):
        raise ArgumentError("train_denoiser: data is empty")
    weights = list(denoiser.parameters())
    kind = {"dtype": weights[0].dtype, "device": weights[0].device}
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    mean = [weight.detach().clone() for weight in weights]
    losses = torch.empty(max_steps, dtype=torch.float64)
    spread = math.log(sigma_max / sigma_min)
    denoiser.train()
    for step in range(max_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * step / max_steps)) / 2
        clean = _draw(data, batch_size, generator, **kind)
        sigma = sigma_min * (spread * torch.rand(len(clean), generator=generator, **kind)).exp()
        wide = sigma.reshape(-1, *[1] * (clean.ndim - 1))
        noisy = clean + wide * torch.randn(clean.shape, generator=generator, **kind)
        weight = (sigma.square() + data_sd**2) / (sigma * data_sd).square()
        loss = (weight * (denoiser(noisy, sigma) - clean).square().flatten(1).mean(1)).mean()
        losses[step] = float(loss.detach())
        if not math.isfinite(float(losses[step])):
            raise NumericalError(f"train_denoiser: the loss is {float(losses[step])} at step {step}; lower the rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(ema_decay, step / (step + 10))  # so that the first steps are forgotten soon
        torch._foreach_lerp_(mean, [weight.detach() for weight in weights], 1 - decay)
    with torch.no_grad():
        for weight, average in zip(weights, mean, strict=True):
            weight.copy_(average)
    denoiser.eval()
    return losses


def _draw(
    data: Tensor | Callable[[int], Tensor],
    count: int,
    generator: Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    if not isinstance(data, Tensor):
        return data(count).to(dtype=dtype, device=device)
    rows = torch.randint(len(data), (count,), generator=generator, device=device)
    return data[rows.to(data.device)].to(dtype=dtype, device=device)
