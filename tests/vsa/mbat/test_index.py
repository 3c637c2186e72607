"""The index and the incremental encoder, against encoding everything anew."""

import json

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError, NumericalError, ShapeError
from hesse.vsa import IncrementalEncoder, JSONEncoder, JSONIndex

WORDS = ["oak", "elm", "fir", "ash", "yew", "box", "bay", "fig"]


def records(count):
    generator = np.random.default_rng(5)
    return [
        {
            "name": " ".join(generator.choice(WORDS, 3)),
            "size": float(np.round(generator.lognormal(3), 2)),
            "parts": [{"kind": str(generator.choice(WORDS)), "n": int(generator.integers(9))} for _ in range(i % 4)],
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("precision", ["float32", "int8", "sign"])
def test_search_is_exact_for_what_is_kept(precision):
    """Oracle: all cosines by one product; int8 is off by rounding, signs follow the angle within their noise."""
    documents = records(300)
    encoder = JSONEncoder()
    index = JSONIndex(encoder, precision)
    index.add(documents)
    vectors = torch.from_numpy(encoder.transform(documents))
    for place in (3, 150, 299):
        hits = index.search(documents[place], 300)
        assert hits[0].id == str(place)
        assert len({hit.id for hit in hits}) == 300
        wanted = vectors @ vectors[place]
        found = torch.tensor([hit.score for hit in hits])
        exact = wanted[torch.tensor([int(hit.id) for hit in hits])]
        assert bool((found.diff() <= 1e-6).all())
        bound = {"float32": 1e-6, "int8": 5e-3, "sign": 0.25}[precision]
        assert float((found - exact).abs().max()) < bound


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_shortlist_finds_what_all_comparisons_find(precision):
    """Oracle: the search without one; and that additions and updates reach it."""
    documents = records(300)
    index = JSONIndex(JSONEncoder(), precision)
    index.add(documents)
    for place in (3, 150, 299):
        wanted = index.search(documents[place], 3)
        found = index.search(documents[place], 3, shortlist=100)
        assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-6)
    assert index.search(documents[0], 5, shortlist=1000) == index.search(documents[0], 5)
    index.add([{"name": "newer"}], ["x"])
    index.update("3", {"quite": "other"})
    assert index.search({"name": "newer"}, 1, shortlist=20)[0].id == "x"
    assert index.search({"quite": "other"}, 1, shortlist=20)[0].id == "3"


@pytest.mark.parametrize("precision", ["float32", "int8", "sign"])
def test_saved_index_answers_alike(tmp_path, precision):
    """Oracle: the index before; after loading, updates and additions go on."""
    encoder = JSONEncoder(100, key_weights="idf", number="linear").fit(records(50))
    index = JSONIndex(encoder, precision)
    index.add(records(50), [f"r{i}" for i in range(50)])
    index.save(tmp_path / "it")
    again = JSONIndex.load(tmp_path / "it")
    assert again.ids == index.ids
    assert again.search(records(9)[8], 5) == index.search(records(9)[8], 5)
    again.update("r3", {"name": "quite new"})
    again.add([{"name": "newer"}], ["x"])
    assert again.search({"name": "quite new"}, 1)[0].id == "r3"
    assert again.search({"name": "newer"}, 1)[0].id == "x"
    again.save(tmp_path / "it")
    assert JSONIndex.load(tmp_path / "it", encoder).search({"name": "newer"}, 1)[0].id == "x"


def test_empty_index(tmp_path):
    """Oracle: nothing is found in nothing."""
    index = JSONIndex(JSONEncoder(64), "int8")
    assert index.search({"a": 1}) == []
    index.save(tmp_path)
    assert len(JSONIndex.load(tmp_path)) == 0


def test_index_refuses(tmp_path):
    """Oracle: the error taxonomy; vectors of two encoders never meet."""
    encoder = JSONEncoder(64)
    index = JSONIndex(encoder)
    index.add([{"a": 1}], ["x"])
    for call, message in (
        (lambda: index.add([{"a": 1}], ["x"]), "there already"),
        (lambda: index.add([{"a": 1}, {"a": 2}], ["y"]), "1 ids"),
        (lambda: index.add([{"a": 1}], ["y", "z"]), "more ids"),
        (lambda: index.update("q", {}), "no document"),
        (lambda: index.search({"a": 1}, 0), "k >= 1"),
        (lambda: index.search({"a": 1}, 2, shortlist=1), "shortlist"),
        (lambda: JSONIndex(encoder, "sign").search({"a": 1}, 2, shortlist=9), "shortlist"),
        (lambda: JSONIndex(encoder, "float16"), "precision"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(ShapeError, match="64"):
        index.search_vector(torch.ones(65))
    with pytest.raises(NumericalError, match="vector"):
        index.search_vector(torch.full((64,), torch.nan))
    with pytest.raises(ArgumentTypeError, match="k to be"):
        index.search({"a": 1}, 2.5)
    index.save(tmp_path)
    with pytest.raises(ArtifactError, match="fingerprint"):
        JSONIndex.load(tmp_path, JSONEncoder(64, soft_keys=1.0))
    encoder.set_params(array=(1.0, 0.0))
    with pytest.raises(ArgumentError, match="changed"):
        index.search({"a": 1})
    (tmp_path / "ids.jsonl").write_text('"y"\n')
    with pytest.raises(ArtifactError):
        JSONIndex.load(tmp_path)
    embedded = JSONIndex(JSONEncoder(64, embedder=lambda _: [1.0]))
    embedded.save(tmp_path / "e")
    with pytest.raises(ArgumentError, match="embedder"):
        JSONIndex.load(tmp_path / "e")


def test_incremental_changes_agree_with_encoding_anew():
    """Oracle: encoding the changed document, after each of many random changes."""
    encoder = JSONEncoder(256, soft_keys=0.3, any_key=0.2, key_weights={"/deep/x": 2.0}, dates=True)
    record = IncrementalEncoder(encoder, {"deep": {"x": 1, "list": [1, {"y": "a"}]}, "name": "Ana", "empty": {}})
    changes = [
        ("/deep/x", 5),
        ("/deep/list/1/y", "b"),
        ("/deep/list/2", "appended"),
        ("/deep/list/0", {"z": [1, 2]}),
        ("/deep/list/0/z/1", 700),
        ("/new", "2020-02-02"),
        ("/empty/first", 3),
        ("/name", None),
        ("/deep", {"x": 4, "y": []}),
        ("/deep/y/0", "first"),
        ("/deep/x", 6),
    ]
    for path, value in changes:
        record.set(path, value)
        torch.testing.assert_close(record.vector, encoder.encode(record.document), rtol=0, atol=2e-6)
    for path in ("/new", "/deep/x", "/deep/y", "/empty/first"):
        record.remove(path)
        torch.testing.assert_close(record.vector, encoder.encode(record.document), rtol=0, atol=2e-6)
    assert record.document == {"deep": {}, "name": None, "empty": {}}
    record.set("", [1, 2])
    torch.testing.assert_close(record.vector, encoder.encode([1, 2]), rtol=0, atol=2e-6)


def test_incremental_long_arrays_and_many_changes():
    """Oracle: encoding anew; 2,000 changes leave only rounding, and long arrays bind their ends."""
    encoder = JSONEncoder(64)
    record = IncrementalEncoder(encoder, {"a": {"b": 0}, "row": list(range(127))})
    for i in range(2000):
        record.set("/a/b", i)
    for i in range(127, 132):
        record.set(["row", i], i)
    for place in (0, 70, 131):
        record.set(["row", place], 5000)
        torch.testing.assert_close(record.vector, encoder.encode(record.document), rtol=0, atol=2e-6)


def test_incremental_refuses_and_stays_as_it_was():
    """Oracle: the error taxonomy, and the document before."""
    record = IncrementalEncoder(JSONEncoder(64), {"a": [1], "b": {}})
    before = record.document, record.vector
    for path in ("/c/d", "/a/5", "/a/x", "/b/c/d"):
        with pytest.raises(ArgumentError, match="not in the document"):
            record.set(path, 1)
    for path in ("/a/0", "/c", ""):
        with pytest.raises(ArgumentError, match="remove"):
            record.remove(path)
    with pytest.raises(ArgumentTypeError):
        record.set("/b", {"x": {1}})
    assert record.document == before[0]
    assert torch.equal(record.vector, before[1])
    assert json.dumps(record.document)
