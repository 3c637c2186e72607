import copy

import pytest
import torch
from torch import nn

from hesse.compress.hawq import fine_tune, fold_batch_norms, quantizable_weights, quantize_model, uniform_plan
from hesse.errors import ArgumentError, NumericalError
from tests.compress.hawq.cases import cross_entropy, seeded, small_batch, small_conv, trained


def two_bits(net: nn.Module):
    return quantize_model(net, uniform_plan({w.name: w.numel for w in quantizable_weights(net)}, 2))


def test_fine_tuning_recovers_the_loss_and_freezes_to_it():
    """Oracle: the loss itself, measured on the packed model; the original model does not move."""
    batch = small_batch(40)
    net = trained(small_conv(), batch, 400)
    before = copy.deepcopy(net.state_dict())
    model = two_bits(net)
    rounded = cross_entropy(model, batch).item()
    losses = fine_tune(model, cross_entropy, [batch], epochs=60, learning_rate=5e-3, generator=seeded(0))
    assert len(losses) == 60
    assert losses[0] == pytest.approx(rounded)
    after = cross_entropy(model.freeze(), batch).item()
    assert after < 0.5 * rounded
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_the_order_is_the_generators():
    """Oracle: the same seed, the same losses."""
    batches = [small_batch(4, seed) for seed in range(5)]
    runs = [fine_tune(two_bits(small_conv()), cross_entropy, batches, epochs=2, generator=seeded(s)) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.loose = nn.BatchNorm2d(4)
        self.fc = nn.Linear(64, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.last(self.fc(self.loose(torch.relu(self.norm(self.conv(x)))).flatten(1)))


def test_folding_keeps_the_outputs():
    """Oracle: the outputs before; a norm behind a ReLU stays."""
    net = Normed().double()
    x, _ = small_batch(30)
    for _ in range(3):
        net(x)
    net.eval()
    folded = fold_batch_norms(net)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-10, atol=1e-12)
    assert isinstance(folded, Normed)
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(folded.last, nn.Identity)
    assert isinstance(folded.loose, nn.BatchNorm2d)
    assert isinstance(net.norm, nn.BatchNorm2d)


def test_bad_input_is_refused():
    """Oracle: the documented errors."""
    batch = small_batch()
    model = two_bits(small_conv())
    with pytest.raises(ArgumentError, match="epochs"):
        fine_tune(model, cross_entropy, batch, epochs=0)
    with pytest.raises(ArgumentError, match="learning_rate"):
        fine_tune(model, cross_entropy, batch, learning_rate=0.0)
    with pytest.raises(NumericalError, match="loss is nan"):
        fine_tune(model, lambda m, b: cross_entropy(m, b) * float("nan"), batch)
    with pytest.raises(ArgumentError, match="frozen"):
        fine_tune(two_bits(small_conv()).freeze(), cross_entropy, batch)
    with pytest.raises(ArgumentError, match="training mode"):
        fold_batch_norms(Normed())

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ArgumentError, match="cannot trace"):
        fold_batch_norms(Branching())
