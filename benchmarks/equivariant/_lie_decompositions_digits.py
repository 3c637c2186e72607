"""scikit-learn's digits, deformed: each picture is one evaluation of the bicubic interpolant of an 8 x 8 digit.

Shapes: B digits, 20 x 20 pixels, of which an undeformed digit covers the middle 12 x 12.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.data import digit_pictures
from hesse.errors import ArgumentError

__all__ = ["DEFORMATIONS", "Deformation", "Digits", "affine_digits", "homography_digits", "split_rows", "zero_frame"]

CANVAS, MAGNIFICATION = 20, 1.5
NUM_TRAIN = 1200


@dataclass(frozen=True, slots=True)
class Deformation:
    """Half-ranges of uniform laws: degrees, shear, scale about 1, pixels."""

    rotation: float = 0.0
    shear: float = 0.0
    scale: float = 0.0
    translate: float = 0.0


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures on a background of zero, (B, 1, 20, 20) in [0, 1], and labels."""

    x: Tensor
    y: Tensor


DEFORMATIONS = {
    "clean": Deformation(),
    "trans": Deformation(translate=1.5),
    "rot20": Deformation(rotation=20.0),
    "shear": Deformation(shear=0.2),
    "scale": Deformation(scale=0.2),
    "affine": Deformation(20.0, 0.2, 0.2, 1.5),
    "rot180": Deformation(rotation=180.0),
    "full": Deformation(180.0, 0.2, 0.2, 1.5),
}


def affine_digits(rows: Tensor, seed: int, deformation: Deformation) -> Digits:
    """Digits of the given rows of the table, each deformed by rotation times shear times scales, then moved."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(half_range: float) -> Tensor:
        return half_range * (2 * torch.rand(len(rows), generator=generator, dtype=torch.float64) - 1)

    angle = torch.deg2rad(uniform(deformation.rotation))
    shear, sx, sy = uniform(deformation.shear), 1 + uniform(deformation.scale), 1 + uniform(deformation.scale)
    shift = torch.stack([uniform(deformation.translate), uniform(deformation.translate)], -1)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    zero = torch.zeros_like(shear)
    stretch = torch.stack([sx, shear * sy, zero, sy], -1).unflatten(-1, (2, 2))
    points = _pixel_centres() - shift[:, None]
    return _render(rows, points @ torch.linalg.inv(rotation @ stretch).mT)


def homography_digits(rows: Tensor, seed: int, jitter: float = 0.15) -> Digits:
    """Digits under random homographies: each corner of the canvas moves by up to ``jitter`` of its half-width."""
    generator = torch.Generator().manual_seed(seed)
    half = CANVAS / 2
    corners = half * torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    moved = corners + jitter * half * (2 * torch.rand(len(rows), 4, 2, generator=generator, dtype=torch.float64) - 1)
    # eight equations for the homography that takes the moved corners back
    (u, v), (x, y) = moved.unbind(-1), corners.expand_as(moved).unbind(-1)
    one, zero = torch.ones_like(u), torch.zeros_like(u)
    equations = torch.cat(
        [
            torch.stack([u, v, one, zero, zero, zero, -u * x, -v * x], -1),
            torch.stack([zero, zero, zero, u, v, one, -u * y, -v * y], -1),
        ],
        1,
    )
    entries = torch.linalg.solve(equations, torch.cat([x, y], 1))
    matrix = torch.cat([entries, torch.ones(len(rows), 1, dtype=torch.float64)], 1).unflatten(-1, (3, 3))
    points = torch.cat([_pixel_centres(), torch.ones(CANVAS**2, 1, dtype=torch.float64)], -1) @ matrix.mT
    return _render(rows, points[..., :2] / points[..., 2:])


def zero_frame(x: Tensor, pixels: int) -> Tensor:
    """The same pictures on a larger canvas."""
    return nn.functional.pad(x, (pixels,) * 4)


def split_rows(seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the 1,200 training digits and of the 597 test digits."""
    order = torch.randperm(len(digit_pictures()[1]), generator=torch.Generator().manual_seed(seed))
    return order[:NUM_TRAIN], order[NUM_TRAIN:]


def _pixel_centres() -> Tensor:
    centres = torch.arange(CANVAS, dtype=torch.float64) - (CANVAS - 1) / 2
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _render(rows: Tensor, points: Tensor) -> Digits:
    """Evaluate the interpolant at points of the undeformed canvas, in pixels from its centre, (B, 400, 2)."""
    pixels, labels = digit_pictures()
    if len(rows) and int(rows.max()) >= len(labels):
        raise ArgumentError(f"rows: expected rows below {len(labels)}, got {int(rows.max())}")
    digits = torch.as_tensor(pixels)[rows].reshape(-1, 1, 8, 8)
    padded = nn.functional.pad(digits, (4, 4, 4, 4))
    grid = (points.expand(len(rows), -1, -1) / (MAGNIFICATION * 8)).unflatten(1, (CANVAS, CANVAS))
    x = nn.functional.grid_sample(padded, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return Digits(x.clamp(0, 1).float(), torch.as_tensor(labels)[rows].long())
