"""Deformed images, and what a network makes of them."""

import pytest
import torch

from hesse.equivariant.lie import SO, GLPlus, LieResNet, equivariance_report, transform_images
from hesse.errors import ArgumentError, ShapeError

F64 = torch.float64


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _network(group=None, **options):
    group = GLPlus(2) if group is None else group
    small = {"channels": 4, "hidden": 8, "num_draws": 2, "generator": _seeded()}
    return LieResNet(group, 3, **(small | options)).double()


def _images(count=4, size=12):
    x = torch.zeros(count, 1, size, size, dtype=F64)
    x[..., 3:-3, 3:-3] = torch.rand(count, 1, size - 6, size - 6, generator=_seeded(), dtype=F64)
    return x


def test_deformed_images():
    """Oracle: quarter turns and whole pixels, exactly; a Gaussian deformed in closed form."""
    x = torch.rand(2, 1, 9, 9, generator=_seeded(), dtype=F64)
    turn = torch.tensor([[0, -1], [1, 0]], dtype=F64)
    torch.testing.assert_close(transform_images(x, turn), x.rot90(-1, (2, 3)), rtol=0, atol=1e-12)
    shifted = transform_images(x, torch.eye(2, dtype=F64), (2.0, -1.0))
    torch.testing.assert_close(shifted[..., :8, 2:], x[..., 1:, :7], rtol=0, atol=1e-12)
    axis = torch.arange(31, dtype=F64) - 15
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([u, v], -1)
    g = torch.tensor([[1.2, 0.3], [-0.1, 0.9]], dtype=F64)
    plain, wanted = (torch.exp(-p.square().sum(-1) / 40)[None, None] for p in (points, points @ g.inverse().mT))
    torch.testing.assert_close(transform_images(plain, g), wanted, rtol=0, atol=0.01)
    with pytest.raises(ShapeError, match="2, 2"):
        transform_images(x, torch.eye(3))


def test_report_of_equivariance():
    """Oracle: zero for the identity and for a quarter turn; small for a rotation; larger outside SO(2)."""
    network = _network(SO(2))
    x = _images(6, 20)
    eye = torch.eye(2, dtype=F64)
    assert equivariance_report(network, x, eye).deformation < 1e-12
    assert equivariance_report(network, x, torch.tensor([[0.0, -1.0], [1.0, 0.0]])).deformation < 1e-8
    angle = torch.tensor(0.35, dtype=F64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    rotated = equivariance_report(network, x, turn)
    stretched = equivariance_report(network, x, torch.diag(torch.tensor([1.4, 0.7], dtype=F64)))
    assert rotated.deformation < 0.5 * stretched.deformation
    assert equivariance_report(_network(), x, eye).resampling > rotated.resampling
    with pytest.raises(ShapeError, match="two images"):
        equivariance_report(network, x[:1], eye)
    for g in (torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([1.0, -1.0])), eye * torch.nan):
        with pytest.raises(ArgumentError, match="g to be"):
            equivariance_report(network, x, g)
