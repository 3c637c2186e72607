"""Finite sums: evaluation, counting, sampling and the guess of L."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import FiniteSumOperator, lipschitz_estimate
from hesse.optim.vr_halpern.finite_sum import ComponentSampler, check_point
from tests.optim.vr_halpern.cases import AffineSum, seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ways_to_evaluate_agree(dtype):
    """Oracle: the closed form of the mean; chunks, single components and a loop over them give the same."""
    case = AffineSum(10, dtype=dtype)
    u = torch.randn(6, generator=seeded(1)).to(dtype)
    index = torch.tensor([3, 3, 7, 0])
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=dtype)
    chunked = FiniteSumOperator(case.mean, 10, 6, chunk_size=4)
    torch.testing.assert_close(case.operator.full(u), case.value(u))
    torch.testing.assert_close(chunked.full(u), case.value(u))
    torch.testing.assert_close(chunked.each(u, index), case.operator.each(u, index))
    torch.testing.assert_close(case.operator.mean(u, index), case.each(u, index).mean(0))
    wanted = (weights.unsqueeze(1) * case.each(u, index)).mean(0)
    torch.testing.assert_close(case.operator.mean(u, index, weights), wanted)


def test_evaluations_are_counted():
    """Oracle: counting by hand; a shortcut for the full pass counts as n all the same."""
    case = AffineSum(10)
    op = FiniteSumOperator(case.mean, 10, 6, full_fn=case.value)
    op.full(case.start)
    op.mean(case.start, torch.arange(3))
    op.each(case.start, torch.arange(4))
    op.mean(case.start, torch.arange(2), torch.ones(2, dtype=torch.float64))
    assert op.evaluations == 10 + 3 + 4 + 2


def test_graphs_are_dropped():
    """Oracle: a component that depends on a leaf leaves no graph."""
    leaf = torch.ones(2, requires_grad=True)
    op = FiniteSumOperator(lambda u, _index: u * leaf, 3, 2)
    assert not op.full(torch.ones(2)).requires_grad


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (lambda u: u[:1], ShapeError),
        (lambda u: u.float(), ShapeError),
        (lambda u: u.to("meta"), ShapeError),
        (lambda _u: 1.0, ArgumentTypeError),
    ],
)
def test_component_that_does_not_fit_is_named(returned, error):
    """Oracle: the documented error, which names the function."""
    op = FiniteSumOperator(lambda u, _index: returned(u), 4, 2)
    with pytest.raises(error, match="component_fn"):
        op.full(torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("numbers", [{"n": 0, "dim": 2}, {"n": 2, "dim": 0}, {"n": 2, "dim": 2, "chunk_size": 0}])
def test_sizes_are_positive(numbers):
    """Oracle: the documented error."""
    with pytest.raises(ArgumentError, match="expected"):
        FiniteSumOperator(lambda u, _index: u, **numbers)


def test_importance_sampling_has_the_asked_frequencies_and_unbiased_weights():
    """Oracle: multinomial frequencies to four standard errors, and Σ q_i w_i F_i = mean of the F_i."""
    q = torch.tensor([0.1, 0.2, 0.3, 0.4])
    sampler = ComponentSampler(4, seeded(0), torch.device("cpu"), torch.float64, 7 * q)
    index, weights = sampler.draw(40_000)
    counts = torch.bincount(index, minlength=4) / 40_000
    assert bool(((counts - q).abs() <= 4 * (q * (1 - q) / 40_000).sqrt()).all())
    values = torch.tensor([1.0, -2.0, 3.0, 5.0], dtype=torch.float64)
    samples = weights * values[index]
    assert abs(float(samples.mean() - values.mean())) <= 4 * float(samples.std()) / 200


@pytest.mark.parametrize("bad", [[1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]])
def test_importance_must_be_positive(bad):
    """Oracle: the documented error; a component never drawn would bias every estimate."""
    with pytest.raises(ArgumentError, match="importance"):
        ComponentSampler(3, seeded(0), torch.device("cpu"), torch.float32, torch.tensor(bad))
    with pytest.raises(ShapeError, match="importance"):
        ComponentSampler(2, seeded(0), torch.device("cpu"), torch.float32, torch.ones(3))


def test_points_are_checked():
    """Oracle: the documented errors, one by one."""
    for u, error in (
        (torch.zeros(2, dtype=torch.bfloat16), ArgumentTypeError),
        ([0.0, 0.0], ArgumentTypeError),
        (torch.zeros(3), ShapeError),
        (torch.tensor([0.0, float("nan")]), NumericalError),
    ):
        with pytest.raises(error, match="u0"):
            check_point("call", "u0", u, 2)


@pytest.mark.parametrize("n", [50, 2000])
def test_lipschitz_estimate_brackets_the_constant(n):
    """Oracle: the constant in closed form, σ_max(M) times the root mean square of s; the margin is 1.5."""
    case = AffineSum(n)
    exact = float(torch.linalg.matrix_norm(case.M, 2) * case.s.square().mean().sqrt())
    found = lipschitz_estimate(case.operator, case.start, generator=seeded(0))
    assert exact <= found <= 1.6 * exact
    assert case.operator.evaluations == 17 * min(n, 256)


def test_lipschitz_estimate_finds_a_stiff_direction():
    """Oracle: the largest eigenvalue; a random direction in 400 dimensions hardly sees it, the chain of pairs does."""
    curvatures = torch.ones(400, dtype=torch.float64)
    curvatures[0] = 100
    op = FiniteSumOperator(lambda u, _index: curvatures * u, 3, 400, lambda u, i: (curvatures * u).expand(len(i), -1))
    assert lipschitz_estimate(op, torch.zeros(400, dtype=torch.float64), generator=seeded(0)) > 100


def test_lipschitz_estimate_of_importance_sampling_is_the_mean():
    """Oracle: components s_i u drawn in proportion to s_i have the mean of the s_i for constant, not their rms."""
    s = torch.tensor([1.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    op = FiniteSumOperator(lambda u, i: s[i].mean() * u, 4, 3, lambda u, i: s[i].unsqueeze(1) * u)
    u = torch.zeros(3, dtype=torch.float64)
    assert lipschitz_estimate(op, u, generator=seeded(0)) == pytest.approx(1.5 * float(s.square().mean().sqrt()))
    found = lipschitz_estimate(op, u, importance=s, sample_size=4, generator=seeded(0))
    assert found == pytest.approx(1.5 * 3.0)


def test_lipschitz_estimate_refuses_what_it_cannot_judge():
    """Oracle: the documented errors."""
    flat = FiniteSumOperator(lambda u, _index: torch.ones_like(u), 3, 2)
    with pytest.raises(ArgumentError, match="constant"):
        lipschitz_estimate(flat, torch.zeros(2))
    broken = FiniteSumOperator(lambda u, _index: u / 0, 3, 2)
    with pytest.raises(NumericalError, match="NaN"):
        lipschitz_estimate(broken, torch.zeros(2))
    with pytest.raises(ArgumentError, match="radius"):
        lipschitz_estimate(flat, torch.zeros(2), radius=0.0)
    with pytest.raises(ArgumentError, match="num_pairs"):
        lipschitz_estimate(flat, torch.zeros(2), num_pairs=0)
