"""Records on disk: JSON whole, and a claim's table beside it."""

import csv
import json

from benchmarks._record import keep


def test_a_table_is_written_beside_the_record(tmp_path):
    """Oracle: csv.DictReader; a line may lack columns that others have."""
    lines = [{"solver": "a", "loss": 0.5}, {"solver": 'b, "c"', "message": "no"}]
    record = {"slug": "one", "claims": [{"rows": {"table": lines}}, {"rows": {}}, {"rows": {"table": 3}}]}
    keep(record, tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text("utf-8")) == record
    with (tmp_path / "one.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"solver": "a", "loss": "0.5", "message": ""},
            {"solver": 'b, "c"', "loss": "", "message": "no"},
        ]
    assert {path.name for path in tmp_path.iterdir()} == {"one.json", "one.csv"}
