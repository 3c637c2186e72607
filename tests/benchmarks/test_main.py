"""The runner: which benchmarks it finds, what it prints, keeps and returns."""

import json

import pytest

from benchmarks.__main__ import DEFAULT_SCALE, find_slugs, main

GOOD = """
from benchmarks._claims import Claim

def ratio(scale):
    return Claim("ratio", scale(smoke=2.0, full=5.0), 3.0, "higher", {"seed": scale.seed}, full_only=True)

def pair(scale):
    return [Claim("low", 0.1, 0.2, "lower"), Claim("between", 0.5, (0.0, 1.0), "inside")]

CLAIMS = [ratio, pair]
"""
BAD = """
from benchmarks._claims import Claim
from benchmarks.peers import require_peer

def breaks(scale):
    raise ArithmeticError("no such luck")

def needs_peer(scale):
    require_peer("a_peer_that_is_not_there")

def fine(scale):
    return Claim("fine", 1.0, 1.0, "higher")

CLAIMS = [breaks, needs_peer, fine]
"""


@pytest.fixture
def bench(tmp_path, monkeypatch, request):
    """A folder of two made-up benchmarks and a helper, and a function that runs the runner on it."""
    root = tmp_path / f"made_up_{abs(hash(request.node.name))}"  # a name of its own: modules stay imported
    (root / "family").mkdir(parents=True)
    (root / "family" / "good.py").write_text(GOOD)
    (root / "family" / "bad.py").write_text(BAD)
    (root / "family" / "_helper.py").write_text("CLAIMS = []")
    (root / "family" / "plain.py").write_text("X = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    results = tmp_path / "results"

    def run(*arguments):
        return main(arguments, root=root, results=results)

    run.root, run.results = root, results
    return run


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_finds_files_that_define_claims(bench):
    """Oracle: the folder's content; helpers and files without CLAIMS are no benchmarks."""
    assert list(find_slugs(bench.root)) == ["bad", "good"]


def test_smoke_judges_only_what_it_can(bench, capsys):
    """Oracle: the claims written above; the default scale is smoke and nothing is kept."""
    assert bench("good", "--json", "--seed", "-12345678901") == 0
    record = last_json(capsys)
    assert DEFAULT_SCALE == record["scale"] == "smoke"
    assert record["seed"] == -12345678901
    assert record["claims"][0]["rows"]["seed"] == -12345678901 % 2**31  # what claims may compute with
    assert [(c["name"], c["holds"]) for c in record["claims"]] == [("ratio", None), ("low", True), ("between", True)]
    assert {"name", "measured", "bar", "better", "holds", "rows"} <= set(record["claims"][0])
    assert record["claims"][2]["bar"] == [0.0, 1.0]
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["torch"]
    assert not bench.results.exists()


def test_full_judges_and_keeps(bench, capsys):
    """Oracle: the kept file is the JSON that was printed, and no part of an unfinished write is left."""
    assert bench("good", "--scale", "full", "--json") == 0
    record = last_json(capsys)
    assert record["claims"][0]["holds"] is True
    assert json.loads((bench.results / "good.json").read_text()) == record
    assert [path.name for path in bench.results.iterdir()] == ["good.json"]


def test_one_broken_claim_does_not_stop_the_others(bench, capsys):
    """Oracle: the claims written above: an error and a missing peer fail with their reason, the third still runs."""
    assert bench("bad", "--json") == 1
    breaks, needs_peer, fine = last_json(capsys)["claims"]
    assert breaks["holds"] is False
    assert "no such luck" in breaks["rows"]["error"]
    assert needs_peer["holds"] is False
    assert "make peers" in needs_peer["rows"]["peer missing"]
    assert fine["holds"] is True


def test_only_runs_the_named_function(bench, capsys):
    """Oracle: the function's own claims; a part of a run is not kept."""
    assert bench("good", "--scale", "full", "--only", "PAIR", "--json") == 0
    assert [claim["name"] for claim in last_json(capsys)["claims"]] == ["low", "between"]
    assert not bench.results.exists()


def kept(bench, **changes):
    """A kept result of the good benchmark in which all three claims hold, but for the changes."""
    holds = {"ratio": True, "low": True, "between": True} | changes
    bench.results.mkdir(exist_ok=True)
    claims = [{"name": name, "holds": verdict} for name, verdict in holds.items()]
    (bench.results / "good.json").write_text(json.dumps({"slug": "good", "scale": "full", "claims": claims}))


def test_what_was_lost_is_named(bench, capsys):
    """Oracle: a kept result in which the ratio held at more than this size reaches, and a benchmark that breaks."""
    kept(bench)
    (bench.root / "family" / "good.py").write_text(GOOD.replace("0.1, 0.2", "0.3, 0.2"))
    assert bench("good") == 1
    assert "lost: low (held in the kept result)" in capsys.readouterr().out
    kept(bench, low=False)
    bench("good")
    assert "lost" not in capsys.readouterr().out


def test_table_of_all(bench, capsys):
    """Oracle: the two made-up benchmarks, counted by hand: a row each, the sums, what was lost, gone and gained."""
    kept(bench, low=False, vanished=True)
    bench("--all")
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["bad"][1:4] == ["1", "2", "0"]
    assert rows["good"][1:4] == ["2", "0", "1"]
    assert rows["good"][5:] == ["3", "of", "4", "0"]
    assert rows["all"][1:4] == ["3", "2", "1"]
    assert "gained: good: low" in out
    assert "gone" not in out  # a run at smoke size may name its claims otherwise
    kept(bench, low=False, vanished=True)
    bench("--all", "--scale", "full")
    assert "gone: good: vanished (held in the kept result)" in capsys.readouterr().out


def test_a_benchmark_that_cannot_be_imported_fails_alone(bench, capsys):
    """Oracle: the exit code, and the claims of the other benchmarks, which still run."""
    (bench.root / "family" / "bad.py").write_text("import no_such_module\nCLAIMS = []\n")
    assert bench("--all", "--json") == 1
    bad, good = last_json(capsys)["runs"]
    assert "no_such_module" in bad["claims"][0]["rows"]["error"]
    assert [claim["holds"] for claim in good["claims"]] == [None, True, True]


def test_all_runs_every_benchmark(bench, capsys):
    """Oracle: the folder's content; one object in the last line holds every run, and one failure fails the whole."""
    assert bench("--all", "--json") == 1
    assert [run["slug"] for run in last_json(capsys)["runs"]] == ["bad", "good"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no benchmark called 'nothing'"),
        ([], "name one benchmark"),
        (["good", "--all"], "name one benchmark"),
        (["good", "--keep"], "only whole runs at full scale"),
        (["good", "--scale", "full", "--only", "pair", "--keep"], "only whole runs at full scale"),
        (["good", "--only", "nobody"], "no claim function named like 'nobody'"),
    ],
)
def test_usage_errors_return_two(bench, capsys, arguments, message):
    """Oracle: the documented exit code; the message names what was wrong."""
    assert bench(*arguments) == 2
    assert message in capsys.readouterr().err


def test_unknown_slug_lists_those_there_are(bench, capsys):
    """Oracle: the folder's content."""
    bench("nothing")
    assert capsys.readouterr().err.split()[-2:] == ["bad", "good"]
