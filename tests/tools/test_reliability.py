"""The reliability programme's own sums: counts of a report, verdicts, and the page."""

import json
import time

import pytest

from tools import reliability
from tools._test_runs import Counts, read_junit

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="good" time="1"/>
<testcase classname="a" name="bad"><failure/></testcase>
<testcase classname="a" name="broken"><error/></testcase>
<testcase classname="a" name="gap"><skipped type="pytest.xfail"/></testcase>
<testcase classname="a" name="absent"><skipped type="pytest.skip"/></testcase>
</testsuite></testsuites>"""
BUDGET = reliability.Budget(time.monotonic() + 1000, 1, 1.0)


def test_counts_of_a_report(tmp_path):
    """Oracle: the report above, counted by hand."""
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    counts = read_junit(path)
    assert (counts.passed, counts.failed, counts.excused, counts.skipped) == (1, ["a::bad", "a::broken"], 1, 1)
    assert str(counts) == "1 passed, 2 failed, 1 known gaps, 1 skipped"


@pytest.mark.parametrize(
    ("counts", "missing", "verdict"),
    [
        (Counts(3), "", reliability.MET),
        (Counts(3, excused=1), "", reliability.PARTLY),
        (Counts(3), "something", reliability.PARTLY),
        (Counts(3, ["x"]), "", reliability.NOT_MET),
        (Counts(), "", reliability.NOT_MET),
    ],
)
def test_verdicts(counts, missing, verdict):
    """Oracle: the rule on the page; no test at all is no success."""
    assert reliability.judged(counts, "", missing).verdict == verdict


def test_one_broken_item_does_not_stop_the_others(capsys):
    """Oracle: two items made here."""

    def breaks(_budget):
        raise ArithmeticError("no such luck")

    items = [
        reliability.Item("R1", "breaks", "", breaks),
        reliability.Item("R2", "works", "", lambda _budget: reliability.Finding(reliability.MET, "fine")),
    ]
    found = reliability.run(items, BUDGET)
    assert (found["R1"].verdict, found["R2"].verdict) == (reliability.NOT_MET, reliability.MET)
    assert "no such luck" in found["R1"].figures


def test_page_holds_every_item_and_what_is_missing():
    """Oracle: findings made here; a bar in a text must not break the table."""
    page = reliability.PAGE.read_text("utf-8")
    findings = {item.number: reliability.Finding(reliability.MET, "a|b") for item in reliability.PROGRAMME}
    findings["R6"] = reliability.Finding(reliability.NOT_MET, "x", "300 kills", ["failed: t"])
    text = reliability.with_block(page, reliability.block(findings, "today", 3.0))
    rows = [line for line in text.splitlines() if line.startswith("| R")]
    assert [row.split()[1] for row in rows] == [f"R{n}" for n in range(1, 19)]
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
    assert "- **R6**: 300 kills" in text
    assert "- **R6** failed: t" in text
    assert reliability.with_block(text, reliability.block(findings, "today", 3.0)) == text


def test_kept_claims_are_judged_as_kept(tmp_path, monkeypatch):
    """Oracle: a record written by hand."""
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    assert reliability.kept_claims("x", ".").verdict == reliability.NOT_THERE
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    claims = [{"name": n, "holds": h, "measured": 1.0, "bar": 2.0} for n, h in (("memory", True), ("speed", False))]
    (tmp_path / "benchmarks" / "results" / "x.json").write_text(json.dumps({"claims": claims}))
    assert reliability.kept_claims("x", "memory").verdict == reliability.MET
    assert reliability.kept_claims("x", ".").verdict == reliability.NOT_MET
    assert reliability.kept_claims("x", "disk").verdict == reliability.NOT_THERE
