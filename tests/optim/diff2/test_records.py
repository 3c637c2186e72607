"""Clipped sums against loops over records, and noise against its moments."""

import math

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import ParameterLayout
from hesse.optim.diff2 import LinearRecords, LossRecords, gaussian_noise, module_loss

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


A, Y = torch.randn(23, 4, generator=seeded(), dtype=F64), torch.randint(3, (23,), generator=seeded(1))
X, BEFORE = torch.randn(2, 12, generator=seeded(2), dtype=F64)
LAYOUT = ParameterLayout.of({"w": torch.zeros(3, 4)})


def softmax_slope(outputs, labels):
    return outputs.softmax(1) - nn.functional.one_hot(labels, 3).to(outputs)


def record_loss(parameters, record):
    return nn.functional.cross_entropy(record[0] @ parameters["w"].T, record[1])


def both(micro_batch=5):
    return LossRecords(record_loss, LAYOUT, (A, Y), micro_batch), LinearRecords(A, Y, softmax_slope, 3, micro_batch)


def looped(rows, clip):
    return sum(row * min(1.0, clip / float(row.norm())) for row in rows if float(row.norm()) > 0)


def gradients(x):
    slopes = softmax_slope(A @ x.reshape(3, 4).T, Y)
    return torch.stack([torch.outer(s, a).reshape(-1) for s, a in zip(slopes, A, strict=True)])


@pytest.mark.parametrize("clip", [0.3, 1.0, math.inf])
@pytest.mark.parametrize("index", [None, torch.tensor([3, 3, 22, 0])])
def test_sums_are_those_of_a_loop(clip, index):
    """Oracle: outer products and min(1, C/‖v‖), a record at a time; both kinds of records, any micro-batch."""
    rows = slice(None) if index is None else index
    for records in (*both(), *both(100)):
        found = records.gradient_sum(X, clip, index)
        torch.testing.assert_close(found.total, looped(gradients(X)[rows], clip), rtol=1e-12, atol=1e-12)
        assert found.num_clipped == int((gradients(X)[rows].norm(dim=1) > clip).sum())
        change = gradients(X) - gradients(BEFORE)
        found = records.difference_sum(X, BEFORE, clip, index).total
        torch.testing.assert_close(found, looped(change[rows], clip), rtol=1e-12, atol=1e-12)


def test_same_points_differ_by_nothing_and_empty_batches_sum_to_zero():
    """Oracle: clip(0) = 0 without a division by zero."""
    for records in both():
        assert float(records.difference_sum(X, X, 1.0).total.abs().max()) < 1e-14
        assert not records.gradient_sum(X, 1.0, torch.tensor([], dtype=torch.long)).total.any()


def test_records_that_are_not_finite_count_as_zero():
    """Oracle: the sum without them, and their number."""
    broken = A.clone()
    broken[4, 1], broken[9, 0] = math.inf, math.nan
    kept = torch.tensor([i for i in range(23) if i not in (4, 9)])
    for records, clean in zip(
        (LossRecords(record_loss, LAYOUT, (broken, Y)), LinearRecords(broken, Y, softmax_slope, 3)), both(), strict=True
    ):
        found = records.gradient_sum(X, 0.5)
        torch.testing.assert_close(found.total, clean.gradient_sum(X, 0.5, kept).total, rtol=1e-12, atol=1e-12)
        assert found.num_nonfinite == 2


def test_replacing_a_record_moves_a_sum_by_two_radii_at_most():
    """Oracle: the triangle inequality, for records of any size, and equality for opposite ones."""
    for seed in range(50):
        other, labels = A.clone(), Y.clone()
        other[0] = 10 ** float(seed % 7) * torch.randn(4, generator=seeded(seed), dtype=F64)
        labels[0] = seed % 3
        a, b = LinearRecords(A, Y, softmax_slope, 3), LinearRecords(other, labels, softmax_slope, 3)
        assert float((a.gradient_sum(X, 0.2).total - b.gradient_sum(X, 0.2).total).norm()) <= 0.4 + 1e-12
        moved = a.difference_sum(X, BEFORE, 0.2).total - b.difference_sum(X, BEFORE, 0.2).total
        assert float(moved.norm()) <= 0.4 + 1e-12


def test_a_module_as_a_loss():
    """Oracle: autograd of the module, a record at a time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    named = {name: p.detach() for name, p in model.named_parameters()}
    layout = ParameterLayout.of(named)
    found = LossRecords(module_loss(model, nn.functional.cross_entropy), layout, (A, Y)).gradient_sum(
        layout.flatten(named), 0.7
    )
    rows = []
    for a, y in zip(A, Y, strict=True):
        loss = nn.functional.cross_entropy(model(a.unsqueeze(0)), y.unsqueeze(0))
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    torch.testing.assert_close(found.total, looped(rows, 0.7), rtol=1e-11, atol=1e-12)


def test_layers_that_mix_records_are_refused():
    """Oracle: the documented error; with fixed statistics a layer is a map of one record."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match="BatchNorm1d"):
        module_loss(model, nn.functional.cross_entropy)
    assert callable(module_loss(model.eval(), nn.functional.cross_entropy))
    with pytest.raises(ArgumentError, match="mixes"):
        module_loss(nn.BatchNorm1d(3, track_running_stats=False).eval(), nn.functional.cross_entropy)


@pytest.mark.parametrize("generator", [seeded(3), None])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_is_normal(generator, dtype):
    """Oracle: moments of N(0, 4) within 5 of their standard errors at 40,000 draws; tails of the right weight."""
    draws = gaussian_noise(torch.empty(200, 200, dtype=dtype), 2.0, generator).double() / 2
    assert draws.shape == (200, 200)
    assert abs(float(draws.mean())) < 5 / 200
    assert abs(float(draws.square().mean()) - 1) < 5 * 2**0.5 / 200
    assert abs(float((draws**4).mean()) - 3) < 5 * 96**0.5 / 200
    assert abs(float((draws.abs() > 2).double().mean()) - 0.0455) < 5 * 0.21 / 200


def test_noise_of_nothing_draws_nothing():
    """Oracle: the state of the generator."""
    generator = seeded()
    assert not gaussian_noise(torch.ones(3), 0.0, generator).any()
    assert torch.equal(generator.get_state(), seeded().get_state())
    with pytest.raises(ArgumentError, match="std"):
        gaussian_noise(torch.ones(3), math.inf)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: LossRecords(record_loss, LAYOUT, (A, Y[:5])), ShapeError),
        (lambda: LossRecords(record_loss, LAYOUT, (A, Y), 0), ArgumentError),
        (lambda: LossRecords(record_loss, LAYOUT, "data"), ArgumentTypeError),
        (lambda: LossRecords(record_loss, LAYOUT, A[:0]), ArgumentError),
        (lambda: LinearRecords(A, Y[:5], softmax_slope, 3), ShapeError),
        (lambda: LinearRecords(A, Y, softmax_slope, 0), ArgumentError),
        (lambda: LinearRecords(A, Y, softmax_slope, 3).gradient_sum(X[:4], 1.0), ShapeError),
    ],
)
def test_bad_input_is_refused(call, error):
    """Oracle: the documented errors."""
    with pytest.raises(error):
        call()
