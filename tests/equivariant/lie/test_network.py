"""The residual network, its frozen form, recalibration and the report of equivariance."""

import dataclasses

import pytest
import torch

from hesse.equivariant.lie import (
    SL,
    SO,
    FrozenLieResNet,
    GLPlus,
    LieResNet,
    SampleContext,
)
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_layer

F64 = torch.float64


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _network(group=None, **options):
    group = GLPlus(2) if group is None else group
    small = {"channels": 4, "hidden": 8, "num_draws": 2, "generator": _seeded()}
    return LieResNet(group, 3, **(small | options)).double()


def _images(count=4, size=12):
    x = torch.zeros(count, 1, size, size, dtype=F64)
    x[..., 3:-3, 3:-3] = torch.rand(count, 1, size - 6, size - 6, generator=_seeded(), dtype=F64)
    return x


@pytest.mark.parametrize(
    "options", [{}, {"separable": False, "kernel": "siren", "num_blocks": 1}, {"group": SO(2), "pooling": "max"}]
)
def test_conformance(options):
    """Oracle: what hesse asks of every layer."""

    def factory():
        group = options.get("group", GLPlus(2))
        rest = {key: value for key, value in options.items() if key != "group"}
        return LieResNet(group, 3, channels=2, hidden=4, num_draws=1, lift_size=5, kernel_size=3, **rest)

    check_layer(factory, (1, 6, 6), batch_size=2)


@pytest.mark.parametrize("sampling", ["lattice", "independent"])
def test_quarter_turn_of_image_and_elements(sampling):
    """Invariance: invariants of the turned image on turned elements are the same, to round-off."""
    network = _network(context=SampleContext(GLPlus(2), sampling=sampling)).eval()
    turn = torch.tensor([[0, -1], [1, 0]], dtype=F64)
    samples = network.draw_samples(generator=_seeded())
    moved = tuple(part._replace(h=turn @ part.h, h_inv=part.h_inv @ turn.mT) for part in samples)
    x = _images()  # of even size: there a stride of two is symmetric
    found = network.features(x.rot90(-1, (2, 3)), network.kernels(moved))
    torch.testing.assert_close(found, network.features(x, network.kernels(samples)), rtol=0, atol=1e-10)


def test_zeros_stay_zeros():
    """Invariance: the invariants of an empty image are zero, and a frame of zeros changes next to nothing."""
    network = _network().eval()
    kernels = network.kernels(network.draw_samples(generator=_seeded()))
    assert not network.features(torch.zeros(1, 1, 12, 12, dtype=F64), kernels).any()
    x = torch.nn.functional.pad(_images(), (4,) * 4)
    framed = torch.nn.functional.pad(x, (4,) * 4)
    found, wanted = network.features(framed, kernels), network.features(x, kernels)
    assert float(((found - wanted).norm() / wanted.norm()).detach()) < 0.02


def test_evaluation_is_the_mean_over_fixed_draws():
    """Oracle: the mean of the probabilities of single draws; the frozen network gives the same numbers."""
    network = _network(num_draws=3, seed=5).eval()
    x = _images()
    draws = network.context.fixed_samples(3, 2, seed=5, dtype=F64)
    wanted = sum(network(x, draw).softmax(-1) for draw in draws) / 3
    torch.testing.assert_close(network(x).exp(), wanted)
    frozen = network.freeze()
    assert isinstance(frozen, FrozenLieResNet)
    torch.testing.assert_close(frozen.train()(x), network(x))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(frozen(x).exp(), wanted)
    restored = _network(num_draws=3, seed=6).freeze()
    restored.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(restored(x), frozen(x))


def test_number_of_elements_may_change():
    """Oracle: shapes of the features, and that past the order of the harmonics more rotations change little."""
    network = _network(SO(2)).eval()
    x = _images()
    outputs = []
    for count in (16, 32):
        network.context = dataclasses.replace(network.context, num_samples=count)
        [samples] = network.context.fixed_samples(1, 2, dtype=F64)
        outputs.append(network.features(x, network.kernels(samples))[:, 4:])
    assert float(((outputs[1] - outputs[0]).norm() / outputs[0].norm()).detach()) < 0.05


def test_half_precision():
    """Oracle: float32, to the rounding of bfloat16; kernels are sampled in float32 all the same."""
    network = _network().float().eval()
    x = _images().float()
    wanted = network(x)
    found = network.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert network.lift.weights(network.draw_samples(generator=_seeded())[0]).dtype == torch.float32
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize("group", [GLPlus(2), SL(2), SO(2)])
def test_training_draws_anew(group):
    """Oracle: two passes differ in training; torch's seed makes them the same."""
    network = _network(group)
    x = _images()
    first, second = network(x), network(x)
    assert not torch.allclose(first, second)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = network(x)
        torch.manual_seed(3)
        torch.testing.assert_close(network(x), one)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LieResNet(GLPlus(2), 0), ArgumentError, "num_classes"),
        (lambda: LieResNet(GLPlus(2), 3, num_blocks=0), ArgumentError, "num_blocks"),
        (lambda: LieResNet(GLPlus(2), 3, num_draws=1.5), ArgumentTypeError, "num_draws"),
        (lambda: LieResNet(GLPlus(2), 3, dropout=1.0), ArgumentError, "dropout"),
        (lambda: LieResNet(SL(2), 3, context=SampleContext(SO(2))), ArgumentError, "context"),
        (lambda: LieResNet(GLPlus(3), 3), ArgumentError, "plane"),
        (lambda: _network()(torch.ones(2, 3, 8, 8, dtype=F64)), ShapeError, "x of shape"),
        (lambda: _network()(torch.ones(2, 1, 8, 8).int()), ArgumentTypeError, "x to be"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call()
