"""The upper blocks of a model with adapters, and trainings on halves that skip what they leave out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.influence import _truth_lora as lora
from hesse.influence import CausalLMLoss, Sequence, TokenExamples
from hesse.influence.evaluate import draw_masks, retrain, train_model
from hesse.influence.trajectory import SGD, TrainingSchedule

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

SIZES = lora.LoraSizes(
    blocks=2, rank=2, length=6, sequences=10, queries=2, masks=3, runs=2, steps=5, warmup=2, batch=3, rate=0.1
)


def tied_llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def random_rows(count, length=6, name="r"):
    tokens = np.random.default_rng(len(name) + count).integers(0, 40, (count, length))
    return [Sequence(f"{name}{i}", f"{name}{i}", row, np.where(np.arange(length) < 1, -100, row)) for i, row in
            enumerate(tokens)]  # fmt: skip


@pytest.fixture
def setting():
    train, queries = random_rows(10), random_rows(2, name="query")
    upper, rows = lora.upper_model(tied_llama(), 2, [*train, *queries])
    lora.add_adapters(upper, 2, 2.0, seed=1)
    schedules = [TrainingSchedule.shuffled(10, 3, SGD(momentum=0.9), lora.rates(SIZES), seed=s) for s in (1, 2)]
    masks = draw_masks(3, 10, seed=4)
    return lora.Adapted(SIZES, 0, rows[:10], rows[10:], (train, queries), upper, schedules, [], masks)


def test_upper_blocks_are_the_whole_model():
    """Oracle: losses of the whole model on the rows' own tokens, tied embedding and all."""
    whole, rows = tied_llama(), random_rows(20)  # more than one forward pass
    upper, seen = lora.upper_model(tied_llama(), 2, rows)
    expected = CausalLMLoss()(whole, TokenExamples(rows).batch(range(20))).per_token
    found = CausalLMLoss()(upper, TokenExamples(seen).batch(range(20))).per_token
    torch.testing.assert_close(found, expected)
    assert len(upper.model.layers) == 2


def test_only_adapters_are_trained_and_start_as_nothing(setting):
    """Oracle: the model without adapters, since B starts at 0; and counting, seven matrices in each of two blocks."""
    trained = [name for name, p in setting.start.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7
    assert all("lora_" in name for name in trained)
    plain, rows = lora.upper_model(tied_llama(), 2, [*setting.texts[0], *setting.texts[1]])
    np.testing.assert_allclose(
        lora.log_probabilities(setting.start, setting.queries), lora.log_probabilities(plain, rows[10:]), rtol=1e-6
    )


def test_skipping_rows_equals_weighting_them_with_zero(setting):
    """Oracle: `retrain` on all rows with weights of 0 and 1, for two data orders."""
    masks = setting.masks.copy()
    masks[0, list(setting.schedules[0].batches[1])] = False  # a step without any row
    expected = retrain(
        setting.start, setting.train, setting.queries, masks.astype(float), setting.schedules, progress=False
    )
    for run, schedule in enumerate(setting.schedules):
        for number, kept in enumerate(masks):
            model = train_model(setting.start, setting.train, lora.half_schedule(schedule, kept), progress=False)
            found = lora.log_probabilities(model, setting.queries)
            np.testing.assert_allclose(found, expected[run, number].numpy(), rtol=1e-5)


def test_a_stopped_run_goes_on_where_it_was(setting, tmp_path, monkeypatch):
    """Oracle: the outcomes of a run that nothing stopped, and a count of the trainings that were left."""
    whole = lora.outcomes(setting, tmp_path / "whole")
    assert whole.shape == (2, 3, 2)
    assert np.ptp(whole, axis=1).min() > 0  # halves differ
    calls, trained = [], lora.train_model

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return trained(*arguments, **options)

    monkeypatch.setattr(lora, "train_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        lora.outcomes(setting, tmp_path / "part")
    np.testing.assert_array_equal(lora.outcomes(setting, tmp_path / "part"), whole)
    assert len(calls) == 5 + 2  # the one that was stopped, and the last
    other = replace(setting, sizes=replace(SIZES, rate=0.2))
    lora.outcomes(other, tmp_path / "part")
    assert len(calls) == 7 + 6  # other sizes share nothing
    lora.forget(tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_stretches_are_the_text_and_queries_are_held_out():
    """Oracle: a tokenizer of one token a character, whose stretches must stand in the texts, each once."""
    from pydoc_data.topics import topics

    class Characters:
        def __call__(self, text):
            return {"input_ids": [ord(c) for c in text]}

        def decode(self, tokens):
            return "".join(map(chr, tokens))

    train, queries = lora.stretches(Characters(), replace(SIZES, length=30), seed=3)
    assert (len(train), len(queries)) == (10, 2)
    assert len({row.id for row in [*train, *queries]}) == 12
    for row in [*train, *queries]:
        name, part = row.id.split("#")
        assert topics[name][30 * int(part) : 30 * int(part) + 30] == row.text
    assert all((row.labels[1:] == row.input_ids[1:]).all() and row.labels[0] == -100 for row in train)
    assert all((row.labels[:15] == -100).all() and (row.labels[15:] == row.input_ids[15:]).all() for row in queries)


def test_rates_rise_then_fall():
    """Oracle: the shape: a peak after the warm-up, and almost nothing at the end."""
    rates = lora.rates(replace(SIZES, steps=32, warmup=4, rate=1.0))
    assert rates[0] == 0.25
    assert rates.index(max(rates)) == 3
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.01
