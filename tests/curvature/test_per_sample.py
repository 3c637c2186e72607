"""Per-sample gradients against a loop over examples."""

import pytest
import torch
from torch import nn

from hesse.curvature.per_sample import per_sample_gradients
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

F64 = torch.float64


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)


def data(count=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator, dtype=F64), torch.randint(2, (count,), generator=generator)


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def looped(model, x, y):
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(loss_fn(model, (x[i : i + 1], y[i : i + 1])), list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_rows_are_those_of_a_loop(chunk_size):
    """Oracle: one backward pass an example, in float64, whatever the chunk."""
    model, (x, y) = net(), data()
    found = per_sample_gradients(loss_fn, model, (x, y), chunk_size=chunk_size)
    torch.testing.assert_close(found.detach(), looped(model, x, y), rtol=1e-12, atol=1e-14)


def test_rows_add_up_to_the_gradient_of_the_batch():
    """Oracle: one backward pass over the whole batch."""
    model, (x, y) = net(), data()
    whole = torch.autograd.grad(loss_fn(model, (x, y)), list(model.parameters()))
    total = per_sample_gradients(loss_fn, model, (x, y)).sum(0).detach()
    torch.testing.assert_close(total, torch.cat([g.reshape(-1) for g in whole]), rtol=1e-12, atol=1e-14)


def test_names_pick_columns():
    """Oracle: the columns of that layer among those of all parameters, in the model's order."""
    model, batch = net(), data()
    whole = per_sample_gradients(loss_fn, model, batch).detach()
    part = per_sample_gradients(loss_fn, model, batch, names=["2.bias", "0.bias"]).detach()
    torch.testing.assert_close(part, torch.cat([whole[:, 12:16], whole[:, 24:26]], 1))


def test_nested_batches_and_plain_parameters():
    """Oracle: the closed form x_i (x_i·w - y_i) of least squares; a number in the batch passes through."""
    x, y = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.arange(5.0, dtype=F64)
    w = torch.tensor([1.0, -2.0, 0.5], dtype=F64)

    def least_squares(p, batch):
        assert batch["in"][0].shape == (1, 3)
        return (batch["in"][0] @ p["w"] - batch["out"]).square().sum() * batch["half"]

    found = per_sample_gradients(least_squares, {"w": w}, {"in": [x], "out": y, "half": 0.5})
    torch.testing.assert_close(found, x * (x @ w - y)[:, None])
    assert not found.requires_grad


def test_they_can_be_differentiated():
    """Oracle: d/dw of Σ_i ‖x_i (x_i·w)‖²/2 = Σ_i ‖x_i‖² x_i (x_i·w), by hand."""
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([1.0, -2.0, 0.5], dtype=F64, requires_grad=True)
    rows = per_sample_gradients(lambda p, b: (b @ p["w"]).square().sum() / 2, {"w": w}, x)
    (found,) = torch.autograd.grad(rows.square().sum() / 2, w)
    values = (x @ w).detach()
    torch.testing.assert_close(found, (x.square().sum(1) * values) @ x)
    with torch.no_grad():
        assert not per_sample_gradients(lambda p, b: (b @ p["w"]).square().sum() / 2, {"w": w}, x).requires_grad


def test_a_language_model():
    """Oracle: a loop over two sentences through a tiny GPT-2, one weight matrix."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=2, n_positions=8, n_inner=6)
    model = transformers.GPT2LMHeadModel(config).to(F64).eval()
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 0, 6]])
    name = "transformer.h.0.attn.c_attn.weight"

    def loss(net, batch):
        logits = net(input_ids=batch, use_cache=False).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    weight = dict(model.named_parameters())[name]
    rows = [torch.autograd.grad(loss(model, tokens[i : i + 1]), weight)[0].reshape(-1) for i in range(2)]
    found = per_sample_gradients(loss, model, tokens, names=[name])
    torch.testing.assert_close(found.detach(), torch.stack(rows), rtol=1e-9, atol=1e-12)


def test_float32_and_no_examples():
    """Oracle: the float64 rows to single precision; of no examples there are no rows."""
    model, (x, y) = net(), data()
    exact = per_sample_gradients(loss_fn, model, (x, y)).detach()
    single = per_sample_gradients(loss_fn, model.float(), (x.float(), y)).detach()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)
    assert per_sample_gradients(loss_fn, model, (x[:0].float(), y[:0])).shape == (0, 26)


def test_bad_arguments_are_named():
    """Oracle: the error and the argument it names."""
    model, (x, y) = net(), data()
    with pytest.raises(ShapeError, match="leading axis"):
        per_sample_gradients(loss_fn, model, (x, y[:3]))
    with pytest.raises(ShapeError, match="leading axis"):
        per_sample_gradients(loss_fn, model, (torch.tensor(1.0), y))
    with pytest.raises(ArgumentError, match="no tensor"):
        per_sample_gradients(loss_fn, model, (1, 2))
    with pytest.raises(ArgumentError, match="chunk_size"):
        per_sample_gradients(loss_fn, model, (x, y), chunk_size=0)
    with pytest.raises(ShapeError, match="scalar"):
        per_sample_gradients(lambda m, b: m(b[0]), model, (x, y))
    with pytest.raises(ArgumentTypeError, match="function"):
        per_sample_gradients("loss", model, (x, y))
    with pytest.raises(ArgumentError, match=r"dropout.*eval"):
        per_sample_gradients(loss_fn, nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).to(F64), (x, y))
    with pytest.raises(ArgumentError, match=r"BatchNorm1d.*eval"):
        per_sample_gradients(loss_fn, nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(F64), (x, y))
