"""The optimiser: identities with known methods, descent, counts, state, and what is refused."""

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import SSO, OracleCounter
from hesse.testing import check_optimizer

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, Y = draw(40, 5), draw(40, 2, seed=1)
LABELS = torch.arange(40) % 3


def half_squared(z):
    return (z - Y).square().sum(1).mean() / 2


def weights():
    return torch.zeros(5, 2, dtype=F64, requires_grad=True)


def network(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def cross_entropy(z):
    return nn.functional.cross_entropy(z, LABELS)


@pytest.mark.parametrize(
    "settings",
    [
        {"inner": "armijo"},
        {"inner": "gauss-newton", "inner_steps": 3, "inner_tol": 1e-3},
        {"inner": "lbfgs"},
        {"inner": lambda params: torch.optim.Adam(params, lr=0.1)},
    ],
    ids=["armijo", "gauss-newton", "lbfgs", "adam"],
)
def test_conformance(settings):
    """Oracle: the conformance suite, through an adapter that hands over the squares as outputs."""
    ran = check_optimizer(
        lambda params, **options: SSO(params, **({"eta": 1.0} | settings | options)),
        drive=lambda optimizer, problem: optimizer.step(problem.losses, torch.ones_like),
    )
    assert len(ran) == 13


def test_exact_inner_solve_is_least_squares_in_one_call():
    """Oracle: torch.linalg.lstsq."""
    w = weights()
    info = SSO([w], eta="half-squared", inner="gauss-newton", inner_tol=1e-12).step(lambda: X @ w, lambda z: z - Y)
    torch.testing.assert_close(w.detach(), torch.linalg.lstsq(X, Y).solution, rtol=1e-8, atol=1e-8)
    assert info.oracle_gradients == 1
    assert info.oracle_values == 0


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_one_inner_step_is_the_inner_optimiser_on_the_loss(kind):
    """Oracle: the optimiser alone; the proximity term has no gradient where the oracle was asked."""
    ours, plain = network(), network()
    optimizer = SSO(ours.parameters(), eta=100.0, inner=lambda params: kind(params, lr=0.02), inner_steps=1)
    peer = kind(plain.parameters(), lr=0.02)
    for _ in range(15):
        optimizer.step(lambda: ours(X), target_loss=cross_entropy)
        peer.zero_grad()
        cross_entropy(plain(X)).backward()
        peer.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inner", ["armijo", "gauss-newton", "lbfgs"])
@pytest.mark.parametrize("m", [1, 7])
def test_the_loss_never_rises(inner, m):
    """Oracle: majorise-minimise; cross-entropy with η = 2 over the full batch, whatever the inner solver."""
    net = network()
    oracle = OracleCounter(cross_entropy)
    tol = 1e-3 if inner == "gauss-newton" else 1e-6
    optimizer = SSO(net.parameters(), eta="cross-entropy", inner=inner, inner_steps=m, inner_tol=tol)
    values = [float(cross_entropy(net(X)).detach())]
    for _ in range(5):
        info = optimizer.step(lambda: net(X), target_loss=oracle)
        assert info.surrogate_after <= info.surrogate_before == 0
        assert info.target_loss == pytest.approx(values[-1])
        values.append(float(cross_entropy(net(X)).detach()))
        assert values[-1] <= values[-2] + info.surrogate_after + 1e-14
    assert values[-1] < values[0]
    assert (oracle.num_gradients, oracle.num_values) == (5, 0)


def test_weight_decay_belongs_to_the_surrogate():
    """Oracle: ridge regression, with the decay of one group only."""
    a, b = torch.zeros(5, dtype=F64, requires_grad=True), torch.zeros(5, dtype=F64, requires_grad=True)
    groups = [{"params": [a], "weight_decay": 0.5}, {"params": [b]}]
    optimizer = SSO(groups, eta="half-squared", inner="gauss-newton", inner_tol=1e-12)
    optimizer.step(lambda: torch.stack([X @ a, X @ b], 1), lambda z: z - Y)
    ridge = torch.linalg.solve(X.T @ X / 40 + 0.5 * torch.eye(5, dtype=F64), X.T @ Y[:, 0] / 40)
    torch.testing.assert_close(a.detach(), ridge)
    torch.testing.assert_close(b.detach(), torch.linalg.lstsq(X, Y[:, 1:]).solution.squeeze(1))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.8, 0.8, 0.8]),
        ("sqrt", [0.8, 0.8 / 2**0.5, 0.8 / 3**0.5]),
        ("exponential", [0.8 * 0.1**0.1, 0.8 * 0.1**0.2, 0.8 * 0.1**0.3]),
        ("adagrad", [0.8 / 3, 0.8 / 18**0.5, 0.8 / 27**0.5]),
        ("diagonal-adagrad", [0.8 / 3, 0.8 / 18**0.5, 0.8 / 27**0.5]),
    ],
)
def test_target_steps_of_a_constant_gradient(schedule, expected):
    """Oracle: the formulas, for rows of square 9."""
    p = torch.zeros(4, 1, dtype=F64, requires_grad=True)
    optimizer = SSO([p], eta=0.8, schedule=schedule, total_steps=10)
    steps = [optimizer.step(lambda: p * 1, lambda z: torch.full_like(z, 3.0), ids=range(4)).eta for _ in range(3)]
    assert steps == pytest.approx(expected)


