"""B7: summed scores rank the outcomes of training on random halves of the data: digits, and a language model.

Protocol on digits: 64-16-16-10 with ReLU, N = 300 with a tenth of the labels wrong, 250 full-batch steps of SGD with
momentum 0.9 and a cosine from 0.1, 40 halves and 3 starts, f = log p(correct class) of 60 held-out pictures.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.data import digits, flip_labels
from benchmarks.influence import _truth_peers as peers
from benchmarks.influence._truth_setting import PROTOCOL, Sizes, prepare
from hesse.influence import ClassificationLoss, Influence
from hesse.influence.baselines import gradient_cosine
from hesse.influence.evaluate import (
    bootstrap_interval,
    cosine_rates,
    damped_ggn_scores,
    draw_masks,
    lds,
    retrain,
    train_model,
)
from hesse.influence.trajectory import SGD, TrainingSchedule

__all__ = ["CLAIMS"]

STRATEGIES = {"EK-FAC": "ekfac", "K-FAC": "kfac", "diagonal": "diagonal", "gradient dot": "identity"}
DATTRI_DAMPINGS = (1e-7, 1e-6, 1e-5, 1e-4)
LOSS = ClassificationLoss()


def digits_datamodels(scale: Scale) -> list[Claim]:
    """EK-FAC ahead of gradient dot and cosine, and of traker with one model; the others beside them."""
    torch.set_num_threads(1)
    count, ask, halves, steps = scale(smoke=(60, 6, 10, 30), full=(300, 60, 40, 250))
    split = digits(count, seed=scale.seed, dtype=torch.float32)
    labels, _flipped = flip_labels(split.train_y, 0.1, 10, seed=scale.seed)
    train, queries = (split.train_x, labels), (split.test_x[:ask], split.test_y[:ask])
    starts = [_net(scale.seed + i) for i in range(3)]
    schedule = TrainingSchedule(SGD(momentum=0.9), tuple(cosine_rates(0.1, steps)), (tuple(range(count)),) * steps)
    masks = draw_masks(halves, count, seed=scale.seed)
    schedules = [schedule] * len(starts)
    # twice the weight of a half: the mean over what is kept
    outcomes = retrain(starts, train, queries, 2.0 * masks, schedules, loss=LOSS, at_once=40, progress=False).numpy()
    models = [train_model(start, train, schedule, loss=LOSS, progress=False) for start in starts]
    scores, failed = _scores(models, train, queries, scale.seed)
    found = {name: lds(np.mean(parts, axis=0), masks, outcomes) for name, parts in scores.items()}
    repeat = found["EK-FAC"].reliability
    rows: dict[str, Any] = {
        "methods": {
            name: {
                "LDS": result.value,
                "95 %": result.interval,
                "one checkpoint": float(np.mean([lds(part, masks, outcomes).value for part in scores[name]])),
            }
            for name, result in sorted(found.items(), key=lambda item: -item[1].value)
        },
        "single-seed split half": _single_seed_repeat(outcomes),
        "ceiling": None if repeat is None else repeat.ceiling,
        "could not run": failed,
        "trainings": len(starts) * halves,
    }
    claims = []
    for rival, bar in (("gradient dot", 0.10), ("gradient cosine", 0.05), ("traker", 0.0)):
        if rival in found:
            gap = found["EK-FAC"].per_query - found[rival].per_query
            more = {"95 % of the gap": bootstrap_interval(gap)}
            claims.append(
                Claim(f"B7 LDS of EK-FAC over {rival}, digits", float(gap.mean()), bar, "higher", rows | more, True)
            )
        else:
            claims.append(Claim(f"B7 LDS of EK-FAC over {rival}, digits", None, bar, "higher", rows, True))
    return claims


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)]
    return nn.Sequential(*layers).eval()


def _scores(
    models: list[nn.Module], train: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], seed: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    scores: dict[str, list[np.ndarray]] = {}
    failed: dict[str, str] = {}
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            for name, strategy in STRATEGIES.items():
                influence = Influence(model, loss=LOSS, strategy=strategy, seed=abs(seed))
                factors = influence.fit(train, f"{folder}/{strategy}", progress=False)
                found = influence.score(queries, train, f"{folder}/{strategy}", rank=None, progress=False)
                scores.setdefault(name, []).append(np.array(found.values, dtype=np.float64))
                if strategy == "ekfac":
                    scores.setdefault("whole damped Gauss-Newton", []).append(
                        damped_ggn_scores(influence, factors, train, queries)
                    )
        scores.setdefault("gradient cosine", []).append(gradient_cosine(model, queries, train, loss=LOSS).numpy())
    trials = {f"dattri EK-FAC, damping {value:g}": value for value in DATTRI_DAMPINGS}
    for name, value in trials.items():
        _try(scores, failed, name, lambda value=value: [peers.dattri_ekfac(m, train, queries, value) for m in models])
    _try(scores, failed, "traker", lambda: [peers.traker_classifier(models[:1], train, queries, dimensions=128)])
    return scores, failed


def _try(scores: dict[str, list[np.ndarray]], failed: dict[str, str], name: str, function: Any) -> None:
    try:
        scores[name] = function()
    except PeerMissing as error:
        failed[name] = str(error)
    except Exception as error:  # the row is what the peer says; the other methods must still run
        failed[name] = f"{type(error).__name__}: {error}"


def _single_seed_repeat(outcomes: np.ndarray) -> float:
    pairs = [(0, 1), (0, 2), (1, 2)]
    return float(np.mean([lds_of_outcomes(outcomes[a], outcomes[b]) for a, b in pairs]))


def lds_of_outcomes(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman over halves, mean over queries: an outcome is a score of its own subset."""
    return lds(first.T, np.eye(len(first), dtype=bool), second).value


def language_model_datamodels(scale: Scale) -> Claim:
    """EK-FAC ahead of gradient dot on a language model, their bootstrap intervals apart."""
    torch.set_num_threads(1)
    sizes = Sizes(masks=30) if scale.name == "full" else Sizes(sequences=48, queries=4, masks=6, steps=6, pretraining=6)
    setting = prepare(sizes, scale.seed)
    outcomes = setting.outcomes().numpy()
    found = {}
    for name, strategy in (("EK-FAC", "ekfac"), ("gradient dot", "identity")):
        parts = []
        for model in setting.trained:
            with tempfile.TemporaryDirectory() as folder:
                influence = Influence(model, strategy=strategy, seed=abs(scale.seed))
                influence.fit(setting.train, folder, progress=False)
                asked = influence.score(setting.queries, setting.train, folder, rank=None, progress=False)
                parts.append(np.array(asked.values, dtype=np.float64))
        found[name] = lds(np.mean(parts, axis=0), setting.masks, outcomes)
    rows = {name: {"LDS": result.value, "95 %": result.interval} for name, result in found.items()}
    repeat = found["EK-FAC"].reliability
    rows |= {"protocol": PROTOCOL, "sizes": vars(sizes), "ceiling": repeat.ceiling if repeat else None}
    gap = found["EK-FAC"].interval[0] - found["gradient dot"].interval[1]
    return Claim(
        "B7 LDS of EK-FAC over gradient dot, language model: gap of the 95 % intervals", gap, 0.0, "higher", rows, True
    )


CLAIMS = [digits_datamodels, language_model_datamodels]
