"""A scored run of sixty rows, small enough to be made in a second: hostile texts among plain ones, some twice."""

import numpy as np
import pytest

from hesse.influence import Influence, keep_corpus
from hesse.influence.sequences import Sequence
from tests.hostile import HOSTILE
from tests.influence._tiny import VOCAB, gpt2

PLAIN = ["the flute plays", "a horn plays", "the flute  plays", "rain on the roof", "the flute plays"]


def sequence(name, text, rng, **metadata):
    length = int(rng.integers(3, 8))
    ids = rng.integers(VOCAB, size=length)
    ends = np.linspace(0, len(text), length + 1).astype(np.int32)
    return Sequence(name, name, ids, ids.copy(), text, np.stack([ends[:-1], ends[1:]], 1), metadata)


def asked(name, prompt, completion, rng):
    found = sequence(name, prompt + completion, rng, prompt=prompt, completion=completion)
    found.labels[: len(found) // 2] = -100
    return found


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """The run; its last question kept all terms, an earlier one totals only."""
    folder = tmp_path_factory.mktemp("runs") / "facts"
    rng = np.random.default_rng(0)
    kinds = ["plain", "odd"]
    rows = [sequence(f"row{i}", text, rng, kind="plain", number=i % 3) for i, text in enumerate(PLAIN)]
    rows += [sequence(f"h{i}", text, rng, kind=kinds[i % 2], note=text[:60]) for i, text in enumerate(HOSTILE)]
    rows += [sequence("chunk#0", "one ", rng), sequence("chunk#1", "two", rng)]
    rows[-2:] = [Sequence(s.id, "chunk", s.input_ids, s.labels, s.text, s.offsets, {}) for s in rows[-2:]]
    queries = [asked("q0", "Who plays", " the flute", rng), asked(HOSTILE[1], HOSTILE[0], HOSTILE[2], rng)]
    influence = Influence(gpt2(), fisher="empirical")
    influence.fit(rows, folder, progress=False, info={"model": HOSTILE[2]})
    keep_corpus(folder, "train", rows)
    keep_corpus(folder, "queries", queries)
    settings = {"unit_size": 16, "progress": False, "rank": None}
    influence.score(queries, rows, folder, **settings)
    influence.score(queries, rows, folder, per_token=True, per_layer=True, per_query_token=True, **settings)
    return folder
