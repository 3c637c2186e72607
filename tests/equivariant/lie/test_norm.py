"""The norm that keeps zero, and its recalibration."""

import pytest
import torch

from hesse.equivariant.lie import SO, LieResNet, RMSNormG, recalibrate
from hesse.errors import ArgumentError, NumericalError

F64 = torch.float64


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_norm_in_training_and_after():
    """Oracle: the formula; an exponential mean of the batches' mean squares; zero stays zero."""
    norm = RMSNormG(3, momentum=0.25).double()
    x, y = _randn(4, 3, 2, 5, 5), 3 * _randn(4, 3, 2, 5, 5, seed=1)
    squares = [batch.square().mean((0, 2, 3, 4)) for batch in (x, y)]
    for batch, square in zip((x, y), squares, strict=True):
        torch.testing.assert_close(norm(batch), batch / (square + 1e-5).sqrt()[:, None, None, None])
    running = 0.75 * (0.75 * 1 + 0.25 * squares[0]) + 0.25 * squares[1]
    torch.testing.assert_close(norm.mean_square, running)
    norm.eval()
    torch.testing.assert_close(norm(x), x / (running + 1e-5).sqrt()[:, None, None, None])
    assert not norm(torch.zeros_like(x)).any()
    with pytest.raises(NumericalError, match="empty"):
        norm.train()(x[:0])


def test_recalibration():
    """Oracle: the mean over batches of the batches' mean squares, for the first norm computed by hand."""
    network = LieResNet(SO(2), 3, channels=4, hidden=8, dropout=0.5).double()
    network.head.eval()
    batches = list(_randn(6, 1, 12, 12).split(2))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        recalibrate(network, batches)
        torch.manual_seed(1)
        squares = []
        for batch in batches:
            samples = network.draw_samples()
            squares.append(network.lift(batch, samples[0]).square().mean((0, 2, 3, 4)))
    torch.testing.assert_close(network.norms[0].mean_square, torch.stack(squares).mean(0))
    assert network.training
    assert not network.head.training
    assert all(norm.momentum == 0.1 for norm in network.modules() if isinstance(norm, RMSNormG))
    with pytest.raises(ArgumentError, match="batches"):
        recalibrate(network, [])


@pytest.mark.parametrize(
    ("options", "match"), [({"momentum": 0.0}, "momentum"), ({"momentum": 2.0}, "momentum"), ({"eps": 0.0}, "eps")]
)
def test_refuses(options, match):
    """Oracle: what the docstring raises, by name of the argument."""
    with pytest.raises(ArgumentError, match=match):
        RMSNormG(3, **options)
