import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.sketch import SRHT, CountSketch, GaussianSketch
from hesse.linalg.sketch_quality import oce_statistics, ose_distortion


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_distortion():
    """Oracle: singular values of S U; zero for a full SRHT, which is orthogonal."""
    U = torch.linalg.qr(torch.randn(64, 5, dtype=torch.float64, generator=seeded(0))).Q
    S = GaussianSketch(64, 30, dtype=torch.float64, generator=seeded(1))
    squares = torch.linalg.svdvals(S @ U).square()
    torch.testing.assert_close(ose_distortion(S, U), (squares - 1).abs().max())
    assert float(ose_distortion(SRHT(64, 64, dtype=torch.float64, generator=seeded(2)), U)) < 1e-13


def test_gaussian_statistics():
    """Oracle: closed form for Gaussian S: mean gᵀh, variance ((gᵀh)² + ‖g‖²‖h‖²) / M, within 5 standard errors."""
    n, m, trials = 40, 20, 4000
    g = torch.randn(n, dtype=torch.float64, generator=seeded(0))
    h = torch.randn(n, dtype=torch.float64, generator=seeded(1))
    source = seeded(2)
    found = oce_statistics(lambda: GaussianSketch(n, m, dtype=torch.float64, generator=source), g, h, trials)
    assert abs(found.mean - float(g @ h)) <= 5 * found.standard_error
    alpha = 1 + float((g @ h) / (g.norm() * h.norm())) ** 2
    assert found.alpha == pytest.approx(alpha, rel=5 * (2 / trials) ** 0.5)
    assert found.levels == (0.5, 0.95, 0.999)
    assert found.quantiles == tuple(sorted(found.quantiles))


def test_countsketch_has_a_heavy_tail():
    """Oracle: by hand: two unit vectors meet in one bucket with probability 1/M, and then X = ±1."""
    n, m = 16, 8
    g, h = torch.eye(n)[0], torch.eye(n)[1]
    source = seeded(0)
    found = oce_statistics(lambda: CountSketch(n, m, generator=source), g, h, 4000, levels=(0.8, 0.9))
    assert found.quantiles == (0.0, 1.0)
    assert found.second_moment == pytest.approx(1 / m, rel=0.2)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    S = CountSketch(4, 2)
    with pytest.raises(ShapeError, match="basis of shape"):
        ose_distortion(S, torch.ones(4))
    with pytest.raises(ArgumentError, match="orthonormal"):
        ose_distortion(S, torch.ones(4, 2))
    one = torch.ones(4)
    with pytest.raises(ArgumentError, match="num_trials"):
        oce_statistics(lambda: S, one, one, 1)
    with pytest.raises(ShapeError, match="one shape"):
        oce_statistics(lambda: S, one, one[:2], 5)
    with pytest.raises(ArgumentError, match="levels"):
        oce_statistics(lambda: S, one, one, 5, levels=(1.5,))
    with pytest.raises(ArgumentError, match="zero"):
        oce_statistics(lambda: S, one, 0 * one, 5)
