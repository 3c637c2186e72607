import math

import pytest
import torch

from hesse.bilevel import BSVRB, RSVRB, SOBA, BilevelProblem, BlockSOBA, Budget, Oracle, problems, tasks
from hesse.bilevel.bsvrb.block_oracle import BlockOracle, draw_blocks, draw_rows
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from tests.bilevel.cases import relative, seeded

BLOCKS, ROWS, ORDER = 12, 15, 6
STEPS = {"blocks_per_step": 3, "batch_size": 6, "lr": 0.1, "lr_lower": 0.01}
SOLVERS = {
    "version 1": lambda p, **o: BSVRB(p, 1, mu=0.05, **STEPS | o),
    "version 2": lambda p, **o: BSVRB(p, 2, **STEPS | o),
    "eager": lambda p, **o: BSVRB(p, 2, lazy=False, **STEPS | o),
    "RSVRB": lambda p, **o: RSVRB(p, mu=0.05, **STEPS | o),
    "BlockSOBA": lambda p, **o: BlockSOBA(p, **STEPS | o),
}


def case(seed=0, **options):
    return problems.multi_ridge(BLOCKS, ROWS, ORDER, noise=1.0, weak=0.3, seed=seed, **options)


def trees(dtype=torch.float64):
    """x and y of several tensors, f_i with x in it, and blocks of different lengths."""
    g = seeded(5)
    data = torch.randn(5, 8, 4, dtype=torch.float64, generator=g).to(dtype)
    targets = torch.randn(5, 8, dtype=torch.float64, generator=g).to(dtype)
    sizes = torch.tensor([8, 5, 8, 2, 7])
    inside = torch.arange(8) < sizes[:, None]

    def misfit(y, i, batch):
        rows, wanted, weight = data[i], targets[i], inside[i].to(dtype)
        if batch is not None:
            rows, wanted, weight = rows[batch], wanted[batch], torch.ones(batch.shape, dtype=dtype)
        return (weight * (rows @ y["w"] + y["b"] - wanted).square()).sum() / weight.sum() / 2

    def lower(x, y, i, batch):
        return misfit(y, i, batch) + (x[0].exp() * y["w"].square()).sum() / 2 + x[1].exp() * y["b"].square() / 2

    def upper(x, y, i, batch):
        return misfit(y, i, batch) + (x[0].square().sum() + x[1].square()) / 20

    x0 = (torch.zeros(4, dtype=dtype), torch.zeros((), dtype=dtype))
    y0 = {"w": torch.zeros(5, 4, dtype=dtype), "b": torch.zeros(5, dtype=dtype)}
    return BilevelProblem.from_blocks(upper, lower, x0, y0, upper_rows=sizes, lower_rows=sizes)


