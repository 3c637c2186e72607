"""The answer: read back from a run, ranked, and exported."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.influence._reliability import memory_folder
from hesse.errors import ArgumentError, ShapeError
from hesse.influence.assembly import sequence_values
from hesse.influence.engine import Influence
from hesse.influence.examples import TokenExamples, as_examples, split_targets
from hesse.influence.objective import ClassificationLoss
from hesse.influence.scores import Ranked, Scores, open_scores
from hesse.influence.sequences import Sequence
from hesse.io import load_tensors
from tests.influence._tiny import gpt2, tokens

F64 = torch.float64


def chunked():
    """Eight sequences of five rows: the first two rows came in two and three chunks."""
    rows = ["r0", "r0", "r1", "r1", "r1", "r2", "r3", "r4"]
    out = []
    for item, row in zip(tokens(8), rows, strict=True):
        ids = np.array(item["input_ids"])
        out.append(Sequence(str(item["id"]), row, ids, ids.copy()))
    return TokenExamples(out)


@pytest.fixture(scope="module")
def scored():
    """Scores of three queries with parts, several units long, and of the same question without chunks."""
    with memory_folder() as folder:
        model, data = gpt2(layers=2), chunked()
        influence = Influence(model, fisher="empirical")
        influence.fit(data, folder / "run", progress=False)
        settings = {"rank": None, "unit_size": 3, "progress": False}
        whole = influence.score(tokens(3, seed=9), data, folder / "run", per_layer=True, per_token=True, **settings)
        flat = [Sequence(s.id, s.id, s.input_ids, s.labels) for s in data.sequences]
        influence.fit(TokenExamples(flat), folder / "flat", progress=False)
        apart = influence.score(tokens(3, seed=9), TokenExamples(flat), folder / "flat", **settings)
        yield whole, np.array(apart.values)


def test_chunks_of_a_row_are_summed(scored):
    """Oracle: the scores of the chunks as rows of their own."""
    scores, apart = scored
    assert scores.query_ids == ["s0", "s1", "s2"]
    assert scores.train_ids == ["r0", "r1", "r2", "r3", "r4"]
    assert scores.sequence_ids == [f"s{i}" for i in range(8)]
    wanted = np.stack([apart[:, :2].sum(1), apart[:, 2:5].sum(1), *apart[:, 5:].T], 1)
    np.testing.assert_allclose(scores.values, wanted, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(sequence_values(scores.run, scores.folder), apart, rtol=1e-9, atol=1e-10)
    assert not scores.values.flags.writeable


def test_layers_and_tokens_add_up_to_rows(scored):
    """Oracle: the scores themselves; a token's term is found by the id of its sequence."""
    scores, apart = scored
    assert scores.layers.shape == (3, 5, 4)
    assert scores.layer_names == [f"transformer.h.{b}.mlp.{n}" for b in (0, 1) for n in ("c_fc", "c_proj")]
    np.testing.assert_allclose(scores.layers.sum(-1), scores.values, rtol=1e-10, atol=1e-10)
    for n, item in enumerate(tokens(8)):
        for q in range(3):
            terms = scores.tokens(q, f"s{n}")
            assert terms.shape == (len(item["input_ids"]),)
            np.testing.assert_allclose(terms.sum(), apart[q, n], rtol=1e-9, atol=1e-10)
    assert np.array_equal(scores.tokens("s1", "s4"), scores.tokens(1, "s4"))
    for q in range(3):
        for n, name in enumerate(scores.train_ids):
            np.testing.assert_allclose(scores.layer_terms(q, name), scores.layers[q, n], rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def targeted():
    """The same three queries, each token scored by itself, and as wholes; the engine that did it."""
    with memory_folder() as folder:
        data, queries = chunked(), tokens(3, seed=9)
        queries[1]["id"] = "s0@2"  # an id that looks like a part of another
        influence = Influence(gpt2(layers=2), fisher="empirical")
        influence.fit(data, folder / "run", progress=False)
        settings = {"per_token": True, "per_layer": True, "unit_size": 3, "progress": False}

        def ask(**changes):
            return influence.score(queries, data, folder / "run", **({"rank": None} | settings | changes))

        yield queries, ask


def test_tokens_of_a_completion_add_up_to_it(targeted):
    """Oracle: the whole completion as one query; and one with a single label, asked for by itself."""
    queries, ask = targeted
    parts, whole = ask(per_query_token=True), ask()
    assert parts.query_ids == whole.query_ids == ["s0", "s0@2", "s2"]
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(parts.layers, whole.layers, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(parts.layer_terms("s2", "r1"), whole.layers[2, 1], rtol=1e-9, atol=1e-10)
    for q, query in enumerate(queries):
        length = len(query["input_ids"])
        assert parts.targets(q) == list(range(1, length))
        np.testing.assert_allclose(parts.by_target(q).sum(0), whole.values[q], rtol=1e-9, atol=1e-10)
        for name, item in zip(parts.sequence_ids, tokens(8), strict=True):
            pairs = parts.pairs(q, name)
            assert pairs.shape == (length - 1, len(item["input_ids"]))
            np.testing.assert_allclose(pairs.sum(0), whole.tokens(q, name), rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(parts.tokens(q, name), whole.tokens(q, name), rtol=1e-8, atol=1e-10)
    assert whole.targets(0) is None
    assert whole.by_target(0) is None
    assert whole.pairs(0, "s0") is None


def test_one_token_ranks_the_rows(targeted):
    """Oracle: a query whose only label is that token."""
    queries, ask = targeted
    parts = ask(per_query_token=True)
    ids = queries[0]["input_ids"]
    labels = [-100] * len(ids)
    labels[2] = ids[2]
    alone = parts.run.path
    influence = Influence(gpt2(layers=2), fisher="empirical")
    single = influence.score(
        [{"id": "only", "input_ids": ids, "labels": labels}], chunked(), alone, rank=None, progress=False
    )
    np.testing.assert_allclose(parts.by_target(0)[1], single.values[0], rtol=1e-9, atol=1e-10)
    for sign in (1, -1):
        assert parts.topk(0, 5, sign, target=2) == [
            Ranked(item.rank, item.id, pytest.approx(item.score)) for item in single.topk(0, 5, sign)
        ]


def test_tokens_of_a_completion_at_low_rank_and_refined(targeted):
    """Oracle: full rank, which the second pass restores where it went."""
    _queries, ask = targeted
    exact = ask(per_query_token=True)
    refined = ask(per_query_token=True, rank=1, refine_topk=8, per_token=False, per_layer=False)
    np.testing.assert_allclose(refined.values, exact.values, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(refined.by_target("s2"), exact.by_target("s2"), rtol=1e-7, atol=1e-9)
    assert refined.pairs(0, "s0") is None


@pytest.mark.parametrize("per_query_token", [False, True])
def test_terms_of_refined_pairs_are_those_of_full_rank(targeted, per_query_token):
    """Oracle: full rank for the two strongest of either sign, rank 1 elsewhere, and the scores as sums of both."""
    _queries, ask = targeted
    exact, rough, refined = (
        ask(per_query_token=per_query_token, **changes)
        for changes in ({}, {"rank": 1, "refine_topk": 0}, {"rank": 1, "refine_topk": 2})
    )
    close = partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9)
    read = Scores.pairs if per_query_token else lambda scores, q, name: scores.tokens(q, name)[None]
    names = refined.sequence_ids
    for q in range(3):
        first = np.array([read(rough, q, name).sum(1) for name in names])  # (N, P), by which they were chosen
        total = np.zeros(first.shape[1])
        for target, values in enumerate(first.T):
            order = np.argsort(-values, kind="stable")
            ends = set(order[:2].tolist() + order[-2:].tolist())
            for n, name in enumerate(names):
                terms = read(refined, q, name)[target]
                close(terms, read(exact if n in ends else rough, q, name)[target])
                total[target] += terms.sum()
        close(total.sum(), refined.values[q].sum())
        if per_query_token:
            close(total, refined.by_target(q).sum(1))
        for n, row in enumerate(refined.train_ids):
            close(refined.layer_terms(q, row), refined.layers[q, n])
    close(refined.layers.sum(-1), refined.values)
    assert not np.allclose(refined.layers, rough.layers, rtol=1e-3)


def test_refined_layers_are_those_of_full_rank_where_all_are(targeted):
    """Oracle: full rank, of layers and of tokens."""
    _queries, ask = targeted
    exact, refined = ask(), ask(rank=1, refine_topk=8)
    np.testing.assert_allclose(refined.layers, exact.layers, rtol=1e-7, atol=1e-9)
    for name in exact.sequence_ids:
        np.testing.assert_allclose(refined.tokens(0, name), exact.tokens(0, name), rtol=1e-7, atol=1e-9)


def test_targets_that_cannot_be_had_are_named(targeted):
    """Oracle: the error taxonomy."""
    _queries, ask = targeted
    with pytest.raises(ArgumentError, match="target: expected one of 1, 2"):
        ask(per_query_token=True).topk(0, 3, target=0)
    with pytest.raises(ArgumentError, match="per_query_token"):
        ask().topk(0, 3, target=1)
    with pytest.raises(ArgumentError, match="per_query_token: a measurement"):
        ask(per_query_token=True, measurement=lambda model, batch: batch, measurement_name="m")
    with pytest.raises(ArgumentError, match="per_query_token: queries have no tokens"):
        split_targets(as_examples((torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))))


def test_a_shard_is_compared_once(scored, monkeypatch):
    """Oracle: what the reader is handed: an entry to compare with at the first reading of a shard, then none."""
    seen = []

    def counting(path, entry=None, **more):
        seen.append((path.name, entry is not None))
        return load_tensors(path, entry, **more)

    monkeypatch.setattr("hesse.influence.scores.load_tensors", counting)
    scores = open_scores(scored[0].run.path)
    first = scores.tokens(0, "s0")
    for name in ("s1", "s7", "s0"):
        again = scores.tokens(0, name)
    np.testing.assert_array_equal(again, first)
    names = ["part-000000000.safetensors", "part-000000006.safetensors"]
    assert seen == [(names[0], True), (names[0], False), (names[1], True), (names[0], False)]


def test_parts_that_were_not_asked_for(scored):
    """Oracle: None."""
    influence = Influence(gpt2(), strategy="identity")
    with memory_folder() as folder:
        influence.fit(tokens(3), folder / "run", progress=False)
        scores = influence.score(tokens(1), tokens(3), folder / "run", progress=False)
        assert scores.layers is None
        assert scores.tokens(0, "s0") is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [1, 2, 100])
def test_the_strongest_come_first(scored, sign, k):
    """Oracle: a full sort; only scores of the asked sign."""
    scores, _ = scored
    for q in range(3):
        row = np.array(scores.values[q])
        order = [n for n in np.argsort(-sign * row, kind="stable") if sign * row[n] > 0][:k]
        found = scores.topk(q, k, sign)
        assert [entry.id for entry in found] == [scores.train_ids[n] for n in order]
        assert [entry.score for entry in found] == [row[n] for n in order]
        assert [entry.rank for entry in found] == list(range(1, len(order) + 1))
    assert scores.topk("s2", k, sign) == scores.topk(2, k, sign)


def test_opening_finds_what_was_asked_last(scored):
    """Oracle: the folder of that question; every question stays readable by its own."""
    scores, _ = scored
    again = open_scores(scores.run.path)
    assert again.folder == scores.folder
    assert np.array_equal(again.values, scores.values)
    assert np.array_equal(open_scores(scores.run.path, scores.folder).values, scores.values)


def test_npz_round_trip(scored, tmp_path):
    """Oracle: the scores; the file holds no pickled object."""
    scores, _ = scored
    scores.to_npz(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as file:
        assert file["query_id"].tolist() == scores.query_ids
        assert file["train_id"].tolist() == scores.train_ids
        assert np.array_equal(file["score"], scores.values)


def test_parquet_round_trip(scored, tmp_path):
    """Oracle: one row a pair, query by query."""
    parquet = pytest.importorskip("pyarrow.parquet")
    scores, _ = scored
    scores.to_parquet(tmp_path / "scores.parquet")
    table = parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    assert table["query_id"] == [name for name in scores.query_ids for _ in range(5)]
    assert table["train_id"] == scores.train_ids * 3
    assert np.array_equal(np.array(table["score"]).reshape(3, 5), scores.values)


def test_plain_python(scored):
    """Oracle: by hand."""
    scores, _ = scored
    plain = scores.to_dict()
    assert plain["units"] == "nats"
    assert plain["scores"] == np.array(scores.values).tolist()
    with memory_folder() as folder:
        influence = Influence(gpt2(), strategy="identity")
        influence.fit(tokens(3), folder / "run", progress=False)
        raw = influence.score(tokens(1), tokens(3), folder / "run", units="raw", progress=False)
        assert raw.to_dict()["units"] == "raw"


def test_bad_questions_are_named(scored):
    """Oracle: the error and its argument."""
    scores, _ = scored
    with pytest.raises(ArgumentError, match="query: expected 0 to 2, got 3"):
        scores.topk(3, 1)
    with pytest.raises(ArgumentError, match="query: no 'x' in this run; known are s0, s1, s2"):
        scores.topk("x", 1)
    with pytest.raises(ArgumentError, match="k >= 1"):
        scores.topk(0, 0)
    with pytest.raises(ArgumentError, match="sign"):
        scores.topk(0, 1, 0)
    with pytest.raises(ArgumentError, match="sequence_id: no 'r0'"):
        scores.tokens(0, "r0")


class Pooled(nn.Module):
    """A classifier of token sequences: the tracked layer reads their mean, or every second token."""

    def __init__(self, strided):
        super().__init__()
        self.strided = strided
        self.table, self.last = nn.Embedding(11, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids) * attention_mask[..., None]
        return self.last(x[:, ::2]).mean(1) if self.strided else self.last(x.mean(1))


class SequenceLabels(TokenExamples):
    def batch(self, indices):
        batch = super().batch(indices)
        return {k: batch[k] for k in ("input_ids", "attention_mask")} | {"labels": torch.tensor([0] * len(indices))}


@pytest.mark.parametrize("strided", [True, False])
def test_terms_of_tokens_need_a_layer_that_works_on_tokens(strided, tmp_path):
    """Oracle: an error that names the layer and says what to do."""
    torch.manual_seed(0)
    ids = np.arange(5)
    data = SequenceLabels([Sequence(str(i), str(i), ids, ids) for i in range(4)])
    influence = Influence(Pooled(strided).eval(), loss=ClassificationLoss(), modules="last", fisher="empirical")
    influence.fit(data, tmp_path / "run", progress=False)
    with pytest.raises(ShapeError, match=r"per_token: layer 'last'"):
        influence.score(data, data, tmp_path / "run", per_token=True, progress=False)
