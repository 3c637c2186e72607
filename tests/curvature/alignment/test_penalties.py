"""Penalties against their definitions with dense matrices, float64."""

from threading import Barrier, Thread

import pytest
import torch
from torch import nn

from hesse.curvature.alignment.penalties import hessian_frobenius_penalty, hgp_penalty, hutchinson_penalty
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, ShapeError
from tests.curvature.alignment.cases import F64, LOSSES, dense, domains, linear_head, loss_function, seeded

PENALTIES = {"hgp": hgp_penalty, "hutchinson": hutchinson_penalty, "frobenius": hessian_frobenius_penalty}


def by_definition(name, head, data, loss, alpha, beta):
    """The formula on dense gradients and Hessians."""
    pairs = [dense(head, features, targets, loss) for features, targets in data]
    gradients, hessians = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    g_bar, h_bar = gradients.mean(0), hessians.mean(0)
    if name == "hgp":
        gaps = torch.stack([h @ g for h, g in zip(hessians, gradients, strict=True)]) - h_bar @ g_bar
    elif name == "hutchinson":
        gaps = (hessians - h_bar).diagonal(dim1=1, dim2=2)
    else:
        gaps = hessians - h_bar
    return (alpha * gaps.square().sum() + beta * (gradients - g_bar).square().sum()) / len(data)


def as_sequential(head):
    """The same head, hidden from the closed forms."""
    return nn.Sequential(head)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PENALTIES)
