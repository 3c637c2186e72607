"""JSON as vectors: what is equal, what is similar, what can be read back, and what is refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.vsa import JSONEncoder, learn_field_weights, parse_json
from hesse.vsa.mbat.leaves import days_of, number_key
from hesse.vsa.mbat.recipe import iter_leaves, pointer, position_role

ORDER = {
    "buyer": {"name": "Ana Cruz", "age": 41},
    "seller": {"name": "Bo Lind", "age": 29},
    "items": [{"sku": "A-17", "price": 12.5}, {"sku": "B-03", "price": 7}],
    "paid": True,
    "note": None,
    "tags": [],
}
GOLDEN = Path(__file__).with_name("golden.json")  # python tests/vsa/mbat/make_golden.py


def cosine(a, b, **settings):
    encoder = JSONEncoder(**settings)
    return float(encoder.encode(a) @ encoder.encode(b))


def by_definition(encoder, value):
    """The recursion of the docstring, one value at a time."""

    def unit(v):
        return v / v.norm()

    binding = encoder.binding
    if isinstance(value, dict) and value:
        terms = [binding.bind(f"key {key}", by_definition(encoder, below)) for key, below in value.items()]
        return unit(binding.bind("object", torch.stack(terms).sum(0)))
    if isinstance(value, list) and value:
        items = [by_definition(encoder, below) for below in value]
        state = torch.zeros_like(items[0])
        for item in reversed(items):
            state = binding.bind("next", state) + item
        ordered, bag = encoder.array
        return unit(
            ordered * binding.bind("array", unit(state)) + bag * binding.bind("bag", unit(torch.stack(items).sum(0)))
        )
    return encoder.encode(value)


@pytest.mark.parametrize("family", ["signed_permutation", "hadamard", "haar"])
def test_batched_encoding_is_the_recursion(family):
    """Oracle: the definition, value by value, in float64."""
    encoder = JSONEncoder(256, family, dtype=torch.float64, array=(0.4, 0.6))
    documents = [ORDER, {"a": [[1, [2, 2]], "x"]}, [ORDER], "text", {"items": [{"sku": "A-17"}] * 3}]
    wanted = torch.stack([by_definition(encoder, document) for document in documents])
    torch.testing.assert_close(torch.cat(list(encoder.encode_many(documents, 3))), wanted, rtol=0, atol=1e-12)


def test_vectors_are_frozen():
    """Oracle: a file of vectors written when the recipe was fixed."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    for entry in golden:
        found = JSONEncoder(64, dtype=torch.float64).encode(entry["document"])
        torch.testing.assert_close(found, torch.tensor(entry["vector"], dtype=torch.float64), rtol=0, atol=1e-9)


