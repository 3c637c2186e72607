"""Inputs and output gradients out of one backward pass: products of rows against gradients by autograd."""

import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hesse.curvature.capture import LayerStream, dgrad_only
from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError, ShapeError
from tests.influence._tiny import alone, gpt2, llama, loss_gradients, tokens

F64 = torch.float64


def capture(model, forward, modules="mlp", segments=None):
    """Layer -> what the consumer received, of one batch whose loss ``forward(model)`` returns."""
    seen = {}
    with (
        dgrad_only(model),
        LayerStream(select_layers(model, modules), lambda r: seen.__setitem__(r.layer.name, r)) as stream,
        stream.batch(segments),
    ):
        loss = forward(model)
        stream.positions(None if segments is None else segments >= 0)
        stream.backward(loss)
    return seen


def gradients(model, forward, modules="mlp"):
    return {name: sequence_gradients(rows) for name, rows in capture(model, forward, modules).items()}


def expected(model, forward, count, modules="mlp"):
    """Layer -> (N, p, m) by torch.autograd.grad, one example after the other."""
    layers, out = select_layers(model, modules), {}
    named = dict(model.named_parameters())
    for n in range(count):
        grads = torch.autograd.grad(forward(model, slice(n, n + 1)), list(named.values()), allow_unused=True)
        known = dict(zip(named, grads, strict=True))
        for name, layer in layers.items():
            out.setdefault(name, []).append(layer.matrix_from_grads(known))
    return {name: torch.stack(rows) for name, rows in out.items()}


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12)


def run_data(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("modules", ["mlp", "attention", "all-linear"])
def test_transformers(build, modules):
    """Oracle: per-sequence gradients by a loop over torch.autograd.grad, in float64."""
    model = build(layers=2)
    data = tokens(3, low=5, high=5)
    ids = torch.tensor([row["input_ids"] for row in data])

    def forward(net):
        logits = net(input_ids=ids, use_cache=False).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    close(gradients(model, forward, modules), loss_gradients(model, data, modules=modules))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)), (6, 4)),
        (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (3, 2, 7, 4)),
        (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 2, 2, stride=2)), (3, 2, 4, 4)),
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)), (3, 2, 5)),
    ],
)
def test_plain_modules(net, shape):
    """Oracle: per-example gradients by autograd; convolutions equal Linear layers on their windows."""
    net, x = net.to(F64), run_data(shape)

    def forward(model, which=slice(None)):
        return model(x[which]).sin().sum()

    close(gradients(net, forward), expected(net, forward, len(x)))


def test_conv1d_of_transformers_equals_linear():
    """Oracle: a Linear with the transposed weight."""
    from transformers.pytorch_utils import Conv1D

    conv, linear, x = Conv1D(3, 4).to(F64), nn.Linear(4, 3).to(F64), run_data((2, 5, 4))
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)

    def forward(model):
        return model(x).sin().sum()

    found = gradients(nn.Sequential(conv), forward)["0"]
    torch.testing.assert_close(found, gradients(nn.Sequential(linear), forward)["0"], rtol=1e-12, atol=1e-14)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(torch.tanh(self.inner(x)))


def test_calls_of_one_module_are_summed_before_squaring():
    """Oracle: autograd's gradient of the shared weight, example by example."""
    model, x = Twice().to(F64), run_data((3, 4))

    def forward(net, which=slice(None)):
        return net(x[which]).sin().sum()

    rows = capture(model, forward)["inner"]
    assert rows.calls == 2
    assert rows.grads.shape == (3, 2, 4)
    close({"inner": sequence_gradients(rows)}, expected(model, forward, 3))


def test_a_call_outside_the_loss_is_left_out():
    """Oracle: the gradient without that call."""
    net, x = nn.Sequential(nn.Linear(4, 2)).to(F64), run_data((3, 4))

    def forward(model, which=slice(None)):
        model(x[which] + 1)
        return model(x[which]).sin().sum()

    close(gradients(net, forward), expected(net, forward, 3))


class Fork(nn.Module):
    """Four readers of one tensor: two alike, one without bias, one that reads a copy."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 3, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x.clone())], -1)


def test_shared_inputs_are_found():
    """Oracle: identity of the tensors; a layer without bias needs another factor."""
    x = run_data((3, 4))
    rows = capture(Fork().to(F64), lambda net: net(x).sum())
    assert {name: r.shared_with for name, r in rows.items()} == {"a": "a", "b": "a", "c": "c", "d": "d"}


def test_convolutions_share_an_input_only_if_their_windows_agree():
    """Oracle: windows of 3 and of 1 on one image are different rows."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(9, 2, 3, padding=1, bias=False)
            self.slim = nn.Conv2d(9, 2, 1, bias=False)
            self.twin = nn.Conv2d(9, 4, 3, padding=1, bias=False)

        def forward(self, x):
            return torch.cat([self.wide(x), self.slim(x), self.twin(x)], 1)

    x = run_data((2, 9, 4, 4))
    rows = capture(Branches().to(F64), lambda net: net(x).sum())
    assert {name: r.shared_with for name, r in rows.items()} == {"wide": "wide", "slim": "slim", "twin": "wide"}


