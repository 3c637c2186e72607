"""Fits to perturbed data."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.generative.singular import PerturbedGenerativeMLE, w1_distance


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_a_circle(count: int, seed: int, dim: int = 2) -> torch.Tensor:
    angle = 6.283185 * torch.rand(count, generator=seeded(seed))
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return torch.nn.functional.pad(points, (0, dim - 2))


SMALL: dict[str, Any] = {"max_iter": 4, "hidden_sizes": (16,), "batch_size": 50}


@pytest.fixture(scope="module")
def linear_data():
    data = torch.randn(500, 1, generator=seeded(0)) @ torch.tensor([[1.0, -0.5, 0.3, 0.8]])
    return data + 0.3 * torch.randn(data.shape, generator=seeded(1))


def linear_network() -> torch.nn.Module:
    network = torch.nn.Linear(1, 4)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.5], [-0.1], [0.2], [0.1]]))
        network.bias.zero_()
    return network


@pytest.mark.slow
def test_linear_fit_is_probabilistic_pca_and_noise_adds_its_square(linear_data):
    """Oracle: PPCA in closed form, σ² the mean of the small eigenvalues; perturbed, the same plus s² within 3 %."""
    covariance = torch.cov(linear_data.mT.double(), correction=0)
    closed = float(torch.linalg.eigvalsh(covariance)[:-1].mean())
    settings: dict[str, Any] = {"likelihood": "exact", "latent_dim": 1, "num_importance": 2}
    settings |= {"max_iter": 1500, "batch_size": 500}
    plain, noisy = (
        PerturbedGenerativeMLE(linear_network(), perturbation=s, **settings).fit(linear_data) for s in (0.0, 0.5)
    )
    assert plain.sigma_**2 == pytest.approx(closed, rel=0.03)
    assert (noisy.sigma_**2 - plain.sigma_**2) / noisy.perturbation_**2 == pytest.approx(1, abs=0.03)
    law = torch.distributions.MultivariateNormal(linear_data.mean(0).double(), covariance)
    gap = plain.log_prob(linear_data, 4000).double() - law.log_prob(linear_data.double())
    assert abs(float(gap.mean())) < 0.02
    leading = torch.linalg.eigh(covariance).eigenvectors[:, -1].float()
    both = torch.stack([plain.encode(linear_data)[:, 0], linear_data @ leading])
    assert abs(float(torch.corrcoef(both)[0, 1])) > 0.99


@pytest.mark.slow
def test_noise_keeps_sigma_from_collapsing():
    """Oracle: theory; on a circle in R^10 σ falls far below s without noise, and equals s within a tenth with it."""
    data = on_a_circle(400, 2, 10)
    settings: dict[str, Any] = {"max_iter": 1200, "learning_rate": 5e-3}
    free = PerturbedGenerativeMLE(perturbation=0.0, **settings).fit(data)
    held = PerturbedGenerativeMLE(perturbation=0.1, **settings).fit(data)
    assert free.sigma_ < 0.4 * held.perturbation_
    assert held.sigma_ == pytest.approx(held.perturbation_, rel=0.1)
    assert -held.score(on_a_circle(400, 3, 10)) < 0.35
    noisy = held.sample(400, noise=True, generator=seeded(4))
    assert float(noisy[:, 2:].std()) == pytest.approx(held.sigma_, rel=0.1)


@pytest.mark.parametrize("likelihood", ["exact", "iwae", "vae"])
@pytest.mark.parametrize("latent", ["normal", "uniform"])
def test_units_do_not_matter(likelihood, latent):
    """Oracle: invariance; tenfold moved data give tenfold moved samples, σ and s, and densities less D log 10."""
    data = on_a_circle(100, 5).double()
    settings: dict[str, Any] = SMALL | {"likelihood": likelihood, "latent": latent, "perturbation": 0.1}
    small = PerturbedGenerativeMLE(**settings).fit(data)
    large = PerturbedGenerativeMLE(**settings).fit(10 * data + 3)
    torch.testing.assert_close(large.sample(20, generator=seeded(6)), 10 * small.sample(20, generator=seeded(6)) + 3)
    assert large.sigma_ == pytest.approx(10 * small.sigma_)
    assert large.perturbation_ == pytest.approx(10 * small.perturbation_)
    expected = small.log_prob(data, 50) - 2 * float(np.log(10))
    torch.testing.assert_close(large.log_prob(10 * data + 3, 50), expected)
    torch.testing.assert_close(large.encode(10 * data + 3), small.encode(data))
    assert small.encode(data).shape == (100, 2)


def test_scale_ignores_coordinates_without_content():
    """Oracle: invariance under an isometric embedding; a Gaussian of spread 3 has scale 3."""
    flat, wide = on_a_circle(200, 7), on_a_circle(200, 7, 30)
    assert PerturbedGenerativeMLE(perturbation=0.1, **SMALL).fit(flat).scale_ == pytest.approx(
        PerturbedGenerativeMLE(perturbation=0.1, **SMALL).fit(wide).scale_, rel=1e-5
    )
    ball = 3 * torch.randn(4000, 2, generator=seeded(8))
    assert PerturbedGenerativeMLE(perturbation=0.1, **SMALL).fit(ball).scale_ == pytest.approx(3, rel=0.05)


def test_ladder_keeps_the_rung_nearest_to_held_out_rows():
    """Oracle: the least W1 on the path; rungs from the largest down; and the same seed gives the same fit."""
    data, held_out = on_a_circle(200, 9), on_a_circle(100, 10)
    settings: dict[str, Any] = SMALL | {"perturbation": [0.0, 0.1, 0.3], "max_iter": 100, "warm_iter": 20}
    first, second = (PerturbedGenerativeMLE(**settings).fit(data, validation=held_out) for _ in range(2))
    assert [rung.perturbation / first.scale_ for rung in first.path_] == pytest.approx([0.3, 0.1, 0.0])
    best = min(first.path_, key=lambda rung: rung.w1)
    assert (best.perturbation, best.sigma) == (first.perturbation_, first.sigma_)
    assert -first.score(held_out) == pytest.approx(best.w1)
    assert first.n_iter_ == 140
    assert torch.equal(first.sample(5, generator=seeded(0)), second.sample(5, generator=seeded(0)))
    assert w1_distance(best.module(torch.randn(100, 2, generator=seeded(1))).detach(), held_out) < 1


@pytest.mark.parametrize(("latent_dim", "method"), [(2, "exact"), (3, "sliced")])
def test_distance_by_which_a_rung_is_chosen(latent_dim, method):
    """Oracle: the distance of the same samples by hand: exact up to two latent dimensions, sliced beyond."""
    data = on_a_circle(1000, 17, 5)
    model = PerturbedGenerativeMLE(latent_dim=latent_dim, perturbation=0.1, **SMALL).fit(data)
    samples = model.sample(1000, generator=seeded(model.random_state + 1))
    expected = w1_distance(samples, data, method, generator=seeded(model.random_state))
    assert -model.score(data) == pytest.approx(expected, rel=1e-6)


def test_rungs_after_the_first_take_half_its_steps():
    """Oracle: n + n/2 + n/2 steps by default."""
    settings: dict[str, Any] = SMALL | {"perturbation": [0.0, 0.1, 1.0], "max_iter": 40}
    assert PerturbedGenerativeMLE(**settings).fit(on_a_circle(60, 18)).n_iter_ == 40 + 20 + 20


def test_one_draw_of_noise_is_drawn_once():
    """Oracle: with batches of everything and a linear f, one draw fits another noise than fresh ones do."""
    data = on_a_circle(60, 11)
    fits = [PerturbedGenerativeMLE(perturbation=0.2, fresh=fresh, **SMALL).fit(data) for fresh in (True, False)]
    assert fits[0].sigma_ != fits[1].sigma_


def test_warnings_say_what_is_wrong():
    """Oracle: data made to provoke each."""
    circle = on_a_circle(100, 12)
    with pytest.warns(UserWarning, match="degenerate"):
        model = PerturbedGenerativeMLE(perturbation=0.0, sigma_bounds=(0.5, 0.50001), **SMALL).fit(circle)
    assert model.degenerate_
    pixels = torch.randint(5, (100, 2), generator=seeded(13)).float()
    with pytest.warns(UserWarning, match="discrete"):
        PerturbedGenerativeMLE(perturbation=0.1, **SMALL).fit(pixels)
    apart = torch.rand(100, 2, generator=seeded(14)) + 2 * (torch.arange(100) % 2).unsqueeze(1)
    with pytest.warns(UserWarning, match="join clusters"):
        PerturbedGenerativeMLE(perturbation=1.0, **SMALL).fit(apart)
    with pytest.warns(UserWarning, match="end of the ladder"):
        PerturbedGenerativeMLE(perturbation=[0.01, 0.011], **SMALL).fit(circle)


def test_scikit_learn_can_clone_it():
    """Oracle: sklearn.base.clone and get_params; arrays of float64 in, tensors of float64 out."""
    model = PerturbedGenerativeMLE(perturbation=0.2, likelihood="iwae", **SMALL)
    twin: Any = clone(model)
    assert twin.get_params() == model.get_params()
    assert twin.fit(on_a_circle(60, 15).double().numpy()).sample(3).dtype == torch.float64


def test_refusals():
    """Oracle: the documented errors."""
    data = on_a_circle(60, 16)
    wrong: dict[str, Any] = {
        "likelihood": "gan",
        "perturbation": [-1.0],
        "latent": "cauchy",
        "latent_dim": 0,
        "sigma_bounds": (1.0, 0.5),
        "max_iter": 0,
        "warm_iter": 0,
        "learning_rate": 0.0,
        "validation_fraction": 1.0,
    }
    for name, value in wrong.items():
        with pytest.raises(ArgumentError, match=name):
            PerturbedGenerativeMLE(**SMALL | {name: value}).fit(data)
    with pytest.raises(ArgumentError, match="iwae"):
        PerturbedGenerativeMLE(likelihood="exact", latent_dim=3).fit(data)
    with pytest.raises(ArgumentError, match="auto"):
        PerturbedGenerativeMLE(perturbation="best").fit(data)
    with pytest.raises(ArgumentError, match="same point"):
        PerturbedGenerativeMLE().fit(torch.ones(60, 2))
    with pytest.raises(ShapeError, match="50"):
        PerturbedGenerativeMLE().fit(data[:49])
    with pytest.raises(ShapeError, match="network"):
        PerturbedGenerativeMLE(torch.nn.Linear(2, 3)).fit(data)
    with pytest.raises(ShapeError, match="validation"):
        PerturbedGenerativeMLE().fit(data, validation=torch.ones(5, 3))
    with pytest.raises(NumericalError, match="X has NaN"):
        PerturbedGenerativeMLE().fit(data / 0)
    with pytest.raises(ArgumentTypeError, match="real"):
        PerturbedGenerativeMLE().fit(data.to(torch.complex64))
    for call in (lambda m: m.sample(3), lambda m: m.log_prob(data), lambda m: m.encode(data), lambda m: m.score(data)):
        with pytest.raises(ArgumentError, match="not fitted"):
            call(PerturbedGenerativeMLE())
    model = PerturbedGenerativeMLE(perturbation=0.1, **SMALL).fit(data)
    with pytest.raises(ShapeError, match="expected X"):
        model.log_prob(torch.ones(3, 5))
    with pytest.raises(ArgumentError, match="num_importance"):
        model.log_prob(data, 0)
    with pytest.raises(ArgumentError, match="n >= 1"):
        model.sample(0)
