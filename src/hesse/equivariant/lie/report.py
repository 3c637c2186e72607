"""How far a network is from equivariant on a grid of pixels, and the deformed images that show it.

Shapes: B images, C channels, H x W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hesse.equivariant.lie.groups import GroupSamples
from hesse.equivariant.lie.network import LieResNet
from hesse.errors import ArgumentError, ShapeError

__all__ = ["EquivarianceReport", "equivariance_report", "transform_images"]


@dataclass(frozen=True, slots=True)
class EquivarianceReport:
    """Root-mean-square changes of a network's invariants, in units of their spread between images."""

    deformation: float  # net(L_g f; gH) against net(f; H), zero in the continuum
    resampling: float  # net(f; H') against net(f; H) for elements H' drawn anew: the noise of sampling


@torch.no_grad()
def equivariance_report(
    network: LieResNet, x: Tensor, g: Tensor, *, translation: tuple[float, float] = (0.0, 0.0), seed: int = 0
) -> EquivarianceReport:
    """Measure what is left of equivariance on a grid of pixels.

    Parameters
    ----------
    network : LieResNet
        Trained or not; its norms use their running means here, and it is left in evaluation mode.
    x : Tensor, shape (B, C_in, H, W)
        Images with room around their objects, B >= 2.
    g : Tensor, shape (2, 2)
        The deformation, an element of the network's group; another one of positive determinant is allowed, and shows
        what the group does not cover.
    translation : (float, float), default (0, 0)
        In pixels, after g.
    seed : int, default 0
        Of the elements H and H'.

    Returns
    -------
    EquivarianceReport
        Two numbers.

    Raises
    ------
    ShapeError
        If there are fewer than two images, or g is not 2 x 2.
    ArgumentError
        If g is not finite or of determinant <= 0.
    """
    if len(x) < 2:
        raise ShapeError(f"equivariance_report: expected x to hold at least two images, got {len(x)}")
    if g.shape == (2, 2) and not (bool(g.isfinite().all()) and float(torch.linalg.det(g.double())) > 0):
        raise ArgumentError(
            f"equivariance_report: expected g to be finite and of positive determinant, got {g.tolist()}"
        )
    network.eval()
    moved = transform_images(x, g, translation)
    here, anew = network.fixed_samples(2, seed=seed)
    there = g.to(here[0].h)
    back = torch.linalg.inv(there)
    carried = tuple(GroupSamples(there @ part.h, part.h_inv @ back, part.weight) for part in here)
    plain, deformed, redrawn = (
        network.features(images, network.kernels(samples)).double()
        for images, samples in ((x, here), (moved, carried), (x, anew))
    )
    spread = (plain - plain.mean(0)).square().mean().sqrt()
    gap, noise = ((other - plain).square().mean().sqrt() for other in (deformed, redrawn))
    return EquivarianceReport(float(gap / spread), float(noise / spread))


def transform_images(x: Tensor, g: Tensor, translation: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Deform images about their centre: (L f)(y) = f(g⁻¹(y - t)), by bicubic interpolation and zeros outside.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Images.
    g : Tensor, shape (2, 2)
        Acts on (x, y), x to the right and y down.
    translation : (float, float), default (0, 0)
        t in pixels.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Deformed images. Exact for quarter turns of square images.

    Raises
    ------
    ShapeError
        If a shape is wrong.
    """
    if x.ndim != 4 or g.shape != (2, 2):
        raise ShapeError(f"transform_images: expected (B, C, H, W) and (2, 2), got {tuple(x.shape)}, {tuple(g.shape)}")
    half = torch.tensor([x.shape[3], x.shape[2]], dtype=x.dtype, device=x.device) / 2
    inverse = torch.linalg.inv(g.to(dtype=torch.float64)).to(x)
    shift = -(inverse @ torch.tensor(translation, dtype=x.dtype, device=x.device))
    theta = torch.cat([inverse * half / half[:, None], (shift / half)[:, None]], 1)
    grid = nn.functional.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
