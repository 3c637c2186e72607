"""Path norms by counting paths."""

import itertools

import pytest
import torch
from torch import nn

from hesse.curvature.stability.path_norm import path_norm
from hesse.errors import ArgumentError

F64 = torch.float64


def test_two_layers_are_the_closed_form():
    """Oracle: Σ |a_k| ‖w_k‖."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)).to(F64)
    expected = (net[2].weight.abs()[0] * net[0].weight.norm(dim=1)).sum()
    torch.testing.assert_close(path_norm(net), expected)


def test_three_layers_with_biases_are_a_sum_over_paths():
    """Oracle: a loop over all paths; a bias starts one of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 2)).to(F64)
    first, second, third = net[0], net[2], net[4]
    lengths = (first.weight.square().sum(1) + first.bias.square()).sqrt()
    total = third.bias.abs().sum()
    for o, k in itertools.product(range(2), range(4)):
        total = total + third.weight[o, k].abs() * second.bias[k].abs()
        for j in range(3):
            total = total + third.weight[o, k].abs() * second.weight[k, j].abs() * lengths[j]
    torch.testing.assert_close(path_norm(net), total)


def test_rescaling_a_neuron_changes_nothing():
    """Oracle: invariance; the network computes the same function."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)).to(F64)
    before = path_norm(net).detach()
    with torch.no_grad():
        net[0].weight[2] *= 7
        net[2].weight[:, 2] /= 7
    torch.testing.assert_close(path_norm(net).detach(), before)


def test_gradient():
    """Oracle: finite differences, through the weights."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).to(F64)

    def norm(w, a):
        return torch.func.functional_call(_Norm(net), {"net.0.weight": w, "net.2.weight": a}, ())

    torch.manual_seed(0)
    w, a = torch.randn(3, 2, dtype=F64, requires_grad=True), torch.randn(1, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (w, a))


class _Norm(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        return path_norm(self.net)


def test_other_layers_are_refused():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="Tanh"):
        path_norm(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    with pytest.raises(ArgumentError, match="LeakyReLU"):
        path_norm(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(2.0)))
    with pytest.raises(ArgumentError, match="no linear layer"):
        path_norm(nn.Sequential(nn.ReLU()))
    assert float(path_norm(nn.Linear(1, 1, bias=False)).detach()) >= 0
