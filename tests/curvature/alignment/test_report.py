"""Distances between domains against dense matrices, float64."""

import pytest
import torch
from torch import nn

from hesse.curvature.alignment.report import alignment_report, head_inputs
from hesse.errors import ArgumentError, ArgumentTypeError
from tests.curvature.alignment.cases import LOSSES, dense, domains, linear_head, loss_function, seeded


def network(*, bias=True, wrap=False):
    torch.manual_seed(0)
    head = linear_head(5, 4, bias=bias)
    body = nn.Sequential(nn.Linear(7, 5), nn.ReLU(inplace=True)).double()
    return nn.Sequential(body, nn.Sequential(head) if wrap else head)


@pytest.mark.parametrize("sizes", [(9, 12, 5), (40, 30, 35)])  # fewer examples than parameters, and more
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_distances_are_those_of_dense_matrices(loss, bias, sizes):
    """Oracle: dense autograd Hessians and gradients, their norms by LAPACK; closed forms and autograd alike."""
    data = domains(loss, sizes=sizes)
    for wrap in (False, True):
        net = network(bias=bias, wrap=wrap)
        head = net[1][0] if wrap else net[1]
        found = alignment_report(net, net[1], data, loss=loss, generator=seeded(0))
        parts = [dense(head, net[0](x).detach(), y, loss) for x, y in data]
        assert found.pairs == ((0, 1), (0, 2), (1, 2))
        assert found.converged
        for i, (e, f) in enumerate(found.pairs):
            (g, h), (g_f, h_f) = parts[e], parts[f]
            gap = h - h_f
            # the Frobenius norm is the root of a difference: where H_e = H_f rounding leaves 1e-8
            for value, wanted in (
                (found.spectral, torch.linalg.matrix_norm(gap, ord=2)),
                (found.frobenius, gap.norm()),
                (found.diagonal, gap.diagonal().norm()),
                (found.gradient, (g - g_f).norm()),
                (found.gradient_product, (h @ g - h_f @ g_f).norm()),
            ):
                torch.testing.assert_close(value[i], wanted, rtol=1e-7, atol=1e-7)
        losses = torch.stack([loss_function(loss)(net(x), y) for x, y in data]).detach()
        torch.testing.assert_close(found.losses, losses)
        torch.testing.assert_close(found.attributes["loss"][0], (losses[0] - losses[1]).abs())


@pytest.mark.parametrize("sizes", [(9, 12, 5), (40, 30, 35)])  # fewer examples than parameters, and more
def test_attributes_add_up(sizes):
    """Oracle: Pythagoras over the blocks of gradient and Hessian; the blocks themselves by loops."""
    net, data = network(), domains("cross_entropy", sizes=sizes)
    found = alignment_report(net, net[1], data)
    a = found.attributes
    torch.testing.assert_close(a["error_weighted_means"].square() + a["errors"].square(), found.gradient.square())
    blocks = a["second_moments"].square() + 2 * a["curvature_weighted_means"].square() + a["confidence"].square()
    torch.testing.assert_close(blocks, found.frobenius.square())
    confidence = []
    for x, _ in data[:2]:
        p = net(x).detach().softmax(1)
        confidence.append(torch.stack([row.diag() - torch.outer(row, row) for row in p]).mean(0))
    torch.testing.assert_close(a["confidence"][0], (confidence[0] - confidence[1]).norm())
    assert {"scale_derivative", "gradient_variance"} <= set(a)


def test_loss_by_function():
    """Oracle: the same loss by name, in float32, which a function of the caller's own is computed in."""
    net = network().float()
    data = [(x.float(), y) for x, y in domains("cross_entropy")]
    by_name = alignment_report(net, net[1], data)
    by_function = alignment_report(net, net[1], data, loss=loss_function("cross_entropy"))
    for name in ("spectral", "frobenius", "diagonal", "gradient", "gradient_product", "losses"):
        torch.testing.assert_close(getattr(by_function, name), getattr(by_name, name), rtol=1e-4, atol=1e-5)
    assert set(by_function.attributes) == {"loss", "scale_derivative", "gradient_variance"}


def test_explain_names_every_distance():
    """Oracle: the report's own fields; one block a pair."""
    net, data = network(), domains("cross_entropy")
    found = alignment_report(net, net[1], data)
    text = found.explain()
    assert text.count("domains ") == 3
    for name in (*found.attributes, "spectral", "frobenius", "diagonal", "gradient_product"):
        assert text.count(f" {name} ") == 3
    assert f"{float(found.spectral[2]):.4g}" in text


def test_nearly_equal_domains_in_float32():
    """Oracle: dense float64. The Hessians differ by less than the rounding of their products in float32."""
    (x, y), *_ = domains("cross_entropy", sizes=(600, 5))
    for wrap in (False, True):
        net = network(wrap=wrap).float()
        pair = [(x.float(), y), (x.float() + 1e-6, y)]
        found = alignment_report(net, net[1], pair)
        assert found.spectral.dtype == torch.float32
        head = net[1][0] if wrap else net[1]
        features = [net[0](inputs).detach().double() for inputs, _ in pair]
        one, other = (dense(head.double(), f, y, "cross_entropy")[1] for f in features)
        wanted = float(torch.linalg.matrix_norm(one - other, ord=2))
        # closed forms work in float64; a head of another kind in its own precision
        assert float(found.spectral) == pytest.approx(wanted, rel=1e-3, abs=0 if not wrap else 1e-6)


def test_same_domain_twice_is_aligned():
    """Oracle: closed form, zero."""
    net, data = network(), domains("cross_entropy")
    found = alignment_report(net, net[1], [data[0], data[0]])
    for value in (found.spectral, found.frobenius, found.diagonal, found.gradient, *found.attributes.values()):
        assert float(value.abs().max()) < 1e-7


def test_head_inputs_are_what_the_head_saw():
    """Oracle: the layers below called by hand, with their graph; the hook is gone afterwards."""
    net, ((x, _), *_) = network(), domains("cross_entropy")
    features = head_inputs(net, net[1], x)
    torch.testing.assert_close(features, net[0](x))
    assert features.requires_grad
    assert not net[1]._forward_hooks


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    net, data = network(), domains("cross_entropy")
    with pytest.raises(ArgumentError, match="one domain"):
        alignment_report(net, net[1], data[:1])
    with pytest.raises(ArgumentError, match="called 0 times"):
        alignment_report(net, nn.Linear(5, 4), data)
    with pytest.raises(ArgumentError, match="last in the network"):
        alignment_report(net, net[0], data)
    with pytest.raises(ArgumentTypeError, match="head must be a module"):
        head_inputs(net, net[1].weight, data[0][0])
    with pytest.raises(ArgumentTypeError, match="module must be"):
        head_inputs(len, net[1], data[0][0])
