import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.compress.hawq import UniformQuantizer
from hesse.compress.hawq.quantizer import MIN_SCALE
from hesse.errors import ArgumentError, ArgumentTypeError
from tests.compress.hawq.cases import seeded


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_grid_is_the_definition(bits):
    """Oracle: n = 2^(b-1) - 1, scale = max|W| / n, round, clamp, written out."""
    w = torch.randn(40, 7, generator=seeded(0), dtype=torch.float64)
    grid = UniformQuantizer(bits, scale="max").grid(w)
    n = 2 ** (bits - 1) - 1
    scale = w.abs().max() / n
    torch.testing.assert_close(grid.scale, scale, rtol=1e-15, atol=0)
    torch.testing.assert_close(grid.round_trip(w), (w / scale).round().clamp(-n - 1, n) * scale, rtol=1e-14, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_grid_is_the_definition(bits):
    """Oracle: scale = (max - min) / (2^b - 1); zero is a level, and one-sided data have zero point 0."""
    x = torch.rand(500, generator=seeded(1)) * 3
    grid = UniformQuantizer(bits, symmetric=False, scale="max").grid(x)
    torch.testing.assert_close(grid.scale, x.max() / (2**bits - 1))
    assert float(grid.zero_point) == 0
    shifted = UniformQuantizer(bits, symmetric=False, scale="max").grid(x - 1)
    assert float(shifted.round_trip(torch.zeros(()))) == 0
    assert len(shifted.encode(x - 1).unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("per_channel", [False, True])
def test_mse_scale_beats_every_scale_of_a_fine_search(bits, per_channel):
    """Oracle: a search over 2000 shrink factors a row; the error found is within 1 % of the least."""
    w = torch.randn(3, 400, generator=seeded(2), dtype=torch.float64) * torch.tensor([[1.0], [5.0], [0.1]])
    quantizer = UniformQuantizer(bits, per_channel=per_channel, scale="mse")
    found = (quantizer.grid(w).round_trip(w) - w).square().sum()
    rows = w if per_channel else w.reshape(1, -1)
    best = 0.0
    for row in rows:
        errors = []
        for factor in torch.linspace(0.01, 1, 2000).tolist():
            grid = quantizer.grid_of_range(-row.abs().max() * factor, row.abs().max() * factor)
            errors.append(float((grid.round_trip(row) - row).square().sum()))
        best += min(errors)
    assert best * 0.99 <= float(found) <= best * 1.01


@pytest.mark.parametrize(
    ("bits", "per_channel", "rule"), [(3, False, "mse"), (3, True, "mse"), (4, False, "mse"), (4, True, "max")]
)
def test_automatic_rule(bits, per_channel, rule):
    """Oracle: the rule that is documented."""
    w = torch.randn(5, 40, generator=seeded(6))
    found = UniformQuantizer(bits, per_channel=per_channel).grid(w)
    torch.testing.assert_close(found.scale, UniformQuantizer(bits, per_channel=per_channel, scale=rule).grid(w).scale)


def test_percentile_keeps_its_share():
    """Oracle: the sorted magnitudes. 99 % of 1000 entries lie within the range."""
    w = torch.randn(1000, generator=seeded(3))
    grid = UniformQuantizer(8, scale="percentile", percentile=99.0).grid(w)
    torch.testing.assert_close(grid.scale * 127, w.abs().sort().values[989])


@given(st.integers(2, 8), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_codes_stand_for_the_rounded_values(bits, symmetric, per_channel, seed):
    """Oracle: an identity, decode(encode(x)) = round_trip(x), idempotent, within the grid's bounds."""
    x = torch.randn(4, 30, generator=seeded(seed))
    grid = UniformQuantizer(bits, symmetric, per_channel).grid(x)
    codes, rounded = grid.encode(x), grid.round_trip(x)
    assert grid.low <= int(codes.min())
    assert int(codes.max()) <= grid.high
    torch.testing.assert_close(grid.decode(codes), rounded, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grid.round_trip(rounded), rounded, rtol=1e-6, atol=1e-7)


def test_gradient_passes_inside_the_range_and_stops_outside():
    """Oracle: the derivative of a clamp."""
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 3.0], requires_grad=True)
    grid = UniformQuantizer(3, scale="max").grid_of_range(torch.tensor(-1.0), torch.tensor(1.0))
    grid.round_trip(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))


def test_channels_lie_along_the_axis():
    """Oracle: the grid of each slice alone."""
    w = torch.randn(3, 5, 2, generator=seeded(4))
    grid = UniformQuantizer(4, per_channel=True, scale="mse").grid(w, axis=1)
    assert grid.scale.shape == (1, 5, 1)
    for i in range(5):
        alone = UniformQuantizer(4).grid(w[:, i])
        torch.testing.assert_close(grid.scale[0, i, 0], alone.scale)


def test_half_precision_is_rounded_in_float32():
    """Oracle: the float32 grid of the same numbers."""
    w = torch.randn(50, generator=seeded(5)).bfloat16()
    grid = UniformQuantizer(4).grid(w)
    assert grid.scale.dtype == torch.float32
    assert grid.round_trip(w).dtype == torch.bfloat16
    torch.testing.assert_close(grid.encode(w), UniformQuantizer(4).grid(w.float()).encode(w.float()))


def test_zero_tensor_stays_zero():
    """Oracle: zero has no error."""
    grid = UniformQuantizer(2).grid(torch.zeros(4))
    assert float(grid.scale) == pytest.approx(MIN_SCALE)
    assert not grid.round_trip(torch.zeros(4)).any()


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"bits": 1}, ArgumentError),
        ({"bits": 9}, ArgumentError),
        ({"bits": 2.0}, ArgumentTypeError),
        ({"scale": "median"}, ArgumentError),
        ({"percentile": 0.0}, ArgumentError),
    ],
)
def test_bad_settings_are_refused(kwargs, error):
    """Oracle: the documented errors, which name the argument."""
    with pytest.raises(error, match=next(iter(kwargs))):
        UniformQuantizer(**kwargs)


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.tensor([1.0, torch.nan])])
def test_bad_tensors_are_refused(bad):
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match=r"empty|NaN"):
        UniformQuantizer().grid(bad)
