"""`hesse influence plan`: a table, and JSON, from a configuration alone."""

import json

from tests.cli.conftest import invoke


def test_a_plan_of_a_folder(tiny):
    """Oracle: one row a stage; bytes of the queries grow in proportion to their number."""
    options = ("-n", 500, "--length", 20, "--rank", 2)
    table = invoke("influence", "plan", tiny / "model", *options)
    assert table.exit_code == 0, table.output
    for word in ("covariance", "eigendecomposition", "eigenvalues", "queries", "scores", "in all"):
        assert word in table.stdout
    few, many = (
        json.loads(invoke("influence", "plan", tiny / "model", *options, "--queries", q, "--json").stdout)
        for q in (2, 6)
    )
    bytes_of = [{stage["name"]: stage["disk"] for stage in plan["stages"]}["queries"] for plan in (few, many)]
    assert bytes_of[1] == 3 * bytes_of[0]
    assert few["seconds"] > 0
    assert few["layers"] > 0


def test_limits_change_settings(tiny):
    """Oracle: what is proposed keeps the limit and says what it changed; a limit that nothing keeps ends with 1."""
    options = ("influence", "plan", tiny / "model", "-n", 5000, "--length", 20, "--rates", "1e9,1e9,1e9", "--json")
    asked = json.loads(invoke(*options).stdout)
    done = invoke(*options, "--max-time", f"{asked['seconds'] / 2:.3f}s")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["seconds"] <= asked["seconds"] / 2
    assert found["changed"]
    assert found["exceeded"] == []
    table = invoke(*options[:-1], "--max-time", f"{asked['seconds'] / 2:.3f}s")
    assert any(word in table.stderr for word in ("--max-sequences", "--rank", "chosen by a filter"))
    never = invoke(*options, "--max-memory", "1kB")
    assert never.exit_code == 1
    assert json.loads(never.stdout)["exceeded"] == ["memory"]


def test_bad_options_are_named(tiny):
    """Oracle: the exit code of a usage error, and the name of the option."""
    done = invoke("influence", "plan", tiny / "model", "-n", 5, "--strategy", "adam")
    assert done.exit_code != 0
    assert "strategy: expected ekfac" in done.output
    done = invoke("influence", "plan", tiny / "model", "-n", 5, "--rates", "1,2")
    assert "rates: expected three numbers" in done.output
    assert invoke("influence", "plan", tiny / "model", "-n", 5, "--max-memory", "80").exit_code == 2
