"""Rows of gradients against loops over batches and examples."""

import copy
import math

import pytest
import torch
from torch import nn

from hesse.curvature import fisher, ggn, gradient_rows
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(seed=0, *, dropout=0.0):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 3)]
    return nn.Sequential(*layers).double()


def examples(n=7, seed=1):
    return torch.randn(n, 3, generator=seeded(seed), dtype=F64), torch.randint(3, (n,), generator=seeded(seed + 1))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def by_hand(model, data, index):
    model = copy.deepcopy(model).eval()
    loss = loss_fn(model, (data[0][index], data[1][index]))
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])


def order(n, count, seed):
    generator = seeded(seed)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-count // n))])[:count]


def test_batches_wrap_around_and_none_is_missing():
    """Oracle: a loop over the batches drawn, 5 of 4 examples out of 7, in evaluation mode."""
    model, data = net(dropout=0.5), examples()
    model.train()
    model[1].eval()
    rows = gradient_rows(model, loss_fn, data, 5, 4, generator=seeded(3))
    wanted = torch.stack([by_hand(model, data, index) for index in order(7, 20, 3).split(4)])
    torch.testing.assert_close(rows, wanted)
    assert [m.training for m in model.modules()] == [m is not model[1] for m in model.modules()]
    assert not rows.requires_grad


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_single_examples(batch_size):
    """Oracle: a loop over examples, however many share a pass."""
    model, data = net(), examples()
    rows = gradient_rows(model, loss_fn, data, 9, batch_size, per_sample=True, generator=seeded(4))
    torch.testing.assert_close(rows, torch.stack([by_hand(model, data, i[None]) for i in order(7, 9, 4)]))


def test_mask_keeps_coordinates():
    """Oracle: the full rows, indexed; by name and as one vector."""
    model, data = net(), examples()
    whole = gradient_rows(model, loss_fn, data, 3, 2, generator=seeded(5))
    keep = torch.rand(4, 3, generator=seeded(6)) > 0.5
    names = {"0.weight": keep, "4.bias": torch.zeros(3, dtype=torch.bool)}
    flat = torch.ones(whole.shape[1], dtype=torch.bool)
    flat[:12], flat[-3:] = keep.reshape(-1), False
    for mask in (names, flat):
        rows = gradient_rows(model, loss_fn, data, 3, 2, mask=mask, generator=seeded(5))
        assert torch.equal(rows, whole[:, flat])


def test_parameters_out_of_reach_have_zeros():
    """Oracle: zero, for a layer the loss does not use; a frozen layer has no columns."""
    model, data = net(), examples()
    model.spare = nn.Linear(2, 2).double()
    model[4].requires_grad_(False)
    rows = gradient_rows(model, lambda m, b: nn.functional.cross_entropy(model[:5](b[0]), b[1]), data, 2, 3)
    assert rows.shape == (2, 12 + 4 + 4 + 4 + 6)
    assert not bool(rows[:, -6:].any())


def test_sampled_labels_give_the_fisher_matrix():
    """Oracle: the Gauss-Newton matrix, to five standard errors an entry; data labels give another one."""
    model, data = net(), examples(4)
    model.eval()
    rows = gradient_rows(model, loss_fn, data, 8000, 500, per_sample=True, fisher="mc", generator=seeded(7))
    products = rows.unsqueeze(2) * rows.unsqueeze(1)
    exact = ggn(lambda m, b: m(b[0]), model, data).to_dense().detach() / 4
    assert bool(((products.mean(0) - exact).abs() <= 5 * products.std(0) / math.sqrt(8000) + 1e-12).all())
    empirical = fisher(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), model, data)
    plain = gradient_rows(model, loss_fn, data, 4, per_sample=True)
    torch.testing.assert_close(plain.mT @ plain, empirical.to_dense().detach())
    assert float((empirical.to_dense().detach() / 4 - exact).abs().max()) > 0.01


def test_bad_input_is_refused():
    """Oracle: the error classes and the names in their messages."""
    model, data = net(), examples()
    for options, name in (({"num_grads": 0}, "num_grads"), ({"num_grads": 2, "batch_size": 0}, "batch_size")):
        with pytest.raises(ArgumentError, match=name):
            gradient_rows(model, loss_fn, data, **options)
    with pytest.raises(ArgumentError, match="fisher"):
        gradient_rows(model, loss_fn, data, 1, fisher="true")
    with pytest.raises(ArgumentTypeError, match="module"):
        gradient_rows({"w": torch.ones(2)}, loss_fn, data, 1)
    with pytest.raises(ArgumentError, match="require a gradient"):
        gradient_rows(nn.Linear(2, 2).requires_grad_(False), loss_fn, data, 1)
    with pytest.raises(ShapeError, match="leading axis"):
        gradient_rows(model, loss_fn, (data[0], data[1][:3]), 1)
    with pytest.raises(ArgumentError, match="no examples"):
        gradient_rows(model, loss_fn, (data[0][:0], data[1][:0]), 1)
    with pytest.raises(ShapeError, match="scalar"):
        gradient_rows(model, lambda m, b: m(b[0]), data, 1)
    with pytest.raises(ArgumentError, match=r"mask.*7\.weight"):
        gradient_rows(model, loss_fn, data, 1, mask={"7.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="mask"):
        gradient_rows(model, loss_fn, data, 1, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="leaves no coordinate"):
        gradient_rows(model, loss_fn, data, 1, mask=torch.zeros(39, dtype=torch.bool))
    with pytest.raises(ArgumentTypeError, match="inputs, labels"):
        gradient_rows(model, loss_fn, data[0], 1, fisher="mc")
    with pytest.raises(ArgumentTypeError, match="integer labels"):
        gradient_rows(model, loss_fn, (data[0], data[0]), 1, fisher="mc")
    model[4].float()
    with pytest.raises(ShapeError, match=r"4\.weight"):
        gradient_rows(model, loss_fn, data, 1)
    model = net()
    with torch.no_grad():
        model[4].bias[1] = math.nan
    with pytest.raises(NumericalError, match=r"4\.bias"):
        gradient_rows(model, loss_fn, data, 1)
