"""Scores and runs with numbers put in by hand, so that a study has a closed form."""

import numpy as np

from hesse.influence.opened import Run
from hesse.influence.scores import Scores


def planted(values, *, queries=None, rows=None):
    """Scores (Q, R) as a run would hold them, without terms of layers or tokens."""
    values = np.asarray(values, dtype=np.float32)
    names = queries or [f"q{i}" for i in range(len(values))]
    ids = rows or [f"s{i}" for i in range(values.shape[1])]
    scores = Scores(None, "scores/planted", {"per_layer": False, "per_token": False, "units": "nats"})
    index = {"queries": names, "rows": ids, "sequences": ids, "row_of_sequence": ids, "layers": [], "targets": []}
    scores.__dict__.update(values=values, _index=index)
    return scores


def replanted(run, values):
    """The same run, its texts kept, with other scores."""
    values = np.asarray(values, dtype=np.float32)
    other = Run(run.folder)
    scores = Scores(run.folder, run.scores.folder, run.scores.state)
    scores.__dict__["values"] = values
    other.__dict__["scores"] = scores
    return other
