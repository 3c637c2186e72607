"""LoRA adapters over bases stored in 8 and 4 bits: scores against a loop over torch.autograd.grad, refusals, hashes.

The base of most tests is a Linear of integers written here; those of bitsandbytes and torchao where they are installed.
"""

import copy
import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.errors import ArgumentError
from hesse.influence import Factors, Influence, as_examples
from tests.influence._tiny import VOCAB, decoder, spread, tokens

QUIET = {"progress": False}


class PackedLinear(nn.Module):
    """W = scale ∘ Q, Q in ``bits`` bits, a scale a row; two integers a byte at 4 bits."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        weight = linear.weight.detach()
        most = 2 ** (bits - 1) - 1
        scale = weight.abs().amax(1, keepdim=True) / most
        integers = (weight / scale).round().to(torch.int8)
        self.bits = bits
        self.register_buffer("scale", scale)
        if bits == 4:
            integers = (integers[:, ::2] & 15) | (integers[:, 1::2] << 4)
        self.register_buffer("packed", integers)

    def dequantised(self) -> Tensor:
        if self.bits == 8:
            return self.packed.to(self.scale.dtype) * self.scale
        low, high = (self.packed << 4) >> 4, self.packed >> 4
        return torch.stack([low, high], 2).flatten(1).to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantised())


class Adapted(nn.Module):
    """s = Wx + B A x, the names those of peft."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def _over(pack: Callable[[nn.Linear], nn.Module], dtype: torch.dtype) -> nn.Module:
    # a Llama whose projections are all packed, those of the feed-forward blocks and of the queries under adapters
    torch.manual_seed(0)  # wide enough for the kernels of 4 bits
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    model = spread(decoder("Llama", **sizes)).to(dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            base: nn.Module = pack(module)
            if name.endswith(("gate_proj", "down_proj", "q_proj")):
                base = Adapted(base, module.in_features, module.out_features).to(dtype)
            model.set_submodule(name, base)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return model.eval()


def _bitsandbytes(kind: str) -> Callable[[nn.Linear], nn.Module]:
    library = pytest.importorskip("bitsandbytes")

    def pack(linear: nn.Linear) -> nn.Module:
        sizes = linear.in_features, linear.out_features
        if kind == "int8":
            packed = library.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
        else:
            packed = library.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type=kind)
        packed.load_state_dict(linear.state_dict())
        return packed.to("cpu")

    return pack


def _torchao(kind: str) -> Callable[[nn.Linear], nn.Module]:
    library = pytest.importorskip("torchao.quantization")

    def pack(linear: nn.Linear) -> nn.Module:
        copy = nn.Linear(linear.in_features, linear.out_features, bias=False)
        copy.load_state_dict(linear.state_dict())
        granularity = importlib.import_module("torchao.quantization.granularity").PerAxis(0)
        config = (
            library.Int8WeightOnlyConfig()
            if kind == "int8"
            else library.IntxWeightOnlyConfig(torch.int4, granularity=granularity)
        )
        library.quantize_(copy, config)
        return copy

    return pack


BASES: dict[str, tuple[Callable[[], Callable[[nn.Linear], nn.Module]], torch.dtype]] = {
    "8 bits": (lambda: lambda linear: PackedLinear(linear, 8), torch.float64),
    "4 bits": (lambda: lambda linear: PackedLinear(linear, 4), torch.float64),
    "bitsandbytes int8": (lambda: _bitsandbytes("int8"), torch.float32),
    "bitsandbytes nf4": (lambda: _bitsandbytes("nf4"), torch.float32),
    "bitsandbytes fp4": (lambda: _bitsandbytes("fp4"), torch.float32),
    "torchao int8": (lambda: _torchao("int8"), torch.float32),
    "torchao int4": (lambda: _torchao("int4"), torch.float32),
}


def _gradients(model: nn.Module, rows: list[dict], names: list[str]) -> list[dict[str, Tensor]]:
    # ∇L of every row by itself, summed over its tokens
    weights = {name: model.get_submodule(name).weight for name in names}
    out = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        embedded = model.get_input_embeddings()(ids).requires_grad_()  # some kernels without gradients round otherwise
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0, :-1]
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), ids[0, 1:], reduction="sum")
        out.append(dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)))
    return out


def _formula(
    model: nn.Module, factors: Factors, queries: list[dict], train: list[dict]
) -> tuple[Tensor, dict[str, Tensor]]:
    # EK-FAC written out with gradients of one row at a time, in the bases and with the tables that were fitted; and
    # the tables that these gradients give
    names = list(factors.layers)
    rows, asked = _gradients(model, train, names), _gradients(model, queries, names)
    scores, tables = torch.zeros(len(queries), len(train), dtype=torch.float64), {}
    for name in names:
        left, right = (basis.double() for basis in factors[name].bases)
        D, V = (torch.stack([left.T @ one[name].double() @ right for one in some]) for some in (rows, asked))
        tables[name] = D.square().mean(0)
        scores += torch.einsum("qpm,npm->qn", V / factors[name].damped().double(), D) / len(train)
    return scores, tables


