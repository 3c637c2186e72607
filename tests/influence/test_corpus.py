"""Texts kept in a run: written, read back, and refused when damaged."""

import datetime
import os
import shutil
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.corpus import find_corpus, keep_corpus, open_corpus, save_corpus, split_pieces
from hesse.influence.run import open_folder
from hesse.influence.sequences import Sequence, fingerprint, tokenize_rows
from hesse.io import Manifest, calls, verify_run, write_manifest

ROWS = [
    {"id": "a", "text": "hello\n<script>", "source": "web"},
    {"id": "b", "input_ids": [1, 2, 3], "labels": [-100, -100, 3]},
    {"id": "ü/../x", "text": "\u2028\x1b[31m", "n": float("nan"), "when": datetime.date(2026, 1, 2), "v": np.ones(2)},
]


class CharacterTokenizer:
    """One token a character."""

    is_fast = True

    def __call__(self, texts, **_):
        return {
            "input_ids": [[ord(c) for c in t] for t in texts],
            "offset_mapping": [[(i, i + 1) for i in range(len(t))] for t in texts],
        }

    def batch_decode(self, tokens):
        return [f"<{token}>" for (token,) in tokens]


def kept(folder, sequences, name="train"):
    write_manifest(folder, Manifest("influence-run", {}, files=save_corpus(folder, name, sequences)))
    return open_corpus(folder, name)


def test_a_corpus_is_read_back(tmp_path):
    """Oracle: the sequences that were saved."""
    sequences = tokenize_rows(ROWS, CharacterTokenizer(), 5)
    corpus = kept(tmp_path, sequences)
    assert corpus.ids == [s.id for s in sequences]
    assert corpus.rows == [s.row for s in sequences]
    assert len(corpus) == len(sequences) > len(ROWS)
    assert fingerprint(corpus.sequences()) == fingerprint(sequences)
    for saved in sequences:
        read = corpus.sequence(saved.id)
        assert read.text == saved.text == corpus.text(saved.id)
        np.testing.assert_array_equal(read.labels, saved.labels)
        np.testing.assert_array_equal(read.offsets, saved.offsets)
        assert "".join(corpus.pieces(saved.id)) == saved.text
    for row in ROWS:
        if "text" in row:
            assert corpus.row_text(row["id"]) == row["text"]


def test_metadata_is_kept_as_json(tmp_path):
    """Oracle: written by hand; what JSON has no word for is kept as text."""
    corpus = kept(tmp_path, tokenize_rows(ROWS, CharacterTokenizer(), 50))
    assert corpus.metadata("a") == {"source": "web"}
    assert corpus.metadata("ü/../x") == {"n": "nan", "when": "2026-01-02", "v": [1.0, 1.0]}


def test_token_rows_without_text_have_numbered_pieces(tmp_path):
    """Oracle: written by hand."""
    corpus = kept(tmp_path, tokenize_rows(ROWS[1:2], None, 50))
    assert corpus.text("b") is None
    assert corpus.row_text("b") is None
    assert corpus.pieces("b") == ["[1]", "[2]", "[3]"]


@given(
    text=st.text(max_size=20),
    spans=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=8),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_pieces_are_the_text_whatever_the_spans(text, spans):
    """Oracle: an identity: T pieces, joined, are the text."""
    pieces = split_pieces(text, np.array(spans))
    assert len(pieces) == len(spans)
    assert "".join(pieces) == text


def test_special_tokens_have_empty_pieces():
    """Oracle: written by hand: <s> "the" " cat" </s>."""
    assert split_pieces("the cat", np.array([(0, 0), (0, 3), (3, 7), (0, 0)])) == ["", "the", " cat", ""]


def test_bad_arguments_are_refused(tmp_path):
    """Oracle: an error that names the argument."""
    sequences = tokenize_rows(ROWS[:1], CharacterTokenizer(), 50)
    for name in ("", "../x", "a/b", "x" * 65):
        with pytest.raises(ArgumentError, match="name"):
            save_corpus(tmp_path, name, sequences)
    with pytest.raises(ArgumentError, match="twice"):
        save_corpus(tmp_path, "train", sequences * 2)
    with pytest.raises(ArgumentError, match="nothing"):
        save_corpus(tmp_path, "train", [])
    shifted = Sequence("a", "a", np.array([1, 2]), np.array([2, -100]))
    with pytest.raises(ArgumentError, match="labels"):
        save_corpus(tmp_path, "train", [shifted])
    corpus = kept(tmp_path, sequences)
    with pytest.raises(ArgumentError, match="'nope'"):
        corpus.text("nope")
    with pytest.raises(ArgumentError, match="'nope'"):
        corpus.sequences_of("nope")
    with pytest.raises(ArgumentError, match="'queries'"):
        open_corpus(tmp_path, "queries")
    with pytest.raises(ArtifactError):
        open_corpus(tmp_path / "elsewhere", "train")


