"""The corrective cycle: what it leaves untouched, what it counts, and when it ends."""

import pytest
import torch
from torch import nn

from benchmarks.compress._hesso_cases import F64
from hesse.compress.graph import DependencyGraph
from hesse.compress.hesso import CRIC, HESSO
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
    probes, sampling = 3, 4
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
        plain.base.step()
        for axis, p in other.producers():
            places = chosen[axis.groups]
            with torch.no_grad():
                p[places] *= (2 - t) / (3 - t)
        scores.append(plain.score())
    torch.testing.assert_close(settled, torch.stack(scores).mean(0), rtol=1e-12, atol=0)


def _rows(step):
    return torch.randint(40, (8,), generator=torch.Generator().manual_seed(1000 + step))


def test_probes_raise_the_scores_of_families_that_matter():
    """Oracle: by hand: the loss with a part of a family at zero, over the loss before, over the family's size."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    optimizer = HESSO(graph, torch.optim.SGD(net.parameters(), lr=0.0), 0.5, 0, 2, 1, cric=CRIC(1, 1))
    losses = [2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 12.0]  # before, then three of each family
    x = data()[0]
    for loss in (*losses, 1.0):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step(loss=loss)
    raw = optimizer._cric._score_sum
    wanted = torch.tensor([2.0 / 12, 4.0 / 8], dtype=F64)[graph.family_of]
    torch.testing.assert_close(optimizer._settled - raw, wanted)


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

    for _ in range(13):
        optimizer.step(closure)
    assert optimizer.sparsity == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"sampling_steps": 0},
        {"max_cycles": 0},
        {"tolerance": -1},
        {"trial_sparsities": (0.5, 1.0)},
        {"loss_weight": -1.0},
        {"loss_weight": float("nan")},
    ],
)
def test_bad_options_are_refused(options):
    """Oracle: the errors promised."""
    with pytest.raises(ArgumentError, match=next(iter(options))):
        CRIC(**options)
