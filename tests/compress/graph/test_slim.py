"""The smaller network against the zeroed one, on every kind of network and on random ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.compress._hesso_cases import CASES, F64, Block, build, seeded
from hesse.compress.graph import CountedLayerNorm, CountedRMSNorm, DependencyGraph, slim, slim_report
from hesse.errors import ArgumentError, NumericalError


def gap(left, right):
    return float((left - right).detach().abs().max() / left.detach().abs().max())


@pytest.mark.parametrize(
    ("name", "head_mode"),
    [(name, mode) for name in CASES for mode in ("head", "dim") if (name, mode) != ("transformer", "dim")],
)  # the one left out has a scale that depends on the width of a head: see test_a_scale_by_width_is_noticed
def test_outputs_equal_those_of_the_zeroed_network(name, head_mode):
    """Oracle: the zeroed network in float64, on inputs that the graph has not seen, of another batch size."""
    for seed in range(3):
        module, x = build(name, seed)
        graph = DependencyGraph(module, x, head_mode=head_mode)
        graph.zero_(torch.rand(graph.num_groups, generator=seeded(seed)) < 0.5)
        report = slim_report(graph)
        fresh = torch.cat([x.flip(0), x, x]) if x.dtype == torch.int64 else torch.randn(5, *x.shape[1:], dtype=F64)
        module.eval()
        assert gap(module(fresh), report.module.eval()(fresh)) < 1e-10
        assert report.num_parameters[1] < report.num_parameters[0]
        assert report.flops[1] < report.flops[0]
        assert report.difference < 1e-10


@pytest.mark.parametrize("name", ["residual", "concatenation", "transformer", "encoder"])
def test_in_single_precision(name):
    """Oracle: the zeroed network in float32."""
    module, x = build(name)
    module, x = module.float(), x.float()
    graph = DependencyGraph(module, x)
    graph.zero_(torch.rand(graph.num_groups, generator=seeded()) < 0.5)
    assert gap(module.eval()(x), slim(graph).eval()(x)) < 1e-5


def test_training_goes_on_alike():
    """Oracle: gradients of the zeroed network at the entries kept, in training mode with batch statistics."""
    module, x = build("concatenation")
    graph = DependencyGraph(module, x)
    graph.zero_(torch.rand(graph.num_groups, generator=seeded()) < 0.5)
    report = slim_report(graph)
    for network in (module, report.module):
        network.train()
        network(x).square().sum().backward()
    for name, p in report.module.named_parameters():
        wanted = module.get_parameter(name).grad
        for dim, places in report.kept.get(name, {}).items():
            wanted = wanted.index_select(dim, places)
        torch.testing.assert_close(p.grad, wanted, rtol=1e-9, atol=1e-12)


def test_language_models():
    """Oracle: the zeroed model. Llama's norm rounds to float32 within, so its float64 outputs agree to that."""
    for name, bar in (("llama", 1e-6), ("gpt2", 1e-10)):
        model, inputs = build(name)
        graph = DependencyGraph(model, inputs)
        graph.zero_(torch.rand(graph.num_groups, generator=seeded(2)) < 0.5)
        small = slim(graph)
        assert type(small) is type(model)
        longer = torch.randint(31, (3, 9), generator=seeded())
        assert gap(model.eval()(input_ids=longer).logits, small.eval()(input_ids=longer).logits) < bar


def test_tied_weights_stay_tied():
    """Oracle: identity of the parameter."""
    module, x = build("shared")
    graph = DependencyGraph(module, x)
    graph.zero_(torch.arange(graph.num_groups) % 2 == 0)
    small = slim(graph)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
    assert {n for n, _ in small.named_parameters()} == {n for n, _ in module.named_parameters()}


