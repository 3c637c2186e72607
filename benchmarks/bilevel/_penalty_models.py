"""Cleaning digits with a lower model whose Hessian products are dear: a network that reads a picture row by row.

Module-level functions, so that the memory of each solver can be measured in a process of its own.
Shapes: B rows of a batch, 64 pixels a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.data import digits, flip_labels
from hesse.bilevel import SOBA, BilevelProblem, BilevelSolver, Budget, PenaltyBilevel, TensorSampler

__all__ = ["TIMED", "Cleaning", "RowReader", "RowWeights", "cleaning", "lower_loss", "prepared", "run_on", "upper_loss"]


class RowReader(nn.Module):
    """An LSTM over the eight rows of a picture, and a linear layer on its last state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 64) -> (B, 10)."""
        states: Tensor = self.cell(pixels.view(-1, 8, 8))[0]
        return self.head(states[:, -1])


class RowWeights(nn.Module):
    """One logit a training row; the weights are its sigmoids."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(rows))

    def forward(self, index: Tensor) -> Tensor:
        """(B,) numbers of rows -> (B,) weights."""
        return self.logits[index].sigmoid()


def lower_loss(weigh: Callable[..., Any], predict: Callable[..., Any], batch: Any) -> Tensor:
    """Weighted cross entropy on rows of doubtful labels."""
    index, pixels, labels = batch
    return (weigh(index) * cross_entropy(predict(pixels), labels, reduction="none")).mean()


def upper_loss(weigh: Callable[..., Any], predict: Callable[..., Any], batch: Any) -> Tensor:
    """Cross entropy on rows of trusted labels."""
    pixels, labels = batch
    return cross_entropy(predict(pixels), labels)


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Data and models of one seed, in single precision."""

    train: tuple[Tensor, Tensor, Tensor]  # numbers of the rows, pixels, labels
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    wrong: Tensor  # bool, of the training rows
    weights: RowWeights
    model: nn.Module
    batch_size: int
    seed: int

    def problem(self) -> BilevelProblem:
        """A problem with samplers of its own."""
        return BilevelProblem.from_modules(
            self.weights,
            self.model,
            upper_loss,
            lower_loss,
            lower_sampler=self.lower_sampler(),
            upper_sampler=self.upper_sampler(),
        )

    def lower_sampler(self) -> TensorSampler:
        """Batches of doubtful rows."""
        return TensorSampler(self.train, self.batch_size, seed=self.seed)

    def upper_sampler(self) -> TensorSampler:
        """Batches of trusted rows."""
        return TensorSampler(self.valid, self.batch_size, seed=self.seed + 1)

    def accuracy(self, parameters: dict[str, Tensor]) -> float:
        """Share of test rows that the model gets right with these parameters."""
        with torch.no_grad():
            outputs = torch.func.functional_call(self.model, parameters, (self.test[0],))
        return float((outputs.argmax(1) == self.test[1]).double().mean())

    def detection(self, logits: Tensor) -> float:
        """Area under the ROC curve of telling right labels from wrong ones by their weights."""
        return float((logits[~self.wrong][:, None] > logits[self.wrong][None]).double().mean())


def cleaning(kind: str, hidden: int, batch_size: int, seed: int) -> Cleaning:
    """Half of 1,000 labels replaced by wrong ones; 300 trusted rows, 497 for the test; ``kind`` is "lstm" or "mlp"."""
    split = digits(1300, seed=seed, dtype=torch.float32)
    labels, wrong = flip_labels(split.train_y[:1000], 0.5, 10, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(abs(seed))
        model = RowReader(hidden) if kind == "lstm" else _mlp(hidden)
    return Cleaning(
        train=(torch.arange(1000), split.train_x[:1000], labels),
        valid=(split.train_x[1000:], split.train_y[1000:]),
        test=(split.test_x, split.test_y),
        wrong=wrong,
        weights=RowWeights(1000),
        model=model,
        batch_size=batch_size,
        seed=seed,
    )


def _mlp(hidden: int) -> nn.Module:
    inner = nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
    return nn.Sequential(*inner, nn.Linear(hidden, 10))


STEPS: dict[str, Any] = {"lr": 1000.0, "lr_lower": 0.5}
TIMED: dict[str, Callable[[BilevelProblem], BilevelSolver]] = {
    "SOBA": partial(SOBA, lr=1.0, lr_lower=0.01),  # small steps: it must stay finite for as long as it is timed
    "momentum": partial(PenaltyBilevel, **STEPS),
    "plain": partial(PenaltyBilevel, **STEPS, momentum=1.0),
}


def prepared(name: str, kind: str, hidden: int, batch_size: int, seed: int) -> BilevelSolver:
    """A solver at its start."""
    return TIMED[name](cleaning(kind, hidden, batch_size, seed).problem())


def run_on(solver: BilevelSolver, steps: int = 10) -> None:
    """Some more steps; one look at the whole data at either end."""
    solver.run(Budget(iterations=solver.iteration + steps), trace_every=steps + 1)
