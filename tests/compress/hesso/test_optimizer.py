"""The schedule against its closed form, and the wrapper against the optimiser it wraps."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compress._hesso_cases import F64, build, seeded
from hesse.compress.graph import DependencyGraph, slim_report
from hesse.compress.hesso import CRIC, HESSO
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.testing import check_optimizer


class Holder(nn.Module):
    """Any parameters, each entry a channel that is summed over: what the conformance suite's problems become."""

    def __init__(self, params):
        super().__init__()
        self.held = nn.ParameterList(params)

    def forward(self, x):
        return sum((x * p).sum() for p in self.held)


def wrap(make, **options):
    def factory(params, **changed):
        groups = list(params)
        flat = [p for g in groups for p in (g["params"] if isinstance(g, dict) else [g])]
        graph = DependencyGraph(Holder(flat), torch.ones((), dtype=flat[0].dtype))
        for i, p in enumerate(flat):
            graph.module.held._parameters[str(i)] = p  # the very tensors, which are no nn.Parameter
        return HESSO(graph, make(groups, **changed), **options)

    return factory


@pytest.mark.parametrize(
    ("make", "skipped"),
    [
        (lambda params, lr=0.02, **o: torch.optim.SGD(params, lr=lr, momentum=0.5, **o), ["decreases_rosenbrock"]),
        (lambda params, lr=0.05, **o: torch.optim.Adam(params, lr=lr, **o), []),
    ],
)
def test_the_wrapper_keeps_an_optimisers_promises(make, skipped):
    """Oracle: the conformance suite, before any group is cut. Options are those of the wrapped optimiser."""
    ran = check_optimizer(
        wrap(make, start_step=10_000, score_ema=0.5), skip=["refuses_bad_options", *skipped], num_steps=200
    )
    assert len(ran) == 13 - len(skipped)


def data(seed=0):
    return torch.randn(40, 4, generator=seeded(seed), dtype=F64), torch.randint(2, (40,), generator=seeded(seed + 1))


def train(module, optimizer, steps, *, seed=0, start=0, with_loss=False):
    x, y = data(seed)
    for step in range(start, start + steps):
        rows = torch.randint(40, (8,), generator=seeded(1000 + step))
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x[rows]), y[rows])
        loss.backward()
        if with_loss:
            optimizer.step(loss=loss)
        else:
            optimizer.step()


def plain_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)).double()


BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("base", BASES)
def test_nothing_to_cut_changes_nothing(base):
    """Oracle: the wrapped optimiser alone; trajectories are equal to the bit."""
    left, right = plain_net(), plain_net()
    graph = DependencyGraph(left, data()[0])
    train(left, HESSO(graph, BASES[base], target_sparsity=0.0, pruning_steps=10, score_ema=0.9), 20)
    train(right, BASES[base](right.parameters()), 20)
    assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_fading_follows_the_straight_line():
    """Oracle: closed form: with steps of length zero a chosen group is w0 (τ - t - 1) / τ after step t."""
    net = plain_net()
    before = copy.deepcopy(net)
    graph = DependencyGraph(net, data()[0])
    optimizer = HESSO(graph, torch.optim.SGD(net.parameters(), lr=0.0), start_step=2, pruning_steps=10, periods=2)
    for step in range(12):
        train(net, optimizer, 1, start=step)
        period, t = divmod(step - 2, 5)
        if step < 2:
            assert torch.equal(net[0].weight, before[0].weight)
            continue
        chosen = int(optimizer._active.sum()) if t < 4 else 0
        assert chosen == (0 if t == 4 else 5)
        ratio = (net[0].weight / before[0].weight)[:, 0]
        wanted = torch.tensor([1.0, (4 - t) / 5, 0.0], dtype=F64)
        assert ((ratio.unsqueeze(1) - wanted).abs().amin(1) < 1e-12).all()
        assert int(graph.zero_groups().sum()) == 5 * (period + (t == 4))
    assert optimizer.sparsity == 0.5


