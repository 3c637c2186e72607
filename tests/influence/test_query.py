"""Queries: reading and tokenising."""

import json
import re

import pytest

from hesse.errors import ArgumentError
from hesse.influence.query import Query, read_queries, tokenize_query


class CharacterTokenizer:
    """One token a character."""

    is_fast = True

    def __call__(self, texts, **_):
        return {
            "input_ids": [[ord(c) for c in t] for t in texts],
            "offset_mapping": [[(i, i + 1) for i in range(len(t))] for t in texts],
        }


def test_queries_are_read_with_metadata(tmp_path):
    """Oracle: the lines written."""
    path = tmp_path / "q.jsonl"
    lines = [{"id": "a", "prompt": "p", "completion": "c", "fact": 3}, {"id": 2, "prompt": "", "completion": "d"}]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    assert read_queries(path) == [Query("a", "p", "c", {"fact": 3}), Query("2", "", "d")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "p", "completion": "c"}, "'id' is missing"),
        ({"id": "b", "completion": "c"}, "'prompt' is missing"),
        ({"id": "b", "prompt": "p"}, "'completion' is missing"),
        ({"id": "b", "prompt": "p", "completion": ""}, "query 'b': the completion is empty"),
        ({"id": "b", "prompt": 1, "completion": "c"}, "prompt must be a string"),
        ({"id": None, "prompt": "p", "completion": "c"}, "id must be a string"),
        ({"id": "a", "prompt": "p", "completion": "c"}, "'a' was used before, at .*:1"),
    ],
)
def test_a_bad_query_is_named(tmp_path, line, message):
    """Oracle: the message names file, line and fault."""
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "p", "completion": "c"}) + "\n" + json.dumps(line))
    with pytest.raises(ArgumentError, match=re.escape(f"{path}:2: ") + f".*{message}"):
        read_queries(path)


def test_a_missing_or_empty_file_is_refused(tmp_path):
    """Oracle: an error that names the path."""
    (tmp_path / "q.jsonl").touch()
    for name in ("q.jsonl", "none.jsonl"):
        with pytest.raises(ArgumentError, match=re.escape(name)):
            read_queries(tmp_path / name)


def test_only_the_completion_is_supervised():
    """Oracle: one token a character, so the border is the prompt's length."""
    sequence = tokenize_query(Query("q", "abc", "de", {"fact": 1}), CharacterTokenizer(), 8)
    assert sequence.labels.tolist() == [-100, -100, -100, ord("d"), ord("e")]
    assert (sequence.id, sequence.text) == ("q", "abcde")
    assert sequence.metadata == {"fact": 1, "prompt": "abc", "completion": "de"}


def test_bad_queries_are_refused():
    """Oracle: an error that names the query."""
    with pytest.raises(ArgumentError, match="query 'q': the completion is empty"):
        Query("q", "abc", "")
    with pytest.raises(ArgumentError, match="query 'q': it has 5 tokens"):
        tokenize_query(Query("q", "abc", "de"), CharacterTokenizer(), 4)
    with pytest.raises(ArgumentError, match=r"query 'q'.*give a prompt"):
        tokenize_query(Query("q", "", "d"), CharacterTokenizer(), 4)
