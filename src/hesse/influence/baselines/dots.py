"""Scores without curvature: gradients multiplied with gradients, plainly, as cosines, or over checkpoints.

Shapes: Q queries, N training sequences.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.layers import Picker
from hesse.errors import ArgumentError
from hesse.influence.baselines.checkpoints import each_checkpoint
from hesse.influence.examples import Examples, as_examples
from hesse.influence.gradients import gradient_pass, stacked_gradients, stream_gradients
from hesse.influence.objective import Loss
from hesse.influence.passes import Pass

__all__ = ["gradient_cosine", "gradient_dot", "tracin"]


def gradient_dot(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    *,
    modules: Picker = "mlp",
    loss: Loss | None = None,
    batch_tokens: int = 4096,
) -> Tensor:
    """(1/N) ⟨∇L(q), ∇L(z_n)⟩: no curvature at all; `Influence` with ``strategy="identity"`` keeps the same in a run.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    queries, dataset : Examples, or anything `as_examples` takes
        Labels of the queries on the completion only.
    modules : str or callable, default "mlp"
        Layers whose weights count; see `select_layers`.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.
    batch_tokens : int, default 4096
        Padded tokens a batch.

    Returns
    -------
    Tensor, shape (Q, N)
        Nats of the query's log-probability after one gradient step, of unit learning rate, on the sequence's share of
        the mean loss. Positive raises it.

    Raises
    ------
    MemoryLimitError
        If the queries' gradients would not fit.

    Notes
    -----
    One backward pass a sequence, and Q products with its gradient; Q whole gradients are held.
    """
    asked, examples = as_examples(queries, argument="queries"), as_examples(dataset)
    run_pass = gradient_pass(model, modules, loss)
    return _products(run_pass, asked, examples, batch_tokens)[0] / len(examples)


def gradient_cosine(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    *,
    modules: Picker = "mlp",
    loss: Loss | None = None,
    batch_tokens: int = 4096,
) -> Tensor:
    """Cosine of the angle between the gradients of a query's and of a sequence's loss, over all tracked weights.

    Parameters
    ----------
    model, queries, dataset, modules, loss, batch_tokens : see `gradient_dot`
        As there.

    Returns
    -------
    Tensor, shape (Q, N)
        From -1 to 1, without a unit; 0 where a gradient is zero. It leaves out that sequences with a large gradient
        move the model more.

    Raises
    ------
    MemoryLimitError
        If the queries' gradients would not fit.
    """
    asked, examples = as_examples(queries, argument="queries"), as_examples(dataset)
    run_pass = gradient_pass(model, modules, loss)
    products, own, squares = _products(run_pass, asked, examples, batch_tokens)
    norms = own[:, None].sqrt() * squares.sqrt()
    return torch.where(norms > 0, products / torch.where(norms > 0, norms, 1), 0)


def tracin(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    *,
    checkpoints: Iterable[Mapping[str, Tensor]],
    learning_rates: Items[float],
    modules: Picker = "mlp",
    loss: Loss | None = None,
    batch_tokens: int = 4096,
) -> Tensor:
    """Σ_k η_k ⟨∇L(q), ∇L(z_n)⟩ at checkpoint k: by how much the steps of training that saw a sequence helped a query.

    Parameters
    ----------
    model : nn.Module
        In eval mode; not changed. Checkpoints are loaded into a copy.
    queries, dataset, modules, loss, batch_tokens : see `gradient_dot`
        As there.
    checkpoints : iterable of mappings
        State dictionaries of the model, in any order; a generator holds one at a time.
    learning_rates : sequence of float
        η of every checkpoint, for one sequence: the learning rate by the batch size, times the visits to a sequence
        that the checkpoint stands for.

    Returns
    -------
    Tensor, shape (Q, N)
        Nats of the query's log-probability that plain gradient steps on the sequence brought, to first order.

    Raises
    ------
    ArgumentError
        If there are not as many rates as checkpoints, a rate is negative, or a state does not fit the model.

    References
    ----------
    G. Pruthi, F. Liu, M. Sundararajan, S. Kale (2020), NeurIPS, arXiv 2002.08484.
    """
    rates = [float(rate) for rate in learning_rates]
    if not rates or min(rates) < 0:
        raise ArgumentError(f"learning_rates: expected numbers >= 0, at least one, got {rates}")
    asked, examples = as_examples(queries, argument="queries"), as_examples(dataset)
    total = torch.zeros(())
    for rate, at in zip(rates, each_checkpoint(model, checkpoints, len(rates)), strict=True):
        products = _products(gradient_pass(at, modules, loss), asked, examples, batch_tokens)[0]
        total = total.to(products) + rate * products
    return total


def _products(
    run_pass: Pass, queries: Examples, examples: Examples, batch_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    # dot products (Q, N), and squared norms (Q,) and (N,)
    asked = stacked_gradients(run_pass, queries, batch_tokens=batch_tokens)
    rows = {name: stack.flatten(1) for name, stack in asked.items()}
    first = next(iter(rows.values()))
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    products = torch.zeros(len(queries), len(examples), dtype=wide, device=first.device)
    squares = torch.zeros(len(examples), dtype=wide, device=first.device)

    def consume(name: str, places: list[int], gradients: Tensor) -> None:
        block = gradients.flatten(1)
        products[:, places] += (rows[name] @ block.T).to(wide)
        squares[places] += block.square().sum(1, dtype=wide)

    stream_gradients(run_pass, examples, consume, batch_tokens=batch_tokens)
    own = torch.stack([stack.square().sum(1, dtype=wide) for stack in rows.values()]).sum(0)
    return products, own, squares
