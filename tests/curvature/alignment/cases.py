"""Three domains of unequal size behind a head, and the dense derivatives that autograd finds for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

F64 = torch.float64
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_head(p: int = 7, k: int = 4, *, bias: bool = True, dtype: torch.dtype = F64, seed: int = 0) -> nn.Linear:
    head = nn.Linear(p, k, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed), dtype=dtype))
    return head


def domains(loss: str, p: int = 7, k: int = 4, sizes: tuple[int, ...] = (9, 12, 5), seed: int = 1) -> list[Any]:
    """Features shifted by domain; targets as the loss wants them, with a class missing in the last domain."""
    generator = seeded(seed)
    made = []
    for e, n in enumerate(sizes):
        features = torch.randn(n, p, generator=generator, dtype=F64) + 0.5 * e
        if loss == "cross_entropy":
            targets = torch.randint(k - (e == len(sizes) - 1), (n,), generator=generator)
        elif loss == "binary_cross_entropy":
            targets = torch.randint(2, (n, k), generator=generator).to(F64)
        else:
            targets = torch.randn(n, k, generator=generator, dtype=F64)
        made.append((features, targets))
    return made


def loss_function(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as torch has it, a mean over examples and a sum over outputs."""
    if loss == "cross_entropy":
        return nn.functional.cross_entropy
    if loss == "binary_cross_entropy":
        return lambda z, y: nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(z)
    return lambda z, y: nn.functional.mse_loss(z, y, reduction="sum") / (2 * len(z))


def dense(head: nn.Linear, features: Tensor, targets: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Gradient (D,) and Hessian (D, D) in Θ = (W, b) read row by row, by torch.autograd.functional."""
    k, p = head.weight.shape
    columns = [head.weight] if head.bias is None else [head.weight, head.bias.unsqueeze(1)]
    theta = torch.cat(columns, dim=1).detach()

    def value(flat: Tensor) -> Tensor:
        matrix = flat.view(k, -1)
        logits = features @ matrix[:, :p].T
        return loss_function(loss)(logits if head.bias is None else logits + matrix[:, p], targets)

    flat = theta.reshape(-1)
    gradient = torch.autograd.functional.jacobian(value, flat)
    return gradient, torch.autograd.functional.hessian(value, flat)
