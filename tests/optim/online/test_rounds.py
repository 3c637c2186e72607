"""Rounds of optimistic mirror descent against the definition written out, and against closed forms."""

import math
from functools import partial

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import Ball, Box, Simplex
from hesse.optim import OOMDRules, oomd_init, oomd_play, oomd_round, oomd_update, regret

F64 = torch.float64
BALL = Ball(1.0)
D, G, N, RUNS = 2.0, 3.0, 4, 3


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


GRADS = BALL(randn(40, RUNS, N) / 2) * G
RULES = {
    "convex": OOMDRules(D, G, 0.2, projection=BALL),
    "light": OOMDRules(D, projection=BALL),
    "strongly-convex": OOMDRules(D, G, geometry="strongly-convex", strong=0.5, projection=BALL),
    "exp-concave": OOMDRules(D, G, geometry="exp-concave", exp_concavity=0.4, projection=BALL),
    "free": OOMDRules(D, G, geometry="exp-concave", exp_concavity=0.4),
    "entropic": OOMDRules(math.sqrt(2 * math.log(N)), G, 0.1, geometry="entropic"),
}


def plays(rules, grads, start=None, hints=None):
    state = oomd_init(rules, torch.zeros_like(grads[0]) if start is None else start)
    found = []
    for t, grad in enumerate(grads):
        if hints is not None:
            state = oomd_play(rules, state, hints[t])
        found.append(state.play)
        state = oomd_update(rules, state, grad) if hints is not None else oomd_round(rules, state, grad)
    return torch.stack(found), state


def euclidean(grads, rate):
    """The two projected steps written out; rate(t, V, largest) gives η_t."""
    center, hint, found, V, largest = torch.zeros(N, dtype=F64), torch.zeros(N, dtype=F64), [], 0.0, 0.0
    for t, grad in enumerate(grads, 1):
        largest = largest or float(grad.norm())  # seen before the second half of round 1 needs it
        eta = rate(t, V, largest)
        found.append(BALL(center - eta * hint))
        center = BALL(center - eta * grad)
        V += float((grad - hint).square().sum())
        largest, hint = max(largest, float(grad.norm())), grad
    return torch.stack(found)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("convex", lambda t, V, top: D / math.sqrt(10 * D**2 * 0.2**2 + 4 * G**2 + V)),
        ("light", lambda t, V, top: D / math.sqrt(4 * top**2 + V)),
        ("strongly-convex", lambda t, V, top: 2 / (0.5 * t)),
    ],
)
def test_euclidean_rounds(name, rate):
    """Oracle: a loop over the definition, one run at a time."""
    found, _ = plays(RULES[name], GRADS)
    for run in range(RUNS):
        torch.testing.assert_close(found[:, run], euclidean(GRADS[:, run], rate), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["exp-concave", "free"])
def test_exp_concave_rounds(name):
    """Oracle: dense solves with H_t written out, and the optimality conditions of the projection in its norm."""
    rules, beta = RULES[name], min(1 / (4 * G * D), 0.4) / 2
    assert rules.beta == beta
    found, state = plays(rules, GRADS)
    for run in range(RUNS):
        metric = (1 + beta / 2 * G**2) * torch.eye(N, dtype=F64)
        center, hint = torch.zeros(N, dtype=F64), torch.zeros(N, dtype=F64)
        for t, grad in enumerate(GRADS[:, run]):
            y = center - torch.linalg.solve(metric, hint)
            x = found[t, run]
            if name == "free":
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
            else:
                force = metric @ (y - x)  # ν x with ν >= 0
                nu = force @ x
                assert float(x.norm()) <= 1 + 1e-12
                assert float(nu) >= -1e-12
                torch.testing.assert_close(force, nu * x, rtol=0, atol=1e-10)
            following = center - torch.linalg.solve(metric, grad)
            center = following if name == "free" else state_after(rules, GRADS[: t + 1]).center[run]
            metric = metric + beta / 2 * torch.outer(grad, grad)
            hint = grad
        torch.testing.assert_close(state.metric[run], metric, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.inverse[run], torch.linalg.inv(metric), rtol=1e-10, atol=1e-12)


