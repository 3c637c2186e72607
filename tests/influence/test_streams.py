"""Windows of data sets that are read again and again; the oracle is the same data in memory."""

import json

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.influence.engine import Influence
from hesse.influence.examples import as_examples
from hesse.influence.gradients import collated
from hesse.influence.mapped import MappedExamples
from hesse.influence.streams import StreamExamples, window
from hesse.io import open_array, save_array
from tests.influence._tiny import VOCAB, gpt2, tokens

QUIET = {"progress": False, "unit_size": 4, "checkpoint_seconds": 0.0}


class Counted:
    """An iterable that begins anew, and counts how often and how far it is read."""

    def __init__(self, items):
        self.items, self.begun, self.read = items, 0, 0

    def __iter__(self):
        self.begun += 1
        for item in self.items:
            self.read += 1
            yield item


def written(path, rows, blank=()):
    lines = [json.dumps(row) + "\n" for row in rows]
    for place in blank:
        lines.insert(place, "\n")
    path.write_text("".join(lines))
    return path


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["file", "iterable", "function"])
def test_a_stream_is_the_data_in_memory(kind, tmp_path):
    """Oracle: `as_examples` of the list: ids, lengths, batches, windows, fingerprint; blank lines do not count."""
    rows = tokens(600, low=1)
    held = as_examples(rows)
    source = {
        "file": written(tmp_path / "rows.jsonl", rows, blank=(3, 300)),
        "iterable": Counted(rows),
        "function": lambda: iter(rows),
    }[kind]
    stream = StreamExamples(source)
    assert (len(stream), stream.ids, stream.lengths) == (600, held.ids, held.lengths)
    assert stream.fingerprint() == held.fingerprint()
    same(stream.batch([599, 2, 301]), held.batch([599, 2, 301]))
    for numbers in (range(4), [5, 9, 260], range(510, 520), range(2), [599], []):
        view = window(stream, numbers)
        assert list(view.ids) == [held.ids[i] for i in numbers]
        assert list(view.lengths) == [held.lengths[i] for i in numbers]
        if numbers:
            same(view.batch([0]), held.batch([numbers[0]]))
    seen = stream.extremes()
    assert seen is not None
    assert (seen.lowest, seen.highest, seen.longest) == (0, VOCAB - 1, 8)


def test_windows_in_order_read_once():
    """Oracle: the count of items read; a step back begins anew."""
    source = Counted(tokens(20))
    stream = StreamExamples(source, count=20, name="the first twenty")
    assert source.begun == 0
    for first in range(0, 20, 5):
        window(stream, range(first, first + 5))
    assert (source.begun, source.read) == (1, 20)
    window(stream, range(3))
    assert (source.begun, source.read) == (2, 23)


