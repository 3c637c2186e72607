"""The pruner against dense Optimal Brain Surgeon, and its promises about counts, patterns and bad input."""

import copy
import math

import pytest
import torch
from torch import nn

from hesse.compress import Blocks, NOfM, OBSPruner, attach_masks, attached_masks
from hesse.compress.obs.updates import joint_update
from hesse.curvature import gradient_rows
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import MFAC
from tests.compress.obs.cases import (
    F64,
    cross_entropy,
    dense_fisher,
    seeded,
    small_data,
    small_net,
    trained,
)

DATA = small_data()
OPTIONS = {"num_grads": 48, "batch_size": 96, "per_sample": True, "damping": 1e-4, "recompute": 4}


def pruner_of(net, **options):
    return OBSPruner(net, cross_entropy, generator=seeded(7), **(OPTIONS | options))


@pytest.fixture(scope="module")
def dense_net():
    return trained(small_net(), DATA)


@pytest.fixture
def net(dense_net):
    return copy.deepcopy(dense_net)


def matrices(net):
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.ndim > 1])


@pytest.mark.parametrize("block_size", [None, 32, 1])
@pytest.mark.parametrize("joint", [False, True])
def test_one_round_is_optimal_brain_surgeon(net, joint, block_size):
    """Oracle: costs, choice and update of the definition by a dense float64 inverse on the same gradients."""
    where = {name: torch.full(p.shape, p.ndim > 1) for name, p in net.named_parameters()}
    grads = gradient_rows(net, cross_entropy, DATA, 48, 96, per_sample=True, mask=where, generator=seeded(7))
    F = dense_fisher(grads, 1e-4, block_size)
    inverse, w = torch.linalg.inv(F), matrices(net)
    costs = w.square() / (2 * inverse.diagonal())
    gone = torch.zeros_like(w, dtype=torch.bool)
    gone[costs.argsort()[:72]] = True
    t = torch.where(gone, -w / inverse.diagonal(), 0)
    wanted = w + (joint_update(grads, w, gone, 1e-4, block_size) if joint else inverse @ t)
    wanted = torch.where(gone, 0, wanted)
    pruner = pruner_of(net, recompute=1, joint=joint, block_size=block_size)
    masks = pruner.prune(0.5, DATA)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), ~gone)
    torch.testing.assert_close(matrices(net), wanted, rtol=1e-7, atol=1e-8)
    step = wanted - w
    (done,) = pruner.rounds
    assert (done.sparsity, done.num_dropped) == (0.5, 72)
    assert done.predicted_increase == pytest.approx(float(step @ F @ step / 2), rel=1e-8)


def test_scores_are_the_diagonal_formula(net):
    """Oracle: w² / (2 [F⁻¹]_ii) densely, over the weights alive; zero for dropped ones."""
    pruner = pruner_of(net)
    pruner.prune(0.3, DATA)
    alive = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    where = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in net.named_parameters()} | pruner.masks
    pruner.generator = seeded(9)
    found = torch.cat([cost.flatten() for cost in pruner.scores(DATA).values()])
    grads = gradient_rows(net, cross_entropy, DATA, 48, 96, per_sample=True, mask=where, generator=seeded(9))
    inverse = torch.linalg.inv(dense_fisher(grads, 1e-4))
    wanted = matrices(net)[alive].square() / (2 * inverse.diagonal())
    torch.testing.assert_close(found[alive], wanted, rtol=1e-7, atol=1e-12)
    assert not bool(found[~alive].any())


def test_the_joint_update_costs_less_by_the_model(net):
    """Oracle: an optimum is no worse than any other step onto the same zeros."""
    found = {}
    for joint in (False, True):
        pruner = pruner_of(copy.deepcopy(net), recompute=1, joint=joint)
        pruner.prune(0.6, DATA)
        found[joint] = pruner.rounds[0].predicted_increase
    assert found[True] < found[False]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("attach", [False, True])