def test_names_stand_for_inverse_smoothness():
    """Oracle: 1/L_z of the four losses; four times as much under "sqrt", and the first step under "adagrad"."""
    for name, eta in (("half-squared", 1.0), ("squared", 0.5), ("logistic", 4.0), ("cross-entropy", 2.0)):
        for schedule, factor in (("constant", 1), ("sqrt", 4), ("adagrad", 1)):
            w = weights()
            info = SSO([w], eta=name, schedule=schedule).step(lambda w=w: X @ w, lambda z: z - Y)
            assert info.eta == pytest.approx(factor * eta)


def test_auto_finds_the_smoothness_once():
    """Oracle: L_z = 3 of a quadratic, to the 0.9 of the search; later steps take no values."""
    w = weights()
    oracle = OracleCounter(lambda z: 3 * half_squared(z))
    optimizer = SSO([w])
    infos = [optimizer.step(lambda: X @ w, target_loss=oracle) for _ in range(3)]
    assert 0.9 / 3 <= infos[0].eta <= 1 / 3
    assert infos[0].eta == infos[2].eta
    assert infos[0].oracle_values > 0
    assert infos[1].oracle_values == infos[2].oracle_values == 0
    assert oracle.num_values == infos[0].oracle_values
    assert oracle.num_gradients == 3


@pytest.mark.parametrize("inner", ["armijo", "gauss-newton"])
def test_line_search_beats_a_constant_step_where_the_loss_flattens(inner):
    """Oracle: the constant step 1/L_z on logistic loss, after as many gradients; all values are counted."""
    signs = torch.sign(X[:, 0] + 0.5 * draw(40, seed=3))
    ends = {}
    for schedule in ("constant", "line-search"):
        w = torch.zeros(5, dtype=F64, requires_grad=True)
        oracle = OracleCounter(lambda z: nn.functional.softplus(-signs * z).mean())
        optimizer = SSO([w], eta="logistic", schedule=schedule, inner=inner, inner_steps=10)
        values = sum(optimizer.step(lambda w=w: X @ w, target_loss=oracle).oracle_values for _ in range(10))
        assert (oracle.num_gradients, oracle.num_values) == (10, values)
        ends[schedule] = float(oracle.loss((X @ w).detach()))
    assert ends["line-search"] < ends["constant"]


def test_online_newton_metric():
    """Oracle: A = εI + Σ GᵀG/b written out, and the step it gives a model that is its own outputs."""
    p = torch.zeros(4, 2, dtype=F64, requires_grad=True)
    gradient, A = draw(4, 2, seed=7), 0.5 * torch.eye(2, dtype=F64)
    optimizer = SSO([p], eta=0.3, divergence="online-newton", metric_damping=0.5, inner="gauss-newton", inner_tol=1e-12)
    expected = torch.zeros(4, 2, dtype=F64)
    for _ in range(3):
        optimizer.step(lambda: p * 1, lambda _: gradient)
        A = A + gradient.T @ gradient / 4
        expected = expected - 0.3 * gradient @ torch.linalg.inv(A)
    torch.testing.assert_close(p.detach(), expected)


