"""Schedules of α, σ and N against their formulas."""

import math

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.optim import CoolingSchedule, GeometricSchedule, reduced_count


def test_cooling_telescopes():
    """Oracle: the product: after e epochs α = 2^e α₀ and σ = σ₀ / log₂(e + 2)."""
    cooling = CoolingSchedule(every=3)
    alpha, sigma = torch.tensor([50.0, 1.0]), 0.5
    for step in range(1, 16):
        alpha, sigma = cooling(step, alpha, sigma)
    assert alpha.tolist() == [50.0 * 2**5, 2.0**5]
    assert sigma == pytest.approx(0.5 / math.log2(7))


def test_geometric_waits_and_stops():
    """Oracle: powers."""
    schedule = GeometricSchedule(alpha=10.0, sigma=0.98, every=100, max_alpha=500.0)
    alpha, sigma = torch.tensor([1.0]), 0.7
    for step in range(1, 350):
        alpha, sigma = schedule(step, alpha, sigma)
    assert alpha.item() == 500.0
    assert sigma == pytest.approx(0.7 * 0.98**3)


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [(1.0, 1.0, 100), (1.0, 0.0, 80), (1.0, 0.5, 90), (1.0, 0.45, 90), (1.0, 3.0, 100), (0.0, 0.0, 100)],
)
def test_particles_that_stay(before, after, count):
    """Oracle: ⌈10 clip(0.8 + 0.2 S'/S, 0.8, 1)⌉ batches of 10, by hand."""
    assert reduced_count(100, 10, before, after) == count


def test_two_particles_always_stay():
    """Oracle: a cloud of one has no spread."""
    assert reduced_count(2, 1, 1.0, 0.0, 0.9) == 2
    assert reduced_count(5, 10, 1.0, 0.0, 0.2) == 5


def test_refuse():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError):
        CoolingSchedule(every=0)
    with pytest.raises(ArgumentError):
        GeometricSchedule(sigma=0.0)
    with pytest.raises(ArgumentError):
        reduced_count(100, 10, 1.0, 1.0, 1.0)
