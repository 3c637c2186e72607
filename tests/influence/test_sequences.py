"""Tokenising, chunking, hashing and padding. The tokenizer is byte-level BPE trained here: no network."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import ArgumentError, HesseError
from hesse.influence.sequences import IGNORED, collate, encode_pair, fingerprint, tokenize_rows

WORDS = "the capital of france is paris and the capital of italy is rome . a cat sat on the mat "


def make_tokenizer(*, bos=False):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([WORDS] * 20, trainer)
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_text_rows_supervise_all_but_the_first_token(tokenizer):
    """Oracle: the tokenizer's plain call."""
    (sequence,) = tokenize_rows([{"id": "a", "text": WORDS, "source": "s"}], tokenizer, 512)
    expected = np.array(tokenizer(WORDS)["input_ids"])
    np.testing.assert_array_equal(sequence.input_ids, expected)
    assert sequence.labels[0] == IGNORED
    np.testing.assert_array_equal(sequence.labels[1:], expected[1:])
    assert (sequence.id, sequence.row, sequence.text, sequence.metadata) == ("a", "a", WORDS, {"source": "s"})
    assert sequence.input_ids.dtype == sequence.labels.dtype == np.int64


def test_default_special_tokens_are_kept():
    """Oracle: a tokenizer that puts <s> (id 0) first; it is context, never a target."""
    tokens = tokenize_rows([{"id": "a", "text": "the cat"}], make_tokenizer(bos=True), 64)[0]
    assert tokens.input_ids[0] == 0
    assert (tokens.labels != IGNORED).sum() == len(tokens) - 1
    pair, labels, _ = encode_pair("query", "", "the cat", make_tokenizer(bos=True))
    np.testing.assert_array_equal(labels[1:], pair[1:])


