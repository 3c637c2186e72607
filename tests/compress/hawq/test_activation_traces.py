import pytest
import torch
from torch import nn

from hesse.compress.hawq import activation_traces
from hesse.errors import ArgumentError
from tests.compress.hawq.cases import F64, cross_entropy, seeded, small_batch, small_conv, trained


@pytest.fixture(scope="module")
def case():
    batch = small_batch()
    return trained(small_conv(), batch), batch


def dense_traces(net: nn.Sequential, batch) -> torch.Tensor:
    """A loop over examples: the Hessian of each one's loss in the input of each layer, formed."""
    means = []
    for start in (0, 3, 5):
        x, total = net[:start](batch[0]).detach(), torch.zeros((), dtype=F64)
        for example, label in zip(x, batch[1], strict=True):

            def value(a, start=start, label=label):
                return nn.functional.cross_entropy(net[start:](a.unsqueeze(0)), label.unsqueeze(0))

            matrix = torch.autograd.functional.hessian(value, example)
            total += matrix.reshape(example.numel(), example.numel()).trace()
        means.append(total / len(x))
    return torch.stack(means)


def test_traces_are_the_mean_of_dense_per_sample_hessians(case):
    """Oracle: dense Hessians in a loop over examples; 40 runs within 3 standard errors, and unbiased."""
    net, batch = case
    exact = dense_traces(net, batch)
    runs = [activation_traces(net, cross_entropy, batch, num_probes=20, generator=seeded(s)) for s in range(40)]
    assert runs[0].names == ("0", "3", "5")
    assert runs[0].numel == (36, 12, 8)
    scores = torch.stack([(r.trace - exact) / r.standard_error for r in runs])
    assert float((scores.abs() <= 3).double().mean()) >= 0.95
    found = torch.stack([r.trace for r in runs])
    assert bool(((found.mean(0) - exact).abs() <= 4 * found.std(0) / 40**0.5).all())


def test_unequal_batches_average_over_examples(case):
    """Oracle: the mean over the parts, weighted by hand, with the same signs."""
    net, batch = case
    parts = [(batch[0][:4], batch[1][:4]), (batch[0][4:], batch[1][4:])]
    together = activation_traces(net, cross_entropy, parts, num_probes=3, generator=seeded(0))
    generator = seeded(0)
    alone = [activation_traces(net, cross_entropy, part, num_probes=3, generator=generator) for part in parts]
    torch.testing.assert_close(together.trace, (4 * alone[0].trace + 8 * alone[1].trace) / 12)


def test_a_residual_branch_is_not_part_of_the_layers_input():
    """Oracle: a quadratic: of ‖W a + a‖²/2 the layer's own share of the Hessian in a is WᵀW."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False, dtype=F64)

        def forward(self, x):
            return self.layer(x) + x

    net, x = Residual(), torch.randn(6, 4, generator=seeded(1), dtype=F64)
    runs = [
        activation_traces(net, lambda m, b: m(b).square().sum() / 12, x, num_probes=50, generator=seeded(s))
        for s in range(20)
    ]
    values = torch.stack([run.trace[0] for run in runs])
    exact = net.layer.weight.detach().square().sum()
    assert abs(float(values.mean() - exact)) <= 4 * float(values.std()) / 20**0.5


def test_self_attention_and_its_mask_pass_through():
    """Oracle: shapes and finite traces of a transformer layer, whose three inputs are one tensor."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=F64).eval()
    x = torch.randn(3, 5, 8, generator=seeded(2), dtype=F64)
    found = activation_traces(layer, lambda m, b: m(b).square().mean(), x, num_probes=2, generator=seeded(0))
    assert found.names == ("self_attn", "linear1", "linear2")
    assert found.numel == (40, 40, 80)
    assert bool(found.trace.isfinite().all())


def test_bad_input_is_refused(case):
    """Oracle: the documented errors."""
    net, batch = case
    with pytest.raises(ArgumentError, match="num_probes"):
        activation_traces(net, cross_entropy, batch, num_probes=1)
    twice = nn.Sequential(layer := nn.Linear(3, 3), nn.Tanh(), layer)
    with pytest.raises(ArgumentError, match="called twice"):
        activation_traces(twice, lambda m, b: m(b).square().mean(), torch.ones(2, 3))
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match="training mode"):
        activation_traces(norm, lambda m, b: m(b).square().mean(), torch.ones(2, 3))
    assert not any(part._forward_pre_hooks for part in twice.modules())
