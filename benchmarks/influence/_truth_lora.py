"""A real model under the same judge: SmolLM2-135M with LoRA, fine-tuned on stretches of CPython's help texts.

Only the upper blocks carry adapters. What the frozen blocks below make of a row never changes, so it is computed once
and the upper blocks are the model that is trained: the same function of the adapters, at a fraction of the time.
Shapes: N rows, Q queries, M halves, R data orders, D width.
"""

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers import require_peer
from hesse.influence import CausalLMLoss, Sequence, TokenExamples
from hesse.influence.evaluate import draw_masks, train_model
from hesse.influence.sequences import fingerprint
from hesse.influence.trajectory import SGD, TrainingSchedule
from hesse.io import atomic_write_json, config_hash, hash_bytes, hash_tensors, read_json

__all__ = [
    "LORA_PROTOCOL",
    "Adapted",
    "LoraSizes",
    "add_adapters",
    "half_schedule",
    "outcomes",
    "prepare_adapted",
    "upper_model",
]

LORA_PROTOCOL = (
    "SmolLM2-135M-Instruct (4-bit weights unpacked to float32), LoRA on every matrix of the last blocks, fine-tuned by "
    "SGD with momentum 0.9, warm-up and a cosine schedule on N stretches of CPython's help texts; outcomes: "
    "log-probability of the second half of held out stretches of the same topics after fine-tuning on half of the rows "
    "(left-out rows have weight 0, batches keep their divisor)"
)
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = r"lora_[AB]"
_ROWS_A_TOPIC = 16


@dataclass(frozen=True)
class LoraSizes:
    """How large the experiment is; what two cores hold in 25 minutes."""

    blocks: int = 4
    rank: int = 4
    scaling: float = 2.0  # of an adapter's output, alpha over rank
    length: int = 24
    sequences: int = 128
    queries: int = 8
    masks: int = 20
    runs: int = 2
    steps: int = 32
    warmup: int = 4
    batch: int = 8
    rate: float = 5e-3


@dataclass(frozen=True)
class Adapted:
    """Data, where fine-tuning starts, how it goes, and where it ends on all rows."""

    sizes: LoraSizes
    seed: int
    train: list[Sequence]  # tokens are places in the table of the upper model, labels are the text's own tokens
    queries: list[Sequence]
    texts: tuple[list[Sequence], list[Sequence]]  # the same rows with their own tokens
    start: nn.Module
    schedules: list[TrainingSchedule]
    trained: list[nn.Module]
    masks: np.ndarray  # (M, N)


def prepare_adapted(sizes: LoraSizes, seed: int) -> Adapted:
    """Load the model, cut the texts, run the frozen blocks once, add adapters, and fine-tune on all rows."""
    from hesse.influence.demo_smollm2 import gguf_file
    from hesse.influence.huggingface import load_model

    model, tokenizer = load_model(gguf_file(), device="cpu", attention="eager")
    train, queries = stretches(tokenizer, sizes, seed)
    upper, rows = upper_model(model, sizes.blocks, [*train, *queries])
    seen, asked = rows[: len(train)], rows[len(train) :]
    add_adapters(upper, sizes.rank, sizes.scaling, seed)
    schedules = [
        TrainingSchedule.shuffled(sizes.sequences, sizes.batch, SGD(momentum=0.9), rates(sizes), seed=seed + 1 + run)
        for run in range(sizes.runs)
    ]
    trained = [train_model(upper, seen, schedule, progress=False) for schedule in schedules]
    masks = draw_masks(sizes.masks, sizes.sequences, seed=seed)
    return Adapted(sizes, seed, seen, asked, (train, queries), upper, schedules, trained, masks)


def rates(sizes: LoraSizes) -> list[float]:
    """Linear warm-up, then half a cosine to almost 0."""
    return [
        sizes.rate * min((t + 1) / sizes.warmup, (1 + math.cos(math.pi * t / sizes.steps)) / 2)
        for t in range(sizes.steps)
    ]


