"""Clouds on surfaces and fields on them, for the claims of rvgp. Everything in float64; P points, always in R³."""

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Generator, Tensor

from benchmarks.peers import require_peer
from hesse.gp.rvgp import furthest_point_sampling

__all__ = [
    "Case",
    "dip_poles",
    "electrodes",
    "fibonacci_sphere",
    "icosphere",
    "igrf_case",
    "relative_error",
    "sphere_case",
    "sphere_field",
    "split",
    "swiss_roll_case",
    "torus_case",
    "travelling_wave",
]

EARTH_RADIUS_KM = 6371.2
IGRF_DATE = datetime(2025, 1, 1)


@dataclass(frozen=True, slots=True)
class Case:
    """A cloud, its unit normals and a tangent field."""

    points: Tensor  # (P, 3)
    normals: Tensor  # (P, 3)
    field: Tensor  # (P, 3)


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def split(total: int, share: float, seed: int) -> Tensor:
    return torch.randperm(total, generator=Generator().manual_seed(seed))[: round(share * total)]


def fibonacci_sphere(total: int) -> Tensor:
    order = torch.arange(total, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * order / total, math.pi * (1 + 5**0.5) * order
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


def sphere_field(points: Tensor, seed: int, degree: int = 3) -> Tensor:
    """grad p + n x grad q for random polynomials p, q of the coordinates, of the given degree."""
    place = points.clone().requires_grad_()
    x, y, z = place.unbind(1)
    powers = [(a, b, c) for a in range(degree + 1) for b in range(degree + 1 - a) for c in range(degree + 1 - a - b)]
    monomials = torch.stack([x**a * y**b * z**c for a, b, c in powers], dim=1)
    weights = torch.randn(len(powers), 2, dtype=torch.float64, generator=Generator().manual_seed(seed))
    first, second = (monomials @ weights).unbind(1)
    (slope,) = torch.autograd.grad(first.sum(), place, retain_graph=True)
    (stream,) = torch.autograd.grad(second.sum(), place)
    return slope - (slope * points).sum(1, keepdim=True) * points + torch.linalg.cross(points, stream)


def sphere_case(total: int, seed: int) -> Case:
    points = fibonacci_sphere(total)
    return Case(points, points, sphere_field(points, seed))


def _horizontal(points: Tensor) -> Tensor:
    ppigrf = require_peer("ppigrf")
    theta = torch.rad2deg(points[:, 2].clamp(-1, 1).acos()).numpy()
    phi = torch.rad2deg(torch.atan2(points[:, 1], points[:, 0])).numpy()
    _, south, east = (np.asarray(part).reshape(-1) for part in ppigrf.igrf_gc(EARTH_RADIUS_KM, theta, phi, IGRF_DATE))
    flat = torch.linalg.vector_norm(points[:, :2], dim=1)
    east_axis = torch.stack([-points[:, 1], points[:, 0], torch.zeros_like(flat)], dim=1) / flat[:, None]
    south_axis = torch.linalg.cross(east_axis, points)
    return torch.from_numpy(east)[:, None] * east_axis + torch.from_numpy(south)[:, None] * south_axis


def igrf_case(total: int) -> Case:
    """The horizontal geomagnetic field of IGRF-14 in 2025, in µT."""
    points = fibonacci_sphere(total)
    return Case(points, points, _horizontal(points) / 1000)


def dip_poles() -> tuple[Tensor, Tensor]:
    """Where the horizontal field vanishes, north and south, by search on ever finer caps."""
    poles = []
    for start in (torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, -1.0])):
        centre, reach = start.double(), 0.7
        for _ in range(8):
            cap = centre + reach * fibonacci_sphere(800)
            cap = cap / cap.norm(dim=1, keepdim=True)
            centre = cap[_horizontal(cap).norm(dim=1).argmin()]
            reach /= 3
        poles.append(centre)
    return poles[0], poles[1]


def torus_case(total: int, seed: int, *, radius: float = 1.0, tube: float = 0.4) -> Case:
    """Evenly thinned torus; components along the two circles are random trigonometric polynomials of degree 2."""
    generator = Generator().manual_seed(seed)
    angles = 2 * math.pi * torch.rand(20 * total, 2, dtype=torch.float64, generator=generator)
    density = (radius + tube * angles[:, 1].cos()) / (radius + tube)
    angles = angles[torch.rand(len(angles), dtype=torch.float64, generator=generator) < density]
    along, around = angles.unbind(1)
    ring = torch.stack([along.cos(), along.sin(), torch.zeros_like(along)], dim=1)
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    normals = around.cos()[:, None] * ring + around.sin()[:, None] * axis
    points = radius * ring + tube * normals
    kept = furthest_point_sampling(points, total)
    along, around, ring, normals = along[kept], around[kept], ring[kept], normals[kept]
    first = torch.stack([-ring[:, 1], ring[:, 0], torch.zeros_like(along)], dim=1)
    second = torch.linalg.cross(first, normals)
    waves = [torch.ones_like(along)]
    for a, b in [(1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2)]:
        waves += [(a * along + b * around).cos(), (a * along + b * around).sin()]
    weights = torch.randn(len(waves), 2, dtype=torch.float64, generator=generator)
    u, v = (torch.stack(waves, dim=1) @ weights).unbind(1)
    return Case(points[kept], normals, u[:, None] * first + v[:, None] * second)


