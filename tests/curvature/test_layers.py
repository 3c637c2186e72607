"""Which layers are tracked, and how each is read as one matrix."""

import pytest
import torch
from torch import nn

from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError, ShapeError
from tests.influence._tiny import gpt2, llama

F64 = torch.float64


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("mlp", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("attention", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]),
        (r"mlp\.(up|down)", ["mlp.up_proj", "mlp.down_proj"]),
        (lambda name, _module: name.endswith("k_proj"), ["self_attn.k_proj"]),
    ],
)
def test_layers_of_a_llama(modules, expected):
    """Oracle: the names of its submodules."""
    assert list(select_layers(llama(), modules)) == [f"model.layers.0.{name}" for name in expected]


def test_all_linear_leaves_the_head_out():
    """Oracle: every Linear but the output embedding, which is tracked only when forced."""
    model = llama()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert list(select_layers(model, "all-linear")) == names
    assert "lm_head" in select_layers(model, "all-linear", allow_head=True)
    with pytest.raises(ArgumentError, match=r"output embedding.*GiB.*11 x 11"):
        select_layers(model, "lm_head")


def test_gpt2_keeps_its_weights_transposed():
    """Oracle: shapes of the equivalent Linear."""
    layer = select_layers(gpt2(), "mlp")["transformer.h.0.mlp.c_fc"]
    assert (layer.out_features, layer.in_features, layer.columns, layer.has_bias) == (12, 8, 9, True)
    assert layer.module.weight.shape == (8, 12)


def test_a_plain_module_has_every_layer_tracked():
    """Oracle: by hand."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2, bias=False))
    assert [(layer.columns, layer.out_features) for layer in select_layers(net).values()] == [(10, 2), (8, 2)]
    assert list(select_layers(nn.Linear(2, 2))) == [""]


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 3), nn.Linear(4, 3, bias=False), nn.Conv2d(2, 3, 2), nn.Conv1d(2, 3, 2, bias=False)],
)
def test_gradients_go_into_a_matrix_and_back(module):
    """Oracle: the same tensors."""
    for net in (nn.Sequential(module), module):
        (layer,) = select_layers(net).values()
        grads = {name: torch.randn_like(p) for name, p in net.named_parameters()}
        matrix = layer.matrix_from_grads(grads)
        assert matrix.shape == (layer.out_features, layer.columns)
        back = layer.grads_from_matrix(matrix)
        assert back.keys() == grads.keys()
        assert all(torch.equal(back[name], grads[name]) for name in grads)


def test_a_missing_gradient_is_named():
    """Oracle: an error with the parameter's name."""
    (layer,) = select_layers(nn.Sequential(nn.Linear(2, 2))).values()
    with pytest.raises(ArgumentError, match=r"'0\.bias'"):
        layer.matrix_from_grads({"0.weight": torch.ones(2, 2)})


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Conv2d(2, 3, (1, 2), dilation=(1, 2), bias=False),
        nn.Conv1d(2, 3, 3, padding=2, dilation=2),
    ],
)
def test_a_convolution_is_a_linear_layer_on_windows(module):
    """Oracle: the module's own output."""
    module = module.to(F64)
    x = torch.randn(2, 2, 6, 5, dtype=F64) if isinstance(module, nn.Conv2d) else torch.randn(2, 2, 7, dtype=F64)
    (layer,) = select_layers(nn.Sequential(module)).values()
    rows = layer.inputs(x) @ module.weight.flatten(1).T
    rows = rows if module.bias is None else rows + module.bias
    torch.testing.assert_close(rows, layer.output_grads(module(x)))


def test_what_cannot_be_tracked_is_refused():
    """Oracle: an error that names the module and says why."""
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ArgumentError, match="'0' and '1' share one weight"):
        select_layers(tied)
    with pytest.raises(ArgumentError, match=r"LayerNorm.*cannot be tracked"):
        select_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ".")
    with pytest.raises(ArgumentError, match="groups"):
        select_layers(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)))
    with pytest.raises(ArgumentError, match="padding"):
        select_layers(nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")))
    with pytest.raises(ArgumentError, match="matches no Linear"):
        select_layers(nn.Sequential(nn.Linear(2, 2)), "nothing")
    with pytest.raises(ArgumentError, match="regular expression"):
        select_layers(nn.Sequential(nn.Linear(2, 2)), "(")
    (layer,) = select_layers(nn.Sequential(nn.Conv1d(2, 2, 1))).values()
    with pytest.raises(ShapeError, match="batch dimension"):
        layer.inputs(torch.ones(2, 3))
