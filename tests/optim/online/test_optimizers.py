"""The online optimisers: their protocol, their conformance, and that they play what the pure functions play."""

import copy
import io
import math
import warnings

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg import Ball, Box, Simplex
from hesse.optim import (
    DynamicOMD,
    OOMDRules,
    OptimisticOMD,
    dynamic_init,
    dynamic_play,
    dynamic_round,
    oomd_init,
    oomd_round,
)
from hesse.testing import check_optimizer

F64 = torch.float64
BALL = Ball(1.0)


def drive(optimizer, problem):
    optimizer.play()
    optimizer.zero_grad()
    problem.loss().backward()
    optimizer.step()


COMMON = {"diameter": 2.0, "projection": Box(-2.0, 2.0)}
CASES = {
    "convex": (OptimisticOMD, {}, []),
    "capped": (OptimisticOMD, {"grad_bound": 300.0, "smoothness": 0.5}, []),
    # Rosenbrock's function is not strongly convex, and steps of 2/(λt) need that
    "strongly-convex": (OptimisticOMD, {"geometry": "strongly-convex", "strong": 2.0}, ["decreases_rosenbrock"]),
    "exp-concave": (OptimisticOMD, {"geometry": "exp-concave", "grad_bound": 300.0, "exp_concavity": 1e-3}, []),
    "dynamic": (DynamicOMD, {"grad_bound": 300.0, "horizon": 100}, []),
}


@pytest.mark.filterwarnings("ignore:.*exceeds grad_bound.*")  # Rosenbrock's gradients reach 1,600 in a corner
@pytest.mark.parametrize("name", list(CASES))
def test_the_optimiser_keeps_its_promises(name):
    """Oracle: the conformance suite, driven by play and step."""
    kind, extra, skip = CASES[name]
    ran = check_optimizer(lambda params, **options: kind(params, **(COMMON | extra | options)), drive=drive, skip=skip)
    assert len(ran) == 13 - len(skip)


def gradients(rounds, n, seed=0):
    return torch.randn(rounds, n, dtype=F64, generator=torch.Generator().manual_seed(seed))


def feed(optimizer, params, grads):
    """Hand the optimiser the gradients, whatever it plays; the flat points."""
    plays = []
    for grad in grads:
        optimizer.play()
        plays.append(torch.cat([p.detach().reshape(-1) for p in params]))
        for p, piece in zip(params, grad.split([p.numel() for p in params]), strict=True):
            p.grad = piece.reshape(p.shape).to(p.dtype)
        optimizer.step()
    return torch.stack(plays)


def two_tensors(dtype=F64):
    return [torch.zeros(2, 2, dtype=dtype, requires_grad=True), torch.zeros(3, dtype=dtype, requires_grad=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"projection": BALL, "smoothness": 0.3},
        {"projection": BALL, "geometry": "strongly-convex", "strong": 0.5},
        {"projection": BALL, "geometry": "exp-concave", "exp_concavity": 0.5, "grad_bound": 9.0},
        {"geometry": "entropic"},
        {"prox": lambda y, eta: BALL(y)},
    ],
)
def test_plays_what_the_rounds_play(options):
    """Oracle: oomd_round on the flat vector, bit by bit; the average is that of the points."""
    params, grads = two_tensors(), gradients(12, 7)
    optimizer = OptimisticOMD(params, diameter=2.0, **options)
    found = feed(optimizer, params, grads)
    rules = OOMDRules(2.0, **options)
    state, wanted = oomd_init(rules, torch.zeros(7, dtype=F64)), []
    for grad in grads:
        wanted.append(state.play)
        state = oomd_round(rules, state, grad)
    assert torch.equal(found, torch.stack(wanted))
    (average,) = optimizer.average()
    assert [a.shape for a in average] == [p.shape for p in params]
    torch.testing.assert_close(torch.cat([a.reshape(-1) for a in average]), found.mean(0))


def test_dynamic_plays_what_the_rounds_play():
    """Oracle: dynamic_round on the flat vector; after the horizon a new ensemble of twice the length begins there."""
    params, grads = two_tensors(), gradients(20, 7)
    optimizer = DynamicOMD(params, diameter=2.0, grad_bound=9.0, smoothness=0.3, projection=BALL, horizon=8)
    found = feed(optimizer, params, grads)
    rules = OOMDRules(2.0, 9.0, 0.3, projection=BALL)
    state, wanted = dynamic_init(rules, torch.zeros(7, dtype=F64), 8), []
    for t, grad in enumerate(grads):
        wanted.append(state.play)
        state = dynamic_round(rules, state, grad)
        if t == 7:
            state = dynamic_play(rules, dynamic_init(rules, wanted[-1], 16), grad)
    assert torch.equal(found, torch.stack(wanted))
    assert optimizer.horizon == [16]
    assert [s.shape for s in optimizer.step_sizes] == [w.shape for w in optimizer.weights]
    torch.testing.assert_close(optimizer.weights[0].sum(), torch.ones((), dtype=F64))


