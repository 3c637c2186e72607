"""A small language model trained on English prose and planted facts, kept in a cache: the stage for `hesse demo`.

The facts come from `prose_world`, the prose from CPython's own documentation, so nothing is downloaded and every
supporting text is known.
"""

import json
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hesse._optional import require
from hesse._progress import progress
from hesse._threads import one_thread
from hesse.errors import ArgumentError, NumericalError
from hesse.influence.facts import FactWorld, prose_world
from hesse.influence.query import tokenize_query
from hesse.influence.sequences import IGNORED, Sequence, collate, fingerprint, tokenize_rows
from hesse.io import (
    Manifest,
    atomic_write_bytes,
    config_hash,
    load_tensors,
    make_folder,
    manifest_exists,
    read_manifest,
    run_lock,
    save_tensors,
    write_manifest,
)

__all__ = [
    "DemoSettings",
    "Stage",
    "TrainingSettings",
    "cached_weights",
    "demo_prose",
    "prepare_tiny",
    "recalled",
    "train_language_model",
    "train_tokenizer",
]

_FEATURE = "hesse demo"
_MAX_LENGTH = 192  # tokens; the longest text has about 130
_KIND = "demo-model"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train: AdamW, a linear warm-up, cosine decay."""

    epochs: int = 13
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    batch_tokens: int = 384  # small batches: on so little data, steps count more than their precision
    warm_up: int = 50  # steps
    half: bool = False  # forward and backward in bfloat16 on weights kept in float32


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """The world, the model and its training; the defaults fit four minutes of two cores.

    The model stops before it knows its texts by heart: once the loss of a statement has vanished so has its gradient,
    and with it what can be traced.
    """

    seed: int = 0
    num_people: int = 120
    num_towns: int = 24
    num_companies: int = 20
    num_texts: int = 300
    vocabulary: int = 2000
    width: int = 128
    hidden: int = 512
    num_layers: int = 2
    num_heads: int = 8
    training: TrainingSettings = TrainingSettings()


@dataclass(frozen=True, slots=True)
class Stage:
    """A trained model, what it was trained on, and what it is asked."""

    world: FactWorld
    model: nn.Module
    tokenizer: Any
    sequences: list[Sequence]
    questions: list[Sequence]
    folder: Path  # of the cache, for whatever is computed from the model
    name: str


def demo_prose(limit: int, seed: int = 0) -> list[str]:
    """Paragraphs of CPython's documentation topics, prose only, a random choice of them.

    Parameters
    ----------
    limit : int
        How many; about 400 exist, and fewer are returned if there are not enough.
    seed : int, default 0
        Of the choice.

    Returns
    -------
    list of str
        One paragraph each, 120 to 400 characters.

    Raises
    ------
    ArgumentError
        If ``limit`` is negative.
    """
    if limit < 0:
        raise ArgumentError(f"limit: expected >= 0, got {limit}")
    from pydoc_data.topics import topics

    found: list[str] = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            code = paragraph.startswith((" ", "*", ">")) or "::=" in paragraph
            if not code and 120 <= len(text) <= 400 and text[0].isupper() and text.endswith("."):
                found.append(text)
    unique = list(dict.fromkeys(found))
    return [unique[i] for i in np.random.default_rng([seed, 2]).permutation(len(unique))[:limit]]


def train_tokenizer(texts: Items[str], vocabulary: int) -> Any:
    """Byte-level byte-pair encoding learned from the texts; a word at the start of a text is the word elsewhere.

    Parameters
    ----------
    texts : sequence of str
        To learn from.
    vocabulary : int
        Number of tokens, at least 257: all bytes and the padding.

    Returns
    -------
    PreTrainedTokenizerFast
        With "<pad>" as token 0 and no other special token.

    Raises
    ------
    ArgumentError
        If the vocabulary is too small.
    MissingDependencyError
        If transformers or tokenizers is not installed.
    """
    if vocabulary < 257:
        raise ArgumentError(f"vocabulary: expected >= 257 (every byte and the padding), got {vocabulary}")
    tokenizers = require("tokenizers", extra="hf", feature=_FEATURE)
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    inner = tokenizers.Tokenizer(BPE())
    inner.pre_tokenizer = ByteLevel(add_prefix_space=True)
    inner.decoder = Decoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(list(texts), trainer)
    return _wrapped(inner)


def prepare_tiny(settings: DemoSettings, cache: Path, *, show_progress: bool | None = None) -> Stage:
    """Build the world and train a Llama-architecture model on it, or take both from the cache.

    Parameters
    ----------
    settings : DemoSettings
        They, and the texts, name the folder inside the cache.
    cache : Path
        Made if missing.
    show_progress : bool, optional
        Default: if stderr is a terminal.

    Returns
    -------
    Stage
        The model in eval mode, float32, on the CPU.

    Raises
    ------
    ArtifactError
        If a file in the cache is damaged.
    MissingDependencyError
        If transformers or tokenizers is not installed.
    NumericalError
        If the loss becomes NaN.
    """
    transformers = require("transformers", extra="hf", feature=_FEATURE)
    texts = demo_prose(settings.num_texts, settings.seed)
    sizes = {key: getattr(settings, key) for key in ("num_people", "num_towns", "num_companies")}
    world = prose_world(settings.seed, **sizes, texts=texts)
    tokenizer = train_tokenizer([row["text"] for row in world.rows], settings.vocabulary)
    sequences = tokenize_rows(world.rows, tokenizer, _MAX_LENGTH)
    questions = [tokenize_query(query, tokenizer, _MAX_LENGTH) for query in world.queries]
    config = {"settings": asdict(settings), "data": fingerprint(sequences)}
    folder = cache / f"tiny-{config_hash(config)[:16]}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = transformers.LlamaForCausalLM(_llama_config(transformers, settings, len(tokenizer)))

    def fit() -> None:
        with one_thread():
            train_language_model(model, sequences, settings.training, seed=settings.seed, show_progress=show_progress)

    cached_weights(model, folder, config, fit)
    return Stage(world, model.eval(), tokenizer, sequences, questions, folder, "tiny Llama")


def cached_weights(model: nn.Module, folder: Path, config: dict[str, Any], fit: Callable[[], None]) -> None:
    """Load a model's trained weights from a folder, or train it and write them there; the manifest comes last.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    folder : Path
        Belongs to this model alone; made if missing.
    config : dict
        What the weights depend on, JSON values.
    fit : callable
        Trains the model in place.

    Raises
    ------
    ArtifactError
        If a file is damaged, or of other settings.
    """
    make_folder(folder)
    path = folder / "model.safetensors"
    with run_lock(folder):
        if manifest_exists(folder):
            manifest = read_manifest(folder, _KIND, config=json.loads(json.dumps(config)))
            model.load_state_dict(load_tensors(path, manifest.files[path.name]))
            return
        fit()
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        entry = save_tensors(path, state)
        atomic_write_bytes(folder / "README", b"Cache of `hesse demo`: safe to delete.\n")
        write_manifest(folder, Manifest(kind=_KIND, config=config, files={path.name: entry}))


def train_language_model(
    model: nn.Module,
    sequences: list[Sequence],
    settings: TrainingSettings,
    *,
    seed: int = 0,
    show_progress: bool | None = None,
) -> float:
    """Minimise J = mean over sequences of the summed loss of their tokens, the objective that influence assumes.

    Parameters
    ----------
    model : nn.Module
        A causal language model in the manner of transformers; its parameters that require a gradient are trained.
    sequences : list of Sequence
        Every one is seen once an epoch, in batches of like length.
    settings : TrainingSettings
        See there.
    seed : int, default 0
        Of the order of batches.
    show_progress : bool, optional
        Default: if stderr is a terminal.

    Returns
    -------
    float
        Mean loss of a token over the last epoch, in nats.

    Raises
    ------
    NumericalError
        If the loss becomes NaN or infinite.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    epochs = [
        list(_batches(lengths, settings.batch_tokens, np.random.default_rng([seed, 3, epoch])))
        for epoch in range(settings.epochs)
    ]
    total = sum(len(epoch) for epoch in epochs)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    model.train()
    step, last = 0, math.nan
    with progress("training the model", total, unit="steps", enabled=show_progress) as advance:
        for epoch in epochs:
            summed, counted = 0.0, 0
            for indices in epoch:
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * _schedule(step, total, settings.warm_up)
                batch = collate([sequences[i] for i in indices])
                with torch.autocast("cpu", torch.bfloat16, enabled=settings.half):
                    loss, tokens = _summed_loss(model, batch)
                if not bool(torch.isfinite(loss)):
                    raise NumericalError(f"training: the loss is {loss.item()} at step {step}; lower the rate")
                # sums over tokens, so long texts weigh more, divided by a constant that keeps the step's scale
                (loss / (len(indices) * float(lengths.mean()))).backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                summed, counted, step = summed + float(loss.detach()), counted + tokens, step + 1
                advance(1)
            last = summed / max(counted, 1)
    model.eval()
    return last


