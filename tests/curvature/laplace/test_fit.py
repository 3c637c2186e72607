"""The Gauss-Newton matrix that a Laplace posterior keeps, against the dense one."""

import pytest
import torch
from torch import nn

from hesse.curvature import bernoulli_hessian, cross_entropy_hessian, ggn, squared_error_hessian
from hesse.curvature.laplace import laplace
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, NumericalError, ShapeError

F64 = torch.float64
HESSIANS = {"categorical": cross_entropy_hessian, "bernoulli": bernoulli_hessian, "gaussian": squared_error_hessian}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double()


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


def data(likelihood, n=11, classes=2, shape=(3,)):
    x = torch.randn(n, *shape, generator=seeded(), dtype=F64)
    if likelihood == "categorical":
        return x, torch.randint(classes, (n,), generator=seeded(1))
    if likelihood == "bernoulli":
        return x, torch.randint(2, (n, classes), generator=seeded(1)).double()
    return x, torch.randn(n, classes, generator=seeded(1), dtype=F64)


def batches(x, y, size=4):
    return list(zip(x.split(size), y.split(size), strict=True))


def dense(model, x, likelihood, posterior):
    """The Gauss-Newton matrix in the order of the posterior's blocks: weights by rows, each followed by its bias."""
    matrix = ggn(lambda m, b: m(b), model, x, HESSIANS[likelihood], names=posterior.layout.names).to_dense().detach()
    size = posterior.layout.size
    numbers = posterior.layout.unflatten(torch.arange(size, dtype=F64))
    order = torch.cat([layer.matrix_from_grads(numbers).reshape(-1) for layer in posterior.layers.values()]).long()
    return matrix[order][:, order]


