"""`hesse vsa index | search`: what is found, and what is refused."""

import json

import pytest

from tests.cli.conftest import invoke, write_lines

ROWS = [
    {"key": "car-1", "name": "chevrolet malibu", "power": 130},
    {"key": "car-2", "name": "buick skylark", "power": 165, "odd": float("nan")},
    {"key": "car-3", "name": "\x1b[31mtoyota corona", "power": 95},
]


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "cars.jsonl", ROWS)


@pytest.mark.parametrize("options", [[], ["--precision", "sign"], ["--idf", "--number", "linear", "--dates"]])
def test_finds_a_misspelt_record(data, options):
    """Oracle: the record that was misspelt."""
    made = invoke("vsa", "index", data, "--id", "key", "--json", *options)
    assert made.exit_code == 0, made.output
    report = json.loads(made.stdout)
    assert report["records"] == 3
    found = invoke(
        "vsa", "search", report["index"], '{"name": "biuck skylrak", "power": 160}', "-k", 2, "--explain", "--json"
    )
    assert found.exit_code == 0, found.output
    hits = json.loads(found.stdout)["answers"][0]["hits"]
    assert [len(hits), hits[0]["id"], hits[0]["record"]["odd"]] == [2, "car-2", "nan"]
    assert list(hits[0]["because"])[:2] in (["/name", "/power"], ["/power", "/name"])


def test_table_and_query_file(data, tmp_path):
    """Oracle: lines are counted from 1, and nothing acts on the terminal."""
    assert invoke("vsa", "index", data, "--out", tmp_path / "it", "--dim", 256).exit_code == 0
    queries = write_lines(tmp_path / "q.jsonl", [{"name": "toyota"}, {"power": 130}])
    shown = invoke("vsa", "search", tmp_path / "it", "--file", queries, "--explain")
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.stdout
    assert "/power" in shown.stdout


def test_refuses(data, tmp_path):
    """Oracle: exit code 1 with the line at fault, 3 for damage."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": 1}\n\n{"a": 1, "a": 2}\n')
    shown = invoke("vsa", "index", bad)
    assert shown.exit_code == 1
    assert "line 3" in shown.stderr
    (tmp_path / "none.jsonl").write_text("\n")
    assert invoke("vsa", "index", tmp_path / "none.jsonl").exit_code == 1
    assert "no key 'id'" in invoke("vsa", "index", data, "--id", "id").stderr
    folder = tmp_path / "it"
    assert invoke("vsa", "index", data, "--out", folder).exit_code == 0
    assert invoke("vsa", "search", folder).exit_code == 1
    assert invoke("vsa", "search", folder, "{").exit_code == 1
    assert invoke("verify", folder).exit_code == 0
    (folder / "records.jsonl").write_text("{}\n")
    assert invoke("vsa", "search", folder, "{}").exit_code == 3
