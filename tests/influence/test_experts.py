"""Splitting the experts of a mixture: the model stays the same, each expert has factors of its own."""

import math

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError
from hesse.influence import Influence, as_examples, has_fused_experts, split_experts
from tests.influence._tiny import VOCAB, decoder, spread, tokens

F64 = torch.float64
QUIET = {"progress": False}


def mixture(kind: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    counts = {"num_hidden_layers": 1, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    return spread(decoder(kind, **counts, **options)).eval()


@pytest.mark.parametrize(("kind", "options"), [("Mixtral", {}), ("GptOss", {"head_dim": 4})])
def test_the_model_computes_the_same(kind, options):
    """Oracle: the logits before the split; the weights are the same memory, counted once."""
    model = mixture(kind, **options)
    ids = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    before, addresses = model(input_ids=ids).logits, {p.untyped_storage().data_ptr() for p in model.parameters()}
    count = sum(p.numel() for p in model.parameters())
    assert has_fused_experts(model)
    assert split_experts(model) is model
    assert not has_fused_experts(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) == count
    assert {p.untyped_storage().data_ptr() for p in model.parameters()} <= addresses


def test_a_second_split_changes_nothing():
    """Oracle: the names of the first."""
    model = split_experts(mixture("Mixtral"))
    names = list(dict(model.named_parameters()))
    assert list(dict(split_experts(model).named_parameters())) == names


def test_experts_that_are_normalised_are_refused():
    """Oracle: an error; what comes after the second product would be left out."""
    model = mixture("Mixtral")
    model.model.layers[0].mlp.experts.has_post_expert_norm = True
    with pytest.raises(ArgumentError, match=r"^model"):
        split_experts(model)


@pytest.mark.parametrize("pack", [False, True])
def test_token_scores_add_up(pack, tmp_path):
    """Oracle: the scores of the sequences; a token that went to two experts has a term from each."""
    from hesse.influence.examples import TokenExamples

    model = split_experts(mixture("Mixtral")).to(F64)
    data = as_examples(tokens(8))
    examples = TokenExamples(data.sequences, pack=pack, side="right" if pack else "left")
    influence = Influence(model)
    influence.fit(examples, tmp_path, **QUIET)
    asked = as_examples(tokens(2, seed=3))
    scores = influence.score(asked, examples, tmp_path, rank=None, per_token=True, per_layer=True, **QUIET)
    for q in range(2):
        sums = [float(scores.tokens(q, name).sum()) for name in examples.ids]
        torch.testing.assert_close(torch.tensor(sums, dtype=F64), torch.tensor(scores.values[q], dtype=F64))
    whole = influence.score(asked, data, tmp_path, rank=None, **QUIET)
    torch.testing.assert_close(torch.tensor(scores.values[:]), torch.tensor(whole.values[:]), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal"])
def test_an_expert_that_is_never_chosen_takes_no_part(strategy, tmp_path):
    """Oracle: the same scores with the expert left out of the tracked layers."""
    model = split_experts(mixture("Mixtral")).to(F64)
    gate = model.model.layers[0].mlp.gate
    _forbid(gate, 2)
    data, asked = as_examples(tokens(30)), as_examples(tokens(2, seed=3))
    found = []
    for number, modules in enumerate(["mlp", r"experts\.(up|down)\.[01]$"]):
        influence = Influence(model, modules=modules, strategy=strategy)
        factors = influence.fit(data, tmp_path / str(number), **QUIET)
        found.append(influence.score(asked, data, tmp_path / str(number), rank=None, **QUIET).values[:])
        if modules == "mlp":
            assert factors["model.layers.0.mlp.experts.up.2"].damping == math.inf
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-9, atol=1e-12)


def _forbid(gate: nn.Module, expert: int) -> None:
    # the router never chooses this expert: two of three, and the other two have the larger weights
    def hook(_module, _args, output):
        logits, weights, _index = output
        index = torch.tensor([[i for i in range(3) if i != expert]]).expand(len(weights), 2)
        return logits, torch.full_like(weights, 0.5), index

    gate.register_forward_hook(hook)
