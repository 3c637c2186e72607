"""Claims about influence through a training run: `magic` is exact and fits, `source` follows it.

Oracles: central differences of training again; the derivative that keeps every state; for `source`, `magic` itself.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, Scale
from benchmarks.data import digits, flip_labels, peak_rss_growth, pydoc_rows
from hesse.influence import CausalLMLoss, ClassificationLoss, Influence, as_examples
from hesse.influence.trajectory import SGD, AdamW, TrainingSchedule, magic, record_replay, replay, source

__all__ = ["CLAIMS"]

STEP = 1e-6  # of a count, in the differences: where a gradient is near AdamW's eps, larger ones are no longer small


def language_model(width: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A GPT-2 of two blocks over ASCII characters, in eval mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=128, n_embd=width, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    model = cast("nn.Module", GPT2LMHeadModel(config))
    return model.to(dtype).eval()


def texts(count: int, length: int, seed: int) -> np.ndarray:
    """Rows of characters of CPython's help texts, (count, length)."""
    return np.array([list(row.encode("ascii", "replace")) for row in pydoc_rows(length, count, seed=seed)]) % 128


def warmed(peak: float, steps: int) -> list[float]:
    """Learning rates that rise over a tenth of the steps and then fall to zero."""
    return [peak * min(1, 10 * (t + 1) / steps) * (1 - t / steps) for t in range(steps)]