def test_relative_entropy_is_exponentiated_gradient():
    """Oracle: p ← p exp(-ηG) / Σ, for a softmax model of unlimited capacity."""
    logits = draw(6, 3).requires_grad_()
    p, gradient = logits.detach().softmax(-1), draw(6, 3, seed=1)
    optimizer = SSO([logits], eta=0.5, divergence="kl", inner="lbfgs", inner_steps=500, inner_tol=1e-12)
    optimizer.step(lambda: logits.softmax(-1), lambda _: gradient)
    expected = p * torch.exp(-0.5 * gradient)
    torch.testing.assert_close(
        logits.detach().softmax(-1), expected / expected.sum(-1, keepdim=True), rtol=0, atol=1e-6
    )
    with pytest.raises(ArgumentError, match="probabilities"):
        optimizer.step(lambda: logits * 1, lambda _: gradient)


def test_diagonal_sums_belong_to_data():
    """Oracle: a loop with a table of sums; data come in any order and later ones are new."""
    p = torch.zeros(6, 2, dtype=F64, requires_grad=True)
    gradient, sums, expected = draw(6, 2, seed=2), torch.zeros(6, 2, dtype=F64), torch.zeros(6, 2, dtype=F64)
    optimizer = SSO([p], eta=0.4, schedule="diagonal-adagrad", inner="gauss-newton", inner_tol=1e-13)
    for ids in ([2, 0], [0, 5], [2, 3, 0]):
        optimizer.step(lambda ids=ids: p[ids], lambda _, ids=ids: gradient[ids], ids=ids)
        sums[ids] += gradient[ids] ** 2
        expected[ids] -= 0.4 * gradient[ids] / sums[ids].sqrt()
    torch.testing.assert_close(p.detach(), expected)


def test_warm_start_saves_forward_passes():
    """Oracle: the count; the losses still fall."""
    counts = {}
    for warm in (False, True):
        w = weights()
        optimizer = SSO([w], eta="half-squared", inner_steps=2, warm_start=warm)
        infos = [optimizer.step(lambda w=w: X @ w, target_loss=half_squared) for _ in range(5)]
        counts[warm] = sum(info.num_forwards for info in infos[1:])
        assert infos[-1].target_loss < infos[0].target_loss
    assert counts[True] < 0.6 * counts[False]


def test_the_state_of_a_wrapped_optimiser_is_saved():
    """Oracle: the run that was not interrupted."""
    factory = lambda params: torch.optim.Adam(params, lr=0.02)  # noqa: E731
    first, second = network(), network()
    optimizer = SSO(first.parameters(), eta=1.0, inner=factory, inner_steps=3)
    for _ in range(3):
        optimizer.step(lambda: first(X), target_loss=cross_entropy)
    second.load_state_dict(first.state_dict())
    again = SSO(second.parameters(), eta=1.0, inner=factory, inner_steps=3)
    again.load_state_dict(optimizer.state_dict())
    for net, run in ((first, optimizer), (second, again)):
        for _ in range(3):
            run.step(lambda net=net: net(X), target_loss=cross_entropy)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ArgumentError, match="wraps"):
        SSO(network().parameters()).load_state_dict(optimizer.state_dict())


def test_gradients_of_the_caller_are_left_alone():
    """Oracle: .grad before and after; a parameter that the model does not use and one that is frozen do not move."""
    net, idle = network(), torch.ones(2, dtype=F64, requires_grad=True)
    net[0].bias.requires_grad_(False)
    frozen = net[0].bias.clone()
    net[2].bias.grad = torch.full_like(net[2].bias, 7.0)
    for inner in ("armijo", "lbfgs", "gauss-newton", torch.optim.Adagrad):
        SSO([*net.parameters(), idle], eta=1.0, inner=inner).step(lambda: net(X), target_loss=cross_entropy)
    assert torch.equal(net[2].bias.grad, torch.full_like(net[2].bias, 7.0))
    assert net[0].weight.grad is None
    assert torch.equal(net[0].bias, frozen)
    assert torch.equal(idle.detach(), torch.ones(2, dtype=F64))


