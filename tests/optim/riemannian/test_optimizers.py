"""Both optimisers against the conformance suite, torch's on ordinary parameters, their formulas, and bad days."""

import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import GrassmannParameter, grassmann_exp, grassmann_project, orthonormalize, principal_angles
from hesse.optim import RiemannianAdam, RiemannianSGD
from hesse.testing import check_optimizer

F64 = torch.float64
BOTH = pytest.mark.parametrize("kind", [RiemannianSGD, RiemannianAdam])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> GrassmannParameter:
    return GrassmannParameter.random(*shape, dtype=dtype, generator=seeded(seed))


def gradient(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, dtype=F64, generator=seeded(seed))


def defect(S: torch.Tensor) -> float:
    S = S.detach()
    return float((S.mT @ S - torch.eye(S.shape[-1], dtype=S.dtype)).abs().max())


@pytest.mark.parametrize(("kind", "calm"), [(RiemannianSGD, {"lr": 1e-3}), (RiemannianAdam, {"lr": 0.05})])
def test_the_optimisers_keep_their_promises(kind, calm):
    """Oracle: the conformance suite."""
    assert len(check_optimizer(lambda params, **options: kind(params, **(calm | options)))) == 14


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_ordinary_parameters_move_as_torch_moves_them(maximize, foreach):
    """Oracle: torch.optim.SGD and AdamW, with a subspace in the same call."""
    for ours, theirs, options in (
        (RiemannianSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (RiemannianAdam, torch.optim.AdamW, {"lr": 0.1}),
    ):
        options = options | {"weight_decay": 0.01, "maximize": maximize, "foreach": foreach}
        mine, twin = (gradient(4, 3, seed=1).requires_grad_() for _ in range(2))
        S = points(5, 2)
        optimizer, peer = ours([mine, S], **options), theirs([twin], **options)
        for turn in range(4):
            mine.grad, twin.grad, S.grad = gradient(4, 3, seed=turn), gradient(4, 3, seed=turn), gradient(5, 2)
            optimizer.step()
            peer.step()
        assert torch.equal(mine, twin)


@pytest.mark.parametrize("retraction", ["exp", "qr"])
@pytest.mark.parametrize("transport", ["project", "none"])
def test_formula_of_sgd(retraction, transport):
    """Oracle: three steps by hand, from the projection, the exponential map and QR of the ground floor."""
    S = points(3, 8, 2)
    expected, B = S.detach().clone(), torch.zeros(3, 8, 2, dtype=F64)
    optimizer = RiemannianSGD(
        [S], 0.1, 0.7, retraction=retraction, transport=transport, lr_factor=2.0, reorthonormalize=0
    )
    for turn in range(3):
        S.grad = gradient(3, 8, 2, seed=turn + 1)
        optimizer.step()
        B = 0.7 * B + S.grad
        H = grassmann_project(expected, B)
        if transport == "project":
            B = H
        expected = grassmann_exp(expected, H, -0.2) if retraction == "exp" else orthonormalize(expected - 0.2 * H)
    torch.testing.assert_close(S.detach(), expected, rtol=0, atol=1e-13)


def test_formula_of_adam():
    """Oracle: three steps by hand; the first is lr radians long."""
    S = points(3, 8, 2)
    start = expected = S.detach().clone()
    M, v = torch.zeros(3, 8, 2, dtype=F64), torch.zeros(3, 1, 1, dtype=F64)
    optimizer = RiemannianAdam([S], 0.1, maximize=True)
    for turn in range(3):
        S.grad = gradient(3, 8, 2, seed=turn + 1)
        optimizer.step()
        H = grassmann_project(expected, S.grad)
        M = 0.9 * grassmann_project(expected, M) + 0.1 * H
        v = 0.999 * v + 0.001 * H.square().sum((1, 2), keepdim=True)
        step = M / (1 - 0.9 ** (turn + 1)) / ((v / (1 - 0.999 ** (turn + 1))).sqrt() + 1e-8)
        expected = grassmann_exp(expected, step, 0.1)
        if turn == 0:
            moved = torch.linalg.vector_norm(principal_angles(start, S.detach()), dim=-1)
            torch.testing.assert_close(moved, torch.full((3,), 0.1, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(S.detach(), expected, rtol=0, atol=1e-13)


def test_the_euclidean_geometry():
    """Oracle: QR of a plain gradient step."""
    S = points(6, 2)
    start = S.detach().clone()
    S.grad = gradient(6, 2)
    RiemannianSGD([S], 0.1, 0.0, manifold="euclidean").step()
    torch.testing.assert_close(S.detach(), orthonormalize(start - 0.1 * S.grad))


@BOTH
def test_dominant_subspace(kind):
    """Oracle: eigh."""
    A = torch.diag(torch.tensor([1.0, 2, 3, 4, 8, 9], dtype=F64))
    S = points(6, 2)
    options = {"lr": 0.02} if kind is RiemannianSGD else {"lr": 0.05, "betas": (0.9, 0.99)}
    optimizer = kind([S], maximize=True, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.0 if kind is RiemannianSGD else 0.99)

    def closure():
        optimizer.zero_grad()
        value = (S.mT @ A @ S).trace()
        value.backward()
        return value

    for _ in range(400):
        optimizer.step(closure)
        schedule.step()
    assert float(closure().detach()) == pytest.approx(17, abs=1e-4)
    assert float(principal_angles(S.detach(), torch.eye(6, dtype=F64)[:, 4:]).max()) < 5e-3


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_steps_stay_on_the_manifold(kind, dtype):
    """Oracle: SᵀS = I after 500 random steps; padding columns stay zero."""
    S = points(4, 10, 3, dtype=dtype)
    with torch.no_grad():
        S[1, :, 2] = 0
    optimizer = kind([S], lr=0.1)
    for turn in range(500):
        S.grad = gradient(4, 10, 3, seed=turn).to(dtype) * (S != 0).any(-2, keepdim=True)
        optimizer.step()
    assert defect(S[[0, 2, 3]]) < 20 * torch.finfo(dtype).eps
    assert defect(S[1, :, :2]) < 20 * torch.finfo(dtype).eps
    assert not bool(S[1, :, 2].any())


@BOTH
def test_a_saved_state_goes_on_the_same(kind):
    """Oracle: the run that was not interrupted, through a file read with weights_only."""
    S = points(3, 7, 2)
    optimizer = kind([S], lr=0.1)
    for turn in range(3):
        S.grad = gradient(3, 7, 2, seed=turn)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(S)
    assert isinstance(again, GrassmannParameter)
    restored = kind([again], lr=0.1)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for turn in range(3, 9):
        S.grad, again.grad = gradient(3, 7, 2, seed=turn), gradient(3, 7, 2, seed=turn)
        optimizer.step()
        restored.step()
    assert torch.equal(S, again)


def test_a_state_of_another_model_is_refused():
    """Oracle: the error promised; nothing is loaded."""
    optimizer = RiemannianSGD([points(3, 7, 2)], lr=0.1)
    other = points(3, 6, 2)
    other.grad = gradient(3, 6, 2)
    peer = RiemannianSGD([other], lr=0.2)
    peer.step()
    with pytest.raises(ShapeError, match="momentum buffer"):
        optimizer.load_state_dict(peer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not optimizer.state


@BOTH
def test_a_class_without_a_gradient_sits_out(kind):
    """Oracle: the others move as they would alone; it resumes; the third time in a row raises and names it."""
    S, alone = points(3, 7, 2), points(3, 7, 2)
    with torch.no_grad():
        alone[1] = points(7, 2, seed=9)
    optimizer, peer = kind([S], lr=0.1), kind([alone], lr=0.1)
    S.grad, alone.grad = gradient(3, 7, 2), gradient(3, 7, 2)
    optimizer.step()
    peer.step()
    kept = S[1].detach().clone()
    for turn in range(2):
        S.grad, alone.grad = gradient(3, 7, 2, seed=turn), gradient(3, 7, 2, seed=turn)
        S.grad[1, 0, 0] = math.nan
        optimizer.step()
        peer.step()
        torch.testing.assert_close(S[[0, 2]], alone[[0, 2]], rtol=0, atol=1e-14)
    torch.testing.assert_close(S[1].detach(), kept, rtol=0, atol=1e-14)
    S.grad = gradient(3, 7, 2)
    optimizer.step()
    assert float((S[1].detach() - kept).abs().max()) > 1e-3
    S.grad[1, 0, 0] = math.inf
    optimizer.step()
    optimizer.step()
    with pytest.raises(NumericalError, match=r"\[1\]"):
        optimizer.step()
    assert bool(torch.isfinite(S).all())


@BOTH
def test_another_optimiser_on_the_same_subspaces_is_noticed(kind):
    """Oracle: the error promised."""
    S = points(3, 7, 2)
    optimizers = kind([S], lr=0.1), torch.optim.SGD([S], lr=0.1)

    def steps():
        for _ in range(6):
            S.grad = gradient(3, 7, 2)
            for optimizer in optimizers:
                optimizer.step()

    with pytest.raises(ArgumentError, match="another optimiser"):
        steps()


def test_weight_decay_on_subspaces_is_ignored_with_a_warning():
    """Oracle: the step without it; a warning only where it was asked for."""
    S, twin = points(6, 2), points(6, 2)
    with pytest.warns(UserWarning, match="weight_decay"):
        optimizer = RiemannianSGD([S], lr=0.1, weight_decay=0.5)
    with pytest.warns(UserWarning, match="weight_decay"):
        RiemannianSGD([{"params": [S], "weight_decay": 0.5}], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RiemannianSGD([{"params": nn.Linear(2, 2).parameters()}, {"params": [S]}], lr=0.1, weight_decay=0.5)
        plain = RiemannianSGD([twin], lr=0.1)
    S.grad, twin.grad = gradient(6, 2), gradient(6, 2)
    optimizer.step()
    plain.step()
    assert torch.equal(S, twin)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (RiemannianSGD, {"manifold": "stiefel"}, "manifold"),
        (RiemannianSGD, {"transport": "parallel"}, "transport"),
        (RiemannianSGD, {"retraction": "cayley"}, "retraction"),
        (RiemannianSGD, {"momentum": 1.0}, "momentum"),
        (RiemannianAdam, {"reorthonormalize": 2.5}, "reorthonormalize"),
        (RiemannianAdam, {"betas": (0.9, 1.0)}, "betas"),
        (RiemannianAdam, {"eps": -1.0}, "eps"),
    ],
)
def test_bad_options(kind, options, match):
    """Oracle: the error names the argument."""
    with pytest.raises(ArgumentError, match=match):
        kind([points(5, 2)], **({"lr": 0.1} | options))


def test_half_precision_subspaces_are_refused():
    """Oracle: the error promised, at the first step."""
    S = GrassmannParameter(points(5, 2).detach().bfloat16())
    S.grad = torch.ones_like(S)
    with pytest.raises(ShapeError, match="float32 or float64"):
        RiemannianSGD([S], lr=0.1).step()
