"""The training loss: its parts, schedule and failures."""

import copy

import pytest
import torch
from torch import nn

from hesse.curvature.alignment.baselines import irm_penalty
from hesse.curvature.alignment.loss import HessianAlignmentLoss
from hesse.curvature.alignment.penalties import hessian_frobenius_penalty, hgp_penalty, hutchinson_penalty
from hesse.errors import ArgumentError, ArgumentTypeError
from tests.curvature.alignment.cases import LOSSES, domains, linear_head, loss_function, seeded


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("name", "penalty"),
    [("hgp", hgp_penalty), ("hutchinson", hutchinson_penalty), ("frobenius", hessian_frobenius_penalty)],
)
def test_sum_of_loss_and_penalty(name, penalty, loss):
    """Oracle: mean of torch's losses plus the penalty function, divided by the larger weight."""
    head, data = linear_head(), domains(loss)
    mean = torch.stack([loss_function(loss)(head(f), y) for f, y in data]).mean()
    expected = penalty(data, head, 30.0, 7.0, loss=loss)
    total, parts = HessianAlignmentLoss(head, loss, name, 30.0, 7.0)(data, 5)
    torch.testing.assert_close(total, (mean + expected) / 30)
    plain, _ = HessianAlignmentLoss(head, loss, name, 30.0, 7.0, rescale=False)(data)
    torch.testing.assert_close(plain, mean + expected)
    torch.testing.assert_close(parts["loss"], mean.detach())
    torch.testing.assert_close(parts["weighted"], expected.detach())
    torch.testing.assert_close(30 * parts["curvature"] + 7 * parts["gradient"], expected.detach())
    features = torch.cat([f for f, _ in data])
    torch.testing.assert_close(parts["feature_variance"], features.var(0, correction=0).mean())
    assert not any(part.requires_grad for part in parts.values())


def test_warm_up_and_rescaling():
    """Oracle: the schedule by hand. Weight 1 before step 3, then 20 with everything divided by 20."""
    head, data = linear_head(), domains("cross_entropy")
    criterion = HessianAlignmentLoss(head, alpha=20.0, beta=20.0, anneal_steps=3)
    base = torch.stack([loss_function("cross_entropy")(head(f), y) for f, y in data]).mean()
    one = hgp_penalty(data, head, 1.0, 1.0)
    torch.testing.assert_close(criterion(data, 2)[0], base + one)
    torch.testing.assert_close(criterion(data, 3)[0], base / 20 + one)
    assert [float(criterion(data, step)[1]["scale"]) for step in (2, 3)] == [1, 20]
    small = HessianAlignmentLoss(head, alpha=0.5, beta=0.25)
    torch.testing.assert_close(small(data)[0], base + hgp_penalty(data, head, 0.5, 0.25))  # nothing to rescale
    none = HessianAlignmentLoss(head, alpha=0.0, beta=0.0, anneal_steps=3)
    torch.testing.assert_close(none(data, 0)[0], base)


def test_penalty_by_function():
    """Oracle: the function itself, weighted."""
    head, data = linear_head(), domains("cross_entropy")
    base = torch.stack([loss_function("cross_entropy")(head(f), y) for f, y in data]).mean()
    total, parts = HessianAlignmentLoss(head, penalty=irm_penalty, alpha=4.0)(data)
    torch.testing.assert_close(total, (base + 4 * irm_penalty(data, head)) / 4)
    torch.testing.assert_close(parts["penalty"], irm_penalty(data, head).detach())