def test_a_zero_gradient_moves_nothing():
    """Oracle: the start, for every schedule and inner solver."""
    for schedule in ("constant", "adagrad", "line-search"):
        for inner in ("armijo", "lbfgs", "gauss-newton"):
            w = weights()
            optimizer = SSO([w], eta=1.0, schedule=schedule, inner=inner)
            info = optimizer.step(lambda w=w: X @ w, torch.zeros_like, lambda z: 0 * z.sum())
            assert not w.detach().any()
            assert info.surrogate_after == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"eta": 0.0}, "eta"),
        ({"eta": "huber"}, "eta"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"inner_steps": 2.5}, "inner_steps"),
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"min_progress": 1.0}, "min_progress"),
        ({"schedule": "cosine"}, "schedule"),
        ({"schedule": "exponential"}, "total_steps"),
        ({"total_steps": 0}, "total_steps"),
        ({"inner": "newton"}, "inner"),
        ({"divergence": "bregman"}, "divergence"),
        ({"divergence": torch.ones(2, 3)}, "divergence"),
        ({"divergence": -torch.eye(2)}, "divergence matrix that is symmetric and positive definite"),
        ({"divergence": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "divergence matrix that is symmetric"),
        ({"reduction": "max"}, "reduction"),
        ({"schedule": "diagonal-adagrad", "divergence": "kl"}, "diagonal-adagrad"),
    ],
)
def test_refuses_bad_options(options, name):
    """Oracle: the error names the option."""
    with pytest.raises(ArgumentError, match=name):
        SSO([weights()], **options)


def test_refuses_bad_groups():
    """Oracle: the error's class; the optimiser keeps its groups."""
    optimizer = SSO([weights()], eta=1.0, inner="gauss-newton")
    with pytest.raises(ArgumentError, match="shared"):
        optimizer.add_param_group({"params": [weights()], "eta": 2.0})
    with pytest.raises(ShapeError, match="one dtype"):
        optimizer.add_param_group({"params": [weights().detach().float().requires_grad_()]})
    with pytest.raises(ArgumentTypeError, match="floating"):
        SSO([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    assert len(optimizer.param_groups) == 1


def test_bad_steps_change_nothing():
    """Oracle: parameters and state before; the errors' classes."""
    w = weights()
    optimizer = SSO([w], eta=1.0)
    noise = torch.Generator().manual_seed(0)
    bad = [
        (ArgumentTypeError, "model_closure", (None, lambda z: z)),
        (ArgumentTypeError, "graph", (lambda: X @ w.detach(), lambda z: z)),
        (ShapeError, "b, ...", (lambda: X[0] @ w[:, 0], lambda z: z)),
        (NumericalError, "outputs", (lambda: X @ w * torch.nan, lambda z: z)),
        (ArgumentError, "dropout", (lambda: X @ w + torch.randn(40, 2, generator=noise, dtype=F64), lambda z: z)),
        (NumericalError, "NaN", (lambda: X @ w, lambda z: z * torch.nan)),
        (ShapeError, "one row", (lambda: X @ w, lambda z: z[:3])),
        (ArgumentTypeError, "neither", (lambda: X @ w,)),
        (ArgumentError, "divided by b", (lambda: X @ w, lambda z: (z - Y) / 40, half_squared)),
    ]
    for error, words, arguments in bad:
        with pytest.raises(error, match=words):
            optimizer.step(*arguments)
    assert not w.detach().any()
    assert not optimizer.state_dict()["state"]
    with pytest.raises(ArgumentError, match="target_loss"):
        SSO([w]).step(lambda: X @ w, lambda z: z - Y)
    diagonal = SSO([w], eta=1.0, schedule="diagonal-adagrad")
    for ids, words in ((None, "give step ids"), ([0, 1], "40 data"), ([3] * 40, "twice")):
        with pytest.raises(ArgumentError, match=words):
            diagonal.step(lambda: X @ w, lambda z: z - Y, ids=ids)


def test_a_model_that_breaks_leaves_the_parameters():
    """Oracle: the start, when the model raises in the middle of the inner solver."""
    w, calls = weights(), []

    def model():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return X @ w

    with pytest.raises(KeyboardInterrupt):
        SSO([w], eta=1.0).step(model, lambda z: z - Y)
    assert not w.detach().any()
