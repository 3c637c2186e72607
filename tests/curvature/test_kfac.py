"""Kronecker factors: running sums, their eigenbases, and when the block they stand for is exact."""

import pytest
import torch
from torch import nn

from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.kfac import (
    InputFactor,
    OutputFactor,
    add_gram_,
    eigendecompose,
    mirror_,
    reduce_positions,
)
from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError, NumericalError

F64 = torch.float64


def rows_of(bias=True, mask=None, seed=0, shape=(3, 4)):
    """Captured rows of a 5 -> 2 layer, with gradients that are zero outside the mask."""
    (layer,) = select_layers(nn.Sequential(nn.Linear(5, 2, bias=bias))).values()
    generator = torch.Generator().manual_seed(seed)
    x, d = (torch.randn(*shape, n, generator=generator, dtype=F64) for n in (5, 2))
    return Captured(layer, x, d if mask is None else d * mask[..., None], mask, "0")


@pytest.mark.parametrize("n", [7, 300, 1030])
def test_add_gram_gives_the_upper_triangle(n):
    """Oracle: XᵀX added to what was there, after mirroring."""
    x = torch.randn(20, n, dtype=F64)
    total = torch.zeros(n, n, dtype=F64)
    add_gram_(total, x)
    add_gram_(total, x)
    torch.testing.assert_close(mirror_(total), 2 * x.T @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_factors_are_sums_over_the_positions_that_count(bias, masked):
    """Oracle: outer products in a loop over positions, with 1 appended for the bias."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool() if masked else None
    rows = rows_of(bias, mask)
    a = InputFactor.zeros(rows.layer.columns, dtype=F64, device=torch.device("cpu"))
    s = OutputFactor.zeros(2, dtype=F64, device=torch.device("cpu"))
    a.add_(rows)
    s.add_(rows)
    s.add_(rows, count=False)
    wanted_a, wanted_s, count = torch.zeros_like(a.total), torch.zeros_like(s.total), 0
    for b in range(3):
        for t in range(4):
            if mask is not None and not mask[b, t]:
                continue
            x = rows.inputs[b, t]
            x = torch.cat([x, torch.ones(1, dtype=F64)]) if bias else x
            wanted_a += torch.outer(x, x)
            wanted_s += 2 * torch.outer(rows.grads[b, t], rows.grads[b, t])
            count += 1
    torch.testing.assert_close(mirror_(a.total), wanted_a)
    torch.testing.assert_close(mirror_(s.total), wanted_s)
    assert (a.count, s.count) == (count, count)


def test_low_precision_rows_are_summed_in_the_factor_s_dtype():
    """Oracle: the float64 sum of the bfloat16 rows, to float32 rounding."""
    rows = rows_of(shape=(50, 40))
    low = Captured(rows.layer, rows.inputs.bfloat16(), rows.grads.bfloat16(), None, "0")
    factor = InputFactor.zeros(6, dtype=torch.float32, device=torch.device("cpu"))
    factor.add_(low)
    x = torch.cat([low.inputs.flatten(0, 1).double(), torch.ones(2000, 1, dtype=F64)], 1)
    torch.testing.assert_close(mirror_(factor.total).double(), x.T @ x, rtol=1e-5, atol=1e-2)


def test_eigendecompose_gives_back_the_matrix():
    """Oracle: the matrix itself; Q orthogonal, eigenvalues rising."""
    x = torch.randn(20, 7, dtype=F64)
    eigen = eigendecompose(x.T @ x, 20, name="x")
    q = eigen.vectors
    torch.testing.assert_close(q @ torch.diag(eigen.values) @ q.T, x.T @ x / 20, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.T @ q, torch.eye(7, dtype=F64))
    assert bool((eigen.values.diff() >= 0).all())


def test_eigendecompose_in_float32_agrees_with_float64():
    """Oracle: the float64 decomposition: eigenvalues to float32 rounding of the largest, the matrix put together."""
    x = torch.randn(60, 20, dtype=F64)
    total = (x.T @ x).float()
    single = eigendecompose(total, 60, name="x", dtype=torch.float32)
    wanted = eigendecompose(total, 60, name="x")
    assert single.values.dtype == single.vectors.dtype == torch.float32
    torch.testing.assert_close(single.values.double(), wanted.values, rtol=0, atol=1e-5)
    q = single.vectors.double()
    torch.testing.assert_close(q @ torch.diag(single.values.double()) @ q.T, total.double() / 60, rtol=0, atol=1e-5)


def test_negative_rounding_is_clipped_and_the_input_may_be_single():
    """Oracle: a rank-one float32 sum has one positive eigenvalue and no negative one."""
    x = torch.randn(1, 6)
    eigen = eigendecompose(x.T @ x, 1, name="x")
    assert eigen.values.dtype == F64
    assert bool((eigen.values >= 0).all())
    torch.testing.assert_close(eigen.values[-1].float(), x.square().sum())


def test_sums_that_cannot_be_used_are_refused():
    """Oracle: the error, naming layer and factor."""
    with pytest.raises(ArgumentError, match=r"l \(A\) has seen no position"):
        eigendecompose(torch.eye(2), 0, name="l (A)")
    with pytest.raises(NumericalError, match="l holds NaN"):
        eigendecompose(torch.full((2, 2), float("nan")), 1, name="l")


@pytest.mark.parametrize("masked", [True, False])
def test_reduce_means_inputs_and_sums_gradients(masked):
    """Oracle: a loop over sequences."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]).bool() if masked else None
    rows = rows_of(mask=mask)
    reduced = reduce_positions(rows)
    assert reduced.mask is None
    for b in range(3):
        kept = slice(None) if mask is None else mask[b]
        torch.testing.assert_close(reduced.inputs[b, 0], rows.inputs[b][kept].mean(0))
        torch.testing.assert_close(reduced.grads[b, 0], rows.grads[b][kept].sum(0))


def test_the_block_of_a_deep_linear_net_is_exact():
    """Oracle: dense JᵀJ / N in float64. With squared loss and no activation δ does not depend on the example."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2)).to(F64)
    x = torch.randn(20, 4, dtype=F64)
    layers = select_layers(net)
    a = {n: InputFactor.zeros(layer.columns, dtype=F64, device=x.device) for n, layer in layers.items()}
    s = {n: OutputFactor.zeros(layer.out_features, dtype=F64, device=x.device) for n, layer in layers.items()}
    first = True

    def consume(rows):
        if first:
            a[rows.layer.name].add_(rows)
        s[rows.layer.name].add_(rows, count=first)

    with dgrad_only(net), LayerStream(layers, consume) as stream, stream.batch():
        outputs = net(x)
        for column in range(2):  # the output Hessian is the identity
            cotangent = torch.zeros_like(outputs)
            cotangent[:, column] = 1
            stream.backward(outputs, cotangent, keep=True)
            first = False
    for name, layer in layers.items():
        dense = torch.zeros(layer.out_features * layer.columns, layer.out_features * layer.columns, dtype=F64)
        for n in range(20):
            for output in net(x[n]):
                grads = torch.autograd.grad(output, list(net.parameters()), retain_graph=True)
                named = dict(zip([key for key, _ in net.named_parameters()], grads, strict=True))
                row = layer.matrix_from_grads(named).reshape(-1)
                dense += torch.outer(row, row) / 20
        kronecker = torch.kron(mirror_(s[name].total) / s[name].count, mirror_(a[name].total) / a[name].count)
        torch.testing.assert_close(kronecker, dense, rtol=1e-10, atol=1e-12)