def test_densities_fall_geometrically(net, scope, attach):
    """Oracle: the formula, to one weight; and dropped weights stay dropped from round to round and call to call."""
    pruner = pruner_of(net, scope=scope)
    if attach:
        pruner.attach_masks()
    first = pruner.prune(0.5, DATA)
    second = pruner.prune(0.9, DATA)
    layers = 1 if scope == "global" else 2
    wanted = [1 - 0.5 ** (j / 4) for j in range(1, 5)] + [1 - 0.5 * 0.2 ** (j / 4) for j in range(1, 5)]
    assert [done.sparsity for done in pruner.rounds] == pytest.approx(wanted, abs=layers * 0.5 / 144)
    assert sum(done.num_dropped for done in pruner.rounds) == sum(int((~mask).sum()) for mask in second.values())
    assert all(not bool((second[name] & ~first[name]).any()) for name in first)
    if scope == "layer":
        assert [int(mask.sum()) for mask in second.values()] == [round(0.1 * 96), round(0.1 * 48)]
    if attach:
        held = attached_masks(net)
        assert all(torch.equal(held[name], second[name]) for name in second)
        pruner.remove_masks()
    assert all(not bool(net.get_parameter(name)[~mask].any()) for name, mask in second.items())
    assert math.isclose(pruner.sparsity, 1 - sum(int(mask.sum()) for mask in second.values()) / 144)