@pytest.mark.parametrize("base", BASES)
def test_zeros_are_exact_and_stay(base):
    """Oracle: exact zeros in weights and momentum, through weight decay, until the end; the output after slimming."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    optimizer = HESSO(graph, BASES[base], target_sparsity=0.7, start_step=3, pruning_steps=17, periods=3)
    train(net, optimizer, 40)
    assert int(graph.zero_groups().sum()) == 14 == int(optimizer.pruned.sum())
    for axis, p in graph.producers():
        gone = optimizer.pruned[axis.groups]
        for value in optimizer.state[p].values():
            if value.shape == p.shape:
                assert not value[gone].any()
                assert value[~gone].any()
    optimizer.finalize()
    report = slim_report(graph)
    assert report.difference < 1e-12
    assert sum(m.out_features for m in report.module if isinstance(m, nn.Linear)) == 6 + 2


def test_the_last_period_takes_the_remainder():
    """Oracle: by hand: 20 groups at 0.7 in 4 periods are 3, 3, 3 and 5."""
    net = plain_net()
    optimizer = HESSO(DependencyGraph(net, data()[0]), BASES["sgd"], 0.7, 0, 8, 4)
    counts = []
    for step in range(8):
        train(net, optimizer, 1, start=step)
        counts.append(int(optimizer.pruned.sum()))
    assert counts == [0, 3, 3, 6, 6, 9, 9, 14]


@pytest.mark.parametrize("cut", [1, 5, 8, 14])
@pytest.mark.parametrize("with_cric", [False, True])
def test_resuming_in_the_middle_of_a_period(cut, with_cric):
    """Oracle: the run that was not interrupted, to the bit."""

    def make(net):
        cric = CRIC(sampling_steps=3, max_cycles=2, trial_sparsities=(0.5,)) if with_cric else None
        graph = DependencyGraph(net, data()[0])
        return HESSO(graph, BASES["sgd"], 0.6, 2, 9, 3, score_ema=0.0 if with_cric else 0.3, cric=cric)

    whole, first = plain_net(), plain_net()
    train(whole, make(whole), 30, with_loss=True)
    optimizer = make(first)
    train(first, optimizer, cut, with_loss=True)
    saved = copy.deepcopy(optimizer.state_dict())
    second = plain_net(9)
    second.load_state_dict(first.state_dict())
    restored = make(second)
    restored.load_state_dict(saved)
    train(second, restored, 30 - cut, start=cut, with_loss=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert float(restored.sparsity) == 0.6


def test_states_travel_as_plain_data(tmp_path):
    """Oracle: torch.load with weights_only=True."""
    net = plain_net()
    optimizer = HESSO(DependencyGraph(net, data()[0]), BASES["adamw"], start_step=1, pruning_steps=6, score_ema=0.1)
    train(net, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with pytest.raises(ArgumentError, match="plain optimiser"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with pytest.raises(ArgumentError, match="3"):
        HESSO(DependencyGraph(other, data()[0]), BASES["adamw"]).load_state_dict(optimizer.state_dict())


def test_schedulers_and_scalers_take_it_for_an_optimiser():
    """Oracle: the wrapped optimiser's groups; a step that the scaler leaves out does not count."""
    net = plain_net().float()
    x = data()[0].float()
    optimizer = HESSO(DependencyGraph(net, x), torch.optim.SGD(net.parameters(), lr=0.1), pruning_steps=5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for scale in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(net(x).sum() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert optimizer.state_dict()["hesso"]["step"] == 2
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_directions_of_the_wrapped_optimiser():
    """Oracle: for plain SGD the step over its length is the gradient: the same groups are cut."""
    chosen = []
    for direction in ("gradient", "update"):
        net = plain_net()
        optimizer = HESSO(
            DependencyGraph(net, data()[0]),
            lambda p: torch.optim.SGD(p, lr=0.125),
            pruning_steps=6,
            periods=2,
            direction=direction,
        )
        train(net, optimizer, 6)
        chosen.append(optimizer.pruned)
    assert torch.equal(*chosen)


def test_budgets_of_parameters():
    """Oracle: the costs of the graph: what was cut fills the budget but for less than the dearest group."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    for kind in ("parameters", "flops"):
        optimizer = HESSO(graph, BASES["sgd"], 0.5, 0, 4, 2, budget=kind)
        train(net, optimizer, 4)
        costs = graph.costs(kind)
        spent = float(costs[optimizer.pruned].sum() / costs.sum())
        assert spent == optimizer.sparsity
        assert 0.5 - float(costs.max() / costs.sum()) < spent <= 0.5


def test_scores_of_your_own_decide():
    """Oracle: by hand: groups of lowest own score, in order."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    own = torch.arange(20.0, 0.0, -1.0, dtype=F64)
    optimizer = HESSO(
        graph,
        BASES["sgd"],
        0.25,
        0,
        2,
        1,
        criteria={"mine": 1.0},
        normalize="global",
        extra_scores={"mine": lambda: own},
    )
    train(net, optimizer, 2)
    assert optimizer.pruned.nonzero().squeeze(1).tolist() == [15, 16, 17, 18, 19]


def test_finalize_forces_zeros_and_says_so():
    """Oracle: the warnings and zeros promised; none after a schedule that was gone through."""
    net = plain_net()
    graph = DependencyGraph(net, data()[0])
    optimizer = HESSO(graph, BASES["sgd"], 0.5, 0, 10, 2)
    train(net, optimizer, 8)
    with pytest.warns(UserWarning, match="middle of a period"):
        optimizer.finalize()
    assert int(graph.zero_groups().sum()) == 10
    early = HESSO(DependencyGraph(plain_net(), data()[0]), BASES["sgd"], 0.5, 5, 10, 2)
    with pytest.warns(UserWarning, match="before the last period"):
        early.finalize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.finalize()


def test_frozen_groups_are_not_cut():
    """Oracle: by hand: the first layer's groups are frozen, so that all cuts fall on the second."""
    net = plain_net()
    net[0].requires_grad_(False)
    graph = DependencyGraph(net, data()[0])
    optimizer = HESSO(graph, BASES["sgd"], 0.6, 0, 4, 2)
    train(net, optimizer, 4)
    assert not graph.zero_groups()[graph.family_of == 0].any()
    assert int(graph.zero_groups().sum()) == 7  # one of eight stays


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_sparsity": 1.0}, "target_sparsity"),
        ({"target_sparsity": -0.1}, "target_sparsity"),
        ({"target_sparsity": float("nan")}, "target_sparsity"),
        ({"pruning_steps": 4, "periods": 5}, "pruning_steps"),
        ({"periods": 0}, "periods"),
        ({"start_step": -1}, "start_step"),
        ({"min_keep": 0}, "min_keep"),
        ({"group_divisible": 0}, "group_divisible"),
        ({"score_ema": 1.0}, "score_ema"),
        ({"direction": "sideways"}, "direction"),
        ({"normalize": "layer"}, "normalize"),
        ({"cosine_sign": 2}, "cosine_sign"),
        ({"criteria": {"unknown": 1.0}}, "criteria"),
        ({"budget": "seconds"}, "kind"),
    ],
)
def test_bad_options_are_refused(options, words):
    """Oracle: the errors promised."""
    net = plain_net()
    with pytest.raises(ArgumentError, match=words):
        HESSO(DependencyGraph(net, data()[0]), BASES["sgd"], **options)


