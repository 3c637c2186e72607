"""The catalogue against the benchmarks, the package and the README."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import find_slugs
from hesse._catalogue import METHODS
from tools.readme_table import BEGIN, END, measured, with_table

ROOT = Path(__file__).resolve().parent.parent


def test_slugs_are_unique_and_sorted():
    """Oracle: the definition."""
    slugs = [method.slug for method in METHODS]
    assert slugs == sorted(set(slugs))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
def test_method_can_be_imported_and_measured(method):
    """Oracle: the import system and the benchmark's place, benchmarks/<family>/<slug>.py."""
    module, _, name = method.import_path.rpartition(".")
    assert module == f"hesse.{method.family}"
    assert hasattr(importlib.import_module(module), name)
    assert find_slugs().get(method.slug) == f"benchmarks.{method.family}.{method.slug}"


def test_every_kept_result_belongs_to_a_method():
    """Oracle: the files in benchmarks/results, which hold full runs under their own names."""
    slugs = {method.slug for method in METHODS}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        assert path.stem in slugs
        assert (record["slug"], record["scale"]) == (path.stem, "full")
        assert {"cpu", "cores", "threads", "memory_gib"} <= set(record["machine"])
        assert isinstance(record["seed"], int)


def test_every_benchmark_is_in_the_catalogue():
    """Oracle: the files in benchmarks/."""
    assert set(find_slugs()) <= {method.slug for method in METHODS}


def test_readme_table_is_up_to_date():
    """Oracle: the generator, run afresh (tools/readme_table.py --write mends it)."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.count(BEGIN) == readme.count(END) == 1
    assert with_table(readme) == readme


def test_measured_counts_claims(tmp_path):
    """Oracle: counting by hand: one of three holds, an unjudged one does not count as held."""
    method = METHODS[0]
    assert measured(method, tmp_path) == "no full run kept yet"
    claims = [{"holds": True}, {"holds": False}, {"holds": None}]
    (tmp_path / f"{method.slug}.json").write_text(json.dumps({"claims": claims}))
    assert "1 of 3 claims hold" in measured(method, tmp_path)


def test_catalogue_needs_no_torch():
    """Oracle: the modules a fresh interpreter has loaded."""
    code = "import sys, hesse._catalogue; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