def log_probabilities(model: nn.Module, weights: dict[str, Tensor], queries: np.ndarray) -> Tensor:
    """Of every query, summed over its tokens, at other weights than the model's."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = as_examples(queries).batch(range(len(queries)))
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        values = -CausalLMLoss()(model, batch).per_token.sum(1)
    model.load_state_dict(before, strict=False)
    return values


def magic_is_exact(scale: Scale) -> Claim:
    """Reverse-mode differentiation against central differences of training again, AdamW, clipped, float64."""
    count, steps, picked = scale(smoke=(6, 6, 2), full=(32, 60, 8))
    rows = texts(count + 4, 24, scale.seed)
    data, queries = rows[:count], rows[count:]
    model = language_model(16, dtype=torch.float64, seed=scale.seed)
    optimizer = AdamW(eps=1e-6, weight_decay=0.1, clip_norm=1.0)
    schedule = TrainingSchedule.shuffled(count, 4, optimizer, warmed(3e-3, steps), seed=scale.seed, per="tokens")
    got = magic(model, queries, data, schedule, progress=False).values[:, :picked]
    columns = []
    for n in range(picked):
        shifts = [torch.ones(count, dtype=torch.float64) for _ in range(2)]
        shifts[0][n] += STEP
        shifts[1][n] -= STEP
        ends = [replay(model, data, schedule, counts=counts, progress=False) for counts in shifts]
        above, below = (log_probabilities(model, end, queries) for end in ends)
        columns.append((above - below) / (2 * STEP))
    expected = torch.stack(columns, 1)
    error = float((got - expected).norm() / expected.norm())
    sizes = {"sequences": count, "steps": steps, "compared": picked * len(queries)}
    spread = {"largest_score": float(got.abs().max()), "mean_absolute_score": float(got.abs().mean())}
    return Claim("magic against training again, relative error", error, bar=1e-5, better="lower", rows=sizes | spread)


def _memory_setting(width: int, steps: int, checkpoints: int | None) -> tuple[Any, ...]:
    rows = texts(9, 16, 0)
    schedule = TrainingSchedule.shuffled(8, 2, AdamW(eps=1e-6), warmed(1e-3, steps))
    model = language_model(width)
    magic(model, rows[8:], rows[:8], TrainingSchedule.shuffled(8, 2, AdamW(), [1e-3] * 2), progress=False)  # warm up
    return model, rows, schedule, checkpoints


def _run_magic(setting: tuple[Any, ...]) -> Tensor:
    model, rows, schedule, checkpoints = setting
    return magic(model, rows[8:], rows[:8], schedule, checkpoints=checkpoints, progress=False).values


def magic_memory(scale: Scale) -> Claim:
    """Peak memory with every state kept over that with about log T of them; the scores are the same to the last bit."""
    width, steps = scale(smoke=(16, 8), full=(128, 128))
    few = peak_rss_growth(_run_magic, _memory_setting, width, steps, None)
    everything = peak_rss_growth(_run_magic, _memory_setting, width, steps, steps)
    short = scale(smoke=8, full=24)
    same = torch.equal(_run_magic(_memory_setting(16, short, None)), _run_magic(_memory_setting(16, short, short)))
    rows = {"steps": steps, "log_T_mb": few / 2**20, "all_mb": everything / 2**20, "same_bits": same}
    ratio = everything / max(few, 1) if same else None
    return Claim(
        "magic: all states over log T of them, peak memory", ratio, bar=3.0, better="higher", rows=rows, full_only=True
    )


def magic_cost(scale: Scale) -> Claim:
    """CPU time of all queries together, in training runs a query; 10⁵ weights, 512 tokens a step."""
    width, steps, count = scale(smoke=(16, 4, 2), full=(64, 40, 20))
    rows = texts(300 + count, 64, scale.seed)
    model = language_model(width, seed=scale.seed)
    schedule = TrainingSchedule.shuffled(300, 8, AdamW(eps=1e-6, clip_norm=1.0), warmed(1e-3, steps), seed=scale.seed)
    start = time.process_time()
    replay(model, rows[:300], schedule, progress=False)
    between = time.process_time()
    magic(model, rows[300:], rows[:300], schedule, progress=False)
    training, unrolled = between - start, time.process_time() - between
    sizes = {"weights": sum(p.numel() for p in model.parameters()), "steps": steps, "queries": count}
    seconds = {"training_s": training, "magic_s": unrolled, "magic_s_for_300_steps": 300 * unrolled / steps}
    runs = unrolled / training / count
    return Claim("magic: training runs a query", runs, bar=3.0, better="lower", rows=sizes | seconds, full_only=True)


@dataclass(frozen=True)
class Experiment:
    """Model, data and schedule of one run, and what to ask."""

    model: nn.Module
    data: Any
    queries: Any
    schedule: TrainingSchedule
    loss: Any


def digits_run(optimizer: SGD | AdamW, rate: float, scale: Scale, seed: int) -> Experiment:
    """An MLP 64-16-10 on 200 digits, a tenth of the labels wrong; 40 held-out queries."""
    steps, asked = scale(smoke=(20, 5), full=(250, 40))
    split = digits(200, seed=seed, dtype=torch.float32)
    labels, _flipped = flip_labels(split.train_y, 0.1, 10, seed=seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).eval()
    rates = [rate * (1 + np.cos(np.pi * t / steps)) / 2 for t in range(steps)]
    schedule = TrainingSchedule.shuffled(200, 50, optimizer, rates, seed=seed)
    queries = (split.test_x[:asked], split.test_y[:asked])
    return Experiment(model, (split.train_x, labels), queries, schedule, ClassificationLoss())


def text_run(scale: Scale, seed: int) -> Experiment:
    """The language model on 64 rows of 32 characters, SGD for twelve epochs; 12 queries."""
    steps = scale(smoke=8, full=96)
    rows = texts(76, 32, seed)
    schedule = TrainingSchedule.shuffled(64, 8, SGD(0.9), warmed(0.03, steps), seed=seed, per="tokens")
    return Experiment(language_model(32, seed=seed), rows[:64], rows[64:], schedule, CausalLMLoss())


def correlations(run: Experiment) -> dict[str, float]:
    """Mean over queries of the correlation with `magic` of four approximations, and how large theirs are beside it."""
    exact = magic(run.model, run.queries, run.data, run.schedule, loss=run.loss, progress=False).values.double().numpy()
    options = {"loss": run.loss, "modules": "all-linear"}
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = max(1, len(run.schedule) // 12)
        record = record_replay(
            folder / "record", run.model, run.data, run.schedule, loss=run.loss, every=every, progress=False
        )
        for segments in (1, 3, 6):
            where = folder / f"source-{segments}"
            scores = source(
                run.model, run.queries, run.data, record, where, segments=segments, progress=False, **options
            )
            found[f"source_{segments}"] = scores.values.numpy()
        run.model.load_state_dict(record.weights(len(record)), strict=False)
        for strategy in ("ekfac", "identity"):
            engine = Influence(run.model, strategy=strategy, **options)
            engine.fit(run.data, folder / strategy, progress=False)
            scores = engine.score(run.queries, run.data, folder / strategy, rank=None, progress=False)
            found[strategy] = np.array(scores.values)
    out = {name: _mean_correlation(exact, values) for name, values in found.items()}
    return out | {f"{name}_size": float(values.std() / exact.std()) for name, values in found.items()}


def _mean_correlation(exact: np.ndarray, values: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(exact, values, strict=True)]))


SETTINGS: dict[str, tuple[SGD | AdamW, float]] = {"SGD": (SGD(0.9), 0.1), "AdamW": (AdamW(eps=1e-6), 3e-3)}
"""Optimizer, and the rate that the cosine schedule begins with."""


def source_follows(kind: str) -> Callable[[Scale], Claim]:
    """Claim of one optimizer."""

    def claim(scale: Scale) -> Claim:
        optimizer, rate = SETTINGS[kind]
        seeds = [scale.seed + i for i in range(scale(smoke=1, full=3))]
        runs = [correlations(digits_run(optimizer, rate, scale, seed)) for seed in seeds]
        rows: dict[str, Any] = {name: [run[name] for run in runs] for name in runs[0]}
        measured = float(np.mean(rows["source_3"]) - np.mean(rows["identity"]))
        if kind == "SGD":
            rows["language_model"] = correlations(text_run(scale, scale.seed))
        return Claim(
            f"source over gradient dot, correlation with magic, digits, {kind}",
            measured,
            bar=0.10,
            better="higher",
            rows=rows,
            full_only=True,
            note="Three segments; EK-FAC at the final weights, and a language model outside the bar, are in the rows.",
        )

    claim.__doc__ = f"SOURCE is closer to the exact derivative than the gradient dot product, {kind} on digits."
    return claim


CLAIMS = [magic_is_exact, magic_memory, magic_cost, source_follows("SGD"), source_follows("AdamW")]
