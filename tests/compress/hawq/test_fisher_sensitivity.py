import numpy as np
import pytest
import torch
from torch import nn

from hesse.compress.hawq import UniformQuantizer, fisher_table
from hesse.curvature import ggn
from hesse.errors import ArgumentError, NumericalError
from tests.compress.hawq.cases import cross_entropy, seeded, small_batch, small_conv, trained


def logits(model, batch):
    return model(batch[0])


@pytest.mark.parametrize("parts", [1, 3])
def test_omega_is_unbiased_for_the_dense_diagonal(parts):
    """Oracle: the diagonal of the dense float64 GGN times squared errors; 60 runs within 4 standard errors."""
    batch = small_batch()
    net = trained(small_conv(), batch, 15)  # not yet certain of its labels
    batches = list(zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True))
    runs = [fisher_table(net, logits, batches, (2, 4), num_draws=3, generator=seeded(s)) for s in range(60)]
    operator = ggn(logits, net, batch)
    parameters = dict(net.named_parameters())
    for i, name in enumerate(runs[0].names):
        diagonal = operator.block([name]).to_dense().detach().diagonal() / len(batch[1])
        weight = parameters[name].detach()
        wanted = [float(diagonal.mean())]
        for bits in (2, 4):
            delta = UniformQuantizer(bits).grid(weight).round_trip(weight) - weight
            wanted.append(float((diagonal * delta.reshape(-1).square()).sum()))
        found = np.array([[run.average[i], *run.omega[i]] for run in runs])
        assert np.all(np.abs(found.mean(0) - wanted) <= 4 * found.std(0, ddof=1) / 60**0.5), name


def test_positions_of_a_sequence_count_as_examples():
    """Oracle: the same positions laid out as examples, with the same labels drawn."""
    net = nn.Linear(4, 5, dtype=torch.float64)
    x = torch.randn(3, 6, 4, generator=seeded(0), dtype=torch.float64)
    rows = fisher_table(net, lambda m, b: m(b), x.reshape(18, 4), (2, 4), generator=seeded(1))
    sequences = fisher_table(net, lambda m, b: m(b), x, (2, 4), generator=seeded(1))
    np.testing.assert_allclose(sequences.omega, rows.omega, rtol=1e-12)
    np.testing.assert_allclose(rows.costs["size"], [[40, 80]])


def test_bad_input_is_refused():
    """Oracle: the documented errors."""
    net, batch = small_conv(), small_batch()
    with pytest.raises(ArgumentError, match="num_draws"):
        fisher_table(net, logits, batch, num_draws=0)
    with pytest.raises(ArgumentError, match="outputs_fn"):
        fisher_table(net, cross_entropy, batch)
    with pytest.raises(NumericalError, match="NaN"):
        fisher_table(net, lambda m, b: m(b[0]) * float("nan"), batch)
