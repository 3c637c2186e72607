"""Every kind of model: scores of small instances with random weights against a loop over torch.autograd.grad."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError
from hesse.influence import (
    CausalLMLoss,
    ClassificationLoss,
    Examples,
    Influence,
    Loss,
    MaskedLMLoss,
    PairExamples,
    Seq2SeqLoss,
    as_examples,
    split_experts,
)
from tests.influence._tiny import VOCAB, decoder, llama, spread, tokens

F64 = torch.float64
QUIET = {"progress": False}


def _experts(kind: str, **options: object) -> nn.Module:
    return split_experts(decoder(kind, num_key_value_heads=1, num_experts_per_tok=2, **options))


def _of(model: str, config: str, **options: object) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


def _bert(kind: str) -> nn.Module:
    return _of(
        f"{kind}ForMaskedLM",
        f"{kind}Config",
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
    )


def _adapted() -> nn.Module:
    import peft

    config = peft.LoraConfig(
        r=2, target_modules=["gate_proj", "down_proj", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    return peft.get_peft_model(llama(layers=2), config)


def _gpt(kind: str, suffix: str, **options: object) -> nn.Module:
    return _of(f"{kind}{suffix}", f"{kind}Config", vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **options)


CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: decoder("Llama", num_key_value_heads=1),
    "gpt_neox": lambda: decoder("GPTNeoX"),
    "qwen2": lambda: decoder("Qwen2", num_key_value_heads=1),
    "qwen3": lambda: decoder("Qwen3", num_key_value_heads=1, head_dim=4),
    "gemma": lambda: decoder("Gemma", num_key_value_heads=1, head_dim=4),
    "gemma2": lambda: decoder("Gemma2", num_key_value_heads=1, head_dim=4),
    "mistral": lambda: decoder("Mistral", num_key_value_heads=1),
    "phi3": lambda: decoder("Phi3", num_key_value_heads=1),
    "gpt2": lambda: _gpt("GPT2", "LMHeadModel", n_embd=8, n_layer=2, n_head=2, n_positions=32, n_inner=12),
    "gptj": lambda: _gpt("GPTJ", "ForCausalLM", n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_positions=32),
    "bloom": lambda: _gpt("Bloom", "ForCausalLM", hidden_size=8, n_layer=2, n_head=2),
    "opt": lambda: _gpt(
        "OPT",
        "ForCausalLM",
        hidden_size=8,
        ffn_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=8,
    ),
    "mixtral": lambda: _experts("Mixtral", num_local_experts=3),
    "qwen2_moe": lambda: _experts(
        "Qwen2Moe", num_experts=3, moe_intermediate_size=6, shared_expert_intermediate_size=6, decoder_sparse_step=1
    ),
    "gpt_oss": lambda: _experts("GptOss", num_local_experts=3, head_dim=4),
    "lora": _adapted,
}


def _masked(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    rows = tokens(count, seed=seed)
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        hidden = torch.rand(len(ids), generator=generator) < 0.4
        hidden[1] = True
        row["labels"], row["input_ids"] = torch.where(hidden, ids, -100).tolist(), torch.where(hidden, 2, ids).tolist()
    return as_examples(rows)


def _pairs(count: int, seed: int) -> Examples:
    sources, targets = ([row["input_ids"] for row in tokens(count, seed=s)] for s in (seed, seed + 100))
    return PairExamples(sources, targets, [f"p{i}" for i in range(count)])


def _pictures(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator, dtype=F64)
    return as_examples((x, torch.randint(3, (count,), generator=generator)))


def _sizes(prefix: str) -> dict[str, int]:
    return {f"{side}_{prefix}{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}


_BART = {"ffn_dim": 12, "layers": 2, "attention_heads": 2}
OTHER = {
    "bert": (lambda: _bert("Bert"), MaskedLMLoss(), _masked),
    "roberta": (lambda: _bert("Roberta"), MaskedLMLoss(), _masked),
    "t5": (
        lambda: _of(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=VOCAB,
            d_model=8,
            d_ff=12,
            d_kv=4,
            num_heads=2,
            num_layers=2,
            decoder_start_token_id=0,
        ),
        Seq2SeqLoss(),
        _pairs,
    ),
    "bart": (
        lambda: _of(
            "BartForConditionalGeneration",
            "BartConfig",
            vocab_size=VOCAB,
            d_model=8,
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
            **_sizes(""),
        ),
        Seq2SeqLoss(),
        _pairs,
    ),
    "vit": (
        lambda: _of(
            "ViTForImageClassification",
            "ViTConfig",
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            num_labels=3,
        ),
        ClassificationLoss(),
        _pictures,
    ),
    "resnet": (
        lambda: _of(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=4,
            hidden_sizes=[4, 6],
            depths=[1, 1],
            layer_type="basic",
            num_labels=3,
        ),
        ClassificationLoss(),
        _pictures,
    ),
}


def _gradients(model: nn.Module, loss: Loss, examples: Examples, modules: str) -> dict[str, torch.Tensor]:
    layers, named = select_layers(model, modules), dict(model.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for number in range(len(examples)):
        value = loss(model, examples.batch([number])).per_token.sum()
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        known = {
            name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), grads, strict=True)
        }
        for name, layer in layers.items():
            rows[name].append(layer.matrix_from_grads(known))
    return {name: torch.stack(matrices) for name, matrices in rows.items()}


def _check(model: nn.Module, loss: Loss, data: Examples, asked: Examples, modules: str, folder) -> None:
    plain = Influence(model, modules=modules, strategy="identity", loss=loss)
    plain.fit(data, folder / "plain", **QUIET)
    found = torch.tensor(plain.score(asked, data, folder / "plain", rank=None, **QUIET).values.tolist(), dtype=F64)
    queries, rows = (_gradients(model, loss, examples, modules) for examples in (asked, data))
    wanted = sum(torch.einsum("qij,nij->qn", queries[name], rows[name]) for name in rows) / len(data)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11 * float(wanted.abs().max()))


@pytest.mark.parametrize("modules", ["mlp", "all-linear"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_scores_of_causal_models(kind, modules, tmp_path):
    """Oracle: gradient dot products by a loop, one sequence at a time; rows of unlike length share a batch."""
    torch.manual_seed(0)
    model = spread(CAUSAL[kind]()).to(F64).eval()
    _check(model, CausalLMLoss(), as_examples(tokens(6)), as_examples(tokens(2, seed=9)), modules, tmp_path)


@pytest.mark.parametrize("kind", OTHER)
def test_scores_of_other_models(kind, tmp_path):
    """Oracle: as above; the encoder's rows are masked by the source, the decoder's by the target."""
    torch.manual_seed(0)
    build, loss, draw = OTHER[kind]
    model = (build() if kind == "resnet" else spread(build())).to(F64).eval()
    _check(model, loss, draw(6, 1), draw(2, 5), "all-linear", tmp_path)


@pytest.mark.parametrize("kind", ["mixtral", "bert", "t5"])
def test_factors_do_not_depend_on_batches(kind, tmp_path):
    """Oracle: batches of one sequence, where nothing is padded."""
    torch.manual_seed(0)
    build, loss, draw = OTHER.get(kind) or (CAUSAL[kind], CausalLMLoss(), lambda n, s: as_examples(tokens(n, seed=s)))
    model = spread(build()).to(F64).eval()
    data, asked = draw(40, 1), draw(2, 5)
    influence = Influence(model, modules="mlp", loss=loss)
    found = []
    for size in (1, 40):
        influence.fit(data, tmp_path / str(size), batch_size=size, **QUIET)
        found.append(
            influence.score(asked, data, tmp_path / str(size), rank=None, batch_size=size, **QUIET).values.tolist()
        )
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-6, atol=1e-8)


def test_adapters_are_what_was_trained():
    """Oracle: the names that peft gives to the matrices of its adapters."""
    names = list(select_layers(_adapted(), "mlp"))
    assert len(names) == 8
    assert all(".mlp." in name and (".lora_A." in name or ".lora_B." in name) for name in names)


def test_fused_experts_are_refused():
    """Oracle: an error; a model whose experts would be passed over is not fitted without them."""
    model = decoder("Mixtral", num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2).eval()
    with pytest.raises(ArgumentError, match=r"^model: .*split_experts\(model\)"):
        Influence(model)


def test_token_scores_of_two_texts_are_refused(tmp_path):
    """Oracle: an error; a pair of texts has no single row of tokens."""
    build, loss, draw = OTHER["t5"]
    influence = Influence(build().to(F64).eval(), loss=loss)
    with pytest.raises(ArgumentError, match=r"^per_token"):
        influence.score(draw(1, 1), draw(2, 2), tmp_path, per_token=True)
