"""One self-contained HTML file that shows which training sequences moved each query: no network, no script from texts.

`collect` reads a run into plain data, `write_report` puts that data into a page. Data is inlined as JSON that cannot
end its script element, the page shows it through ``textContent`` alone, and its policy admits this script only.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.corpus import Corpus, find_corpus
from hesse.influence.run import open_folder
from hesse.influence.scores import Scores, open_scores
from hesse.io import FileEntry, atomic_write_bytes

__all__ = [
    "Column",
    "ReportData",
    "ReportEntry",
    "ReportQuery",
    "collect",
    "ledger",
    "token_scale",
    "token_window",
    "write_report",
]

Cell: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True)
class Column:
    """A further column of the tables, such as another method's rank; ``key`` names it in `ReportEntry.extra`."""

    key: str
    label: str
    help: str = ""


@dataclass(frozen=True)
class ReportEntry:
    """One training row in a list. ``tokens`` put together are the text; ``values`` has a term of the score a token."""

    id: str
    score: float  # nats
    text: str | None = None
    tokens: list[str] | None = None
    values: list[float] | None = None
    layers: list[float] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Cell] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)  # ids of other rows with the same text


@dataclass(frozen=True)
class ReportQuery:
    """One question with its strongest proponents and opponents, strongest first."""

    id: str
    prompt: str
    completion: str
    proponents: list[ReportEntry]
    opponents: list[ReportEntry]
    note: str = ""


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. ``settings`` are the lines of the method card, and shape its `ledger`."""

    title: str
    queries: list[ReportQuery]
    settings: dict[str, Any] = field(default_factory=dict)
    layer_names: list[str] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    num_rows: int | None = None


def collect(
    run_dir: Path | str, *, k: int = 20, queries: Items[str] | None = None, collapse: bool = True
) -> ReportData:
    """Read the latest scores of a run, with the texts it keeps, into plain data.

    Parameters
    ----------
    run_dir : Path or str
        A run that has been scored.
    k : int, default 20
        Proponents and opponents a query.
    queries : sequence of str, optional
        Ids. Default: all.
    collapse : bool, default True
        Show rows with the same text as one that counts the others, so that copies do not fill the list.

    Returns
    -------
    ReportData
        Token and layer terms where the scores have them.

    Raises
    ------
    ArgumentError
        If nothing has been scored, a query is unknown, or ``k < 1``.
    ArtifactError
        If a file of the run is damaged.
    """
    if k < 1:
        raise ArgumentError(f"k: expected >= 1, got {k}")
    run = open_folder(run_dir)
    scores = open_scores(run)
    info = scores.state.get("info", {})
    texts, asked = (find_corpus(run_dir, scores.state[key]) for key in ("data", "queries"))
    layers = scores.layers
    place = {name: i for i, name in enumerate(scores.train_ids)}
    wanted = list(scores.query_ids if queries is None else queries)
    found = []
    for query in wanted:
        if query not in scores.query_ids:
            raise ArgumentError(f"queries: no {query!r} in this run; it has {', '.join(scores.query_ids[:5])}")
        number = scores.query_ids.index(query)
        lists = []
        for sign in (1, -1):
            most = 4 * k if collapse else k
            ranked = scores.topk(number, most if scores.top_k is None else min(most, scores.top_k), sign)
            entries = [_entry(item.id, item.score, texts) for item in ranked]
            kept = (_collapse(entries) if collapse else entries)[:k]
            lists.append([_with_terms(entry, scores, number, texts, layers, place[entry.id]) for entry in kept])
        metadata = asked.metadata(query) if asked is not None and query in asked.ids else {}
        found.append(ReportQuery(query, metadata.get("prompt", ""), metadata.get("completion", ""), *lists))
    settings = {**run.manifest.config.get("info", {}), **{k: v for k, v in run.manifest.config.items() if k != "info"}}
    settings |= {key: scores.state.get(key) for key in ("rank", "refine_topk", "units", "solver", "residual")}
    settings["data"] = info.get("data") or settings.get("data")
    for key in ("model", "data"):
        # a folder's last part says enough: reports travel, and where things lay on this machine is nobody's business
        settings[key] = Path(settings[key]).name if Path(settings.get(key) or "").is_absolute() else settings.get(key)
    return ReportData(
        title=f"Influence on {settings['model'] or 'a model'}",
        queries=found,
        settings=settings,
        layer_names=scores.layer_names if layers is not None else [],
        num_rows=len(scores.train_ids) if scores.top_k is None else scores.state["sequences"],
    )


def write_report(
    source: ReportData | Path | str,
    path: Path | str,
    *,
    k: int = 20,
    redact: bool = False,
    max_chars: int = 2000,
) -> FileEntry:
    """Write one HTML file that opens anywhere, offline.

    Parameters
    ----------
    source : ReportData, or path of a run
        What to show.
    path : Path or str
        The file; replaced if it exists.
    k : int, default 20
        Proponents and opponents a query, if ``source`` is a run.
    redact : bool, default False
        Leave out every text, token and metadata, and show ids and numbers only.
    max_chars : int, default 2000
        Longer texts are cut to about this length around their strongest token. It bounds what is disclosed.

    Returns
    -------
    FileEntry
        Size and checksum of the file.

    Raises
    ------
    ArgumentError
        If there is no query, tokens and values differ in number, or ``max_chars < 1``.
    WriteError
        If the operating system refuses.
    """
    if max_chars < 1:
        raise ArgumentError(f"max_chars: expected >= 1, got {max_chars}")
    data = source if isinstance(source, ReportData) else collect(source, k=k)
    _check(data)
    page = _redacted(data) if redact else _shortened(data, max_chars)
    content = {**asdict(page), "redacted": redact, "ledger": ledger(page.settings), "caveats": list(CAVEATS)}
    content["settings"] = _settings_table(page.settings)
    static = files("hesse.influence") / "static"
    style, html = ((static / name).read_text("utf-8") for name in ("report.css", "report.html"))
    script = _bundled([(static / name).read_text("utf-8") for name in ("text.js", "terms.js", "report.js")])
    parts = {
        "{{policy}}": _policy(style, script),
        "{{style}}": style,
        "{{script}}": script,
        "{{data}}": _inline_json(content),
    }
    # one pass over the template, so that a placeholder inside inserted data stays text
    pieces = re.split(r"(\{\{\w+\}\})", html)
    return atomic_write_bytes(path, "".join(parts.get(piece, piece) for piece in pieces).encode())


def ledger(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what is exact and what is approximate about the scores of a run.

    Parameters
    ----------
    settings : mapping
        ``strategy``, ``fisher``, ``rank``, ``refine_topk``, ``blocks``, ``fitted_on``, ``num_sequences``, ``solver``,
        ``residual`` as in a run.

    Returns
    -------
    list of (str, str)
        ("exact" or "approximate", one sentence).
    """
    strategy, rank, solver = settings.get("strategy", "ekfac"), settings.get("rank"), settings.get("solver")
    first_order, *others = _APPROXIMATE
    about = (first_order, *(_ALONG if strategy == "source" else others), _PART)
    rows = [("exact", text) for text in _EXACT] + [("approximate", text) for text in about]
    if solver:
        worst = max(settings.get("residual") or [0.0])
        rows.append(
            (
                "approximate",
                f"Each query solved by {solver['name']}, {solver['steps']} steps at most, with the curvature of all "
                f"tracked matrices together; relative residual {worst:.2g} at most.",
            )
        )
    else:
        rows.append(("approximate", _SEPARATE))
        rows.append(("approximate", _STRATEGIES.get(strategy, f"Curvature within a block: {strategy}.")))
    if strategy != "identity" and not solver:
        rows.append(
            (
                "approximate" if settings.get("fisher") != "exact" else "exact",
                _FISHERS[settings.get("fisher") or "sampled"],
            )
        )
    if (settings.get("blocks") or 1) > 1:
        rows.append(("approximate", f"Each Kronecker factor is cut into {settings['blocks']} diagonal blocks."))
    seen, total = settings.get("fitted_on"), settings.get("num_sequences")
    if seen and total and seen < total:
        rows.append(("approximate", f"The curvature was measured on {seen:,} of {total:,} sequences."))
    if rank:
        again = settings.get("refine_topk") or 0
        refined = f" The {again:,} strongest of each sign were scored again at full rank." if again else ""
        rows.append(("approximate", f"Each query's gradient is kept at rank {rank} per matrix.{refined}"))
    return rows


