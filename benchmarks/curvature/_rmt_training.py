"""Many small networks trained side by side: 64-32-10 tanh on digits, one axis of seeds and one of settings.

Shapes: S seeds, R settings (learning rate, momentum), N examples, B to a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.data import digits

__all__ = ["NUM_TRAIN", "Fleet", "data", "epoch_batches", "mean_loss", "module", "random_batches", "train"]

NUM_TRAIN = 1437  # four fifths


def data(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs (N, 64), every pixel standardised over the training part (constant ones are zero), and labels (N,)."""
    split = digits(NUM_TRAIN, seed=seed, dtype=torch.float64)
    x = split.train_x
    spread = x.std(0)
    x = (x - x.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return x.to(dtype), split.train_y


def module(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """One network at torch's own initialisation, drawn without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(abs(seed))
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).to(dtype)


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats an example."""
    return cross_entropy(model(batch[0]), batch[1])


@dataclass(slots=True)
class Fleet:
    """S x R networks as stacked tensors."""

    weights: list[Tensor]  # (S, R, out, in) and (S, R, out), as in module().parameters()

    @classmethod
    def start(cls, seeds: list[int], num_settings: int) -> "Fleet":
        """The same initialisation for every setting of a seed."""
        nets = [list(module(seed).parameters()) for seed in seeds]
        stacked = [torch.stack(list(kind)).detach() for kind in zip(*nets, strict=True)]
        return cls([w.unsqueeze(1).repeat(1, num_settings, *[1] * (w.ndim - 1)) for w in stacked])

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """(S, R) mean losses on x (S, B, 64), y (S, B)."""
        w1, b1, w2, b2 = self.weights
        hidden = torch.tanh(x.unsqueeze(1) @ w1.mT + b1.unsqueeze(-2))
        logits = hidden @ w2.mT + b2.unsqueeze(-2)
        picked = logits.log_softmax(-1).gather(-1, y[:, None, :, None].expand(*logits.shape[:-1], 1))
        return -picked.squeeze(-1).mean(-1)

    def gradients(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Of each network's own loss: the sum over networks separates."""
        leaves = [w.requires_grad_() for w in self.weights]
        found = torch.autograd.grad(self.losses(x, y).sum(), leaves)
        self.weights = [w.detach() for w in leaves]
        return list(found)

    def member(self, seed_index: int, setting: int) -> nn.Sequential:
        """One of them as a module."""
        net = module(0)
        with torch.no_grad():
            for parameter, stacked in zip(net.parameters(), self.weights, strict=True):
                parameter.copy_(stacked[seed_index, setting])
        return net


def random_batches(seeds: list[int], size: int, num_steps: int) -> Iterator[Tensor]:
    """(S, B) rows, drawn without replacement within a batch."""
    generators = [torch.Generator().manual_seed(10_000 + abs(seed)) for seed in seeds]
    for _ in range(num_steps):
        yield torch.stack([torch.randperm(NUM_TRAIN, generator=g)[:size] for g in generators])


def epoch_batches(seeds: list[int], size: int, num_epochs: int) -> Iterator[Tensor]:
    """(S, B) rows of shuffled passes; the remainder of a pass is left out."""
    generators = [torch.Generator().manual_seed(20_000 + abs(seed)) for seed in seeds]
    for _ in range(num_epochs):
        orders = torch.stack([torch.randperm(NUM_TRAIN, generator=g) for g in generators])
        yield from orders[:, : NUM_TRAIN // size * size].split(size, dim=1)


def train(
    fleet: Fleet,
    sets: list[tuple[Tensor, Tensor]],
    batches: Iterator[Tensor],
    lr: Tensor,
    *,
    momentum: Tensor | float = 0.0,
    adam: bool = False,
) -> None:
    """Take one step a batch: heavy ball, or Adam at torch's defaults. Settings are () or (R,)."""
    x, y = torch.stack([s[0] for s in sets]), torch.stack([s[1] for s in sets])
    rates = [_like(lr, w) for w in fleet.weights]
    memories = [_like(torch.as_tensor(momentum), w) for w in fleet.weights]
    first = [torch.zeros_like(w) for w in fleet.weights]
    second = [torch.zeros_like(w) for w in fleet.weights]
    rows = torch.arange(len(sets)).unsqueeze(1)
    for step, picked in enumerate(batches, 1):
        gradients = fleet.gradients(x[rows, picked], y[rows, picked])
        for i, gradient in enumerate(gradients):
            if adam:
                first[i].mul_(0.9).add_(gradient, alpha=0.1)
                second[i].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                scale = (second[i] / (1 - 0.999**step)).sqrt_().add_(1e-8)
                fleet.weights[i] = fleet.weights[i] - rates[i] * first[i] / (1 - 0.9**step) / scale
            else:
                first[i].mul_(memories[i]).add_(gradient)
                fleet.weights[i] = fleet.weights[i] - rates[i] * first[i]


def _like(setting: Tensor, stacked: Tensor) -> Tensor:
    # () or (R,), to broadcast over seeds and over the axes of a parameter
    setting = setting.to(stacked.dtype)
    return setting.reshape(*setting.shape, *[1] * (stacked.ndim - 2)) if setting.ndim else setting
