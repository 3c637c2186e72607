"""Gradual pruning: sparsities by their formulas, masks and learning rates on the way."""

import pytest
import torch

from hesse.compress import OBSPruner, attached_masks, cubic_sparsities, geometric_sparsities, gradual_prune
from hesse.errors import ArgumentError
from tests.compress.obs.cases import cross_entropy, seeded, small_data, small_net, trained

DATA = small_data()


def test_sparsities_follow_their_formulas():
    """Oracle: the formulas by hand."""
    assert geometric_sparsities(0.875, 3) == pytest.approx((0.5, 0.75, 0.875))
    assert geometric_sparsities(0.75, 1, initial=0.5) == (0.75,)
    assert cubic_sparsities(0.8, 2) == pytest.approx((0.7, 0.8))
    assert cubic_sparsities(0.9, 4, initial=0.1)[-1] == 0.9


@pytest.mark.parametrize("schedule", [geometric_sparsities, cubic_sparsities])
@pytest.mark.parametrize("wrong", [(1.0, 3), (0.5, 0), (0.5, 3, 0.5), (0.5, 3, -0.1)])
def test_impossible_schedules_are_refused(schedule, wrong):
    """Oracle: the errors promised."""
    with pytest.raises(ArgumentError):
        schedule(*wrong)


def test_gradual_pruning_trains_between_steps():
    """Oracle: the factors asked for, zeros at every epoch, and a lower loss than one shot without training."""
    net, once = trained(small_net(), DATA), trained(small_net(), DATA)
    options = {"num_grads": 48, "batch_size": 96, "per_sample": True, "damping": 1e-4, "recompute": 2}
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    factors, sparsities = [], []

    def train_epoch(module, factor):
        factors.append(factor)
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * factor
        for _ in range(10):
            optimizer.zero_grad()
            cross_entropy(module, DATA).backward()
            optimizer.step()
        zeros = sum(int((layer.weight == 0).sum()) for layer in (module[0], module[2]))
        sparsities.append(zeros / 144)

    pruner = OBSPruner(net, cross_entropy, generator=seeded(), **options)
    wanted = geometric_sparsities(0.9, 2)
    steps = gradual_prune(pruner, wanted, DATA, train_epoch, prune_every=3, last_epoch_factor=0.1)
    assert factors == [1, 1, 0.1, 1, 1, 0.1]
    assert sparsities == pytest.approx([wanted[0]] * 3 + [wanted[1]] * 3, abs=0.5 / 144)
    assert [step.num_epochs for step in steps] == [3, 3]
    assert [step.sparsity for step in steps] == pytest.approx(wanted, abs=0.5 / 144)
    assert sum(step.predicted_increase for step in steps) == pytest.approx(
        sum(done.predicted_increase for done in pruner.rounds)
    )
    assert set(attached_masks(net)) == {"0.weight", "2.weight"}
    OBSPruner(once, cross_entropy, generator=seeded(), **options).prune(0.9, DATA)
    assert float(cross_entropy(net, DATA).detach()) < float(cross_entropy(once, DATA).detach())


@pytest.mark.parametrize(
    ("sparsities", "options"),
    [
        ([], {}),
        ([0.5, 0.5], {}),
        ([0.5, 0.3], {}),
        ([0.5, 1.2], {}),
        ([0.5, 1.0], {}),
        ([0.5], {"prune_every": 0}),
        ([0.5], {"last_epoch_factor": 0.0}),
    ],
)
def test_bad_schedules_are_refused_before_work(sparsities, options):
    """Oracle: the error promised, and a network that is whole."""
    net = small_net()
    with pytest.raises(ArgumentError, match="gradual_prune"):
        gradual_prune(OBSPruner(net, cross_entropy), sparsities, DATA, lambda *_: None, **options)
    assert all(bool((p != 0).all()) for p in net.parameters())
