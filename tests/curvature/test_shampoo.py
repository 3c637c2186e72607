"""Second moments of whole gradients."""

import torch
from torch import nn

from hesse.curvature.capture import LayerStream, dgrad_only
from hesse.curvature.kfac import InputFactor, OutputFactor, mirror_
from hesse.curvature.layers import select_layers
from hesse.curvature.shampoo import add_gradient_moments_


def test_moments_are_those_of_a_loop_over_sequences():
    """Oracle: Σ D Dᵀ and Σ DᵀD from torch.autograd.grad, a sequence at a time; positions are counted once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double().eval()
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    layers = select_layers(net)
    device = torch.device("cpu")
    sums = {
        name: (
            InputFactor.zeros(layer.columns, dtype=torch.float64, device=device),
            OutputFactor.zeros(layer.out_features, dtype=torch.float64, device=device),
        )
        for name, layer in layers.items()
    }

    def consume(rows):
        add_gradient_moments_(*sums[rows.layer.name], rows)
        add_gradient_moments_(*sums[rows.layer.name], rows, count=False)

    with dgrad_only(net), LayerStream(layers, consume) as stream, stream.batch():
        stream.backward(net(x).square().sum())
    names, parameters = zip(*net.named_parameters(), strict=True)
    for name, layer in layers.items():
        left = right = 0
        for row in x:
            grads = torch.autograd.grad(net(row).square().sum(), parameters)
            matrix = layer.matrix_from_grads(dict(zip(names, grads, strict=True)))
            left, right = left + 2 * matrix @ matrix.T, right + 2 * matrix.T @ matrix
        torch.testing.assert_close(mirror_(sums[name][0].total), right)
        torch.testing.assert_close(mirror_(sums[name][1].total), left)
        assert (sums[name][0].count, sums[name][1].count) == (12, 12)
