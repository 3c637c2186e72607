"""Texts and tokens that a run keeps, as the studies read them: whole rows, questions, words."""

import re
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.corpus import Corpus, find_corpus, split_pieces
from hesse.influence.opened import Run
from hesse.influence.sequences import IGNORED

__all__ = ["Asked", "asked_of", "query_tags", "row_texts", "row_tokens", "texts_of", "word_numbers", "words"]

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as text: ``prompt`` and ``completion`` together are what the model read."""

    id: str
    prompt: str
    completion: str
    input_ids: np.ndarray  # (T,)
    metadata: dict[str, Any]


def texts_of(run: Run, study: str) -> Corpus:
    """Return the texts of the scored rows.

    Parameters
    ----------
    run : Run
        Scored.
    study : str
        Who asks, for the message.

    Returns
    -------
    Corpus
        Of the data scored last.

    Raises
    ------
    ArgumentError
        If the run keeps none.
    """
    if run.corpus is None:
        raise ArgumentError(f"{study}: {run.folder.path} keeps no texts of the scored rows; see keep_corpus")
    return run.corpus


def asked_of(run: Run, study: str) -> list[Asked]:
    """Return the questions of the scores as text, in their order.

    Parameters
    ----------
    run : Run
        Scored.
    study : str
        Who asks, for the message.

    Returns
    -------
    list of Asked
        Q of them.

    Raises
    ------
    ArgumentError
        If the run does not keep them.
    """
    corpus = find_corpus(run.folder.path, run.scores.state["queries"])
    if corpus is None:
        raise ArgumentError(f"{study}: {run.folder.path} keeps no texts of the queries; see keep_corpus")
    return [_asked(corpus, name) for name in run.scores.query_ids]


def query_tags(run: Run, key: str) -> dict[str, str]:
    """Read one key of the metadata of the queries, such as their language.

    Parameters
    ----------
    run : Run
        Scored.
    key : str
        Of the lines of the queries' file.

    Returns
    -------
    dict of str to str
        Query id -> value, for the queries that have it.

    Raises
    ------
    ArgumentError
        If none has, or the run does not keep the queries.
    """
    tags = {asked.id: str(asked.metadata[key]) for asked in asked_of(run, "query_tags") if key in asked.metadata}
    if not tags:
        raise ArgumentError(f"queries: none of those of {run.folder.path} has a {key!r}; put it into their lines")
    return tags


def row_texts(corpus: Corpus, rows: Iterable[str], study: str) -> list[str]:
    """Return the texts of whole rows, white space as it is.

    Parameters
    ----------
    corpus : Corpus
        Of the scored data.
    rows : iterable of str
        Ids of rows.
    study : str
        Who asks, for the message.

    Returns
    -------
    list of str
        One a row.

    Raises
    ------
    ArgumentError
        If a row came as token ids without text.
    """
    texts = []
    for row in rows:
        text = corpus.row_text(row)
        if text is None:
            raise ArgumentError(f"{study}: row {row!r} has no text: it came as token ids without a tokenizer")
        texts.append(text)
    return texts


def row_tokens(corpus: Corpus, rows: Iterable[str]) -> list[np.ndarray]:
    """Return the token ids of whole rows, chunks put together.

    Parameters
    ----------
    corpus : Corpus
        Of the scored data.
    rows : iterable of str
        Ids of rows.

    Returns
    -------
    list of ndarray of int64
        One a row.
    """
    return [np.concatenate([corpus.sequence(name).input_ids for name in corpus.sequences_of(row)]) for row in rows]


def words(text: str) -> list[str]:
    """Cut a text into words and marks, white space gone, letters as they are.

    Parameters
    ----------
    text : str
        Anything.

    Returns
    -------
    list of str
        In order.
    """
    return _WORD.findall(text)


def word_numbers(*groups: Items[str]) -> list[list[np.ndarray]]:
    """Give words their numbers in one vocabulary, lower case, so that models with other tokenizers compare.

    Parameters
    ----------
    *groups : sequences of str
        Texts.

    Returns
    -------
    list of list of ndarray of int64
        A group each, a text each.
    """
    number: dict[str, int] = {}
    return [
        [np.array([number.setdefault(w, len(number)) for w in words(text.lower())], dtype=np.int64) for text in group]
        for group in groups
    ]


def _asked(corpus: Corpus, name: str) -> Asked:
    sequence = corpus.sequence(name)
    if {"prompt", "completion"} <= sequence.metadata.keys():  # as its author wrote it
        prompt, completion = (str(sequence.metadata[key]) for key in ("prompt", "completion"))
    elif sequence.text is None or sequence.offsets is None:
        prompt = completion = ""
    else:
        pieces = split_pieces(sequence.text, sequence.offsets)
        first = int(np.argmax(sequence.labels != IGNORED))
        prompt, completion = "".join(pieces[:first]), "".join(pieces[first:])
    return Asked(name, prompt, completion, sequence.input_ids, sequence.metadata)
