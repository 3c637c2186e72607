"""The digits classifier that pruners of single weights meet on, and every arm's accuracy right after pruning."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.data import Split, digits
from hesse.compress import OBSPruner

__all__ = ["ARMS", "Arm", "accuracy", "classifier", "pruned"]

WIDTHS = (64, 64, 32, 10)
NUM_TRAIN, BATCH = 1300, 64
NUM_GRADS = 512  # of single examples
DAMPING = {"whole": 1e-5, "blocks": 1e-4}  # each the best of 1e-6 ... 1e-3 at 0.9 for seeds 0 to 4

Arm = Callable[[nn.Module, Split, float, int], None]
"""(module, data, sparsity, seed): prunes in place."""


def _loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def classifier(seed: int, epochs: int) -> tuple[nn.Sequential, Split]:
    """64-64-32-10 with ReLU, trained by Adam on 1300 digits; initial weights, split and batches follow the seed."""
    data = digits(NUM_TRAIN, seed=seed, dtype=torch.float32)
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width, following in pairwise(WIDTHS):
            layers += [nn.Linear(width, following), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(NUM_TRAIN, generator=order).split(BATCH):
            optimizer.zero_grad()
            _loss(model, (data.train_x[index], data.train_y[index])).backward()
            optimizer.step()
    return model, data


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Share of the test rows whose digit is told right."""
    return float((model(data.test_x).argmax(1) == data.test_y).float().mean())


def _magnitude(model: nn.Module, _data: Split, sparsity: float, _seed: int) -> None:
    places = [(layer, "weight") for layer in model.modules() if isinstance(layer, nn.Linear)]
    prune.global_unstructured(places, pruning_method=prune.L1Unstructured, amount=sparsity)


def _surgeon(block_size: int | None = None, **options: Any) -> Arm:
    def prune_by_obs(model: nn.Module, data: Split, sparsity: float, seed: int) -> None:
        pruner = OBSPruner(
            model,
            _loss,
            num_grads=NUM_GRADS,
            batch_size=NUM_GRADS,
            per_sample=True,
            damping=DAMPING["whole" if block_size is None else "blocks"],
            block_size=block_size,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        pruner.prune(sparsity, (data.train_x, data.train_y))

    return prune_by_obs


ARMS: dict[str, Arm] = {  # R = 16 is the default
    "magnitude": _magnitude,
    "diagonal, R = 16": _surgeon(block_size=1),
    "block 128, R = 16": _surgeon(block_size=128),
    "M-FAC, R = 1": _surgeon(recompute=1),
    "M-FAC, R = 8": _surgeon(recompute=8),
    "M-FAC, R = 16": _surgeon(),
    "joint, block 128, R = 8": _surgeon(block_size=128, recompute=8, joint=True),
    "joint, M-FAC, R = 8": _surgeon(recompute=8, joint=True),
}


def pruned(arm: str, model: nn.Module, data: Split, sparsity: float, seed: int) -> float:
    """Test accuracy of a copy of the model right after pruning, without training."""
    smaller = copy.deepcopy(model)
    ARMS[arm](smaller, data, sparsity, seed)
    return accuracy(smaller, data)
