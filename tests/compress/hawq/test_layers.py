import pytest
import torch
from torch import nn

from hesse.compress.hawq import count_macs, quantizable_weights
from hesse.compress.hawq.layers import tapped_layers
from hesse.errors import ArgumentError, ArgumentTypeError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(self.attention(x, x, x, need_weights=False)[0]))


def test_shared_weights_count_once_with_all_places():
    """Oracle: the model as written: a head tied to its embedding, and attention with a joint projection."""
    weights = quantizable_weights(Tied())
    assert [w.name for w in weights] == ["embed.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    assert weights[0].places == (("head", "weight"), ("embed", "weight"))
    assert weights[0].layer == "head"
    assert tapped_layers(Tied(), weights) == ["head", "attention"]


def test_layers_are_chosen_by_name_of_weight_or_layer():
    """Oracle: the names asked for."""
    model = Tied()
    assert [w.name for w in quantizable_weights(model, ["head"])] == ["embed.weight"]
    chosen = quantizable_weights(model, "attention.in_proj_weight")
    assert [w.name for w in chosen] == ["attention.in_proj_weight"]


def test_macs_of_linear_conv_and_attention():
    """Oracle: by hand: entries of the weight times positions."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    found = count_macs(net, lambda model, x: model(x), torch.zeros(3, 2, 5, 5))
    assert found == {"0.weight": 4 * 1 * 9 * 25, "2.weight": 700}
    model = Tied()
    found = count_macs(model, lambda m, x: m(x), torch.zeros(3, 5, dtype=torch.int64))
    assert found == {"embed.weight": 5 * 66, "attention.in_proj_weight": 5 * 108, "attention.out_proj.weight": 5 * 36}
    assert not any(part._forward_hooks for part in model.modules())


def test_bad_input_is_refused():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="nothere"):
        quantizable_weights(Tied(), ["nothere"])
    with pytest.raises(ArgumentError, match="none"):
        quantizable_weights(Tied(), [])
    with pytest.raises(ArgumentError, match="no Linear"):
        quantizable_weights(nn.LayerNorm(3))
    with pytest.raises(ArgumentTypeError, match="expected a module"):
        quantizable_weights(torch.zeros(2))
