"""The M-FAC optimiser against dense algebra on its own gradients, and against the optimisers' conformance suite."""

import copy
import math

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import MFAC
from hesse.testing import check_optimizer

F64 = torch.float64
CALM = {"lr": 0.5, "window": 8, "damping": 10.0}  # on a loss without noise small damping overshoots


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "extra", [{}, {"weight_decay": 1e-3, "window": 1}, {"sparse": True}, {"momentum": 0.5, "lr": 0.9}]
)
def test_the_optimiser_keeps_its_promises(extra):
    """Oracle: the conformance suite."""
    ran = check_optimizer(lambda params, **options: MFAC(params, **(CALM | extra | options)))
    assert len(ran) == 14


def dense_steps(start, gradients, *, lr, window, damping, momentum, weight_decay):
    """Run the definition with a dense inverse: u = F⁻¹g, v ← μv + (1 - μ)u, w ← w - lr v."""
    w, held, v = start.clone(), [], torch.zeros_like(start)
    for gradient in gradients:
        g = gradient + weight_decay * w
        held = [*held, g][-window:]
        G = torch.stack(held)
        F = G.mT @ G / window + damping * torch.eye(len(g), dtype=F64)
        v = momentum * v + (1 - momentum) * torch.linalg.solve(F, g)
        w = w - lr * v
    return w


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_the_definition(momentum, weight_decay):
    """Oracle: dense float64 inverses; two parameters, a window of 4, 11 steps."""
    options = {"lr": 0.1, "window": 4, "damping": 0.01, "momentum": momentum, "weight_decay": weight_decay}
    start, gradients = torch.randn(8, generator=seeded(), dtype=F64), torch.randn(11, 8, generator=seeded(1), dtype=F64)
    a, b = start[:6].reshape(2, 3).clone().requires_grad_(), start[6:].clone().requires_grad_()
    optimizer = MFAC([a, b], **options)
    for gradient in gradients:
        a.grad, b.grad = gradient[:6].reshape(2, 3).clone(), gradient[6:].clone()
        optimizer.step()
    found = torch.cat([a.detach().reshape(-1), b.detach()])
    torch.testing.assert_close(found, dense_steps(start, gradients, **options), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("storage", [torch.float32, torch.float64, None])
def test_storage_of_the_window_is_a_matter_of_time_and_memory(storage):
    """Oracle: the definition in float64, from float32 gradients."""
    options = {"lr": 0.1, "window": 4, "damping": 0.01, "momentum": 0.5, "weight_decay": 0.0}
    gradients = torch.randn(9, 6, generator=seeded(7))
    w = torch.ones(6, requires_grad=True)
    optimizer = MFAC([w], **options, window_dtype=storage)
    for gradient in gradients:
        w.grad = gradient.clone()
        optimizer.step()
    wanted = dense_steps(torch.ones(6, dtype=F64), gradients.double(), **options)
    torch.testing.assert_close(w.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    assert optimizer.state[w]["rows"].dtype == (storage or F64)


def test_large_windows_keep_the_parameters_dtype():
    """Oracle: the limit promised, a million numbers."""
    w = torch.ones(70_000, requires_grad=True)
    w.grad = torch.ones(70_000)
    for storage, kept in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        optimizer = MFAC([w], window=16, window_dtype=storage)
        optimizer.step()
        assert optimizer.state[w]["rows"].dtype == kept


def test_groups_are_blocks():
    """Oracle: two optimisers, one a parameter."""
    gradients = torch.randn(6, 5, generator=seeded(2))
    together, apart = ([torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)] for _ in range(2))
    both = MFAC([{"params": [together[0]]}, {"params": [together[1]], "window": 2, "lr": 0.1}], lr=0.01, window=4)
    alone = [MFAC(apart[:1], lr=0.01, window=4), MFAC(apart[1:], lr=0.1, window=2)]
    for g in gradients:
        for (a, b), optimizers in ((together, [both]), (apart, alone)):
            a.grad, b.grad = g[:3].clone(), g[3:].clone()
            for optimizer in optimizers:
                optimizer.step()
    for x, y in zip(together, apart, strict=True):
        assert torch.equal(x, y)


def test_sparse_leaves_zeros_out():
    """Oracle: the definition on the coordinates that are not zero; the others stay zero, the window is smaller."""
    start = torch.tensor([1.0, 0.0, -2.0, 0.0, 3.0], dtype=F64)
    gradients = torch.randn(7, 5, generator=seeded(3), dtype=F64)
    w = start.clone().requires_grad_()
    optimizer = MFAC([w], lr=0.1, window=3, damping=0.1, momentum=0.5, sparse=True)
    for gradient in gradients:
        w.grad = gradient.clone()
        optimizer.step()
    alive = start != 0
    wanted = dense_steps(
        start[alive], gradients[:, alive], lr=0.1, window=3, damping=0.1, momentum=0.5, weight_decay=0.0
    )
    torch.testing.assert_close(w.detach()[alive], wanted)
    assert not bool(w.detach()[~alive].any())
    assert optimizer.state[w]["rows"].shape == (3, 3)


@pytest.mark.parametrize("sparse", [False, True])
def test_state_survives_another_process_bit_by_bit(sparse, tmp_path):
    """Oracle: the run that was not interrupted; the state goes through a file that holds no code."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).float()
    with torch.no_grad():
        model[0].weight[:, 1] = 0
    batches = torch.randn(20, 8, 4, generator=seeded(4))
    options = {"lr": 0.01, "window": 6, "momentum": 0.9, "sparse": sparse}

    def train(model, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            (model(x) - x[:, :2]).square().sum(1).mean().backward()
            optimizer.step()

    optimizer = MFAC(model.parameters(), **options)
    train(model, optimizer, batches[:9])
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "run.pt")
    weights, state = torch.load(tmp_path / "run.pt", weights_only=True)
    again = copy.deepcopy(model)
    again.load_state_dict(weights)
    restored = MFAC(again.parameters(), **options)
    restored.load_state_dict(state)
    train(model, optimizer, batches[9:])
    train(again, restored, batches[9:])
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_schedule_may_change_the_damping():
    """Oracle: the definition with the new damping from the fourth step on."""
    gradients = torch.randn(6, 3, generator=seeded(5), dtype=F64)
    w = torch.zeros(3, dtype=F64, requires_grad=True)
    optimizer = MFAC([w], lr=1.0, window=8, damping=0.1)
    for i, gradient in enumerate(gradients):
        if i == 3:
            optimizer.param_groups[0]["damping"] = 2.0
            kept = w.detach().clone()
        w.grad = gradient.clone()
        optimizer.step()
        if i == 3:
            F = gradients[:4].mT @ gradients[:4] / 8 + 2.0 * torch.eye(3, dtype=F64)
            torch.testing.assert_close(kept - w.detach(), torch.linalg.solve(F, gradient))


def test_bfloat16_parameters_move():
    """Oracle: the step in float32 from the same rounded gradient, to bfloat16's rounding."""
    gradient = torch.randn(16, generator=seeded(6)).bfloat16()
    narrow, wide = torch.ones(16, dtype=torch.bfloat16, requires_grad=True), torch.ones(16, requires_grad=True)
    narrow.grad, wide.grad = gradient.clone(), gradient.float()
    for w in (narrow, wide):
        MFAC([w], lr=0.5, window=4, damping=0.1).step()
    torch.testing.assert_close(narrow.detach().float(), wide.detach(), rtol=2**-7, atol=0)


def test_bad_input_is_refused_and_nothing_moves():
    """Oracle: the error classes and the names in their messages."""
    w = torch.ones(3, requires_grad=True)
    for options, name in (
        ({"lr": -1.0}, "lr"),
        ({"damping": 0.0}, "damping"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"window": 2.5}, "window"),
        ({"window": 0}, "window"),
    ):
        with pytest.raises(ArgumentError, match=name):
            MFAC([w], **options)
        with pytest.raises(ArgumentError, match=name):
            MFAC([{"params": [w], **options}])
    with pytest.raises(ArgumentTypeError, match="window_dtype"):
        MFAC([w], window_dtype=torch.int64)
    with pytest.raises(ArgumentTypeError, match="complex"):
        MFAC([torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ShapeError, match="group of its own"):
        MFAC([w, torch.ones(2, dtype=F64, requires_grad=True)])
    with pytest.raises(ArgumentError, match="sparse"):
        MFAC([torch.zeros(2, requires_grad=True)], sparse=True)
    with pytest.raises(ArgumentError, match="no parameters"):
        MFAC([{"params": []}])
    optimizer = MFAC([("first", w), ("second", b := torch.ones(2, requires_grad=True))])
    w.grad, b.grad = torch.ones(3), torch.tensor([1.0, math.inf])
    with pytest.raises(NumericalError, match="second"):
        optimizer.step()
    assert torch.equal(w.detach(), torch.ones(3))
    assert "rows" not in optimizer.state[w]
    w.grad = torch.full((3,), math.nan)
    with pytest.raises(NumericalError, match="parameter 0 of group 0"):
        MFAC([w]).step()
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ArgumentTypeError, match="sparse tensor"):
        MFAC(table.parameters()).step()
    other = MFAC([torch.ones(4, requires_grad=True)], window=2)
    other.param_groups[0]["params"][0].grad = torch.ones(4)
    other.step()
    with pytest.raises(ShapeError, match="4 coordinates for a group of 3"):
        MFAC([w]).load_state_dict(other.state_dict())
