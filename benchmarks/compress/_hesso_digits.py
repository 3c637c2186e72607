"""The digits network of the HESSO claims, trained once per arm and seed: ours, its ablations, and the peers.

1300 rows, batches of 64, SGD with momentum, a cosine schedule: the same for every arm. Accuracies are on the other 497.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.compress._hesso_peers import OnlyTrainOnce, TorchPruning
from benchmarks.data import digits
from hesse.compress import CRIC, HESSO, DependencyGraph, obs_scores, slim_report
from hesse.curvature import gradient_rows

__all__ = ["ARMS", "MAGNITUDE", "Outcome", "digits_net", "pictures", "train_arm"]

BATCH = 64
MAGNITUDE = {"magnitude": 1.0}
NO_COSINE = dict.fromkeys(("magnitude", "mean_magnitude", "taylor", "taylor_squared"), 0.2)
PUBLISHED_CRIC = CRIC(sampling_steps=10, trial_sparsities=(0.25, 0.5, 0.75), loss_term="family")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm came to."""

    accuracy: float
    share_left: float  # of the parameters
    cut: list[float]  # share of every family's groups
    difference: float  # of the outputs by slimming
    module: nn.Module = field(repr=False)


@cache
def pictures(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test pictures with their labels."""
    d = digits(1300, seed=seed, dtype=torch.float32)
    return d.train_x.reshape(-1, 1, 8, 8), d.train_y, d.test_x.reshape(-1, 1, 8, 8), d.test_y


def digits_net(seed: int) -> nn.Sequential:
    """Convolutions of 16, 32 and 32 channels with batch norm, a hidden layer of 64: 144 groups."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width, following, pool in ((1, 16, False), (16, 32, True), (32, 32, True)):
            layers += [nn.Conv2d(width, following, 3, padding=1), nn.BatchNorm2d(following), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * pool
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def sgd(module: nn.Module) -> SGD:
    return SGD(module.parameters(), lr=0.05, momentum=0.9)


def loop(module: nn.Module, optimizer: Any, seed: int, epochs: int, step: Callable[[Tensor], None]) -> None:
    """The plain training loop that every arm shares; ``step`` is called after each backward pass."""
    x, y, *_ = pictures(seed)
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x[rows]), y[rows])
            loss.backward()
            step(loss)


