"""Is it true? Scores of every method against what really happens when a language model is fine-tuned on other data.

The protocol stands in the rows; figures of other protocols, those of the published table among them, do not compare.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.influence import _truth_calibration as calibration
from benchmarks.influence._truth_lora_methods import LORA_BARS, adapted_claims
from benchmarks.influence._truth_methods import MODULES, Table, score_all
from benchmarks.influence._truth_setting import PROTOCOL, Setting, Sizes, prepare
from benchmarks.peers import has_peer, require_peer, run_peer
from hesse.errors import MissingDependencyError
from hesse.influence.evaluate import bootstrap_interval, detect_mislabelled, lds, metric_tensors, qld

SEEDS = 3
PUBLISHED = {  # LDS and QLD of GPT-2 on WikiText as the strongest peer publishes them: another protocol
    "magic": (0.931, 0.100),
    "EK-FAC + CG": (0.685, 0.077),
    "EK-Shampoo": (0.517, None),
    "SOURCE": (0.473, 0.071),
    "EK-FAC": (0.454, 0.070),
    "BM25": (0.220, 0.062),
    "TRAK": (0.138, 0.032),
}
QLD_METHODS = ("magic", "EK-FAC + CG 10, damping 0.1", "EK-FAC", "SOURCE", "gradient dot", "BM25", "TRAK, 64")
SMALL = Sizes(sequences=48, queries=4, masks=8, runs=2, steps=6, pretraining=6)


class Experiment:
    """One seed: setting, truth, scores, and the LDS of each method."""

    def __init__(self, sizes: Sizes, seed: int, *, full: bool) -> None:
        self.setting: Setting = prepare(sizes, seed)
        self.outcomes = self.setting.outcomes().numpy()
        grid = {0.1: (2, 10), 0.01: (10,), 1.0: (10,)} if full else {0.1: (2,)}
        self.table: Table = score_all(
            self.setting, grid=grid, dampings=(0.01, 1.0) if full else (), lissa_steps=100 if full else 3, seed=seed
        )
        self.lds = {name: lds(scores, self.setting.masks, self.outcomes) for name, scores in self.table.scores.items()}


@lru_cache(maxsize=2)
def experiments(name: str, seed: int) -> list[Experiment]:
    """All seeds of a run: two functions of claims share them."""
    if not has_peer("transformers"):
        raise PeerMissing('transformers: pip install "hesse[hf]"')
    torch.set_num_threads(1)
    full = name == "full"
    sizes = Sizes() if full else SMALL
    return [Experiment(sizes, seed + 1000 * i, full=full) for i in range(SEEDS if full else 1)]


def pooled(runs: list[Experiment], name: str) -> np.ndarray:
    """LDS of every query of every seed."""
    return np.concatenate([run.lds[name].per_query for run in runs if name in run.lds])


def datamodels(scale: Scale) -> list[Claim]:
    """LDS of every method on the same checkpoints, over three seeds; intervals by bootstrap over all queries."""
    runs = experiments(scale.name, scale.seed)
    methods: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run.lds):
        values = pooled(runs, name)
        low, high = bootstrap_interval(values)
        single = [
            lds(part, run.setting.masks, run.outcomes).value for run in runs for part in run.table.single.get(name, [])
        ]
        methods[name] = {
            "LDS": float(values.mean()),
            "95 %": [low, high],
            "by seed": [run.lds[name].value for run in runs if name in run.lds],
            "one checkpoint": float(np.mean(single)),
        }
    ranked = dict(sorted(methods.items(), key=lambda item: -item[1]["LDS"]))
    repeat = [run.lds["EK-FAC"].reliability for run in runs]
    rows = {
        "protocol": f"{PROTOCOL}; layers {MODULES}",
        "sizes": vars(runs[0].setting.sizes),
        "methods": ranked,
        "split half": [r.split_half for r in repeat if r],
        "ceiling": [r.ceiling for r in repeat if r],
        "could not run": runs[0].table.failed,
        "published for GPT-2 on WikiText, another protocol (LDS, QLD)": PUBLISHED,
    }
    trakers = [name for name in methods if name.startswith("traker")]
    best_traker = max(trakers, key=lambda name: methods[name]["LDS"]) if trakers else None
    claims = [_peer_claim(runs, rows), *_magic_claims(methods, rows)]
    for rival, note in (("gradient dot", None), ("gradient cosine", None), (best_traker, "best of its dimensions")):
        claims.append(_ahead(runs, "EK-FAC", rival, rows, note))
    gain = methods["EK-FAC"]["LDS"] - methods["EK-FAC"]["one checkpoint"]
    claims.append(
        Claim("LDS that averaging EK-FAC over checkpoints adds to one of them", gain, 0.0, "higher", rows, True)
    )
    claims.append(_grid_claim(methods, rows))
    return claims


def _peer_claim(runs: list[Experiment], rows: dict[str, Any]) -> Claim:
    name = "EK-FAC reaches the LDS of the best EK-FAC of the peers: upper end of the paired 95 % interval"
    if not all("kronfluence EK-FAC" in run.lds for run in runs):
        return Claim(name, None, 0.0, "higher", {"peer": runs[0].table.failed.get("kronfluence EK-FAC")}, True)
    difference = pooled(runs, "EK-FAC") - pooled(runs, "kronfluence EK-FAC")
    interval = bootstrap_interval(difference)
    found = {"mean difference": float(difference.mean()), "95 %": interval, "peer": "kronfluence 1.0.1"}
    found |= {key: rows[key] for key in ("protocol", "could not run")}
    return Claim(name, interval[1], 0.0, "higher", found, full_only=True)


def _magic_claims(methods: dict[str, Any], rows: dict[str, Any]) -> list[Claim]:
    measured = methods["magic"]["LDS"] if "magic" in methods else None
    others = {name: entry["LDS"] for name, entry in methods.items() if name != "magic"}
    best = max(others, key=lambda name: others[name])
    margin = None if measured is None else measured - others[best]
    return [
        Claim("LDS of magic", measured, 0.90, "higher", rows, full_only=True),
        Claim("LDS of magic over the best other method", margin, 0.0, "higher", {"best other": best, **others}, True),
    ]


def _ahead(runs: list[Experiment], name: str, rival: str | None, rows: dict[str, Any], note: str | None) -> Claim:
    shown = "traker" if rival is None or rival.startswith("traker") else rival
    title = f"LDS of {name} over {shown}: lower end of 95 %"
    if rival is None or not all(rival in run.lds for run in runs):
        return Claim(title, None, 0.0, "higher", {"could not run": rows["could not run"]}, True)
    difference = pooled(runs, name) - pooled(runs, rival)
    interval = bootstrap_interval(difference)
    return Claim(
        title, interval[0], 0.0, "higher",
        {"rival": rival, "mean difference": float(difference.mean()), "95 %": interval}, full_only=True, note=note,
    )  # fmt: skip


def _grid_claim(methods: dict[str, Any], rows: dict[str, Any]) -> Claim:
    # reported whichever way it falls: the bar only asks that every point of the grid was measured
    grid = {name: entry["LDS"] for name, entry in methods.items() if name.startswith("EK-FAC")}
    wanted = 4 if "EK-FAC, damping 0.01" in methods else 1
    return Claim(
        "points of the grid of PCG steps and damping that were measured",
        float(sum(" + CG" in name for name in grid)),
        float(wanted),
        "higher",
        {"LDS": dict(sorted(grid.items(), key=lambda item: -item[1])), "sizes": rows["sizes"]},
        note="a more accurate solve is a dial of fidelity, no promise of a better prediction",
    )


def query_loss(scale: Scale) -> list[Claim]:
    """QLD: how much the queries lose when their top proponents are left out of fine-tuning, less random removal."""
    runs = experiments(scale.name, scale.seed)
    asked = scale(smoke=2, full=12)
    found: dict[str, list[Any]] = {}
    for run in runs:
        setting = run.setting
        for name in QLD_METHODS:
            if name in run.table.scores:
                result = qld(
                    run.table.scores[name][:asked], setting.start, setting.train, setting.queries[:asked],
                    setting.schedules[0], share=0.02, seed=scale.seed, progress=False,
                )  # fmt: skip
                found.setdefault(name, []).append(result)
    rows: dict[str, Any] = {"protocol": PROTOCOL, "share left out": 0.02, "queries a seed": asked}
    per_query = {name: np.concatenate([r.per_query for r in results]) for name, results in found.items()}
    rows["methods"] = {
        name: {
            "QLD, nats a query": float(values.mean()),
            "95 %": bootstrap_interval(values),
            "nats a token": float(np.mean([r.per_token for r in found[name]])),
        }
        for name, values in sorted(per_query.items(), key=lambda item: -item[1].mean())
    }
    rows["published for GPT-2 on WikiText, another protocol (LDS, QLD)"] = PUBLISHED
    low = bootstrap_interval(per_query["EK-FAC"])[0]
    return [
        Claim("QLD of EK-FAC over random removal: lower end of 95 %", low, 0.0, "higher", rows, full_only=True),
        Claim(
            "QLD of magic over EK-FAC",
            float((per_query["magic"] - per_query["EK-FAC"]).mean()) if "magic" in per_query else None,
            0.0,
            "higher",
            rows,
            full_only=True,
        ),
    ]


def outside_judges(scale: Scale) -> list[Claim]:
    """LDS as quanda and dattri compute it from the tensors that we hand them."""
    run = experiments(scale.name, scale.seed)[0]
    scores, masks, outcomes = run.table.scores["EK-FAC"], run.setting.masks, run.outcomes
    ours = run.lds["EK-FAC"].value
    claims = []
    theirs = metric_tensors(scores, layout="dattri", masks=masks, outcomes=outcomes)
    try:
        metric: Any = require_peer("dattri.metric")
        value = float(metric.lds(theirs["score"], (theirs["target"], theirs["indices"]))[0].mean())
        claims.append(Claim("LDS by dattri's metric less ours", abs(value - ours), 1e-6, "lower", {"dattri": value}))
    except PeerMissing as error:
        claims.append(Claim("LDS by dattri's metric less ours", None, 1e-6, "lower", {"peer missing": str(error)}))
    flipped, self_influence = calibration.noisy_digits(scale.seed)
    arrays = {"scores": scores, "masks": masks, "outcomes": outcomes.mean(0)}
    arrays |= {"self_influence": self_influence, "mislabelled": flipped}
    detected = detect_mislabelled(self_influence, flipped)
    rows: dict[str, Any] = {"ours": ours, "AUC of mislabelling by self-influence": vars_of(detected)}
    try:
        judged = run_peer("quanda", Path(__file__).with_name("_quanda_peer.py"), arrays).arrays
        rows |= {name: float(value) for name, value in judged.items()}
        claims.append(Claim("LDS by quanda's metric less ours", abs(rows["lds"] - ours), 1e-6, "lower", rows))
    except (PeerMissing, RuntimeError) as error:
        said = rows | {"peer": str(error)[-400:]}
        claims.append(Claim("LDS by quanda's metric less ours", None, 1e-6, "lower", said))
    claims.append(
        Claim("AUC of flipped labels by self-influence, digits", detected.auc, 0.85, "higher", rows, full_only=True)
    )
    return claims


def vars_of(result: Any) -> dict[str, float]:
    return {name: getattr(result, name) for name in result.__slots__}


def calibrated(scale: Scale) -> list[Claim]:
    """Predicted against measured change in nats: slope and correlation, where theory promises first order."""
    runs = experiments(scale.name, scale.seed)
    found = {
        "digits, response": calibration.digits_response(scale),
        "language model, retraining": calibration.language_model(scale, runs),
        "language model, one step": calibration.one_step(scale, runs),
    }
    return [_calibration_claim(f"calibration slope, {name}", entry) for name, entry in found.items()]


def pretrained(scale: Scale) -> Claim:
    """The same on SmolLM2-135M, a gradient step a sequence; not at smoke size, where loading it takes longest."""
    name = "calibration slope, SmolLM2-135M, one step"
    if scale.name == "smoke":
        return Claim(name, None, (0.8, 1.25), "inside", {"not run": "at smoke size"}, full_only=True)
    torch.set_num_threads(1)
    try:
        entry = calibration.smollm2(scale)
    except MissingDependencyError as error:
        return Claim(name, None, (0.8, 1.25), "inside", {"peer missing": str(error)}, full_only=True)
    return _calibration_claim(name, entry)


def adapted(scale: Scale) -> list[Claim]:
    """LDS on SmolLM2-135M fine-tuned with LoRA; not at smoke size, where loading it takes longest."""
    if scale.name == "smoke":
        return [Claim(name, None, bar, "higher", {"not run": "at smoke size"}, True) for name, bar in LORA_BARS.items()]
    try:
        return adapted_claims(scale)
    except (MissingDependencyError, PeerMissing) as error:
        rows = {"peer missing": str(error)}
        return [Claim(name, None, bar, "higher", rows, full_only=True) for name, bar in LORA_BARS.items()]


def _calibration_claim(name: str, entry: calibration.Calibration) -> Claim:
    rows = {"correlation": entry.correlation, "pairs": entry.pairs, "what": entry.what, "others": entry.others}
    return Claim(name, entry.slope, (0.8, 1.25), "inside", rows, full_only=True)


CLAIMS = [datamodels, query_loss, outside_judges, calibrated, pretrained, adapted]
