"""The HTML report: what it holds, that texts cannot act in it, and what redaction leaves out."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import ArgumentError
from hesse.influence.report import (
    Column,
    ReportData,
    ReportEntry,
    ReportQuery,
    ledger,
    token_scale,
    token_window,
    write_report,
)

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1>",
    "<!--<script>",
    "]]><!DOCTYPE x>",
    '"><a href="javascript:window.hacked=1">x</a>',
    "{{script}} {{data}} {{style}}",
    "\\u003c/script>",
    "\u2028\u2029\x00\x1b[31m\x07\x9b",
    "\u202eevil\u2066\u200b\ufeff",
    "&lt;b&gt;&amp;",
    "__proto__",
    "日本語 🙂 عربى",
    "a" * 50_000,
]


def entry(i, text, score=0.5, **more):
    return ReportEntry(f"row{i}", score, text, **more)


def report(entries, **more):
    query = ReportQuery("q1", "The prompt", " and completion", entries, [entry(9, "against", -0.1)])
    return ReportData("A title", [query], **more)


class Page(HTMLParser):
    """Scripts, styles and every attribute of a page, as a browser's tokenizer would see them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.scripts, self.styles, self.tags, self._inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if self._inside:
            getattr(self, f"{tag}s").append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            getattr(self, f"{self._inside}s")[-1] += data


def page_of(path):
    page = Page(path.read_text("utf-8"))
    return page, json.loads(page.scripts[0])


def test_the_data_comes_back_out(tmp_path):
    """Oracle: the entries put in."""
    tokens = ReportEntry("t", 0.25, None, ["a", " b"], [0.1, 0.15], [0.2, 0.05], {"source": "web"}, {"bm25": 3}, ["u"])
    data = report([tokens], layer_names=["h.0", "h.1"], columns=[Column("bm25", "BM25")], num_rows=7)
    write_report(data, tmp_path / "r.html")
    _, content = page_of(tmp_path / "r.html")
    (query,) = content["queries"]
    found = query["proponents"][0]
    assert (query["prompt"], query["completion"]) == ("The prompt", " and completion")
    assert (found["tokens"], found["values"], found["layers"]) == (["a", " b"], [0.1, 0.15], [0.2, 0.05])
    assert (found["extra"], found["copies"], found["metadata"]) == ({"bm25": 3}, ["u"], {"source": "web"})
    assert content["columns"] == [{"key": "bm25", "label": "BM25", "help": ""}]
    assert content["num_rows"] == 7


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_data(tmp_path, text):
    """Oracle: the parsed page has the same elements as one of harmless text, and gives the text back."""
    write_report(report([entry(0, "harmless", metadata={"k": "v"})]), tmp_path / "safe.html")
    hostile = ReportEntry(text, 0.5, text, metadata={text[:99]: text})
    data = report([hostile, ReportEntry("t", 0.1, None, [text, "b"], [0.1, 0.2])], settings={"model": text})
    data = ReportData(text, [ReportQuery(text, text, text, data.queries[0].proponents, [], text)], data.settings)
    write_report(data, tmp_path / "r.html", max_chars=100_000)
    safe, _ = page_of(tmp_path / "safe.html")
    page, content = page_of(tmp_path / "r.html")
    assert page.tags == safe.tags
    assert page.scripts[1:] == safe.scripts[1:]
    assert content["queries"][0]["proponents"][0]["text"] == text
    assert content["queries"][0]["prompt"] == text
    assert content["title"] == text


@given(st.text(alphabet=st.characters(), max_size=40))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_text_comes_back(tmp_path_factory, text):
    """Oracle: the text, lone surrogates included; only ASCII without <, > and & stands in the data element."""
    path = tmp_path_factory.mktemp("r") / "r.html"
    write_report(report([entry(0, text)]), path)
    page, content = page_of(path)
    assert content["queries"][0]["proponents"][0]["text"] == text
    assert page.scripts[0].isascii()
    assert not set("<>&") & set(page.scripts[0])


