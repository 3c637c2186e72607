"""Small trained networks that the tests of this folder share, and the dense matrices they are judged by."""

import torch
from torch import Tensor, nn

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def small_conv(seed: int = 0) -> nn.Sequential:
    """A convolution and two linear layers, 178 weights, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 8), nn.Softplus(), nn.Linear(8, 3)
        )
    return net.double()


def small_batch(count: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return torch.randn(count, 1, 6, 6, generator=generator, dtype=F64), torch.randint(3, (count,), generator=generator)


def trained(net: nn.Module, batch, steps: int = 200) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net, batch).backward()
        optimizer.step()
    return net


def dense_block(net: nn.Module, loss_fn, batch, name: str) -> Tensor:
    """Hessian in one parameter, by autograd's own dense routine."""
    parameter = dict(net.named_parameters())[name].detach()

    def value(flat: Tensor) -> Tensor:
        def stand_in(*args):
            return torch.func.functional_call(net, {name: flat.view_as(parameter)}, args)

        return loss_fn(stand_in, batch)

    return torch.autograd.functional.hessian(value, parameter.reshape(-1))
