"""Systems, domains and networks that the tests of deep conjugate directions share."""

import numpy as np
import torch
from scipy import sparse
from torch import nn

from hesse.linalg import Dense


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_spd(n, seed=0, condition=1e3):
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(seed))).Q
    values = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
    matrix = basis * values @ basis.T
    return Dense((matrix + matrix.T) / 2, is_psd=True)


def obstacle(grid):
    """A grid of fluid with one box cut out, off centre."""
    fluid = torch.ones(grid, dtype=torch.bool)
    fluid[tuple(slice(n // 4, n // 2) for n in grid)] = False
    return fluid


def right_hand_sides(fluid, k, seed=0, dtype=torch.float64):
    b = torch.randn(fluid.numel(), k, generator=seeded(seed), dtype=torch.float64)
    return (b * fluid.reshape(-1, 1)).to(dtype)


def scipy_matrix(operator):
    """The fluid part of a stencil as a SciPy matrix, built here from the definition, cell by cell."""
    fluid = operator.fluid.numpy()
    cells = {tuple(c): i for i, c in enumerate(np.argwhere(fluid))}
    matrix = sparse.lil_matrix((len(cells), len(cells)))
    diagonal = operator.diagonal().reshape(operator.grid).numpy()
    for cell, i in cells.items():
        matrix[i, i] = diagonal[cell]
        for axis, h in enumerate(operator.spacing):
            for side in (1, -1):
                near = tuple(c + side * (a == axis) for a, c in enumerate(cell))
                if near in cells:
                    matrix[i, cells[near]] = -1 / h**2
    return matrix.tocsc()


def identity(r):
    return r


class Shift(nn.Module):
    """A network that is no good: it moves every residual two cells on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, residual, mask=None):
        moved = self.weight * residual.roll(2, dims=-1)
        return moved if mask is None else torch.where(mask, moved, 0)


class Constant(nn.Module):
    """A network whose every output is the same number."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))

    def forward(self, residual, mask=None):
        return 0 * residual + self.weight