@given(
    text=st.text(min_size=1, max_size=60).filter(lambda t: t.encode("utf-8", "ignore").decode() == t),
    T=st.integers(2, 9),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_chunks_partition_the_row(text, T):
    """Oracle: chunks put end to end give back the row's tokens and its text, whatever the characters."""
    tokenizer = _shared()
    (whole,) = tokenize_rows([{"id": "a", "text": text}], tokenizer, 10_000)
    chunks = tokenize_rows([{"id": "a", "text": text}], tokenizer, T)
    np.testing.assert_array_equal(np.concatenate([c.input_ids for c in chunks]), whole.input_ids)
    assert "".join(c.text for c in chunks) == text
    assert all(len(c) <= T and c.row == "a" and c.labels[0] == IGNORED for c in chunks)
    assert all((c.offsets >= 0).all() and c.offsets.max(initial=0) <= len(c.text) for c in chunks)
    if len(chunks) > 1:
        assert [c.id for c in chunks] == [f"a#{k}" for k in range(len(chunks))]


_CACHE = []


def _shared():
    if not _CACHE:
        _CACHE.append(make_tokenizer())
    return _CACHE[0]


def test_prompts_are_not_supervised(tokenizer):
    """Oracle: prompt and completion tokenised apart, where no merge crosses the border."""
    row = {"id": "a", "prompt": "the capital of france is", "completion": " paris ."}
    (sequence,) = tokenize_rows([row], tokenizer, 512)
    prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
    assert sequence.input_ids.tolist() == prompt + completion
    assert sequence.labels.tolist() == [IGNORED] * len(prompt) + completion


def test_a_straddling_token_belongs_to_the_completion(tokenizer):
    """Oracle: " paris" is one token, so a prompt that ends in its space cannot be cut there."""
    prompt, completion = "the capital of france is ", "paris"
    tokens, labels, offsets = encode_pair("row", prompt, completion, tokenizer)
    first = int(np.flatnonzero(labels != IGNORED)[0])
    assert offsets[first].tolist() == [len(prompt) - 1, len(prompt) + len(completion)]
    assert labels[first:].tolist() == tokens[first:].tolist()
    with pytest.raises(ArgumentError, match="' paris' straddles"):
        encode_pair("row", prompt, completion, tokenizer, strict=True)
    with pytest.raises(ArgumentError, match=r"row 'a'.*straddles"):
        tokenize_rows([{"id": "a", "prompt": prompt, "completion": completion}], tokenizer, 64, strict=True)


def test_a_completion_without_context_is_refused(tokenizer):
    """Oracle: one token and nothing before it: there is no probability to speak of."""
    with pytest.raises(ArgumentError, match="give a prompt"):
        encode_pair("row", "", " the", tokenizer)


def test_token_rows_pass_through(tokenizer):
    """Oracle: the arrays given; the attention mask cuts padding off; the text is decoded for reading."""
    row = {"id": "a", "input_ids": [9, 8, 7, 0], "labels": [-100, -100, 7, -100], "attention_mask": [1, 1, 1, 0]}
    (sequence,) = tokenize_rows([row], None, 8)
    assert sequence.input_ids.tolist() == [9, 8, 7]
    assert sequence.labels.tolist() == [-100, -100, 7]
    ids = tokenizer(WORDS)["input_ids"]
    (decoded,) = tokenize_rows([{"id": "a", "input_ids": ids}], tokenizer, 512)
    assert decoded.text == WORDS
    assert [decoded.text[a:b] for a, b in decoded.offsets] == tokenizer.batch_decode([[i] for i in ids])


def test_rows_are_kept_in_order_whatever_their_form(tokenizer):
    """Oracle: the ids given."""
    rows = [
        {"id": "t", "text": "the cat"},
        {"id": "i", "input_ids": [1, 2]},
        {"id": "p", "prompt": "the", "completion": " cat"},
        {"id": "u", "text": "a mat"},
    ]
    sequences = tokenize_rows(rows, tokenizer, 16)
    assert [s.id for s in sequences] == ["t", "i", "p", "u"]
    assert sequences[3].text == "a mat"


def test_bad_tokenisation_is_refused(tokenizer):
    """Oracle: an error that names the argument or the row."""
    with pytest.raises(ArgumentError, match="max_length"):
        tokenize_rows([{"id": "a", "text": "x"}], tokenizer, 1)
    with pytest.raises(ArgumentError, match="tokenizer"):
        tokenize_rows([{"id": "a", "text": "x"}], None, 8)
    with pytest.raises(ArgumentError, match="a#0"):
        tokenize_rows([{"id": "a", "input_ids": [1, 2, 3]}, {"id": "a#0", "input_ids": [1]}], None, 2)


def test_the_fingerprint_sees_ids_tokens_labels_and_order():
    """Oracle: distinct data, distinct hash; equal data read twice, equal hash."""
    rows = [{"id": "a", "input_ids": [1, 2, 3]}, {"id": "b", "input_ids": [4, 5]}]
    variants = [
        rows,
        rows[::-1],
        [{**rows[0], "id": "c"}, rows[1]],
        [{**rows[0], "labels": [-100, -100, 3]}, rows[1]],
        [{**rows[0], "input_ids": [1, 2]}, {**rows[1], "input_ids": [3, 4, 5]}],
        rows[:1],
    ]
    hashes = [fingerprint(tokenize_rows(v, None, 8)) for v in variants]
    assert len(set(hashes)) == len(variants)
    assert fingerprint(tokenize_rows(rows, None, 8)) == hashes[0]
    assert re.fullmatch("[0-9a-f]{32}", hashes[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_can_be_taken_off_again(side):
    """Oracle: the sequences themselves, read back through the mask."""
    sequences = tokenize_rows([{"id": str(n), "input_ids": list(range(1, n + 1))} for n in (3, 1, 5)], None, 8)
    batch = collate(sequences, pad_id=99, side=side)
    for i, sequence in enumerate(sequences):
        kept = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][kept].tolist() == sequence.input_ids.tolist()
        assert batch["labels"][i][kept].tolist() == sequence.labels.tolist()
        assert (batch["input_ids"][i][~kept] == 99).all()
        assert (batch["labels"][i][~kept] == IGNORED).all()
        if side == "left":
            assert batch["position_ids"][i][kept].tolist() == list(range(len(sequence)))
    assert ("position_ids" in batch) == (side == "left")
    assert all(t.dtype == torch.int64 for t in batch.values())


def test_collate_refuses_nonsense():
    """Oracle: an error that names the argument."""
    with pytest.raises(ArgumentError, match="side"):
        collate([], side="top")
    with pytest.raises(HesseError, match="sequences"):
        collate([])
