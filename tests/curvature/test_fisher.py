"""Exact and sampled Fisher matrices against sums over labels, and against each other."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hesse.curvature.fisher import exact_fisher, sampled_fisher
from hesse.errors import ArgumentError, ShapeError
from hesse.testing import check_linear_operator

F64 = torch.float64


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64)


def inputs(count=6):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


def apply(model, batch):
    return model(batch)


def score(model, x, loss):
    grads = torch.autograd.grad(loss(model(x)), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in grads])


def expected_fisher(model, data, likelihood):
    """Σ_n Σ_y p(y | x_n) g gᵀ by enumeration, one backward pass a label."""
    total = torch.zeros(17, 17, dtype=F64)
    for x in data:
        z = model(x).detach()
        if likelihood == "categorical":
            for y, weight in enumerate(z.softmax(-1)):
                g = score(model, x, lambda out, y=y: -out.log_softmax(-1)[y])
                total += weight * torch.outer(g, g)
        else:
            for first in (0.0, 1.0):
                for second in (0.0, 1.0):
                    y = torch.tensor([first, second], dtype=F64)
                    p = z.sigmoid()
                    weight = (p * y + (1 - p) * (1 - y)).prod()
                    g = score(
                        model,
                        x,
                        lambda out, y=y: nn.functional.binary_cross_entropy_with_logits(out, y, reduction="sum"),
                    )
                    total += weight * torch.outer(g, g)
    return total


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_exact_is_the_expectation_over_labels(likelihood):
    """Oracle: outer products of gradients summed over all labels with their probabilities."""
    model, x = net(), inputs()
    found = exact_fisher(apply, model, x, likelihood).to_dense().detach()
    torch.testing.assert_close(found, expected_fisher(model, x, likelihood), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_sampled_is_unbiased(likelihood):
    """Oracle: the exact matrix; the mean over 400 seeds within 4.5 of its own standard errors, entry by entry."""
    model, x = net(), inputs()
    exact = exact_fisher(apply, model, x, likelihood).to_dense().detach()
    draws = torch.stack([sampled_fisher(apply, model, x, likelihood, seed=s).to_dense().detach() for s in range(400)])
    error = draws.std(0) / len(draws) ** 0.5
    scores = (draws.mean(0) - exact).abs() / error.clamp_min(1e-12)
    assert float(scores.max()) < 4.5
    assert 0.5 < float(scores.square().mean()) < 2


def test_more_samples_spread_less():
    """Oracle: the variance law 1/S, within a factor that 200 seeds leave."""
    model, x = net(), inputs()
    spread = [
        torch.stack([sampled_fisher(apply, model, x, num_samples=k, seed=s).to_dense().detach() for s in range(200)])
        .var(0)
        .sum()
        for k in (1, 4)
    ]
    assert 3 < float(spread[0] / spread[1]) < 5.3


@pytest.mark.parametrize("keep_graph", [False, True])
def test_sampled_is_one_linear_operator(keep_graph):
    """Oracle: the conformance suite: symmetric, definite, and the same labels in every product."""
    operator = sampled_fisher(apply, net(), inputs(), num_samples=3, seed=4, keep_graph=keep_graph)
    assert "psd_flag" in check_linear_operator(operator, movable=False)


def test_kept_and_streamed_labels_are_the_same():
    """Oracle: the same seed with the graph kept, in batches from a loader and from a list; float32 and float64 too."""
    model, x = net(), inputs()
    loader = DataLoader(x, batch_size=4)
    v = torch.ones(17, dtype=F64)
    plain = sampled_fisher(apply, model, loader, seed=4) @ v
    kept = sampled_fisher(apply, model, list(loader), seed=4, keep_graph=True) @ v
    torch.testing.assert_close(plain, kept)


def test_one_example_and_positions():
    """Oracle: a single example without batch axis, and positions (B, T, V) flattened to rows, with the same draws."""
    model, x = net(), inputs()
    v = torch.ones(17, dtype=F64)
    rows = sampled_fisher(apply, model, x) @ v
    positions = sampled_fisher(apply, model, x.view(2, 3, 2)) @ v
    torch.testing.assert_close(rows, positions)
    torch.testing.assert_close(sampled_fisher(apply, model, x[:1]) @ v, sampled_fisher(apply, model, x[0]) @ v)


def test_bad_arguments_are_named():
    """Oracle: the error and the argument it names."""
    model, x = net(), inputs()
    with pytest.raises(ArgumentError, match="likelihood"):
        exact_fisher(apply, model, x, "poisson")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="likelihood"):
        sampled_fisher(apply, model, x, "poisson")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="num_samples"):
        sampled_fisher(apply, model, x, num_samples=0)
    with pytest.raises(ShapeError, match="scalar"):
        sampled_fisher(lambda m, b: m(b).sum(), model, x) @ torch.ones(17, dtype=F64)
