import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.gauge import SphereScore, decompose, decompose_linear


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_case() -> tuple[torch.Tensor, torch.Tensor]:
    root, M = torch.randn(2, 4, 4, generator=seeded(0), dtype=torch.float64)
    return M, root @ root.T + 0.5 * torch.eye(4, dtype=torch.float64)


def test_linear_split_solves_its_equations():
    """Oracle: symmetry of A, antisymmetry of r's flux, and M = -S⁻¹ + Q S⁻¹ taken apart again."""
    M, S = linear_case()
    A, rest = decompose_linear(M, S)
    torch.testing.assert_close(A, A.T, rtol=0, atol=0)
    torch.testing.assert_close(A + rest, M)
    torch.testing.assert_close(rest @ S, -(rest @ S).T, rtol=1e-10, atol=1e-10)
    inverse, turn = torch.linalg.inv(S), M - M.T
    torch.testing.assert_close(decompose_linear((turn - torch.eye(4)) @ inverse, S)[0], -inverse, rtol=1e-9, atol=1e-10)


def test_samples_give_the_linear_split():
    """Oracle: the closed form, in the mean over the law, to one in a hundred; orthogonality and the sum of parts."""
    M, S = linear_case()
    A, _ = decompose_linear(M, S)
    x = torch.randn(200_000, 4, generator=seeded(1), dtype=torch.float64) @ torch.linalg.cholesky(S).T
    split = decompose(lambda y, _: y @ M.T, x, 1.0, num_features=5, generator=seeded(2))
    assert float((split.conservative(x) - x @ A).norm() / (x @ M.T).norm()) < 0.01
    assert abs(split.orthogonality) < 1e-4
    assert sum(split.energy) == pytest.approx(1, abs=1e-4)
    assert split.gauge_residual < 5 / 40_000**0.5


def test_potential_belongs_to_the_gradient_and_parts_add_up():
    """Oracle: autograd of φ; v itself."""
    score = SphereScore(3)
    x = score.sample(600, 0.2, generator=seeded(3))
    split = decompose(score, x, 0.2, num_features=50, generator=seeded(4))
    y = x[:5].clone().requires_grad_()
    (slope,) = torch.autograd.grad(split.potential(y).sum(), y)
    torch.testing.assert_close(slope, split.conservative(y.detach()), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(split.conservative(x) + split.remainder(x), score(x, 0.2))
    torch.testing.assert_close(split.features.rows(x) @ split.coefficients, split.conservative(x), rtol=1e-8, atol=1e-8)
    by_rows = torch.einsum("bdm,bd->m", split.features.rows(x), score(x, 0.2)) / len(x)
    torch.testing.assert_close(split.features.project(x, score(x, 0.2)), by_rows, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(split.features.energy(x), split.features.rows(x).square().sum(1).mean(0))


def test_gradient_and_wrong_gradient_leave_no_remainder():
    """Oracle: a quadratic potential lies in the span of the features; one dimension has no gauge freedom."""
    x = torch.randn(500, 3, generator=seeded(5), dtype=torch.float64)
    scale = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    split = decompose(lambda y, _: y * scale + 1, x, 1.0, num_features=20, reg=1e-10, generator=seeded(6))
    assert split.energy[1] < 1e-10
    line = decompose(lambda y, _: y.sin(), x[:, :1], 1.0, num_features=100, reg=1e-10, generator=seeded(7))
    assert line.energy[1] < 1e-6


def test_poor_features_show_on_held_out_functions():
    """Oracle: sin(4 x) is a gradient that two waves cannot hold and many can; what two leave is no gauge field."""
    x = torch.randn(4000, 2, generator=seeded(8), dtype=torch.float64)
    chance = (2 * math.log(800) / 800) ** 0.5
    poor = decompose(lambda y, _: (4 * y).sin(), x, 1.0, num_features=2, length_scale=0.3, generator=seeded(9))
    fine = decompose(lambda y, _: (4 * y).sin(), x, 1.0, num_features=800, length_scale=0.3, generator=seeded(9))
    assert poor.energy[1] > 0.5
    assert poor.gauge_residual > 3 * chance
    assert fine.energy[1] < 0.1


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    x = torch.randn(10, 2, generator=seeded(0))
    with pytest.raises(ArgumentError, match="held_out"):
        decompose(lambda y, _: y, x, 1.0, held_out=1.0)
    with pytest.raises(ShapeError, match="too few"):
        decompose(lambda y, _: y, x[:2], 1.0)
    with pytest.raises(ArgumentError, match="decompose again"):
        decompose(lambda y, _: y, x, 1.0, num_features=1).conservative(x, 0.5)
    with pytest.raises(ShapeError, match="one shape"):
        decompose_linear(torch.eye(2), torch.eye(3))
    with pytest.raises(ArgumentError, match="positive definite"):
        decompose_linear(torch.eye(2), -torch.eye(2))