def test_bad_bases_are_refused():
    """Oracle: the errors promised."""
    graph = DependencyGraph(plain_net(), data()[0])
    with pytest.raises(ArgumentTypeError, match="base"):
        HESSO(graph, 3)
    with pytest.raises(ArgumentTypeError, match="made a"):
        HESSO(graph, list)
    with pytest.raises(ArgumentError, match="none of the parameters"):
        HESSO(graph, torch.optim.SGD(plain_net().parameters(), lr=0.1))


def test_transformers_train_and_shrink():
    """Oracle: the zeroed network's outputs; heads, channels of the MLP and of the stream all go."""
    module, x = build("transformer")
    graph = DependencyGraph(module, x)
    optimizer = HESSO(graph, torch.optim.AdamW(module.parameters(), lr=1e-3), 0.5, 1, 6, 2)
    for _ in range(9):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    report = slim_report(graph)
    assert report.difference < 1e-10
    assert int(graph.zero_groups().sum()) == 36
    assert report.num_parameters[1] < 0.5 * report.num_parameters[0]


def bias_scores(graph):
    """Length of every group's vectors: unlike that of its matrices, it does not depend on which columns are left."""
    total = torch.zeros(graph.num_groups + 1, dtype=F64)
    for axis, p in graph.producers():
        if p.ndim == 1:
            total.index_add_(0, axis.groups, p.detach().abs())
    return total[:-1]


