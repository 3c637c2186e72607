"""The arms: a Lie network, a plain CNN, one over C8, one with a spatial transformer; how they train and are tested.

Shapes: B images of 20 x 20, C channels, N = 8 rotations.
"""

import ctypes
import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hesse.equivariant.lie import GLPlus, LieResNet, SampleContext, recalibrate

__all__ = [
    "accuracy",
    "c8_cnn",
    "lie_network",
    "num_parameters",
    "plain_cnn",
    "spatial_transformer",
    "train",
]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def lie_network(seed: int, *, num_draws: int = 12, channels: int = 24) -> LieResNet:
    group = GLPlus(2)
    context = SampleContext(group)
    generator = torch.Generator().manual_seed(seed)
    return LieResNet(group, 10, channels=channels, context=context, num_draws=num_draws, generator=generator)


def plain_cnn(seed: int) -> nn.Module:
    """Three 3 x 3 convolutions with batch norm: as many parameters as the Lie network.

    With one maximum over 2 x 2 it loses two points under a translation by 1.5 pixels, with two of them six or more.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *_block(1, 20), *_block(20, 32), nn.MaxPool2d(2), *_block(32, 45),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(45, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class RotatedConv(nn.Module):
    """A filter and its seven rotations, by bilinear interpolation; between rotations, by their difference.

    Features are (B, C N, H, W). ``lift``: the input has no rotations yet.
    """

    grids: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, lift: bool = False, count: int = 8) -> None:
        super().__init__()
        self.outputs, self.count, self.size, self.lift = outputs, count, size, lift
        planes = 1 if lift else count
        self.weight = nn.Parameter(torch.randn(outputs, inputs * planes, size, size) / (inputs * planes * size) ** 0.5)
        angles = 2 * math.pi * torch.arange(count) / count
        cos, sin, zero = angles.cos(), angles.sin(), torch.zeros(count)
        theta = torch.stack([cos, sin, zero, -sin, cos, zero], -1).reshape(count, 2, 3)
        grids = nn.functional.affine_grid(theta, [count, 1, size, size], align_corners=False)
        self.register_buffer("grids", grids, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        turned = []
        for r, grid in enumerate(self.grids):
            filters = nn.functional.grid_sample(self.weight, grid.expand(self.outputs, -1, -1, -1), align_corners=False)
            if not self.lift:
                filters = filters.unflatten(1, (-1, self.count)).roll(r, 2).flatten(1, 2)
            turned.append(filters)
        weight = torch.stack(turned, 1).flatten(0, 1)  # (outputs N, ...)
        return nn.functional.conv2d(x, weight, padding=self.size // 2)


class GroupNormAct(nn.Module):
    """Batch norm of a channel over images, rotations and pixels, then ReLU."""

    def __init__(self, channels: int, count: int = 8) -> None:
        super().__init__()
        self.norm, self.count = nn.BatchNorm3d(channels), count

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.norm(x.unflatten(1, (-1, self.count))).flatten(1, 2))


class PoolRotations(nn.Module):
    """Maximum over rotations and pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 8)).amax((2, 3, 4))


def c8_cnn(seed: int) -> nn.Module:
    """Regular group convolutions over C8."""
    channels = 8
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            RotatedConv(1, channels, 7, lift=True), GroupNormAct(channels), nn.AvgPool2d(2),
            RotatedConv(channels, channels, 5), GroupNormAct(channels),
            RotatedConv(channels, channels, 5), GroupNormAct(channels),
            PoolRotations(), nn.Linear(channels, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


class SpatialTransformer(nn.Module):
    """A small network guesses an affine map and undoes it; then the plain CNN."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.classify = plain_cnn(seed)
        self.locate = nn.Sequential(
            *_block(1, 8), nn.MaxPool2d(2), *_block(8, 8), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(200, 6)
        )
        last = self.locate[-1]
        with torch.no_grad():
            last.weight.zero_()  # pyright: ignore[reportCallIssue]
            last.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))  # pyright: ignore[reportCallIssue, reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(x).unflatten(1, (2, 3))
        grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
        return self.classify(nn.functional.grid_sample(x, grid, align_corners=False))


def spatial_transformer(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SpatialTransformer(seed)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def train(
    network: nn.Module,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    epochs: int,
    seed: int,
    *,
    learning_rate: float = 8e-3,
    batch_size: int = 40,
) -> float:
    """Fit by AdamW with one cycle of the learning rate; ``batches(epoch)`` gives all images. CPU seconds."""
    _keep_memory()
    start = time.process_time()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=5e-3)
    generator = torch.Generator().manual_seed(seed)
    x, y = batches(0)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # draws of the Lie network
        for epoch in range(epochs):
            x, y = batches(epoch)
            for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        if isinstance(network, LieResNet):
            shuffled = torch.randperm(len(x), generator=generator)[: 20 * batch_size]
            recalibrate(network, (x[rows] for rows in shuffled.split(batch_size)))
    network.eval()
    return time.process_time() - start


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    guesses = torch.cat([network(part).argmax(1) for part in x.split(100)])
    return float((guesses == y).double().mean())


def _keep_memory() -> None:
    """Tell glibc to keep freed blocks: of a few megabytes each, they are otherwise mapped and cleared at every step.

    For every arm alike, and worth a factor of two for those with many channels.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
