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


def test_bad_options_are_named(tiny):
    """Oracle: the exit code of a usage error, and the name of the option."""
    done = invoke("influence", "plan", tiny / "model", "-n", 5, "--strategy", "adam")
    assert done.exit_code != 0
    assert "strategy: expected ekfac" in done.output