def test_gate_and_up_share_but_queries_of_two_blocks_do_not():
    """Oracle: which submodules of a Llama receive the same hidden state."""
    model = llama(layers=2)
    batch = alone(tokens(1)[0])
    rows = capture(model, lambda net: net(input_ids=batch["input_ids"]).logits.sum(), "all-linear")
    for block in ("model.layers.0", "model.layers.1"):
        assert rows[f"{block}.mlp.up_proj"].shared_with == f"{block}.mlp.gate_proj"
        assert rows[f"{block}.self_attn.v_proj"].shared_with == f"{block}.self_attn.q_proj"
        assert rows[f"{block}.mlp.down_proj"].shared_with == f"{block}.mlp.down_proj"


def test_no_weight_gradient_is_computed_and_flags_come_back():
    """Oracle: .grad stays None, and every flag is as before, also after an error."""
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64), run_data((2, 4))
    net[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        capture(net, lambda model: model(x).sum())
    assert (2, 4) not in saved  # the first layer's input would be kept only for a weight gradient
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == flags
    with dgrad_only(net):
        assert not any(p.requires_grad for p in net.parameters())
    with pytest.raises(RuntimeError, match="shapes"):
        capture(net, lambda model: model(x.T).sum())
    assert [p.requires_grad for p in net.parameters()] == flags


@pytest.mark.parametrize("first", [True, False])
def test_an_in_place_activation_is_followed(first):
    """Oracle: the gradient with the ordinary activation; as lowest tracked layer and further up."""
    x = run_data((5, 4))
    layers = [nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)]
    net = nn.Sequential(*layers).to(F64)
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[2], nn.ReLU(), layers[4])

    def forward(model, which=slice(None)):
        return model(x[which]).sin().sum()

    picker = r"[024]" if first else r"[24]"
    close(gradients(net, forward, picker), expected(plain, forward, 5, picker))


def test_an_overwritten_input_is_refused():
    """Oracle: an error that names the layer."""

    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            out = self.second(hidden)
            hidden.mul_(2)
            return out

    with pytest.raises(ArgumentError, match=r"'second' was overwritten in place"):
        capture(Overwrites().to(F64), lambda net: net(run_data((2, 4))).sum(), "second")


class Checkpointed(nn.Module):
    """Three blocks, each recomputed in the backward pass."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            run = block if self.reentrant is None else lambda h, b=block: checkpoint(b, h, use_reentrant=self.reentrant)
            x = x + run(x)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(reentrant):
    """Oracle: the eager model's rows, the same in float64, each layer handed over once."""
    torch.manual_seed(0)
    eager = Checkpointed().to(F64)
    model = Checkpointed(reentrant).to(F64)
    model.load_state_dict(eager.state_dict())
    x = run_data((4, 3, 6))
    inputs = x.clone().requires_grad_(reentrant)  # what torch itself asks for when reentrant

    def forward(net):
        return net(inputs).sin().sum()

    handed = []
    with dgrad_only(model), LayerStream(select_layers(model), handed.append) as stream, stream.batch():
        stream.backward(forward(model))
    assert len(handed) == 6
    reference = capture(eager, lambda net: net(x).sin().sum())
    for rows in handed:
        torch.testing.assert_close(rows.inputs, reference[rows.layer.name].inputs)
        torch.testing.assert_close(rows.grads, reference[rows.layer.name].grads)
        assert rows.shared_with == rows.layer.name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by dynamo's own look at a tensor
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_gives_the_same_rows(backend, reentrant, early):
    """Oracle: the eager model's rows in float64, batches of two sizes; checkpointed as well, and compiled by a call
    from before the hooks were there.
    """
    check_compiled(backend, reentrant, early)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("early", [False, True])
def test_a_model_compiled_to_machine_code_gives_the_same_rows(early):
    """Oracle: as above, with torch's own compiler."""
    check_compiled("inductor", None, early)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by dynamo's own look at a tensor
