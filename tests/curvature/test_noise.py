"""Curvature noise against dense Hessians of single examples."""

from itertools import combinations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature.noise import curvature_noise
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def example_net(seed=0, dtype=F64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)


def examples(count=12, dtype=F64):
    x = torch.randn(count, 3, generator=seeded(1), dtype=F64).to(dtype)
    return x, torch.randint(3, (count,), generator=seeded(2))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def dense_hessians(model, x, y):
    """(N, P, P), one example at a time."""
    shapes = [p.shape for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(vector, i):
        pieces = vector.split([s.numel() for s in shapes])
        named = {n: piece.view(s) for n, piece, s in zip(names, pieces, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, x[i : i + 1]), y[i : i + 1])

    return torch.stack([torch.autograd.functional.hessian(lambda v, i=i: loss(v, i), flat) for i in range(len(x))])


@pytest.fixture(scope="module")
def dense():
    model, (x, y) = example_net(), examples()
    each = dense_hessians(model, x, y)
    mean = each.mean(0)
    deviations = each - mean
    return model, (x, y), each, mean, (deviations @ deviations).mean(0) * (12 / 11)


def test_every_number_is_that_of_the_dense_matrices(dense):
    """Oracle: dense Hessians of all examples, their mean, and C = mean (H_i - H)²; probes within four errors."""
    model, batch, each, mean, C = dense
    found = curvature_noise(loss_fn, model, batch, num_directions=3, edge_steps=24, tol=1e-10, generator=seeded(0))
    values, vectors = torch.linalg.eigh(mean)
    torch.testing.assert_close(found.eigenvalues, torch.cat([values[-3:].flip(0), values[:1]]), rtol=1e-8, atol=1e-10)
    V = found.eigenvectors
    cosines = (V * torch.cat([vectors[:, -3:].flip(1), vectors[:, :1]], dim=1)).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    torch.testing.assert_close(found.directional, (V * (C @ V)).sum(0), rtol=1e-8, atol=1e-10)
    order = V.mT @ (each - mean) @ V
    by_size = found.blocks.square().sum((1, 2)).argsort(), order.square().sum((1, 2)).argsort()
    torch.testing.assert_close(found.blocks[by_size[0]], order[by_size[1]], rtol=1e-8, atol=1e-10)
    inside = (order @ order).mean(0) * (12 / 11)
    torch.testing.assert_close(found.coupling, V.mT @ C @ V - inside, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.largest_variance, torch.linalg.eigvalsh(C)[-1], rtol=2e-2, atol=0)
    assert abs(float(found.p_sigma2 - C.trace() / len(C))) < 4 * float(found.p_sigma2_error)
    assert abs(float(found.bulk_trace - (mean.trace() - found.eigenvalues.sum()))) < 4 * float(found.bulk_trace_error)
    assert float(found.directional_error.max()) == 0  # all examples: nothing is left to sampling
    assert (found.num_samples, found.num_parameters, found.num_examples) == (12, 24, 12)


def test_batches_deviate_by_the_variance_over_b(dense):
    """Oracle: an identity, the mean of ‖(H_B - H) v‖² over all batches of B from N is s²/b with 1/b = 1/B - 1/N."""
    model, batch, each, mean, _ = dense
    found = curvature_noise(loss_fn, model, batch, num_directions=1, tol=1e-10, generator=seeded(0))
    v = found.eigenvectors[:, 0]
    images = (each - mean) @ v
    for size in (2, 5):
        rows = torch.tensor(list(combinations(range(12), size)))
        squares = images[rows].mean(1).square().sum(1).mean()
        torch.testing.assert_close(squares, found.directional[0] * (1 / size - 1 / 12), rtol=1e-8, atol=0)


def test_batches_loaders_and_chunks_do_not_matter(dense):
    """Oracle: invariance. The same examples in one batch, in two of unequal size, and streamed."""
    model, (x, y), *_ = dense
    wanted = curvature_noise(loss_fn, model, (x, y), num_directions=2, generator=seeded(0))
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    for data in ([(x[:7], y[:7]), (x[7:], y[7:])], loader):
        found = curvature_noise(
            loss_fn, model, data, directions=wanted.eigenvectors, chunk_size=2, edge_steps=0, generator=seeded(0)
        )
        torch.testing.assert_close(found.eigenvalues, wanted.eigenvalues)
        torch.testing.assert_close(found.directional, wanted.directional)
        torch.testing.assert_close(found.coupling, wanted.coupling)


def test_standard_error_is_honest():
    """Oracle: all examples. About 95 % of 200 samples of a quarter land within two standard errors."""
    model, (x, y) = example_net(), examples(80)
    exact = curvature_noise(loss_fn, model, (x, y), num_directions=1, num_samples=80, tol=1e-8, generator=seeded(0))
    hits, errors = 0, []
    for seed in range(200):
        found = curvature_noise(
            loss_fn,
            model,
            (x, y),
            directions=exact.eigenvectors[:, :1],
            num_samples=20,
            num_probes=2,
            edge_steps=0,
            generator=seeded(seed),
        )
        error = float(found.directional[0] - exact.directional[0])
        errors.append(error)
        hits += abs(error) <= 2 * float(found.directional_error[0])
    assert 165 <= hits <= 200  # skewed samples of 20: a little below 95 %
    spread = torch.tensor(errors)
    assert abs(float(spread.mean())) < 4 * float(spread.std()) / 200**0.5


def test_gauss_newton_of_a_linear_model_with_squared_error():
    """Oracle: closed form, H_i = 2 x_i x_iᵀ for a loss (w·x - y)², also in float32."""
    for dtype, tolerance in ((F64, 1e-9), (torch.float32, 1e-4)):
        model = nn.Linear(3, 1, bias=False).to(dtype)
        x, _ = examples(30, dtype)
        each = 2 * x.unsqueeze(2) * x.unsqueeze(1)
        mean = each.mean(0)

        def squared(net, batch):
            return (net(batch[0]) - batch[1]).square().mean()

        found = curvature_noise(
            squared, model, (x, torch.zeros(30, 1, dtype=dtype)), matrix="ggn", num_directions=2, tol=1e-10
        )
        assert len(found.eigenvalues) == 2  # no lowest one: the matrix has no negative side
        values = torch.linalg.eigvalsh(mean.double()).flip(0)
        torch.testing.assert_close(found.eigenvalues, values[:2], rtol=tolerance, atol=0)
        C = ((each - mean).double() @ (each - mean).double()).mean(0) * (30 / 29)
        V = found.eigenvectors
        torch.testing.assert_close(found.directional, (V * (C @ V)).sum(0), rtol=10 * tolerance, atol=0)


def test_one_layer_alone(dense):
    """Oracle: the rows and columns of that layer in the dense Hessians."""
    model, batch, each, mean, _ = dense
    part = slice(12, 24)
    found = curvature_noise(
        loss_fn, model, batch, names=["2.weight", "2.bias"], num_directions=2, tol=1e-10, generator=seeded(0)
    )
    v = found.eigenvectors[:, 0]
    wanted = ((each - mean)[:, part, part] @ v).square().sum(1).mean() * (12 / 11)
    torch.testing.assert_close(found.directional[0], wanted, rtol=1e-8, atol=0)


@pytest.mark.parametrize("edge_steps", [0, 1, 40])
def test_noisiest_direction_is_never_below_the_measured_ones(dense, edge_steps):
    """Oracle: the definition, and the dense C; directions that span everything leave no bulk."""
    model, batch, *_, C = dense
    whole = torch.linalg.qr(torch.randn(24, 24, dtype=F64, generator=seeded(3))).Q
    found = curvature_noise(loss_fn, model, batch, directions=whole, edge_steps=edge_steps, generator=seeded(0))
    top = float(torch.linalg.eigvalsh(C)[-1])
    assert float(found.directional.max()) <= float(found.largest_variance) <= top * (1 + 1e-9)
    assert float(found.bulk_trace) == 0
    assert float(found.coupling.abs().max()) < 1e-12
    torch.testing.assert_close(found.directional.sum(), C.trace())
    if edge_steps == 40:
        assert float(found.largest_variance) > 0.98 * top


def test_bad_input_is_named():
    """Oracle: the error taxonomy."""
    model, (x, y) = example_net(), examples()

    def summed(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="sum")

    with pytest.raises(ArgumentError, match="average over examples"):
        curvature_noise(summed, model, (x, y))
    with pytest.raises(ArgumentError, match="two or more examples"):
        curvature_noise(loss_fn, model, (x[:1], y[:1]))
    with pytest.raises(ArgumentError, match="num_samples"):
        curvature_noise(loss_fn, model, (x, y), num_samples=1)
    with pytest.raises(ArgumentError, match="chunk_size"):
        curvature_noise(loss_fn, model, (x, y), chunk_size=0)
    with pytest.raises(ArgumentError, match="num_directions"):
        curvature_noise(loss_fn, model, (x, y), num_directions=24)
    with pytest.raises(ShapeError, match="leading axis"):
        curvature_noise(loss_fn, model, (x, y[:5]))
    with pytest.raises(ArgumentTypeError, match="tensors"):
        curvature_noise(loss_fn, model, ("text", x))
    with pytest.raises(ShapeError, match="directions"):
        curvature_noise(loss_fn, model, (x, y), directions=torch.ones(5, 1))
    with pytest.raises(ArgumentError, match="orthonormal"):
        curvature_noise(loss_fn, model, (x, y), directions=torch.ones(24, 1))
    with pytest.raises(NumericalError, match="NaN"):
        curvature_noise(loss_fn, model, (x.clone().fill_(torch.nan), y))
    with pytest.raises(ArgumentError, match="eval"):
        curvature_noise(loss_fn, nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).to(F64), (x, y))
