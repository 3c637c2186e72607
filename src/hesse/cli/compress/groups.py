"""Channels and heads cut out of a model: at once by a curvature score, or while it trains a little more (HESSO).

Shapes: G groups, M gradients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse._progress import progress
from hesse.cli.compress.subject import Subject, num_examples, take
from hesse.compress import HESSO, DependencyGraph, fisher_scores, quantizable_weights, select_groups
from hesse.curvature import gradient_rows
from hesse.errors import ArgumentError, NumericalError

__all__ = ["Training", "cut_at_once", "fade_out", "group_graph"]


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast to train while groups fade out."""

    epochs: int
    lr: float
    batch_size: int
    seed: int


def group_graph(subject: Subject) -> DependencyGraph:
    """Find the groups of the subject's module.

    Parameters
    ----------
    subject : Subject
        Groups that own or read a weight beside ``subject.weights`` are left alone.

    Returns
    -------
    DependencyGraph
        A language model's embedding is not cut.
    """
    wanted = set(subject.weights)
    skip = [weight.name for weight in quantizable_weights(subject.module) if weight.name not in wanted]
    if subject.is_language_model:
        model: Any = subject.module
        embedding = model.get_input_embeddings()
        skip += [name for name, part in subject.module.named_modules() if part is embedding]
    return DependencyGraph(subject.module, subject.example(), skip=skip)


def cut_at_once(subject: Subject, graph: DependencyGraph, sparsity: float, *, num_grads: int, seed: int) -> None:
    """Zero the groups of least loss by the empirical Fisher matrix for what they hold; the rest does not move.

    Parameters
    ----------
    subject : Subject
        Its module is changed in place.
    graph : DependencyGraph
        Of the module.
    sparsity : float
        Share of the subject's weights that is cut, rounded up to whole groups.
    num_grads : int
        M, of single examples; a few in memory at a time.
    seed : int
        Of the order of examples.

    Raises
    ------
    ArgumentError
        If so many cannot be cut.
    """
    draw = torch.Generator().manual_seed(seed)
    size = 1 if subject.is_language_model else 64  # gradients of a language model are large: one at a time
    losses_G = torch.zeros(graph.num_groups, dtype=torch.float64)
    with progress("group scores", num_grads, unit="gradients") as advance:
        for start in range(0, num_grads, size):
            count = min(size, num_grads - start)
            rows = gradient_rows(
                subject.module,
                subject.loss_fn,
                subject.calibration,
                count,
                count,
                per_sample=not subject.is_language_model,
                generator=draw,
            )
            losses_G += fisher_scores(graph, rows).double().cpu() * count
            advance(count)
    costs_G = graph.costs("parameters")
    none_G = torch.zeros(graph.num_groups, dtype=torch.bool)

    def cheapest(budget: float) -> Tensor:
        return select_groups(losses_G / costs_G, none_G, graph.family_of, costs_G, budget * float(costs_G.sum()))

    graph.zero_(_enough(subject, graph, sparsity, cheapest)[1])


def fade_out(subject: Subject, graph: DependencyGraph, sparsity: float, training: Training) -> None:
    """Train with AdamW on the calibration examples while HESSO takes groups to zero.

    Parameters
    ----------
    subject : Subject
        Its module is changed in place, and left in evaluation mode.
    graph : DependencyGraph
        Of the module.
    sparsity : float
        Share of the subject's weights that would be cut if every family lost equally many of its groups, which HESSO's
        scores come near to.
    training : Training
        A tenth of the steps go by before the first group is chosen, the next half is for pruning.

    Raises
    ------
    ArgumentError
        If there are too few steps, or so many weights cannot be cut.
    NumericalError
        If the loss is not finite any more.
    """
    steps = training.epochs * -(-num_examples(subject.calibration) // training.batch_size)
    pruning = steps // 2
    if pruning < 1:
        raise ArgumentError(f"epochs: {steps} training steps leave none to prune in; more --epochs, or examples")
    module = subject.module
    optimizer = HESSO(
        graph,
        torch.optim.AdamW(module.parameters(), lr=training.lr, weight_decay=0.0),
        _enough(subject, graph, sparsity, lambda share: _evenly(graph, share))[0],
        start_step=steps // 10,
        pruning_steps=pruning,
        periods=min(5, pruning),
    )
    module.train()
    with progress("training", steps, unit="steps") as advance:
        for batch in _shuffled(subject.calibration, training):
            optimizer.zero_grad()
            loss = subject.loss_fn(module, batch)
            if not bool(loss.isfinite()):
                raise NumericalError(f"lr: the loss became {float(loss)} in training; use a smaller --lr")
            loss.backward()
            optimizer.step()
            advance(1)
    optimizer.zero_grad()
    module.eval()


def _enough(
    subject: Subject, graph: DependencyGraph, sparsity: float, choose: Callable[[float], Tensor]
) -> tuple[float, Tensor]:
    # the least share of groups, and those that it chooses, that cuts so much of the weights
    least, most = 0.0, 1.0
    found = choose(most)
    if _share_cut(subject, graph, found) < sparsity:
        raise ArgumentError(
            f"sparsity: no more than {_share_cut(subject, graph, found):.3g} of the weights can be cut with whole "
            f"channels and heads, got {sparsity:g}"
        )
    while most - least > 1e-4:
        middle = (least + most) / 2
        chosen = choose(middle)
        if _share_cut(subject, graph, chosen) < sparsity:
            least = middle
        else:
            most, found = middle, chosen
    return most, found


def _share_cut(subject: Subject, graph: DependencyGraph, cut_G: Tensor) -> float:
    # a weight may lose rows and columns: what is left of it is the product
    parameters = dict(subject.module.named_parameters())
    left = {name: float(parameters[name].numel()) for name in subject.weights}
    total = sum(left.values())
    marked = torch.cat([cut_G.cpu(), torch.zeros(1, dtype=torch.bool)])  # the last is where -1 points
    for axis in graph.axes:
        if axis.name in left:
            left[axis.name] *= 1 - float(marked[axis.groups].double().mean())
    return 1 - sum(left.values()) / total


def _evenly(graph: DependencyGraph, share: float) -> Tensor:
    cut_G = torch.zeros(graph.num_groups, dtype=torch.bool)
    for family in graph.families:
        cut_G[family.groups[: min(round(share * len(family.groups)), len(family.groups) - 1)]] = True
    return cut_G


def _shuffled(examples: Any, training: Training) -> Iterator[Any]:
    draw = torch.Generator().manual_seed(training.seed)
    for _ in range(training.epochs):
        order: Tensor = torch.randperm(num_examples(examples), generator=draw)
        for index in order.split(training.batch_size):
            yield take(examples, index)
