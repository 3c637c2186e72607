"""Gauss-Newton and Fisher products against dense matrices assembled from Jacobians."""

import pytest
import torch
from torch import nn

from hesse.curvature.ggn import cross_entropy_hessian, fisher, ggn, squared_error_hessian
from hesse.curvature.hessian import hessian
from hesse.errors import ArgumentTypeError, ShapeError
from hesse.testing import check_linear_operator

F64 = torch.float64


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(F64)


def inputs(count=5, seed=1):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def jacobian(model, x):
    """(outputs, P), every row by one backward pass."""
    rows = []
    for output in model(x).reshape(-1):
        grads = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def apply(model, batch):
    return model(batch)


@pytest.mark.parametrize("block_size", [1, 4, 64])
def test_cross_entropy_ggn_is_j_transposed_h_j(block_size):
    """Oracle: dense JᵀHJ in float64 with H = diag(p) - p pᵀ from torch.autograd.functional.hessian of the loss."""
    model, x = small_net(), inputs()
    jac = jacobian(model, x)
    labels = torch.tensor([0, 1, 2, 1, 0])
    logits = model(x).detach()

    def loss(flat):
        return nn.functional.cross_entropy(flat.view(5, 3), labels, reduction="sum")

    dense = jac.T @ torch.autograd.functional.hessian(loss, logits.reshape(-1)) @ jac
    operator = ggn(apply, model, x, block_size=block_size)
    assert operator.is_psd
    torch.testing.assert_close(operator.to_dense().detach(), dense, rtol=1e-10, atol=1e-12)


def test_squared_error_ggn_of_a_linear_model_is_its_hessian():
    """Oracle: the Hessian of ½ Σ (Wx + b - y)²."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).to(F64), inputs()

    def loss(net, batch):
        return (net(batch) - 1).square().sum() / 2

    dense = hessian(loss, model, x).to_dense()
    torch.testing.assert_close(ggn(apply, model, x, squared_error_hessian).to_dense(), dense, rtol=1e-10, atol=1e-12)


def test_batches_and_names():
    """Oracle: blocks of the dense matrix, summed and averaged over two batches."""
    model, data = small_net(), [inputs(4, 1), inputs(6, 2)]
    dense = sum(jacobian(model, x).T @ jacobian(model, x) for x in data)
    whole = ggn(apply, model, data, squared_error_hessian)
    torch.testing.assert_close(whole.to_dense().detach(), dense, rtol=1e-10, atol=1e-12)
    rows = whole.layout.slice("0.weight")
    block = ggn(apply, model, data, squared_error_hessian, names=["0.weight"], reduction="mean").to_dense().detach()
    torch.testing.assert_close(block, dense[rows, rows] / 2, rtol=1e-10, atol=1e-12)


def test_it_is_a_linear_operator():
    """Oracle: the conformance suite of linear operators, symmetry, definiteness and derivatives among it."""
    parameters = {"w": torch.tensor([[0.3, -0.7, 0.2], [1.1, 0.1, -0.4]], dtype=F64)}
    operator = ggn(lambda p, x: torch.tanh(p["w"] @ x).T, parameters, inputs(4)[:, :3].T)
    assert "psd_flag" in check_linear_operator(operator, movable=False)


def test_fisher_is_the_sum_of_outer_products():
    """Oracle: per-example gradients by a loop over torch.autograd.grad."""
    model, x = small_net(), inputs()
    labels = torch.tensor([0, 1, 2, 1, 0])

    def losses(net, batch):
        return nn.functional.cross_entropy(net(batch), labels, reduction="none")

    dense = torch.zeros(31, 31, dtype=F64)
    for value in losses(model, x):
        grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        flat = torch.cat([g.reshape(-1) for g in grads])
        dense += torch.outer(flat, flat)
    torch.testing.assert_close(fisher(losses, model, x).to_dense().detach(), dense, rtol=1e-10, atol=1e-12)


def test_fisher_averaged_over_all_labels_is_the_ggn():
    """Oracle: Σ_c p_c g_c g_cᵀ over the three classes equals JᵀHJ for a softmax, one example."""
    model, x = small_net(), inputs(1)
    p = model(x).softmax(-1).detach()[0]
    total = torch.zeros(31, 31, dtype=F64)
    for c in range(3):

        def losses(net, batch, c=c):
            return nn.functional.cross_entropy(net(batch), torch.tensor([c]), reduction="none")

        total += p[c] * fisher(losses, model, x).to_dense().detach()
    torch.testing.assert_close(ggn(apply, model, x).to_dense().detach(), total, rtol=1e-10, atol=1e-12)


def test_a_language_model_with_fused_attention():
    """Oracle: dense JᵀHJ of one weight matrix of a tiny GPT-2, masked so that one position does not count."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=2, n_positions=8, n_inner=6)
    model = transformers.GPT2LMHeadModel(config).to(F64).eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    name = "transformer.h.0.mlp.c_fc.weight"

    def logits(net, batch):
        return net(input_ids=batch, use_cache=False).logits[:, :-1]

    weight = dict(model.named_parameters())[name]
    z = logits(model, tokens)
    rows = [torch.autograd.grad(v, weight, retain_graph=True)[0].reshape(-1) for v in z.reshape(-1)]
    jac = torch.stack(rows)
    p = z.detach().softmax(-1)[0]
    blocks = [torch.diag(q) - torch.outer(q, q) for q in p]
    blocks[1] = torch.zeros(7, 7, dtype=F64)
    dense = jac.T @ torch.block_diag(*blocks) @ jac
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=F64)[:, None]

    def masked(outputs, tangent, _batch):
        return cross_entropy_hessian(outputs, tangent) * mask

    operator = ggn(logits, model, tokens, masked, names=[name])
    torch.testing.assert_close(operator.to_dense().detach(), dense, rtol=1e-9, atol=1e-12)


def test_bad_output_hessians_are_refused():
    """Oracle: the error and the argument it names."""
    model, x = small_net(), inputs()
    with pytest.raises(ArgumentTypeError, match="output_hessian"):
        ggn(apply, model, x, None)
    with pytest.raises(ShapeError, match="output_hessian gave shape"):
        ggn(apply, model, x, lambda z, t, b: t[:1]) @ torch.ones(31, dtype=F64)
    with pytest.raises(ShapeError, match="one loss an example"):
        fisher(apply, model, x) @ torch.ones(31, dtype=F64)