def stretches(tokenizer: Any, sizes: LoraSizes, seed: int) -> tuple[list[Sequence], list[Sequence]]:
    """Consecutive stretches of a few topics, drawn by the seed; some of them, at random, are the queries."""
    from pydoc_data.topics import topics

    rng = np.random.default_rng(abs(seed))
    total, found = sizes.sequences + sizes.queries, []
    for name in rng.permutation(sorted(topics)):
        tokens = np.array(tokenizer(topics[name])["input_ids"], dtype=np.int64)
        for part in range(min(len(tokens) // sizes.length, _ROWS_A_TOPIC)):
            found.append((f"{name}#{part}", tokens[part * sizes.length : (part + 1) * sizes.length]))
        if len(found) >= total:
            break
    asked = set(rng.choice(total, sizes.queries, replace=False).tolist())
    train, queries = [], []
    for number, (name, tokens) in enumerate(found[:total]):
        labels = tokens.copy()
        labels[: sizes.length // 2 if number in asked else 1] = -100
        (queries if number in asked else train).append(Sequence(name, name, tokens, labels, tokenizer.decode(tokens)))
    return train, queries


def upper_model(model: Any, blocks: int, rows: list[Sequence]) -> tuple[Any, list[Sequence]]:
    """The last blocks of a Llama as a model of its own, whose embedding is a table of what the blocks below made.

    Every token of every row is a token of its own there, with the label it had: losses, gradients and logits are those
    of the whole model. Takes the model apart.
    """
    core, caught = model.model, []
    below = len(core.layers) - blocks
    hook = core.layers[below].register_forward_pre_hook(
        lambda _layer, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        for part in torch.from_numpy(np.stack([row.input_ids for row in rows])).split(16):
            core(input_ids=part, use_cache=False)
    hook.remove()
    states_ND = torch.cat([states.flatten(0, 1) for states in caught])
    head = nn.Parameter(model.lm_head.weight.detach().clone())  # its own: it was tied to the embedding
    core.embed_tokens = nn.Embedding.from_pretrained(states_ND)
    model.lm_head.weight = head
    core.layers = core.layers[below:]
    model.config.num_hidden_layers = core.config.num_hidden_layers = blocks
    for number, layer in enumerate(core.layers):
        layer.self_attn.layer_idx = number
    places = np.arange(len(states_ND)).reshape(len(rows), -1)
    return model.eval(), [replace(row, input_ids=own) for row, own in zip(rows, places, strict=True)]


def add_adapters(model: nn.Module, rank: int, scaling: float, seed: int) -> None:
    """LoRA on every matrix of every block, B = 0 at the start; only adapters are trained."""
    require_peer("peft")
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=scaling * rank, lora_dropout=0.0, target_modules=MATRICES)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model.eval()


def half_schedule(schedule: TrainingSchedule, kept: np.ndarray) -> TrainingSchedule:
    """The same run on a part of the rows: those left out are not computed, and every step keeps its divisor.

    Equal to a weight of 0 on the rows left out. A step that keeps none computes one row at a share of 0, since what
    momentum remembers still moves the weights.
    """
    batches = [tuple(i for i in batch if kept[i]) for batch in schedule.batches]
    shares = [(1 / len(whole),) * len(part) for whole, part in zip(schedule.batches, batches, strict=True)]
    return replace(
        schedule,
        batches=tuple(part or whole[:1] for part, whole in zip(batches, schedule.batches, strict=True)),
        shares=tuple(share or (0.0,) for share in shares),
    )


def outcomes(setting: Adapted, folder: Path) -> np.ndarray:
    """(R, M, Q) log-probabilities after fine-tuning on each half, one training after another.

    Every training leaves a file: a run that was stopped goes on with the first one that is missing. Files of other
    sizes, data, adapters or torch lie in another folder.
    """
    key = {
        "sizes": asdict(setting.sizes),
        "seed": setting.seed,
        "data": fingerprint([*setting.texts[0], *setting.texts[1]]),
        "start": hash_tensors(dict(setting.start.named_parameters())),
        "schedules": [hash_bytes(repr(schedule).encode()) for schedule in setting.schedules],
        "torch": str(torch.__version__),
    }
    place = folder / config_hash(key)[:16]
    found = np.empty((len(setting.schedules), len(setting.masks), len(setting.queries)))
    for run, schedule in enumerate(setting.schedules):
        for number, kept in enumerate(setting.masks):
            file = place / f"{run}-{number}.json"
            if not file.exists():
                model = train_model(setting.start, setting.train, half_schedule(schedule, kept), progress=False)
                atomic_write_json(file, log_probabilities(model, setting.queries).tolist())
            found[run, number] = read_json(file)
    return found


def forget(folder: Path) -> None:
    """Remove what `outcomes` kept, once it has served: the next run measures anew."""
    shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def log_probabilities(model: nn.Module, queries: list[Sequence]) -> np.ndarray:
    """(Q,) nats of the completions."""
    batch = TokenExamples(queries).batch(range(len(queries)))
    return -CausalLMLoss()(model, batch).per_token.double().sum(1).numpy()
