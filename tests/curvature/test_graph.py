"""Products through a kept graph against those that build it anew."""

import pytest
import torch
from torch import nn

from hesse.curvature.ggn import fisher, ggn
from hesse.curvature.hessian import hessian
from hesse.testing import check_linear_operator

F64 = torch.float64


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).to(F64)


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 1, 4, 4, generator=generator, dtype=F64), torch.randint(3, (5,), generator=generator))
        for _ in range(count)
    ]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def outputs(model, batch):
    return model(batch[0])


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


KINDS = {"hessian": (hessian, loss_fn), "ggn": (ggn, outputs), "fisher": (fisher, losses)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_kept_products_are_those_built_anew(kind, block_size):
    """Oracle: the dense matrix without the kept graph, through the conformance suite."""
    make, function = KINDS[kind]
    model, data = net(), batches()
    dense = make(function, model, data).to_dense().detach()
    kept = make(function, model, data, keep_graph=True, block_size=block_size)
    check_linear_operator(kept, dense, movable=False)
    assert not (kept @ torch.ones(47, dtype=F64)).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_rebuilt_after_a_change(kind):
    """Oracle: a fresh operator after a step, after a batch was overwritten, and after a frozen layer moved."""
    make, function = KINDS[kind]
    model, data = net(), batches()
    v = torch.ones(27, dtype=F64)
    kept = make(function, model, data, names=["3.weight", "3.bias"], keep_graph=True)
    kept @ v
    for change in (model[3].weight, data[0][0], model[0].bias):
        with torch.no_grad():
            change.add_(0.1)
        torch.testing.assert_close(kept @ v, (make(function, model, data, names=["3.weight", "3.bias"]) @ v).detach())


def test_a_second_product_makes_no_forward_pass():
    """Oracle: a count of the calls of the function."""
    calls = 0

    def counted(model, batch):
        nonlocal calls
        calls += 1
        return loss_fn(model, batch)

    operator = hessian(counted, net(), batches(1)[0], keep_graph=True)
    for _ in range(3):
        operator @ torch.ones(47, 2, dtype=F64)
    assert calls == 1


@pytest.mark.parametrize("keep_graph", [False, True])
def test_parameters_that_enter_linearly_or_not_at_all(keep_graph):
    """Oracle: zero rows and columns; the Hessian of a linear function is zero."""
    parameters = {"a": torch.ones(2, dtype=F64), "b": torch.ones((), dtype=F64), "c": torch.ones(3, dtype=F64)}
    operator = hessian(lambda p, _: (p["a"] ** 3).sum() + p["b"], parameters, None, keep_graph=keep_graph)
    dense = torch.diag(torch.tensor([6.0, 6, 0, 0, 0, 0], dtype=F64))
    torch.testing.assert_close(operator.to_dense(), dense)
    torch.testing.assert_close(operator @ torch.ones(6, dtype=F64), dense.sum(1))
    linear = hessian(lambda p, _: p["a"].sum(), parameters, None, keep_graph=keep_graph)
    assert not linear.to_dense().any()


def test_forward_mode_is_not_needed():
    """Oracle: the closed form 2 v of Σ x², through a function that has no forward-mode derivative."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    parameters = {"x": torch.tensor([1.0, 2.0], dtype=F64)}
    operator = hessian(lambda p, _: Square.apply(p["x"]).sum(), parameters, None, keep_graph=True)
    v = torch.tensor([3.0, 4.0], dtype=F64)
    torch.testing.assert_close(operator @ v, 2 * v)


def test_blocks_and_layers():
    """Oracle: rows and columns of the dense matrix; the layers in their order, with the graph kept or not."""
    model, data = net(), batches()
    for keep_graph in (False, True):
        whole = hessian(loss_fn, model, data, keep_graph=keep_graph)
        dense = whole.to_dense().detach()
        layers = whole.per_layer()
        assert list(layers) == ["0", "3"]
        torch.testing.assert_close(layers["0"].to_dense().detach(), dense[:20, :20])
        torch.testing.assert_close(layers["3"].to_dense().detach(), dense[20:, 20:])
        torch.testing.assert_close(whole.block(["3.bias"]).to_dense().detach(), dense[44:, 44:])
        torch.testing.assert_close(whole.to_dense().detach(), dense)  # the whole is left as it was


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_numbers_alone_are_those_of_the_differentiable_product(kind, block_size):
    """Oracle: the product with grad mode on, which records a graph, against the lean one without it."""
    make, function = KINDS[kind]
    model, data = net(), batches()
    operator = make(function, model, data, block_size=block_size)
    block = torch.randn(47, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    recorded = operator @ block
    with torch.no_grad():
        lean, single = operator @ block, operator @ block[:, 0]
    assert recorded.requires_grad
    assert not lean.requires_grad
    torch.testing.assert_close(lean, recorded.detach())
    torch.testing.assert_close(single, recorded[:, 0].detach())


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_transforms_of_torch_func_see_the_product(kind):
    """Oracle: the plain product, under vmap and as the derivative of a linear map under jvp, with grad mode off."""
    parameters = {"w": torch.tensor([[0.3, -0.7], [1.1, 0.1]], dtype=F64)}
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    if kind == "hessian":
        operator = hessian(lambda p, x: torch.tanh(x @ p["w"]).square().sum(), parameters, x)
    else:
        operator = ggn(lambda p, x: torch.tanh(x @ p["w"]), parameters, x)
    v = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = operator @ v
        torch.testing.assert_close(torch.vmap(lambda c: operator @ c, in_dims=1, out_dims=1)(v), wanted)
        torch.testing.assert_close(torch.func.jvp(lambda c: operator @ c, (v,), (v,))[1], wanted)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_language_model_with_fused_attention(kind, width):
    """Oracle: the differentiable product of a tiny GPT-2, against the lean one and the kept graph."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=2, n_positions=8, n_inner=6)
    model = transformers.GPT2LMHeadModel(config).to(F64).eval()
    tokens = torch.tensor([[1, 2, 3, 4], [6, 5, 0, 1]])

    def logits(net, batch):
        return net(input_ids=batch, use_cache=False).logits[:, :-1]

    def loss(net, batch):
        return nn.functional.cross_entropy(logits(net, batch).flatten(0, 1), batch[:, 1:].flatten())

    make, function = {"hessian": (hessian, loss), "ggn": (ggn, logits)}[kind]
    names = ["transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"]
    operator = make(function, model, tokens, names=names)
    block = torch.randn(operator.shape[0], width, dtype=F64, generator=torch.Generator().manual_seed(2))
    wanted = (operator @ block).detach()
    with torch.no_grad():
        torch.testing.assert_close(operator @ block, wanted, rtol=1e-9, atol=1e-12)
    kept = make(function, model, tokens, names=names, keep_graph=True)
    for _ in range(2):
        torch.testing.assert_close(kept @ block, wanted, rtol=1e-9, atol=1e-12)