def state_after(rules, grads):
    return plays(rules, grads)[1]


def test_entropic_rounds():
    """Oracle: exponential weights written out with their own step; weights stay on the simplex after 1e4 losses."""
    rules = RULES["entropic"]
    found, _ = plays(rules, GRADS)
    total, hint, V = torch.zeros(RUNS, N, dtype=F64), torch.zeros(RUNS, N, dtype=F64), torch.zeros(RUNS, 1, dtype=F64)
    for t, grad in enumerate(GRADS):
        eta = rules.diameter / (10 * rules.diameter**2 * 0.1**2 + 4 * G**2 + V).sqrt()
        weights = (-eta * (total + hint)).exp()
        torch.testing.assert_close(found[t], weights / weights.sum(-1, keepdim=True), rtol=1e-12, atol=1e-14)
        V = V + (grad - hint).abs().amax(-1, keepdim=True).square()
        total, hint = total + grad, grad
    far, _ = plays(rules, 1e4 * torch.eye(N, dtype=torch.float32).expand(50, N, N))
    assert far.dtype == torch.float32
    assert bool(torch.isfinite(far).all())
    torch.testing.assert_close(far.sum(-1), torch.ones(50, N))


def test_entropic_regret_is_bounded():
    """Oracle: ln n/η_T + Σ η_t ‖g_t - M_t‖²_∞ / 2, the bound of optimistic exponential weights, best expert known."""
    rules, grads = RULES["entropic"], GRADS.clamp(-1, 1)
    found, state = plays(rules, grads)
    cost = regret(lambda x: (grads * x).sum(-1), found, torch.eye(N, dtype=F64)[grads.sum(0).argmin(-1)])
    hints = torch.cat([torch.zeros(1, RUNS, N, dtype=F64), grads[:-1]])
    gaps = (grads - hints).abs().amax(-1).square()
    V = gaps.cumsum(0) - gaps
    eta = rules.diameter / (10 * rules.diameter**2 * 0.1**2 + 4 * G**2 + V).sqrt()
    assert bool((cost <= math.log(N) / eta[-1] + (eta * gaps).sum(0) / 2 + 1e-12).all())
    torch.testing.assert_close(state.variation, gaps.sum(0))


def test_without_hints_it_is_mirror_descent():
    """Oracle: x ← P(x - D g / √(4G² + Σ ‖g‖²)), to machine precision."""
    rules = OOMDRules(D, G, projection=BALL)
    found, _ = plays(rules, GRADS, hints=torch.zeros_like(GRADS))
    x, squares = torch.zeros(RUNS, N, dtype=F64), torch.zeros(RUNS, 1, dtype=F64)
    for t, grad in enumerate(GRADS):
        torch.testing.assert_close(found[t], x, rtol=0, atol=1e-15)
        x = BALL(x - D / (4 * G**2 + squares).sqrt() * grad)
        squares = squares + grad.square().sum(-1, keepdim=True)


def test_perfect_hints_cost_a_constant():
    """Oracle: D²/(2η_T) with V = 0, for linear losses against the best point of the ball."""
    rules = OOMDRules(D, G, projection=BALL)
    found, state = plays(rules, GRADS, hints=GRADS)
    best = -GRADS.sum(0) / GRADS.sum(0).norm(dim=-1, keepdim=True)
    cost = regret(lambda x: (GRADS * x).sum(-1), found, best)
    assert float(state.variation.max()) == 0
    assert float(cost.max()) <= D * (2 * G) / 2 + 1e-9


@pytest.mark.parametrize("name", list(RULES))
def test_runs_do_not_see_each_other(name):
    """Oracle: each run alone gives the same points."""
    together, _ = plays(RULES[name], GRADS)
    for run in range(RUNS):
        alone, _ = plays(RULES[name], GRADS[:, run])
        torch.testing.assert_close(together[:, run], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["convex", "light", "strongly-convex", "entropic"])
def test_vmap(name):
    """Oracle: the batched call; vmap over runs gives the same states."""
    rules = RULES[name]
    state = mapped = oomd_init(rules, torch.zeros(RUNS, N, dtype=F64))
    for grad in GRADS[:5]:
        state = oomd_round(rules, state, grad)
        mapped = torch.vmap(partial(oomd_round, rules))(mapped, grad)
    for one, other in zip(state, mapped, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["convex", "light", "strongly-convex", "entropic"])