def swiss_roll_case(total: int, seed: int, *, pitch: float = 0.02, turn_rate: float = 4.0) -> Case:
    """(a t cos t, h, a t sin t), t in [3π, 8π], h in [0, 1]; a unit field that turns with arc length."""
    generator = Generator().manual_seed(seed)
    dense = torch.linspace(3 * math.pi, 8 * math.pi, 20001, dtype=torch.float64)
    speed = pitch * (1 + dense**2).sqrt()
    length = torch.cumulative_trapezoid(speed, dense)
    length = torch.cat([torch.zeros(1, dtype=torch.float64), length])
    s = length[-1] * torch.rand(20 * total, dtype=torch.float64, generator=generator)
    h = torch.rand(20 * total, dtype=torch.float64, generator=generator)
    kept = furthest_point_sampling(torch.stack([s, h], dim=1), total)
    s, h = s[kept], h[kept]
    t = torch.from_numpy(np.interp(s.numpy(), length.numpy(), dense.numpy()))
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    points = torch.stack([pitch * t * t.cos(), h, pitch * t * t.sin()], dim=1)
    along = torch.stack([t.cos() - t * t.sin(), zero, t.sin() + t * t.cos()], dim=1)
    along = along / along.norm(dim=1, keepdim=True)
    upward = torch.stack([zero, one, zero], dim=1)
    angle = turn_rate * s
    field = angle.cos()[:, None] * along + angle.sin()[:, None] * upward
    return Case(points, torch.linalg.cross(along, upward), field)


def icosphere(levels: int) -> tuple[Tensor, Tensor]:
    """Vertices and faces of an icosahedron, each face cut into four ``levels`` times: 642 vertices for three."""
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    vertices = [np.roll(corner, shift) for shift in range(3) for corner in corners]
    cloud = np.array(vertices) / np.hypot(1, golden)
    for _ in range(levels):
        faces = ConvexHull(cloud).simplices
        edges = np.unique(
            np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0
        )
        middle = cloud[edges].sum(1)
        cloud = np.concatenate([cloud, middle / np.linalg.norm(middle, axis=1, keepdims=True)])
    faces = ConvexHull(cloud).simplices
    a, b, c = (cloud[faces[:, k]] for k in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return torch.from_numpy(cloud), torch.from_numpy(faces.astype(np.int64))


def electrodes(montage: str) -> Tensor:
    """Positions of an EEG montage on the unit sphere."""
    positions = require_peer("mne").channels.make_standard_montage(montage).get_positions()["ch_pos"]
    points = torch.from_numpy(np.array(list(positions.values())))
    points = points - torch.from_numpy(_sphere_centre(points.numpy()))
    return points / points.norm(dim=1, keepdim=True)


def _sphere_centre(points: np.ndarray) -> np.ndarray:
    # least-squares sphere: |x|² = 2 c·x + r² - |c|²
    table = np.concatenate([2 * points, np.ones((len(points), 1))], axis=1)
    return np.linalg.lstsq(table, (points**2).sum(1), rcond=None)[0][:3]


def travelling_wave(points: Tensor, seed: int, *, dipoles: int = 6, depth: float = 0.6, degree: int = 30) -> Tensor:
    """Phase gradient of oscillating dipoles in a conducting sphere, Im(conj(z) grad z) / (|z|² + floor).

    Potential on the unit sphere of a dipole p at r₀: Σ_n (2n+1)/n p · ∇ (|r₀|ⁿ P_n(cos)), the insulating boundary's
    series. Phases advance along a random direction, which makes the wave travel.
    """
    generator = Generator().manual_seed(seed)
    places = torch.randn(dipoles, 3, dtype=torch.float64, generator=generator)
    places = depth * places / places.norm(dim=1, keepdim=True)
    moments = torch.randn(dipoles, 3, dtype=torch.float64, generator=generator)
    moments = moments + 3 * places / depth
    heading = torch.randn(3, dtype=torch.float64, generator=generator)
    phases = 3.0 * (places @ heading) / depth
    place = points.clone().requires_grad_()
    sources = places.clone().requires_grad_()
    cosine, square = place @ sources.T, sources.square().sum(1)
    before, present = torch.ones_like(cosine), cosine
    total = 3 * present
    for n in range(1, degree):
        before, present = present, ((2 * n + 1) * cosine * present - n * square * before) / (n + 1)
        total = total + (2 * n + 3) / (n + 1) * present
    parts = []
    for wave in (phases.cos(), phases.sin()):
        # Σ_k wave_k p_k · ∇_{r₀k} at each point: one pass forward through the sources
        potential = _directional(total, sources, wave[:, None] * moments)
        (slope,) = torch.autograd.grad(potential.sum(), place, retain_graph=True)
        parts.append((potential.detach(), slope - (slope * points).sum(1, keepdim=True) * points))
    (real, real_slope), (imaginary, imaginary_slope) = parts
    power = real.square() + imaginary.square()
    current = real[:, None] * imaginary_slope - imaginary[:, None] * real_slope
    return current / (power + power.quantile(0.1))[:, None]


def _directional(total: Tensor, sources: Tensor, direction: Tensor) -> Tensor:
    # derivative of every row's sum along direction: the gradient of a gradient with respect to its (linear) weights
    weights = torch.ones(len(total), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((weights[:, None] * total).sum(), sources, create_graph=True)
    (found,) = torch.autograd.grad((slope * direction).sum(), weights, create_graph=True)
    return found