def test_texts_are_found_by_their_fingerprint(tmp_path):
    """Oracle: two sets of texts kept under names of their own; the same ones again change nothing."""
    write_manifest(tmp_path, Manifest("influence-run", {}))
    sets = [tokenize_rows(rows, CharacterTokenizer(), 50) for rows in (ROWS[:2], ROWS[2:])]
    for name, sequences in zip(("train", "queries-1"), sets, strict=True):
        keep_corpus(tmp_path, name, sequences)
    before = (tmp_path / "manifest.json").read_bytes()
    keep_corpus(tmp_path, "train", sets[0])
    assert (tmp_path / "manifest.json").read_bytes() == before
    for sequences in sets:
        assert find_corpus(tmp_path, fingerprint(sequences)).ids == [s.id for s in sequences]
    assert find_corpus(tmp_path, "0" * 32) is None
    keep_corpus(tmp_path, "train", sets[1])
    assert open_corpus(tmp_path, "train").ids == [s.id for s in sets[1]]


def test_a_corpus_is_replaced_whole_or_not_at_all(tmp_path):
    """Oracle: killed before the n-th call to the file system, for every n: the old texts or the new ones, verified."""
    sets = [tokenize_rows(rows, CharacterTokenizer(), 50) for rows in (ROWS[:2], ROWS[2:])]
    known = [[s.id for s in sequences] for sequences in sets]
    write_manifest(tmp_path / "run", Manifest("influence-run", {}))
    keep_corpus(tmp_path / "run", "train", sets[0])
    seen, number = [], 0
    while True:
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", run)
        finished = _killed_at(number, lambda run=run: keep_corpus(run, "train", sets[1]))
        seen.append(known.index(open_corpus(run, "train").ids))
        bad = [p.path for p in verify_run(run) if p.path in open_folder(run).manifest.files]
        assert bad == []
        keep_corpus(run, "train", sets[1])
        assert open_corpus(run, "train").ids == known[1]
        if finished:
            break
        number += 1
    assert set(seen) == {0, 1}
    assert number > 10
    assert verify_run(run) == []


def _killed_at(number, work) -> bool:
    # in a child that SIGKILLs itself before the number-th call; true if it came to its end
    pid = os.fork()
    if pid == 0:
        count = -1

        def dying(call):
            def counted(*arguments):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)

            return counted

        for name in ("create", "write", "sync", "rename", "remove", "make_folder"):
            setattr(calls, name, dying(getattr(calls, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def test_an_open_corpus_that_was_replaced_says_so(tmp_path):
    """Oracle: the advice in the message; one that has been read from goes on reading the old texts."""
    sets = [tokenize_rows(rows, CharacterTokenizer(), 50) for rows in (ROWS[:1], ROWS[2:])]
    write_manifest(tmp_path, Manifest("influence-run", {}))
    keep_corpus(tmp_path, "train", sets[0])
    untouched, read = open_corpus(tmp_path, "train"), open_corpus(tmp_path, "train")
    assert read.text("a") == ROWS[0]["text"]
    keep_corpus(tmp_path, "train", sets[1])
    assert read.text("a") == ROWS[0]["text"]
    with pytest.raises(ArtifactError, match="open it again"):
        untouched.text("a")


@pytest.mark.parametrize("file", ["texts", "tokens"])
def test_damage_is_noticed(tmp_path, file):
    """Oracle: one flipped byte, or a missing file, is refused with the exit code of a damaged artifact."""
    kept(tmp_path, tokenize_rows(ROWS, CharacterTokenizer(), 50))
    (path,) = (tmp_path / "corpus" / "train").glob(f"{file}-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=file) as caught:
        open_corpus(tmp_path, "train")
    assert caught.value.exit_code == 3
    path.unlink()
    with pytest.raises(ArtifactError, match=file):
        open_corpus(tmp_path, "train")