def test_derivatives_of_a_run(name):
    """Oracle: finite differences of the last point in the gradients (gradcheck)."""
    rules = OOMDRules(**{**{f: getattr(RULES[name], f) for f in OOMDRules.__dataclass_fields__}, "projection": None})
    grads = (randn(4, N, seed=3) / 2).requires_grad_()  # no two norms alike: the largest has a derivative
    torch.autograd.gradcheck(lambda g: oomd_last(rules, g), grads)


def oomd_last(rules, grads):
    state = oomd_init(rules, torch.zeros_like(grads[0]))
    for grad in grads:
        state = oomd_round(rules, state, grad)
    return state.play


@pytest.mark.parametrize("name", list(RULES))
def test_float32_follows_float64(name):
    """Oracle: the same run in float64; the sums are float64 in both."""
    fine, _ = plays(RULES[name], GRADS)
    coarse, state = plays(RULES[name], GRADS.float())
    assert coarse.dtype == torch.float32
    assert state.variation.dtype == F64
    torch.testing.assert_close(coarse.double(), fine, rtol=0, atol=2e-5)


def test_no_gradient_no_step():
    """Oracle: by definition; zero gradients leave everything where it is, with no constant known."""
    found, state = plays(RULES["light"], torch.zeros(5, N, dtype=F64), start=torch.full((N,), 0.1, dtype=F64))
    assert torch.equal(found, torch.full((5, N), 0.1, dtype=F64))
    assert bool(torch.isfinite(state.center).all())


def test_one_step_size_a_round_with_a_first_hint():
    """Oracle: with nothing known but a first hint M, η_1 = D/(2‖M‖) in both halves of round 1."""
    rules, hint, grad = OOMDRules(D), randn(N, seed=1), randn(N, seed=2)
    state = oomd_play(rules, oomd_init(rules, torch.zeros(N, dtype=F64)), hint)
    eta = D / (2 * hint.norm())
    torch.testing.assert_close(state.play, -eta * hint)
    torch.testing.assert_close(oomd_update(rules, state, grad).center, -eta * grad)


def test_prox_of_a_fixed_part():
    """Oracle: soft thresholding written out; with r = 0 the prox is the projection."""
    calls = []

    def soft(y, eta):
        calls.append(eta.shape)
        return y.sign() * (y.abs() - 0.3 * eta).clamp_min(0)

    rules = OOMDRules(D, G, prox=soft)
    state = oomd_init(rules, torch.zeros(RUNS, N, dtype=F64))
    grad = GRADS[0]
    eta = D / (2 * G)
    wanted = (-eta * grad).sign() * ((eta * grad).abs() - 0.3 * eta).clamp_min(0)
    torch.testing.assert_close(oomd_update(rules, state, grad).center, wanted)
    assert set(calls) == {(RUNS, 1)}
    same, _ = plays(OOMDRules(D, G, prox=lambda y, eta: BALL(y)), GRADS)
    torch.testing.assert_close(same, plays(OOMDRules(D, G, projection=BALL), GRADS)[0], rtol=0, atol=0)


def test_implicit_update():
    """Oracle: for a linear loss it is the explicit one; for |x - c| the step stops at c."""
    rules = OOMDRules(D, G, projection=BALL)
    state = oomd_play(rules, oomd_init(rules, torch.zeros(RUNS, N, dtype=F64)), GRADS[0])
    linear = oomd_update(rules, state, GRADS[1], implicit=lambda center, eta: BALL(center - eta * GRADS[1]))
    for one, other in zip(linear, oomd_update(rules, state, GRADS[1]), strict=True):
        torch.testing.assert_close(one, other)
    target = torch.full((1,), 0.1, dtype=F64)
    state = oomd_init(OOMDRules(D, 1.0), torch.zeros(1, dtype=F64))

    def absolute(center, eta):
        return center + (target - center).clamp(-eta, eta)

    kept = oomd_update(OOMDRules(D, 1.0), state, -torch.ones(1, dtype=F64), implicit=absolute)
    torch.testing.assert_close(kept.center, target)
    with pytest.raises(ArgumentError, match="Euclidean"):
        oomd_update(RULES["entropic"], oomd_init(RULES["entropic"], GRADS[0]), GRADS[0], implicit=absolute)


