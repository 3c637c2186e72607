import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.bilevel import BilevelProblem, LoaderSampler, NoiseSampler, Oracle, TensorSampler, problems
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from tests.bilevel.cases import seeded

ONE = torch.ones(2, dtype=torch.float64)


def loss(x, y, batch):
    return ((y - x) ** 2).sum()


def make(**changes):
    fields = {"upper": loss, "lower": loss, "x0": ONE, "y0": 0 * ONE, **changes}
    return BilevelProblem(**fields)


def test_trees_and_vectors():
    """Oracle: the round trip, and the order of the leaves."""
    tree = {"a": torch.arange(3.0), "b": [torch.tensor(3.0), torch.arange(4.0, 8.0).reshape(2, 2)]}
    layout = make(x0=tree, y0=torch.zeros(1)).x_layout
    flat = layout.flatten(tree)
    torch.testing.assert_close(flat, torch.arange(8.0))
    back = layout.unflatten(flat)
    torch.testing.assert_close(back["b"][1], tree["b"][1])
    with pytest.raises(ShapeError, match="x: expected tensors of shapes"):
        layout.flatten({"a": torch.zeros(3), "b": [torch.tensor(0.0), torch.zeros(4)]})
    with pytest.raises(ShapeError, match="float64"):
        layout.flatten({"a": torch.zeros(3).double(), "b": [torch.tensor(0.0).double(), torch.zeros(2, 2).double()]})


def test_starts_are_copied():
    """Oracle: the user's tensor after the problem's was changed."""
    start = ONE.clone()
    make(x0=start).x0.zero_()
    assert bool((start == 1).all())


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"upper": 3}, ArgumentTypeError, "upper"),
        ({"x0": torch.ones(2, dtype=torch.int64)}, ArgumentTypeError, "floating"),
        ({"x0": {"a": 3.0}}, ArgumentTypeError, "float"),
        ({"x0": {}}, ArgumentError, "at least one"),
        ({"x0": ONE.float()}, ShapeError, "float32"),
        ({"x0": [ONE, ONE.float()]}, ShapeError, "one dtype"),
        ({"y0": ONE[:1]}, ArgumentError, "share memory"),
        ({"blocks": 2}, ArgumentError, "from_blocks"),
        ({"lower_sampler": 3}, ArgumentTypeError, "lower_sampler"),
    ],
)
def test_bad_problems_are_refused(changes, error, match):
    """Oracle: the error taxonomy; raised before any work."""
    with pytest.raises(error, match=match):
        make(**changes)


def test_modules_must_not_share_parameters():
    """Oracle: one layer in both."""
    layer = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="weight"):
        BilevelProblem.from_modules(layer, nn.Sequential(layer), lambda *a: None, lambda *a: None)


def test_blocks_are_means_of_their_parts():
    """Oracle: a loop over the blocks; a restricted problem is the mean over those chosen, renumbered twice alike."""
    problem = problems.multi_ridge(5, 20, 3).problem
    x = torch.randn(3, dtype=torch.float64, generator=seeded(0))
    y = torch.randn(5, 3, dtype=torch.float64, generator=seeded(1))
    parts = torch.stack([problem.block_lower(x, y[i], torch.tensor(i), None) for i in range(5)])
    torch.testing.assert_close(problem.lower(x, y, None), parts.mean())
    index = torch.tensor([4, 1, 2])
    some = problem.blocks_at(index)
    torch.testing.assert_close(
        some.upper(x, y[index], None) * 3, sum(problem.block_upper(x, y[i], i, None) for i in index)
    )
    torch.testing.assert_close(some.blocks_at(torch.tensor([1])).lower(x, y[1:2], None), parts[1])
    with pytest.raises(ArgumentError, match="0 to 4"):
        problem.blocks_at(torch.tensor([5]))
    with pytest.raises(ArgumentError, match="no blocks"):
        make().blocks_at(torch.tensor([0]))


