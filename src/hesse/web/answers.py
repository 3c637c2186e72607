"""What the viewer reads of a run: its questions, and for each the ranked rows, their terms and the health of the fit.

Plain data out, ready for JSON. Everything is read when asked for; what is kept is bounded.   Shapes: R rows.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence import Corpus, find_corpus, open_scores
from hesse.influence.report import ledger
from hesse.influence.run import RunFolder, open_folder
from hesse.web.search import SearchIndex, search_folder

__all__ = ["Answers", "find_runs", "questions_of"]

_EXCERPT = 400  # characters of a text in a list
_ORDERS = 32  # rankings kept


def find_runs(paths: list[Path]) -> dict[str, Path]:
    """Find the runs at some paths, or one folder below them.

    Parameters
    ----------
    paths : list of Path
        Runs, or folders of runs.

    Returns
    -------
    dict of str to Path
        By a short name that is unique.

    Raises
    ------
    ArgumentError
        If there is none at a path.
    """
    found: dict[str, Path] = {}
    for path in paths:
        below = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
        runs = [candidate for candidate in (path, *below) if _is_run(candidate)]
        if not runs:
            raise ArgumentError(f"run: {path} is no run, and holds none; make one with `hesse influence fit`")
        for run in runs:
            name, number = run.resolve().name, 1
            while name in found:
                number += 1
                name = f"{run.resolve().name}-{number}"
            found[name] = run
    return found


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def questions_of(run: RunFolder) -> list[dict[str, Any]]:
    """List what a run has been asked, the latest first.

    Parameters
    ----------
    run : RunFolder
        A run.

    Returns
    -------
    list of dict
        id, done, queries' and data's marks, and which terms are kept.
    """
    latest = run.stage("score").get("latest")
    listed = []
    for name, state in run.manifest.stages.items():
        if name.startswith("score:"):
            folder = name.removeprefix("score:")
            keys = ("done", "rank", "refine_topk", "per_token", "per_layer", "units", "sequences")
            kept = {key: state.get(key) for key in keys} | {"per_query_token": bool(state.get("per_query_token"))}
            listed.append({"id": folder.removeprefix("scores/"), "latest": folder == latest, **kept})
    return sorted(listed, key=lambda item: not item["latest"])


class Answers:
    """One question of a run, opened.

    Parameters
    ----------
    path : Path
        The run.
    question : str, optional
        Its id. Default: the latest.
    cache : Path, optional
        Folder of search indexes. Default: `search_folder`.
    """

    def __init__(self, path: Path, question: str | None = None, cache: Path | None = None) -> None:
        self.run = open_folder(path)
        known = [item["id"] for item in questions_of(self.run)]
        if question is not None and question not in known:
            raise ArgumentError(f"question: this run was not asked {question!r}")
        self.scores = open_scores(self.run, None if question is None else f"scores/{question}")
        self.texts = find_corpus(path, self.scores.state["data"])
        self.asked = find_corpus(path, self.scores.state["queries"])
        self._lock = threading.Lock()  # requests are served by several threads
        self._orders: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()
        self.search: SearchIndex | None = None
        if self.texts is not None:
            self.search = SearchIndex(self.texts, self.scores.train_ids, cache or search_folder())
            self.search.start()

    def queries(self) -> list[dict[str, Any]]:
        """List the queries.

        Returns
        -------
        list of dict
            id, prompt, completion, and the strongest score of each sign.
        """
        listed = []
        for number, name in enumerate(self.scores.query_ids):
            row = self.scores.values[number]
            listed.append({"id": name, **self._prompt(name), "highest": float(row.max()), "lowest": float(row.min())})
        return listed

    def query(self, name: str) -> dict[str, Any]:
        """Describe one query, token by token.

        Parameters
        ----------
        name : str
            Its id.

        Returns
        -------
        dict
            id, prompt, completion, tokens, and targets: the places of the tokens that can be ranked by, or None.
        """
        targets = self.scores.targets(name)
        pieces = self.asked.pieces(name) if self.asked is not None and name in self.asked.ids else None
        return {"id": name, **self._prompt(name), "tokens": pieces, "targets": targets}

    def ranked(
        self,
        query: str,
        *,
        sign: int = 1,
        target: int | None = None,
        words: str = "",
        tags: Mapping[str, str] | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """List rows by their score, the strongest of a sign first, copies of one text as one.

        Parameters
        ----------
        query : str
            Id.
        sign : {1, -1}, default 1
            Proponents or opponents.
        target : int, optional
            Rank by the effect on one token.
        words : str, default ""
            Only rows that hold them.
        tags : mapping of str to str, optional
            Only rows whose metadata has these values.
        offset, limit : int
            Which part of the list.

        Returns
        -------
        dict
            total, widest (size of the strongest score of either sign), indexing, and items: rank, id, score, text (an
            excerpt), metadata, copies.

        Raises
        ------
        ArgumentError
            If something is unknown or out of range.
        """
        if sign not in (1, -1) or offset < 0 or not 1 <= limit <= 200:
            raise ArgumentError(
                f"list: expected sign 1 or -1, offset >= 0 and limit 1 to 200, got {sign, offset, limit}"
            )
        values = self.scores.ranked_by(query, target)
        order, groups = self._order(query, target, sign, values)
        mask = self._mask(words, tags or {})
        if mask is not None:
            order = order[mask[order]]
        copies: dict[int, int] = {}
        if groups is not None:
            firsts = groups[order]
            _, at, counts = np.unique(firsts, return_index=True, return_counts=True)
            kept = np.argsort(at, kind="stable")
            copies = {int(order[at[k]]): int(counts[k]) for k in kept[offset : offset + limit]}
            order = order[at[kept]]
        chosen = order[offset : offset + limit]
        items = [self._item(offset + i + 1, int(place), values, copies) for i, place in enumerate(chosen)]
        widest = float(np.abs(values).max()) if len(values) else 0.0
        indexing = self.search is not None and groups is None and self.search.error is None
        return {"total": len(order), "widest": widest, "indexing": indexing, "items": items}

    def terms(self, query: str, rows: list[str], target: int | None = None) -> list[dict[str, Any]]:
        """Read what scores are made of.

        Parameters
        ----------
        query : str
            Id.
        rows : list of str
            At most 50 ids.
        target : int, optional
            Of one token of the completion.

        Returns
        -------
        list of dict
            A row each: id, score, text, tokens and values, layers, metadata; None where they were not kept.

        Raises
        ------
        ArgumentError
            If an id is unknown, or there are too many.
        """
        if not 1 <= len(rows) <= 50:
            raise ArgumentError(f"rows: expected 1 to 50 ids, got {len(rows)}")
        values = self.scores.ranked_by(query, target)
        return [self._terms(query, row, target, values) for row in rows]

    def pair(self, query: str, row: str) -> dict[str, Any]:
        """Read the terms of one score, a token of the completion by a token of the row.

        Parameters
        ----------
        query, row : str
            Ids.

        Returns
        -------
        dict
            What `terms` says of the row, query (as of `query`), and pairs: a list a target, or None if not kept.
        """
        whole = self.query(query)
        parts = [self.scores.pairs(query, name) for name in self._sequences(row)]
        kept = [part for part in parts if part is not None]
        pairs = np.concatenate(kept, axis=1).tolist() if kept and len(kept) == len(parts) else None
        return {**self._terms(query, row, None, self.scores.ranked_by(query)), "query": whole, "pairs": pairs}

    def layers(self, query: str, *, sign: int = 1, count: int = 40, tag: str = "") -> dict[str, Any]:
        """Read the terms of the strongest rows, layer by layer.

        Parameters
        ----------
        query : str
            Id.
        sign : {1, -1}, default 1
            Which end.
        count : int, default 40
            Rows, at most 200.
        tag : str, default ""
            Group the rows by this key of their metadata, and take means.

        Returns
        -------
        dict
            names of layers, and rows: label, id, count, values; rows is None where layers were not kept.
        """
        found = self.ranked(query, sign=sign, limit=count)["items"]
        names = self.scores.layer_names
        lines: dict[str, list[np.ndarray]] = {}
        labels: dict[str, dict[str, Any]] = {}
        for item in found:
            terms = self.scores.layer_terms(query, item["id"])
            if terms is None:
                return {"names": names, "rows": None}
            label = str(item["metadata"].get(tag, "(none)")) if tag else item["id"]
            lines.setdefault(label, []).append(terms)
            labels.setdefault(label, {"label": label, "id": None if tag else item["id"], "text": item["text"]})
        rows = [
            {**labels[label], "count": len(parts), "values": np.mean(parts, axis=0).tolist()}
            for label, parts in lines.items()
        ]
        return {"names": names, "rows": rows}

    def settings(self) -> dict[str, Any]:
        """Collect the settings of fit and scores.

        Returns
        -------
        dict
            As in a report.
        """
        config, state = self.run.manifest.config, self.scores.state
        merged = {**config.get("info", {}), **{key: value for key, value in config.items() if key != "info"}}
        merged |= {key: state.get(key) for key in ("rank", "refine_topk", "units", "solver", "residual")}
        for key in ("model", "data"):
            # a folder's last part says enough; where things lie on this machine is nobody's business
            merged[key] = Path(merged[key]).name if Path(merged.get(key) or "").is_absolute() else merged.get(key)
        return merged

    @cached_property
    def ledger(self) -> list[tuple[str, str]]:
        """What is exact and what is approximate about the scores."""
        return ledger(self.settings())

    def _prompt(self, name: str) -> dict[str, str]:
        metadata = self.asked.metadata(name) if self.asked is not None and name in self.asked.ids else {}
        return {"prompt": metadata.get("prompt", ""), "completion": metadata.get("completion", "")}

    def _order(
        self, query: str, target: int | None, sign: int, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        key = (query, target, sign)
        with self._lock:
            order = self._orders.pop(key, None)
        if order is None:
            places = np.flatnonzero(sign * values > 0)
            order = places[np.argsort(-sign * values[places], kind="stable")]
        with self._lock:
            self._orders[key] = order
            while len(self._orders) > _ORDERS:
                self._orders.popitem(last=False)
        return order, None if self.search is None else self.search.groups

    def _mask(self, words: str, tags: Mapping[str, str]) -> np.ndarray | None:
        masks = []
        if words or tags:
            if self.search is None:
                raise ArgumentError("text: this run keeps no texts to search in")
            masks = [self.search.matching(words)] if words else []
            masks += [self.search.tagged(key, value) for key, value in tags.items()]
        return np.logical_and.reduce(masks) if masks else None

    def _item(self, rank: int, place: int, values: np.ndarray, copies: Mapping[int, int]) -> dict[str, Any]:
        name = self.scores.train_ids[place]
        text, metadata = None, {}
        if self.texts is not None:
            text = self.texts.row_text(name)
            metadata = self.texts.metadata(self.texts.sequences_of(name)[0])
        short = text if text is None or len(text) <= _EXCERPT else text[:_EXCERPT] + " …"
        number = copies.get(place, 1) - 1
        return {
            "rank": rank,
            "id": name,
            "score": float(values[place]),
            "text": short,
            "metadata": metadata,
            "copies": number,
        }

    def _sequences(self, row: str) -> list[str]:
        if self.texts is None:
            raise ArgumentError("row: this run keeps no texts")
        return self.texts.sequences_of(row)

    def _terms(self, query: str, row: str, target: int | None, values: np.ndarray) -> dict[str, Any]:
        places = self.scores.row_places
        if row not in places:
            raise ArgumentError(f"row: no {row!r} among the rows that were scored")
        found: dict[str, Any] = {"id": row, "score": float(values[places[row]]), "text": None, "metadata": {}}
        found |= {"tokens": None, "layers": None, "values": None}
        layers = self.scores.layer_terms(query, row) if target is None else None
        found["layers"] = None if layers is None else layers.tolist()
        texts: Corpus | None = self.texts
        if texts is None:
            return found
        names = texts.sequences_of(row)
        found |= {"text": texts.row_text(row), "metadata": texts.metadata(names[0])}
        found["tokens"] = [piece for name in names for piece in texts.pieces(name)]
        parts = [self._token_terms(query, name, target) for name in names]
        kept = [part for part in parts if part is not None]
        if len(kept) == len(parts):
            found["values"] = np.concatenate(kept).tolist()
        return found

    def _token_terms(self, query: str, sequence: str, target: int | None) -> np.ndarray | None:
        if target is None:
            return self.scores.tokens(query, sequence)
        pairs, known = self.scores.pairs(query, sequence), self.scores.targets(query)
        return None if pairs is None or known is None else pairs[known.index(target)]
