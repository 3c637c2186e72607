"""Whether a fit can be trusted: spectra, damping, coverage, what low rank kept, and warnings in words."""

from typing import Any

import numpy as np

from hesse.influence import parse_damping
from hesse.influence.report import CAVEATS
from hesse.influence.run import RunFolder
from hesse.io import load_tensors
from hesse.web.answers import Answers

__all__ = ["health"]

_BINS = 48
_CAPTURED = 0.9  # of a query's gradient; below it the ranking of a first pass may differ


def health(answers: Answers) -> dict[str, Any]:
    """Describe the fit under some scores.

    Parameters
    ----------
    answers : Answers
        An opened question.

    Returns
    -------
    dict
        settings, ledger, caveats, warnings, coverage, and layers: name, shape, damping, mean, counts over ``edges``
        (log10 of eigenvalues), zeros, effective (eigenvalues that the damping leaves, Σ λ/(λ + d)), captured.
    """
    run = answers.run
    edges, layers = _spectra(run)
    captured = answers.scores.state.get("captured") or {}
    for layer in layers:
        layer["captured"] = captured.get(layer["name"])
    fit = run.stage("fit")
    coverage = {
        "sequences": fit.get("num_sequences"),
        "of": run.manifest.config.get("num_sequences"),
        "mean_tokens": fit.get("mean_tokens"),
    }
    settings = answers.settings()
    shown = {key: value for key, value in settings.items() if isinstance(value, (str, int, float, bool))}
    return {
        "settings": shown,
        "ledger": answers.ledger,
        "caveats": list(CAVEATS),
        "warnings": _warnings(settings, coverage, layers),
        "coverage": coverage,
        "edges": edges,
        "layers": layers,
    }


def _spectra(run: RunFolder) -> tuple[list[float], list[dict[str, Any]]]:
    damping = parse_damping(run.manifest.config["damping"])
    found, logs = [], []
    for name, entry in run.stage("fit").get("layers", {}).items():
        if not entry.get("table"):
            continue
        table = load_tensors(run.path / entry["table"], run.entry(entry["table"]))["table"]
        level = float(damping.of(table))
        values = table.double().flatten().numpy()
        positive = values[values > 0]
        logs.append(np.log10(positive))
        found.append(
            {
                "name": name,
                "shape": list(table.shape),
                "damping": level,
                "mean": float(values.mean()),
                "zeros": int(values.size - positive.size),
                "effective": float((positive / (positive + level)).sum()) if level > 0 else float(positive.size),
            }
        )
    if not any(part.size for part in logs):
        return [], [{**layer, "counts": []} for layer in found]
    low = min(float(part.min()) for part in logs if part.size)
    high = max(float(part.max()) for part in logs if part.size)
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    counts = [np.histogram(part, edges)[0].tolist() for part in logs]
    return edges.tolist(), [{**layer, "counts": part} for layer, part in zip(found, counts, strict=True)]


def _warnings(settings: dict[str, Any], coverage: dict[str, Any], layers: list[dict[str, Any]]) -> list[str]:
    told = []
    seen, total = coverage["sequences"], coverage["of"]
    if seen and total and seen < total:
        told.append(f"The curvature was measured on {seen:,} of {total:,} sequences; a fit on all is steadier.")
    if settings.get("fisher") == "empirical":
        told.append("The empirical Fisher is a biased curvature; refit with --fisher sampled where it matters.")
    if settings.get("strategy") == "identity":
        told.append("No curvature was used: these are gradient dot products.")
    dead = [layer["name"] for layer in layers if layer["zeros"] > 0.5 * np.prod(layer["shape"])]
    if dead:
        told.append(f"No gradient reaches more than half of {_some(dead)}; its scores rest on the damping.")
    weak = [layer["name"] for layer in layers if layer["captured"] is not None and layer["captured"] < _CAPTURED]
    if weak and not settings.get("refine_topk"):
        told.append(
            f"At rank {settings.get('rank')} less than {_CAPTURED:.0%} of some query's gradient is kept in "
            f"{_some(weak)}; score with a higher --rank, or with --refine-topk."
        )
    return told


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
