"""Language identification of strings of four words with a recurrent encoder, and betty's engine on the same task.

Shapes: B strings, L characters, H hidden units.
"""

import logging
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers import require_peer
from hesse.bilevel import BilevelProblem, tasks

__all__ = ["Encoder", "Strings", "accuracy", "draw_strings", "modules", "text_problem", "train_by_betty"]

LANGUAGES = ("en", "fr", "de", "es", "it", "pt", "nl")
RIDGE = 5e-3
_LENGTH = 36
_WORDS = 5000  # of a language, the most frequent first
_HIDDEN = 64


@dataclass(frozen=True, slots=True)
class Strings:
    """Characters as numbers (0 fills up, 27 is a space) and languages, in three parts."""

    train: tuple[Tensor, Tensor]  # (n, L) and (n,)
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def draw_strings(num_train: int, num_valid: int, num_test: int, seed: int) -> Strings:
    """Four words each, drawn from the frequent words of wordfreq's lists, accents taken off."""
    wordfreq: Any = require_peer("wordfreq")
    generator = torch.Generator().manual_seed(seed)
    lists = [sorted({_folded(w) for w in wordfreq.top_n_list(name, _WORDS)} - {""}) for name in LANGUAGES]
    parts = []
    for size in (num_train, num_valid, num_test):
        labels = torch.arange(size) % len(LANGUAGES)
        rows = torch.zeros(size, _LENGTH, dtype=torch.int64)
        for row, language in zip(rows, labels.tolist(), strict=True):
            words = lists[language]
            picks = torch.randint(len(words), (4,), generator=generator).tolist()
            text = " ".join(words[i] for i in picks)[:_LENGTH]
            row[: len(text)] = torch.tensor([27 if c == " " else ord(c) - 96 for c in text])
        parts.append((rows, labels))
    return Strings(*parts)


def _folded(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word.lower()) if "a" <= c <= "z")


class Encoder(nn.Module):
    """Embedding, tanh recurrence with an orthogonal matrix times ``gain``, maximum over the characters."""

    def __init__(self, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        square = torch.randn(_HIDDEN, _HIDDEN, generator=generator)
        self.table = nn.Parameter(torch.randn(28, 16, generator=generator))
        self.inwards = nn.Parameter(torch.randn(16, _HIDDEN, generator=generator) / 4)
        self.recurrent = nn.Parameter(gain * torch.linalg.qr(square).Q)
        self.bias = nn.Parameter(torch.zeros(_HIDDEN))

    def forward(self, characters_BL: Tensor) -> Tensor:
        inputs_CH = self.table @ self.inwards + self.bias  # of each of the 28 characters
        hidden_BH = inputs_CH.new_zeros(len(characters_BL), _HIDDEN)
        seen = []
        for inputs_BH in inputs_CH[characters_BL.T]:
            hidden_BH = torch.addmm(inputs_BH, hidden_BH, self.recurrent).tanh()
            seen.append(hidden_BH)
        return torch.stack(seen).amax(0)


def modules(gain: float, seed: int) -> tuple[Encoder, nn.Linear]:
    """Fresh ones; the head starts at zero."""
    head = nn.Linear(_HIDDEN, len(LANGUAGES))
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return Encoder(gain, torch.Generator().manual_seed(seed)), head


def text_problem(strings: Strings, gain: float, batch_size: int, seed: int) -> BilevelProblem:
    """x: the encoder, y: a linear head with a ridge."""
    encoder, head = modules(gain, seed)
    return tasks.hyper_representation(
        encoder, head, strings.train, strings.valid, regularization=RIDGE, batch_size=batch_size, seed=seed
    )


def accuracy(gain: float, x: dict[str, Tensor], y: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> float:
    """Share of strings whose language is found."""
    encoder, head = modules(gain, 0)
    with torch.no_grad():
        features = torch.func.functional_call(encoder, x, (rows[0],))
        guess = torch.func.functional_call(head, y, (features,)).argmax(1)
    return float((guess == rows[1]).double().mean())


def _batches(rows: tuple[Tensor, Tensor], size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for index in torch.randperm(len(rows[0]), generator=generator).split(size):
            if len(index) == size:
                yield rows[0][index], rows[1][index]


class _Loader:
    """What betty takes for a data loader: it begins anew where it is asked to."""

    def __init__(self, rows: tuple[Tensor, Tensor], size: int, generator: torch.Generator) -> None:
        self.rows, self.size, self.generator = rows, size, generator

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return _batches(self.rows, self.size, self.generator)

    def __len__(self) -> int:
        return len(self.rows[0]) // self.size


def train_by_betty(
    strings: Strings,
    gain: float,
    batch_size: int,
    seed: int,
    *,
    method: str,
    lr: float,
    lr_lower: float,
    seconds: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """SGD on both levels, gradients clipped at 1 on the upper one, for so many seconds; x, y and upper steps made."""
    betty: Any = require_peer("betty.engine")
    base: Any = require_peer("betty.logging.logger_base")
    base.get_logger().setLevel(logging.WARNING)  # it tells of every start otherwise
    problems: Any = require_peer("betty.problems")
    configs: Any = require_peer("betty.configs")
    encoder, head = modules(gain, seed)
    generator = torch.Generator().manual_seed(seed)

    class Upper(problems.ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            return cross_entropy(self.lower(self(batch[0])), batch[1])

    class Lower(problems.ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            size = sum(p.square().sum() for p in self.module.parameters())
            return cross_entropy(self(self.upper(batch[0])), batch[1]) + RIDGE * size

    upper = Upper(
        name="upper",
        module=encoder,
        optimizer=torch.optim.SGD(encoder.parameters(), lr=lr),
        train_data_loader=_Loader(strings.valid, batch_size, generator),
        config=configs.Config(type=method, retain_graph=True, gradient_clipping=1.0),
    )
    lower = Lower(
        name="lower",
        module=head,
        optimizer=torch.optim.SGD(head.parameters(), lr=lr_lower),
        train_data_loader=_Loader(strings.train, batch_size, generator),
        config=configs.Config(type=method, unroll_steps=1, cg_iterations=3),
    )
    engine = betty.Engine(
        config=configs.EngineConfig(train_iters=10**9, logger_type="none"),
        problems=[upper, lower],
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    engine.train()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        engine.global_step += 1
        engine.train_step()
    x = {name: p.detach() for name, p in upper.module.named_parameters()}
    return x, {name: p.detach() for name, p in lower.module.named_parameters()}, upper.count
