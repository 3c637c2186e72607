import copy

import pytest
import torch
from torch import nn

from hesse.compress.hawq import (
    BitPlan,
    UniformQuantizer,
    quantizable_weights,
    quantize_model,
    uniform_plan,
)
from hesse.curvature import hessian
from hesse.errors import ArgumentError
from tests.compress.hawq.cases import cross_entropy, seeded, small_batch, small_conv


def plan_of(net: nn.Module, bits: list[int], activations: dict[str, int] | None = None) -> BitPlan:
    weights = quantizable_weights(net)
    numel = {w.name: w.numel for w in weights} | dict.fromkeys(activations or {}, 1)
    return BitPlan({w.name: b for w, b in zip(weights, bits, strict=True)}, activations or {}, numel)


def rounded_by_hand(net: nn.Module, plan: BitPlan, quantizer: UniformQuantizer) -> nn.Module:
    found = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name in plan.weights:
                parameter.copy_(quantizer.with_bits(plan.weights[name]).grid(parameter).round_trip(parameter))
    return found


@pytest.mark.parametrize("per_channel", [False, True])
def test_outputs_are_those_of_weights_rounded_by_hand(per_channel):
    """Oracle: a copy whose parameters were overwritten; frozen outputs are equal to the bit, the model is untouched."""
    net, (x, _) = small_conv(), small_batch()
    before = copy.deepcopy(net.state_dict())
    plan, quantizer = plan_of(net, [3, 2, 8]), UniformQuantizer(per_channel=per_channel)
    model = quantize_model(net, plan, quantizer)
    by_hand = rounded_by_hand(net, plan, quantizer)
    open_outputs = model(x)
    torch.testing.assert_close(open_outputs, by_hand(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(model.freeze()(x), open_outputs)
    for name, value in model.dequantized_state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_storage_is_what_the_bits_say():
    """Oracle: by hand: packed bytes, four a scale, and the rest as it was. The frozen state holds no float weight."""
    net = small_conv()
    model = quantize_model(net, plan_of(net, [3, 2, 8]))
    expected = -(-27 * 3 // 8) + 96 * 2 // 8 + 24 + 3 * 4 + (3 + 8 + 3) * 8
    assert model.storage_bytes() == expected
    model.freeze()
    assert model.storage_bytes() == expected
    stored = {n: t for n, t in model.state_dict().items() if n.endswith("original")}
    assert sum(t.numel() for t in stored.values()) == -(-27 * 3 // 8) + 24 + 24
    assert {t.dtype for t in stored.values()} == {torch.uint8}
    assert model.freeze() is model


def test_frozen_state_survives_a_file(tmp_path):
    """Oracle: the outputs before."""
    from hesse.io import load_tensors, save_tensors

    net, (x, _) = small_conv(), small_batch()
    plan = plan_of(net, [3, 2, 8])
    model = quantize_model(net, plan).freeze()
    entry = save_tensors(tmp_path / "model.safetensors", model.state_dict())
    other = quantize_model(small_conv(seed=5), plan).freeze()
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors", entry))
    assert torch.equal(other(x), model(x))


def test_inputs_are_rounded_after_calibration():
    """Oracle: the same by hand, layer by layer, on the calibration batch, whose range is then the running one."""
    net, (x, y) = small_conv(), small_batch()
    plan = plan_of(net, [8, 8, 8], {"0": 4, "3": 8, "5": 4})
    model = quantize_model(net, plan)
    with pytest.raises(ArgumentError, match="calibrate"):
        model(x)
    model.calibrate(cross_entropy, (x, y))
    by_hand, a, ranges = rounded_by_hand(net, plan, UniformQuantizer()), x, x
    for index, (layer, plain) in enumerate(zip(by_hand, by_hand, strict=True)):
        if str(index) in plan.activations:
            rule = UniformQuantizer(plan.activations[str(index)], symmetric=False, scale="max")
            a = rule.grid(ranges).round_trip(a)
        a, ranges = layer(a), plain(ranges)
    # the ranges are kept in float32
    torch.testing.assert_close(model(x), a, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_one_layer():
    """Oracle: weight and input rounded by hand; both names are short, the layer's is empty."""
    net, x = nn.Linear(4, 3, bias=False), torch.rand(6, 4, generator=seeded(3))
    model = quantize_model(net, BitPlan({"weight": 3}, {"": 4}, {"weight": 12, "": 4})).calibrate(lambda m, b: m(b), x)
    weight = UniformQuantizer(3).grid(net.weight).round_trip(net.weight)
    rounded = UniformQuantizer(4, symmetric=False, scale="max").grid(x).round_trip(x)
    torch.testing.assert_close(model.freeze()(x), rounded @ weight.T)
    assert model.dequantized_state_dict().keys() == {"weight"}


def test_running_range_is_a_decaying_mean():
    """Oracle: the recursion by hand: plain mean at first, then 0.99 old + 0.01 new."""
    net = nn.Sequential(nn.Linear(1, 1))
    model = quantize_model(net, BitPlan({}, {"0": 8}, {"0": 1}))
    highs = [float(v) for v in torch.rand(200, generator=seeded(0)) + 1]
    model.calibrate(lambda m, b: m(b), [torch.tensor([[h], [0.0]]) for h in highs])
    expected = highs[0]
    for count, high in enumerate(highs[1:], 1):
        share = max(0.01, 1 / (count + 1))
        expected += share * (high - expected)
    (rounding,) = model.activations.values()
    assert float(rounding.high) == pytest.approx(expected, rel=1e-5)
    copied = copy.deepcopy(model)
    copied.calibrate(lambda m, b: m(b), torch.tensor([[9.0], [0.0]]))
    assert float(rounding.high) == pytest.approx(expected, rel=1e-5)  # a copy has hooks of its own


def test_ranges_travel_with_the_state():
    """Oracle: the outputs before."""
    net, batch = small_conv(), small_batch()
    plan = plan_of(net, [8, 8, 8], {"3": 4})
    model = quantize_model(net, plan).calibrate(cross_entropy, batch)
    other = quantize_model(net, plan)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch[0]), model(batch[0]))


def test_gradients_go_straight_through():
    """Oracle: the gradient at the rounded weights, where no weight was clamped ("max" scale)."""
    net, batch = small_conv(), small_batch()
    plan, quantizer = plan_of(net, [4, 4, 4]), UniformQuantizer(scale="max")
    model, by_hand = quantize_model(net, plan, quantizer), rounded_by_hand(net, plan, quantizer)
    cross_entropy(model, batch).backward()
    cross_entropy(by_hand, batch).backward()
    found = [p.grad for n, p in model.named_parameters() if n.endswith("original")]
    wanted = [p.grad for n, p in by_hand.named_parameters() if n.endswith("weight")]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


@pytest.mark.parametrize("grad", [False, True])
def test_attention_and_tied_heads_are_quantised_everywhere(grad):
    """Oracle: weights overwritten by hand, with torch's fused inference path and without; the tied weight stays one."""
    torch.manual_seed(0)
    net, ids = Attention().eval(), torch.randint(9, (3, 5), generator=seeded(1))
    plan = uniform_plan({w.name: w.numel for w in quantizable_weights(net)}, 3)
    model = quantize_model(net, plan)
    by_hand = rounded_by_hand(net, plan, UniformQuantizer())
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(ids), by_hand(ids), rtol=1e-5, atol=1e-6)
        model.freeze()
        torch.testing.assert_close(model(ids), by_hand(ids), rtol=1e-5, atol=1e-6)
    state = model.dequantized_state_dict()
    assert set(state) == set(net.state_dict())
    assert torch.equal(state["head.weight"], state["embed.weight"])


def test_rounded_inputs_keep_attention_off_the_fused_path():
    """Oracle: the unfused path, which gradients force. Hooks make torch leave its fused kernel."""
    torch.manual_seed(0)
    net, ids = Attention().eval(), torch.randint(9, (3, 5), generator=seeded(1))
    names = {"body.layers.0.self_attn": 4, "body.layers.0.linear2": 4}
    model = quantize_model(net, plan_of(net, [8] * 5, names)).calibrate(lambda m, b: m(b), ids)
    with torch.no_grad():
        fused = model(ids)
    torch.testing.assert_close(model(ids), fused)
    assert float((fused - net(ids)).detach().abs().max()) > 1e-3


def test_quantised_model_can_be_exported_and_has_curvature():
    """Oracle: the exported program's outputs; the Hessian of the model in hand at the rounded weights, none clamped."""
    net, batch = small_conv(), small_batch()
    plan, quantizer = plan_of(net, [8, 8, 8]), UniformQuantizer(scale="max")
    model, by_hand = quantize_model(net, plan, quantizer), rounded_by_hand(net, plan, quantizer)
    exported = torch.export.export(model, (batch[0],)).module()
    torch.testing.assert_close(exported(batch[0]), model(batch[0]))
    through = hessian(cross_entropy, model, batch, names=["module.3.parametrizations.weight.original"])
    at = hessian(cross_entropy, by_hand, batch, names=["3.weight"])
    torch.testing.assert_close(through.to_dense().detach(), at.to_dense().detach(), rtol=1e-8, atol=1e-10)


def test_bad_plans_are_refused():
    """Oracle: the documented errors."""
    net = small_conv()
    with pytest.raises(ArgumentError, match=r"9\.weight"):
        quantize_model(net, BitPlan({"9.weight": 4}, numel={"9.weight": 1}))
    with pytest.raises(ArgumentError, match="input of 9"):
        quantize_model(net, BitPlan({}, {"9": 4}, {"9": 1}))
    with pytest.raises(ArgumentError, match="per_channel=False"):
        quantize_model(net, BitPlan({}), activation_quantizer=UniformQuantizer(per_channel=True))
