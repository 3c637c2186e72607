"""The corrective cycle: what it leaves untouched, what it counts, and when it ends."""

import pytest
import torch
from torch import nn

from benchmarks.compress._hesso_cases import F64
from hesse.compress.graph import DependencyGraph
from hesse.compress.hesso import CRIC, HESSO
from hesse.compress.hesso.cric import marginal_losses
from hesse.errors import ArgumentError, NumericalError
from tests.compress.hesso.test_optimizer import BASES, data, plain_net, train


def normed_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2)).double()


def test_training_goes_on_from_where_the_cycle_began():
    """Oracle: a twin that stops where the cycle begins: parameters, buffers and momentum are equal to the bit."""
    net, twin = normed_net(), normed_net()
    optimizer = HESSO(DependencyGraph(net, data()[0]), BASES["sgd"], 0.5, 3, 4, 2, cric=CRIC(4, 3))
    plain = BASES["sgd"](twin.parameters())
    train(twin, plain, 3)
    twin(data()[0][_rows(3)])  # batch norm sees the batch whose loss is the first
    train(net, optimizer, 3, with_loss=True)
    step = 3
    while optimizer._begin is None:
        train(net, optimizer, 1, start=step, with_loss=True)
        step += 1
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"])
    probes, sampling = 4, 4
    assert 3 + 1 + probes + sampling <= step <= 3 + 1 + probes + 3 * sampling


def test_one_cycle_averages_its_scores():
    """Oracle: a loop by hand over the same trajectory: three steps, the chosen groups fading."""
    net, twin = plain_net(), plain_net()
    graph, other = (DependencyGraph(n, data()[0]) for n in (net, twin))
    cric = CRIC(sampling_steps=3, max_cycles=1, trial_sparsities=())
    optimizer = HESSO(graph, BASES["sgd"], 0.5, 0, 2, 1, cric=cric)
    train(net, optimizer, 4, with_loss=True)
    settled = optimizer._settled
    assert settled is not None

    plain = HESSO(other, BASES["sgd"], 0.5, start_step=100)
    x, y = data()
    loss = nn.functional.cross_entropy(twin(x[_rows(0)]), y[_rows(0)])
    loss.backward()
    chosen = plain.select(plain.score(), 10)
    scores = []
    for t in range(3):
        plain.zero_grad()
        nn.functional.cross_entropy(twin(x[_rows(t + 1)]), y[_rows(t + 1)]).backward()
        scores.append(plain.score())
        plain.base.step()
        for axis, p in other.producers():
            places = chosen[axis.groups]
            with torch.no_grad():
                p[places] *= (2 - t) / (3 - t)
    torch.testing.assert_close(settled, torch.stack(scores).mean(0), rtol=1e-12, atol=0)


def _rows(step):
    return torch.randint(40, (8,), generator=torch.Generator().manual_seed(1000 + step))


def probed(loss_term):
    """Scores settled with the losses 2, then 3 4 5 and 6 6 12 for the families' trials, and those without a term."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    cric = CRIC(1, 1, trial_sparsities=(0.25, 0.5, 0.75), loss_term=loss_term)
    optimizer = HESSO(graph, torch.optim.SGD(net.parameters(), lr=0.0), 0.5, 0, 2, 1, cric=cric)
    losses = [2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 12.0]  # before, then three of each family
    x = data()[0]
    for loss in (*losses, 1.0):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step(loss=loss)
    return optimizer._settled, optimizer._cric._score_sum, graph.family_of


def test_by_the_published_rule_families_that_matter_keep_their_groups():
    """Oracle: by hand: the loss with a part of a family at zero, over the loss before, over the family's size."""
    settled, raw, family_of = probed("family")
    wanted = torch.tensor([2.0 / 12, 4.0 / 8], dtype=F64)[family_of]
    torch.testing.assert_close(settled - raw, wanted)


def test_each_group_bears_what_its_stretch_of_the_family_adds():
    """Oracle: by hand: rises of 1/2 for each 3 of 12 groups; of 2, 0, 3 for each 2 of 8. With lr = 0 scores are one."""
    settled, raw, family_of = probed("marginal")
    each = {0: [0.5 / 3] * 12, 1: [1.0] * 2 + [0.0] * 2 + [1.5] * 4}
    wanted = torch.zeros_like(raw)
    for family, values in each.items():
        members = (family_of == family).nonzero().squeeze(1)
        wanted[members[torch.argsort(raw[members])]] = torch.tensor(values, dtype=F64)
    torch.testing.assert_close(settled - raw, wanted / wanted.norm())


def test_a_falling_loss_and_stretches_without_a_group_cost_nothing():
    """Oracle: by hand, for families of 2 and 1: half of one group is none, and the loss falls before it rises."""
    found = marginal_losses(
        torch.tensor([3.0, 1.0, 2.0]),
        torch.tensor([[0.5, 4.0, 5.0], [7.0, 8.0, 9.0]]),
        torch.tensor([0, 0, 1]),
        (0.2, 0.5, 0.75),
    )
    torch.testing.assert_close(found, torch.tensor([3.0, 3.0, 0.0], dtype=F64))


def test_the_loss_is_asked_for():
    """Oracle: the errors promised; a closure serves as well."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    optimizer = HESSO(graph, BASES["sgd"], 0.5, 1, 2, 1, cric=CRIC(2, 1))
    train(net, optimizer, 1)
    with pytest.raises(ArgumentError, match="loss"):
        train(net, optimizer, 1)
    for bad in (float("nan"), 0.0):
        with pytest.raises(NumericalError, match="loss"):
            optimizer.step(loss=bad)
    x, y = data()

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(15):
        optimizer.step(closure)
    assert optimizer.sparsity == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"sampling_steps": 0},
        {"max_cycles": 0},
        {"tolerance": -1},
        {"trial_sparsities": (0.5, 1.0)},
        {"trial_sparsities": (0.5, 0.25)},
        {"loss_term": "mean"},
        {"loss_weight": -1.0},
        {"loss_weight": float("nan")},
    ],
)
def test_bad_options_are_refused(options):
    """Oracle: the errors promised."""
    with pytest.raises(ArgumentError, match=next(iter(options))):
        CRIC(**options)
