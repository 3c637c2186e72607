"""Predicted change against measured change, in nats, over hundreds of pairs of a query and a sequence."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Scale
from benchmarks.data import digits, flip_labels, pydoc_rows
from benchmarks.influence._truth_methods import MODULES
from hesse.influence import CausalLMLoss, ClassificationLoss, Influence, Sequence, TokenExamples
from hesse.influence.baselines import gradient_dot
from hesse.influence.evaluate import cosine_rates, damped_ggn_scores, pbrf, retrain, train_model
from hesse.influence.trajectory import SGD, TrainingSchedule

__all__ = ["Calibration", "digits_net", "digits_response", "language_model", "noisy_digits", "one_step", "smollm2"]

F64 = torch.float64


@dataclass(frozen=True)
class Calibration:
    """Least squares of the measured on the predicted change, without a constant: 1 is a true prediction."""

    what: str
    slope: float
    correlation: float
    pairs: int
    others: dict[str, Any] = field(default_factory=dict)
    points: tuple[np.ndarray, np.ndarray] | None = None


def slope(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Σ pm / Σ p²."""
    return float((predicted * measured).sum() / (predicted**2).sum())


def judge(what: str, predicted: np.ndarray, measured: np.ndarray, **others: Any) -> Calibration:
    p, m = predicted.ravel(), measured.ravel()
    return Calibration(what, slope(p, m), float(np.corrcoef(p, m)[0, 1]), len(p), others, (p, m))


def digits_net(
    seed: int, *, count: int = 300, activation: Callable[[], nn.Module] = nn.GELU, dtype: torch.dtype = F64
) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """A small network trained on digits of which a tenth has a wrong label; data, queries, and which are wrong."""
    split = digits(count, seed=seed, dtype=dtype)
    labels, flipped = flip_labels(split.train_y, 0.1, 10, seed=seed)
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 10)]
    train = (split.train_x, labels)
    schedule = TrainingSchedule(SGD(momentum=0.9), tuple(cosine_rates(0.1, 250)), (tuple(range(count)),) * 250)
    net = nn.Sequential(*layers).to(dtype).eval()
    trained = train_model(net, train, schedule, loss=ClassificationLoss(), progress=False)
    return trained, train, (split.test_x[:60], split.test_y[:60]), flipped


def noisy_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which labels are wrong, and the self-influence of every row."""
    net, train, _queries, flipped = digits_net(seed, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        influence = Influence(net, loss=ClassificationLoss())
        influence.fit(train, folder, progress=False)
        return flipped.numpy(), influence.self_influence(train, folder, progress=False).numpy()


def digits_response(scale: Scale) -> Calibration:
    """The damped Gauss-Newton prediction against the solved response to a tenth of a copy, digits."""
    net, train, queries, _flipped = digits_net(scale.seed, count=scale(smoke=60, full=300))
    ask = scale(smoke=2, full=20)
    asked, points = (queries[0][:ask], queries[1][:ask]), list(range(scale(smoke=4, full=100)))
    with tempfile.TemporaryDirectory() as folder:
        influence = Influence(net, loss=ClassificationLoss())
        factors = influence.fit(train, folder, progress=False)
        ekfac = np.array(influence.score(asked, train, folder, rank=None, progress=False).values)[:, points]
        exact = damped_ggn_scores(influence, factors, train, asked, points)
        small = pbrf(influence, factors, train, asked, points, copies=0.1, progress=False)
        whole = pbrf(influence, factors, train, asked, points, copies=1.0, progress=False)
    return judge(
        "damped Gauss-Newton score against the proximal response to a tenth of a copy, digits",
        exact,
        small.values,
        ekfac=_line(ekfac, small.values),
        whole_copy={"added": slope(exact, whole.added), "removed": slope(exact, whole.removed)},
        converged=float(small.converged.mean()),
    )


def language_model(scale: Scale, runs: list[Any]) -> Calibration:
    """magic's prediction against fine-tuning again with a twentieth of a copy more and less, summed over sequences."""
    setting, table = runs[0].setting, runs[0].table
    picked = np.random.default_rng(scale.seed).permutation(len(setting.train))[: scale(smoke=4, full=40)]
    size = 0.05
    weights = np.ones((2 * len(picked), len(setting.train)))
    weights[np.arange(len(picked)), picked] += size
    weights[len(picked) + np.arange(len(picked)), picked] -= size
    found = retrain(
        setting.start, setting.train, setting.queries, weights, setting.schedules[0], at_once=40, progress=False
    )[0].numpy()  # fmt: skip
    measured = ((found[: len(picked)] - found[len(picked) :]) / (2 * size)).T
    magic = table.single["magic"][0][:, picked]
    ekfac = table.single["EK-FAC"][0][:, picked]
    whole = np.ones((len(picked), len(setting.train)))
    whole[np.arange(len(picked)), picked] = 0
    base = retrain(
        setting.start, setting.train, setting.queries, np.ones((1, len(setting.train))), setting.schedules[0],
        progress=False,
    )[0].numpy()  # fmt: skip
    without = retrain(
        setting.start, setting.train, setting.queries, whole, setting.schedules[0], at_once=40, progress=False
    )[0].numpy()  # fmt: skip
    lost = (base - without).T
    return judge(
        "magic against fine-tuning again with a twentieth of a copy more and less, in nats a copy",
        magic,
        measured,
        ekfac=_line(ekfac, measured),
        magic_against_leaving_out=_line(magic, lost),
        ekfac_against_leaving_out=_line(ekfac, lost),
    )