def test_block_oracle_against_dense_derivatives():
    """Oracle: torch.func on one block at a time, every block at an x of its own; counts by the rule."""
    problem, g = trees(), seeded(0)
    oracle = BlockOracle(Oracle(problem))
    index, rows = torch.tensor([3, 0, 3]), torch.tensor([[0, 1], [7, 2], [1, 1]])
    x, y, v = (torch.randn(3, 5, dtype=torch.float64, generator=g) for _ in range(3))
    f_x, f_y = oracle.upper(x, y, index, rows)
    products = oracle.products(x, y, index, rows, v)
    hessians, matrices = oracle.hessians(x, y, index, rows, v), oracle.matrices(x, y, index, rows)
    for k, i in enumerate(index):

        def at(loss, a, b, i=i, k=k):
            x_tree, y_tree = problem.x_layout.unflatten(a), oracle.block_layout.unflatten(b)
            return loss(x_tree, y_tree, i, rows[k])

        both = torch.func.grad(lambda a, b, at=at: at(problem.block_upper, a, b), argnums=(0, 1))(x[k], y[k])
        g_y = torch.func.grad(lambda a, b, at=at: at(problem.block_lower, a, b), argnums=1)
        yy, xy = torch.func.jacrev(g_y, argnums=1)(x[k], y[k]), torch.func.jacrev(g_y)(x[k], y[k]).T
        for found, expected in (
            (f_x[k], both[0]),
            (f_y[k], both[1]),
            (oracle.gradient(x, y, index, rows)[k], g_y(x[k], y[k])),
            (products.gradient[k], g_y(x[k], y[k])),
            (products.hessian_product[k], yy @ v[k]),
            (products.jacobian_product[k], xy @ v[k]),
            (hessians.hessian[k], yy),
            (hessians.jacobian_product[k], xy @ v[k]),
            (matrices.hessian[k], yy),
            (matrices.jacobian[k], xy),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert oracle.whole.counts.upper_gradients == 6
    assert oracle.whole.counts.hessian_products == 6 * (1 + 5 + 5)
    assert oracle.whole.counts.jacobian_products == 6 * (1 + 1 + 5)
    assert oracle.whole.counts.lower_gradients == 6 * (3 + len(index))


def test_stack_and_flatten_are_inverse():
    """Oracle: the trees themselves, block by block."""
    problem = trees()
    oracle = BlockOracle(Oracle(problem))
    flat = torch.arange(25, dtype=torch.float64)
    tree = problem.y_layout.unflatten(flat)
    stacked = oracle.stack(flat)
    torch.testing.assert_close(oracle.flatten(stacked), flat, rtol=0, atol=0)
    for i in range(5):
        one = oracle.block_layout.unflatten(stacked[i])
        torch.testing.assert_close(one["w"], tree["w"][i], rtol=0, atol=0)
        torch.testing.assert_close(one["b"], tree["b"][i], rtol=0, atol=0)


@pytest.mark.parametrize(("m", "count"), [(5, 5), (40, 3)])
def test_blocks_are_drawn_evenly(m, count):
    """Oracle: the hypergeometric mean, within four standard errors, by both ways of drawing."""
    g, draws = seeded(1), 4000
    seen = torch.zeros(m)
    for _ in range(draws):
        index = draw_blocks(m, count, g)
        assert len(set(index.tolist())) == count
        seen[index] += 1
    share = count / m
    error = math.sqrt(share * (1 - share) / draws)
    assert float((seen / draws - share).abs().max()) <= 4 * error + 1e-12


def test_rows_stay_inside_their_blocks():
    """Oracle: the sizes; no row twice while every block has enough, and a mean row that is the middle one."""
    sizes = torch.tensor([4, 9, 30])
    rows = draw_rows(sizes, 4, seeded(2))
    assert all(len(set(r.tolist())) == 4 for r in rows)
    assert bool((rows < sizes[:, None]).all())
    many = draw_rows(sizes, 20_000, seeded(3))
    assert bool((many < sizes[:, None]).all())
    middle = (sizes - 1) / 2
    assert bool(((many.double().mean(1) - middle).abs() <= 4 * sizes / 12**0.5 / 20_000**0.5).all())


def test_everything_drawn_is_soba():
    """Oracle: deterministic SOBA, whose losses are means over the blocks, from the same start."""
    problem = case().problem
    ours = BSVRB(problem, 2, blocks_per_step=BLOCKS, batch_size=ROWS, lr=0.1, lr_lower=0.1, alpha=1.0, beta=1.0)
    ours.warm_start()
    soba = SOBA(problem, lr=0.1, lr_lower=0.1 * BLOCKS, decay=0.0)
    soba.y, soba.v = ours.lower_variable(), ours.v.flatten().clone()
    found, expected = (solver.run(Budget(iterations=30), trace_every=30) for solver in (ours, soba))
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("radius", [None, 50.0])
def test_lazy_is_eager(version, radius):
    """Oracle: the run that moves all blocks in every step, looked at in its midst too; the ball is never reached."""
    ends = [
        BSVRB(case().problem, version, mu=0.05, lazy=lazy, radius=radius, **STEPS).run(
            Budget(iterations=60), trace_every=20
        )
        for lazy in (True, False)
    ]
    torch.testing.assert_close(ends[0].x, ends[1].x, rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[0].y, ends[1].y, rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[0].column("upper_value"), ends[1].column("upper_value"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("version", [1, 2])
def test_one_step_by_hand(version):
    """Oracle: the formulas of the third step, written out per block with dense derivatives of whole blocks."""
    problem, alpha, beta, tau, eta = case().problem, 0.2, 0.3, 0.01, 0.1
    solver = BSVRB(
        problem, version, mu=1e-3, blocks_per_step=4, lr=eta, lr_lower=tau, alpha=alpha, beta=beta, lazy=False
    )
    solver.run(Budget(iterations=2))
    x, x_old, y, y_old, z = solver.x, solver.x_before, solver.y.clone(), solver.y_before.clone(), solver.average
    s, v, v_old, u = solver.gradient.clone(), solver.v.clone(), solver.v_before.clone(), solver.residual.clone()
    H, H_old = solver.hessian.clone(), solver.hessian_before.clone()
    state = solver.generator.get_state()
    index = draw_blocks(BLOCKS, 4, solver.generator)
    solver.generator.set_state(state)
    solver.run(Budget(iterations=3))

    def derivatives(a, b, i):
        lower = lambda p, q: problem.block_lower(p, q, i, None)  # noqa: E731
        f_y = torch.func.grad(lambda q: problem.block_upper(a, q, i, None))(b)
        g_y = torch.func.grad(lower, argnums=1)
        return f_y, g_y(a, b), torch.func.jacrev(g_y, argnums=1)(a, b), torch.func.jacrev(g_y)(a, b).T

    gamma = (BLOCKS - 4) / (4 * (1 - alpha)) + 1 - alpha
    estimates = []
    for i in index:
        f, g, yy, xy = derivatives(x, y[i], i)
        f_old, g_old, yy_old, xy_old = derivatives(x_old, y_old[i], i)
        if version == 1:
            w, w_old = torch.linalg.solve(H[i], f), torch.linalg.solve(H_old[i], f_old)
            H[i] = (1 - alpha) * H[i] + alpha * yy + gamma * (yy - yy_old)
        else:
            w, w_old = v[i].clone(), v_old[i]
            r, r_old = yy @ w - f, yy_old @ w_old - f_old
            u[i] = (1 - alpha) * u[i] + alpha * r + gamma * (r - r_old)
        estimates.append((-xy @ w, -xy_old @ w_old))
        s[i] = (1 - alpha) * s[i] + alpha * g + gamma * (g - g_old)
    now, before = (torch.stack(part).mean(0) for part in zip(*estimates, strict=True))
    z = (1 - beta) * (z - before) + now
    torch.testing.assert_close(solver.average, z, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solver.x, x - eta * z, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solver.y, y - tau * s, rtol=1e-10, atol=1e-12)
    if version == 1:
        torch.testing.assert_close(solver.hessian, H, rtol=1e-10, atol=1e-12)
    else:
        torch.testing.assert_close(solver.v, v - tau * u, rtol=1e-10, atol=1e-12)


def test_rsvrb_estimates_are_unbiased():
    """Oracle: the exact gradients of a point at rest, within four standard errors over 300 seeds."""
    problem = case().problem
    drawn = []
    for seed in range(300):
        solver = RSVRB(problem, mu=1e-3, blocks_per_step=3, lr=1e-12, lr_lower=1e-12, beta=0.2, init_steps=0, seed=seed)
        solver.run(Budget(iterations=4), trace_every=4)
        drawn.append(solver.gradient)
    truth = BlockOracle(Oracle(problem)).gradient(solver.x.expand(BLOCKS, -1), solver.y, torch.arange(BLOCKS), None)
    drawn = torch.stack(drawn)
    assert bool(((drawn.mean(0) - truth).abs() <= 4 * drawn.std(0) / 300**0.5 + 1e-9).all())


@pytest.mark.parametrize("name", list(SOLVERS))
def test_converges(name):
    """Oracle: the closed form; the exact hypergradient falls to a fifth with a quarter of the blocks a step."""
    options = {"lr_lower": 0.1} if name == "BlockSOBA" else {}  # it moves a block only when that is drawn
    solver = SOLVERS[name](case().problem, batch_size=None, lr=0.3, beta=0.3, **options)
    norms = solver.run(Budget(iterations=600), trace_every=600).column("exact_norm")
    assert norms[-1] <= 0.2 * norms[0]


@pytest.mark.parametrize("version", [1, 2])
def test_trees_and_ragged_blocks(version):
    """Oracle: SOBA on the whole problem; blocks of 2 to 8 rows, y of two tensors, x in f as well."""
    problem = trees()
    with pytest.warns(UserWarning, match="2 rows of the smallest block"):
        solver = BSVRB(problem, version, mu=1e-2, blocks_per_step=4, batch_size=4, lr=0.1, lr_lower=0.02, beta=0.2)
    found = solver.run(Budget(iterations=1500), trace_every=1500)
    exact = SOBA(problem, lr=0.5, lr_lower=1.0, decay=0.0).run(Budget(iterations=1500), trace_every=1500)
    start = problem.x_layout.flatten(problem.x0)
    flat, truth = (problem.x_layout.flatten(result.x) for result in (found, exact))
    assert float((flat - truth).norm()) <= 0.3 * float((start - truth).norm())
    assert found.y["w"].shape == (5, 4)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_resume_is_exact(name, tmp_path):
    """Oracle: the uninterrupted run, bit for bit, from a checkpoint loaded into a solver of another seed."""
    whole = SOLVERS[name](case().problem)
    whole.run(Budget(iterations=5))
    whole.save(tmp_path / "half.safetensors")
    expected = whole.run(Budget(iterations=12))
    other = SOLVERS[name](case().problem, seed=77)
    other.load(tmp_path / "half.safetensors")
    found = other.run(Budget(iterations=12))
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=0)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=0)
    assert found.counts == expected.counts


@pytest.mark.parametrize("version", [1, 2])
def test_single_precision(version):
    """Oracle: the same run in float64: same draws, results that agree to single precision."""
    ends = []
    for dtype in (torch.float32, torch.float64):
        problem = trees(dtype)
        ends.append(
            BSVRB(problem, version, mu=1e-2, blocks_per_step=2, batch_size=2, lr=0.05, lr_lower=0.01).run(
                Budget(iterations=20), trace_every=20
            )
        )
    assert ends[0].x[0].dtype == torch.float32
    torch.testing.assert_close(ends[0].x[0].double(), ends[1].x[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ends[0].y["w"].double(), ends[1].y["w"], rtol=1e-3, atol=1e-3)


def test_box_ball_and_bounds_of_each_block():
    """Oracle: the sets themselves."""
    problem = case(bounds=(-0.05, 0.05)).problem
    solver = BSVRB(problem, 2, radius=0.05, **STEPS)
    result = solver.run(Budget(iterations=40), trace_every=40)
    assert float(result.x.abs().max()) <= 0.05
    assert float(solver.v.norm(dim=1).max()) <= 0.05 * (1 + 1e-12)
    mu = torch.linspace(0.5, 3.0, BLOCKS, dtype=torch.float64)
    solver = BSVRB(problem, 1, mu=mu, **STEPS)
    solver.run(Budget(iterations=40), trace_every=40)
    assert bool((torch.linalg.eigvalsh(solver.hessian)[:, 0] >= mu - 1e-12).all())


def test_warm_start_is_near_the_lower_solutions():
    """Oracle: the closed form of y*, and of v by the closed form of the hypergradient."""
    exact = case()
    solver = BSVRB(exact.problem, 2, init_steps=200, **STEPS)
    solver.warm_start()
    assert relative(solver.y, exact.lower_solution(solver.x)) < 1e-6
    estimate = -(solver.x.exp() * solver.y * solver.v).mean(0)
    assert relative(estimate, exact.hypergradient(solver.x)) < 1e-4
    counted = solver.oracle.counts.samples
    solver.warm_start()  # once is enough
    assert solver.oracle.counts.samples == counted == 2 * BLOCKS * ROWS


def test_counts_of_a_step():
    """Oracle: the counting rule; 3 blocks of 6 rows, each at the present iterate and at the one before."""
    expected = {"version 1": (36, 36, 36 * ORDER, 36), "version 2": (36, 36, 36, 36), "BlockSOBA": (18, 18, 18, 18)}
    for name, (upper, lower, hessian, jacobian) in expected.items():
        solver = SOLVERS[name](case().problem)
        solver.warm_start()
        before = solver.oracle.counts.copy()
        solver.run(Budget(iterations=1), trace_every=5)
        after = solver.oracle.counts
        assert after.samples - before.samples == 36
        assert after.upper_gradients - before.upper_gradients == upper
        assert after.lower_gradients - before.lower_gradients == lower
        assert after.hessian_products - before.hessian_products == hessian
        assert after.jacobian_products - before.jacobian_products == jacobian


def test_version_is_chosen_by_size():
    """Oracle: the documented rule."""
    problem = case().problem
    assert BSVRB(problem, mu=0.1, **STEPS).version == 1
    assert BSVRB(problem, **STEPS).version == 2
    wide = problems.multi_ridge(3, 5, 65).problem
    assert BSVRB(wide, mu=0.1, **STEPS | {"batch_size": 2}).version == 2


def test_nan_names_the_block_and_leaves_the_state():
    """Oracle: the block that was spoilt; the state before the step comes back."""
    base = case().problem
    spoilt = BilevelProblem.from_blocks(
        base.block_upper,
        lambda x, y, i, batch: base.block_lower(x, y, i, batch) * torch.where((i == 7) & (x[0] != 0), torch.nan, 1.0),
        base.x0,
        base.y0,
        upper_rows=ROWS,
        lower_rows=ROWS,
    )
    solver = BSVRB(spoilt, 2, **STEPS)
    result = solver.run(Budget(iterations=60), trace_every=60)
    assert "block 7" in result.message
    assert bool(torch.isfinite(result.x).all() and torch.isfinite(result.y).all())


def test_temperature_blocks():
    """Oracle: the losses written out; the weights learnt tell flipped labels from right ones."""
    g = seeded(4)
    t = torch.where(torch.rand(260, generator=g) < 0.5, -1.0, 1.0).double()
    X = torch.randn(260, 3, dtype=torch.float64, generator=g) + t[:, None]
    flipped = torch.rand(160, generator=g) < 0.25
    noisy = torch.where(flipped, -t[:160], t[:160])
    temperatures = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    problem = tasks.temperature_blocks(X[:160], noisy, X[160:], t[160:], temperatures)
    x, y = torch.randn(160, dtype=torch.float64, generator=g), torch.randn(3, dtype=torch.float64, generator=g)
    rows = torch.tensor([5, 9, 100])
    expected = sum(
        x[j].sigmoid() * torch.log1p(torch.exp(-noisy[j] * (X[j] @ y) / 2.0)) for j in rows.tolist()
    ) / 3 + 0.005 * (y @ y)
    torch.testing.assert_close(problem.block_lower(x, y, torch.tensor(2), rows), expected)
    solver = BSVRB(problem, 2, blocks_per_step=2, batch_size=32, lr=30.0, lr_lower=0.05)
    weights = solver.run(Budget(iterations=300), trace_every=300).x
    auroc = float((weights[~flipped][:, None] > weights[flipped][None]).double().mean())
    assert auroc > 0.8
    with pytest.raises(ArgumentError, match="temperatures > 0"):
        tasks.temperature_blocks(X[:160], noisy, X[160:], t[160:], -temperatures)
    with pytest.raises(ShapeError, match="temperature_blocks"):
        tasks.temperature_blocks(X[:160], t, X[160:], t[160:], temperatures)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    problem = case().problem
    for options, match in (
        ({"blocks_per_step": 13}, "blocks_per_step <= 12"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"alpha": 1.0}, "infinite"),
        ({"alpha": 0.0}, "0 < alpha"),
        ({"beta": 1.5}, "0 < beta"),
        ({"gamma": "adam"}, "'storm'"),
        ({"radius": -1.0}, "radius > 0"),
        ({"init_steps": -1}, "init_steps >= 0"),
        ({"version": 3}, "version"),
        ({"version": 1}, "needs mu"),
        ({"version": 1, "mu": 0.0}, "mu > 0"),
    ):
        with pytest.raises(ArgumentError, match=match):
            BSVRB(problem, **STEPS | options)
    with pytest.raises(ArgumentError, match="no blocks"):
        BSVRB(problems.quadratic(3, 4).problem, **STEPS)
    half = BilevelProblem.from_blocks(
        lambda x, y, i, batch: y.sum(),
        lambda x, y, i, batch: (y - x).square().sum(),
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(12, 2, dtype=torch.float16),
    )
    with pytest.raises(ArgumentTypeError, match="factorisation"):
        BSVRB(half, 1, mu=1.0, **STEPS)
    with pytest.raises(ArgumentError, match="not of version 2"):
        BSVRB(problem, 2, **STEPS).load_state_dict(BSVRB(problem, 1, mu=0.1, **STEPS).state_dict())
    with pytest.warns(UserWarning, match="largest curvature"):
        BSVRB(problem, 2, **STEPS | {"lr_lower": 1.0}).warm_start()
    with pytest.raises(ShapeError, match="lower_rows"):
        BilevelProblem.from_blocks(
            problem.block_upper, problem.block_lower, problem.x0, problem.y0, lower_rows=torch.ones(3).long()
        )
    with pytest.raises(ArgumentError, match="without rows"):
        BilevelProblem.from_blocks(problem.block_upper, problem.block_lower, problem.x0, problem.y0, upper_rows=0)
