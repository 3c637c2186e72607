"""B9: the exponent of a power law is recovered, with an honest interval; and how thin influence is in a language model.

Oracles: samples of known laws; for the language model, what the top of an exponential law would carry.
"""

import tempfile
from typing import Any

import numpy as np

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.influence._word_order import trained_office
from benchmarks.peers import has_peer
from hesse.influence import Influence
from hesse.influence.demo import recalled
from hesse.influence.studies import TailStudy, fit_tail, study_tail

EXPONENTS = (1.5, 2.5)
NUM_SEEDS = 3


def hill(scale: Scale) -> list[Claim]:
    """Exponents 1.5 and 2.5 from the 500 largest of 20,000 values, over many samples; other thresholds beside."""
    repeats, size = scale(smoke=20, full=200), scale(smoke=5_000, full=20_000)
    rng = np.random.default_rng([scale.seed, 1])
    rows: dict[str, Any] = {}
    errors, covered = [], []
    for exponent in EXPONENTS:
        fits = [fit_tail(1 + rng.pareto(exponent, size), num_bootstrap=400, seed=i) for i in range(repeats)]
        found = np.array([fit.exponent for fit in fits])
        relative = found / exponent - 1
        inside = np.array([fit.low <= exponent <= fit.high for fit in fits])
        errors.append(float(np.sqrt((relative**2).mean())))
        covered.append(float(inside.mean()))
        rows[f"exponent {exponent}"] = {
            "mean": found.mean(),
            "root mean square error": errors[-1],
            "within 10 %": float((np.abs(relative) <= 0.1).mean()),
            "interval holds it": covered[-1],
            "behind a lognormal body": _mixture(exponent, size, rng, min(repeats, 20)),
        }
    return [
        Claim("B9 Hill on Pareto samples, relative error, worse exponent", max(errors), 0.10, "lower", rows, True),
        Claim(
            "B9 the 95 % interval of the exponent holds it, share of samples",
            float(np.mean(covered)),
            (0.91, 0.98),
            "inside",
            {"samples": repeats * len(EXPONENTS)},
            True,
        ),
    ]


def _mixture(exponent: float, size: int, rng: np.random.Generator, repeats: int) -> dict[str, float]:
    # nine values of ten from a lognormal law cut at 1, the others from the power law above 1
    found, tails = [], []
    for _ in range(repeats):
        body = np.exp(-np.abs(rng.normal(0, 1, size - size // 10)))
        fit = fit_tail(np.concatenate([body, 1 + rng.pareto(exponent, size // 10)]), None, num_bootstrap=1)
        found.append(fit.exponent)
        tails.append(fit.num_tail)
    return {"mean": float(np.mean(found)), "values in the tail, median": float(np.median(tails)), "of": size // 10}


def top_share(scale: Scale) -> Claim:
    """What the strongest hundredth of the proponents of an answer carries, against a law with a light tail.

    Facts memorised by a two-block model, all questions it answers, three worlds. Judged is the least mean of the seeds,
    over the share p(1 + log(1/p)) that the same fraction p carries under an exponential law.
    """
    if not has_peer("transformers"):
        raise PeerMissing('transformers: pip install "hesse[hf]"')
    rows, ratios = {}, []
    for number in range(scale(smoke=1, full=NUM_SEEDS)):
        study = _memorised(scale, scale.seed + number)
        top = np.array([q.num_top / max(len(q.proponents), 1) for q in study.queries])
        shares = np.array([q.share_of_top for q in study.queries])
        light = top * (1 - np.log(top))
        ratios.append(float((shares / light).mean()))
        exponents = [q.fit.exponent for q in study.queries if q.fit is not None]
        rows[f"seed {number}"] = {
            "questions": len(study.queries),
            "rows scored": study.queries[0].num_rows,
            "rows in the top, mean": float(np.mean([q.num_top for q in study.queries])),
            "share of the top 1 %, mean": float(shares.mean()),
            "share, least and largest": [float(shares.min()), float(shares.max())],
            "the same under an exponential law": float(light.mean()),
            "rows for half of the influence, median": float(np.median([q.num_for_half for q in study.queries])),
            "proponents, median": float(np.median([len(q.proponents) for q in study.queries])),
            "exponent of the tail, median": float(np.median(exponents)),
        }
    return Claim(
        "B9 share of the top 1 % of proponents, language model, over that of an exponential law, least seed",
        min(ratios),
        1.0,
        "higher",
        rows,
        True,
    )


def _memorised(scale: Scale, seed: int) -> TailStudy:
    _world, sentences, questions, model = trained_office(scale, seed)
    right = recalled(model, questions)
    asked = [question for question, known in zip(questions, right, strict=True) if known] or questions[:5]
    with tempfile.TemporaryDirectory() as folder:
        engine = Influence(model, seed=seed)
        engine.fit(sentences, folder, progress=False)
        return study_tail(engine.score(asked, sentences, folder, rank=None, progress=False), num_bootstrap=100)


CLAIMS = [hill, top_share]