def test_value_is_the_definition(name, loss, bias):
    """Oracle: dense autograd Hessians of three unequal domains, to 1e-10; closed forms and autograd alike."""
    head, data = linear_head(bias=bias), domains(loss)
    wanted = by_definition(name, head, data, loss, 3.0, 2.0)
    for variant in (head, as_sequential(head)):
        found = PENALTIES[name](data, variant, 3.0, 2.0, loss=loss)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    by_function = PENALTIES[name](data, head, 3.0, 2.0, loss=loss_function(loss))
    torch.testing.assert_close(by_function, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("variant", [lambda head: head, as_sequential])
def test_gradient_in_features_and_head(name, loss, variant):
    """Oracle: finite differences of the penalty with the mean in it (not held fixed)."""
    head = linear_head(4, 3)
    wrapped = variant(head)
    data = domains(loss, 4, 3, (4, 5, 3))
    options = {"detach_mean": False} if name == "hgp" else {}

    def penalty(*features):
        pairs = [(f, y) for f, (_, y) in zip(features, data, strict=True)]
        return PENALTIES[name](pairs, wrapped, 1.0, 0.5, loss=loss, **options)

    assert torch.autograd.gradcheck(penalty, [f.clone().requires_grad_() for f, _ in data])
    value = penalty(*[f for f, _ in data])
    (slope,) = torch.autograd.grad(value, head.weight)
    step = torch.randn(head.weight.shape, generator=seeded(5), dtype=F64)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            head.weight += sign * 1e-5 * step
            ends.append(penalty(*[f for f, _ in data]))
            head.weight -= sign * 1e-5 * step
    torch.testing.assert_close((slope * step).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_detached_mean_is_held_fixed():
    """Oracle: finite differences of the penalty with H̄ ḡ frozen at its value."""
    head, data = linear_head(4, 3), domains("cross_entropy", 4, 3, (4, 5, 3))
    features = [f.clone().requires_grad_() for f, _ in data]
    targets = [y for _, y in data]
    slopes = torch.autograd.grad(hgp_penalty(list(zip(features, targets, strict=True)), head, 1.0, 0.0), features)
    pairs = [dense(head, f, y, "cross_entropy") for f, y in data]
    mean_g, mean_h = (torch.stack(parts).mean(0) for parts in zip(*pairs, strict=True))
    frozen = mean_h @ mean_g

    def penalty(moved):
        dense_pairs = [dense(head, f, y, "cross_entropy") for f, y in zip(moved, targets, strict=True)]
        return torch.stack([(h @ g - frozen).square().sum() for g, h in dense_pairs]).mean()

    for e in range(3):
        step = torch.randn(features[e].shape, generator=seeded(e), dtype=F64)
        ends = [
            penalty([f.detach() + sign * 1e-5 * step if i == e else f.detach() for i, f in enumerate(features)])
            for sign in (1, -1)
        ]
        torch.testing.assert_close((slopes[e] * step).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)
    free = torch.autograd.grad(
        hgp_penalty(list(zip(features, targets, strict=True)), head, 1.0, 0.0, detach_mean=False), features
    )
    assert float((free[0] - slopes[0]).abs().max()) > 1e-4  # H̄ ḡ is not the mean of the H_e g_e: here it matters


def test_norm_trick_is_the_same_product():
    """Oracle: ‖g‖ ∂‖g‖/∂θ of the paper's code, to 1e-10."""
    head = linear_head()
    for features, targets in domains("cross_entropy"):
        loss = nn.functional.cross_entropy(head(features), targets)
        parts = torch.autograd.grad(loss, list(head.parameters()), create_graph=True)
        norm = torch.cat([part.flatten() for part in parts]).norm()
        by_norm = [norm * part for part in torch.autograd.grad(norm, list(head.parameters()))]
        gradient, hessian = dense(head, features, targets, "cross_entropy")
        product = (hessian @ gradient).view(4, 8)
        torch.testing.assert_close(by_norm[0], product[:, :7], rtol=0, atol=1e-10)
        torch.testing.assert_close(by_norm[1], product[:, 7], rtol=0, atol=1e-10)


def test_zero_gradient_is_no_special_case():
    """Oracle: closed form. Targets that the head fits exactly leave H g = 0, where ‖g‖ ∂‖g‖ would be NaN."""
    head = linear_head()
    data = [(f.clone().requires_grad_(), head(f).detach()) for f, _ in domains("squared_error")]
    value = hgp_penalty(data, head, 1.0, 1.0, loss="squared_error")
    slopes = torch.autograd.grad(value, [f for f, _ in data])
    assert float(value.detach()) == pytest.approx(0, abs=1e-25)
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)


@pytest.mark.parametrize("name", PENALTIES)
def test_equal_domains_have_no_penalty(name):
    """Oracle: closed form; and invariance under the order of examples and of domains."""
    head, data = linear_head(), domains("cross_entropy")
    same = [data[0], (data[0][0].flip(0), data[0][1].flip(0))]
    assert float(PENALTIES[name](same, head, 1.0, 1.0).detach()) == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(PENALTIES[name](data, head), PENALTIES[name](data[::-1], head), rtol=1e-10, atol=1e-14)


def test_sampled_diagonals_approach_the_exact_penalty():
    """Oracle: the exact penalty. Common signs leave less in it than independent ones, which add their variance."""
    head, data = linear_head(), domains("cross_entropy", sizes=(30, 40))
    exact = hutchinson_penalty(data, head, 1.0, 0.0).detach()
    hessians = [dense(head, f, y, "cross_entropy")[1] for f, y in data]
    off = [h - h.diagonal().diag() for h in hessians]
    # a mean over two domains of squared deviations from their mean is a quarter of the squared difference
    wanted = {
        True: (off[0] - off[1]).square().sum() / 50 / 4,
        False: (off[0].square().sum() + off[1].square().sum()) / 50 / 4,
    }
    for common, excess in wanted.items():
        runs = torch.stack(
            [
                hutchinson_penalty(
                    data, head, 1.0, 0.0, method="hutchinson", num_probes=50, common_probes=common, generator=seeded(s)
                ).detach()
                for s in range(200)
            ]
        )
        assert float((runs.mean() - exact - excess).abs()) <= 4 * float(runs.std()) / 200**0.5
    assert wanted[True] < wanted[False]


def test_general_head_with_a_hidden_layer():
    """Oracle: dense autograd Hessian over all parameters of a two-layer head with an in-place ReLU."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)).double()
    inputs = [torch.randn(n, 6, generator=seeded(n), dtype=F64) for n in (8, 6)]
    targets = [torch.randint(3, (len(x),), generator=seeded(9)) for x in inputs]
    sizes = [p.numel() for p in head.parameters()]

    def value(flat, features, target):
        values = {n: v.view_as(p) for (n, p), v in zip(head.named_parameters(), flat.split(sizes), strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(head, values, (features,)), target)

    flat = torch.cat([p.detach().flatten() for p in head.parameters()])
    parts = []
    for x, y in zip(inputs, targets, strict=True):
        at = (base(x).detach(), y)
        parts.append(
            (
                torch.autograd.functional.jacobian(lambda f, at=at: value(f, *at), flat),
                torch.autograd.functional.hessian(lambda f, at=at: value(f, *at), flat),
            )
        )
    (g0, h0), (g1, h1) = parts
    mean = (h0 + h1) / 2 @ (g0 + g1) / 2
    gap = ((h0 @ g0 - mean).square().sum() + (h1 @ g1 - mean).square().sum()) / 2
    wanted = {
        "hgp": gap,
        "hutchinson": (h0 - h1).diagonal().square().sum() / 4,
        "frobenius": (h0 - h1).square().sum() / 4,
    }
    for name, penalty in PENALTIES.items():
        features = [(base(x), y) for x, y in zip(inputs, targets, strict=True)]
        found = penalty(features, head, 1.0, 0.0)
        torch.testing.assert_close(found, wanted[name], rtol=1e-10, atol=1e-12)
        found.backward()  # through the in-place ReLU below the head
    assert all(bool(torch.isfinite(p.grad).all()) for p in base.parameters())


def test_frozen_parts_of_the_head_do_not_count():
    """Oracle: the same head without a bias, whose logits the frozen bias shifts by a constant per class."""
    head, data = linear_head(), domains("squared_error")
    moved = [(f, y - head.bias.detach()) for f, y in data]
    head.bias.requires_grad_(False)
    plain = nn.Linear(7, 4, bias=False, dtype=F64)
    plain.weight = head.weight
    for penalty in PENALTIES.values():
        wanted = penalty(moved, plain, loss="squared_error")
        torch.testing.assert_close(penalty(data, head, loss="squared_error"), wanted, rtol=1e-10, atol=1e-14)
    head.weight.requires_grad_(False)
    head.bias.requires_grad_(True)  # now autograd takes over: the Hessian of ½ mean ‖z - y‖² in the bias is I
    assert float(hessian_frobenius_penalty(data, head, 1.0, 0.0, loss="squared_error").detach()) == pytest.approx(
        0, abs=1e-20
    )


def test_mixed_precision_keeps_the_penalty_in_float32():
    """Oracle: float64 on the rounded features; the matrix products in bfloat16 would err by 1e-2."""
    head, data = linear_head(dtype=torch.float32), domains("cross_entropy")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = [(f.bfloat16(), y) for f, y in data]
        found = {name: penalty(rounded, head, 1.0, 1.0) for name, penalty in PENALTIES.items()}
        general = hgp_penalty(rounded, as_sequential(head), 1.0, 1.0)
    exact = linear_head(dtype=torch.float32).double()
    for name, penalty in PENALTIES.items():
        wanted = penalty([(f.double(), y) for f, y in rounded], exact, 1.0, 1.0)
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(general, found["hgp"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["hgp", "hutchinson"])
def test_domains_on_several_workers(name):
    """Oracle: all domains on one. Two threads that average tensors give penalties and gradients whose mean is its."""
    head = linear_head()
    data = [(f.requires_grad_(), y) for f, y in domains("cross_entropy", sizes=(6, 7, 8, 5))]
    whole = PENALTIES[name](data, head, 1.0, 0.5)
    wanted = torch.autograd.grad(whole, [f for f, _ in data])
    barrier, box, answers = Barrier(2), [None, None], [None, None]

    def worker(rank):
        def average(tensor):
            box[rank] = tensor
            barrier.wait()
            mean = (box[0] + box[1]) / 2
            barrier.wait()
            return mean

        share = data[2 * rank : 2 * rank + 2]
        value = PENALTIES[name](share, head, 1.0, 0.5, average=average)
        answers[rank] = (value.detach(), torch.autograd.grad(value, [f for f, _ in share]))

    threads = [Thread(target=worker, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close((answers[0][0] + answers[1][0]) / 2, whole.detach(), rtol=1e-12, atol=0)
    for found, slope in zip([*answers[0][1], *answers[1][1]], wanted, strict=True):
        torch.testing.assert_close(found / 2, slope, rtol=1e-10, atol=1e-14)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    head, data = linear_head(), domains("cross_entropy")
    for penalty in PENALTIES.values():
        with pytest.raises(ArgumentError, match="one domain"):
            penalty(data[:1], head)
        assert float(penalty(data[:1], head, allow_single=True).detach()) == pytest.approx(0, abs=1e-20)
        with pytest.raises(ArgumentError, match="no domains"):
            penalty([], head)
        with pytest.raises(ArgumentError, match="alpha"):
            penalty(data, head, -1.0)
        with pytest.raises(ArgumentError, match="beta"):
            penalty(data, head, 1.0, float("nan"))
        with pytest.raises(ArgumentError, match="domain 1 is empty"):
            penalty([data[0], (data[1][0][:0], data[1][1][:0])], head)
        with pytest.raises(ArgumentError, match="domain 1: targets must lie"):
            penalty([data[0], (data[1][0], data[1][1] + 4)], head)
        with pytest.raises(ShapeError, match="differ in length"):
            penalty([data[0], (data[1][0], data[1][1][:3])], head)
        with pytest.raises(ShapeError, match="domain 0: expected features"):
            penalty([(f[:, :3], y) for f, y in data], head)
        with pytest.raises(ArgumentTypeError, match="head must be a module"):
            penalty(data, head.weight)
        with pytest.raises(ArgumentTypeError, match="two tensors"):
            penalty([data[0], data[1][0]], head)
        with pytest.raises(ArgumentError, match="loss must be one of"):
            penalty(data, head, loss="hinge")
        with pytest.raises(ArgumentError, match="require a gradient"):
            penalty(data, linear_head().requires_grad_(False))
    with pytest.raises(ArgumentError, match="detach_mean"):
        hgp_penalty(data, head, detach_mean=False, average=lambda tensor: tensor)
    with pytest.raises(ArgumentError, match="method"):
        hutchinson_penalty(data, head, method="magic")
    big = nn.Sequential(nn.Linear(70, 60)).double()
    with pytest.raises(MemoryLimitError, match="4260 parameters"):
        hessian_frobenius_penalty(domains("squared_error", 70, 60), big, loss="squared_error")


def test_unreachable_parameters_are_named():
    """Oracle: the error taxonomy."""

    class Forgetful(nn.Linear):
        def __init__(self):
            super().__init__(7, 4, dtype=F64)
            self.unused = nn.Parameter(torch.zeros(3, dtype=F64))

    class Constant(nn.Linear):
        def forward(self, x):
            return x[:, :4]

    data = domains("cross_entropy")
    with pytest.raises(ArgumentError, match="unused"):
        hgp_penalty(data, Forgetful())
    with pytest.raises(ArgumentError, match="does not depend"):
        hgp_penalty(data, Constant(7, 4, dtype=F64))
