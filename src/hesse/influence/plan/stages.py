"""What a run will take, before it starts: time, memory and disk of every stage, from a few seconds of measuring.

The time of a stage is that of its own code on random rows of the model's own shapes, on this machine, scaled to the
whole data set. The model may live on the meta device: no weights are needed.

Shapes: p outputs, m columns, T tokens a sequence.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hesse.curvature.capture import BLOCK_ENTRIES
from hesse.curvature.layers import TrackedLayer, output_embedding
from hesse.curvature.routed import RoutedLinear
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError
from hesse.influence.fit import sum_dtype
from hesse.influence.plan.rates import LayerCost, MeasuredRates, Rates
from hesse.influence.plan.workload import Plan, StagePlan, Workload

__all__ = ["plan_stages", "rates_here"]


def rates_here(model: nn.Module) -> MeasuredRates:
    """Rates of this machine for a model: measured when they are asked for, each shape once.

    Parameters
    ----------
    model : nn.Module
        On any device; for one on "meta" this machine's CPU is measured, or its GPU if there is one.

    Returns
    -------
    MeasuredRates
        To plan with, as often as needed.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return MeasuredRates(floating_dtype(model), device)


def plan_stages(
    model: nn.Module,
    layers: Mapping[str, TrackedLayer],
    workload: Workload,
    *,
    strategy: str = "ekfac",
    blocks: int = 1,
    processes: int = 1,
    rates: Rates | None = None,
) -> Plan:
    """Estimate time, memory and disk of every stage of a run.

    Parameters
    ----------
    model : nn.Module
        On any device.
    layers : mapping of str to TrackedLayer
        Those that will be tracked.
    workload : Workload
        How much there is to do.
    strategy : {"ekfac", "kfac", "shampoo", "diagonal", "identity"}, default "ekfac"
        Which stages there are.
    blocks : int, default 1
        Diagonal blocks of the factors.
    processes : int, default 1
        They share the sequences and the eigendecompositions; memory is that of one of them, which holds the model and
        all factors.
    rates : Rates, default rates_here(model)
        How fast the machine is.

    Returns
    -------
    Plan
        Within a factor of two, as a rule, of what the run takes.

    Raises
    ------
    ArgumentError
        If ``blocks`` or ``processes`` is below one.

    Notes
    -----
    Takes a few seconds, half a minute for layers of an 8B model: one probe a distinct shape. Forward and backward of
    all matrices are counted, attention by its two products; what is neither (norms, softmax over the vocabulary) is
    left out, so that very small models come out too fast. Memory counts factors, of which only the blocks are kept,
    what the backward pass keeps of every matrix, five copies of the logits and the gradients formed at a time. Inputs
    that layers share are counted for each. A busy machine makes everything look slower.
    """
    for name, value in (("blocks", blocks), ("processes", processes)):
        if value < 1:
            raise ArgumentError(f"{name}: expected >= 1, got {value}")
    rates = rates_here(model) if rates is None else rates
    share_of = dict(_multiplying(model))
    shapes: dict[tuple[int, int, bool], float] = {}
    for layer in layers.values():
        key = (layer.out_features, layer.in_features, layer.has_bias)
        shapes[key] = shapes.get(key, 0.0) + share_of[layer.module]
    costs = [(rates.layer(*key, strategy, workload), count) for key, count in shapes.items()]
    cost = LayerCost(
        *(sum(getattr(one, name) * n for one, n in costs) for name in ("gram", "moment", "prepare", "score"))
    )
    length, fitted = workload.mean_length, workload.fitted / processes
    dtype = floating_dtype(model)
    size = 8 if dtype == torch.float64 else 4
    flops, held = _of_the_model(model, workload, size)
    passes = flops / rates.rate  # seconds a token, forward and dgrad
    ends = [(one.out_features, one.columns) for one in layers.values()]
    factors, tables = size * sum(p * p + m * m for p, m in ends) // blocks, size * sum(p * m for p, m in ends)
    sequences = max(1, round(workload.batch_tokens / length))
    block = size * max(min(BLOCK_ENTRIES, sequences * p * m) for p, m in ends)  # gradients formed at a time
    queries = _query_bytes(layers, workload, dtype.itemsize)
    stages = []
    if strategy in ("ekfac", "kfac", "shampoo"):
        sums = factors // size * sum_dtype(dtype).itemsize
        stages.append(StagePlan("covariance", fitted * length * (passes + cost.gram), sums + held, sums))
        widest = max(max(pair) for pair in ends)
        each = [rates.eigh(-(-n // blocks)) * blocks for pair in ends for n in pair]
        eigen = max(sum(each) / processes, *each)
        largest = size * widest**2 // blocks + 24 * (widest // blocks) ** 2
        stages.append(StagePlan("eigendecomposition", eigen, largest, factors))
    bases = factors if strategy in ("ekfac", "kfac", "shampoo") else 0
    if strategy in ("ekfac", "shampoo", "diagonal"):
        seconds = fitted * length * (passes + cost.moment)
        stages.append(StagePlan("eigenvalues", seconds, bases + tables + held + block, tables))
    tokens = workload.num_queries * (workload.query_length or length)
    prepare = tokens * passes + workload.num_queries * cost.prepare
    few = round(held * min(1.0, min(tokens, 2048) / workload.batch_tokens))
    stages.append(StagePlan("queries", prepare, bases + tables + queries + few + block, queries))
    scoring = workload.num_sequences / processes * length * (passes + cost.score)
    values = size * workload.num_queries * workload.num_sequences
    stages.append(StagePlan("scores", scoring, queries + held + block + values, 2 * values))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Plan(tuple(stages), weights, workload)


def _of_the_model(model: nn.Module, workload: Workload, size: int) -> tuple[float, int]:
    # FLOP a token forward and back without weight gradients, and the bytes a batch holds for the way back
    head = output_embedding(model)
    matrices = [
        (w.numel() * share, sum(w.shape) * share, m is head)
        for m, share in _multiplying(model)
        for w in m.parameters(recurse=False)
        if w.dim() == 2
    ]
    flops = 4 * sum(numbers for numbers, _, _ in matrices) + 3 * _attention_flops(model, workload.mean_length)
    # what goes into and comes out of each matrix; and of the logits five copies at once
    kept = floating_dtype(model).itemsize * sum(both for _, both, is_head in matrices if not is_head)
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 0)
    return flops, round(workload.batch_tokens * (kept + 5 * size * vocabulary))


def _query_bytes(layers: Mapping[str, TrackedLayer], workload: Workload, size: int) -> int:
    total, rank = 0, workload.rank
    for layer in layers.values():
        p, m = layer.out_features, layer.columns
        if rank is None or rank >= min(p, m):
            total += p * m
        else:
            total += rank * (p + m)
    return total * workload.num_queries * size


def _multiplying(model: nn.Module) -> Iterator[tuple[nn.Module, float]]:
    # modules that multiply by their weights, and the share of the tokens each sees: of an expert those routed to it
    experts: dict[nn.Module, int] = {
        module: len(group)
        for group in model.modules()
        if isinstance(group, nn.ModuleList)
        for module in group
        if isinstance(module, RoutedLinear)
    }
    chosen = getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            number = experts.get(module, 1)
            yield module, min(1.0, (chosen or number) / number)


def _attention_flops(model: nn.Module, length: float) -> float:
    # of one token: two products with all T keys and values, in every block
    config: Any = getattr(model, "config", None)
    width, depth = (getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers"))
    return 4.0 * length * width * depth if isinstance(width, int) and isinstance(depth, int) else 0.0
