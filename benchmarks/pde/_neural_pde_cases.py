"""Problems with known solutions, plain descent, and finite elements with Newton's method."""

import time
from dataclasses import dataclass
from itertools import pairwise
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import require_peer
from hesse.pde.barron import FourierSeries, PlaneWaveSeries, SineSeries
from hesse.pde.variational import EllipticEnergy, PreconditionedDescent

__all__ = [
    "FiniteElements",
    "PeriodicMLP",
    "finite_elements",
    "mean_curvature_mix",
    "plain_descent",
    "random_waves",
    "relative_h1",
    "semilinear",
    "torus_energy",
]


def semilinear(dim: int, c: float) -> tuple[EllipticEnergy, SineSeries]:
    """L = |p|²/2 + (c/4) u⁴ with u* = Π sin(πx) + Π sin(2πx) / 2."""
    freqs = torch.tensor([[1] * dim, [2] * dim])
    solution = SineSeries(freqs, torch.tensor([1.0, 0.5], dtype=torch.float64))
    energy = EllipticEnergy(dim, potential=[0, 0, 0, 0, c / 4], source=solution.zero())
    return energy.with_solution(solution), solution


def relative_h1(u: FourierSeries, solution: FourierSeries) -> float:
    """‖u - u*‖ / ‖u*‖ in H¹."""
    return float((u - solution).h1_norm() / solution.h1_norm())


def plain_descent(energy: EllipticEnergy, solution: SineSeries, num_modes: int, num_steps: int) -> list[float]:
    """Relative H¹ errors of descent along the L² gradient, at 99 % of the largest step that is stable at u*.

    A large shift turns the preconditioner into a multiple of the identity, to seven digits.
    """
    shift = 1e13
    largest_reaction = 12 * energy.potential[4] * float(solution.l1_norm()) ** 2
    stiffness = energy.dim * (pi * num_modes) ** 2 + largest_reaction
    solver = PreconditionedDescent(
        energy,
        backend="grid",
        step=1.98 * shift / stiffness,
        num_modes=num_modes,
        max_steps=num_steps,
        tol=0.0,
        shift=shift,
    )
    errors: list[float] = []
    solver.fit(observe_fn=lambda _t, u: errors.append(relative_h1(u, solution)))
    return errors[1:]


def random_waves(dim: int, count: int, seed: int) -> PlaneWaveSeries:
    """Waves in two axes each, entries of modulus 1 or 2, amplitudes N(0, 1)/2; no two share an axis.

    Entries and amplitudes are the same for every ``dim``: only the axes change.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 3, (count, 2), generator=generator)
    signs = 2 * torch.randint(2, (count, 2), generator=generator) - 1
    amplitudes = torch.randn(count, dtype=torch.float64, generator=generator) / 2
    phases = 2 * pi * torch.rand(count, dtype=torch.float64, generator=generator)
    axes = torch.randperm(dim, generator=generator)[: 2 * count].reshape(count, 2)
    freqs = torch.zeros(count, dim, dtype=torch.int64).scatter_(1, axes, sizes * signs)
    return PlaneWaveSeries.cosines(freqs, amplitudes, phases)


def torus_energy(solution: PlaneWaveSeries, c: float) -> EllipticEnergy:
    """-Δu + u + c u³ = f on the torus, with this solution."""
    potential = [0, 0, 0.5, 0, c / 4]
    energy = EllipticEnergy(solution.dim, potential=potential, source=solution.zero(), boundary="periodic")
    return energy.with_solution(solution)


class PeriodicMLP(nn.Module):
    """Sines and cosines of period one of every axis, then three hidden layers of 64 with tanh."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        sizes = [2 * dim, 64, 64, 64]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, 1)."""
        angle = 2 * pi * x
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))


def mean_curvature_mix(u: Tensor, p: Tensor) -> Tensor:
    """L = |p|²/2 + √(1 + |p|²): between 1 and 2 times the Laplacian's."""
    del u
    size = p.square().sum(dim=1)
    return size / 2 + (1 + size).sqrt()


@dataclass(frozen=True, slots=True)
class FiniteElements:
    """What scikit-fem found."""

    points: Tensor  # (N, 2), the nodes
    values: Tensor  # (N,)
    num_steps: int  # Newton's
    seconds: float


def finite_elements(source: SineSeries, cells: int) -> FiniteElements:
    """Solve the quasilinear problem with P2 elements on a regular mesh and Newton's method to rounding."""
    skfem: Any = require_peer("skfem")
    numpy: Any = require_peer("numpy")
    started = time.perf_counter()
    nodes = numpy.linspace(0, 1, cells + 1)
    basis = skfem.Basis(skfem.MeshTri.init_tensor(nodes, nodes), skfem.ElementTriP2(), intorder=6)
    at = torch.from_numpy(basis.global_coordinates().value)
    load = source(at.reshape(2, -1).T).reshape(at.shape[1:]).numpy()

    @skfem.BilinearForm
    def tangent(u: Any, v: Any, w: Any) -> Any:
        p = w["last"].grad
        root = numpy.sqrt(1 + (p * p).sum(axis=0))
        along = (p * u.grad).sum(axis=0) * (p * v.grad).sum(axis=0)
        return (u.grad * v.grad).sum(axis=0) * (1 + 1 / root) - along / root**3

    @skfem.LinearForm
    def residual(v: Any, w: Any) -> Any:
        p = w["last"].grad
        root = numpy.sqrt(1 + (p * p).sum(axis=0))
        return (p * v.grad).sum(axis=0) * (1 + 1 / root) - w["load"] * v

    u = basis.zeros()
    fixed = basis.get_dofs()
    steps = 0
    for _ in range(30):
        steps += 1
        last = basis.interpolate(u)
        matrix = tangent.assemble(basis, last=last)
        right = -residual.assemble(basis, last=last, load=load)
        change = skfem.solve(*skfem.condense(matrix, right, D=fixed))
        u = u + change
        if abs(change).max() <= 1e-13 * abs(u).max():
            break
    seconds = time.perf_counter() - started
    return FiniteElements(torch.from_numpy(basis.doflocs.T.copy()), torch.from_numpy(u), steps, seconds)
