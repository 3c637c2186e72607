"""The dependency graph against groups written by hand, and against networks whose output must not notice a cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compress._hesso_cases import CASES, F64, Block, ResidualNet, build, seeded
from hesse.compress.graph import DependencyGraph
from hesse.errors import ArgumentError, ArgumentTypeError


def slices(graph):
    return [{(s.name, s.dim, s.places, s.producer) for s in group.slices} for group in graph.groups]


def test_groups_of_a_perceptron():
    """Oracle: groups written by hand: a row and its bias are zeroed, the column that reads them is cut."""
    graph = DependencyGraph(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3))
    wanted = [{("0.weight", 0, (i,), True), ("0.bias", 0, (i,), True), ("2.weight", 1, (i,), False)} for i in range(4)]
    assert slices(graph) == wanted
    assert [len(f.groups) for f in graph.families] == [4]
    assert graph.families[0].axes == (("0.weight", 0), ("0.bias", 0))


def test_groups_of_a_residual_network():
    """Oracle: groups written by hand: the sum ties stem and outer convolution together, batch norm joins them."""
    graph = DependencyGraph(ResidualNet(), torch.zeros(2, 1, 6, 6))
    stream = [
        {(name, 0, (i,), True) for name in ("stem.weight", "stem.bias", "norm.weight", "norm.bias")}
        | {(name, 0, (i,), True) for name in ("outer.weight", "outer.bias")}
        | {("norm.running_mean", 0, (i,), False), ("norm.running_var", 0, (i,), False)}
        | {("inner.weight", 1, (i,), False), ("head.weight", 1, (i,), False)}
        for i in range(8)
    ]
    inner = [
        {("inner.weight", 0, (i,), True), ("inner.bias", 0, (i,), True), ("outer.weight", 1, (i,), False)}
        for i in range(6)
    ]
    found = slices(graph)
    assert len(found) == 14
    assert all(group in found for group in stream + inner)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("head_mode", ["head", "dim"])
def test_outputs_do_not_notice_what_zero_groups_are_read_by(name, head_mode):
    """Oracle: an invariance: columns that read zeroed groups are filled with noise."""
    graph = DependencyGraph(*build(name), head_mode=head_mode)
    assert max(graph.check_zero_invariance(generator=seeded(s)) for s in range(3)) == 0
    assert graph.check_zero_invariance(fraction=0.9, generator=seeded(9)) == 0


@pytest.mark.parametrize("name", CASES)
def test_groups_partition_what_may_be_cut(name):
    """Oracle: counting: every place along a dimension has one group or none, and every group a producer."""
    graph = DependencyGraph(*build(name))
    producers = torch.zeros(graph.num_groups, dtype=torch.bool)
    for axis in graph.axes:
        assert axis.groups.shape == (graph.tensor(axis.name).shape[axis.dim],)
        assert -1 <= int(axis.groups.min()) <= int(axis.groups.max()) < graph.num_groups
        if axis.producer:
            producers[axis.groups[axis.groups >= 0]] = True
    assert producers.all()
    keys = [(axis.name, axis.dim) for axis in graph.axes]
    assert len(set(keys)) == len(keys)
    assert torch.equal(torch.cat([f.groups for f in graph.families]).sort().values, torch.arange(graph.num_groups))


@pytest.mark.parametrize(
    ("name", "number"),
    # counted by hand: widths that nothing ties, heads counted once, outputs not at all
    [("mlp", 14), ("residual", 14), ("concatenation", 15), ("gates", 13), ("separable", 18), ("shared", 16)],
)
def test_number_of_groups(name, number):
    """Oracle: counted by hand."""
    assert DependencyGraph(*build(name)).num_groups == number


def test_heads_and_head_dimensions():
    """Oracle: counted by hand: 16 of the stream, two blocks of 24 in the MLP and 4 heads (or 4 places in each head)."""
    module, x = build("transformer")
    for mode in ("head", "dim"):
        graph = DependencyGraph(module, x, head_mode=mode)
        assert graph.num_groups == 16 + 2 * (24 + 4)
    by_head = next(a for a in DependencyGraph(module, x).axes if a.name == "blocks.0.qkv.weight" and a.dim == 0)
    assert len(set(by_head.groups[:4].tolist())) == 1  # the rows of a head lie side by side
    by_dim = next(
        a for a in DependencyGraph(module, x, head_mode="dim").axes if a.name == "blocks.0.qkv.weight" and a.dim == 0
    )
    assert len(set(by_dim.groups[:4].tolist())) == 4
    assert torch.equal(by_dim.groups[:4], by_dim.groups[4:8])


def test_grouped_query_attention_and_gated_mlp():
    """Oracle: counted by hand on a small Llama: a key head goes with the query heads that share it."""
    graph = DependencyGraph(*build("llama"))
    assert graph.num_groups == 24 + 2 * (3 + 20)
    query = next(a for a in graph.axes if a.name == "model.layers.0.self_attn.q_proj.weight" and a.dim == 0)
    key = next(a for a in graph.axes if a.name == "model.layers.0.self_attn.k_proj.weight" and a.dim == 0)
    assert query.groups.reshape(3, 8).eq(key.groups.reshape(3, 4)[:, :1]).all()
    assert graph.check_zero_invariance(generator=seeded()) == 0
    assert any("embed_tokens.weight[0]" in key for key in graph.pinned)


class Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x)))


class OverChannels(Sigmoid):
    def forward(self, x):
        return self.b(torch.softmax(self.a(x), -1))


class Shuffled(Sigmoid):
    def forward(self, x):
        return self.b(torch.sort(self.a(x), -1).values)


class Sliced(Sigmoid):
    def forward(self, x):
        return self.b(F.pad(self.a(x)[:, :3], (0, 1)))


@pytest.mark.parametrize("network", [Sigmoid, OverChannels, Shuffled])
def test_nothing_is_cut_where_zeros_do_not_arrive(network):
    """Oracle: counterexamples: sigmoid(0) = 1/2, a softmax counts zeros, a sort moves channels."""
    with pytest.raises(ArgumentError, match="no channel of the module may be cut") as caught:
        DependencyGraph(network(), torch.zeros(2, 3))
    assert "a.weight[0]" in str(caught.value)


def test_slices_of_literal_size_tie_their_channels():
    """Oracle: by hand: code that reads three of four channels by number can lose all or none."""
    graph = DependencyGraph(Sliced(), torch.zeros(2, 3))
    assert graph.num_groups == 1


def test_skip():
    """Oracle: names: what is left out has no producer among the groups, what reads others is still cut."""
    module, x = build("transformer")
    graph = DependencyGraph(module, x, skip=["blocks.*.qkv", "blocks.1.up.weight"])
    made = {axis.name for axis in graph.axes if axis.producer and bool((axis.groups >= 0).any())}
    assert graph.num_groups == 16 + 24
    assert "blocks.0.up.weight" in made
    assert not made & {"blocks.0.qkv.weight", "blocks.1.qkv.weight", "blocks.1.up.weight", "blocks.1.up.bias"}


def test_costs():
    """Oracle: counted by hand on a perceptron of 3, 4 and 2 units with a batch of 5."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = DependencyGraph(net, torch.zeros(5, 3))
    assert graph.costs().tolist() == [1] * 4
    assert graph.costs("parameters").tolist() == [3 + 1 + 2] * 4
    assert graph.costs("flops").tolist() == [2 * 5 * (3 + 2)] * 4
    assert graph.sizes().tolist() == [4] * 4
    with pytest.raises(ArgumentError, match="kind"):
        graph.costs("seconds")