def test_the_policy_admits_this_script_and_nothing_else(tmp_path):
    """Oracle: SHA-256 of the script and style as parsed out of the page; no address to fetch from."""
    write_report(report([entry(0, "x")]), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind, content in (("script-src", page.scripts[1]), ("style-src", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[kind] == f"'sha256-{digest}'"
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert len(page.scripts) == 2
    assert len(page.styles) == 1
    assert not re.search(r"https?://|@import|url\(", text)
    assert not any(name.startswith("on") or name == "style" for _, attrs in page.tags for name in attrs)


def test_the_script_has_no_way_to_make_markup(tmp_path):
    """Oracle: none of the calls that turn text into elements or code occurs."""
    write_report(report([entry(0, "x")]), tmp_path / "r.html")
    page, _ = page_of(tmp_path / "r.html")
    for call in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert call not in page.scripts[1]
    for call in ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "import("):
        assert call not in page.scripts[1]


def test_redaction_leaves_ids_and_numbers(tmp_path):
    """Oracle: a secret put into every text field is nowhere in the file."""
    secret = ReportEntry("row1", 0.5, "SECRET", metadata={"k": "SECRET"})
    tokens = ReportEntry("row2", 0.4, None, ["SECRET"], [0.4], extra={"bm25": 1})
    data = ReportData("T", [ReportQuery("q", "SECRET", "SECRET", [secret, tokens], [], "SECRET")])
    write_report(data, tmp_path / "r.html", redact=True)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "SECRET" not in text
    _, content = page_of(tmp_path / "r.html")
    assert content["redacted"] is True
    assert [e["id"] for e in content["queries"][0]["proponents"]] == ["row1", "row2"]
    assert content["queries"][0]["proponents"][1]["score"] == 0.4


def test_long_texts_are_cut(tmp_path):
    """Oracle: lengths; tokens are kept around the strongest, and stay paired with their values."""
    values = [0.0] * 500
    values[400] = 1.0
    tokens = ReportEntry("t", 1.0, None, [f"{i:03d} " for i in range(500)], values)
    write_report(report([entry(0, "x" * 5000), tokens]), tmp_path / "r.html", max_chars=100)
    _, content = page_of(tmp_path / "r.html")
    plain, cut = content["queries"][0]["proponents"]
    assert plain["text"] == "x" * 100 + " …"
    assert len(cut["tokens"]) == len(cut["values"])
    assert "400 " in cut["tokens"]
    assert cut["values"][cut["tokens"].index("400 ")] == 1.0
    assert len("".join(cut["tokens"])) <= 104


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), room=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_window_holds_the_peak_and_cannot_grow(lengths, room, seed):
    """Oracle: a loop over the two neighbours: neither would still fit."""
    values = np.random.default_rng(seed).normal(size=len(lengths)).tolist()
    start, stop = token_window(lengths, values, room)
    assert start <= int(np.argmax(np.abs(values))) < stop
    used = sum(lengths[start:stop])
    assert stop - start == 1 or used <= room
    for neighbour in (start - 1, stop):
        if 0 <= neighbour < len(lengths):
            assert used + lengths[neighbour] > room


def test_the_colour_scale_is_robust():
    """Oracle: the 99th percentile of 1..1000 by counting; one outlier does not wash out the rest."""
    values = [float(i) for i in range(1, 1000)] + [1e9, 0.0]
    assert token_scale([ReportEntry("a", 1.0, None, [""] * len(values), values)]) == pytest.approx(991)
    assert token_scale([entry(0, "x")]) == 0


def test_the_ledger_follows_the_settings():
    """Oracle: what each setting makes approximate, written by hand."""
    plain = dict.fromkeys(text for _, text in ledger({"strategy": "ekfac", "fisher": "exact"}))
    assert not any("rank" in text for text in plain)
    both = ledger({"strategy": "kfac", "fisher": "empirical", "rank": 32, "refine_topk": 500, "blocks": 4,
                   "fitted_on": 10, "num_sequences": 1000})  # fmt: skip
    text = " ".join(line for kind, line in both if kind == "approximate")
    for part in ("Kronecker product", "biased", "rank 32", "500 strongest", "4 diagonal blocks", "10 of 1,000"):
        assert part in text
    assert any("unit learning" in line for _, line in ledger({"strategy": "identity"}))
    assert {kind for kind, _ in both} == {"exact", "approximate"}


def test_bad_data_is_refused(tmp_path):
    """Oracle: an error that says what is wrong; no file is left."""
    path = tmp_path / "r.html"
    for data, message in [
        (ReportData("T", []), "no query"),
        (report([ReportEntry("a", 1.0, None, ["x"], [1.0, 2.0])]), "1 tokens and 2 values"),
        (report([ReportEntry("a", 1.0, None, ["x"])]), "1 tokens and 0 values"),
        (report([entry(0, "x", layers=[1.0])], layer_names=["a", "b"]), "1 layer terms, not 2"),
        (report([entry(0, "x", score=float("nan"))]), "nan"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            write_report(data, path)
    with pytest.raises(ArgumentError, match="max_chars"):
        write_report(report([entry(0, "x")]), path, max_chars=0)
    assert not path.exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_browser_shows_hostile_texts_as_texts(tmp_path):
    """Oracle: the browser's own DOM: rows for every text, no element or script from one, the first row's panel open."""
    rows = [ReportEntry(f"r{i}", 1.0 / (i + 1), None, [text[:3000], "!"], [0.5, 0.5]) for i, text in enumerate(HOSTILE)]
    write_report(ReportData("T", [ReportQuery("q", "p", "c", rows, [])]), tmp_path / "r.html", max_chars=4000)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
        f"file://{tmp_path / 'r.html'}#open=0",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    page = Page(dom)
    assert sum(tag == "tr" and "row" in (a.get("class") or "").split() for tag, a in page.tags) == len(HOSTILE)
    assert any(tag == "div" and a.get("class") == "panel" for tag, a in page.tags)
    assert not {"img", "svg", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [a for tag, a in page.tags if tag == "a" and a.get("href") != "#main"]
    assert len(page.scripts) == 2