@pytest.mark.parametrize("kind", BASES)
def test_scores_over_a_quantised_base(kind, tmp_path):
    """Oracle: EK-FAC's formula with gradients by torch.autograd.grad, a row at a time."""
    build, dtype = BASES[kind]
    model = _over(build(), dtype)
    train, asked = tokens(12, seed=1), tokens(2, seed=5)
    influence = Influence(model, fisher="empirical", positions="attended")
    assert len(influence.layers) == 8
    assert all(".mlp." in name and ".lora_" in name for name in influence.layers)
    factors = influence.fit(as_examples(train), tmp_path, batch_size=5, **QUIET)
    found = influence.score(as_examples(asked), as_examples(train), tmp_path, rank=None, **QUIET).values
    wanted, tables = _formula(model, factors, asked, train)
    loose = 1e-9 if dtype == torch.float64 else 1e-3
    for name, table in tables.items():
        torch.testing.assert_close(factors[name].table.double(), table, rtol=loose, atol=loose * float(table.max()))
    torch.testing.assert_close(torch.tensor(found).double(), wanted, rtol=loose, atol=loose * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", BASES)
def test_a_quantised_layer_itself_is_refused(kind):
    """Oracle: an error that names it, before any work."""
    build, dtype = BASES[kind]
    model = _over(build(), dtype)
    with pytest.raises(ArgumentError, match=r"^modules: 'model\.layers\.0\.mlp\.up_proj' is a .* quantised weight"):
        Influence(model, modules="up_proj")


@pytest.mark.parametrize("kind", ["bitsandbytes nf4", "torchao int8"])
def test_a_quantised_model_without_adapters_is_refused(kind):
    """Oracle: an error that names the first layer."""
    build, dtype = BASES[kind]
    pack = build()
    torch.manual_seed(0)
    net = nn.Sequential(pack(nn.Linear(64, 32, bias=False, dtype=dtype)), nn.Linear(32, 3)).eval()
    with pytest.raises(ArgumentError, match=r"^modules: '0' is a .* quantised weight"):
        Influence(net)


@pytest.mark.parametrize("kind", BASES)
def test_a_run_knows_its_base(kind):
    """Oracle: equal models have equal hashes; a base of twice the scale, with the same integers, another one."""
    build, dtype = BASES[kind]
    pack = build()

    def hashed(factor: float) -> str:
        return Influence(_over(lambda linear: pack(_scaled(linear, factor)), dtype)).model_hash()

    assert hashed(1.0) == hashed(1.0)
    assert hashed(1.0) != hashed(2.0)


def _scaled(linear: nn.Linear, factor: float) -> nn.Linear:
    with torch.no_grad():
        linear.weight.mul_(factor)
    return linear


@pytest.mark.parametrize("kind", ["8 bits", "bitsandbytes nf4", "torchao int8"])
def test_a_bfloat16_model_is_refined_in_float32(kind, tmp_path):
    """Oracle: EK-FAC's formula with the fitted factors, and with gradients of a copy converted by hand."""
    model = _over(BASES[kind][0](), torch.float32).bfloat16()
    train, asked = tokens(12, seed=1), tokens(2, seed=5)
    influence = Influence(model, fisher="empirical")
    assert influence.dtype == torch.bfloat16
    factors = influence.fit(as_examples(train), tmp_path, **QUIET)
    found = influence.score(as_examples(asked), as_examples(train), tmp_path, rank=1, refine_topk=12, **QUIET).values
    wanted, _tables = _formula(copy.deepcopy(model).float(), factors, asked, train)
    torch.testing.assert_close(torch.tensor(found).double(), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["8 bits", "bitsandbytes nf4", "torchao int8"])
def test_calls_without_gradients_change_nothing(kind, tmp_path):
    """Oracle: the formula; the model is called, as to generate from it, between the steps."""
    model = _over(BASES[kind][0](), torch.float32)
    train, asked = tokens(12, seed=1), tokens(2, seed=5)
    influence = Influence(model, fisher="empirical", positions="attended")

    def call() -> None:
        with torch.no_grad():
            model(input_ids=torch.tensor([train[0]["input_ids"]]))

    call()
    factors = influence.fit(as_examples(train), tmp_path, **QUIET)
    call()
    scores = influence.score(as_examples(asked), as_examples(train), tmp_path, rank=None, **QUIET)
    wanted, _tables = _formula(model, factors, asked, train)
    size = float(wanted.abs().max())
    torch.testing.assert_close(torch.tensor(scores.values).double(), wanted, rtol=1e-3, atol=1e-3 * size)


def test_a_base_changed_by_an_earlier_call_is_refused():
    """Oracle: an error that names the layer, on processors where bitsandbytes lays weights out anew."""
    model = _over(_bitsandbytes("nf4"), torch.float32)
    if not model.get_submodule("model.layers.0.self_attn.v_proj").support_avx512bf16_for_cpu:
        pytest.skip("bitsandbytes leaves 4-bit weights as they are on this processor")
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    with pytest.raises(ArgumentError, match=r"^model: 'model\.layers\.0\..*was called without gradients"):
        Influence(model)


class Cut(PackedLinear):
    """As a kernel without a backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_a_base_that_cuts_the_gradient_is_refused(tmp_path):
    """Oracle: an error that names the first layer whose input wants a gradient; without it scores would be wrong."""
    model = _over(lambda linear: Cut(linear, 8), torch.float64)
    influence = Influence(model, fisher="empirical")
    with pytest.raises(ArgumentError, match=r"^model: 'model\.layers\.0\.mlp\..*hands no gradient down"):
        influence.fit(as_examples(tokens(4, seed=1)), tmp_path, **QUIET)
