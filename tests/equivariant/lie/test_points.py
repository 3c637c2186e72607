"""Group convolutions on clouds of points."""

import pytest
import torch

from hesse.equivariant.lie import SL, SO, GLPlus, LieConvPoints, SampleContext
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_layer

F64 = torch.float64


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=_seeded(seed), dtype=F64)


@pytest.mark.parametrize("group", [GLPlus(2), SL(2), SO(2), GLPlus(3), SL(3), SO(3)])
def test_points_and_elements_moved_together(group):
    """Invariance: under any g of the group and any shift the features are the same, to round-off."""
    lift = LieConvPoints(group, 2, 3, radius=2.0, lift=True, generator=_seeded()).double()
    conv = LieConvPoints(group, 3, 2, radius=2.0, generator=_seeded()).double()
    context = SampleContext(group, num_samples=4, sampling="independent", variance=0.3)
    first, second = context.draw(2, generator=_seeded(), dtype=F64)
    x, points = _randn(2, 7, 2), _randn(2, 7, group.n, seed=1)
    g, g_inv, _ = (part[0] for part in group.sample(1, generator=_seeded(2), variance=0.5, dtype=F64))

    def through(points, first, second):
        return conv(lift(x, points, first), points, first, second)

    wanted = through(points, first, second).detach()
    moved = [part._replace(h=g @ part.h, h_inv=part.h_inv @ g_inv) for part in (first, second)]
    shift = _randn(group.n, seed=3)
    found = through(points @ g.mT + shift, *moved).detach()
    assert float((found - wanted).norm()) < 1e-8 * float(wanted.norm())


def test_is_its_sum():
    """Oracle: the formula in a loop over points and elements."""
    group = GLPlus(2)
    layer = LieConvPoints(group, 2, 3, radius=1.5, generator=_seeded()).double()
    [part] = SampleContext(group, num_samples=2, sampling="independent").draw(generator=_seeded(), dtype=F64)
    part = part._replace(weight=torch.tensor([0.5, 1.5], dtype=F64))
    x, points = _randn(1, 4, 2, 2), _randn(1, 4, 2, seed=1)
    found = layer(x, points, part)
    wanted = torch.zeros(1, 4, 3, 2, dtype=F64)
    for p in range(4):
        for q in range(4):
            for i in range(2):
                where = part.h_inv[i] @ (points[0, q] - points[0, p]) / 1.5
                local = layer.depthwise(where[None, None], None)[0, 0, :, 0]
                for j in range(2):
                    mix = layer.mixing(None, (part.h_inv[i] @ part.h[j])[None, None])[0, 0]
                    wanted[0, p, :, i] += local * (mix @ x[0, q, :, j]) * part.weight[j] / 2 / 4
    torch.testing.assert_close(found, wanted)


class _Fixed(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, points):
        context = SampleContext(GLPlus(3), num_samples=2, sampling="independent")
        return self.layer(x, points, context.draw(generator=_seeded(), dtype=x.dtype)[0])


@pytest.mark.parametrize("lift", [True, False])
def test_conformance(lift):
    """Oracle: what hesse asks of every layer."""
    shape = (4, 2) if lift else (4, 2, 2)
    check_layer(lambda: _Fixed(LieConvPoints(GLPlus(3), 2, 2, radius=6.0, lift=lift)), shape, (4, 3))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LieConvPoints(GLPlus(4), 1, 1), ArgumentError, "n = 4"),
        (lambda: LieConvPoints(2, 1, 1), ArgumentTypeError, "group"),
        (lambda: LieConvPoints(SO(2), 1, 1, radius=0.0), ArgumentError, "radius"),
        (lambda: LieConvPoints(SO(2), 1, 0), ArgumentError, "out_channels"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call()


def test_refuses_shapes():
    """Oracle: what the docstring raises, by name of the argument."""
    layer = LieConvPoints(SO(2), 1, 1)
    [part] = SampleContext(SO(2)).draw(generator=_seeded())
    with pytest.raises(ShapeError, match="x of shape"):
        layer(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 2), part)
    with pytest.raises(ShapeError, match="points of shape"):
        layer(torch.ones(2, 3, 1, 8), torch.ones(2, 3, 3), part)
    with pytest.raises(ArgumentTypeError, match="points"):
        layer(torch.ones(2, 3, 1, 8), torch.ones(2, 3, 2).numpy(), part)
