"""PAGE, SVRG and SAGA: unbiased along a fixed path, exact where they must be, and counted."""

import pytest
import torch

from hesse.optim.vr_halpern.estimators import ESTIMATORS, SagaEstimate
from tests.optim.vr_halpern.cases import AffineSum, seeded


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_along_a_fixed_path_is_the_operator(name, weighted):
    """Oracle: F in closed form; the mean of 400 runs over one path lies within four standard errors in each entry."""
    case = AffineSum(60)
    path = torch.randn(6, 6, dtype=torch.float64, generator=seeded(3)).cumsum(0)
    q = torch.linspace(0.5, 2, 60, dtype=torch.float64)
    q = q / q.sum()
    generator = seeded(4)
    ends = []
    for _ in range(400):
        estimate = ESTIMATORS[name].refreshed(case.operator, path[0])
        for point in path[1:]:
            if weighted:
                index = torch.multinomial(q, 8, replacement=True, generator=generator)
                weights = 1 / (60 * q[index])
            else:
                index, weights = torch.randint(60, (8,), generator=generator), None
            estimate = estimate.updated(case.operator, point, index, weights)
        ends.append(estimate.value)
    ends = torch.stack(ends)
    error = (ends.mean(0) - case.value(path[-1])).abs()
    assert bool((error <= 4 * ends.std(0) / 20).all())
    assert float(ends.std(0).min()) > 0


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_all_components_are_exact(name):
    """Oracle: F in closed form; a sample that is the whole sum leaves no error."""
    case = AffineSum(9)
    u, v = torch.ones(6, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
    estimate = ESTIMATORS[name].refreshed(case.operator, u).updated(case.operator, v, torch.arange(9), None)
    torch.testing.assert_close(estimate.value, case.value(v), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "cost"), [("page", 10), ("svrg", 10), ("saga", 5)])
def test_updates_cost_what_they_say(name, cost):
    """Oracle: the operator's own counter."""
    case = AffineSum(9)
    estimate = ESTIMATORS[name].refreshed(case.operator, case.start)
    assert case.operator.evaluations == 9
    estimate.updated(case.operator, case.start + 1, torch.arange(5), None)
    assert case.operator.evaluations - 9 == estimate.cost(5) == cost


def test_table_mean_follows_the_table():
    """Oracle: the mean of the table itself, after samples that name components twice; a copy is left alone."""
    case = AffineSum(9)
    estimate = SagaEstimate.refreshed(case.operator, case.start)
    copy = estimate.copied()
    kept = copy.table.clone()
    for seed in range(5):
        index = torch.randint(9, (6,), generator=seeded(seed))
        estimate = estimate.updated(case.operator, case.start + seed, index, None)
    torch.testing.assert_close(estimate.table_mean, estimate.table.mean(0), rtol=1e-12, atol=1e-13)
    assert torch.equal(copy.table, kept)
    assert not torch.equal(estimate.table, kept)
