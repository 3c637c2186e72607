"""The studies as commands: their JSON is that of the library, their pictures are files, and the trap is told."""

import json

import numpy as np
import pytest

from tests.cli.conftest import invoke, write_lines


def asked(run, *words):
    done = invoke("influence", *words[:1], run, *words[1:], "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_numbers_are_those_of_the_library(run):
    """Oracle: each study called by hand on the run."""
    from hesse.influence import open_run
    from hesse.influence.studies import (
        browse,
        study_coverage,
        study_layers,
        study_memorisation,
        study_tail,
    )

    opened = open_run(run)
    for words, study in [
        (["tail", "--query", "q2", "--top-percent", 20], study_tail(opened.scores, queries=["q2"], top_percent=20)),
        (["layers", "-k", 3, "--opponents"], study_layers(opened.scores, k=3, sign=-1)),
        (["coverage", "-k", 3, "--size", 2, "--size", 11], study_coverage(opened, k=3, sizes=[2, 11])),
        (["memorisation", "--min-words", 1], study_memorisation(opened, min_words=1)),
        (["browse", "--query", "q2", "-k", 4], browse(opened, "q2", k=4)),
    ]:
        found = asked(run, *words)
        assert found.pop("run") == str(run)
        assert found == json.loads(json.dumps(study.to_dict()))


@pytest.mark.parametrize("command", ["tail", "layers", "coverage", "memorisation", "browse"])
def test_tables_and_pictures(run, tmp_path, command):
    """Oracle: the first bytes of the file; a table on stdout without characters that act on the terminal."""
    picture = tmp_path / f"{command}.png"
    done = invoke("influence", command, run, "--plot", picture)
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "wrote" in done.stderr
    assert done.stdout.strip()
    assert not [c for c in done.stdout if (ord(c) < 32 and c != "\n") or c in "\x7f\u202e"]
    refused = invoke("influence", command, run, "--plot", tmp_path / "picture.txt")
    assert refused.exit_code == 1
    assert ".svg" in refused.stderr


@pytest.fixture
def tagged(tiny, run, tmp_path):
    """The run, asked the same things in two languages."""
    queries = [
        {"id": "a-x", "prompt": "the capital of marland is", "completion": " vesper", "concept": "a", "language": "x"},
        {"id": "a-y", "prompt": "the capital of oster is", "completion": " brin", "concept": "a", "language": "y"},
    ]
    lines = write_lines(tmp_path / "tagged.jsonl", queries)
    assert invoke("influence", "score", run, "--queries", lines, "--rank", "full", "--per-layer").exit_code == 0
    return run


def test_languages_and_tags_are_read_from_the_queries(tagged, tmp_path):
    """Oracle: the library on the same tags; one object a run where there are several."""
    from hesse.influence import open_scores
    from hesse.influence.studies import study_languages

    wanted = study_languages(open_scores(tagged), {"a-x": "a", "a-y": "a"}, {"a-x": "x", "a-y": "y"}, k=3).to_dict()
    found = asked(tagged, "crosslingual", "-k", 3)
    assert {key: found[key] for key in wanted} == wanted
    both = json.loads(invoke("influence", "crosslingual", tagged, tagged, "-k", 3, "--json").stdout)
    assert [study["transfer"] for study in both["studies"]] == [wanted["transfer"]] * 2
    assert invoke("influence", "crosslingual", tagged, "--plot", tmp_path / "x.svg").exit_code == 0
    layers = asked(tagged, "layers", "--tag", "language")
    assert [query["tag"] for query in layers["queries"]] == ["x", "y"]
    refused = invoke("influence", "crosslingual", tagged, "--language", "dialect")
    assert refused.exit_code == 1
    assert "'dialect'" in refused.stderr


def test_runs_are_compared_by_name(run, scored, tmp_path):
    """Oracle: two copies of one run share all rows; one run is not enough."""
    found = json.loads(invoke("influence", "scale", run, scored, "-k", 4, "--json").stdout)
    assert found["runs"] == [str(run), str(scored)]  # both folders are called "run"
    assert found["jaccard"] == [[1, 1], [1, 1]]
    assert found["lexical"][0] == found["lexical"][1]
    assert invoke("influence", "scale", run, scored, "--plot", tmp_path / "s.pdf").exit_code == 0
    for runs, message in [([run], "at least two"), ([run, run], "named twice")]:
        refused = invoke("influence", "scale", *runs)
        assert refused.exit_code == 1
        assert message in refused.stderr


def test_word_order_scores_the_variants_and_tells_the_trap(run, tmp_path):
    """Oracle: the library on the run's own model; the latest scores stay; losses far apart are told on stderr."""
    from hesse.influence import open_scores

    facts = write_lines(
        tmp_path / "facts.jsonl",
        [{"town": "marland", "city": "vesper"}, {"town": "oster", "city": "brin"}, {"town": "the cat", "city": "mat"}],
    )
    words = ["influence", "wordorder", run, "--facts", facts, "--completion", "city", "--same"]
    words += ["the capital of {town} is {city}", "--flipped", "{city} is the capital of {town}"]
    latest = open_scores(run).folder
    done = invoke(*words, "--json", "--plot", tmp_path / "w.svg")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["facts"] == 3
    assert found["kinds"][0] | {"ratio": 1.0, "low": 1.0, "high": 1.0, "loss_ratio": 1.0} == found["kinds"][0]
    assert {"flipped 1", "swapped town", "swapped city", "completion only", "unrelated"} <= {
        kind["kind"] for kind in found["kinds"]
    }
    assert open_scores(run).folder == latest
    long = [*words[:-1], " ".join(["{city} is the capital of {town}"] * 2), "--json"]
    trapped = invoke(*long)
    assert trapped.exit_code == 0, trapped.output
    assert "warning: the texts are not alike" in trapped.stderr
    assert json.loads(trapped.stdout)["caution"] in trapped.stderr.replace("\n", " ")
    table = invoke(*words)
    assert "flipped 1" in table.stdout
    assert np.isfinite([kind["ratio"] for kind in found["kinds"]]).all()
