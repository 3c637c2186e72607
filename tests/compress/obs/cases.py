"""Small networks, data and dense matrices that the tests of this folder share."""

import torch
from torch import Tensor, nn

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def small_net(seed: int = 0, dtype: torch.dtype = F64) -> nn.Sequential:
    """8-12-4, 144 prunable weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)


def small_data(count: int = 96, seed: int = 1, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """Four classes that a linear map of the inputs decides."""
    generator = seeded(seed)
    x = torch.randn(count, 8, generator=generator, dtype=dtype)
    return x, (x @ torch.randn(8, 4, generator=generator, dtype=dtype)).argmax(1)


def trained(net: nn.Module, data, steps: int = 150) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net, data).backward()
        optimizer.step()
    return net


def dense_fisher(grads: Tensor, damping: float, block_size: int | None = None) -> Tensor:
    F = grads.mT @ grads / len(grads)
    if block_size is not None:
        block = torch.arange(len(F)) // block_size
        F = F * (block.unsqueeze(1) == block)
    return F + damping * torch.eye(len(F), dtype=grads.dtype)
