"""The viewer on a run of 100,000 sequences and 64 queries: how soon it shows something, how steadily it answers,
whether it grows, and what malformed questions do to it; the size of a report.

The run is a real one: a tiny language model, fitted and scored by the engine, with the terms of all tokens and layers.
The server is the command that users start, as a process of its own; the page is opened in a real Chromium. No peer has
a viewer to compare with: the bars are absolute, in seconds and bytes, on two cores.
"""

import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._claims import Claim, Scale
from benchmarks.influence._reliability import TRACKED, VOCABULARY, tiny_model
from hesse.influence import Influence, keep_corpus, write_report
from hesse.influence.sequences import Sequence

__all__ = ["CLAIMS"]

_WORDS = ("the", "of", "river", "flute", "mountain", "plays", "sings", "horn", "rain", "letter", "roof", "stone")
_PAGE = 50


def viewer_claims(scale: Scale) -> list[Claim]:
    """Paint, latency, memory and robustness of one server over one run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sizes = {"sequences": scale(smoke=1_500, full=100_000), "queries": scale(smoke=6, full=64)}
        begin = time.perf_counter()
        run = _scored_run(folder / "run", scale.seed, **sizes)
        rows: dict[str, Any] = {**sizes, "run made in, s": round(time.perf_counter() - begin, 1)}
        rows["run, MiB"] = round(sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) / 2**20, 1)
        with _served(run, folder / "cache") as server:
            paints = _paints(server, scale(smoke=1, full=5))
            client = _Client(server, random.Random(scale.seed))  # noqa: S311 - which pages are asked for
            return [
                _paint_claim(paints, rows),
                *_latency_claims(client, scale, rows),
                _memory_claim(client, scale, rows),
                _malformed_claim(client, scale, rows),
            ]


def report_size(scale: Scale) -> Claim:
    """A report of ten queries with a hundred sequences each way, as one file."""
    with tempfile.TemporaryDirectory() as scratch:
        count = scale(smoke=300, full=3_000)
        run = _scored_run(Path(scratch) / "run", scale.seed, sequences=count, queries=10, long=True)
        entry = write_report(run, Path(scratch) / "report.html", k=scale(smoke=20, full=100))
    rows = {"queries": 10, "rows of each sign": scale(smoke=20, full=100), "tokens a row": 64}
    return Claim("report of 10 queries by 100 sequences, MB", entry.size / 1e6, 5.0, "lower", rows, full_only=True)


CLAIMS = [viewer_claims, report_size]


def _scored_run(folder: Path, seed: int, *, sequences: int, queries: int, long: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    influence = Influence(tiny_model(), modules=TRACKED, fisher="empirical")
    lengths = [64] * sequences if long else rng.integers(6, 15, size=sequences).tolist()
    texts = [_sequence(f"row-{i}", rng, length, kind=str(i % 7)) for i, length in enumerate(lengths)]
    asked = []
    for i in range(queries):
        one = _sequence(f"query-{i}", rng, 8)
        one.labels[:6] = -100
        cut = int(one.offsets[6, 0])  # type: ignore[index]
        one.metadata.update(prompt=one.text[:cut], completion=one.text[cut:])  # type: ignore[index]
        asked.append(one)
    influence.fit(texts[: min(2_000, sequences)], folder, progress=False, batch_tokens=8192)
    keep_corpus(folder, "train", texts)
    keep_corpus(folder, "queries", asked)
    settings = {"batch_tokens": 8192, "unit_size": 1024, "rank": None, "progress": False}
    influence.score(asked, texts, folder, per_token=True, per_layer=True, **settings)  # type: ignore[arg-type]
    return folder


def _sequence(name: str, rng: np.random.Generator, length: int, **metadata: str) -> Sequence:
    words = [f"{_WORDS[int(w)]} " for w in rng.integers(len(_WORDS), size=length)]
    ends = np.cumsum([len(word) for word in words]).astype(np.int32)
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int32)
    ids = rng.integers(VOCABULARY, size=length)
    return Sequence(name, name, ids, ids.copy(), "".join(words), spans, dict(metadata))


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[str]
    address: str
    host: str
    cookie: str


@contextmanager
def _served(run: Path, cache: Path) -> Iterator[_Server]:
    environment = {**os.environ, "HESSE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hesse.cli.main", "influence", "serve", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        found = re.search(r"http://(127\.0\.0\.1:\d+)/\?token=(\S+)", process.stderr.readline())
        if found is None:
            raise RuntimeError("the viewer did not start")
        host, token = found.groups()
        server = _Server(process, found.group(0), host, f"hesse-{host.partition(':')[2]}={token}")
        for _ in range(200):
            try:
                _get(server, "/static/app.js")  # nothing of the run is read by that
                break
            except OSError:
                time.sleep(0.05)  # the port is bound, and not yet listened at
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _get(server: _Server, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, timeout=60)
    try:
        connection.request("GET", path, headers={"Cookie": server.cookie})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _paints(server: _Server, count: int) -> list[float] | None:
    # from the address to a ranked row with its words in the window, each time in a browser that knows nothing
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        return None
    seconds = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(count):
            page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            begin = time.perf_counter()
            page.goto(server.address)
            page.wait_for_selector(".line .snippet")
            seconds.append(time.perf_counter() - begin)
            page.context.close()
        browser.close()
    return seconds


def _paint_claim(paints: list[float] | None, rows: dict[str, Any]) -> Claim:
    name = "first useful paint, s"
    if paints is None:
        return Claim(name, None, 1.0, "lower", rows, full_only=True, note="no playwright or no Chromium here")
    shown = {**rows, "each": [round(value, 3) for value in paints]}
    return Claim(name, max(paints), 1.0, "lower", shown, full_only=True)


class _Client:
    """Asks as a reader does: lists of any query, end, tag, word and depth; rows; now and then health and layers."""

    def __init__(self, server: _Server, rng: random.Random) -> None:
        self.server, self.rng = server, rng
        self.queries = [item["id"] for item in json.loads(_get(server, "/api/runs/run/queries")[1])["queries"]]
        first = f"/api/runs/run/list?{urllib.parse.urlencode({'query': self.queries[0]})}"
        while json.loads(_get(server, first)[1])["indexing"]:
            time.sleep(0.2)
        self.seen: list[tuple[str, str]] = []

    def list_path(self) -> str:
        query = self.rng.choice(self.queries)
        asked: dict[str, Any] = {"query": query, "sign": self.rng.choice([1, -1]), "limit": _PAGE}
        asked["offset"] = _PAGE * int(self.rng.expovariate(0.2))
        if self.rng.random() < 0.3:
            asked["text"] = " ".join(self.rng.sample(_WORDS, self.rng.choice([1, 2])))
        if self.rng.random() < 0.2:
            asked["where"] = f"kind:{self.rng.randrange(7)}"
        return f"/api/runs/run/list?{urllib.parse.urlencode(asked)}"

    def terms_path(self) -> str:
        query, row = self.rng.choice(self.seen)
        return f"/api/runs/run/terms?{urllib.parse.urlencode({'query': query, 'row': row})}"

    def ask(self, path: str) -> tuple[float, int]:
        begin = time.perf_counter()
        status, body = _get(self.server, path)
        seconds = time.perf_counter() - begin
        if status == 200 and "/list?" in path:
            query = urllib.parse.parse_qs(path.partition("?")[2])["query"][0]
            self.seen = [*self.seen[-2_000:], *((query, item["id"]) for item in json.loads(body)["items"])]
        return seconds, status

    def memory(self) -> int:
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


def _latency_claims(client: _Client, scale: Scale, rows: dict[str, Any]) -> list[Claim]:
    count = scale(smoke=30, full=1_000)
    lists = [client.ask(client.list_path())[0] for _ in range(count)]
    terms = [client.ask(client.terms_path())[0] for _ in range(count)]
    found = []
    for name, values, bar in (("list page, p95, ms", lists, 100.0), ("token view, p95, ms", terms, 150.0)):
        milliseconds = 1000 * np.array(values)
        more = {f"p{q}, ms": round(float(np.percentile(milliseconds, q)), 1) for q in (50, 95, 99)}
        more["slowest, ms"] = round(float(milliseconds.max()), 1)
        found.append(Claim(name, float(np.percentile(milliseconds, 95)), bar, "lower", rows | more, full_only=True))
    return found


def _memory_claim(client: _Client, scale: Scale, rows: dict[str, Any]) -> Claim:
    # after a warm-up in which every query was opened at both ends: what is kept is kept by then
    count = scale(smoke=60, full=10_000)
    for query in client.queries:
        for sign in (1, -1):
            client.ask(f"/api/runs/run/list?{urllib.parse.urlencode({'query': query, 'sign': sign})}")
    for _ in range(count // 10):
        client.ask(client.terms_path())
    before = client.memory()
    kinds = [client.list_path, client.terms_path, client.terms_path]
    statuses = [client.ask(kinds[i % 3]())[1] for i in range(count)]
    after = client.memory()
    more = {"requests": count, "not answered with 200": sum(status != 200 for status in statuses)}
    more |= {"before, MiB": round(before / 2**20, 1), "after, MiB": round(after / 2**20, 1)}
    return Claim("growth of memory over the requests", after / before - 1, 0.05, "lower", rows | more, full_only=True)


def _malformed_claim(client: _Client, scale: Scale, rows: dict[str, Any]) -> Claim:
    count = scale(smoke=100, full=5_000)
    rng = client.rng
    pages = ["list", "terms", "pair", "layers", "query", "queries", "ask", "..%2f", "%00", "health?", "x"]
    keys = ["query", "row", "sign", "target", "text", "where", "offset", "limit", "question", "tag", "count"]
    values = ["", "-1", "1e9", "nan", "\x00", "'; --", '"', "*", "a" * 5_000, "../..", "\ud7ff", "kind:", "9" * 20]
    statuses: dict[int, int] = {}
    for _ in range(count):
        asked = [(rng.choice(keys), rng.choice([*values, *client.queries])) for _ in range(rng.randrange(5))]
        path = f"/api/runs/{rng.choice(['run', 'run', 'nobody'])}/{rng.choice(pages)}?{urllib.parse.urlencode(asked)}"
        status = _get(client.server, path)[0]
        statuses[status] = statuses.get(status, 0) + 1
    broken = sum(number for status, number in statuses.items() if status >= 500)
    alive = client.server.process.poll() is None
    more = {"requests": count, "statuses": {str(k): v for k, v in sorted(statuses.items())}, "still alive": alive}
    return Claim("malformed requests that break it", float(broken + (not alive)), 0.0, "lower", rows | more)
