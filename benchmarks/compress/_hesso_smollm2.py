"""HESSO on SmolLM2-135M: key heads and MLP channels chosen by its score or by magnitude, at equal size and tokens."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, Scale
from benchmarks.compress._hawq_smollm2 import load, rows_of_tokens
from hesse.compress import HESSO, DependencyGraph, slim_report

__all__ = ["claim_smollm2"]

BATCH = 2  # rows of 128 tokens
ARMS: dict[str, dict[str, Any]] = {
    "hesso": {},
    "magnitude, layer by layer": {"criteria": {"magnitude": 1.0}},
    "magnitude": {"criteria": {"magnitude": 1.0}, "normalize": "global"},
}


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def _perplexity(model: nn.Module, rows: Tensor) -> float:
    model.eval()
    return math.exp(sum(float(_loss(model, part)) * len(part) for part in rows.split(4)) / len(rows))


def claim_smollm2(scale: Scale) -> list[Claim]:
    """A fifth of what its layers hold, cut in 15 of 24 training steps: some 6,000 tokens to an arm."""
    original, tokenizer = load()
    steps, held_out_rows = scale(smoke=2, full=24), scale(smoke=2, full=24)
    rows = rows_of_tokens(tokenizer, BATCH * steps + held_out_rows, scale.seed)
    training, held_out = rows[: BATCH * steps], rows[BATCH * steps :]
    example = {"input_ids": torch.zeros(1, 8, dtype=torch.int64), "use_cache": False}
    arms = {name: ARMS[name] for name in scale(smoke=("hesso", "magnitude"), full=tuple(ARMS))}
    perplexities, sizes, differences = {"before": _perplexity(original, held_out)}, {}, []
    for name, options in arms.items():
        model = copy.deepcopy(original)
        graph = DependencyGraph(model, example, skip=["model.embed_tokens"])
        pruning = scale(smoke=1, full=15)
        optimizer = HESSO(
            graph,
            torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0),
            0.2,
            start_step=scale(smoke=0, full=1),
            pruning_steps=pruning,
            periods=scale(smoke=1, full=5),
            budget="parameters",
            **options,
        )
        model.train()
        for batch in training.split(BATCH):
            optimizer.zero_grad()
            _loss(model, batch).backward()
            optimizer.step()
        optimizer.finalize()
        report = slim_report(graph)
        perplexities[name] = _perplexity(report.module, held_out)
        sizes[name] = report.num_parameters[1]
        differences.append(report.difference)
        del model, graph, optimizer, report
    best = min(value for name, value in perplexities.items() if name.startswith("magnitude"))
    rows_of_claim = {
        "perplexity": perplexities,
        "parameters": sizes | {"before": sum(p.numel() for p in original.parameters())},
        "training tokens an arm": BATCH * steps * (rows.shape[1] - 1),
        "held-out tokens": held_out_rows * (rows.shape[1] - 1),
    }
    return [
        Claim(
            "SmolLM2-135M, a fifth of its layers cut: perplexity of the best choice by magnitude over HESSO's",
            best / perplexities["hesso"],
            1.0,
            "higher",
            rows_of_claim,
            full_only=True,
        ),
        Claim("SmolLM2-135M: outputs unchanged by slimming, float32", max(differences), 1e-4, "lower", {}),
    ]