def token_scale(entries: Items[ReportEntry]) -> float:
    """Return the size that 99 % of the token terms of a list stay below: its colours' full strength.

    Parameters
    ----------
    entries : sequence of ReportEntry
        One list, so that its rows compare. Zeros do not count.

    Returns
    -------
    float
        In nats; 0 if there are no token terms.
    """
    sizes = sorted(abs(v) for entry in entries for v in entry.values or () if v)
    return sizes[min(len(sizes) - 1, int(0.99 * len(sizes)))] if sizes else 0.0


def token_window(lengths: Items[int], values: Items[float], max_chars: int) -> tuple[int, int]:
    """Find the run of tokens around the strongest one that fits into so many characters.

    Parameters
    ----------
    lengths : sequence of int
        Characters a token, at least one token.
    values : sequence of float
        A term of the score a token.
    max_chars : int
        Room; the strongest token is in, whatever its length.

    Returns
    -------
    (int, int)
        First token, and one past the last.
    """
    start = int(np.argmax(np.abs(values)))
    stop, room = start + 1, max_chars - lengths[start]
    while True:
        before = start > 0 and lengths[start - 1] <= room
        if before:
            start -= 1
            room -= lengths[start]
        after = stop < len(lengths) and lengths[stop] <= room
        if after:
            room -= lengths[stop]
            stop += 1
        if not before and not after:
            return start, stop