def test_attributes_follow_the_shapes():
    """Oracle: the shapes of the weights."""
    module, x = build("separable")
    graph = DependencyGraph(module, x)
    graph.zero_(torch.rand(graph.num_groups, generator=seeded(4)) < 0.4)
    small = slim(graph)
    assert small.depth.groups == small.stem.out_channels == small.stem.weight.shape[0]
    assert small.depth.out_channels == small.norm.num_channels == small.point.in_channels
    assert small.norm.num_groups == small.depth.groups
    assert small.grouped.in_channels == small.grouped.groups * small.grouped.weight.shape[1]
    assert small.up.in_channels == small.act.num_parameters == small.up.weight.shape[0]
    assert small.head.in_channels == small.up.out_channels
    assert f"{small.stem.out_channels}, kernel" in repr(small.stem)


def test_a_group_of_each_family_stays():
    """Oracle: by hand: all groups zero leaves one a family, and outputs as they were."""
    module, x = build("mlp")
    graph = DependencyGraph(module, x)
    graph.zero_(torch.ones(graph.num_groups, dtype=torch.bool))
    small = slim(graph)
    assert [m.out_features for m in small if isinstance(m, nn.Linear)] == [1, 1, 2]
    torch.testing.assert_close(small.eval()(x), module.eval()(x))


def test_nothing_to_cut_gives_a_copy():
    """Oracle: the module itself; memory is not shared."""
    module, x = build("residual")
    report = slim_report(DependencyGraph(module, x))
    assert report.kept == {}
    assert report.num_parameters[0] == report.num_parameters[1]
    own = {p.data_ptr() for p in module.parameters()}
    assert not own & {p.data_ptr() for p in report.module.parameters()}
    assert torch.equal(module.eval()(x), report.module.eval()(x))


class ByEinsum(Block):
    """The same block with its attention written in sums over labels."""

    def forward(self, x):
        batch, length, _ = x.shape
        mixed = self.qkv(self.ln_1(x)).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = mixed.unbind(2)
        weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / self.head_dim**0.5, -1)
        attended = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, -1)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


@pytest.mark.parametrize("head_mode", ["head", "dim"])
def test_attention_in_sums_over_labels(head_mode):
    """Oracle: counting, and the zeroed network in float64."""
    module = nn.Sequential(nn.Linear(7, 20), ByEinsum(20, 4), nn.Linear(20, 2)).double()
    x = torch.randn(2, 3, 7, dtype=F64, generator=seeded())
    graph = DependencyGraph(module, x, head_mode=head_mode)
    assert graph.num_groups == 20 + 24 + (4 if head_mode == "head" else 5)
    assert graph.check_zero_invariance(generator=seeded()) == 0
    if head_mode == "head":  # the other changes the scale, which is by width
        graph.zero_(torch.rand(graph.num_groups, generator=seeded(1)) < 0.5)
        assert slim_report(graph).difference < 1e-10


class WidthFromInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            f(x).view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


def test_code_that_cannot_be_cut_is_noticed():
    """Oracle: by hand: the width of a head is read off the input, which does not shrink."""
    module = WidthFromInput().double()
    graph = DependencyGraph(module, torch.randn(2, 3, 8, dtype=F64))
    graph.zero_(torch.tensor([True, False, False, False]))
    with pytest.raises(ArgumentError, match="skip="):
        slim(graph)


def test_a_scale_by_width_is_noticed():
    """Oracle: by hand: the attention's 1/sqrt(head_dim) changes with the width of a head, and so do the outputs."""
    module, x = build("transformer")
    graph = DependencyGraph(module, x, head_mode="dim")
    qkv = next(a for a in graph.axes if a.name == "blocks.0.qkv.weight" and a.dim == 0)
    chosen = torch.zeros(graph.num_groups, dtype=torch.bool)
    chosen[qkv.groups[0]] = True
    graph.zero_(chosen)
    with pytest.raises(NumericalError, match="differ"):
        slim(graph)


