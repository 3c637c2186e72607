"""Penalties of other methods against their definitions, float64."""

from itertools import combinations

import pytest
import torch
from torch import nn

from hesse.curvature.alignment.baselines import (
    coral_penalty,
    fishr_penalty,
    iga_penalty,
    irm_penalty,
    vrex_penalty,
)
from hesse.curvature.alignment.penalties import hgp_penalty
from hesse.errors import ArgumentError
from tests.curvature.alignment.cases import LOSSES, dense, domains, linear_head, loss_function

PENALTIES = (irm_penalty, vrex_penalty, coral_penalty, fishr_penalty, iga_penalty)


def variants(head):
    return head, nn.Sequential(head)


@pytest.mark.parametrize("loss", LOSSES)
def test_irm_is_the_projection_of_the_gradient_on_the_head(loss):
    """Oracle: ⟨Θ, g_e⟩² from dense gradients; and torch's derivative in a dummy factor."""
    head, data = linear_head(), domains(loss)
    theta = torch.cat([head.weight, head.bias.unsqueeze(1)], dim=1).flatten()
    wanted = torch.stack([(theta @ dense(head, f, y, loss)[0]).square() for f, y in data]).mean()
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    slopes = [torch.autograd.grad(loss_function(loss)(head(f) * factor, y), factor)[0] for f, y in data]
    torch.testing.assert_close(torch.stack(slopes).square().mean(), wanted)
    for variant in variants(head):
        torch.testing.assert_close(irm_penalty(data, variant, loss=loss), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_vrex_and_iga_are_variances(loss):
    """Oracle: losses by torch, dense gradients; IGA is also the gradient part of HGP."""
    head, data = linear_head(), domains(loss)
    losses = torch.stack([loss_function(loss)(head(f), y) for f, y in data])
    gradients = torch.stack([dense(head, f, y, loss)[0] for f, y in data])
    for variant in variants(head):
        torch.testing.assert_close(
            vrex_penalty(data, variant, loss=loss), (losses - losses.mean()).square().mean(), rtol=1e-10, atol=1e-12
        )
        wanted = (gradients - gradients.mean(0)).square().sum() / 3
        torch.testing.assert_close(iga_penalty(data, variant, loss=loss), wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(hgp_penalty(data, variant, 0.0, 1.0, loss=loss), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_fishr_compares_variances_of_example_gradients(loss):
    """Oracle: a loop over examples."""
    head, data = linear_head(), domains(loss)
    rows = [
        torch.stack([dense(head, f[i : i + 1], y[i : i + 1], loss)[0] for i in range(len(f))]).var(0, correction=0)
        for f, y in data
    ]
    mean = torch.stack(rows).mean(0)
    wanted = torch.stack([(row - mean).square().sum() for row in rows]).mean()
    for variant in variants(head):
        torch.testing.assert_close(fishr_penalty(data, variant, loss=loss), wanted, rtol=1e-10, atol=1e-12)


def test_coral_compares_moments():
    """Oracle: numpy-style means and covariances, pair by pair."""
    head, data = linear_head(), domains("cross_entropy")
    gaps = []
    for (one, _), (other, _) in combinations(data, 2):
        centred = [x - x.mean(0) for x in (one, other)]
        cov = [x.T @ x / (len(x) - 1) for x in centred]
        gaps.append(((one.mean(0) - other.mean(0)) ** 2).mean() + ((cov[0] - cov[1]) ** 2).mean())
    torch.testing.assert_close(coral_penalty(data, head), sum(gaps) / 3, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_in_the_features(penalty, loss):
    """Oracle: finite differences, through the closed forms and through autograd."""
    data, head = domains(loss, 4, 3, (4, 5)), linear_head(4, 3)
    leaves = [f.clone().requires_grad_() for f, _ in data]
    for variant in variants(head):
        assert torch.autograd.gradcheck(
            lambda *fs, v=variant: penalty([(f, y) for f, (_, y) in zip(fs, data, strict=True)], v, loss=loss), leaves
        )


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    head, data = linear_head(), domains("cross_entropy")
    for penalty in PENALTIES:
        with pytest.raises(ArgumentError, match="no domains"):
            penalty([], head)
        if penalty is not irm_penalty:
            with pytest.raises(ArgumentError, match="one domain"):
                penalty(data[:1], head)
            assert float(penalty(data[:1], head, allow_single=True).detach()) == 0
    with pytest.raises(ArgumentError, match="two examples"):
        coral_penalty([data[0], (data[1][0][:1], data[1][1][:1])], head)
