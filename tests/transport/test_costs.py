"""Ground costs."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.transport import Euclidean, FunctionCost, Geodesic, PNorm, SquaredEuclidean, as_cost

FORMULAS = {
    "sqeuclidean": (SquaredEuclidean(), lambda x, y: ((x - y) ** 2).sum(-1)),
    "euclidean": (Euclidean(), lambda x, y: ((x - y) ** 2).sum(-1).sqrt()),
    "p = 1.5": (PNorm(1.5), lambda x, y: (x - y).abs().pow(1.5).sum(-1) / 1.5),
    "p = 2": (PNorm(2.0), lambda x, y: ((x - y) ** 2).sum(-1) / 2),
    "angle squared": (Geodesic(), lambda x, y: (x * y).sum(-1).acos() ** 2 / 2),
    "angle": (Geodesic(squared=False), lambda x, y: (x * y).sum(-1).acos()),
}


def points(n, seed):
    x = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("name", FORMULAS)
def test_against_the_formula(name):
    """Oracle: the formula by broadcasting, for all pairs and row by row."""
    cost, formula = FORMULAS[name]
    x, y = points(7, 0), points(5, 1)
    torch.testing.assert_close(cost.pairwise(x, y), formula(x[:, None], y[None]))
    torch.testing.assert_close(FunctionCost(formula).pairwise(x, y), cost.pairwise(x, y))
    torch.testing.assert_close(cost.paired(x[:5], y), formula(x[:5], y))


@pytest.mark.parametrize(("cost", "h"), [(SquaredEuclidean(), 2.0), (PNorm(1.5), 1.5), (PNorm(4.0), 4.0)], ids=str)
def test_conjugate_gradient_inverts_the_gradient(cost, h):
    """Oracle: ∇h* is the inverse of ∇h."""
    z = points(6, 2).requires_grad_()
    (slope,) = torch.autograd.grad(cost.paired(z, torch.zeros_like(z)).sum(), z)
    torch.testing.assert_close(cost.conjugate_gradient(slope), z.detach())


def test_small_angles_keep_their_digits():
    """Oracle: the angle by construction, 1e-5 rad, which float32's arccos sees as zero or 3e-4."""
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-5]])
    assert float(Geodesic(squared=False).paired(x, y)) == pytest.approx(1e-5, rel=1e-3)


def test_refusals():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="cosine"):
        as_cost("cosine")
    with pytest.raises(ArgumentTypeError, match="cost"):
        as_cost(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="p > 1"):
        PNorm(1.0)
    with pytest.raises(ArgumentError, match="sphere"):
        Geodesic().conjugate_gradient(torch.ones(1, 2))
    with pytest.raises(ShapeError, match="broadcast"):
        as_cost(lambda x, y: x - y).pairwise(torch.ones(2, 3), torch.ones(4, 3))