def test_what_a_stream_refuses(tmp_path):
    """Oracle: the argument that the message names."""
    rows = tokens(3)
    with pytest.raises(ArgumentTypeError, match="dataset: an iterator can be read only once"):
        StreamExamples(iter(rows))
    with pytest.raises(ArgumentTypeError, match="dataset: expected a path"):
        StreamExamples(3)
    with pytest.raises(ArgumentError, match="count, name"):
        StreamExamples(rows, count=3)
    with pytest.raises(ArgumentError, match="count: expected >= 1"):
        StreamExamples(rows, count=0, name="x")
    with pytest.raises(ArgumentError, match="holds no sequence"):
        StreamExamples([])
    with pytest.raises(ArgumentError, match="there is no file"):
        StreamExamples(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"input_ids": [1]}\n{"input_ids": \n')
    with pytest.raises(ArgumentError, match=r"bad.jsonl: sequence 1: not a line of JSON"):
        StreamExamples(tmp_path / "bad.jsonl")
    with pytest.raises(ArgumentError, match="'1' is empty"):
        StreamExamples([[1], np.array([], dtype=np.int64)])
    with pytest.raises(ShapeError, match="2 tokens but 1 labels"):
        StreamExamples([{"input_ids": [1, 2], "labels": [1]}])
    with pytest.raises(ArgumentError, match="count: dataset ended after 3 sequences, expected 5"):
        window(StreamExamples(rows, count=5, name="x"), range(5))


@pytest.mark.parametrize("kind", ["stream", "given", "map"])
def test_scores_are_those_of_the_data_in_memory(kind, tmp_path):
    """Oracle: the same sequences in a list, bit by bit; a subset to fit on as well."""
    array = np.random.default_rng(0).integers(0, VOCAB, (18, 5), dtype=np.int32)
    rows = [{"id": str(i), "input_ids": row.tolist()} for i, row in enumerate(array)]
    save_array(tmp_path / "tokens.npy", array)
    data = {
        "stream": lambda: StreamExamples(rows),
        "given": lambda: StreamExamples(rows, count=18, name="eighteen"),
        "map": lambda: open_array(tmp_path / "tokens.npy"),
    }[kind]()
    influence, queries = Influence(gpt2()), tokens(2, seed=5)
    found = {}
    for name, dataset in (("list", rows), (kind, data)):
        influence.fit(dataset, tmp_path / name, max_sequences=11, **QUIET)
        found[name] = np.array(
            influence.score(queries, dataset, tmp_path / name, rank=3, refine_topk=2, **QUIET).values
        )
    np.testing.assert_array_equal(found[kind], found["list"])


def test_a_map_is_the_array(tmp_path):
    """Oracle: the same rows in memory."""
    array = np.random.default_rng(0).integers(0, 9, (7, 4), dtype=np.uint16)
    save_array(tmp_path / "tokens.npy", array)
    mapped, held = as_examples(tmp_path / "tokens.npy"), as_examples([row.tolist() for row in array])
    assert isinstance(mapped, MappedExamples)
    assert (list(mapped.ids), list(mapped.rows), list(mapped.lengths)) == (held.ids, held.rows, held.lengths)
    assert mapped.ids[-1] == "6"
    assert mapped.ids[2:4] == ["2", "3"]
    assert mapped.fingerprint() == held.fingerprint()
    same(mapped.batch([6, 0]), held.batch([6, 0]))
    with pytest.raises(ArgumentError, match="dataset: expected token ids of shape"):
        MappedExamples(array[0])


@pytest.mark.parametrize("kind", ["stream", "map"])
def test_unknown_tokens_are_refused(kind, tmp_path):
    """Oracle: the message, before any work."""
    array = np.full((3, 4), VOCAB, dtype=np.int64)
    save_array(tmp_path / "tokens.npy", array)
    data = StreamExamples(array.tolist()) if kind == "stream" else open_array(tmp_path / "tokens.npy")
    with pytest.raises(ArgumentError, match=f"dataset: it holds tokens {VOCAB} to {VOCAB}, but the model knows"):
        Influence(gpt2()).fit(data, tmp_path / "run", **QUIET)
    long = [list(range(3)) * 20]
    with pytest.raises(ArgumentError, match="60 tokens, more than the model's 32"):
        Influence(gpt2()).fit(StreamExamples(long), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["file", "function"])
def test_windows_keep_the_order_asked_for(kind, tmp_path):
    """Oracle: the data in memory; numbers that fall, and one that comes twice."""
    rows = tokens(300)
    held, path = as_examples(rows), written(tmp_path / "rows.jsonl", rows)
    stream = StreamExamples(path if kind == "file" else lambda: iter(rows))
    numbers = [270, 5, 5, 40]
    found, wanted = window(stream, numbers), window(held, numbers)
    assert (list(found.ids), list(found.lengths)) == (wanted.ids, wanted.lengths)
    same(found.batch([3, 0, 1, 2]), wanted.batch([3, 0, 1, 2]))
    same(collated(stream, numbers, torch.device("cpu")), collated(held, numbers, torch.device("cpu")))


def test_reading_that_was_interrupted_begins_anew():
    """Oracle: the window that an undisturbed stream gives; the source fails once in the middle of one."""
    rows, fails = tokens(30), [20]

    def source():
        for number, row in enumerate(rows):
            if number in fails:
                fails.clear()
                raise ConnectionError("once")
            yield row

    stream = StreamExamples(source, count=30, name="rows")
    wanted = as_examples(rows)
    window(stream, range(10))
    with pytest.raises(ConnectionError):
        window(stream, range(10, 25))
    assert list(window(stream, range(10, 25)).ids) == wanted.ids[10:25]
