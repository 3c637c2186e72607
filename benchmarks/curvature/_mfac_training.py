"""The digits auto-encoder on which the M-FAC optimiser meets SGD and Adam, each with its tuned step length."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from benchmarks.data import digit_pictures
from hesse.optim import MFAC

__all__ = ["ARMS", "Arm", "auto_encoder", "final_loss", "pixels", "train"]

Arm = tuple[Callable[..., Optimizer], tuple[float, ...]]
ARMS: dict[str, Arm] = {  # the grids of the peers are finer than ours
    "sgd": (lambda params, lr: SGD(params, lr=lr, momentum=0.9), (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)),
    "adam": (lambda params, lr: Adam(params, lr=lr), (1e-3, 3e-3, 6e-3, 1e-2, 1.5e-2, 2e-2, 3e-2)),
    "m-fac": (lambda params, lr: MFAC(params, lr=lr, window=64, damping=1e-3), (1e-3, 3e-3, 1e-2)),
    "m-fac, m = 256": (lambda params, lr: MFAC(params, lr=lr, window=256, damping=1e-5), (1e-3, 3e-3)),
}
WIDTHS = (64, 48, 24, 8, 24, 48, 64)
BATCH = 64


def pixels() -> Tensor:
    """All 1797 digits, (1797, 64) in [0, 1]."""
    return torch.as_tensor(digit_pictures()[0], dtype=torch.float32)


def auto_encoder(seed: int) -> nn.Sequential:
    """64-48-24-8-24-48-64 with tanh between and a sigmoid at the end."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width, following in pairwise(WIDTHS):
            layers += [nn.Linear(width, following), nn.Tanh()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def train(model: nn.Module, optimizer: Optimizer, data: Tensor, epochs: int, seed: int) -> None:
    """Batches of 64 in a random order that the seed decides; squared errors summed over pixels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(data), generator=generator).split(BATCH):
            x = data[index]
            optimizer.zero_grad()
            (model(x) - x).square().sum(1).mean().backward()
            optimizer.step()


def final_loss(name: str, lr: float, data: Tensor, epochs: int, seed: int) -> float:
    """Squared error per digit over all of the data after training from scratch; infinite if it diverged."""
    model = auto_encoder(seed)
    train(model, ARMS[name][0](model.parameters(), lr), data, epochs, seed)
    with torch.no_grad():
        loss = float((model(data) - data).square().sum(1).mean())
    return loss if loss == loss else float("inf")