@pytest.mark.parametrize("likelihood", list(HESSIANS))
@pytest.mark.parametrize("subset", ["last_layer", "all"])
def test_full_and_diagonal_are_those_of_the_dense_matrix(likelihood, subset):
    """Oracle: the dense Gauss-Newton operator over all data at once; the fit streams uneven batches."""
    model, (x, y) = mlp(), data(likelihood)
    full = laplace(model, batches(x, y), likelihood, subset=subset, structure="full")
    matrix = dense(model, x, likelihood, full)
    assert list(full.layers) == (["3"] if subset == "last_layer" else ["0", "3"])
    torch.testing.assert_close(full.precision.matrix, matrix, rtol=1e-10, atol=1e-12)
    diagonal = laplace(model, batches(x, y), likelihood, subset=subset, structure="diag")
    found = torch.cat([table.reshape(-1) for table in diagonal.precision.tables.values()])
    torch.testing.assert_close(found, matrix.diagonal(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_convolutions_are_exact_but_for_kron(structure):
    """Oracle: the dense Gauss-Newton operator."""
    torch.manual_seed(0)
    model = Images().double()
    x, y = data("categorical", classes=3, shape=(1, 4, 4))
    found = laplace(model, batches(x, y), "categorical", subset="all", structure=structure).precision
    other = laplace(model, batches(x, y), "categorical", subset="all", structure="full")
    matrix = dense(model, x, "categorical", other)
    if structure == "full":
        torch.testing.assert_close(found.matrix, matrix, rtol=1e-10, atol=1e-12)
    else:
        flat = torch.cat([table.reshape(-1) for table in found.tables.values()])
        torch.testing.assert_close(flat, matrix.diagonal(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", list(HESSIANS))
def test_kron_is_the_product_of_the_factors(likelihood):
    """Oracle: H = N S ⊗ A, A from the inputs, N S the dense block of the bias, whose gradient is δ itself."""
    model, (x, y) = mlp(), data(likelihood)
    found = laplace(model, batches(x, y), likelihood, subset="all").precision
    hidden = model[2](torch.tanh(model[0](x))).detach()
    for name, inputs in (("0", x), ("3", hidden)):
        operator = ggn(lambda m, b: m(b), model, x, HESSIANS[likelihood], names=[f"{name}.bias"])
        ones = torch.cat([inputs, torch.ones(len(x), 1, dtype=F64)], 1)
        H = torch.kron(operator.to_dense().detach(), ones.T @ ones / len(x))
        Q = torch.kron(*found.bases[name])
        torch.testing.assert_close(Q * found.tables[name].reshape(-1) @ Q.T, H, rtol=1e-10, atol=1e-12)


def test_kron_is_exact_for_a_linear_gaussian_model():
    """Oracle: the dense matrix."""
    model, (x, y) = nn.Linear(3, 2).double(), data("gaussian")
    kron = laplace(model, batches(x, y), "gaussian")
    Q = torch.kron(*kron.precision.bases[""])
    H = Q * kron.precision.tables[""].reshape(-1) @ Q.T
    torch.testing.assert_close(H, dense(model, x, "gaussian", kron), rtol=1e-10, atol=1e-12)


def test_one_output_may_be_a_vector():
    """Oracle: the same model with outputs and targets (B, 1)."""

    class Flat(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(x).squeeze(-1)

    body, (x, y) = nn.Linear(3, 1).double(), data("gaussian", classes=1)
    column = laplace(body, batches(x, y), "gaussian")
    vector = laplace(Flat(body), batches(x, y.squeeze(-1)), "gaussian")
    assert torch.equal(column.log_marginal_likelihood(), vector.log_marginal_likelihood())
    assert torch.equal(column.predictive(x).covariance, vector.predictive(x).covariance)


def test_batches_do_not_matter_and_the_model_is_left_alone():
    """Oracle: one batch of all, and the model's own flags and gradients."""
    model, (x, y) = mlp(), data("categorical")
    model[0].bias.requires_grad_(False)
    for structure in ("kron", "diag", "full"):
        whole = laplace(model, [(x, y)], "categorical", subset="all", structure=structure)
        parts = laplace(model, batches(x, y, 1), "categorical", subset="all", structure=structure)
        torch.testing.assert_close(
            whole.log_marginal_likelihood(), parts.log_marginal_likelihood(), rtol=1e-12, atol=1e-12
        )
        assert "0.bias" not in whole.layout.names
    assert [p.requires_grad for p in model.parameters()] == [True, False] + [True] * 4
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_refused():
    """Oracle: the error classes and the names in their messages."""
    model, (x, y) = mlp(), data("categorical")
    loader = batches(x, y)
    for options, name in (
        ({"likelihood": "poisson"}, "likelihood"),
        ({"structure": "lowrank"}, "structure"),
        ({"prior_precision": 0.0}, "prior_precision"),
        ({"sigma_noise": 2.0}, "sigma_noise"),
        ({"loader": []}, "loader"),
        ({"subset": "attention"}, "attention"),
    ):
        with pytest.raises(ArgumentError, match=name):
            laplace(**({"model": model, "loader": loader, "likelihood": "categorical"} | options))
    with pytest.raises(ShapeError, match="prior_precision"):
        laplace(model, loader, "categorical", prior_precision=torch.ones(3))
    with pytest.raises(ArgumentError, match="sigma_noise"):
        laplace(model, batches(*data("gaussian")), "gaussian", sigma_noise=-1.0)
    with pytest.raises(ArgumentTypeError, match="pairs"):
        laplace(model, [x], "categorical")
    with pytest.raises(ShapeError, match="class numbers"):
        laplace(model, [(x, y.double())], "categorical")
    with pytest.raises(ShapeError, match="targets"):
        laplace(model, [(x, torch.ones(11, 3))], "gaussian")
    with pytest.raises(ShapeError, match="outputs_fn"):
        laplace(model, [(x.reshape(1, 11, 3), y)], "categorical")
    with pytest.raises(NumericalError, match="NaN"):
        laplace(model, [(x * float("nan"), y)], "categorical")
    with pytest.raises(MemoryLimitError, match="full"):
        laplace(nn.Linear(40_000, 1), [], "gaussian", structure="full")
    with pytest.raises(ArgumentError, match=r"model\.eval"):
        laplace(nn.Sequential(nn.Dropout(), nn.Linear(3, 2).double()), loader, "categorical")
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ArgumentError, match="requires a gradient"):
        laplace(model, loader, "categorical")
