"""Pictures for the benchmark of DDS: phantoms of ellipses, a mixture fitted to them, and total variation.

Shapes: N pictures of side n, flattened (N, n²) unless said otherwise; intensities in [0, 1].
"""

import torch
from torch import Generator, Tensor

from hesse.generative import GaussianMixture
from hesse.linalg import FunctionOperator, LinearOperator, cg

__all__ = ["fit_mixture", "phantom_volume", "phantoms", "psnr", "total_variation"]


def phantoms(count: int, size: int, generator: Generator, *, heights: Tensor | None = None) -> Tensor:
    """Six random ellipses with edges of three pixels, (count, size, size); with ``heights`` cuts of ellipsoids."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = axis.unsqueeze(1), axis
    total = torch.zeros(count, size, size)
    squash = torch.zeros(count) if heights is None else heights.square()
    for index in range(6):
        # a volume is one draw, cut at every height; single pictures are drawn apart
        rows = 1 if heights is not None else count
        u = torch.rand(rows, 6, generator=generator)
        place = 0.55 * (2 * u[:, :2] - 1)
        radii = (0.85 if index == 0 else 0.5) * (0.35 + 0.65 * u[:, 2:4])
        if index == 0:
            place = place * 0.2
        angle = torch.pi * u[:, 4:5]
        value = 0.3 + 0.3 * u[:, 5] if index == 0 else 0.6 * u[:, 5] - 0.25
        shrink = (1 - squash).clamp_min(1e-4).sqrt()
        dx, dy = x - place[:, 0, None, None], y - place[:, 1, None, None]
        cosine, sine = angle.cos()[..., None], angle.sin()[..., None]
        across, along = dx * cosine + dy * sine, dy * cosine - dx * sine
        a, b = (radii[:, i, None, None] * shrink[:, None, None] for i in (0, 1))
        distance = ((across / a).square() + (along / b).square()).sqrt()
        edge = (1 - distance) * torch.minimum(a, b) * size / 2
        total = total + value[:, None, None] * (edge / 3 + 0.5).clamp(0, 1)
    return total.clamp(0, 1)


def phantom_volume(num_slices: int, size: int, generator: Generator) -> Tensor:
    """Slices of six ellipsoids, (num_slices, size, size)."""
    return phantoms(num_slices, size, generator, heights=torch.linspace(-0.8, 0.8, num_slices))


def fit_mixture(pictures: Tensor, num_components: int, rank: int, generator: Generator) -> GaussianMixture:
    """K-means, then probabilistic principal components of every cluster, in float64."""
    data = pictures.flatten(1).double()
    centres = data[torch.randperm(len(data), generator=generator)[:num_components]]
    for _ in range(20):
        nearest = torch.cdist(data, centres).argmin(1)
        centres = torch.stack(
            [data[nearest == k].mean(0) if bool((nearest == k).any()) else centres[k] for k in range(num_components)]
        )
    nearest = torch.cdist(data, centres).argmin(1)
    parts = []
    for k in range(num_components):
        rows = data[nearest == k]
        if len(rows) <= rank:  # a cluster too small for its directions; the others take its weight
            continue
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        parts.append((len(rows), rows.mean(0), vectors[:, -rank:], values[-rank:], values[:-rank].clamp_min(0).mean()))
    counts, means, directions, variances, floors = zip(*parts, strict=True)
    weights = torch.tensor(counts, dtype=torch.float64)
    floor = torch.stack(floors)
    return GaussianMixture(
        weights / weights.sum(),
        torch.stack(means),
        torch.stack(directions),
        torch.maximum(torch.stack(variances), floor.unsqueeze(1)),
        floor,
    )


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """Decibels of every picture against a peak of one, (N,)."""
    error = (found.double().reshape(len(truth), -1) - truth.double().reshape(len(truth), -1)).square().mean(1)
    return -10 * error.log10()


def total_variation(physics: LinearOperator, y: Tensor, size: int, lam: float, num_sweeps: int = 60) -> Tensor:
    """Minimise ½‖A x - y‖² + λ Σ |∇x| by ADMM whose least-squares step is ten steps of CG."""
    n, rho = size * size, max(1e-3, 10 * lam)

    def gradient(x: Tensor) -> Tensor:
        pictures = x.unflatten(-2, (size, size))
        steps = (pictures.roll(-1, -3) - pictures, pictures.roll(-1, -2) - pictures)
        return torch.cat([step.flatten(-3, -2) for step in steps], -2)

    def adjoint(g: Tensor) -> Tensor:
        down, right = (half.unflatten(-2, (size, size)) for half in g.split(n, -2))
        return (down.roll(1, -3) - down + right.roll(1, -2) - right).flatten(-3, -2)

    difference = FunctionOperator(gradient, (2 * n, n), dtype=physics.dtype, rmatmat_fn=adjoint)
    system = physics.H @ physics + rho * (difference.H @ difference)
    back = physics.rmatmat(y.mT.contiguous())
    x, d, w = torch.zeros_like(back), 0.0, torch.zeros(2 * n, len(y), dtype=y.dtype)
    for _ in range(num_sweeps):
        x = cg(system, back + rho * difference.rmatmat(d - w), x0=x, max_steps=10, validate=False).x
        moved = gradient(x) + w
        length = moved.reshape(2, n, -1).norm(dim=0, keepdim=True)
        d = (moved.reshape(2, n, -1) * (1 - lam / rho / length.clamp_min(1e-12)).clamp_min(0)).reshape(moved.shape)
        w = moved - d
    return x.mT