def test_other_processes_agree_whatever_the_hash_seed():
    """Oracle: this process; the text of the vector, bit for bit."""
    code = (
        "import sys, json; from hesse.vsa import JSONEncoder;"
        "print(JSONEncoder(64).encode(json.loads(sys.argv[1])).numpy().tobytes().hex())"
    )
    here = JSONEncoder(64).encode(ORDER).numpy().tobytes().hex()
    for seed in ("1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": "src"}
        there = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, json.dumps(ORDER)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def test_order_of_keys_and_batches_do_not_matter():
    """Oracle: invariance, bit for bit for keys and to rounding for batches."""
    encoder = JSONEncoder()
    turned = dict(reversed(list(ORDER.items())))
    assert torch.equal(encoder.encode(ORDER), encoder.encode(turned))
    many = torch.cat(list(encoder.encode_many([ORDER, turned, {"a": 1}] * 3, batch_size=2)))
    torch.testing.assert_close(many[6], encoder.encode(ORDER), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(encoder.transform([ORDER, {"a": 1}]).shape, (2, 1024))


def test_structure_counts():
    """Oracle: 4/√D bounds the noise of unrelated vectors; equal parts are worth their share of a sum."""
    assert abs(cosine({"a": {"b": 1}}, {"b": {"a": 1}})) < 0.125
    assert abs(cosine({"a": 1}, [1])) < 0.125
    swapped = ORDER | {"buyer": ORDER["seller"], "seller": ORDER["buyer"]}
    assert cosine(ORDER, swapped) < 0.9  # buyer and seller are two of six fields
    assert cosine({"a": "x", "b": "y"}, {"a": "x", "b": "zzz"}) == pytest.approx(0.5, abs=0.13)
    assert cosine([1, 2, 3, 50], [1, 2, 3, 50, 700]) > cosine([1, 2, 3, 50], [700, 1, 2, 3, 50])


def test_numbers_are_similar_by_ratio():
    """Oracle: (e^(-d²/2) + e^(-8d²)) / 2 with d = |log(1 + x) - log(1 + y)|, within 4/√D."""
    encoder = JSONEncoder(4096, dtype=torch.float64)
    for other in (100, 101, 110, 150, 300, 1000, -100):
        d = abs(math.log1p(100) - math.copysign(math.log1p(abs(other)), other))
        kernel = (math.exp(-d * d / 2) + math.exp(-8 * d * d)) / 2
        assert float(encoder.encode(100) @ encoder.encode(other)) == pytest.approx(kernel, abs=4 / 64)
    assert cosine(1, 1.0) == pytest.approx(1, abs=1e-6)
    assert abs(cosine(1, True)) < 0.125
    assert abs(cosine(100, 101, number="exact")) < 0.125
    assert cosine(2, 2.0, number="exact") == pytest.approx(1, abs=1e-6)


def test_linear_numbers_use_the_quartiles():
    """Oracle: the kernel with d in units of the range between quartiles, 50 here."""
    documents = [{"x": float(i)} for i in range(101)]
    encoder = JSONEncoder(4096, number="linear", dtype=torch.float64).fit(documents)
    assert encoder.scale_ == {"/x": 50.0}
    v, w = encoder.encode({"x": 0}), encoder.encode({"x": 50})
    assert float(v @ w) == pytest.approx(math.exp(-0.5) / 2, abs=4 / 64)
    assert bool(torch.isfinite(encoder.encode({"x": 1e300})).all())


def test_texts_are_similar_by_letters():
    """Oracle: order of similarities: one swap, a shared word, nothing."""
    base = "chevrolet malibu"
    swap, word, none = (cosine(base, other) for other in ("chevrolet mailbu", "chevrolet nova", "toyota corona"))
    assert swap > word > none + 0.1
    assert abs(cosine(base, "chevrolet mailbu", string="exact")) < 0.125
    long = "one two three four five six seven eight nine ten " * 8
    assert cosine(long, long + "ten") > 0.95
    assert cosine("caf\u00e9", "cafe\u0301") == pytest.approx(1, abs=1e-5)  # float32, however it is summed


@pytest.mark.parametrize("value", ["", [], {}, None, False, math.nan, math.inf, -math.inf, "...", "\ud800", 10**400])
def test_odd_leaves_have_vectors_of_their_own(value):
    """Oracle: length 1, and 4/√D bounds cosines with all the others."""
    odd = ["", [], {}, None, False, math.nan, math.inf, -math.inf, "...", "\ud800", 10**400, 0, "null"]
    encoder = JSONEncoder()
    v = encoder.encode(value)
    assert float(v.norm()) == pytest.approx(1, abs=1e-6)
    others = [encoder.encode(other) for other in odd if repr(other) != repr(value)]
    assert max(abs(float(v @ other)) for other in others) < 0.16


def test_deep_and_long_documents():
    """Oracle: a vector of length 1 where recursion would end, and the first and last items of a long array count."""
    deep = 1
    for _ in range(3000):
        deep = {"a": deep}
    assert float(JSONEncoder(64).encode(deep).norm()) == pytest.approx(1, abs=1e-5)
    row = [f"item {i}" for i in range(400)]
    encoder = JSONEncoder(array=(1, 0))
    middle = [*row[:200], "x", *row[201:]]
    assert float(encoder.encode(row) @ encoder.encode(middle)) == pytest.approx(1, abs=1e-5)
    last = [*row[:-1], "x"]
    assert float(encoder.encode(row) @ encoder.encode(last)) < 0.999
    assert position_role(63, 400) == ("next",) * 63
    assert position_role(200, 400) is None
    assert position_role(399, 400) == ("last",)


def test_optional_terms():
    """Oracle: order of similarities with and without each."""
    a, b = {"unitPrice": 3, "x": "one"}, {"unit_price": 3, "x": "two"}
    assert cosine(a, b, soft_keys=1.0) > cosine(a, b) + 0.1
    a, b = {"colour": "deep red"}, {"hue": "deep red"}
    assert cosine(a, b, any_key=0.5) > cosine(a, b) + 0.1
    assert cosine("1970-01-01", "1970-02-01", dates=True) > 0.9
    assert cosine({"a": 1, "b": 2}, {"a": 1, "b": 900}, key_weights={"/b": 0}) == pytest.approx(1, abs=1e-6)
    assert days_of("1970-01-02T12:00:00Z") == 1.5
    assert days_of("1970-02-31") is None


def test_idf_weighs_rare_keys():
    """Oracle: log((1 + N) / (1 + n)) + 1."""
    documents = [{"a": 1, "b": [{"c": 2}]}, {"a": 1}, {"a": 1}]
    encoder = JSONEncoder(key_weights="idf").fit(documents)
    assert encoder.document_frequency_ == {"/a": 3, "/b": 1, "/b/*": 1, "/b/*/c": 1}
    assert encoder.recipe.weights["/a"] == 1
    assert encoder.recipe.weights["/b"] == pytest.approx(math.log(2) + 1)


def test_embedder_takes_the_place_of_texts():
    """Oracle: the embedder's own cosines, which a map with orthonormal columns keeps."""
    table = {"a": [1.0, 0.0, 0.0], "b": [0.6, 0.8, 0.0]}
    encoder = JSONEncoder(64, embedder=table.__getitem__, dtype=torch.float64)
    assert float(encoder.encode("a") @ encoder.encode("b")) == pytest.approx(0.6, abs=1e-12)
    with pytest.raises(NumericalError, match="zero"):
        JSONEncoder(64, embedder=lambda _: [0.0]).encode("a")
    with pytest.raises(ArgumentError, match="embedder"):
        JSONEncoder(2, embedder=lambda _: [1.0, 2.0, 3.0]).encode("a")


def test_values_can_be_read_back():
    """Oracle: the document."""
    documents = [
        {"name": f"person {i}", "city": f"city {i % 7}", "deep": {"tags": [f"t{i % 5}", "u"]}} for i in range(40)
    ]
    encoder = JSONEncoder().fit(documents)
    v = encoder.encode(documents[11])
    found = encoder.get(v, "/name")
    assert found.value == "person 11"
    assert found.margin > 0
    assert found.z_score == pytest.approx(32 * found.score)
    assert encoder.get(v, ["city"]).value == "city 4"
    assert encoder.get(v, "/deep/tags/0", encoder.codebook([f"t{i}" for i in range(5)])).value == "t1"
    odd = JSONEncoder().fit([{"x": float("nan")}, {"x": float("nan")}, {"x": 1}, {"x": 1.0}, {"x": True}])
    assert [repr(value) for value in odd.values_["/x"]] == ["nan", "1", "1.0", "True"]
    assert odd.get(odd.encode({"x": True}), "/x").value is True
    missing = encoder.get(v, "/absent", encoder.codebook(encoder.values_["/name"]))
    assert missing.margin < 0


def test_explanations_add_up():
    """Oracle: cosine = contributions + rest, an untouched field contributes its share, and rest is noise."""
    encoder = JSONEncoder(dtype=torch.float64)
    other = json.loads(json.dumps(ORDER)) | {"paid": False}
    found = encoder.explain(ORDER, other)
    assert found.cosine == pytest.approx(float(encoder.encode(ORDER) @ encoder.encode(other)), abs=1e-12)
    assert found.cosine == pytest.approx(sum(found.contributions.values()) + found.rest, abs=1e-12)
    assert abs(found.contributions["/paid"]) < 0.05
    assert found.contributions["/note"] == pytest.approx(1 / 6, abs=0.03)
    assert "/items/*/sku" in found.contributions
    assert abs(found.rest) < 0.1


def test_field_weights_find_the_fields_that_matter():
    """Oracle: the labels, which only one of three fields decides; weights have mean 1."""
    generator = np.random.default_rng(0)
    words = ["oak", "elm", "fir", "ash", "yew", "box"]
    pairs, labels = [], []
    for _ in range(60):
        a, b = ({key: str(generator.choice(words)) for key in ("kind", "noise", "other")} for _ in range(2))
        pairs.append((a, b))
        labels.append(float(a["kind"] == b["kind"]))
    weights = learn_field_weights(JSONEncoder(), pairs, labels)
    assert np.mean(list(weights.values())) == pytest.approx(1)
    assert weights["/kind"] > 2 * max(weights["/noise"], weights["/other"])
    with pytest.raises(ArgumentError, match="similarities"):
        learn_field_weights(JSONEncoder(), [({"a": 1}, {"a": 1}), ({"a": 1}, {"a": 900})], [0.0, 1.0])
    with pytest.raises(ShapeError, match="labels"):
        learn_field_weights(JSONEncoder(), pairs, [1.0])


def test_parsing():
    """Oracle: the standard's grammar, and the two things that Python's parser lets pass or not."""
    assert parse_json('{"a": [1, NaN]}')["a"][0] == 1
    for text, message in (('{"a": 1, "a": 2}', "'a' stands twice"), ("{", "parse_json"), ("1" * 5000, "parse_json")):
        with pytest.raises(ArgumentError, match=message):
            parse_json(text)


def test_paths():
    """Oracle: RFC 6901, with positions."""
    assert pointer("/a~1b/0/~0") == ["a/b", 0, "~"]
    assert pointer("") == []
    assert list(iter_leaves({"a/b": [{"c": 1}, []]})) == [("/a~1b/*/c", 1), ("/a~1b/*", [])]
    with pytest.raises(ArgumentError, match="begins with"):
        pointer("a")


def test_number_keys():
    """Oracle: the definitions, and ints that no float holds."""
    assert number_key(10**400, "log", 1.0) == ("number", pytest.approx(400 * math.log(10)))
    assert number_key(-(10**400), "linear", 1.0)[1] < 0
    assert number_key(0, "log", 1.0) == number_key(-0.0, "log", 1.0)
    assert number_key(10**400, "exact", 1.0) != number_key(10**400 + 1, "exact", 1.0)


def test_settings_can_be_changed_and_cloned():
    """Oracle: scikit-learn's clone, and a fingerprint that follows what decides vectors."""
    base = pytest.importorskip("sklearn.base")
    encoder = JSONEncoder(64, soft_keys=0.5)
    assert base.clone(encoder).get_params() == encoder.get_params()
    before = encoder.fingerprint
    assert JSONEncoder(64, soft_keys=0.5, cache_size=3).fingerprint == before
    assert encoder.set_params(dim=128).encode({"a": 1}).shape == (128,)
    assert encoder.fingerprint != before


def test_cache_may_be_small_or_none():
    """Oracle: the same vectors."""
    documents = [{"a": f"text {i}", "b": i} for i in range(20)]
    wanted = JSONEncoder(64).transform(documents)
    for size in (0, 3):
        np.testing.assert_array_equal(JSONEncoder(64, cache_size=size).transform(documents), wanted)


def test_bad_input_is_named():
    """Oracle: the error taxonomy, with the place in the document."""
    with pytest.raises(ArgumentTypeError, match="set at /a"):
        JSONEncoder(64).fit([{"a": {1}}])
    with pytest.raises(ArgumentTypeError, match=r"set at /a/\*/b"):
        JSONEncoder(64).encode({"a": [{"b": {1, 2}}]})
    with pytest.raises(ArgumentTypeError, match="keys"):
        JSONEncoder(64).encode({1: 2})
    with pytest.raises(TypeError):
        JSONEncoder(64).encode(np.float32(1))
    for settings, message in (
        ({"string": "hard"}, "string"),
        ({"number": "cubic"}, "number"),
        ({"array": (0, 0)}, "array"),
        ({"array": (1,)}, "array"),
        ({"soft_keys": -1}, "soft_keys"),
        ({"key_weights": "tf"}, "key_weights"),
        ({"key_weights": {"/a": -1}}, "weights"),
        ({"key_weights": "idf"}, "fit first"),
        ({"number": "linear"}, "fit first"),
        ({"family": "hadamard", "dim": 100}, "power of two"),
    ):
        with pytest.raises(ArgumentError, match=message):
            JSONEncoder(**settings).encode(1)
    with pytest.raises(ArgumentError, match="batch_size"):
        list(JSONEncoder(64).encode_many([1], 0))
    with pytest.raises(ArgumentError, match="at least one"):
        JSONEncoder(64).fit([])
    with pytest.raises(ShapeError, match="64"):
        JSONEncoder(64).get(torch.ones(3), "/a")
    with pytest.raises(ArgumentError, match="codebook"):
        JSONEncoder(64).get(torch.ones(64), "/a")
