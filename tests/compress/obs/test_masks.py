"""Masks through training, saving, copying and back to plain weights."""

import copy

import pytest
import torch
from torch import nn

from hesse.compress import apply_masks, attach_masks, attached_masks, remove_masks, zero_masks
from hesse.compress.obs.masks import plain_parameters
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from tests.compress.obs.cases import cross_entropy, seeded, small_data, small_net


def random_masks(net, share=0.5):
    generator = seeded(3)
    return {name: torch.rand(p.shape, generator=generator) > share for name, p in net.named_parameters() if p.ndim > 1}


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_attached_masks_survive_training(name):
    """Oracle: exact zeros, also under momentum gathered before the mask came; and the rest has moved."""
    net, data = small_net(), small_data()
    optimizer = OPTIMIZERS[name](net.parameters())
    masks = random_masks(net)
    before = {}
    for step in range(10):
        if step == 5:
            attach_masks(net, masks)
            before = {name: p.clone() for name, p in plain_parameters(net).items()}
        optimizer.zero_grad()
        cross_entropy(net, data).backward()
        optimizer.step()
    for layer, mask in ((net[0], masks["0.weight"]), (net[2], masks["2.weight"])):
        assert not bool(layer.weight[~mask].any())
        assert not bool(layer.parametrizations.weight.original.grad[~mask].any())
    remove_masks(net)
    for name, mask in masks.items():
        p = net.get_parameter(name)
        assert not bool(p[~mask].any())
        assert bool((p != before[name])[mask].all())


def test_masks_leave_the_function_of_plain_zeros():
    """Oracle: the same network with zeros written into its weights; names, values and objects come back."""
    net, (x, _) = small_net(), small_data()
    masks, objects = random_masks(net), dict(net.named_parameters())
    plain = copy.deepcopy(net)
    apply_masks(plain, masks)
    attach_masks(net, masks)
    assert torch.equal(net(x), plain(x))
    assert set(plain_parameters(net)) == set(objects)
    remove_masks(net)
    assert torch.equal(net(x), plain(x))
    assert [(name, id(p)) for name, p in net.named_parameters()] == [(name, id(p)) for name, p in objects.items()]
    assert attached_masks(net) == {}
    assert type(net[0]) is nn.Linear


def test_masks_travel_with_the_state():
    """Oracle: the masks put in, through state_dict into a fresh network, and through a deep copy."""
    net = small_net()
    masks = random_masks(net)
    attach_masks(net, masks)
    fresh = small_net(seed=5)
    attach_masks(fresh, {name: torch.ones_like(mask) for name, mask in masks.items()})
    fresh.load_state_dict(net.state_dict())
    for found in (attached_masks(fresh), attached_masks(copy.deepcopy(net)), zero_masks(net)):
        assert set(found) == set(masks)
        assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_attaching_again_replaces_the_mask():
    """Oracle: the second mask."""
    net = small_net()
    first = random_masks(net)
    attach_masks(net, first)
    second = {name: mask & random_masks(net, 0.2).get(name, mask) for name, mask in first.items()}
    attach_masks(net, second)
    assert all(torch.equal(attached_masks(net)[name], second[name]) for name in second)
    assert len(net[0].parametrizations.weight) == 1


def test_what_is_assigned_is_masked():
    """Oracle: the definition."""
    net = small_net()
    masks = random_masks(net)
    attach_masks(net, masks)
    net[0].weight = torch.ones(12, 8, dtype=torch.float64)
    assert torch.equal(net[0].weight != 0, masks["0.weight"])


def test_zeros_are_written_over_nan():
    """Oracle: zero, which NaN times zero is not."""
    net = small_net()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    masks = {"0.weight": torch.ones(12, 8, dtype=torch.bool)}
    masks["0.weight"][0, 0] = False
    apply_masks(net, masks)
    assert float(net[0].weight[0, 0].detach()) == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_layers_with_several_masks_get_their_order_back():
    """Oracle: names and objects of an attention layer before; its output does not change."""
    torch.manual_seed(0)
    net = nn.MultiheadAttention(4, 2, kdim=3, vdim=3).double()
    x, y = torch.randn(5, 1, 4, dtype=torch.float64), torch.randn(6, 1, 3, dtype=torch.float64)
    before = [(name, id(p)) for name, p in net.named_parameters()]
    masks = random_masks(net)
    apply_masks(net, masks)
    wanted = net(x, y, y)[0]
    attach_masks(net, masks)
    assert set(attached_masks(net)) == set(masks)
    torch.testing.assert_close(net(x, y, y)[0], wanted)
    remove_masks(net)
    assert [(name, id(p)) for name, p in net.named_parameters()] == before
    torch.testing.assert_close(net(x, y, y)[0], wanted)


def test_every_place_of_a_tied_parameter_is_masked():
    """Oracle: both places read the same masked tensor, and are one parameter still, with and without the mask."""
    net = Tied()
    mask = torch.rand(6, 4, generator=seeded()) > 0.5
    attach_masks(net, {"embedding.weight": mask})
    original = net.get_parameter("embedding.parametrizations.weight.original")
    with torch.no_grad():
        original.copy_(torch.ones(6, 4))  # as a careless optimiser would
    for place in (net.embedding, net.head):
        assert torch.equal(place.weight != 0, mask)
    assert list(plain_parameters(net)) == ["embedding.weight"]
    remove_masks(net)
    assert net.head.weight is net.embedding.weight
    assert torch.equal(net.head.weight != 0, mask)


def test_bad_masks_are_refused():
    """Oracle: the errors promised; nothing is attached."""
    net = small_net()
    good = torch.ones(12, 8, dtype=torch.bool)
    for masks, error, words in (
        ({"9.weight": good}, ArgumentError, r"no parameter '9\.weight'"),
        ({"0.weight": good.double()}, ArgumentTypeError, "bool"),
        ({"0.weight": good[:3]}, ShapeError, r"0\.weight is \(3, 8\)"),
    ):
        for call in (attach_masks, apply_masks):
            with pytest.raises(error, match=words):
                call(net, masks)
    assert attached_masks(net) == {}


def test_weights_that_are_computed_already_are_refused():
    """Oracle: the error promised, for a weight in norm and direction."""
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    name = next(name for name, p in net.named_parameters() if p.shape == (2, 3))
    with pytest.raises(ArgumentError, match="another parametrization"):
        attach_masks(net, {name: torch.ones(2, 3, dtype=torch.bool)})
