"""Closed forms of a linear head against the dense derivatives of autograd, float64."""

import pytest
import torch

from hesse.curvature.alignment.linear_head import head_gradient, head_hessian, head_hessian_diag, head_hvp
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_linear_operator
from tests.curvature.alignment.cases import F64, LOSSES, dense, domains, linear_head, seeded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_product_and_diagonal_are_those_of_autograd(loss, bias):
    """Oracle: torch.autograd.functional.hessian, K = 4 and P = 7, three domains, to 1e-10."""
    head = linear_head(bias=bias)
    for features, targets in domains(loss):
        gradient, hessian = dense(head, features, targets, loss)
        logits = head(features).detach()
        shape = (4, 7 + bias)
        v = torch.randn(shape, generator=seeded(3), dtype=F64)
        given = (features, logits, targets, loss)
        torch.testing.assert_close(head_gradient(*given, bias=bias), gradient.view(shape), rtol=0, atol=1e-10)
        torch.testing.assert_close(
            head_hvp(*given, v, bias=bias), (hessian @ v.flatten()).view(shape), rtol=0, atol=1e-10
        )
        torch.testing.assert_close(
            head_hessian_diag(*given, bias=bias), hessian.diagonal().view(shape), rtol=0, atol=1e-10
        )
        torch.testing.assert_close(head_hessian(*given, bias=bias).to_dense(), hessian, rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_hessian_is_a_linear_operator(loss):
    """Oracle: the conformance suite for operators."""
    (features, targets), *_ = domains(loss)
    check_linear_operator(head_hessian(features, linear_head()(features).detach(), targets, loss))


def test_stacked_directions_are_multiplied_one_by_one():
    """Oracle: a loop over the stack."""
    (features, targets), *_ = domains("cross_entropy")
    given = (features, linear_head()(features).detach(), targets, "cross_entropy")
    stack = torch.randn(2, 3, 4, 8, generator=seeded(0), dtype=F64)
    loop = torch.stack([torch.stack([head_hvp(*given, v) for v in row]) for row in stack])
    torch.testing.assert_close(head_hvp(*given, stack), loop, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_three_are_differentiable_in_features_logits_and_direction(loss):
    """Oracle: finite differences."""
    (features, targets), *_ = domains(loss, sizes=(5, 6))
    features, logits = features.requires_grad_(), linear_head()(features).detach().requires_grad_()
    v = torch.randn(4, 8, generator=seeded(3), dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, z: head_gradient(f, z, targets, loss), (features, logits))
    assert torch.autograd.gradcheck(lambda f, z: head_hessian_diag(f, z, targets, loss), (features, logits))
    assert torch.autograd.gradcheck(lambda f, z, d: head_hvp(f, z, targets, loss, d), (features, logits, v))


def test_hutchinson_is_within_its_standard_error_of_exact():
    """Oracle: the exact diagonal; with 2000 probes 200 runs scatter as σ/√2000, and few leave three of these."""
    (features, targets), *_ = domains("cross_entropy")
    given = (features, linear_head()(features).detach(), targets, "cross_entropy")
    exact = head_hessian_diag(*given)
    dense_matrix = head_hessian(*given).to_dense()
    variance = (dense_matrix.square().sum(1) - dense_matrix.diagonal().square()) / 2000  # known for sign vectors
    error = variance.view(4, 8).sqrt()
    runs = torch.stack(
        [head_hessian_diag(*given, method="hutchinson", num_probes=2000, generator=seeded(s)) for s in range(200)]
    )
    standardised = (runs - exact) / error
    assert float((standardised.abs() <= 3).double().mean()) >= 0.99
    assert float((standardised.mean(0) * 200**0.5).abs().max()) <= 4
    torch.testing.assert_close(standardised.std(0), torch.ones(4, 8, dtype=F64), rtol=0, atol=0.25)


def test_binary_logits_may_be_a_vector():
    """Oracle: the same logits as a column; and the closed form mean of p (1 - p) a²."""
    (features, _), *_ = domains("squared_error")
    logits = torch.randn(len(features), generator=seeded(0), dtype=F64)
    targets = torch.arange(len(features)) % 2  # integers will do
    diagonal = head_hessian_diag(features, logits, targets, "binary_cross_entropy")
    as_column = head_hessian_diag(features, logits.unsqueeze(1), targets.unsqueeze(1), "binary_cross_entropy")
    p = logits.sigmoid()
    torch.testing.assert_close(diagonal, as_column, rtol=0, atol=0)
    torch.testing.assert_close(diagonal[0, :7], (p * (1 - p)) @ features.square() / len(features))
    torch.testing.assert_close(diagonal[0, 7], (p * (1 - p)).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """Oracle: float64 on the rounded inputs, to float32 rounding."""
    (features, targets), *_ = domains("cross_entropy")
    logits = linear_head()(features).detach().to(dtype)
    features = features.to(dtype)
    found = head_hessian_diag(features, logits, targets)
    assert found.dtype == torch.float32
    wanted = head_hessian_diag(features.double(), logits.double(), targets)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_reach_the_closed_forms():
    """Oracle: the same call outside of autocast, bit for bit."""
    (features, targets), *_ = domains("cross_entropy")
    features, logits = features.float(), linear_head()(features).detach().float()
    gradient = head_gradient(features, logits, targets)
    product = head_hvp(features, logits, targets, "cross_entropy", gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head_gradient(features, logits, targets), gradient)
        assert torch.equal(head_hvp(features, logits, targets, "cross_entropy", gradient), product)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    features, logits, targets = torch.ones(3, 2), torch.ones(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ArgumentError, match="loss must be one of"):
        head_gradient(features, logits, targets, "hinge")
    with pytest.raises(ArgumentError, match="0 … 3, got 0 … 4"):
        head_gradient(features, logits, torch.tensor([0, 1, 4]))
    with pytest.raises(ArgumentTypeError, match="class numbers"):
        head_gradient(features, logits, targets.float())
    with pytest.raises(ArgumentTypeError, match="targets must be a tensor"):
        head_gradient(features, logits, [0, 1, 2])
    with pytest.raises(ShapeError, match="targets of shape"):
        head_gradient(features, logits, targets[:2])
    with pytest.raises(ShapeError, match="targets of shape"):
        head_gradient(features, logits, targets, "squared_error")
    with pytest.raises(ArgumentError, match=r"\[0, 1\]"):
        head_gradient(features, logits[:, :1], torch.tensor([0.0, 1.0, 2.0]), "binary_cross_entropy")
    with pytest.raises(ShapeError, match="logits of shape"):
        head_gradient(features, logits[:2], targets[:2])
    with pytest.raises(ShapeError, match="features of shape"):
        head_gradient(features[0], logits, targets)
    with pytest.raises(ArgumentTypeError, match="features must be"):
        head_gradient(features.long(), logits, targets)
    with pytest.raises(ArgumentError, match="no examples"):
        head_gradient(features[:0], logits[:0], targets[:0])
    with pytest.raises(ShapeError, match="head_hvp: expected v"):
        head_hvp(features, logits, targets, "cross_entropy", torch.ones(4, 2))
    with pytest.raises(ArgumentError, match="method"):
        head_hessian_diag(features, logits, targets, method="magic")
    with pytest.raises(ArgumentError, match="num_probes"):
        head_hessian_diag(features, logits, targets, method="hutchinson", num_probes=1)