def num_steps(epochs: int) -> int:
    return epochs * -(-1300 // BATCH)


@torch.no_grad()
def accuracy(module: nn.Module, seed: int) -> float:
    _, _, x, y = pictures(seed)
    module.eval()
    return float((module(x).argmax(1) == y).float().mean())


def _hesso(seed: int, sparsity: float, epochs: int, **options: Any) -> Outcome:
    module, steps = digits_net(seed), num_steps(epochs)
    graph = DependencyGraph(module, pictures(seed)[0][:2])
    if "obs" in options.get("criteria", {}):
        options["extra_scores"] = {"obs": lambda: _obs(graph, seed)}
    schedule = {"start_step": steps // 6, "pruning_steps": steps // 2, "periods": 5, "min_keep": 2}
    optimizer = HESSO(graph, sgd(module), sparsity, **(schedule | options))
    scheduler = CosineAnnealingLR(optimizer, steps)

    def step(loss: Tensor) -> None:
        optimizer.step(loss=loss)
        scheduler.step()

    loop(module, optimizer, seed, epochs, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at smoke size the schedule may not end; the accuracy tells
        optimizer.finalize()
    return _slimmed(graph, optimizer.pruned, seed)


def _slimmed(graph: DependencyGraph, pruned: Tensor, seed: int) -> Outcome:
    report = slim_report(graph)
    cut = [float(pruned[family.groups].float().mean()) for family in graph.families]
    left = report.num_parameters[1] / report.num_parameters[0]
    return Outcome(accuracy(report.module, seed), left, cut, report.difference, report.module)


def _obs(graph: DependencyGraph, seed: int) -> Tensor:
    x, y, *_ = pictures(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = gradient_rows(
        graph.module,
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        (x, y),
        64,
        batch_size=8,
        generator=generator,
    )
    return obs_scores(graph, rows, damping=1e-4)


def _after_training(seed: int, sparsity: float, epochs: int) -> Outcome:
    """Dense training, then the lowest scores are cut and nothing is tuned."""
    module = digits_net(seed)
    graph = DependencyGraph(module, pictures(seed)[0][:2])
    optimizer = HESSO(graph, sgd(module), sparsity, start_step=10**9, min_keep=2)
    scheduler = CosineAnnealingLR(optimizer, num_steps(epochs))

    def step(_loss: Tensor) -> None:
        optimizer.step()
        scheduler.step()

    loop(module, optimizer, seed, epochs, step)
    pruned = optimizer.select(optimizer.score(), optimizer.total_budget)
    graph.zero_(pruned)
    return _slimmed(graph, pruned, seed)


def _hard_cut(seed: int, sparsity: float, epochs: int) -> Outcome:
    """The same choice at the end of warm-up, zeroed at once."""
    return _hesso(seed, sparsity, epochs, pruning_steps=1, periods=1)


def _torch_pruning(seed: int, sparsity: float, epochs: int, importance: str) -> Outcome:
    """torch-pruning cuts physically, at the first steps of our five periods, and its optimiser begins anew."""
    module, steps = digits_net(seed), num_steps(epochs)
    total = sum(p.numel() for p in module.parameters())
    pruner = TorchPruning(module, pictures(seed)[0][:2], sparsity, importance, rounds=5, last=module[-1])
    state: dict[str, Any] = {"optimizer": sgd(module), "step": 0}
    scheduler_rate = [group["lr"] for group in _rates(steps)]
    begins = {steps // 6 + k * (steps // 2 // 5) for k in range(5)}

    class Current:
        @staticmethod
        def zero_grad() -> None:
            state["optimizer"].zero_grad()

    def step(_loss: Tensor) -> None:
        if state["step"] in begins:
            pruner.cut()  # on the gradients just made, which its Taylor importance reads
            state["optimizer"] = sgd(module)
        else:
            for group in state["optimizer"].param_groups:
                group["lr"] = scheduler_rate[state["step"]]
            state["optimizer"].step()
        state["step"] += 1

    loop(module, Current, seed, epochs, step)
    left = sum(p.numel() for p in module.parameters()) / total
    return Outcome(accuracy(module, seed), left, pruner.shares(), 0.0, module)


def _rates(steps: int) -> list[dict[str, float]]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer: Optimizer = SGD([parameter], lr=0.05)
    scheduler = CosineAnnealingLR(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append({"lr": optimizer.param_groups[0]["lr"]})
        optimizer.step()
        scheduler.step()
    return found


def _only_train_once(seed: int, sparsity: float, epochs: int) -> Outcome:
    """The authors' own optimiser on the groups of our graph; it keeps one group a layer, and knows no more."""
    module, steps = digits_net(seed), num_steps(epochs)
    graph = DependencyGraph(module, pictures(seed)[0][:2])
    optimizer = OnlyTrainOnce(graph, sparsity, steps // 6, steps // 2, 5, lr=0.05, momentum=0.9)
    rates = iter(_rates(steps))

    def step(_loss: Tensor) -> None:
        optimizer.step(next(rates)["lr"])

    loop(module, module, seed, epochs, step)
    return _slimmed(graph, graph.zero_groups(), seed)


Arm = Callable[[int, float, int], Outcome]


def _ours(**options: Any) -> Arm:
    return lambda seed, sparsity, epochs: _hesso(seed, sparsity, epochs, **options)


ARMS: dict[str, Arm] = {
    "dense": lambda seed, _sparsity, epochs: _hesso(seed, 0.0, epochs),
    "hesso": _ours(),
    "hesso, v = update": _ours(direction="update"),
    "hesso, flipped cosine": _ours(cosine_sign=-1),
    "hesso, no cosine": _ours(criteria=NO_COSINE),
    "hesso, magnitude only": _ours(criteria=MAGNITUDE),
    "hesso, obs only": _ours(criteria={"obs": 1.0}),
    "as released": _ours(normalize="global"),
    "as released, flipped cosine": _ours(normalize="global", cosine_sign=-1),
    "as released, no cosine": _ours(normalize="global", criteria=NO_COSINE),
    "as released, magnitude only": _ours(normalize="global", criteria=MAGNITUDE),
    "as released, one period": _ours(normalize="global", periods=1),
    "as released, a twelfth later": lambda seed, sparsity, epochs: _hesso(
        seed, sparsity, epochs, normalize="global", start_step=num_steps(epochs) // 4
    ),  # about where the cycle ends
    "cric": _ours(normalize="global", cric=CRIC(sampling_steps=10)),
    "cric, no loss term": _ours(normalize="global", cric=CRIC(sampling_steps=10, loss_weight=0.0)),
    "cric, loss term as released": _ours(normalize="global", cric=PUBLISHED_CRIC),
    "cric as released": _ours(normalize="global", periods=1, cric=PUBLISHED_CRIC),
    "hard cut": _hard_cut,
    "after training": _after_training,
    "torch-pruning, magnitude": lambda seed, s, epochs: _torch_pruning(seed, s, epochs, "magnitude"),
    "torch-pruning, taylor": lambda seed, s, epochs: _torch_pruning(seed, s, epochs, "taylor"),
    "only-train-once": _only_train_once,
}


@cache
def train_arm(name: str, sparsity: float, seed: int, epochs: int) -> Outcome:
    """Train one arm; claims that ask for the same one share it."""
    return ARMS[name](seed, sparsity, epochs)
