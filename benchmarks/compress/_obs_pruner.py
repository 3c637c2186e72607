"""Optimal Brain Surgeon on SmolLM2-135M: half of its MLPs' weights dropped at once, judged by perplexity.

The peer is torch's pruning by magnitude, at the same sparsity of every weight matrix. Gradients of all MLPs do not fit
in memory together: blocks of the model are pruned a few at a time, each with gradients at what is left so far.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks._claims import Claim, Scale
from benchmarks.compress._hawq_smollm2 import LENGTH, Logits, load, rows_of_tokens, token_loss
from hesse.compress import OBSPruner, remove_masks
from hesse.curvature import gradient_rows

__all__ = ["claim_smollm2"]

SPARSITY = 0.5
BLOCK_SIZE = 128  # of the Fisher matrix
DAMPING = 0.01  # in units of the gradients' mean square; not tuned
NUM_SCALE_ROWS = 4  # gradients that tell that unit


def claim_smollm2(scale: Scale) -> Claim:
    """One round to half of the weights of every MLP matrix, without training."""
    base, tokenizer = load()
    model = Logits(base)
    num_grads, num_held_out = scale(smoke=2, full=32), scale(smoke=1, full=32)
    num_calibration = max(NUM_SCALE_ROWS, 2 * num_grads)
    rows = rows_of_tokens(tokenizer, num_calibration + num_held_out, scale.seed)
    calibration, held_out = rows[:num_calibration], rows[num_calibration:]
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and ".mlp." in name]
    weights = [f"{name}.weight" for name in names[-scale(smoke=1, full=len(names)) :]]
    losses = {"dense": _mean_loss(model, held_out), "magnitude": _mean_loss(_by_magnitude(model, weights), held_out)}
    for p in model.parameters():
        p.requires_grad_(False)
    increases = [
        _operate(model, tuple(weights[i : i + 15]), calibration, num_grads, scale.seed)
        for i in range(0, len(weights), 15)  # five blocks of the model
    ]
    remove_masks(model)
    losses["obs"] = _mean_loss(model, held_out)
    parameters = dict(model.named_parameters())
    shares = [float((parameters[name] == 0).double().mean()) for name in weights]
    rows_of_claim: dict[str, Any] = {
        "perplexity": {name: math.exp(min(loss, 50.0)) for name, loss in losses.items()},
        "weights pruned": sum(parameters[name].numel() for name in weights),
        "sparsity, least and most of a matrix": [min(shares), max(shares)],
        "gradients a part": num_grads,
        "predicted rise by part": increases,
        "held-out tokens": num_held_out * LENGTH,
    }
    ratio = math.exp(losses["magnitude"] - losses["obs"])
    name = "SmolLM2, half of its MLPs' weights: perplexity by magnitude over that by OBS"
    return Claim(name, ratio, 1.0, "higher", rows_of_claim, full_only=True)


def _operate(model: nn.Module, part: tuple[str, ...], rows: Tensor, num_grads: int, seed: int) -> float:
    for name, p in model.named_parameters():
        p.requires_grad_(name in part)  # no other gradient is computed
    generator = torch.Generator().manual_seed(seed)
    sample = gradient_rows(model, token_loss, rows, NUM_SCALE_ROWS, 1, generator=generator)
    unit = float(sample.square().mean())
    del sample
    pruner = OBSPruner(
        model,
        token_loss,
        num_grads=num_grads,
        batch_size=1,
        damping=DAMPING * unit,
        block_size=BLOCK_SIZE,
        recompute=1,
        joint=True,  # half of the weights go at once: what is right for each alone does not add up
        scope="layer",
        include=lambda name, _parameter: name in part,
        generator=generator,
    )
    pruner.prune(SPARSITY, rows)
    return pruner.rounds[-1].predicted_increase


def _by_magnitude(model: nn.Module, weights: list[str]) -> nn.Module:
    pruned = copy.deepcopy(model)
    for name in weights:
        layer = pruned.get_submodule(name.removesuffix(".weight"))
        prune.l1_unstructured(layer, "weight", SPARSITY)
        prune.remove(layer, "weight")  # the zeros stay
    return pruned


@torch.no_grad()
def _mean_loss(model: nn.Module, rows: Tensor) -> float:
    return sum(float(token_loss(model, part)) * len(part) for part in rows.split(4)) / len(rows)
