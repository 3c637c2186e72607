"""The sparsified Newton system."""

import torch

from hesse.linalg import Diagonal, cg
from hesse.transport import newton_system


def problem(num=1, n=9, m=11):
    plan = torch.rand(num, n, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 6
    return plan / plan.sum((1, 2), keepdim=True)


def dense(plan, kept):
    """The matrix written out."""
    floor = plan.flatten().topk(kept).values[-1]
    sparse = torch.where(plan >= floor, plan, 0)
    return torch.cat([torch.cat([plan.sum(1).diag(), sparse], 1), torch.cat([sparse.T, plan.sum(0).diag()], 1)])


def test_operators_equal_the_dense_matrix():
    """Oracle: the dense matrix, its rank-one term, and its Schur complement; a batch with two counts."""
    plans = problem(num=2)
    counts = torch.tensor([20, 35])
    system = newton_system(plans, counts)
    s = torch.cat([torch.ones(9), -torch.ones(11)]).double()
    for k, kept in enumerate(counts.tolist()):
        matrix = dense(plans[k], kept)
        assert torch.linalg.eigvalsh(matrix)[0] > -1e-15
        torch.testing.assert_close(system.operator().to_dense()[k], matrix)
        peak = matrix.diagonal().max()
        torch.testing.assert_close(system.operator(0.5).to_dense()[k], matrix + 0.5 * peak / 20 * s.outer(s))
        schur = matrix[9:, 9:] - matrix[9:, :9] @ matrix[:9, :9].inverse() @ matrix[:9, 9:]
        torch.testing.assert_close(system.reduced().to_dense()[k], schur)
        torch.testing.assert_close(system.reduced_diagonal()[k], schur.diagonal())


def test_solve_equals_dense_solve():
    """Oracle: torch.linalg.solve on the same sparsified matrix."""
    plan = problem()
    rhs = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    du, dv, steps = newton_system(plan, torch.tensor([30])).solve(rhs[None, :9], rhs[None, 9:], 1e-13, 500)
    torch.testing.assert_close(
        torch.cat([du[0], dv[0]]), torch.linalg.solve(dense(plan[0], 30), rhs), rtol=1e-8, atol=0
    )
    assert 0 < steps <= 20


def test_jacobi_takes_the_better_diagonal():
    """Oracle: CG's own count of steps with either diagonal, on a spread-out plan and on a near-matching, one batch."""
    generator = torch.Generator().manual_seed(2)
    spread = 1 + torch.rand(40, 40, generator=generator, dtype=torch.float64)
    matching = torch.eye(40, dtype=torch.float64) + 1e-6 * spread**8
    plans = torch.stack([spread / spread.sum(), matching / matching.sum()])
    system = newton_system(plans, torch.tensor([1600, 1600]))
    assert torch.equal(system.jacobi()[0], system.column_sums[0])
    assert torch.equal(system.jacobi()[1], system.reduced_diagonal()[1])
    rhs = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    rhs -= rhs.mean()
    for k, worse in ((0, system.reduced_diagonal()[0]), (1, system.column_sums[1])):
        alone = newton_system(plans[k : k + 1], torch.tensor([1600]))
        steps = [
            cg(alone.reduced(), rhs, preconditioner=Diagonal(1 / d, is_psd=True), rtol=1e-8, max_steps=500).num_steps
            for d in (alone.jacobi()[0], worse)
        ]
        assert steps[0] <= steps[1]