def test_attached_masks_change_nothing_about_pruning(net):
    """Oracle: the same pruner on plain weights, bit by bit, though masks turn the order of parameters round."""
    net = nn.Sequential(net, nn.Linear(4, 4).double())
    plain, masked = net, copy.deepcopy(net)
    one, other = pruner_of(plain), pruner_of(masked)
    other.attach_masks()
    for sparsity in (0.4, 0.7):
        one.prune(sparsity, DATA)
        other.prune(sparsity, DATA)
    other.remove_masks()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(masked.get_parameter(name), p, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("joint", [False, True])
def test_n_of_m_leaves_n_of_every_m(net, scope, joint):
    """Oracle: counting, on the way (never more than m - n dropped) and at the end (exactly)."""
    pruner = pruner_of(net, pattern=NOfM(2, 4), scope=scope, joint=joint)
    for sparsity in (0.3, 0.5):
        masks = pruner.prune(sparsity, DATA)
        for mask in masks.values():
            assert int(mask.reshape(-1, 4).sum(1).min()) >= 2
    assert all(bool((mask.reshape(-1, 4).sum(1) == 2).all()) for mask in masks.values())
    with pytest.raises(ArgumentError, match=r"sparsity <= 0\.5"):
        pruner.prune(0.6, DATA)


def test_n_of_m_is_filled_up_from_any_masks(net):
    """Oracle: at most n of every m, from masks that have dropped a whole group already."""
    start = {"0.weight": torch.ones(12, 8, dtype=torch.bool)}
    start["0.weight"][0, :4] = False
    masks = pruner_of(net, pattern=NOfM(2, 4), masks=start).prune(0.5, DATA)
    assert all(int(mask.reshape(-1, 4).sum(1).max()) == 2 for mask in masks.values())


@pytest.mark.parametrize("pattern", [Blocks(1, 4), Blocks(4, 2)])
@pytest.mark.parametrize("block_size", [None, 24])
def test_blocks_go_as_wholes_and_by_their_joint_cost(net, pattern, block_size):
    """Oracle: ½ w_Bᵀ[F⁻¹]_BB⁻¹w_B of the dense inverse decides the first round."""
    where = {name: torch.full(p.shape, p.ndim > 1) for name, p in net.named_parameters()}
    grads = gradient_rows(net, cross_entropy, DATA, 48, 96, per_sample=True, mask=where, generator=seeded(7))
    inverse, w = torch.linalg.inv(dense_fisher(grads, 1e-4, block_size)), matrices(net)
    units = torch.cat([pattern.units("0", (12, 8)), pattern.units("2", (4, 12)) + 96])
    costs = torch.stack([w[u] @ torch.linalg.solve(inverse[u][:, u], w[u]) / 2 for u in units])
    gone = units[costs.argsort()[: round(0.5 * len(units))]].flatten()
    masks = pruner_of(net, recompute=1, pattern=pattern, block_size=block_size).prune(0.5, DATA)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert sorted((~flat).nonzero().squeeze(1).tolist()) == sorted(gone.tolist())


def test_convolutions_and_dead_inputs():
    """Oracle: weights that no gradient reaches cost λw²/2 exactly, in a convolution too, so that fewer stay."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()
    x = torch.randn(64, 2, 4, 4, generator=seeded(), dtype=F64)
    x[:, 1] = 0
    data = (x, torch.randint(4, (64,), generator=seeded(1)))
    before = net.get_parameter("0.weight").detach().clone()
    running = net.get_buffer("2.running_mean").clone()
    pruner = pruner_of(net)
    costs = pruner.scores(data)["0.weight"]
    torch.testing.assert_close(costs[:, 1], 1e-4 * before[:, 1].square() / 2, rtol=1e-9, atol=0)
    masks = pruner.prune(0.4, data)
    assert net.training
    assert torch.equal(net.get_buffer("2.running_mean"), running)
    assert int(masks["0.weight"][:, 1].sum()) < int(masks["0.weight"][:, 0].sum())


def test_pruning_beats_magnitude_on_redundant_inputs():
    """Oracle: a loss that depends on sums of pairs only: one of each can go without a trace, one a round."""
    generator = seeded()
    x = torch.randn(64, 4, generator=generator, dtype=F64).repeat_interleave(2, 1)
    net = nn.Linear(8, 3).double()
    data = (x, net(x).detach() + 0.1 * torch.randn(64, 3, generator=generator, dtype=F64))

    def squares(model, batch):
        return (model(batch[0]) - batch[1]).square().sum()

    clean = copy.deepcopy(net)
    OBSPruner(net, squares, num_grads=64, per_sample=True, damping=1e-9, recompute=24).prune(0.5, data)
    torch.testing.assert_close(net(x), clean(x), rtol=0, atol=1e-4)


def test_mc_labels_and_float32(dense_net):
    """Oracle: the loss after half of the weights are gone stays below that of dropping the smallest."""
    data = (DATA[0].float(), DATA[1])
    net, smallest = copy.deepcopy(dense_net).float(), copy.deepcopy(dense_net).float()
    pruner_of(net, fisher="mc").prune(0.5, data)
    for p in smallest.parameters():
        if p.ndim > 1:
            p.data.masked_fill_(p.abs() < matrices(smallest).abs().median(), 0)
    assert net[0].weight.dtype == torch.float32
    assert float(cross_entropy(net, data).detach()) < float(cross_entropy(smallest, data).detach())


def test_half_precision_weights_are_pruned(dense_net):
    """Oracle: the count, and exact zeros; F is that of the rounded gradients."""
    net = copy.deepcopy(dense_net).bfloat16()
    masks = pruner_of(net, per_sample=False, batch_size=8).prune(0.5, (DATA[0].bfloat16(), DATA[1]))
    assert sum(int(mask.sum()) for mask in masks.values()) == 72
    assert all(not bool(net.get_parameter(name)[~mask].any()) for name, mask in masks.items())


@pytest.mark.parametrize("attach", [False, True])
def test_a_pruned_network_is_fine_tuned_by_sparse_mfac(net, attach):
    """Oracle: exact zeros after 40 steps, a window over the rest only, and a lower loss than before."""
    pruner = pruner_of(net)
    masks = pruner.prune(0.8, DATA)
    if attach:
        pruner.attach_masks()
    before = float(cross_entropy(net, DATA).detach())
    optimizer = MFAC(net.parameters(), lr=3e-2, window=16, damping=1e-2, sparse=True)
    for index in torch.randperm(96 * 10, generator=seeded()).remainder(96).split(24):
        optimizer.zero_grad()
        cross_entropy(net, (DATA[0][index], DATA[1][index])).backward()
        optimizer.step()
    window = optimizer.state[optimizer.param_groups[0]["params"][0]]["rows"]
    assert window.shape == (16, 29 + 16)  # 20 % of 144, and the biases
    pruner.remove_masks()
    assert all(not bool(net.get_parameter(name)[~mask].any()) for name, mask in masks.items())
    assert float(cross_entropy(net, DATA).detach()) < 0.8 * before


def test_unattached_masks_are_applied_by_hand(net):
    """Oracle: exact zeros after a step of momentum that did not know of them."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    cross_entropy(net, DATA).backward()
    optimizer.step()
    pruner = pruner_of(net)
    masks = pruner.prune(0.5, DATA)
    optimizer.step()
    assert bool(net[0].weight[~masks["0.weight"]].any())
    pruner.apply_masks()
    assert not bool(net[0].weight[~masks["0.weight"]].any())


def test_a_new_pruner_goes_on_from_attached_masks(net):
    """Oracle: the sparsity reached; a lower one is refused, the same one is a matter of nothing."""
    first = pruner_of(net)
    first.prune(0.5, DATA)
    first.attach_masks()
    second = pruner_of(net)
    assert second.sparsity == 0.5
    assert torch.equal(second.prune(0.5, DATA)["0.weight"], first.masks["0.weight"])
    assert second.rounds == []
    with pytest.raises(ArgumentError, match=r"0\.4 is below the present 0\.5"):
        second.prune(0.4, DATA)


class WithSpare(nn.Module):
    """A network and a layer that it does not use."""

    def __init__(self, used):
        super().__init__()
        self.used = used
        self.spare = nn.Linear(4, 4).double()

    def forward(self, x):
        return self.used(x)


def test_emptied_and_unheard_parameters_are_told(net):
    """Oracle: a layer that the loss does not use loses all its weights, with a warning, or keeps ``min_keep``."""
    net = WithSpare(net)
    other = copy.deepcopy(net)
    with (
        pytest.warns(UserWarning, match=r"no gradient reached spare\.weight"),
        pytest.warns(UserWarning, match=r"spare\.weight lost all weights"),
    ):
        pruner_of(net).prune(0.5, DATA)
    with pytest.warns(UserWarning, match="no gradient"):
        masks = pruner_of(other, min_keep=3).prune(0.5, DATA)
    assert int(masks["spare.weight"].sum()) == 3


def test_an_error_leaves_the_last_whole_round(net):
    """Oracle: masks, zeros and rounds agree after gradients turn into NaN in the second round."""
    calls = []

    def failing(model, batch):
        calls.append(1)
        return cross_entropy(model, batch) * (float("nan") if len(calls) > 48 else 1)

    pruner = OBSPruner(net, failing, generator=seeded(7), **(OPTIONS | {"per_sample": False, "batch_size": 8}))
    with pytest.raises(NumericalError, match=r"0\.weight"):
        pruner.prune(0.8, DATA)
    assert len(pruner.rounds) == 1
    assert pruner.rounds[0].sparsity == pruner.sparsity
    assert all(torch.equal(net.get_parameter(name) != 0, mask) for name, mask in pruner.masks.items())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"damping": 0.0}, ArgumentError, "damping"),
        ({"damping": float("inf")}, ArgumentError, "damping"),
        ({"num_grads": 0}, ArgumentError, "num_grads"),
        ({"recompute": 0}, ArgumentError, "recompute"),
        ({"block_size": 0}, ArgumentError, "block_size"),
        ({"min_keep": -1}, ArgumentError, "min_keep"),
        ({"min_keep": 1, "pattern": NOfM()}, ArgumentError, "min_keep"),
        ({"scope": "rows"}, ArgumentError, "scope"),
        ({"fisher": "true"}, ArgumentError, "fisher"),
        ({"include": lambda name, p: False}, ArgumentError, "included"),
        ({"masks": {"0.bias": torch.ones(12, dtype=torch.bool)}}, ArgumentError, r"0\.bias"),
        ({"masks": {"0.weight": torch.ones(12, 8)}}, ArgumentTypeError, "bool"),
        ({"masks": {"0.weight": torch.ones(3, dtype=torch.bool)}}, ShapeError, r"0\.weight"),
        ({"pattern": NOfM(2, 5)}, ShapeError, r"0\.weight"),
        ({"pattern": Blocks(5, 1)}, ShapeError, r"0\.weight"),
    ],
)
def test_bad_options_are_refused(net, options, error, words):
    """Oracle: the errors promised, and untouched weights."""
    before = matrices(net)
    with pytest.raises(error, match=words):
        pruner_of(net, **options)
    assert torch.equal(matrices(net), before)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_bad_sparsities_are_refused(net, sparsity):
    """Oracle: the range promised."""
    with pytest.raises(ArgumentError, match="sparsity"):
        pruner_of(net).prune(sparsity, DATA)


def test_only_modules_are_pruned():
    """Oracle: the error promised; frozen parameters are left alone."""
    with pytest.raises(ArgumentTypeError, match="module"):
        pruner_of([1])
    net = small_net()
    net[0].weight.requires_grad_(False)
    assert list(pruner_of(net).masks) == ["2.weight"]
    attach_masks(net, {"2.weight": torch.ones(4, 12, dtype=torch.bool)})
    assert list(pruner_of(net).masks) == ["2.weight"]
