"""Traces of blocks from products with the whole matrix."""

import pytest
import torch
from torch import nn

from hesse.curvature.block_traces import block_traces
from hesse.curvature.of_loss import loss_curvature
from hesse.errors import ArgumentError, NumericalError

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def operator(loss_fn=None, dtype=F64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    x, y = torch.randn(20, 4, dtype=dtype), torch.arange(20) % 3
    loss_fn = loss_fn or (lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
    return loss_curvature(loss_fn, net, (x, y))


LAYERS = {"first": ("0.weight", "0.bias"), "second": ("2.weight", "2.bias")}


@pytest.mark.parametrize("probing", ["common", "hutch++"])
def test_blocks_and_the_whole_are_unbiased(probing):
    """Oracle: the dense float64 matrix. 60 runs: 95 % within 3 standard errors, means within 4 of theirs."""
    A = operator()
    dense = A.to_dense().detach()
    wanted = torch.tensor([dense[:25, :25].trace(), dense[25:, 25:].trace(), dense.trace()], dtype=F64)
    runs = [block_traces(A, LAYERS, num_probes=24, rtol=0, probing=probing, generator=seeded(s)) for s in range(60)]
    found = torch.stack([torch.cat([r.trace, torch.tensor([r.total])]) for r in runs])
    errors = torch.stack([torch.cat([r.standard_error, torch.tensor([r.total_error])]) for r in runs])
    assert runs[0].names == ("first", "second")
    assert runs[0].num_probes == (24, 24)
    assert float(((found - wanted).abs() <= 3 * errors).double().mean()) >= 0.95
    assert bool(((found.mean(0) - wanted).abs() <= 4 * found.std(0) / 60**0.5).all())
    torch.testing.assert_close(found[:, :2].sum(1), found[:, 2])


def test_own_probes_go_to_the_least_certain_block():
    """Oracle: the counts, and the dense blocks; the total is that of the common probes."""
    A = operator()
    plain = block_traces(A, LAYERS, num_probes=20, rtol=1e-6, probing="common", generator=seeded(1))
    own = block_traces(A, LAYERS, num_probes=20, rtol=1e-6, probing="common", num_own_probes=45, generator=seeded(1))
    assert sum(own.num_probes) == sum(plain.num_probes) + 40
    assert own.total == plain.total
    assert bool((own.standard_error / own.trace.abs()).max() < (plain.standard_error / plain.trace.abs()).max())


def test_as_many_products_as_parameters_are_exact():
    """Oracle: the dense diagonal; a block a parameter by default, in float32 too."""
    for dtype, rtol in ((F64, 1e-10), (torch.float32, 1e-5)):
        A = operator(dtype=dtype)
        found = block_traces(A, num_probes=60, rtol=0)
        diagonal = A.to_dense().detach().diagonal().double()
        wanted = [diagonal[A.layout.slice(name)].sum() for name in A.layout.names]
        torch.testing.assert_close(found.trace, torch.stack(wanted), rtol=rtol, atol=rtol)
        assert found.names == A.layout.names
        assert not found.standard_error.any()


def test_bad_arguments_are_named():
    """Oracle: the message names the argument; NaN says what gave it."""
    A = operator()
    for options, word in [
        ({"num_probes": 1}, "num_probes"),
        ({"num_probes": 5, "probing": "hutch++"}, "num_probes"),
        ({"rtol": -1}, "rtol"),
        ({"num_own_probes": -1}, "num_own_probes"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"probing": "xtrace"}, "probing"),
        ({"blocks": {"first": ("0.weight",)}}, "blocks"),
        ({"blocks": LAYERS | {"again": ("0.bias",)}}, "blocks"),
    ]:
        with pytest.raises(ArgumentError, match=word):
            block_traces(A, **options)
    broken = operator(lambda model, batch: model(batch[0]).square().mean() * float("nan"))
    with pytest.raises(NumericalError, match="NaN"):
        block_traces(broken)