def test_the_module_is_left_as_it_was():
    """Oracle: the module before: parameters, buffers, mode and class are not touched."""
    module, x = build("concatenation")
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph = DependencyGraph(module, x)
    graph.check_zero_invariance(generator=seeded())
    assert module.training
    assert module.norm.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_zero_groups_are_found():
    """Oracle: the groups that were zeroed."""
    module, x = build("residual")
    graph = DependencyGraph(module, x)
    chosen = torch.rand(graph.num_groups, generator=seeded()) < 0.5
    graph.zero_(chosen)
    assert torch.equal(graph.zero_groups(), chosen)


def test_summary_names_families_and_what_is_not_cut():
    """Oracle: the graph's own numbers."""
    text = DependencyGraph(*build("residual")).summary()
    assert "14 groups in 2 families" in text
    assert "head.weight[0]: it is an output of the model" in text


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Linear(3, 3), 4), ArgumentTypeError, "example_inputs"),
        ((4, torch.zeros(3)), ArgumentTypeError, "Module"),
        ((Block(), torch.zeros(1, 2, 16), ["nowhere"]), ArgumentError, "nowhere"),
        ((Block(), torch.zeros(1, 2, 16), "ln_1"), ArgumentError, "sequence"),
        ((Block(), torch.zeros(1, 2, 16), (), "heads"), ArgumentError, "head_mode"),
        ((Branches(), torch.zeros(2, 3)), ArgumentError, "control flow"),
        ((nn.Linear(3, 3), torch.zeros(2, 3)), ArgumentError, "no channel"),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    """Oracle: the errors promised."""
    with pytest.raises(error, match=words):
        DependencyGraph(*arguments)


def test_half_precision_and_frozen_parameters():
    """Oracle: the float64 graph: groups depend neither on dtype nor on requires_grad."""
    module, x = build("transformer")
    wanted = slices(DependencyGraph(module, x))
    module.requires_grad_(False)
    assert slices(DependencyGraph(module, x)) == wanted
    assert slices(DependencyGraph(module.bfloat16(), x.bfloat16())) == wanted
    assert x.dtype == F64
