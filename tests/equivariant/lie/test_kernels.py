"""Kernels on the plane, on the group and on both."""

import pytest
import torch

from hesse.equivariant.lie import (
    SL,
    SO,
    BasisKernel,
    GLPlus,
    SampleContext,
    SirenKernel,
    group_harmonics,
    ring_harmonics,
)
from hesse.equivariant.lie.kernels import unit_grid
from hesse.errors import ArgumentError

F64 = torch.float64


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _rotation(angle):
    angle = torch.as_tensor(angle, dtype=F64)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))


def test_grid_is_of_pixel_centres():
    """Oracle: torch's own grid of an identity map, with corners not aligned."""
    theta = torch.eye(2, 3)[None]
    wanted = torch.nn.functional.affine_grid(theta, [1, 1, 5, 5], align_corners=False).reshape(-1, 2)
    torch.testing.assert_close(unit_grid(5), wanted)


def test_rings_turn_as_circular_harmonics_do():
    """Oracle: the formula in polar coordinates; a rotation mixes cosine and sine of an order by m times its angle."""
    points = 0.6 * torch.randn(40, 2, generator=_seeded(), dtype=F64)
    values = ring_harmonics(points)
    assert values.shape == (40, 13)
    r, phi = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    window = (1 - (r / 0.85) ** 2).clamp_min(0)
    ring = window * torch.exp(-((r - 0.54) ** 2) / (2 * 0.23**2)) * (r**2 / (r**2 + 0.02 / 1.69)) ** 1.5
    torch.testing.assert_close(values[:, -2], ring * torch.cos(3 * phi))
    torch.testing.assert_close(values[:, -1], ring * torch.sin(3 * phi))
    turned = ring_harmonics(points @ _rotation(0.4).mT)
    torch.testing.assert_close(turned[:, -2:], values[:, -2:] @ _rotation(1.2).mT)
    assert bool((values[r > 0.85] == 0).all())
    assert torch.autograd.gradcheck(ring_harmonics, torch.tensor([[0.0, 0.0], [0.3, 0.1]], dtype=F64).requires_grad_())


def test_harmonics_of_the_group():
    """Oracle: orthonormality on eight equispaced angles; with stretches, products written out."""
    group = GLPlus(2)
    values = group_harmonics(group, _rotation(torch.arange(8, dtype=F64) * torch.pi / 4), spread=False)
    gram = values.mT @ values / 8
    wanted = torch.ones(8, dtype=F64)
    wanted[-1] = 2.0  # cos 4θ is ±1 there
    torch.testing.assert_close(gram, torch.diag(wanted))
    h = group.sample(6, generator=_seeded(), dtype=F64).h
    X, R = group.decompose(h)
    spread = group_harmonics(group, h, spread=True).unflatten(-1, (8, 4))
    decay = torch.exp(-(2 * X).square().sum((1, 2)) / 2)
    torch.testing.assert_close(spread[..., 0], group_harmonics(group, R, spread=False) * decay[:, None])
    torch.testing.assert_close(spread[..., 3], spread[..., 0] * 2 * X[:, 1, 1, None])


@pytest.mark.parametrize("kind", [BasisKernel, SirenKernel])
@pytest.mark.parametrize("group", [GLPlus(2), SL(2), SO(2)])
def test_kernel_of_both_arguments(kind, group):
    """Oracle: pairs one at a time; shapes; zero outside the window."""
    options = {"spread": True} if kind is BasisKernel else {}
    kernel = kind(group, 3, 2, on_plane=True, on_group=True, grid_size=5, generator=_seeded(), **options).double()
    [part] = SampleContext(group, num_samples=4, sampling="independent").draw(generator=_seeded(), dtype=F64)
    points = unit_grid(5, dtype=F64) @ part.h_inv.mT
    relative = part.h_inv[:, None] @ part.h
    values = kernel(points, relative)
    assert values.shape == (4, 4, 25, 3, 2)
    for i, j in ((0, 1), (3, 2)):
        alone = kernel(points[i : i + 1], relative[i : i + 1, j : j + 1])
        torch.testing.assert_close(alone[0, 0], values[i, j])
    outside = points.norm(dim=-1) > 0.85
    assert bool((values.permute(0, 2, 1, 3, 4)[outside] == 0).all())
    assert values.std() > 0


@pytest.mark.parametrize("kind", [BasisKernel, SirenKernel])
def test_kernels_of_one_argument(kind):
    """Oracle: shapes, and the start's scale: a basis gives unit norm over grid and channels of the input."""
    group = GLPlus(2)
    points = unit_grid(7)[None]
    plane = kind(group, 40, 3, on_plane=True, on_group=False, grid_size=7, generator=_seeded())
    values = plane(points, None)
    assert values.shape == (1, 49, 40, 3)
    low, high = (0.5, 2.0) if kind is BasisKernel else (0.005, 0.1)
    assert low < float(values.detach().square().sum((1, 3)).mean()) < high
    alone = kind(group, 4, 3, on_plane=False, on_group=True, generator=_seeded())
    assert alone(None, torch.eye(2).expand(2, 5, 2, 2)).shape == (2, 5, 4, 3)


def test_embedded_angle_does_not_jump_at_the_identity():
    """Oracle: continuity. The authors' angle jumps by 2π at a rotation of -0.001, the embedded one does not."""
    small = _rotation([0.001, -0.001]).float()[None]
    jumps = {}
    for angle in ("embed", "official"):
        kernel = SirenKernel(SO(2), 1, 1, on_plane=False, on_group=True, angle=angle, w0=4.0, generator=_seeded())
        values = kernel(None, small).detach().flatten()
        jumps[angle] = float((values[0] - values[1]).abs() / values.abs().max())
    assert jumps["embed"] < 0.02 < 0.1 < jumps["official"]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: BasisKernel(GLPlus(2), 1, 1, on_plane=True, on_group=False), "grid_size"),
        (lambda: BasisKernel(GLPlus(3), 1, 1, on_plane=False, on_group=True), "n = 2"),
        (lambda: SirenKernel(GLPlus(3), 1, 1, on_plane=True, on_group=True, angle="official"), "n = 2"),
        (lambda: SirenKernel(GLPlus(2), 1, 1, on_plane=True, on_group=True, angle="both"), "angle"),
    ],
)
def test_refuses(call, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(ArgumentError, match=match):
        call()