def one_step(scale: Scale, runs: list[Any]) -> Calibration:
    """Gradient dot product times the rate against one real gradient step on each sequence, tracked layers only."""
    setting = runs[0].setting
    model, total, rate = setting.trained[0], len(setting.train), 1e-4
    picked = list(range(scale(smoke=4, full=100)))
    found = gradient_dot(model, setting.queries, setting.train, modules=MODULES).double().numpy()
    predicted = rate * total * found[:, picked]
    weights = np.zeros((len(picked) + 1, total))  # the last one makes no step
    weights[np.arange(len(picked)), picked] = total  # a step divides by the size of its batch
    schedule = TrainingSchedule(SGD(), (rate,), (tuple(range(total)),))
    tracked = {f"{name}.weight" for name in Influence(model, modules=MODULES).layers}
    moving = copy.deepcopy(model).double()
    for name, parameter in moving.named_parameters():
        parameter.requires_grad_(name in tracked)
    after = retrain(moving, setting.train, setting.queries, weights, schedule, at_once=16, progress=False)[0].numpy()
    return judge(
        f"gradient dot product against one step of rate {rate:g} on the sequence's summed loss",
        predicted,
        (after[:-1] - after[-1]).T,
    )


def smollm2(scale: Scale) -> Calibration:
    """The same on SmolLM2-135M: one real gradient step of the MLPs of its last four blocks on each sequence."""
    from hesse.influence.demo_smollm2 import gguf_file
    from hesse.influence.huggingface import load_model

    rate, modules = 1e-4, r"layers\.(26|27|28|29)\.mlp\."
    model, tokenizer = load_model(gguf_file(), device="cpu")
    count, ask = scale(smoke=(1, 1), full=(75, 4))
    texts = pydoc_rows(100, count + ask, seed=scale.seed)
    rows = [np.array(tokenizer(text)["input_ids"][:24], dtype=np.int64) for text in texts]
    sequences = [Sequence(f"s{i}", f"s{i}", tokens, np.where(np.arange(len(tokens)) < 1, -100, tokens))
                 for i, tokens in enumerate(rows)]  # fmt: skip
    train = sequences[:count]
    queries = [
        replace(s, labels=np.where(np.arange(len(s)) < len(s) // 2, -100, s.input_ids)) for s in sequences[count:]
    ]
    predicted = rate * count * gradient_dot(model, queries, train, modules=modules).double().numpy()
    tracked = [p for name, p in model.named_parameters() if any(f"layers.{i}.mlp." in name for i in range(26, 30))]
    loss, asked, data = CausalLMLoss(), TokenExamples(queries), TokenExamples(train)
    model.requires_grad_(False)
    for parameter in tracked:
        parameter.requires_grad_(True)

    def measure() -> np.ndarray:
        with torch.no_grad():
            return -loss(model, asked.batch(range(ask))).per_token.double().sum(1).numpy()

    before, measured = measure(), np.zeros((ask, count))
    kept = [parameter.detach().clone() for parameter in tracked]
    for number in range(count):
        grads = torch.autograd.grad(loss(model, data.batch([number])).per_token.sum(), tracked)
        with torch.no_grad():
            for parameter, grad in zip(tracked, grads, strict=True):
                parameter.sub_(grad, alpha=rate)
            measured[:, number] = measure() - before
            for parameter, old in zip(tracked, kept, strict=True):
                parameter.copy_(old)
    return judge(
        f"gradient dot product against one step of rate {rate:g} on the sequence's summed loss, MLPs of the last four "
        "blocks, 24 tokens of text",
        predicted,
        measured,
        median_change=float(np.median(np.abs(measured))),
    )


def _line(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    return {
        "slope": slope(predicted, measured),
        "correlation": float(np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]),
    }
