"""Colored MNIST made of scikit-learn's digits: a colour that goes with the label in training, against it in the test.

y = [digit < 5] with a quarter of the labels flipped; colour = y, flipped with probability e: 0.2 and 0.1 in the two
training domains, 0.9 in the test. No classifier that ignores colour is right more often than 75 %.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from benchmarks.data import digit_pictures
from hesse.curvature.alignment import (
    HessianAlignmentLoss,
    LossName,
    Penalty,
    PenaltyName,
    alignment_report,
    head_hessian,
)
from hesse.linalg import eigsh

__all__ = ["Colored", "Outcome", "balanced_digits", "imbalanced_digits", "train"]

Pair = tuple[Tensor, Tensor]
LOSS: LossName = "binary_cross_entropy"
TRAINING_NOISE, MIXED_NOISE, TEST_NOISE = (0.2, 0.1), 0.5, 0.9


@dataclass(frozen=True, slots=True)
class Colored:
    """Two training domains, the training pictures in a third where colour says nothing, and the test domain."""

    training: list[Pair]
    mixed: Pair  # weights are chosen here: e = 0.5 lies outside the training domains and is not the test
    test: Pair


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one training run ended with; accuracies are means over classes where ``balanced``."""

    training: float
    mixed: float
    test: float
    spectral: float  # ‖H_1 - H_2‖₂ on the training domains
    curvature: float  # ‖H_1‖₂, the size that this is to be seen against
    feature_variance: float


def balanced_digits(seed: int, *, draws: int = 8) -> Colored:
    """1400 pictures, in both training domains ``draws`` times, and 397 others in the test.

    The domains differ in nothing but colour. Every copy draws its label and colour anew, so that their noise cannot be
    learnt by heart: with one draw it is, and with it goes what a penalty could act on.
    """
    pictures, small = _pictures()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator)
    known, unknown = order[:1400], order[1400:]
    return _coloured(pictures, small, [known.repeat(draws)] * 2, known.repeat(2), unknown.repeat(8), generator)


def digits_labelled_once(seed: int) -> Colored:
    """700 pictures in one training domain, 700 others in the second, each with one label; 397 in the test."""
    pictures, small = _pictures()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator)
    parts = [order[:700], order[700:1400]]
    return _coloured(pictures, small, parts, order[:1400], order[1400:], generator)


def imbalanced_digits(seed: int, *, draws: int = 8) -> Colored:
    """The first domain has 90 % digits below five, the second has half; both have the same 700 of these and 600 others.

    1400 ``draws`` rows a domain; the test has the rest, 201 and 196, as many of each.
    """
    pictures, small = _pictures()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator)
    low, high = order[small[order] == 1], order[small[order] == 0]
    rows = 1400 * draws
    parts = [
        torch.cat([_repeated(low[:700], round(share * rows)), _repeated(high[:600], rows - round(share * rows))])
        for share in (0.9, 0.5)
    ]
    test = torch.cat([low[700:], high[600:796]])
    return _coloured(pictures, small, parts, torch.cat([low[:700], high[:600]]).repeat(2), test.repeat(8), generator)


def train(
    data: Colored,
    penalty: PenaltyName | Penalty,
    weight: float,
    *,
    seed: int,
    num_steps: int = 400,
    anneal_steps: int = 150,
    balanced: bool = False,
) -> Outcome:
    """A 128-64-64-1 perceptron, Adam 1e-3, l2 1e-3, full batches; weight 0 is empirical risk minimisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        head = nn.Linear(64, 1)
    network = nn.Sequential(body, head)
    beta = None if callable(penalty) else weight
    # as the paper's Colored MNIST code: with the mean held fixed a step need not lower the penalty, and diverges where
    # frequencies of labels differ
    criterion = HessianAlignmentLoss(head, LOSS, penalty, weight, beta, anneal_steps, detach_mean=False)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    # a picture in a colour is there many times, with labels drawn anew: its features are computed once a step
    rows, copies = torch.cat([x for x, _ in data.training]).unique(dim=0, return_inverse=True)
    sizes = [len(x) for x, _ in data.training]
    feature_variance = float("nan")
    for step in range(num_steps):
        features = body(rows).index_select(0, copies).split(sizes)
        loss, parts = criterion([(f, y) for f, (_, y) in zip(features, data.training, strict=True)], step)
        squares = torch.stack([p.square().sum() for p in parameters]).sum()
        optimizer.zero_grad()
        (loss + 1e-3 * squares / parts["scale"]).backward()
        optimizer.step()
        feature_variance = float(parts["feature_variance"])
    measure = _balanced_accuracy if balanced else _accuracy
    generator = torch.Generator().manual_seed(seed)
    found = alignment_report(network, head, data.training, loss=LOSS, generator=generator)
    return Outcome(
        sum(measure(network, pair) for pair in data.training) / len(data.training),
        measure(network, data.mixed),
        measure(network, data.test),
        float(found.spectral[0]),
        _top_eigenvalue(body, head, data.training[0], generator),
        feature_variance,
    )


def _top_eigenvalue(body: nn.Module, head: nn.Module, pair: Pair, generator: Generator) -> float:
    with torch.no_grad():
        features = body(pair[0])
        operator = head_hessian(features, head(features), pair[1], LOSS)
        return float(eigsh(operator, 1, which="LA", generator=generator).eigenvalues[0])


def _pictures() -> Pair:
    pixels, labels = digit_pictures()
    return torch.as_tensor(pixels).float().unflatten(1, (8, 8)), torch.as_tensor(labels < 5).long()


def _coloured(
    pictures: Tensor, small: Tensor, parts: list[Tensor], mixed: Tensor, test: Tensor, generator: Generator
) -> Colored:
    def domain(index: Tensor, noise: float) -> Pair:
        labels = small[index] ^ _flips(len(index), 0.25, generator)
        colours = labels ^ _flips(len(index), noise, generator)
        channels = torch.stack([pictures[index], pictures[index]], dim=1)
        channels[torch.arange(len(index)), 1 - colours] = 0
        return channels.flatten(1), labels

    training = [domain(index, noise) for index, noise in zip(parts, TRAINING_NOISE, strict=True)]
    return Colored(training, domain(mixed, MIXED_NOISE), domain(test, TEST_NOISE))


def _repeated(index: Tensor, count: int) -> Tensor:
    return index.repeat(count // len(index) + 1)[:count]


def _flips(count: int, probability: float, generator: Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < probability).long()


def _correct(network: Callable[[Tensor], Tensor], pair: Pair) -> Tensor:
    with torch.no_grad():
        return ((network(pair[0])[:, 0] > 0).long() == pair[1]).double()


def _accuracy(network: Callable[[Tensor], Tensor], pair: Pair) -> float:
    return float(_correct(network, pair).mean())


def _balanced_accuracy(network: Callable[[Tensor], Tensor], pair: Pair) -> float:
    correct = _correct(network, pair)
    return float(torch.stack([correct[pair[1] == label].mean() for label in (0, 1)]).mean())
