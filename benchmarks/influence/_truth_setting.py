"""The experiment that judges attribution: a small Llama on real text, fine-tuned again and again on half of its rows.

Rows are characters of CPython's help texts. The model is first trained on rows that are nobody's, then fine-tuned on N
rows; queries are rows held out, their second half the completion.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import pydoc_rows, pydoc_topics
from hesse.influence import Sequence
from hesse.influence.evaluate import cosine_rates, draw_masks, retrain, train_model
from hesse.influence.trajectory import SGD, AdamW, TrainingSchedule

__all__ = ["PROTOCOL", "Setting", "Sizes", "prepare"]

PROTOCOL = (
    "character Llama (2 blocks, width 32), pretrained on other rows, fine-tuned by SGD with momentum 0.9 and a cosine "
    "schedule on N rows of 32 characters of CPython's help texts; outcomes: log-probability of the second half of held "
    "out rows after fine-tuning on half of the rows (left-out rows have weight 0, batches keep their divisor)"
)


@dataclass(frozen=True)
class Sizes:
    """How large the experiment is."""

    length: int = 32
    sequences: int = 256
    queries: int = 20
    masks: int = 50
    runs: int = 2
    steps: int = 80
    batch: int = 32
    pretraining: int = 400
    rate: float = 2.5e-4


@dataclass(frozen=True)
class Setting:
    """Data, where fine-tuning starts, how it goes, and where it ends on all rows."""

    sizes: Sizes
    train: list[Sequence]
    queries: list[Sequence]
    start: nn.Module
    schedules: list[TrainingSchedule]
    trained: list[nn.Module]
    masks: np.ndarray  # (M, N)

    def outcomes(self) -> Tensor:
        """(R, M, Q) log-probabilities after fine-tuning on each half."""
        return retrain(self.start, self.train, self.queries, self.masks, self.schedules, at_once=40, progress=False)


def prepare(sizes: Sizes, seed: int) -> Setting:
    """Make rows, pretrain, lay out the runs, and fine-tune on all rows."""
    total = sizes.sequences + sizes.queries
    spare = 32 * max(32, min(sizes.pretraining, 60))
    texts = pydoc_rows(sizes.length, total + spare, seed=seed)
    number = {character: i for i, character in enumerate(sorted(set(pydoc_topics())))}

    def row(name: str, text: str, start: int = 1) -> Sequence:
        tokens = np.array([number[character] for character in text])
        labels = tokens.copy()
        labels[:start] = -100
        return Sequence(name, name, tokens, labels, text)

    train = [row(f"t{i}", text) for i, text in enumerate(texts[: sizes.sequences])]
    queries = [row(f"q{i}", text, sizes.length // 2) for i, text in enumerate(texts[sizes.sequences : total])]
    others = [row(f"p{i}", text) for i, text in enumerate(texts[total:])]
    model = llama(len(number), sizes.length, seed)
    if sizes.pretraining:
        rates = cosine_rates(3e-3, sizes.pretraining)
        early = TrainingSchedule.shuffled(len(others), 32, AdamW(weight_decay=0.0), rates, seed=seed)
        model = train_model(model, others, early, progress=False)
    schedules = [
        TrainingSchedule.shuffled(
            sizes.sequences, sizes.batch, SGD(momentum=0.9), cosine_rates(sizes.rate, sizes.steps), seed=seed + 1 + run
        )
        for run in range(sizes.runs)
    ]
    trained = [train_model(model, train, schedule, progress=False) for schedule in schedules]
    masks = draw_masks(sizes.masks, sizes.sequences, seed=seed)
    return Setting(sizes, train, queries, model, schedules, trained, masks)


def llama(vocabulary: int, length: int, seed: int) -> nn.Module:
    """Two blocks of width 32, about 27 thousand weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2 * length,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()
