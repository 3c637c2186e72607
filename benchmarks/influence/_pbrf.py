"""B2: scores against the proximal Bregman response, the counterfactual that they approximate, and its linearisation.

Correlations are Pearson's over sequences, averaged over queries. Everything in float64.
"""

import math
import tempfile
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._claims import Claim, Scale
from benchmarks.influence._truth_calibration import digits_net
from hesse.curvature import Relative
from hesse.influence import ClassificationLoss, Influence, Loss, Sequence
from hesse.influence.baselines import gradient_cosine
from hesse.influence.evaluate import NewtonCG, ProximalResponse, cosine_rates, damped_ggn_scores, pbrf, train_model
from hesse.influence.solvers import PCG, LiSSA
from hesse.influence.trajectory import AdamW, TrainingSchedule

__all__ = ["CLAIMS"]

LISSA = (20, 100, 300)


def _mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


def compare(
    model: nn.Module,
    train: Any,
    queries: Any,
    points: list[int],
    loss: Loss,
    *,
    damping: float = 0.1,
    lissa: tuple[int, ...] = LISSA,
    full: bool,
) -> dict[str, Any]:
    """Correlation of every method with the linear answer and with the solved response; few steps if not ``full``."""
    effort = 1.0 if full else 0.03
    kinds: dict[str, Any] = {"EK-FAC": "ekfac", "K-FAC": "kfac", "diagonal": "diagonal", "gradient dot": "identity"}
    kinds |= {f"PCG {n}": PCG(math.ceil(effort * n), rtol=0.0, columns=32) for n in (10, 40)}
    kinds |= {f"LiSSA {n}, whole data": LiSSA(math.ceil(effort * n), None, rtol=0.0, columns=32) for n in lissa}
    scores: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds.items():
            influence = Influence(model, loss=loss, strategy=kind, damping=Relative(damping))
            run = f"{folder}/{name}"
            factors = influence.fit(train, run, progress=False)
            values = influence.score(queries, train, run, rank=None, progress=False).values
            scores[name] = np.array(values, dtype=np.float64)[:, points]
            if name == "EK-FAC":
                linear = damped_ggn_scores(influence, factors, train, queries, points)
                solver = NewtonCG() if full else NewtonCG(max_steps=2)
                solved = pbrf(influence, factors, train, queries, points, solver=solver, progress=False)
                whole = pbrf(influence, factors, train, queries, points, copies=1.0, progress=False) if full else None
    scores["gradient cosine"] = gradient_cosine(model, queries, train, loss=loss).numpy()[:, points]
    return {
        "linear answer against response": _mean_correlation(linear, solved.values),
        "with the linear answer": {name: _mean_correlation(linear, found) for name, found in scores.items()},
        "with the response": {name: _mean_correlation(solved.values, found) for name, found in scores.items()},
        "linear answer against a whole copy": None if whole is None else _whole(linear, whole),
        "median gradient norm": float(np.median(solved.gradient_norm)),
        "converged": float(solved.converged.mean()),
        "damping": damping,
    }


def _whole(linear: np.ndarray, found: ProximalResponse) -> dict[str, float]:
    return {
        "added": _mean_correlation(linear, found.added),
        "removed": _mean_correlation(linear, found.removed),
        "odd part": _mean_correlation(linear, found.values),
    }


def _claims(name: str, found: dict[str, Any], *, solvers: bool) -> list[Claim]:
    linear, response = found["with the linear answer"], found["with the response"]
    gain = min(table["EK-FAC"] - table["gradient dot"] for table in (linear, response))
    claims = [
        Claim(f"B2 linear answer against the response, {name}", found["linear answer against response"], 0.95,
              "higher", found, True),
        Claim(f"B2 EK-FAC over gradient dot, the lesser of both truths, {name}", gain, 0.15, "higher", found, True),
    ]  # fmt: skip
    if solvers:
        claims += [
            Claim(
                f"B2 PCG {steps} against the linear answer, {name}", linear[f"PCG {steps}"], bar, "higher", found, True
            )
            for steps, bar in ((10, 0.90), (40, 0.98))
        ]
    return claims


def digits_responses(scale: Scale) -> list[Claim]:
    """ReLU and GELU networks on digits with a tenth of the labels wrong."""
    torch.set_num_threads(1)
    claims = []
    for name, activation in (("digits GELU", nn.GELU), ("digits ReLU", nn.ReLU)):
        net, train, queries, _flipped = digits_net(scale.seed, count=scale(smoke=50, full=300), activation=activation)
        ask = scale(smoke=2, full=20)
        points = list(range(scale(smoke=4, full=100)))
        asked = (queries[0][:ask], queries[1][:ask])
        found = compare(net, train, asked, points, ClassificationLoss(), full=scale.name == "full")
        claims += _claims(name, found, solvers=True)
        if activation is nn.GELU:
            claims += _parity(net, train, asked, points, found, full=scale.name == "full")
    return claims


def _parity(
    net: nn.Module, train: Any, asked: Any, points: list[int], found: dict[str, Any], *, full: bool
) -> list[Claim]:
    # one EK-FAC solve against many full-batch LiSSA steps, at two dampings
    claims = []
    table = found["with the linear answer"]
    claims.append(
        Claim("B2 EK-FAC over 20 LiSSA steps, damping 0.1", table["EK-FAC"] - table["LiSSA 20, whole data"], 0.0,
              "higher", found, True)
    )  # fmt: skip
    small = compare(net, train, asked, points, ClassificationLoss(), damping=0.01, lissa=(100,), full=full)
    table = small["with the linear answer"]
    claims.append(
        Claim("B2 EK-FAC over 100 LiSSA steps, damping 0.01", table["EK-FAC"] - table["LiSSA 100, whole data"], 0.0,
              "higher", small, True)
    )  # fmt: skip
    return claims


def language_model_responses(scale: Scale) -> list[Claim]:
    """A two-block GPT-2 of width 16 on characters of real text, MLPs tracked."""
    torch.set_num_threads(1)
    from benchmarks.data import pydoc_rows

    count, ask, length = scale(smoke=(24, 2, 12), full=(96, 8, 16))
    texts = pydoc_rows(length, count + ask, seed=scale.seed)
    number = {c: i for i, c in enumerate(sorted({c for text in texts for c in text}))}

    def row(name: str, text: str, start: int) -> Sequence:
        tokens = np.array([number[c] for c in text])
        labels = np.where(np.arange(length) < start, -100, tokens)
        return Sequence(name, name, tokens, labels)

    train = [row(f"t{i}", text, 1) for i, text in enumerate(texts[:count])]
    queries = [row(f"q{i}", text, length // 2) for i, text in enumerate(texts[count:])]
    steps = scale(smoke=10, full=200)
    schedule = TrainingSchedule.shuffled(
        count, min(count, 64), AdamW(weight_decay=0.0), cosine_rates(1e-2, steps), seed=scale.seed
    )
    model = train_model(_gpt2(len(number), length, scale.seed), train, schedule, progress=False)
    points = list(range(scale(smoke=3, full=24)))
    found = compare(model, train, queries, points, Influence(model).loss, lissa=(20,), full=scale.name == "full")
    return _claims("language model", found, solvers=False)


def _gpt2(vocabulary: int, length: int, seed: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=length, n_inner=24, bos_token_id=0,
        eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


CLAIMS = [digits_responses, language_model_responses]
