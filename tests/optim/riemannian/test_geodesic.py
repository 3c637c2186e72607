"""The cheap form of the geodesic against the one by singular values, and telling parameters apart."""

import pytest
import torch
from torch import nn

from hesse.errors import ShapeError
from hesse.linalg import GrassmannParameter, grassmann_exp, grassmann_project
from hesse.optim import geodesic_step, split_parameters


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(7, 2), (4, 9, 3), (2, 3, 6, 5), (3, 12, 1)])
@pytest.mark.parametrize("t", [-0.1, 1.0, 4.0])
def test_geodesic(shape, t):
    """Oracle: the exponential map by singular values, for columns long and short in memory."""
    S = GrassmannParameter.random(*shape, dtype=torch.float64, generator=seeded()).data
    H = grassmann_project(S, torch.randn(shape, generator=seeded(1), dtype=torch.float64))
    expected = grassmann_exp(S, H, t)
    torch.testing.assert_close(geodesic_step(S, H, t), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(geodesic_step(S.contiguous(), H.contiguous(), t), expected, rtol=0, atol=1e-13)


def test_tiny_steps_and_zero_columns():
    """Oracle: S + tH where second order is below rounding; a column of zeros stays one."""
    S = GrassmannParameter.random(8, 3, dtype=torch.float32, generator=seeded()).data
    S[:, 2] = 0
    H = grassmann_project(S, torch.randn(8, 3, generator=seeded(1)))
    H[:, 2] = 0
    for size in (0.0, 1e-30, 1e-5):
        moved = geodesic_step(S, size * H, 1.0)
        torch.testing.assert_close(moved, S + size * H, rtol=0, atol=3e-7)
    assert float(moved[:, 2].abs().max()) < 1e-6


def test_shapes_are_checked():
    """Oracle: the error promised."""
    S = torch.eye(4)[:, :2]
    for bad in (torch.zeros(4, 3), torch.zeros(2, 4, 2)):
        with pytest.raises(ShapeError, match="geodesic_step"):
            geodesic_step(S, bad, 1.0)


def test_split_parameters():
    """Oracle: the parameters put in, a shared one once."""
    model = nn.Module()
    model.subspace = GrassmannParameter.random(5, 2, generator=seeded())
    model.again = model.subspace
    model.body = nn.Linear(2, 3)
    euclidean, grassmann = split_parameters(model)
    assert [id(p) for p in grassmann] == [id(model.subspace)]
    assert [id(p) for p in euclidean] == [id(model.body.weight), id(model.body.bias)]
