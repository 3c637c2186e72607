"""The viewer's server: its answers against the scores, and what it refuses."""

import json
import threading
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from hesse.errors import ArgumentError
from hesse.influence import open_scores
from hesse.influence.run import open_folder
from hesse.web import create_app
from hesse.web.answers import Answers, find_runs
from tests.hostile import HOSTILE

LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def client(run_folder, cache):
    app = create_app([run_folder], cache=cache)
    assert Answers(run_folder, cache=cache).search.wait(20)
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        wait_for_search(client)
        yield client


def wait_for_search(client):
    for _ in range(200):
        if not client.get("/api/runs/facts/list", params={"query": "q0"}).json()["indexing"]:
            return
        threading.Event().wait(0.05)
    raise AssertionError("the index was not built")


@pytest.fixture(scope="module")
def scores(run_folder):
    return open_scores(run_folder)


def listed(client, **parameters):
    answer = client.get("/api/runs/facts/list", params={"query": "q0", "limit": 200} | parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_runs_and_queries(client, scores):
    """Oracle: the manifest and the corpus of questions."""
    found = client.get("/api/runs").json()
    assert found["ask"] is False
    (run,) = found["runs"]
    assert run["name"] == "facts"
    assert run["fitted"] is True
    assert run["strategy"] == "ekfac"
    assert [question["per_token"] for question in run["questions"]] == [True, False]
    queries = client.get("/api/runs/facts/queries").json()["queries"]
    assert [item["id"] for item in queries] == scores.query_ids
    assert queries[0]["prompt"] == "Who plays"
    assert queries[1]["completion"] == HOSTILE[2]
    assert queries[0]["highest"] == float(scores.values[0].max())
    one = client.get("/api/runs/facts/query", params={"query": "q0"}).json()
    assert "".join(one["tokens"]) == "Who plays the flute"
    assert one["targets"] == scores.targets("q0")


@pytest.mark.parametrize("sign", [1, -1])
def test_the_list_is_the_ranking(client, scores, sign):
    """Oracle: the scores, sorted; copies of one text, white space aside, are one line that counts the others."""
    found = listed(client, sign=sign)
    row = dict(zip(scores.train_ids, scores.values[0].tolist(), strict=True))
    texts = {name: " ".join((found_text(name) or "").split()) for name in row}
    firsts, wanted = {}, []
    for name in sorted(row, key=lambda name: -sign * row[name]):
        if sign * row[name] <= 0:
            continue
        if texts[name] in firsts:
            firsts[texts[name]]["copies"] += 1
            continue
        firsts[texts[name]] = {"id": name, "score": row[name], "copies": 0}
        wanted.append(firsts[texts[name]])
    assert [{key: item[key] for key in ("id", "score", "copies")} for item in found["items"]] == wanted
    assert found["total"] == len(wanted)
    assert [item["rank"] for item in found["items"]] == list(range(1, len(wanted) + 1))
    pages = [listed(client, sign=sign, offset=i, limit=7)["items"] for i in range(0, found["total"], 7)]
    assert [item for page in pages for item in page] == found["items"]
    assert listed(client, sign=sign, offset=10_000)["items"] == []


def found_text(name):
    from tests.scored_run import PLAIN

    if name == "chunk":
        return "one two"
    return PLAIN[int(name[3:])] if name.startswith("row") else HOSTILE[int(name[1:])]


def test_words_and_tags_choose_rows(client):
    """Oracle: the texts themselves, word by word; the last word may go on."""
    everything = {item["id"] for sign in (1, -1) for item in listed(client, sign=sign)["items"]}

    def ids(**choice):
        return {item["id"] for sign in (1, -1) for item in listed(client, sign=sign, **choice)["items"]}

    assert ids(text="FLUTE the") <= {"row0", "row2", "row4"}
    assert ids(text="flu") == ids(text="flute")
    assert ids(text="roof") == {"row3"} & everything
    assert ids(text="nowhere") == set()
    assert ids(where="kind:odd") == {name for name in everything if name[0] == "h" and int(name[1:]) % 2 == 1}
    assert ids(where="number:1", text="horn") == {"row1"} & everything
    tags = client.get("/api/runs/facts/queries").json()["tags"]
    assert {tag["key"] for tag in tags} == {"kind", "number", "note"}
    kinds = dict(next(tag["values"] for tag in tags if tag["key"] == "kind"))
    assert kinds == {"plain": 30, "odd": 25}


def test_one_word_of_the_completion_ranks(client, scores):
    """Oracle: the scores of that token."""
    target = scores.targets("q0")[0]
    found = listed(client, target=target)
    row = dict(zip(scores.train_ids, scores.by_target("q0")[0].tolist(), strict=True))
    assert all(item["score"] == row[item["id"]] for item in found["items"])
    assert found["widest"] == pytest.approx(np.abs(scores.by_target("q0")[0]).max())


def test_terms_are_those_of_the_scores(client, scores):
    """Oracle: the scores, chunk by chunk; they sum to the score of the row."""
    found = client.get("/api/runs/facts/terms", params={"query": "q0", "row": ["row0", "chunk"]}).json()["rows"]
    assert [row["id"] for row in found] == ["row0", "chunk"]
    np.testing.assert_allclose(found[0]["values"], scores.tokens("q0", "row0"))
    wanted = np.concatenate([scores.tokens("q0", "chunk#0"), scores.tokens("q0", "chunk#1")])
    np.testing.assert_allclose(found[1]["values"], wanted)
    for row in found:
        assert "".join(row["tokens"]) == row["text"]
        assert sum(row["values"]) == pytest.approx(row["score"], rel=1e-9)
        assert sum(row["layers"]) == pytest.approx(row["score"], rel=1e-9)
    target = scores.targets("q0")[-1]
    one = client.get("/api/runs/facts/terms", params={"query": "q0", "row": "row0", "target": target}).json()["rows"][0]
    np.testing.assert_allclose(one["values"], scores.pairs("q0", "row0")[-1])


def test_a_pair_is_a_matrix(client, scores):
    """Oracle: the scores; chunks stand side by side."""
    found = client.get("/api/runs/facts/pair", params={"query": "q0", "row": "chunk"}).json()
    wanted = np.concatenate([scores.pairs("q0", "chunk#0"), scores.pairs("q0", "chunk#1")], axis=1)
    np.testing.assert_allclose(found["pairs"], wanted)
    assert found["query"]["targets"] == scores.targets("q0")
    assert np.sum(found["pairs"]) == pytest.approx(found["score"], rel=1e-9)


def test_layers_by_row_and_by_tag(client, scores):
    """Oracle: the array of all terms."""
    place = scores.row_places
    found = client.get("/api/runs/facts/layers", params={"query": "q0", "count": 5}).json()
    assert found["names"] == scores.layer_names
    for row in found["rows"]:
        np.testing.assert_allclose(row["values"], scores.layers[0, place[row["id"]]])
    grouped = client.get("/api/runs/facts/layers", params={"query": "q0", "count": 200, "tag": "kind"}).json()
    assert {row["label"] for row in grouped["rows"]} <= {"plain", "odd", "(none)"}
    assert sum(row["count"] for row in grouped["rows"]) == listed(client)["total"]


def test_health_tells_of_the_fit(client, run_folder):
    """Oracle: the factors."""
    from hesse.influence import load_factors

    found = client.get("/api/runs/facts/health").json()
    run = open_folder(run_folder)
    factors = load_factors(run_folder, run.manifest)
    for layer in found["layers"]:
        table = factors.eigenvalues(layer["name"])
        assert layer["mean"] == pytest.approx(float(table.mean()))
        assert sum(layer["counts"]) + layer["zeros"] == table.numel()
        assert layer["effective"] == pytest.approx(float((table / factors[layer["name"]].damped()).sum()), rel=1e-9)
    assert any("empirical" in line for line in found["warnings"])
    assert found["coverage"]["sequences"] == 57


def test_an_earlier_question_without_terms(client, run_folder):
    """Oracle: what was kept: nothing but totals."""
    earlier = client.get("/api/runs").json()["runs"][0]["questions"][1]["id"]
    ask = {"query": "q0", "question": earlier}
    row = client.get("/api/runs/facts/terms", params={**ask, "row": "row0"}).json()["rows"][0]
    assert row["values"] is None
    assert row["layers"] is None
    assert client.get("/api/runs/facts/layers", params=ask).json()["rows"] is None
    assert client.get("/api/runs/facts/pair", params={**ask, "row": "row0"}).json()["pairs"] is None
    assert client.get("/api/runs/facts/query", params=ask).json()["targets"] is None


@pytest.mark.parametrize(
    ("path", "parameters", "words"),
    [
        ("list", {}, "query: it is missing"),
        ("list", {"query": "nobody"}, "no 'nobody'"),
        ("list", {"query": "q0", "sign": "2"}, "sign 1 or -1"),
        ("list", {"query": "q0", "offset": "-1"}, "offset"),
        ("list", {"query": "q0", "limit": "201"}, "limit"),
        ("list", {"query": "q0", "limit": "ten"}, "whole number"),
        ("list", {"query": "q0", "text": "!!"}, "words to search"),
        ("list", {"query": "q0", "where": "kind"}, "key:value"),
        ("list", {"query": "q0", "target": "0"}, "target"),
        ("list", {"query": "q0", "question": "../../etc"}, "was not asked"),
        ("terms", {"query": "q0"}, "1 to 50 ids"),
        ("terms", {"query": "q0", "row": "nobody"}, "no 'nobody'"),
        ("pair", {"query": "q0", "row": "nobody"}, "no 'nobody'"),
        ("layers", {"query": "nobody"}, "no 'nobody'"),
    ],
)
def test_bad_questions_are_named(client, path, parameters, words):
    """Oracle: status 400 and the argument in the message."""
    answer = client.get(f"/api/runs/facts/{path}", params=parameters)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    page=st.sampled_from(["list", "terms", "pair", "layers", "query", "queries", "health", "nothing"]),
    parameters=st.dictionaries(
        st.sampled_from(["query", "row", "sign", "target", "text", "where", "offset", "limit", "question", "tag", "x"]),
        st.one_of(st.text(max_size=12), st.integers().map(str), st.sampled_from(["q0", "row0", "1", "", "kind:odd"])),
        max_size=6,
    ),
)
def test_no_question_breaks_the_server(client, page, parameters):
    """Oracle: never a status of 500; every answer of the interface is JSON."""
    answer = client.get(f"/api/runs/facts/{page}", params=parameters)
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 404:
        json.loads(answer.text)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2fapp.py",
        "/static/....//app.py",
        "/static/%252e%252e/app.py",
        "/static/..\\app.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/app.js%00.py",
        "/static/./../../pyproject.toml",
        "/shared/../report.py",
        "/shared/%2e%2e/report.py",
        "/shared/..%2f..%2f__init__.py",
        "/api/runs/..%2f..%2fetc/list",
        "/api/runs/%2e%2e/queries",
        "/api/runs/facts%2f..%2ffacts/queries",
        "/..%2f..%2fetc%2fpasswd",
        "/static",
    ],
)
def test_no_path_leads_out(client, path):
    """Oracle: status 404 (or 400 for a name that is none), and nothing of a source file."""
    answer = client.get(path)
    assert answer.status_code in (404, 400, 405)
    assert "import" not in answer.text


