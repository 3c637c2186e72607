import pytest
import torch
from torch import nn

from hesse.compress.hawq import layer_traces
from hesse.curvature import ggn
from hesse.errors import ArgumentError, NumericalError
from tests.compress.hawq.cases import F64, cross_entropy, dense_block, seeded, small_batch, small_conv, trained


@pytest.fixture(scope="module")
def case():
    batch = small_batch()
    return trained(small_conv(), batch), batch


@pytest.mark.parametrize("own", [0, 50])
def test_traces_are_those_of_the_dense_blocks(case, own):
    """Oracle: the dense float64 Hessian. 40 runs: 95 % within 3 standard errors, mean unbiased."""
    net, batch = case
    runs = [
        layer_traces(
            net, cross_entropy, batch, num_probes=20, rtol=0, num_own_probes=own, probing="common", generator=seeded(s)
        )
        for s in range(40)
    ]
    exact = torch.stack([dense_block(net, cross_entropy, batch, name).trace() for name in runs[0].names])
    scores = torch.stack([(r.trace - exact) / r.standard_error for r in runs])
    assert float((scores.abs() <= 3).double().mean()) >= 0.95
    found = torch.stack([r.trace for r in runs])
    assert bool(((found.mean(0) - exact).abs() <= 4 * found.std(0) / 40**0.5).all())
    assert sum(runs[0].num_probes) == 3 * 20 + own


def test_gauss_newton_traces_are_exact_on_a_diagonal_block():
    """Oracle: the dense float64 GGN; signs read a diagonal matrix without error, so 1e-10 is asked."""
    net = nn.Linear(5, 1, bias=False).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=F64))

    def loss_fn(model, batch):
        return (model(batch).squeeze(1) ** 2).mean()

    found = layer_traces(net, loss_fn, x, num_probes=2, matrix="ggn")
    torch.testing.assert_close(found.trace, torch.tensor([2 * 55 / 5], dtype=F64), rtol=1e-10, atol=0)


def test_hutchpp_with_a_product_a_weight_is_exact(case):
    """Oracle: the dense float64 GGN blocks, to 1e-10."""
    net, batch = case
    found = layer_traces(net, cross_entropy, batch, num_probes=147, matrix="ggn", probing="hutch++")
    operator = ggn(lambda model, b: model(b[0]), net, batch, names=found.names)
    exact = torch.stack([operator.block([n]).to_dense().detach().trace() for n in found.names]) / len(batch[1])
    torch.testing.assert_close(found.trace, exact, rtol=1e-10, atol=0)
    assert not found.standard_error.any()


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_hutchpp_is_unbiased_and_beats_plain_probes(case, matrix):
    """Oracle: dense float64 blocks; 40 runs. At 60 products the error of every layer is below that of plain probes."""
    net, batch = case
    options = {"num_probes": 60, "rtol": 0, "num_own_probes": 0, "matrix": matrix}
    runs = [
        layer_traces(net, cross_entropy, batch, probing="hutch++", generator=seeded(s), **options) for s in range(40)
    ]
    plain = layer_traces(net, cross_entropy, batch, probing="common", generator=seeded(0), **options)
    if matrix == "hessian":
        exact = torch.stack([dense_block(net, cross_entropy, batch, name).trace() for name in plain.names])
    else:
        operator = ggn(lambda model, b: model(b[0]), net, batch, names=plain.names)
        exact = torch.stack([operator.block([n]).to_dense().detach().trace() for n in plain.names]) / len(batch[1])
    found = torch.stack([r.trace for r in runs])
    errors = torch.stack([r.standard_error for r in runs])
    assert bool(((found.mean(0) - exact).abs() <= 4 * found.std(0) / 40**0.5 + 1e-12 * exact).all())
    assert float(((found - exact).abs() <= 3 * errors + 1e-12 * exact).double().mean()) >= 0.95
    assert bool((found.std(0) < 0.7 * plain.standard_error).all())
    assert runs[0].num_probes == (60, 60, 60)


def test_batches_are_weighted_by_their_examples(case):
    """Oracle: the same examples as one batch, with the same signs."""
    net, batch = case
    pieces = [(batch[0][:5], batch[1][:5]), (batch[0][5:], batch[1][5:])]
    options = {"num_probes": 6, "num_own_probes": 0, "rtol": 0, "probing": "common"}
    whole = layer_traces(net, cross_entropy, batch, generator=seeded(1), **options)
    split = layer_traces(net, cross_entropy, pieces, generator=seeded(1), keep_graph=True, chunk_size=2, **options)
    torch.testing.assert_close(split.trace, whole.trace, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(split.gradient_norm, whole.gradient_norm, rtol=1e-10, atol=1e-14)


def test_probing_stops_when_every_layer_is_certain(case):
    """Oracle: the rule. A loose tolerance needs the ten probes of the first look, and no layer is left unsettled."""
    net, batch = case
    found = layer_traces(net, cross_entropy, batch, num_probes=50, rtol=2.0, probing="common", generator=seeded(2))
    assert found.num_probes == (10, 10, 10)
    assert found.unsettled(2.0) == ()
    assert found.unsettled(0.0) == found.names


def test_rows_and_average(case):
    """Oracle: trace over the number of weights."""
    net, batch = case
    found = layer_traces(net, cross_entropy, batch, num_probes=4, num_own_probes=0, generator=seeded(3))
    assert [row["numel"] for row in found.rows()] == [27, 96, 24]
    torch.testing.assert_close(found.average, found.trace / torch.tensor([27.0, 96.0, 24.0], dtype=F64))


def test_a_weight_the_loss_does_not_feel_has_trace_zero():
    """Oracle: no dependence, no curvature."""

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(3, 2)
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    found = layer_traces(Holder(), lambda m, b: m(b).square().mean(), torch.ones(2, 3), num_probes=4, num_own_probes=0)
    assert found.trace[1] == 0
    assert found.trace[0] > 0


def test_bad_input_is_refused(case):
    """Oracle: the documented errors, which name the argument."""
    net, batch = case
    with pytest.raises(ArgumentError, match="num_probes"):
        layer_traces(net, cross_entropy, batch, num_probes=1)
    with pytest.raises(ArgumentError, match="probing"):
        layer_traces(net, cross_entropy, batch, probing="all")
    with pytest.raises(ArgumentError, match="training mode"):
        layer_traces(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), cross_entropy, batch)
    with pytest.raises(NumericalError, match="NaN"):
        layer_traces(net, lambda m, b: cross_entropy(m, b) * float("nan"), batch, num_probes=2)