_EXACT = (
    "The arithmetic: linear algebra inside each block, and the sum over tokens and layers, which is the score.",
    "Units and sign: nats of log-probability of the completion for one more copy of the row; positive raises it.",
)
_APPROXIMATE = (
    "First order: the effect of a small change in a row's weight, extended in a straight line to a whole copy.",
    "Gauss-Newton curvature in place of the Hessian, damped.",
    "Local: it asks how the final weights would respond, and knows nothing of the path that training took to them.",
)
_ALONG = (
    "Gauss-Newton curvature in place of the Hessian, not damped.",
    "Training in segments: within each, gradients and curvature are averages over a few checkpoints, and a batch "
    "counts as the mean over all rows.",
)
_PART = "Part of the model: only the tracked matrices can move, everything else is held fixed."
_SEPARATE = "Each weight matrix by itself: curvature between matrices is left out."
_STRATEGIES = {
    "ekfac": "Within a block: the Kronecker factors' eigenvectors, with eigenvalues measured along each of them.",
    "kfac": "Within a block: a Kronecker product of two factors, tokens taken as independent.",
    "shampoo": "Within a block: eigenvectors of the gradients' second moments on either side, with eigenvalues "
    "measured along each of them.",
    "diagonal": "Within a block: the diagonal only.",
    "source": "Within a block of a segment: the Kronecker factors' eigenvectors, with eigenvalues measured along each.",
    "identity": "No curvature: the dot product of two gradients. A score is the change after one gradient step "
    "of unit learning rate on the row's share of the objective.",
}
_FISHERS = {
    "sampled": "Curvature from labels drawn from the model's own predictions: right on average, with sampling noise.",
    "empirical": "Curvature from the data's labels (the empirical Fisher), which is biased.",
    "exact": "Curvature from all labels, weighted by the model's own predictions.",
}
CAVEATS = (
    "A score is not what retraining without the row would show. It is how the trained model would shift, close to its "
    "present weights and predictions, if the row weighed a little more.",
    "Colour on a token is the effect of the update made at that position of the network. Losses of all later tokens "
    "reach it through attention, so it does not mean “trained to predict this token”; what predicts a token sits one "
    "place before it.",
    "A layer's bar is its share of a sum. It does not say what would happen if that layer were removed.",
    "Influence is spread thin: most completions rest on many rows, each worth a small part of a nat.",
)


def _bundled(modules: Items[str]) -> str:
    # the viewer loads these as modules; one file that opens from a disk must carry them as one script
    joined = "".join(modules)
    return '"use strict";\n' + re.sub(r"^(import .*;\n|export (?=function|const))", "", joined, flags=re.MULTILINE)


def _entry(row: str, score: float, texts: Corpus | None) -> ReportEntry:
    if texts is None:
        return ReportEntry(row, score)
    return ReportEntry(row, score, texts.row_text(row), metadata=texts.metadata(texts.sequences_of(row)[0]))


def _with_terms(
    entry: ReportEntry, scores: Scores, query: int, texts: Corpus | None, layers: np.ndarray | None, place: int
) -> ReportEntry:
    if layers is not None:
        entry = replace(entry, layers=layers[query, place].tolist())
    if texts is None or not scores.state["per_token"]:
        return entry
    names = texts.sequences_of(entry.id)
    terms = [scores.tokens(query, name) for name in names]
    tokens = [piece for name in names for piece in texts.pieces(name)]
    return replace(entry, tokens=tokens, values=[float(v) for part in terms if part is not None for v in part])


