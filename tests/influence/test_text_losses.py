"""Masked and sequence-to-sequence objectives against those that transformers computes."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.influence import CausalLMLoss, MaskedLMLoss, PairExamples, Seq2SeqLoss, as_examples
from hesse.influence.examples import TokenExamples
from tests.influence._tiny import gpt2, tokens
from tests.influence.test_architectures import OTHER

F64 = torch.float64


@pytest.mark.parametrize("kind", ["bert", "t5", "bart"])
def test_the_loss_is_the_models_own(kind):
    """Oracle: the mean loss that the model of transformers returns for the same labels, times their number."""
    torch.manual_seed(0)
    build, loss, draw = OTHER[kind]
    model, batch = build().to(F64).eval(), draw(5, 1).batch(range(5))
    output = loss(model, batch)
    mean = model(**batch).loss
    count = int((batch["labels"] != -100).sum())
    assert int(output.valid.sum()) == count
    torch.testing.assert_close(output.per_token.sum(), mean.double() * count, rtol=1e-6, atol=1e-6)
    assert not bool(output.per_token[~output.valid].any())


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_drawn_labels_replace_targets_only(kind):
    """Oracle: the loss with the drawn labels given as data; what the decoder reads stays the same."""
    torch.manual_seed(0)
    build, loss, draw = OTHER[kind]
    model, batch = build().to(F64).eval(), draw(3, 1).batch(range(3))
    drawn = torch.full_like(batch["labels"], 3)
    by_call = loss(model, batch, lambda logits, valid: drawn).per_token
    torch.testing.assert_close(by_call, loss(model, batch, drawn).per_token)
    assert not torch.allclose(by_call, loss(model, batch).per_token)


def test_packed_documents_are_refused():
    """Oracle: an error; their attention mask looks back only."""
    packed = TokenExamples(as_examples(tokens(3)).sequences, pack=True)
    with pytest.raises(ArgumentError, match=r"^pack"):
        MaskedLMLoss()(OTHER["bert"][0](), packed.batch(range(3)))


def test_a_model_without_a_decoder_is_refused():
    """Oracle: an error; it does not say how labels become inputs."""
    with pytest.raises(ArgumentError, match=r"^model: .*prepare_decoder_input_ids_from_labels"):
        Seq2SeqLoss()(gpt2(), PairExamples([[1]], [[2]], ["a"]).batch([0]))


def test_masks_of_layers():
    """Oracle: which text each layer reads, by the names of T5 and BART."""
    pairs = PairExamples([[1, 2, 3], [4]], [[5], [6, 7]], ["a", "b"])
    batch = pairs.batch([0, 1])
    mask, _same = Seq2SeqLoss().positions(batch, batch["labels"] != -100)
    for name in (
        "encoder.block.0.layer.1.DenseReluDense.wi",
        "decoder.block.0.layer.1.EncDecAttention.k",
        "model.decoder.layers.0.encoder_attn.v_proj",
    ):
        assert mask(name).tolist() == [[True, True, True], [True, False, False]]
    for name in ("decoder.block.0.layer.1.EncDecAttention.q", "model.decoder.layers.1.fc1"):
        assert mask(name).tolist() == [[True, False], [True, True]]


def test_pairs_are_checked_and_told_apart():
    """Oracle: errors name their argument; the fingerprint sees every token and where one text ends."""
    with pytest.raises(ShapeError, match=r"^pairs"):
        PairExamples([[1]], [[2], [3]], ["a", "b"])
    with pytest.raises(ArgumentError, match=r"^pairs: the id 'a' occurs twice"):
        PairExamples([[1], [1]], [[2], [3]], ["a", "a"])
    with pytest.raises(ArgumentError, match=r"'a' is empty"):
        PairExamples([[]], [[2]], ["a"])
    prints = {
        PairExamples(sources, targets, ["a", "b"]).fingerprint()
        for sources, targets in (
            ([[1, 2], [3]], [[4], [5]]),
            ([[1], [2, 3]], [[4], [5]]),
            ([[1, 2], [3]], [[5], [4]]),
            ([[1, 2], [3]], [[4, 5], [5]]),
        )
    }
    assert len(prints) == 4
    assert PairExamples([[1, 2], [3]], [[4], [5]], ["a", "b"]).lengths == [3, 2]


def test_a_causal_loss_of_the_same_tokens_differs():
    """Oracle: by hand; the masked loss predicts in place, the causal one the next token: shapes T and T - 1."""
    batch = as_examples(tokens(2)).batch([0, 1])
    model = OTHER["bert"][0]().eval()
    assert MaskedLMLoss()(model, batch).valid.shape[1] == CausalLMLoss()(model, batch).valid.shape[1] + 1
