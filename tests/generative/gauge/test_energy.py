import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError
from hesse.generative.gauge import EnergyScore, asymmetry, field_jacobian
from hesse.generative.score_network import VectorNetwork, train_denoiser


def energy_model(dtype=torch.float64) -> EnergyScore:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EnergyScore(VectorNetwork(3, 16, 2).to(dtype), 0.7, 0.01)


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_score_is_the_gradient_of_the_energy():
    """Oracle: autograd and finite differences; a symmetric Jacobian, to the last digits."""
    model, x = energy_model(), X.clone().requires_grad_()
    sigma = torch.linspace(0.1, 1, 6, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(model.energy(x, sigma).sum(), x)
    torch.testing.assert_close(model.score(x, sigma), wanted)
    assert torch.autograd.gradcheck(lambda y: model.score(y, 0.3), x)
    J = field_jacobian(model.score, X, 0.3)
    torch.testing.assert_close(J, J.mT, rtol=1e-10, atol=1e-10)
    assert float(asymmetry(model.score, X, 0.3).detach()) < 1e-20
    assert float(asymmetry(energy_model(torch.float32).score, X.float(), 0.3).detach()) < 1e-6


def test_without_its_network_it_is_exact_on_a_gaussian():
    """Oracle: the score of noised N(0, data_sd² I) and the posterior mean."""
    model = energy_model()
    for last in list(model.network.parameters())[-2:]:
        nn.init.zeros_(last)
    torch.testing.assert_close(model.score(X, 0.2), -X / (0.49 + 0.04))
    torch.testing.assert_close(model(X, 0.2), X * 0.49 / (0.49 + 0.04))


def test_training_finds_two_points():
    """Oracle: the closed-form denoiser of ±e_1, tanh(x_1 / σ²) e_1, to a tenth at σ = 0.5."""
    data = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EnergyScore(VectorNetwork(3, 64, 2), 0.7, 0.01)
    train_denoiser(model, data, data_sd=0.7, sigma_min=0.1, sigma_max=2.0, max_steps=1500, batch_size=128,
                   generator=torch.Generator().manual_seed(2))  # fmt: skip
    x = data.repeat(50, 1) + 0.5 * torch.randn(100, 3, generator=torch.Generator().manual_seed(3))
    wanted = torch.zeros_like(x)
    wanted[:, 0] = (x[:, 0] / 0.25).tanh()
    assert float((model(x, 0.5) - wanted).detach().square().sum(1).mean().sqrt()) < 0.1


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="ReLU"):
        EnergyScore(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(ArgumentError, match="data_sd"):
        EnergyScore(nn.Linear(3, 3), 0.0)
    with pytest.raises(ArgumentError, match="training range"):
        energy_model().score(X, 0.005)