def test_unknown_horizon_doubles_and_widens():
    """Oracle: epochs of 64, 128, ... rounds by counting; the new pool is made for the largest gradient seen."""
    x = torch.zeros(2, dtype=F64, requires_grad=True)
    optimizer = DynamicOMD([x], diameter=2.0, grad_bound=1.0, projection=BALL)
    first = float(optimizer.step_sizes[0][0])
    grads = gradients(64, 2)
    grads = 3 * grads / grads.norm(dim=-1, keepdim=True)
    with pytest.warns(UserWarning, match="exceeds grad_bound=1") as caught:
        feed(optimizer, [x], grads)
    assert len(caught) == 1
    assert optimizer.horizon == [128]
    assert float(optimizer.step_sizes[0][0]) == pytest.approx(first / 3 / math.sqrt(2))


def test_a_gradient_above_the_bound_widens_it():
    """Oracle: the step size afterwards, D/√(4‖g‖² + V); one warning a group, none on the bound itself."""
    x = torch.zeros(1, dtype=F64, requires_grad=True)
    optimizer = OptimisticOMD([x], diameter=2.0, grad_bound=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(optimizer, [x], torch.ones(1, 1, dtype=F64))
    with pytest.warns(UserWarning, match="exceeds grad_bound=1 of group 0") as caught:
        feed(optimizer, [x], torch.tensor([[5.0], [6.0]], dtype=F64))
    assert len(caught) == 1
    center = optimizer.state[x]["center"].clone()
    optimizer.play()
    V = 1 + 16 + 1
    torch.testing.assert_close(x.detach(), center - 2 / math.sqrt(4 * 36 + V) * 6)


def test_protocol():
    """Oracle: the documented order of calls; play twice asks for the hint anew, step twice is an error."""
    x = torch.zeros(2, dtype=F64, requires_grad=True)
    asked = []

    def hint(last, t):
        asked.append((last.tolist(), t))
        return torch.ones_like(last)

    optimizer = OptimisticOMD([x], diameter=2.0, grad_bound=2.0, hint=hint)
    with pytest.raises(ArgumentError, match="no point is in play"):
        optimizer.step()
    with pytest.raises(ArgumentError, match="nothing has been played"):
        optimizer.average()
    optimizer.play()
    optimizer.play()
    assert asked == [([0.0, 0.0], 1)] * 2
    torch.testing.assert_close(x.detach(), torch.full((2,), -0.5, dtype=F64))  # D/√(4G²) times the hint
    x.grad = torch.tensor([1.0, 0.0], dtype=F64)
    optimizer.step()
    with pytest.raises(ArgumentError, match="no point is in play"):
        optimizer.step()
    optimizer.play()
    assert asked[-1] == ([1.0, 0.0], 2)


def test_closure_is_a_whole_round():
    """Oracle: the same rounds call by call."""
    target = torch.tensor([0.3, -0.2], dtype=F64)
    ends = []
    for by_closure in (True, False):
        x = torch.zeros(2, dtype=F64, requires_grad=True)
        optimizer = OptimisticOMD([x], diameter=2.0)

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (x - target).square().sum()
            loss.backward()
            return loss

        for _ in range(5):
            if by_closure:
                assert float(optimizer.step(closure).detach()) == float((x.detach() - target).square().sum())
            else:
                optimizer.play()
                closure()
                assert optimizer.step() is None
        ends.append(x.detach().clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", [OptimisticOMD, DynamicOMD])
def test_a_bad_gradient_changes_nothing(kind):
    """Oracle: the state before, and the run that never saw it."""
    params, grads = two_tensors(), gradients(4, 7)
    optimizer = kind([{"params": [p]} for p in params], diameter=2.0, grad_bound=9.0)
    for grad in grads:
        optimizer.play()
        before = copy.deepcopy(optimizer.state_dict())
        params[0].grad, params[1].grad = grad[:4].reshape(2, 2), torch.full((3,), math.nan, dtype=F64)
        with pytest.raises(NumericalError, match="parameter 0 of group 1 has NaN or Inf"):
            optimizer.step()
        for one, other in zip(before["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
            assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)
        params[1].grad = grad[4:]
        optimizer.step()
    for p, part in zip(params, (slice(0, 4), slice(4, 7)), strict=True):
        alone = [torch.zeros_like(p).requires_grad_()]
        feed(kind(alone, diameter=2.0, grad_bound=9.0), alone, grads[:, part])
        assert torch.equal(alone[0].detach(), p.detach())


def test_groups_are_players_of_their_own():
    """Oracle: one optimiser each, with its own diameter and set."""
    params, grads = two_tensors(), gradients(6, 7)
    settings = [{"diameter": 2.0, "projection": BALL}, {"diameter": 1.0, "geometry": "entropic"}]
    together = OptimisticOMD([{"params": [p], **s} for p, s in zip(params, settings, strict=True)], diameter=9.0)
    found = feed(together, params, grads)
    for part, (p, setting) in zip((slice(0, 4), slice(4, 7)), zip(params, settings, strict=True), strict=True):
        alone = [torch.zeros_like(p).requires_grad_()]
        assert torch.equal(feed(OptimisticOMD(alone, **setting), alone, grads[:, part]), found[:, part])


def test_saved_state_holds_no_callables_and_resumes():
    """Oracle: the run without a break, between play and step; torch.load(weights_only=True) reads the file."""
    grads = gradients(9, 7)
    for kind, options in (
        (OptimisticOMD, {"geometry": "exp-concave", "exp_concavity": 0.5}),
        (DynamicOMD, {"horizon": 4}),
    ):
        params = two_tensors(torch.float32)
        options = {"diameter": 2.0, "grad_bound": 9.0, "projection": BALL, "hint": lambda last, t: last / t, **options}
        optimizer = kind(params, **options)
        feed(optimizer, params, grads[:5])
        optimizer.play()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed = two_tensors(torch.float32)
        other = kind(resumed, **options)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert other.state[resumed[0]]["variation"].dtype == F64
        for p, q in zip(params, resumed, strict=True):
            p.grad = q.grad = torch.ones_like(p)
        optimizer.step()
        other.step()
        assert torch.equal(feed(optimizer, params, grads[5:]), feed(other, resumed, grads[5:]))
    small = OptimisticOMD([torch.zeros(3, requires_grad=True)], diameter=2.0)
    with pytest.raises(ShapeError, match="coordinates"):
        small.load_state_dict(OptimisticOMD([torch.zeros(4, requires_grad=True)], diameter=2.0).state_dict())


def test_half_precision_parameters_keep_a_float32_state():
    """Oracle: the float32 run, rounded on its way into the parameters."""
    grads = gradients(20, 3) / 8
    coarse, fine = (torch.zeros(3, dtype=dtype, requires_grad=True) for dtype in (torch.bfloat16, torch.float32))
    grads = grads.bfloat16().float()
    a = feed(OptimisticOMD([coarse], diameter=2.0), [coarse], grads)
    b = feed(OptimisticOMD([fine], diameter=2.0), [fine], grads)
    assert torch.equal(a, b.bfloat16())


def test_starts_from_the_parameters_projected():
    """Oracle: the projection; "entropic" starts at 1/n."""
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    OptimisticOMD([x], diameter=2.0, projection=BALL).play()
    torch.testing.assert_close(x.detach(), torch.tensor([0.6, 0.8]))
    OptimisticOMD([x], diameter=1.0, geometry="entropic", projection=Simplex()).play()
    torch.testing.assert_close(x.detach(), torch.full((2,), 0.5))


def test_bad_arguments():
    """Oracle: the documented errors, each with its name; a refused group is not added."""
    x, y = torch.zeros(3, requires_grad=True), torch.zeros(3, dtype=F64, requires_grad=True)
    with pytest.raises(ArgumentError, match="OptimisticOMD: projection is none"):
        OptimisticOMD([x], diameter=1.0, projection=lambda v: v / 2)
    with pytest.raises(ShapeError, match="OptimisticOMD: projection maps"):
        OptimisticOMD([x], diameter=1.0, projection=lambda v: v[:1])
    with pytest.raises(ArgumentError, match="hint"):
        OptimisticOMD([x], diameter=1.0, hint="next")
    with pytest.raises(ArgumentError, match="no parameters"):
        OptimisticOMD([{"params": []}], diameter=1.0)
    with pytest.raises(ShapeError, match="group of its own"):
        OptimisticOMD([x, y], diameter=1.0)
    with pytest.raises(ArgumentTypeError, match="floating"):
        OptimisticOMD([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], diameter=1.0)
    with pytest.raises(ArgumentError, match="DynamicOMD: expected an integer horizon"):
        DynamicOMD([x], diameter=1.0, grad_bound=1.0, horizon=0)
    optimizer = DynamicOMD([x], diameter=1.0, grad_bound=1.0)
    with pytest.raises(ArgumentError, match="grad_bound"):
        optimizer.add_param_group({"params": [y], "grad_bound": -1.0})
    assert len(optimizer.param_groups) == 1
    assert y not in optimizer.state
    with pytest.raises(ArgumentError, match="grad_bound"):
        DynamicOMD([x], diameter=1.0, grad_bound=None)


def test_bad_hints_and_sparse_gradients():
    """Oracle: the documented errors."""
    x = torch.zeros(3, requires_grad=True)
    for hint, error in ((lambda g, t: g[:1], ShapeError), (lambda g, t: g / 0, NumericalError)):
        with pytest.raises(error, match="hint returned"):
            OptimisticOMD([x], diameter=1.0, hint=hint).play()
    optimizer = OptimisticOMD([x], diameter=1.0)
    optimizer.play()
    x.grad = torch.zeros(3).to_sparse()
    with pytest.raises(ArgumentTypeError, match="sparse"):
        optimizer.step()
