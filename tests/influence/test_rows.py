"""Reading rows from files, data sets and lists; a bad one is named with its place."""

import json
import re

import pytest

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.rows import read_rows


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_json_lines_are_read_in_order_with_metadata(tmp_path):
    """Oracle: the rows written."""
    rows = [{"id": "a", "text": "x", "source": "web"}, {"id": 7, "prompt": "p", "completion": "c"}]
    path = write(tmp_path / "d.jsonl", rows[0], "", rows[1])
    assert read_rows(path) == [rows[0], {**rows[1], "id": "7"}]
    assert read_rows(str(path), limit=1) == rows[:1]


def test_text_paragraphs_are_documents(tmp_path):
    """Oracle: three paragraphs written by hand; a single newline does not end a document."""
    path = tmp_path / "d.txt"
    path.write_text("one\nstill one\n\n  \ntwo\n\n\n\nthree")
    assert [(r["id"], r["text"]) for r in read_rows(path)] == [("0", "one\nstill one"), ("1", "two"), ("2", "three")]


def test_parquet_and_datasets_agree_with_dicts(tmp_path):
    """Oracle: the same rows as plain dicts; a table without ids is numbered."""
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "x", "n": 1}, {"text": "y", "n": 2}]
    numbered = [{"id": str(i), **row} for i, row in enumerate(rows)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "splits"))
    for source in (rows, tmp_path / "d.parquet", table, tmp_path / "folder", tmp_path / "splits", {"train": table}):
        assert read_rows(source) == numbered
    with pytest.raises(ArgumentError, match="train"):
        read_rows(tmp_path / "splits", split="test")


BAD_LINES = {
    "no id": ({"text": "x"}, 'no "id"'),
    "malformed": ('{"id": "b", ', "JSON"),
    "not an object": ("[1]", "object"),
    "id of a wrong kind": ({"id": [1], "text": "x"}, "id must be a string"),
    "empty id": ({"id": "", "text": "x"}, "id is empty"),
    "duplicate id": ({"id": "a", "text": "x"}, r"'a' was used before, at .*d\.jsonl:1"),
    "no content": ({"id": "b", "body": "x"}, "expected text"),
    "empty text": ({"id": "b", "text": ""}, "text is empty"),
    "text of a wrong kind": ({"id": "b", "text": 3}, "text must be a string"),
    "prompt alone": ({"id": "b", "prompt": "x"}, "completion is missing"),
    "empty completion": ({"id": "b", "prompt": "x", "completion": ""}, "completion is empty"),
    "both forms": ({"id": "b", "prompt": "x", "completion": "y", "text": "z"}, "both"),
    "lone surrogate": ('{"id": "b", "text": "\\ud800"}', "Unicode"),
    "float ids": ({"id": "b", "input_ids": [1.5]}, "integers"),
    "nested ids": ({"id": "b", "input_ids": [[1], [2, 3]]}, "integers"),
    "empty ids": ({"id": "b", "input_ids": []}, "empty"),
    "negative ids": ({"id": "b", "input_ids": [-1]}, "negative"),
    "short labels": ({"id": "b", "input_ids": [1, 2], "labels": [1]}, "2 input_ids but 1 in labels"),
    "shifted labels": ({"id": "b", "input_ids": [1, 2], "labels": [2, -100]}, "not shifted"),
    "deep JSON": ("[" * 100_000, "JSON"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, case):
    """Oracle: the message names file and line."""
    line, message = BAD_LINES[case]
    path = write(tmp_path / "d.jsonl", {"id": "a", "text": "x"}, line)
    with pytest.raises(ArgumentError, match=re.escape(f"{path}:2: ") + f".*{message}"):
        read_rows(path)


def test_bad_sources_are_refused(tmp_path):
    """Oracle: an error of the documented kind."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "d.csv").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "a", "text": "caf\xe9"}')
    for name in ("empty.jsonl", "d.csv", "missing.jsonl", "latin.txt", "latin.jsonl", "no/such/folder"):
        with pytest.raises(ArgumentError, match=name):
            read_rows(tmp_path / name)
    with pytest.raises(ArgumentTypeError):
        read_rows(3)
    with pytest.raises(ArgumentTypeError, match="row 1"):
        read_rows([{"text": "x"}, "y"])
    with pytest.raises(ArgumentError, match="limit"):
        read_rows([{"text": "x"}], limit=0)


def test_a_damaged_table_is_named(tmp_path):
    """Oracle: no Parquet at all, one cut short, and one with a page of noise, by name."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(
        pyarrow.Table.from_pylist([{"text": f"{i} words"} for i in range(99)]), path, compression="none"
    )
    whole = path.read_bytes()
    assert len(read_rows(path)) == 99
    for data in (b"no parquet", b"", whole[:-20], whole[:4] + b"\xff" * 200 + whole[204:]):
        path.write_bytes(data)
        with pytest.raises(ArgumentError, match=r"d\.parquet"):
            read_rows(path)
