"""The diagnostic against the closed form of Gaussian measurements."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.subgm import sign_rip_deviation
from tests.optim.subgm.cases import problem, seeded


def test_the_scale_is_that_of_gaussian_measurements():
    """Oracle: φ = √(2/π)(1 - p), within four standard errors over 32 directions of m measurements each."""
    A, _, _ = problem(m=4000)
    assert float(sign_rip_deviation(A, 2, generator=seeded()).scale) == pytest.approx(math.sqrt(2 / math.pi), rel=0.04)
    mask = torch.arange(4000) % 2 == 0
    found = sign_rip_deviation(A, 2, mask, generator=seeded())
    assert float(found.scale) == pytest.approx(math.sqrt(2 / math.pi) / 2, rel=0.08)


def test_the_deviation_falls_as_one_over_root_m():
    """Oracle: sixteen times the measurements, a quarter of the deviation, within a third."""
    few, many = (sign_rip_deviation(problem(m=m)[0], 2, num_probes=16, generator=seeded()) for m in (500, 8000))
    assert few.deviation == few.samples.max()
    assert few.samples.shape == (16,)
    assert float(few.samples.mean() / many.samples.mean()) == pytest.approx(4, rel=1 / 3)


def test_bad_arguments_are_refused():
    """Oracle: the errors promised."""
    A, _, _ = problem()
    with pytest.raises(ArgumentError, match="rank between"):
        sign_rip_deviation(A, 7)
    with pytest.raises(ArgumentError, match="num_probes >= 1"):
        sign_rip_deviation(A, 2, num_probes=0)
    with pytest.raises(ShapeError, match="outlier_mask of 400 bools"):
        sign_rip_deviation(A, 2, torch.ones(3, dtype=torch.bool))
