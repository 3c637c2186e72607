"""Small denoisers and their training loop."""

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.generative.score_network import Denoiser, PictureNetwork, VectorNetwork, train_denoiser


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Zero(nn.Module):
    """F = 0, with a weight so that it can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, level):
        return self.weight * x


def test_preconditioning_alone_denoises_a_gaussian():
    """Oracle: the posterior mean of N(0, sd²) data, and its score."""
    denoiser, x = Denoiser(Zero(), data_sd=2.0), torch.linspace(-3, 3, 8).reshape(4, 2)
    sigma = torch.tensor([0.1, 1.0, 3.0, 50.0])
    variance = sigma.square().unsqueeze(1) + 4
    torch.testing.assert_close(denoiser(x, sigma), x * 4 / variance)
    torch.testing.assert_close(denoiser.score(x, sigma), -x / variance, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(denoiser(x, 1.0), x * 4 / 5)


def test_loss_of_white_data_is_one_at_every_level():
    """Oracle: the weighted error of the best linear denoiser in closed form, within four of its own errors."""
    data = 2 * torch.randn(4096, 4, generator=seeded(0))
    denoiser = Denoiser(Zero(), data_sd=2.0)
    losses = train_denoiser(
        denoiser, data, data_sd=2.0, max_steps=200, learning_rate=1e-12, ema_decay=0, generator=seeded(1)
    )
    assert abs(float(losses.mean()) - 1) < 4 * float(losses.std()) / 200**0.5 + 0.02


def test_training_finds_a_ring():
    """Oracle: the denoised points lie on the unit circle, where the data are."""
    torch.manual_seed(0)
    angle = torch.rand(2000, generator=seeded(0)) * 2 * torch.pi
    data = torch.stack([angle.cos(), angle.sin()], 1)
    denoiser = Denoiser(VectorNetwork(2, 64, 2), data_sd=0.7)
    levels = {"sigma_min": 0.15, "sigma_max": 0.25}
    train_denoiser(
        denoiser, data, data_sd=0.7, max_steps=800, batch_size=128, learning_rate=5e-3, generator=seeded(1), **levels
    )
    with torch.no_grad():
        off = (denoiser(data + 0.2 * torch.randn(data.shape, generator=seeded(2)), 0.2).norm(dim=1) - 1).abs().mean()
    assert float(off) < 0.08  # the noise alone leaves 0.16


@pytest.mark.parametrize("widths", [(8,), (16, 24), (8, 16, 24)])
def test_pictures_keep_their_shape_and_rows_are_independent(widths):
    """Oracle: each picture by itself."""
    torch.manual_seed(0)
    denoiser = Denoiser(PictureNetwork(2, widths)).double()
    x, sigma = torch.randn(3, 2, 16, 24, dtype=torch.float64), torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    whole = denoiser(x, sigma)
    assert whole.shape == x.shape
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], denoiser(x[i : i + 1], sigma[i : i + 1]))


def test_default_size_is_half_a_million():
    """Oracle: counting."""
    assert 0.4e6 < sum(weight.numel() for weight in PictureNetwork().parameters()) < 0.6e6


def test_draws_come_from_the_generator():
    """Oracle: invariance: equal seeds give equal losses, whether rows come from a tensor or from a function."""
    rows = torch.randn(64, 3, generator=seeded(0))

    def run(data):
        torch.manual_seed(3)
        return train_denoiser(Denoiser(VectorNetwork(3, 8, 1)), data, max_steps=5, batch_size=4, generator=seeded(5))

    assert torch.equal(run(rows), run(rows))
    assert torch.isfinite(run(lambda count: rows[:count])).all()


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    model, rows = Denoiser(VectorNetwork(3, 8, 1)), torch.ones(4, 3)
    with pytest.raises(ArgumentError, match="data_sd"):
        Denoiser(VectorNetwork(3), data_sd=0.0)
    with pytest.raises(ArgumentError, match="depth"):
        VectorNetwork(3, 8, 0)
    with pytest.raises(ArgumentError, match="multiples of 8"):
        PictureNetwork(1, (12,))
    with pytest.raises(ShapeError, match="multiples of 4"):
        PictureNetwork()(torch.ones(1, 1, 10, 12), torch.ones(1))
    with pytest.raises(ShapeError, match="sigma"):
        model(rows, torch.ones(3))
    with pytest.raises(ArgumentError, match="sigma_min"):
        train_denoiser(model, rows, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ArgumentError, match="max_steps"):
        train_denoiser(model, rows, max_steps=0)
    with pytest.raises(ArgumentError, match="empty"):
        train_denoiser(model, rows[:0])
    with pytest.raises(NumericalError, match="step 0"):
        train_denoiser(model, rows * torch.nan, max_steps=2)