def _collapse(entries: list[ReportEntry]) -> list[ReportEntry]:
    # rows with the same text, whatever its white space, become one line that counts the others
    kept: dict[str, ReportEntry] = {}
    for entry in entries:
        key = f"id {entry.id}" if entry.text is None else f"text {' '.join(entry.text.split())}"
        if key in kept:
            kept[key] = replace(kept[key], copies=[*kept[key].copies, entry.id])
        else:
            kept[key] = entry
    return list(kept.values())


def _check(data: ReportData) -> None:
    if not data.queries:
        raise ArgumentError("report: there is no query to show")
    for query in data.queries:
        for entry in (*query.proponents, *query.opponents):
            if (entry.tokens is None) != (entry.values is None) or len(entry.tokens or []) != len(entry.values or []):
                counts = f"{len(entry.tokens or [])} tokens and {len(entry.values or [])} values"
                raise ArgumentError(f"report: row {entry.id!r} has {counts}")
            if entry.layers is not None and len(entry.layers) != len(data.layer_names):
                counts = f"{len(entry.layers)} layer terms, not {len(data.layer_names)}"
                raise ArgumentError(f"report: row {entry.id!r} has {counts}")


def _map_entries(data: ReportData, change: Any) -> ReportData:
    queries = [
        replace(q, proponents=[change(e) for e in q.proponents], opponents=[change(e) for e in q.opponents])
        for q in data.queries
    ]
    return replace(data, queries=queries)


def _redacted(data: ReportData) -> ReportData:
    bare = _map_entries(data, lambda e: replace(e, text=None, tokens=None, values=None, metadata={}))
    return replace(bare, queries=[replace(q, prompt="", completion="", note="") for q in bare.queries])


def _shortened(data: ReportData, max_chars: int) -> ReportData:
    def shorten(entry: ReportEntry) -> ReportEntry:
        rounded = None if entry.layers is None else [_round(v) for v in entry.layers]
        entry = replace(entry, layers=rounded, metadata={k: str(v)[:max_chars] for k, v in entry.metadata.items()})
        if entry.tokens and entry.values:
            start, stop = token_window([len(t) for t in entry.tokens], entry.values, max_chars)
            tokens, values = entry.tokens[start:stop], [_round(v) for v in entry.values[start:stop]]
            if start > 0:
                tokens, values = ["… ", *tokens], [0.0, *values]
            if stop < len(entry.tokens):
                tokens, values = [*tokens, " …"], [*values, 0.0]
            return replace(entry, text=None, tokens=[t[: max_chars + 2] for t in tokens], values=values)
        long = entry.text is not None and len(entry.text) > max_chars
        return replace(entry, text=f"{(entry.text or '')[:max_chars]} …") if long else entry

    return _map_entries(data, shorten)


def _round(value: float) -> float:
    return float(f"{value:.4g}")  # what a reader sees; it makes the file several times smaller


def _settings_table(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels = {
        "model": "Model", "revision": "Revision", "data": "Training data", "num_sequences": "Sequences (N)",
        "fitted_on": "Curvature from", "max_length": "Tokens a sequence", "strategy": "Curvature", "fisher": "Labels",
        "damping": "Damping", "positions": "Positions", "rank": "Query rank", "refine_topk": "Scored again",
        "layers": "Matrices", "dtype": "Precision", "seed": "Seed",
    }  # fmt: skip
    rows = []
    for key, label in labels.items():
        value = settings.get(key)
        if key == "layers" and isinstance(value, (list, tuple)):
            value = f"{len(value)} matrices"
        elif key == "damping" and value is not None:
            written = str(value)
            value = f"{written[4:]} absolute" if written.startswith("abs:") else f"{written} × mean eigenvalue"
        elif key == "rank" and value is None and "rank" in settings:
            value = "full"
        if value is not None and value != "":
            rows.append((label, f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)))
    return rows


def _inline_json(content: Any) -> str:
    # ASCII only, so no U+2028; and without <, > and & nothing in it can end or change the element around it
    text = json.dumps(_finite(content), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        raise ArgumentError(f"report: a number is {value}, and cannot be shown")
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    sources = f"script-src {digest(script)}; style-src {digest(style)}; img-src data:"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
