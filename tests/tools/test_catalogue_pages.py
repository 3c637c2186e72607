"""A method is there when it is in five places; the pages that speak of all methods forget none."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from hesse._catalogue import METHODS
from tools import failed_claims

ROOT = Path(__file__).resolve().parent.parent.parent
GROUND = {"bilevel_core", "curvature_core", "influence_viewer", "linalg_core"}  # what the methods of papers stand on
PAPERS = {
    *("adasketch_newton", "bo_rep", "bsvrb", "cbo", "comp_sum_losses", "convex_relu", "dcdm", "dds", "diff2", "funbat"),
    *("gauge_freedom", "gaunt_tensor_product", "gp_hm", "grassmann_class", "hawq_v2", "hesso", "hessian_alignment"),
    *("hierarchical_polynomials", "influence_ekfac", "lie_decompositions", "linf_regression", "lv_hba", "mbat_vsa"),
    *("mfac", "monge_gap", "neural_pde", "optimistic_omd", "penalty_bilevel", "policy_gradient", "rmt_learning_rates"),
    *("rvgp", "sgd_stability", "singular_likelihood", "sinkhorn_newton_sparse", "smash_spgemm", "subgm"),
    *("target_surrogates", "vr_halpern"),
}
FACETS = {  # of the flagship, or a program to be looked at: told on a page of the docs instead of a gallery page
    "influence_candidates": "docs/large_corpora.md",
    "influence_scale": "docs/planning.md",
    "influence_trajectory": "docs/training_runs.md",
    "influence_viewer": "docs/images/viewer_query.png",
}


def source_of(method) -> Path:
    module, _, name = method.import_path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    return Path(inspect.getsourcefile(value) or "")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
def test_a_method_is_in_five_places(method):
    """Oracle: the folders: source in its family, tests that use its name, benchmark, kept result, gallery page."""
    name = method.import_path.rpartition(".")[2]
    source = source_of(method)
    folders = (ROOT / "tests" / method.family, ROOT / "tests" / "cli")
    files = [p for folder in folders for p in folder.rglob("test_*.py")]
    tests = [p for p in files if re.search(rf"\b{name}\b", p.read_text("utf-8"))]
    places = {
        "source": source.is_relative_to(ROOT / "src" / "hesse" / method.family),
        "tests": bool(tests),
        "benchmark": (ROOT / "benchmarks" / method.family / f"{method.slug}.py").exists(),
        "result": (ROOT / "benchmarks" / "results" / f"{method.slug}.json").exists(),
        "page": (ROOT / FACETS.get(method.slug, f"docs/gallery/{method.family}/plot_{method.slug}.py")).exists(),
    }
    assert [place for place, there in places.items() if not there] == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
def test_a_kept_result_is_whole(method):
    """Oracle: the record's own promises: full size, every claim judged, a bar and a row of what lies behind it."""
    record = json.loads((ROOT / "benchmarks" / "results" / f"{method.slug}.json").read_text("utf-8"))
    assert record["scale"] == "full"
    assert record["claims"]
    for claim in record["claims"]:
        assert claim["holds"] in (True, False), claim["name"]
        assert {"name", "measured", "bar", "better", "rows"} <= set(claim)


def test_all_thirty_eight_methods_are_there():
    """Oracle: the list of papers that the project set out with."""
    assert len(PAPERS) == 38
    assert sorted(PAPERS - {method.slug for method in METHODS}) == []


def test_which_method_names_every_method():
    """Oracle: the catalogue's import paths, each in backticks on the page; and every path on it can be imported."""
    page = (ROOT / "docs" / "which_method.md").read_text("utf-8")
    assert [m.slug for m in METHODS if f"`{m.import_path}`" not in page] == []
    for path in set(re.findall(r"`(hesse(?:\.\w+){2,})`", page)):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_limits_are_up_to_date():
    """Oracle: the kept results; each method with a claim that does not hold has a paragraph on why."""
    page = (ROOT / "docs" / "limits.md").read_text("utf-8")
    assert failed_claims.with_table(page) == page, "tools/failed_claims.py --write mends it"
    told = set(re.findall(r"^\*\*`(\w+)`\.\*\*", page, re.MULTILINE))
    assert sorted(set(failed_claims.failed()) - told) == []
    assert sorted(told - set(failed_claims.failed())) == []


def test_failed_claims_are_those_that_do_not_hold(tmp_path):
    """Oracle: a record written by hand."""
    slug = METHODS[0].slug
    claims = [{"name": name, "holds": holds} for name, holds in (("a", True), ("b", False), ("c", None))]
    (tmp_path / f"{slug}.json").write_text(json.dumps({"claims": claims}))
    assert {key: [claim["name"] for claim in lost] for key, lost in failed_claims.failed(tmp_path).items()} == {
        slug: ["b"]
    }
    assert failed_claims.totals(tmp_path) == (1, 3)
    assert [failed_claims.number(value) for value in (None, 0.5, [1, 2.25])] == ["nothing", "0.5", "1 to 2.25"]