def test_groups_that_are_not_zero_are_refused():
    """Oracle: the errors promised."""
    graph = DependencyGraph(*build("mlp"))
    chosen = torch.zeros(graph.num_groups, dtype=torch.bool)
    chosen[0] = True
    with pytest.raises(ArgumentError, match="not zero"):
        slim(graph, groups=chosen)
    with pytest.raises(ArgumentError, match="bool tensor"):
        slim(graph, groups=chosen[:3])
    graph.zero_(chosen)
    assert slim(graph, groups=chosen)[0].out_features == 7


def test_counted_norms_are_those_of_the_padded_vector():
    """Oracle: torch's norms of the vector with its zeros, whose outputs there are zero too."""
    x, weight, bias = (torch.randn(shape, dtype=F64, generator=seeded(s)) for s, shape in enumerate([(3, 5), 5, 5]))
    padded = F.pad(x, (0, 4))
    wide, shift = F.pad(weight, (0, 4)), F.pad(bias, (0, 4))
    found = CountedLayerNorm(weight, bias, 9, 1e-3)(x)
    torch.testing.assert_close(F.pad(found, (0, 4)), F.layer_norm(padded, (9,), wide, shift, 1e-3), rtol=1e-12, atol=0)
    for eps in (1e-3, None):
        found = CountedRMSNorm(weight, 9, eps)(x)
        torch.testing.assert_close(F.pad(found, (0, 4)), F.rms_norm(padded, (9,), wide, eps), rtol=1e-12, atol=0)
    with pytest.raises(ArgumentError, match="count"):
        CountedLayerNorm(weight, bias, 4, 1e-3)


def random_network(draw):
    # convolutions, norms, residual sums and concatenations in any order; channels are followed by hand
    layers, width = nn.ModuleList(), draw(st.integers(2, 6))
    plan = [("conv", nn.Conv2d(1, width, 3, padding=1))]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "norm", "sum", "cat", "depth", "pool", "gate"]))
        if kind == "conv":
            following = draw(st.integers(2, 6))
            plan.append((kind, nn.Conv2d(width, following, 1)))
            width = following
        elif kind == "norm":
            plan.append((kind, nn.BatchNorm2d(width)))
        elif kind == "sum":
            plan.append((kind, nn.Conv2d(width, width, 3, padding=1)))
        elif kind == "cat":
            extra = draw(st.integers(1, 4))
            plan.append((kind, nn.Conv2d(width, extra, 1)))
            width += extra
        elif kind == "depth":
            plan.append((kind, nn.Conv2d(width, width, 3, padding=1, groups=width)))
        elif kind == "gate":
            plan.append((kind, nn.Conv2d(width, width, 1)))
        else:
            plan.append((kind, nn.AvgPool2d(3, 1, 1)))
    for _, layer in plan:
        layers.append(layer)
    return Random([kind for kind, _ in plan], layers, nn.Linear(width, 2)).double()


class Random(nn.Module):
    def __init__(self, kinds, layers, head):
        super().__init__()
        self.kinds, self.layers, self.head = kinds, layers, head

    def forward(self, x):
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            y = layer(x)
            if kind == "sum":
                x = x + F.relu(y)
            elif kind == "cat":
                x = torch.cat([y, x], 1)
            elif kind == "gate":
                x = x * torch.sigmoid(y)
            else:
                x = F.silu(y)
        return self.head(x.mean((2, 3)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), st.integers(0, 10_000))
def test_random_networks(data, seed):
    """Oracle: the zeroed network in float64, whatever convolutions, sums and concatenations were drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = random_network(data.draw)
        x = torch.randn(2, 1, 5, 5, dtype=F64)
    graph = DependencyGraph(module, x)
    graph.zero_(torch.rand(graph.num_groups, generator=seeded(seed)) < 0.6)
    assert graph.check_zero_invariance(generator=seeded(seed)) == 0
    small = slim(graph).eval()
    fresh = torch.randn(3, 1, 7, 7, dtype=F64, generator=seeded(seed))
    wanted = module.eval()(fresh)
    torch.testing.assert_close(small(fresh), wanted, rtol=1e-10, atol=1e-12)
