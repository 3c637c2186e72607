"""Costs and updates of the quadratic model against dense float64 algebra."""

import pytest
import torch

from hesse.compress.obs.updates import (
    joint_update,
    predicted_increase,
    saliencies,
    summed_update,
    unit_curvature,
)
from hesse.curvature import MFACInverse
from hesse.errors import SingularError
from tests.compress.obs.cases import F64, dense_fisher, seeded

D, M, DAMPING = 24, 10, 1e-3
BLOCKS = [None, 8, 7, 1]


@pytest.fixture
def model():
    grads = torch.randn(M, D, generator=seeded(), dtype=F64)
    return grads, torch.randn(D, generator=seeded(1), dtype=F64)


def units(size):
    found = torch.randperm(D, generator=seeded(2)).reshape(-1, size).clone()
    if size > 1:
        found[0, 1] = -1  # a weight that is gone already
    return found


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("size", [1, 4])
def test_curvature_of_units_is_the_inverses_submatrix(model, size, block_size):
    """Oracle: submatrices of the dense inverse, with rows of the identity for weights that are gone."""
    grads, _ = model
    inverse = torch.linalg.inv(dense_fisher(grads, DAMPING, block_size))
    found = unit_curvature(MFACInverse(grads, DAMPING, block_size), units(size))
    for unit, matrix in zip(units(size), found, strict=True):
        wanted = torch.eye(size, dtype=F64)
        there = (unit >= 0).nonzero().squeeze(1)
        wanted[there.unsqueeze(1), there] = inverse[unit[there].unsqueeze(1), unit[there]]
        torch.testing.assert_close(matrix, wanted, rtol=1e-9, atol=1e-9)


def constrained_minimum(F, w, gone):
    """Solve min ½ δᵀFδ with δ_gone = -w_gone by its optimality conditions."""
    delta = torch.zeros_like(w)
    delta[gone] = -w[gone]
    stays = torch.ones(len(w), dtype=torch.bool)
    stays[gone] = False
    if bool(stays.any()):
        delta[stays] = torch.linalg.solve(F[stays][:, stays], -F[stays][:, ~stays] @ delta[~stays])
    return delta


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("size", [1, 4])
def test_a_unit_costs_what_the_constrained_minimum_costs(model, size, block_size):
    """Oracle: the minimum of the quadratic under the constraint, solved densely, unit by unit; and its minimiser."""
    grads, w = model
    F = dense_fisher(grads, DAMPING, block_size)
    operator = MFACInverse(grads, DAMPING, block_size)
    costs, t = saliencies(w, units(size), unit_curvature(operator, units(size)))
    for i, unit in enumerate(units(size)):
        delta = constrained_minimum(F, w, unit[unit >= 0])
        torch.testing.assert_close(costs[i], delta @ F @ delta / 2, rtol=1e-9, atol=1e-12)
        found = summed_update(operator, units(size)[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(found, delta, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(
            predicted_increase(grads, delta, DAMPING, block_size), float(costs[i]), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_lost_definiteness_is_told(model, size, value):
    """Oracle: the error promised, also for not a number."""
    curvature = torch.eye(size, dtype=F64).repeat(2, 1, 1)
    curvature[1, 0, 0] = value
    with pytest.raises(SingularError, match="damping"):
        saliencies(model[1], torch.arange(2 * size).reshape(2, size), curvature)


def test_summed_update_is_a_sum(model):
    """Oracle: the updates of single weights, one by one."""
    grads, w = model
    operator = MFACInverse(grads, DAMPING)
    chosen = units(1)[:9]
    _, t = saliencies(w, chosen, unit_curvature(operator, chosen))
    singles = sum(summed_update(operator, chosen[i : i + 1], t[i : i + 1]) for i in range(9))
    torch.testing.assert_close(summed_update(operator, chosen, t), singles, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("num_dropped", [1, 13, D])
def test_joint_update_is_the_constrained_minimum(model, num_dropped, block_size):
    """Oracle: the optimality conditions, solved densely; and the formula F⁻¹t with t_Q = -[F⁻¹]_QQ⁻¹ w_Q."""
    grads, w = model
    F = dense_fisher(grads, DAMPING, block_size)
    gone = torch.randperm(D, generator=seeded(3))[:num_dropped]
    dropped = torch.zeros(D, dtype=torch.bool)
    dropped[gone] = True
    found = joint_update(grads, w, dropped, DAMPING, block_size)
    torch.testing.assert_close(found, constrained_minimum(F, w, gone), rtol=1e-9, atol=1e-10)
    inverse = torch.linalg.inv(F)
    t = torch.linalg.solve(inverse[dropped][:, dropped], -w[dropped])
    torch.testing.assert_close(found, inverse[:, dropped] @ t, rtol=1e-7, atol=1e-8)


def test_joint_update_keeps_its_digits_in_float32():
    """Oracle: the dense float64 minimum, at damping 1e-7, where F⁻¹x cancels; half precision is storage."""
    grads = torch.randn(M, D, generator=seeded(4))
    w, dropped = torch.randn(D, generator=seeded(5)), torch.rand(D, generator=seeded(6)) < 0.5
    for rows in (grads, grads.bfloat16()):
        wanted = constrained_minimum(dense_fisher(rows.double(), 1e-7), w.double(), dropped.nonzero().squeeze(1))
        found = joint_update(rows, w, dropped, 1e-7, None)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