@torch.no_grad()
def recalled(model: nn.Module, questions: Items[Sequence], batch_size: int = 64) -> np.ndarray:
    """Whether the model's likeliest token is the right one at every position of the completion.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    questions : sequence of Sequence
        Labels on the completion only.
    batch_size : int, default 64
        Questions a forward pass.

    Returns
    -------
    ndarray of bool, shape (Q,)
        Greedy decoding gives exactly the completion.
    """
    right: list[bool] = []
    for start in range(0, len(questions), batch_size):
        batch = collate(questions[start : start + batch_size])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        right += ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1).tolist()
    return np.array(right, dtype=bool)


def _summed_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    loss = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((targets != IGNORED).sum())


def _batches(lengths: np.ndarray, budget: int, rng: np.random.Generator) -> Iterator[list[int]]:
    # sequences of like length together, with some noise so that batches differ between epochs, in random order
    order = np.argsort(-(lengths + 4 * rng.random(len(lengths))))
    batches: list[list[int]] = []
    longest = 0
    for index in order.tolist():
        longest = max(longest, int(lengths[index]))
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = int(lengths[index])
        batches[-1].append(index)
    for number in rng.permutation(len(batches)):
        yield batches[number]


def _schedule(step: int, total: int, warm_up: int) -> float:
    return min(1.0, (step + 1) / max(warm_up, 1)) * (0.5 + 0.5 * math.cos(math.pi * step / total))


def _wrapped(inner: Any) -> Any:
    transformers = require("transformers", extra="hf", feature=_FEATURE)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")  # noqa: S106


def _llama_config(transformers: Any, settings: DemoSettings, vocabulary: int) -> Any:
    # untied embeddings: with so few tokens, sharing them with the head costs a third of the recall
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=_MAX_LENGTH,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
