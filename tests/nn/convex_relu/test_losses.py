"""Losses against autograd, brute force and Fenchel's identity."""

import pytest
import torch

from hesse.nn.convex_relu.losses import conjugate, curvature, loss_value, proximal, slope
from tests.nn.convex_relu.cases import F64, seeded

KINDS = ("squared", "hinge", "bce")


def case():
    f = 2 * torch.randn(9, generator=seeded(0), dtype=F64)
    return f, torch.where(torch.arange(9) % 2 == 0, 1.0, -1.0).to(F64)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind):
    """Oracle: automatic differentiation, twice."""
    f, y = case()
    f.requires_grad_()
    (first,) = torch.autograd.grad(loss_value(kind, f, y), f, create_graph=True)
    torch.testing.assert_close(slope(kind, f, y), first)
    second = (
        torch.autograd.grad(first.sum(), f)[0] if first.requires_grad and kind != "hinge" else torch.zeros(9).double()
    )
    torch.testing.assert_close(curvature(kind, f.detach(), y), second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0.1, 30.0, 1e5])
def test_proximal_map(kind, step):
    """Oracle: no point of a fine grid about the answer, nor of a coarse one, does better."""
    f, y = case()
    found = proximal(kind, f, y, step)
    shifts = torch.cat([torch.linspace(-1e-3, 1e-3, 201), torch.linspace(-40, 40, 201)]).to(F64)

    def cost(u):
        single = loss_value(kind, u.unsqueeze(-1), y.unsqueeze(-1)) / (1 if kind == "squared" else 9)
        return single + (u - f).square() / (2 * step)

    best = cost(found)
    assert all(bool((cost(found + shift) >= best - 1e-12).all()) for shift in shifts)


@pytest.mark.parametrize("kind", KINDS)
def test_conjugate(kind):
    """Oracle: Fenchel, l(f) + l*(∇l(f)) = f·∇l(f)."""
    f, y = case()
    z = slope(kind, f, y)
    torch.testing.assert_close(loss_value(kind, f, y) + conjugate(kind, z, y), (f * z).sum())