@pytest.mark.parametrize("name", ["residual", "concatenation", "transformer", "encoder"])
@pytest.mark.parametrize("base", BASES)
def test_compacting_on_the_way_changes_nothing_but_sizes(name, base):
    """Oracle: the run that keeps its zeros: outputs at the end, in float64, and the size that is left."""
    outputs, sizes = [], []
    for compacts in (False, True):
        module, x = build(name)
        for child in module.modules():
            if isinstance(child, nn.Dropout | nn.MultiheadAttention):
                child.p = child.dropout = 0.0
        held: list[HESSO] = []
        optimizer = HESSO(
            DependencyGraph(module, x),
            lambda p: torch.optim.AdamW(p, lr=1e-3) if base == "adamw" else torch.optim.SGD(p, 1e-2, 0.9),
            0.6,
            1,
            9,
            3,
            criteria={"bias": 1.0},
            normalize="global",
            score_ema=0.5,
            extra_scores={"bias": lambda held=held: bias_scores(held[0].graph)},
        )
        held.append(optimizer)
        for step in range(14):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
            if compacts and step in (3, 6, 9):
                before = sum(p.numel() for p in module.parameters())
                assert optimizer.compact().module is module
                assert sum(p.numel() for p in module.parameters()) < before
        outputs.append(module.eval()(x).detach())
        assert optimizer.sparsity == pytest.approx(0.6, abs=0.05)
        sizes.append(slim_report(optimizer.graph).num_parameters[1])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-6, atol=1e-9)
    assert sizes[0] == sizes[1]


def test_compacting_and_resuming():
    """Oracle: the run that was not interrupted; the smaller module is loaded into one that was cut alike."""
    net = plain_net()
    optimizer = HESSO(DependencyGraph(net, data()[0]), BASES["sgd"], 0.6, 0, 8, 2)
    train(net, optimizer, 4)
    optimizer.compact()
    twin = copy.deepcopy(net)
    resumed = HESSO(DependencyGraph(twin, data()[0]), BASES["sgd"], 0.6, 0, 8, 2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert isinstance(optimizer.graph.tensor("0.weight"), nn.Parameter)
    train(net, optimizer, 6, start=4)
    assert optimizer.sparsity == 0.6
    assert sum(m.out_features for m in slim_report(optimizer.graph).module if isinstance(m, nn.Linear)) == 8 + 2
    cric = HESSO(DependencyGraph(plain_net(), data()[0]), BASES["sgd"], 0.5, 0, 8, 2, cric=CRIC(2))
    train(cric.graph.module, cric, 2, with_loss=True)
    with pytest.raises(ArgumentError, match="CRIC"):
        cric.compact()