def test_options_reach_the_penalty():
    """Oracle: the penalty functions called with the same options."""
    head, data = linear_head(), domains("cross_entropy")
    sampled = HessianAlignmentLoss(
        head,
        penalty="hutchinson",
        alpha=1.0,
        beta=0.0,
        method="hutchinson",
        num_probes=5,
        common_probes=False,
        generator=seeded(4),
    )
    wanted = hutchinson_penalty(
        data, head, 1.0, 0.0, method="hutchinson", num_probes=5, common_probes=False, generator=seeded(4)
    )
    torch.testing.assert_close(sampled(data)[1]["curvature"], wanted.detach())
    leaves = [f.clone().requires_grad_() for f, _ in data]
    pairs = [(f, y) for f, (_, y) in zip(leaves, data, strict=True)]
    free = HessianAlignmentLoss(head, alpha=1.0, beta=0.0, detach_mean=False)
    by_module = torch.autograd.grad(free(pairs)[0] - free(pairs)[0].detach(), leaves)
    base = torch.stack([loss_function("cross_entropy")(head(f), y) for f, y in pairs]).mean()
    by_function = torch.autograd.grad(base + hgp_penalty(pairs, head, 1.0, 0.0, detach_mean=False), leaves)
    torch.testing.assert_close(by_module, by_function)


def test_holds_no_parameters_and_can_be_copied():
    """Oracle: the module's own lists; a copy gives the same loss."""
    head, data = linear_head(), domains("cross_entropy")
    criterion = HessianAlignmentLoss(head, alpha=1.0)
    assert list(criterion.parameters()) == []
    assert criterion.state_dict() == {}
    assert criterion.head is head
    torch.testing.assert_close(copy.deepcopy(criterion)(data)[0], criterion(data)[0])


def test_training_aligns_the_domains():
    """Oracle: the penalty itself, which 60 steps of Adam on features bring down tenfold, the head held fixed."""
    torch.manual_seed(0)
    body, head = nn.Linear(6, 5), nn.Linear(5, 3).requires_grad_(True)
    data = [(torch.randn(40, 6, generator=seeded(e)) + e, torch.arange(40) % 3) for e in range(2)]
    criterion = HessianAlignmentLoss(head, alpha=100.0, beta=100.0)
    optimizer = torch.optim.Adam(body.parameters(), lr=1e-2)
    seen = []
    for step in range(60):
        loss, parts = criterion([(body(x), y) for x, y in data], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(parts["weighted"]))
    assert seen[-1] < seen[0] / 10


def test_collapse_is_reported():
    """Oracle: constant features; the warning says what to do."""
    head, data = linear_head(), domains("cross_entropy")
    constant = [(torch.ones_like(f), y) for f, y in data]
    with pytest.warns(RuntimeWarning, match=r"collapsed.*lower alpha and beta"):
        HessianAlignmentLoss(head)(constant)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    head, data = linear_head(), domains("cross_entropy")
    with pytest.raises(ArgumentTypeError, match="head"):
        HessianAlignmentLoss(head.weight)
    with pytest.raises(ArgumentError, match="penalty must be one of"):
        HessianAlignmentLoss(head, penalty="coral")
    with pytest.raises(ArgumentError, match="loss must be one of"):
        HessianAlignmentLoss(head, "hinge")
    with pytest.raises(ArgumentError, match="method must be"):
        HessianAlignmentLoss(head, penalty="hutchinson", method="magic")
    with pytest.raises(ArgumentError, match="alpha"):
        HessianAlignmentLoss(head, alpha=-1.0)
    with pytest.raises(ArgumentError, match="one weight, alpha"):
        HessianAlignmentLoss(head, penalty=irm_penalty)
    with pytest.raises(ArgumentError, match="one weight, alpha"):
        HessianAlignmentLoss(head, penalty=irm_penalty, alpha=1.0, beta=1.0)
    with pytest.raises(ArgumentError, match="anneal_steps"):
        HessianAlignmentLoss(head, anneal_steps=-1)
    with pytest.raises(ArgumentError, match="average"):
        HessianAlignmentLoss(head, penalty="frobenius", average=lambda t: t)
    with pytest.raises(ArgumentError, match="step"):
        HessianAlignmentLoss(head)(data, -1)
    with pytest.raises(ArgumentError, match="one domain"):
        HessianAlignmentLoss(head)(data[:1])
    total, _ = HessianAlignmentLoss(head, alpha=1.0, allow_single=True)(data[:1])
    torch.testing.assert_close(total, loss_function("cross_entropy")(head(data[0][0]), data[0][1]))
