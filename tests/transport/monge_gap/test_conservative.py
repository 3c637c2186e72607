"""The penalty on fields that are no gradients."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.transport import conservative_penalty


def test_linear_field_against_its_matrix():
    """Oracle: ‖J - Jᵀ‖²_F of the matrix itself, within four standard errors of 400 probes."""
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    x = torch.randn(1, 5, dtype=torch.float64, generator=generator)
    runs = torch.stack([conservative_penalty(lambda z: z @ J.mT, x, generator=generator) for _ in range(400)])
    runs = runs.detach()
    error = (runs.mean() - (J - J.mT).square().sum()).abs()
    assert float(error) <= 4 * float(runs.std()) / 20


def test_gradient_field_costs_nothing_and_a_rotation_does():
    """Oracle: the Jacobian of a gradient is symmetric; that of the rotation in the plane gives exactly 8."""
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(conservative_penalty(lambda z: z * z.square().sum(1, keepdim=True), x).detach()) == pytest.approx(
        0, abs=1e-20
    )
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert float(conservative_penalty(lambda z: z @ rotation.mT, x).detach()) == pytest.approx(8.0)


def test_trains_parameters():
    """Oracle: central differences in the matrix of a linear field, with the same probes."""
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    J = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def value(J):
        return conservative_penalty(lambda z: (z @ J.mT).tanh(), x, 2, generator=torch.Generator().manual_seed(4))

    assert torch.autograd.gradcheck(value, (J,))


def test_refusals():
    """Oracle: the documented errors."""
    x = torch.ones(2, 3)
    with pytest.raises(ArgumentError, match="num_probes"):
        conservative_penalty(lambda z: z, x, 0)
    with pytest.raises(ShapeError, match="F maps"):
        conservative_penalty(lambda z: z[:, :2], x)
