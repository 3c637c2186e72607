"""Baselines that need no gradient: shared words, and the angle between what the model makes of two texts.

Shapes: Q queries, N training sequences.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.layers import output_embedding
from hesse.errors import ArgumentError
from hesse.influence.examples import Examples, as_examples, plan_batches
from hesse.influence.gradients import collated
from hesse.influence.lexical import bm25_scores
from hesse.influence.objective import CausalLMLoss, Loss
from hesse.influence.passes import check_model
from hesse.influence.streams import token_rows

__all__ = ["bm25", "embedding_cosine"]


def bm25(model: nn.Module | None, queries: Any, dataset: Any, *, k1: float = 1.5, b: float = 0.75) -> Tensor:
    """Okapi BM25 over token ids: which sequences share rare tokens with the query.

    Parameters
    ----------
    model : nn.Module, optional
        Not looked at: there so that every baseline is called alike.
    queries, dataset : Examples, or anything `as_examples` takes
        Token sequences; of a query prompt and completion both count.
    k1, b : float
        See `bm25_scores`.

    Returns
    -------
    Tensor, shape (Q, N)
        float32, at least 0, without a unit; higher is more alike.

    Raises
    ------
    ArgumentError
        If either holds no tokens, or an option is out of range.
    """
    tokens = [
        list(token_rows(examples, range(len(examples)), name))
        for name, data in (("queries", queries), ("dataset", dataset))
        for examples in (as_examples(data, argument=name),)
    ]
    return torch.from_numpy(bm25_scores(*tokens, k1=k1, b=b))


def embedding_cosine(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    *,
    layer: str | None = None,
    loss: Loss | None = None,
    batch_tokens: int = 4096,
) -> Tensor:
    """Cosine of the mean hidden states of two texts, at the input of one layer.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    queries, dataset : Examples, or anything `as_examples` takes
        Every attended position of a sequence counts alike, prompt and completion.
    layer : str, optional
        Dotted name of the module whose input is taken. Default: the output embedding of a model of transformers, the
        last `nn.Linear` of any other.
    loss : Loss, default CausalLMLoss()
        Calls the model, and says which positions are attended.
    batch_tokens : int, default 4096
        Padded tokens a batch.

    Returns
    -------
    Tensor, shape (Q, N)
        From -1 to 1, without a unit; not centred.

    Raises
    ------
    ArgumentError
        If there is no such layer, it is not called with hidden states of the sequences, or documents are packed.
    """
    check_model(model)
    objective: Loss = CausalLMLoss() if loss is None else loss
    module = _layer(model, layer)
    asked, found = (
        _embeddings(model, module, objective, as_examples(data, argument=name), batch_tokens)
        for name, data in (("queries", queries), ("dataset", dataset))
    )
    return asked @ found.T


def _layer(model: nn.Module, name: str | None) -> nn.Module:
    modules = dict(model.named_modules())
    if name is not None:
        if name not in modules:
            raise ArgumentError(f"layer: the model has no module {name!r}")
        return modules[name]
    head = output_embedding(model)
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    if head is None and not linear:
        raise ArgumentError("layer: the model has no output embedding and no nn.Linear; name the module to look at")
    return linear[-1] if head is None else head


@torch.no_grad()
def _embeddings(model: nn.Module, module: nn.Module, loss: Loss, examples: Examples, batch_tokens: int) -> Tensor:
    device = next(model.parameters()).device
    seen: list[Tensor] = []
    out: Tensor | None = None
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        for places in plan_batches(examples.lengths, range(len(examples)), batch_tokens):
            batch = collated(examples, places, device)
            if batch.get("segment_ids") is not None:
                raise ArgumentError("dataset: an embedding is that of a row; do not pack documents")
            seen.clear()
            attended = loss.positions(batch, loss(model, batch).valid)[0]
            if not seen:
                raise ArgumentError("layer: it was not called in a forward pass")
            pooled = _pool(seen[-1], attended if isinstance(attended, Tensor) else None)
            if len(pooled) != len(places):
                raise ArgumentError(
                    f"layer: its input has {len(pooled)} rows for a batch of {len(places)} sequences; choose another"
                )
            unit = torch.nn.functional.normalize(pooled, dim=1)
            out = unit.new_zeros(len(examples), unit.shape[1]) if out is None else out
            out[places] = unit
    finally:
        handle.remove()
    return torch.zeros(0, 0) if out is None else out


def _pool(hidden: Tensor, attended: Tensor | None) -> Tensor:
    wide = hidden.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    if wide.ndim == 2:
        return wide
    if attended is None or attended.shape != wide.shape[:2]:
        return wide.flatten(1, -2).mean(1)
    weight = attended.to(wide.dtype)[..., None]
    return (wide * weight).sum(1) / weight.sum(1).clamp_min(1)
