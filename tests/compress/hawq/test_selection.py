import copy

import pytest
import torch

from hesse.compress.hawq import (
    HAWQ,
    BitPlan,
    UniformQuantizer,
    allocate_bits,
    plan_losses,
    quantizable_weights,
    quantize_model,
    uniform_plan,
)
from hesse.errors import ArgumentError
from tests.compress.hawq.cases import cross_entropy, seeded, small_batch, small_conv, trained


@pytest.fixture(scope="module")
def case():
    batch = small_batch(40)
    return trained(small_conv(), batch, 400), batch


def test_losses_are_those_of_the_quantised_models(case):
    """Oracle: each plan applied by `quantize_model`, over unequal batches; the model itself is measured too."""
    net, batch = case
    numel = {w.name: w.numel for w in quantizable_weights(net)}
    plans = [uniform_plan(numel, bits) for bits in (2, 4)]
    parts = [(batch[0][:30], batch[1][:30]), (batch[0][30:], batch[1][30:])]
    quantizer = UniformQuantizer(per_channel=True)
    found = plan_losses(net, cross_entropy, parts, plans, quantizer)
    for plan, loss in zip(plans, found.losses.tolist(), strict=True):
        assert loss == pytest.approx(cross_entropy(quantize_model(net, plan, quantizer), batch).item(), rel=1e-10)
    assert found.dense == pytest.approx(cross_entropy(net, batch).item(), rel=1e-10)
    assert found.best == plans[1]
    layers = [w.layer for w in quantizable_weights(net)]
    both = plans[1].merge(BitPlan({}, dict.fromkeys(layers, 4), dict.fromkeys(layers, 1)))
    rounded = quantize_model(net, both, quantizer).calibrate(cross_entropy, parts)
    loss = plan_losses(net, cross_entropy, parts, [both], quantizer).losses.item()
    assert loss == pytest.approx(cross_entropy(rounded, batch).item(), rel=1e-10)
    assert loss != found.losses[1]


def test_fit_takes_the_candidate_of_least_loss(case):
    """Oracle: the losses that `fit` kept, measured again; without validation, the prediction's own choice."""
    net, batch = case
    before = copy.deepcopy(net.state_dict())
    picked = HAWQ(3.0, matrix="ggn", generator=seeded(0)).fit(net, cross_entropy, batch)
    assert picked.losses_ is not None
    assert 1 < len(picked.losses_.plans) <= 10
    assert picked.plan_.average_bits <= 3.0
    loss = cross_entropy(picked.transform(), batch).item()
    assert loss == pytest.approx(float(picked.losses_.losses.min()), rel=1e-10)
    plain = HAWQ(3.0, matrix="ggn", validate=False, generator=seeded(0)).fit(net, cross_entropy, batch)
    assert plain.losses_ is None
    assert plain.plan_ == allocate_bits(plain.table_, 3.0, constraint="average_bits")
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_bad_input_is_refused(case):
    """Oracle: the documented errors."""
    net, batch = case
    with pytest.raises(ArgumentError, match="call fit"):
        HAWQ().transform()
    with pytest.raises(ArgumentError, match="no plans"):
        plan_losses(net, cross_entropy, batch, [])
    with pytest.raises(ArgumentError, match=r"9\.weight"):
        plan_losses(net, cross_entropy, batch, [uniform_plan({"9.weight": 3}, 4)])
