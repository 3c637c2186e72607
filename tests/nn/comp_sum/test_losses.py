"""The losses against torch's, closed forms and finite differences."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.nn.comp_sum import CompSumLoss, comp_sum_loss, phi
from hesse.testing import check_layer

F64 = torch.float64
TAUS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def batch(n=5, rows=7, dtype=F64):
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(rows, n, generator=generator, dtype=dtype), torch.randint(n, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_at_one_it_is_cross_entropy(dtype, reduction):
    """Oracle: torch's cross-entropy, with class weights, an ignored row and trailing axes."""
    h, y = batch(dtype=dtype)
    weight = torch.linspace(0.5, 2, 5, dtype=dtype)
    y[2] = -100
    options = {"weight": weight, "reduction": reduction}
    torch.testing.assert_close(comp_sum_loss(h, y, **options), F.cross_entropy(h, y, **options))
    maps, labels = h.T.reshape(1, 5, 7, 1), y.reshape(1, 7, 1)
    torch.testing.assert_close(comp_sum_loss(maps, labels, **options), F.cross_entropy(maps, labels, **options))
    torch.testing.assert_close(comp_sum_loss(h[0], y[0], **options), F.cross_entropy(h[0], y[0], **options))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_labels_at_one(reduction):
    """Oracle: torch's cross-entropy of probabilities, weighted."""
    h, _ = batch()
    q, weight = h.flip(0).softmax(-1), torch.linspace(0.5, 2, 5, dtype=F64)
    for options in ({"reduction": reduction}, {"reduction": reduction, "weight": weight}):
        torch.testing.assert_close(comp_sum_loss(h, q, **options), F.cross_entropy(h, q, **options))


def test_members_of_the_family():
    """Oracle: the formulas in p_y, and Φ of the sum of exponentials."""
    h, y = batch()
    p = h.softmax(-1).gather(1, y[:, None]).squeeze(1)
    for tau, wanted in ((0.0, 1 / p - 1), (1.7, (1 - p**0.7) / 0.7), (2.0, 1 - p)):
        torch.testing.assert_close(comp_sum_loss(h, y, tau, reduction="none"), wanted)
    for tau in TAUS:
        torch.testing.assert_close(comp_sum_loss(h, y, tau, reduction="none"), phi(1 / p - 1, tau))


@pytest.mark.parametrize("tau", TAUS)
def test_gradients(tau):
    """Oracle: central differences, and p_y^{τ-1} (p - e_y) with logits of ±200."""
    h, y = batch(rows=3)
    q = h.flip(0).softmax(-1)
    assert torch.autograd.gradcheck(lambda x: comp_sum_loss(x, y, tau), h.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: comp_sum_loss(x, q, tau), h)
    far = torch.tensor([[200.0, -200, 0, 3, -1]] * 5, dtype=F64, requires_grad=True)
    labels = torch.arange(5)
    (found,) = torch.autograd.grad(comp_sum_loss(far, labels, tau, reduction="sum"), far)
    log_p = far.detach().log_softmax(-1)
    wanted = torch.exp((tau - 1) * log_p.diagonal())[:, None] * (log_p.exp() - torch.eye(5, dtype=F64))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", TAUS)
def test_far_logits_stay_finite(tau):
    """Oracle: loss and gradient are numbers where e^u is not."""
    for dtype in (torch.float32, F64):
        h = torch.tensor([[1e4, -1e4]], dtype=dtype, requires_grad=True)
        loss = comp_sum_loss(h, torch.tensor([1]), tau)
        loss.backward()
        assert loss.isfinite()
        assert h.grad is not None
        assert h.grad.isfinite().all()


def test_half_precision():
    """Oracle: the float32 loss of the same logits, to half precision."""
    h, y = batch(dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        half = h.to(dtype)
        found = comp_sum_loss(half, y, 1.5)
        assert found.dtype == dtype
        torch.testing.assert_close(found, comp_sum_loss(half.float(), y, 1.5).to(dtype))


def test_decreasing_in_tau_and_continuous_at_one():
    """Oracle: Φ falls as τ grows, and τ = 1 is the limit from both sides."""
    u = torch.logspace(-6, 2, 30, dtype=F64)
    values = torch.stack([phi(u, tau) for tau in TAUS])
    assert bool((values.diff(dim=0) < 0).all())
    for tau in (1 - 1e-7, 1 + 1e-7):
        torch.testing.assert_close(phi(u, tau), torch.log1p(u), rtol=1e-6, atol=0)


def test_nothing_left():
    """Oracle: all rows ignored, or no rows, is a loss of zero with gradients of zero."""
    h = batch()[0].requires_grad_()
    loss = comp_sum_loss(h, torch.full((7,), -100))
    loss.backward()
    assert h.grad is not None
    assert float(loss.detach()) == 0
    assert not h.grad.any()
    assert float(comp_sum_loss(h.detach()[:0], torch.zeros(0, dtype=torch.long))) == 0


def test_bad_input():
    """Oracle: the documented errors."""
    h, y = batch()
    median: Any = "median"
    for tau in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="tau"):
            comp_sum_loss(h, y, tau)
    with pytest.raises(ArgumentError, match="at least 2 classes"):
        comp_sum_loss(h[:, :1], torch.zeros(7, dtype=torch.long))
    with pytest.raises(ArgumentError, match="labels 0 to 4"):
        comp_sum_loss(h, y + 5)
    with pytest.raises(ArgumentError, match="reduction"):
        comp_sum_loss(h, y, reduction=median)
    with pytest.raises(ArgumentTypeError, match="floating"):
        comp_sum_loss(h.long(), y)
    with pytest.raises(ArgumentTypeError, match="bool"):
        comp_sum_loss(h, y > 2)
    for target in (y[:3], h[:, :3]):
        with pytest.raises(ShapeError, match="target"):
            comp_sum_loss(h, target)
    with pytest.raises(ShapeError, match="weight"):
        comp_sum_loss(h, y, weight=torch.ones(3))
    with pytest.raises(ShapeError, match="scalar"):
        comp_sum_loss(h[0, 0], y[0])
    with pytest.raises(ArgumentError, match="entries >= 0"):
        phi(torch.tensor([-1.0]), 1.0)
    with pytest.raises(ArgumentError, match="tau"):
        CompSumLoss(-1.0)


def test_module_is_the_function():
    """Oracle: the function; and the layer checks, all but that of parameters, of which a loss has none."""
    h, y = batch()
    weight = torch.linspace(1, 2, 5, dtype=F64)
    module = CompSumLoss(1.5, weight=weight, ignore_index=1, reduction="sum")
    wanted = comp_sum_loss(h, y, 1.5, weight=weight, ignore_index=1, reduction="sum")
    torch.testing.assert_close(module(h, y), wanted)
    assert "tau=1.5" in repr(module)
    check_layer(lambda: CompSumLoss(1.5, reduction="none"), (5,), (5,), skip={"parameter_gradients"})