def test_a_frozen_model_compiled_before_gives_rows_every_time():
    """Oracle: the eager model's rows; nothing but the hooks tells dynamo that its code is out of date."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(F64).requires_grad_(False)
    torch.compiler.reset()
    compiled, x = torch.compile(model, backend="eager"), run_data((4, 3, 6))
    compiled(x)
    reference = capture(model, lambda net: net(x).sin().sum())
    for _ in range(2):
        handed = []
        with LayerStream(select_layers(model), handed.append) as stream, stream.batch():
            stream.backward(compiled(x).sin().sum())
        assert len(handed) == 2
        for rows in handed:
            torch.testing.assert_close(rows.grads, reference[rows.layer.name].grads)
        compiled(x)


def check_compiled(backend, reentrant, early):
    torch.manual_seed(0)
    eager = Checkpointed().to(F64)
    model = Checkpointed(reentrant).to(F64)
    model.load_state_dict(eager.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    batches = [run_data((size, 3, 6)) for size in (4, 4, 2)]
    if early:
        compiled(batches[0])
    handed = []
    with dgrad_only(model), LayerStream(select_layers(model), handed.append) as stream:
        for x in batches:
            with stream.batch():
                stream.backward(compiled(x.clone().requires_grad_(reentrant is True)).sin().sum())
    assert len(handed) == 18
    for number, x in enumerate(batches):
        reference = capture(eager, lambda net, x=x: net(x).sin().sum())
        for rows in handed[6 * number : 6 * number + 6]:
            torch.testing.assert_close(rows.inputs, reference[rows.layer.name].inputs)
            torch.testing.assert_close(rows.grads, reference[rows.layer.name].grads)


def test_reentrant_checkpointing_without_an_input_gradient_says_what_to_do():
    """Oracle: an error with the remedy."""
    model = Checkpointed(True).to(F64)
    with (
        pytest.warns(UserWarning, match="requires_grad"),
        pytest.raises(ArgumentError, match="use_reentrant=False"),
    ):
        capture(model, lambda net: net(run_data((2, 3, 6))).sum())


def test_a_module_shared_by_two_reentrant_checkpoints_is_refused():
    """Oracle: an error that names it; its calls are never known together."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(2):
                x = checkpoint(self.inner, x, use_reentrant=True)
            return x

    inputs = run_data((2, 4)).requires_grad_()
    with pytest.raises(ArgumentError, match="'inner' runs in several reentrant checkpoints"):
        capture(Shared().to(F64), lambda net: net(inputs).sum())


def test_packed_documents_come_apart():
    """Oracle: gradients of the same rows, one document a batch."""
    net, x = nn.Sequential(nn.Linear(4, 3)).to(F64), run_data((2, 5, 4))
    segments = torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, -1, -1]])

    def forward(model):
        return model(x)[segments >= 0].sin().sum()

    rows = capture(net, forward, segments=segments)["0"]
    assert rows.mask.sum(1).tolist() == [2, 3, 3]
    for document in range(3):
        part = x[segments == document][None]
        alone_ = gradients(net, lambda model, part=part: model(part).sin().sum())["0"]
        torch.testing.assert_close(sequence_gradients(rows)[document], alone_[0])


def test_layers_that_take_no_part_are_named():
    """Oracle: the error, by layer."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.hidden = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.hidden(x)
            self.unused(x)
            return self.used(x)

    model, x = Odd(), torch.ones(3, 2)
    with pytest.raises(ArgumentError, match="no gradient reached tracked layer 'unused'"):
        capture(model, lambda net: net(x).sum(), "used")
    with pytest.raises(ArgumentError, match="'hidden' was not called with gradients enabled"):
        capture(model, lambda net: net(x).sum(), "^used|hidden")
    with pytest.raises(ArgumentError, match="'used' was called with keyword arguments"):
        capture(model, lambda net: net.used(input=x).sum(), "^used")
    with pytest.raises(ArgumentError, match="inside"):
        LayerStream({}, lambda rows: None).backward(torch.ones(()))
    with pytest.raises(ShapeError, match="positions, not on those of the packed batch"):
        capture(model, lambda net: net.used(x).sum(), "^used", torch.tensor([[0, 1, 1, 1]]))


def test_blocks_cut_a_batch_into_runs():
    """Oracle: the whole batch, put together again."""
    net, x = nn.Sequential(nn.Linear(4, 3)).to(F64), run_data((5, 2, 4))
    rows = capture(net, lambda model: model(x).sin().sum())["0"]
    parts = list(rows.blocks(2 * 3 * 5))
    assert [len(part.grads) for part in parts] == [2, 2, 1]
    whole = torch.cat([sequence_gradients(part) for part in parts])
    torch.testing.assert_close(whole, sequence_gradients(rows))
    assert [len(part.grads) for part in rows.blocks(1)] == [1] * 5