def test_late_gradients():
    """Oracle: two rounds of delay written out; each gradient is compared with the hint of its own round."""
    rules, delay, grads = OOMDRules(D, G, projection=BALL), 2, GRADS[:12, 0]
    state, played = oomd_init(rules, torch.zeros(N, dtype=F64)), []
    center, V = torch.zeros(N, dtype=F64), 0.0
    known = torch.zeros(N, dtype=F64)
    for t, _ in enumerate(grads):
        state = oomd_play(rules, state, known)
        torch.testing.assert_close(state.play, BALL(center - D / math.sqrt(4 * G**2 + V) * known))
        played.append(known)
        if t >= delay:
            late, hint = grads[t - delay], played[t - delay]
            state = oomd_update(rules, state, late, hint=hint)
            center = BALL(center - D / math.sqrt(4 * G**2 + V) * late)
            V += float((late - hint).square().sum())
            known = late
    assert float(state.variation) == pytest.approx(V)
    assert int(state.num_rounds) == len(grads) - delay


def test_other_sets_in_the_exp_concave_metric():
    """Oracle: the optimality conditions of a box in the norm of H, coordinate by coordinate."""
    rules = OOMDRules(D, G, geometry="exp-concave", exp_concavity=0.4, projection=Box(-0.2, 0.2))
    state = state_after(rules, GRADS[:6])
    before = state_after(rules, GRADS[:5])
    y = before.center - (before.inverse @ GRADS[5].unsqueeze(-1)).squeeze(-1)
    force = (before.metric @ (y - state.center).unsqueeze(-1)).squeeze(-1)
    free = state.center.abs() < 0.2 - 1e-9
    assert bool(free.any())
    assert bool((~free).any())
    assert float(force[free].abs().max()) < 1e-8
    assert bool((force[~free] * state.center[~free] >= -1e-8).all())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"diameter": 0.0}, "diameter"),
        ({"diameter": math.nan}, "diameter"),
        ({"grad_bound": -1.0}, "grad_bound"),
        ({"grad_bound": math.inf}, "grad_bound"),
        ({"smoothness": -1.0}, "smoothness"),
        ({"geometry": "flat"}, "geometry"),
        ({"geometry": "strongly-convex"}, "needs strong$"),
        ({"strong": 1.0}, "strong belongs to .*, got geometry='convex'"),
        ({"geometry": "strongly-convex", "strong": 0.0}, "strong"),
        ({"geometry": "exp-concave", "grad_bound": 1.0}, "exp_concavity"),
        ({"geometry": "exp-concave", "exp_concavity": 1.0}, "grad_bound"),
        ({"geometry": "entropic", "projection": BALL}, "simplex"),
        ({"geometry": "entropic", "projection": Simplex(2.0)}, "simplex"),
        ({"prox": lambda y, eta: y, "projection": BALL}, "prox"),
        ({"prox": lambda y, eta: y, "geometry": "entropic"}, "prox"),
    ],
)
def test_bad_rules(options, match):
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match=match):
        OOMDRules(**{"diameter": 1.0, **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [({"diameter": "2"}, "diameter"), ({"projection": "ball"}, "projection"), ({"prox": 3.0}, "prox")],
)
def test_rules_of_the_wrong_kind(options, match):
    """Oracle: the documented error names the argument."""
    with pytest.raises(ArgumentTypeError, match=f"expected {match} to be"):
        OOMDRules(**{"diameter": 1.0, **options})


def test_bad_start_and_beta():
    """Oracle: the documented errors."""
    for start in (torch.tensor(1.0), torch.zeros(3, 0)):
        with pytest.raises(ShapeError, match="oomd_init"):
            oomd_init(RULES["convex"], start)
    with pytest.raises(ArgumentError, match="beta"):
        _ = RULES["convex"].beta
    OOMDRules(1.0, geometry="entropic", projection=Simplex())
