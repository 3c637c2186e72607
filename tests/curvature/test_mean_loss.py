"""Mean loss and gradient over batches."""

import pytest
import torch
from torch import nn

from hesse.curvature.mean_loss import mean_loss
from hesse.errors import ArgumentError, ShapeError


def loss_fn(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("cuts", [[9], [1, 8], [4, 4, 1]])
def test_batches_are_counted_by_their_examples(cuts):
    """Oracle: one backward pass over all examples together; the parameters' own gradients are left alone."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    found = mean_loss(loss_fn, net, list(zip(x.split(cuts), y.split(cuts), strict=True)))
    assert net.weight.grad is None
    loss = loss_fn(net, (x, y))
    loss.backward()
    assert found.value == pytest.approx(loss.item())
    assert found.num_examples == 9
    wanted = torch.cat([net.weight.grad.flatten(), net.bias.grad])
    torch.testing.assert_close(found.gradient, wanted)
    only = mean_loss(loss_fn, net, (x, y), names=["bias"])
    torch.testing.assert_close(only.gradient, net.bias.grad)


def test_what_the_loss_does_not_reach_has_zeros():
    """Oracle: by hand; a constant loss too."""
    parameters = {"used": torch.tensor([2.0]), "unused": torch.ones(3)}
    found = mean_loss(lambda p, batch: (p["used"] * batch).sum(), parameters, torch.ones(1))
    assert found.gradient.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert mean_loss(lambda _p, batch: batch.sum(), parameters, torch.ones(1)).gradient.tolist() == [0.0] * 4


def test_bad_arguments_are_named():
    """Oracle: the message."""
    with pytest.raises(ShapeError, match="scalar"):
        mean_loss(lambda model, batch: model(batch), nn.Linear(2, 2), torch.ones(3, 2))
    with pytest.raises(ArgumentError, match="names"):
        mean_loss(lambda model, batch: model(batch).sum(), nn.Linear(2, 2), torch.ones(3, 2), names=["w"])
    with pytest.raises(ArgumentError, match="empty"):
        mean_loss(loss_fn, nn.Linear(2, 2), [])