def test_other_names_are_refused(run_folder, cache):
    """Oracle: status 400, whoever points a name of his own at this machine."""
    with TestClient(create_app([run_folder], cache=cache), base_url=LOCAL) as client:
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000", "[::1", "8.8.8.8", ""):
            assert client.get("/api/runs", headers={"host": host}).status_code == 400
        for host in ("127.0.0.1:9", "localhost:8000", "localhost"):
            assert client.get("/api/runs", headers={"host": host}).status_code == 200


def test_the_token_lets_in_and_leaves_the_address(run_folder, cache):
    """Oracle: 403 without it; a cookie that scripts cannot read, for this site only; no token in the address after."""
    word = "open sesame"
    app = create_app([run_folder], token=word, cache=cache)
    with TestClient(app, base_url=LOCAL, follow_redirects=False) as client:
        for path in ("/", "/api/runs", "/static/app.js", "/?token=wrong", "/?token=%C3%A9"):
            assert client.get(path).status_code == 403
        answer = client.get(f"/?token={quote(word)}")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/api/runs").status_code == 200
        assert client.get("/api/runs", headers={"host": "127.0.0.1:8001"}).status_code == 403  # another viewer's port


def test_headers_keep_the_browser_in(client):
    """Oracle: the policy, on pages, data and refusals alike."""
    for path in ("/", "/api/runs", "/static/app.js", "/shared/text.js", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        for rule in ("default-src 'self'", "object-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
            assert rule in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["app.js", "query.js", "pair.js", "layers.js", "health.js", "runs.js", "rows.js"])
def test_scripts_make_no_markup(client, name):
    """Oracle: none of the calls that turn text into elements or code occurs, and no address leads elsewhere."""
    text = client.get(f"/static/{name}").text
    for call in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "http:"):
        assert call not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_question_from_the_page(run_folder, cache):
    """Oracle: the function that was passed in; one question at a time, and only from the server's own pages."""
    latest = open_folder(run_folder).stage("score")["latest"]
    begin, asked = threading.Event(), []

    def ask(path, prompt, completion):
        asked.append((path, prompt, completion))
        begin.wait(10)
        if completion == "fail":
            raise ArgumentError("completion: no")
        return latest

    def settled(client, job):
        for _ in range(400):
            state = client.get(f"/api/jobs/{job}").json()
            if state["state"] != "running":
                return state
            threading.Event().wait(0.02)
        raise AssertionError("the job did not end")

    with TestClient(create_app([run_folder], ask_fn=ask, cache=cache), base_url=LOCAL) as client:
        assert client.get("/api/runs").json()["ask"] is True
        job = client.post("/api/runs/facts/ask", json={"prompt": "a", "completion": "b"}).json()["job"]
        assert client.get(f"/api/jobs/{job}").json() == {
            "state": "running",
            "question": None,
            "error": None,
            "sequences": 0,
        }
        busy = client.post("/api/runs/facts/ask", json={"prompt": "a", "completion": "c"})
        assert "another question" in busy.json()["error"]
        begin.set()
        assert settled(client, job) == {"state": "done", "question": latest.removeprefix("scores/"), "error": None}
        failed = client.post("/api/runs/facts/ask", json={"prompt": "", "completion": "fail"}).json()["job"]
        assert settled(client, failed)["error"] == "completion: no"
        assert asked == [(run_folder, "a", "b"), (run_folder, "", "fail")]
        for body in (b"{", b"[]", b'{"prompt": 1, "completion": "x"}', b'{"prompt": "x", "completion": ""}'):
            assert client.post("/api/runs/facts/ask", content=body).status_code == 400
        assert client.post("/api/runs/facts/ask", content=b"x" * 70_000).status_code == 400
        foreign = client.post(
            "/api/runs/facts/ask", json={"prompt": "", "completion": "x"}, headers={"origin": "http://evil.example"}
        )
        assert foreign.status_code == 403
        assert client.get("/api/jobs/99").status_code == 400


def test_runs_are_found_by_folder(run_folder, tmp_path):
    """Oracle: the names of the folders; a path without a run is named."""
    assert find_runs([run_folder.parent]) == {"facts": run_folder}
    assert list(find_runs([run_folder, run_folder.parent])) == ["facts", "facts-2"]
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArgumentError, match="is no run"):
            create_app([nothing])


def test_a_damaged_run_is_said_to_be_one(run_folder, tmp_path, cache):
    """Oracle: status 409 with the file named; the other runs stay readable."""
    import shutil

    shutil.copytree(run_folder, tmp_path / "facts")
    folder = open_folder(tmp_path / "facts").stage("score")["latest"]
    (tmp_path / "facts" / folder / "scores.npy").write_bytes(b"no array")
    app = create_app([tmp_path / "facts", run_folder], cache=cache)
    with TestClient(app, base_url=LOCAL) as client:
        answer = client.get("/api/runs/facts/list", params={"query": "q0"})
        assert answer.status_code == 409
        assert "scores.npy" in answer.json()["error"]
        assert client.get("/api/runs/facts-2/list", params={"query": "q0"}).status_code == 200
        (tmp_path / "facts" / "manifest.json").write_bytes(b"{")
        assert "error" in client.get("/api/runs").json()["runs"][0]