def test_joint_products_are_autograds():
    """Oracle: dense second derivatives by torch.func; counts by the rule."""
    case = problems.logistic(
        *(
            f(torch.randn(*s, dtype=torch.float64, generator=seeded(i)))
            for i, (f, s) in enumerate(
                [(lambda a: a, (30, 4)), (torch.sign, (30,)), (lambda a: a, (20, 4)), (torch.sign, (20,))]
            )
        )
    )
    oracle, g = Oracle(case.problem), seeded(9)
    x, y, v = (torch.randn(4, dtype=torch.float64, generator=g) for _ in range(3))
    found = oracle.joint(x, y, v)
    (_, xy), (_, yy) = torch.func.hessian(lambda a, b: case.problem.lower(a, b, None), argnums=(0, 1))(x, y)
    torch.testing.assert_close(found.hessian_product, yy @ v)
    torch.testing.assert_close(found.jacobian_product, xy @ v)
    torch.testing.assert_close(found.lower_gradient, oracle.lower_gradient(x, y))
    torch.testing.assert_close(oracle.jacobian_product(x, y, v), xy @ v)
    torch.testing.assert_close(oracle.hessian_product(x, y, v), yy @ v)
    torch.testing.assert_close(oracle.lower_hessian(x, y, damping=0.5) @ v, yy @ v + 0.5 * v)
    assert oracle.counts.as_dict() == {
        "upper_gradients": 0,
        "lower_gradients": 4,
        "hessian_products": 3,
        "jacobian_products": 2,
        "constraint_products": 0,
        "samples": 0,
    }
    assert oracle.counts.calls == 4 + 2 * 5
    upper_x, upper_y = oracle.upper_gradients(x, y)
    assert not bool(upper_x.any())  # f is free of x
    assert bool(upper_y.any())


def test_bad_losses_are_named():
    """Oracle: losses of known faults."""
    x, y = ONE.clone(), 0 * ONE
    with pytest.raises(ArgumentError, match="does not depend on y"):
        Oracle(make(lower=lambda x, y, batch: x.sum())).lower_gradient(x, y)
    with pytest.raises(ShapeError, match="lower: expected the loss to be a scalar"):
        Oracle(make(lower=lambda x, y, batch: y)).joint(x, y, y)
    with pytest.raises(ArgumentError, match="in place"), torch.no_grad():
        Oracle(make(upper=lambda x, y, batch: y.add_(1).sum())).value(x, y)


def test_linear_lower_loss_has_zero_products():
    """Oracle: closed form, g = Σ y."""
    found = Oracle(make(lower=lambda x, y, batch: y.sum())).joint(ONE, ONE, ONE)
    assert not bool(found.hessian_product.any())
    assert not bool(found.jacobian_product.any())


def test_tensor_sampler_covers_an_epoch_and_resumes():
    """Oracle: each row once an epoch; after a restored state the same draws."""
    rows = torch.arange(10)
    sampler = TensorSampler((rows,), 5, seed=3)
    epoch = torch.cat([sampler.draw()[0], sampler.draw()[0]])
    assert sorted(epoch.tolist()) == list(range(10))
    sampler.draw()
    state = sampler.state_dict()
    expected = [sampler.draw()[0].tolist() for _ in range(5)]
    other = TensorSampler((rows,), 5, seed=99)
    other.load_state_dict(state)
    assert [other.draw()[0].tolist() for _ in range(5)] == expected


def test_loader_sampler_resumes_and_reads_all():
    """Oracle: the uninterrupted draws; the whole data, in any order, without disturbing them."""

    def fresh(seed):
        data = TensorDataset(torch.arange(7.0))
        return LoaderSampler(DataLoader(data, batch_size=2, shuffle=True, generator=seeded(seed)))

    sampler = fresh(0)
    for _ in range(5):
        sampler.draw()
    state = sampler.state_dict()
    expected = [sampler.draw()[0].tolist() for _ in range(6)]
    other = fresh(1)
    other.load_state_dict(state)
    assert sorted(other.full()[0].tolist()) == [float(i) for i in range(7)]
    assert [other.draw()[0].tolist() for _ in range(6)] == expected


def test_noise_sampler_resumes():
    """Oracle: the uninterrupted draws."""
    sampler = NoiseSampler((3, 2), seed=1)
    state = sampler.state_dict()
    expected = sampler.draw()
    sampler.load_state_dict(state)
    torch.testing.assert_close(sampler.draw(), expected, rtol=0, atol=0)
    assert not any(bool(part.any()) for part in sampler.full())


def test_bad_samplers_are_refused():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="batch_size"):
        TensorSampler(torch.zeros(3), 4)
    with pytest.raises(ShapeError, match="differ"):
        TensorSampler((torch.zeros(3), torch.zeros(4)), 2)
    with pytest.raises(ArgumentTypeError, match="leading axis"):
        TensorSampler(torch.tensor(1.0), 1)
    with pytest.raises(ArgumentTypeError, match="DataLoader"):
        LoaderSampler([1])
    with pytest.raises(ArgumentError, match="generator"):
        LoaderSampler(DataLoader(TensorDataset(torch.arange(4)), shuffle=True))
    with pytest.raises(ShapeError, match="examples"):
        TensorSampler(torch.zeros(3), 1).load_state_dict(TensorSampler(torch.zeros(4), 1).state_dict())
