import importlib.util

import pytest
import torch
from torch import nn

from hesse.compress.hawq import UniformQuantizer, quantizable_weights, quantize_model, to_torchao, uniform_plan
from hesse.errors import ArgumentError, MissingDependencyError
from tests.compress.hawq.cases import seeded, small_conv

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


@needs_torchao
@pytest.mark.filterwarnings("ignore")  # torchao warns of its own plans when it is imported
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_torchao_computes_the_same(bits, per_channel):
    """Oracle: our own quantised model; torchao's tensors hold the same whole numbers and scales."""
    net, x = two_layers(), torch.randn(5, 12, generator=seeded(0))
    plan = uniform_plan({w.name: w.numel for w in quantizable_weights(net)}, bits)
    model = quantize_model(net, plan, UniformQuantizer(per_channel=per_channel))
    exported = to_torchao(model, net)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(to_torchao(model.freeze(), net)(x), model(x), rtol=1e-5, atol=1e-6)
    assert isinstance(net[0].weight, nn.Parameter)
    assert type(net[0].weight) is nn.Parameter


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_what_torchao_cannot_carry_is_refused():
    """Oracle: the documented error."""
    net = small_conv()
    plan = uniform_plan({w.name: w.numel for w in quantizable_weights(net)}, 4)
    with pytest.raises(ArgumentError, match=r"0\.weight"):
        to_torchao(quantize_model(net, plan), net)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_missing_torchao_is_said():
    """Oracle: the documented error."""
    net = two_layers()
    plan = uniform_plan({w.name: w.numel for w in quantizable_weights(net)}, 4)
    with pytest.raises(MissingDependencyError, match="torchao"):
        to_torchao(quantize_model(net, plan), net)
