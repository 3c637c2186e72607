"""The whole report on a network small enough to be dense."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature.diagnostics import curvature_report
from hesse.errors import ArgumentError, ArgumentTypeError

F64 = torch.float64


def example(num=24):
    torch.manual_seed(0)
    x = torch.randn(num, 3, dtype=F64)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).to(F64)
    return model, (x, x.sum(1, keepdim=True).tanh())


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def dense(model, batch):
    shapes = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]

    def of_vector(vector):
        named, start = {}, 0
        for name, shape, size in shapes:
            named[name] = vector[start : start + size].reshape(shape)
            start += size
        return loss_fn(lambda inputs: torch.func.functional_call(model, named, (inputs,)), batch)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.autograd.functional.hessian(of_vector, flat)


def measured(model, data, **options):
    settings = {"num_eigenvalues": 4, "density_steps": 10, "tol": 1e-10, "show_progress": False} | options
    return curvature_report(loss_fn, model, data, **settings)


def test_numbers_are_those_of_the_dense_matrix():
    """Oracle: eigenvalues, blocks and traces of autograd's dense Hessian; loss and gradient by hand."""
    model, batch = example()
    report = measured(model, [(batch[0][:5], batch[1][:5]), (batch[0][5:], batch[1][5:])], num_probes=600)
    H = dense(model, batch)
    values = torch.linalg.eigvalsh(H)
    wanted = values[values.abs().argsort(descending=True)[:4]].sort(descending=True).values
    torch.testing.assert_close(report.eigenvalues, wanted, rtol=1e-8, atol=1e-10)
    assert report.converged
    assert report.sharpness == pytest.approx(float(values[-1]))
    assert abs(report.trace - float(H.trace())) <= 4 * report.trace_error
    assert report.trace == pytest.approx(sum(layer.trace for layer in report.layers))
    for layer, rows in zip(report.layers, (slice(0, 12), slice(12, 16)), strict=True):
        block = H[rows, rows]
        ends = torch.linalg.eigvalsh(block)
        assert layer.num_parameters == len(block)
        assert abs(layer.trace - float(block.trace())) <= 4 * layer.trace_error + 1e-12
        assert abs(layer.largest) == pytest.approx(float(ends.abs().max()), rel=1e-2)
    model.zero_grad()
    value = loss_fn(model, batch)
    value.backward()
    assert report.loss == pytest.approx(value.item())
    length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert report.gradient_norm == pytest.approx(float(length))
    assert report.num_examples == 24


def test_learning_rates_rise_with_the_batch_to_the_edge_of_stability():
    """Oracle: at the full batch there is no noise, and the limit is that of gradient descent, 2/λ₁."""
    model, batch = example()
    report = measured(model, batch, lr=0.1, batch_size=7)
    rates = [rate.learning_rate for rate in report.rates]
    assert [rate.batch_size for rate in report.rates] == [1, 4, 7, 16, 24]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(2 / report.sharpness, rel=1e-6)
    assert report.stable_at_edge == (0.1 * report.sharpness <= 2)


def test_a_loader_a_list_and_a_second_run_agree(tmp_path):
    """Invariance: how the examples are batched; and the same call with the same folder, which computes nothing anew."""
    model, batch = example()
    whole = measured(model, batch)
    parts = measured(model, DataLoader(TensorDataset(*batch), batch_size=7))
    torch.testing.assert_close(parts.eigenvalues, whole.eigenvalues, rtol=1e-8, atol=1e-10)
    assert parts.trace == pytest.approx(whole.trace)
    assert parts.critical_batch == pytest.approx(whole.critical_batch, rel=1e-6)
    first, again = (measured(model, batch, run=tmp_path / "run").to_dict() for _ in range(2))
    assert again == first
    assert first["eigenvalues"] == whole.to_dict()["eigenvalues"]


def test_stability_is_judged_where_the_loss_is_named():
    """Oracle: `stability_report` on the same data; without a name or a rate, a reason."""
    model, batch = example()
    report = measured(model, batch, lr=0.05, batch_size=8, stability_loss="mse", num_samples=0)
    assert report.stability is not None
    assert report.stability.num_samples == 24
    assert "residuals" in report.stability_note
    assert report.noise is None
    assert report.rates == ()
    assert "stability_loss" in measured(model, batch, lr=0.05).stability_note
    assert "no learning rate" in measured(model, batch).stability_note
    text = str(report)
    assert "SGD, mean square" in text
    assert "sharpness" in text
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("num", [1, 2])
def test_one_example_and_more_wishes_than_parameters(num, matrix):
    """Oracle: the dense matrix's spectrum, in float32; one example has no spread and sets no mini-batch rates."""
    model, batch = example(num)
    model, batch = model.float(), (batch[0].float(), batch[1].float())
    report = measured(
        model, batch, matrix=matrix, num_eigenvalues=99, num_probes=99, density_steps=99, tol=1e-5, lr=0.1,
        stability_loss="mse",
    )  # fmt: skip
    assert len(report.eigenvalues) == report.num_parameters == 16
    assert report.trace == pytest.approx(float(report.eigenvalues.sum()), rel=1e-3, abs=1e-5)
    assert (report.noise is None) == (num == 1)
    assert report.stability is not None
    if num == 1:
        assert report.stability.min_batch_size == 1
    json.dumps(report.to_dict(), allow_nan=False)


def test_bad_arguments_are_named():
    """Oracle: the message names the argument, and no product is made."""
    model, batch = example()
    for options, word in [
        ({"num_eigenvalues": 0}, "num_eigenvalues"),
        ({"num_probes": 1}, "num_probes"),
        ({"batch_size": 0}, "batch_size"),
        ({"momentum": 1.0}, "momentum"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"matrix": "fisher"}, "matrix"),
    ]:
        with pytest.raises(ArgumentError, match=word):
            measured(model, batch, **options)
    with pytest.raises(ArgumentTypeError, match="module"):
        measured({"w": torch.ones(2)}, batch)
