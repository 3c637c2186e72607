"""JSON files: one text a value, round trips, and refusals."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import atomic_write_json, check_file, encode_json, read_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_round_trip(value):
    """Oracle: the value itself and the standard library's reader; equal values give equal bytes."""
    data = encode_json(value)
    assert json.loads(data) == value
    assert data == encode_json(json.loads(data))
    assert data.isascii()


def test_file_round_trip_and_entry(tmp_path):
    """Oracle: identity; the entry fits the file; the order of keys does not count."""
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\u2028</script>"}}
    entry = atomic_write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", entry=entry) == value
    check_file(tmp_path / "x.json", entry)
    again = atomic_write_json(tmp_path / "y.json", dict(reversed(value.items())))
    assert again == entry
    assert (tmp_path / "x.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_no_nan_is_written(value, tmp_path):
    """Oracle: the JSON standard has none."""
    with pytest.raises(ArgumentError, match=r"x\.json"):
        atomic_write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [{1: 2}, {"a": {None: 1}}, [{True: 1}], {"a": Path("x")}, {"a": {1, 2}}, b"x"])
def test_what_would_not_come_back_is_refused(value):
    """Oracle: the documented error; json alone would turn the keys into text."""
    with pytest.raises(ArgumentTypeError, match="settings"):
        encode_json(value, "settings")


def test_a_value_that_contains_itself():
    """Oracle: the documented error."""
    value: list = []
    value.append(value)
    with pytest.raises(ArgumentError):
        encode_json(value)


def test_as_many_values_are_written_as_are_read(tmp_path):
    """Oracle: the limit of 2**18 delimiters on both sides; delimiters inside strings do not count."""
    atomic_write_json(tmp_path / "x.json", [0] * (1 << 18))
    assert len(read_json(tmp_path / "x.json")) == 1 << 18
    with pytest.raises(ArgumentError, match="save_array"):
        encode_json([0] * ((1 << 18) + 1))
    for text in (
        ['a,"b[{:\\' * 200_000],
        ["\\" * 3_000_001, '",' * 300_000],
        {'\\"': "," * 1_100_000, "x": '\\",' * 400_000},
    ):
        atomic_write_json(tmp_path / "y.json", text)
        assert read_json(tmp_path / "y.json") == text


BAD = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "two values": b"1 2",
    "NaN": b"[NaN]",
    "Infinity": b"[-Infinity]",
    "too large": b"[1e999]",
    "twice": b'{"a": 1, "a": 2}',
    "not UTF-8": b'"\xff\xfe"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "single quotes": b"{'a': 1}",
    "long number": b"9" * 100_000,
    "deep": b"[" * 65 + b"]" * 65,
    "deeper than the stack": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "many": b"[" + b"[]," * 300_000 + b"1]",
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_json(name, tmp_path):
    """Oracle: none of these is a JSON text that hesse writes."""
    path = tmp_path / "x.json"
    path.write_bytes(BAD[name])
    with pytest.raises(ArtifactError, match=r"x\.json") as caught:
        read_json(path)
    assert caught.value.exit_code == 3


def test_limits(tmp_path):
    """Oracle: a value exactly at each limit is read, one beyond is refused."""
    path = tmp_path / "x.json"
    path.write_bytes(b"[[1]]")
    assert read_json(path, max_depth=2, max_bytes=5) == [[1]]
    with pytest.raises(ArtifactError, match="deeper than 1"):
        read_json(path, max_depth=1)
    with pytest.raises(ArtifactError, match="at most 4"):
        read_json(path, max_bytes=4)
    path.write_bytes(b"[" * 64 + b"]" * 64)
    assert read_json(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    """Oracle: the documented error instead of a short value."""
    from hesse.io import calls

    path = tmp_path / "x.json"
    path.write_bytes(b"[1, 2, 3]")
    monkeypatch.setattr(calls, "read_into", lambda _fd, _buffer: 0)
    with pytest.raises(ArtifactError, match="ended after 0 of 9"):
        read_json(path)
