"""The token index: equal to the dense rankings, resumable, and closed to what is damaged or foreign."""

import numpy as np
import pytest

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.influence import as_examples
from hesse.influence.lexical import bm25_scores, tfidf_paper
from hesse.influence.prefilter import build_index, index, index_scores, open_index, rank
from hesse.influence.streams import StreamExamples
from tests.influence import _tiny

ORACLES = {"bm25": bm25_scores, "tfidf_paper": tfidf_paper}


def corpus(count=200, seed=0, vocab=300):
    """Ragged documents of tokens whose frequencies fall as in prose."""
    rng = np.random.default_rng(seed)
    return [np.minimum(rng.zipf(1.3, rng.integers(1, 40)), vocab) for _ in range(count)]


def whole(built, query, method):
    return np.concatenate([values for _first, values in index_scores(built, query, method=method)])


@pytest.mark.parametrize("part_size", [7, 64, 1000])
@pytest.mark.parametrize("method", ["bm25", "tfidf_paper"])
def test_values_are_those_of_the_dense_ranking(tmp_path, method, part_size):
    """Oracle: `bm25_scores` and `tfidf_paper` in memory; queries hold repeats, unknown tokens, and nothing."""
    documents = corpus()
    queries = [*corpus(6, seed=1), np.array([3, 3, 3, 9999]), np.array([9999]), np.zeros(0, dtype=np.int64)]
    built = build_index(as_examples(documents), tmp_path / "index", part_size=part_size)
    wanted = ORACLES[method](queries, documents)
    for query, expected in zip(queries, wanted, strict=True):
        np.testing.assert_allclose(whole(built, query, method), expected, rtol=1e-6)


@pytest.mark.parametrize("top", [1, 5, 50, 10_000])
def test_the_ranking_is_a_sort_of_the_values(tmp_path, top):
    """Oracle: a stable sort of all values, zeros left out, whatever the parts."""
    documents, queries = corpus(), corpus(4, seed=1)
    built = build_index(as_examples(documents), tmp_path / "index", part_size=16)
    for query, (numbers, values) in zip(queries, rank(built, queries, top), strict=True):
        every = whole(built, query, "bm25")
        order = np.argsort(-every, kind="stable")
        order = order[every[order] > 0][:top]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_array_equal(values, every[order])


def test_postings_count_tokens(tmp_path):
    """Oracle: counting by hand."""
    built = build_index(as_examples([[5, 5, 1], [1, 2], [7, 5]]), tmp_path / "index", part_size=2)
    first, second = built.parts
    assert [part.tolist() for part in first.postings(5)] == [[0], [2]]
    assert [part.tolist() for part in first.postings(1)] == [[0, 1], [1, 1]]
    assert [part.tolist() for part in second.postings(5)] == [[0], [1]]
    assert len(second.postings(2)[0]) == 0
    assert built.frequencies.tolist() == [0, 2, 1, 0, 0, 2, 0, 1]
    assert built.mean_length == 7 / 3
    assert all(getattr(first, name).dtype == np.uint32 for name in ("terms", "documents", "lengths"))


@pytest.mark.parametrize("kind", ["stream", "mapped"])
def test_data_that_are_read_in_windows_give_the_same_index(tmp_path, kind):
    """Oracle: the checksums of the index of the same rows in memory."""
    rows = np.random.default_rng(0).integers(0, 50, (600, 9))
    plain = build_index(as_examples([row.tolist() for row in rows]), tmp_path / "plain", part_size=300)
    if kind == "stream":
        examples = StreamExamples(lambda: iter(rows.tolist()))
    else:
        np.save(tmp_path / "rows.npy", rows)
        examples = as_examples(tmp_path / "rows.npy")
    other = build_index(examples, tmp_path / "other", part_size=300)
    assert other.manifest.files == plain.manifest.files


def test_a_killed_build_goes_on(tmp_path, monkeypatch):
    """Oracle: the index that was built in one go, and the parts that the second call did not write again."""
    examples = as_examples(corpus(50))
    wanted = build_index(examples, tmp_path / "whole", part_size=10).manifest.files
    write, begun = index._write_part, []

    def dying(where, examples, unit):
        begun.append(unit.start)
        if unit.start == 30:
            raise KeyboardInterrupt
        return write(where, examples, unit)

    monkeypatch.setattr(index, "_write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        build_index(examples, tmp_path / "index", part_size=10)
    with pytest.raises(ArtifactError, match="not finished"):
        open_index(tmp_path / "index")
    monkeypatch.setattr(index, "_write_part", lambda *a: begun.append(a[2].start) or write(*a))
    assert build_index(examples, tmp_path / "index", part_size=10).manifest.files == wanted
    assert begun == [0, 10, 20, 30, 30, 40]


def test_what_is_damaged_is_named_and_mended_by_deleting_it(tmp_path):
    """Oracle: the name of the file in the message, and the checksums of the first build."""
    examples, where = as_examples(corpus(30)), tmp_path / "index"
    wanted = build_index(examples, where, part_size=10).manifest.files
    victim = where / "part-000000000010.documents.npy"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match=victim.name):
        open_index(where)
    victim.unlink()
    assert build_index(examples, where, part_size=10).manifest.files == wanted


def test_what_is_foreign_is_refused(tmp_path):
    """Oracle: the error that says what differs."""
    examples, where = as_examples(corpus(30)), tmp_path / "index"
    build_index(examples, where, tokenizer="a")
    with pytest.raises(ArtifactError, match="another data"):
        build_index(as_examples(corpus(30, seed=5)), where, tokenizer="a")
    with pytest.raises(ArtifactError, match="another data"):
        open_index(where, data="0")
    with pytest.raises(ArtifactError, match="another tokenizer"):
        build_index(examples, where, tokenizer="b")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        open_index(tmp_path / "nothing")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(ArgumentError, match="holds no index"):
        build_index(examples, tmp_path / "notes")


def test_bad_arguments_are_named(tmp_path):
    """Oracle: the argument in the message."""
    examples = as_examples(corpus(5))
    with pytest.raises(ArgumentError, match="part_size"):
        build_index(examples, tmp_path / "index", part_size=0)
    with pytest.raises(ArgumentError, match="token sequences"):
        build_index(as_examples(_tiny.points(4)), tmp_path / "points")
    with pytest.raises(ArgumentError, match=r"2\*\*32"):
        build_index(as_examples([[-1, 2]]), tmp_path / "negative")
    built = build_index(examples, tmp_path / "index")
    query = np.array([1])
    for options, name in (({"top": 0}, "top"), ({"method": "x"}, "method"), ({"k1": -1}, "k1"), ({"b": 2}, "b")):
        with pytest.raises(ArgumentError, match=name):
            rank(built, [query], **({"top": 3} | options))
    with pytest.raises(ArgumentError, match="query"):
        rank(built, [np.array([-1])], 3)
    with pytest.raises(ArgumentTypeError, match="query"):
        rank(built, [np.array([0.5])], 3)
