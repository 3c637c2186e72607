"""The K-FAC optimiser against dense damped matrices, closed-form Newton steps, and the conformance suite."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hesse.curvature import InputFactor, LayerStream, OutputFactor, dgrad_only, mirror_, select_layers
from hesse.curvature.output_roots import output_hessian_columns
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import KFAC
from hesse.testing import check_optimizer

F64 = torch.float64
NEWTON = {"lr": 1.0, "momentum": 0.0, "kl_clip": None}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=12, inputs=3, classes=4, seed=0, dtype=F64):
    x = torch.randn(n, inputs, generator=seeded(seed), dtype=dtype)
    return x, torch.randint(classes, (n,), generator=seeded(seed + 1))


def mlp(seed=0, dtype=F64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def one_step(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def layer_gradients(model, x, cotangents):
    """D_n for every example and cotangent by a loop: {layer: (number of cotangents, B, p, m)}."""
    out = {0: [], 2: []}
    for u in cotangents:
        for n in range(len(x)):
            model.zero_grad()
            (model(x[n : n + 1]) * u[n : n + 1]).sum().backward()
            for i, found in out.items():
                found.append(torch.cat([model[i].weight.grad, model[i].bias.grad[:, None]], 1))
    model.zero_grad()
    return {i: torch.stack(found).reshape(-1, len(x), *found[0].shape) for i, found in out.items()}


def dense_factors(model, x):
    """A and S of both layers from their definition, and the D_n."""
    D = layer_gradients(model, x, list(output_hessian_columns(model(x))))
    seen = {0: x, 2: torch.tanh(model[0](x)).detach()}
    factors = {}
    for i, inputs in seen.items():
        ones = torch.cat([inputs, torch.ones(len(x), 1, dtype=F64)], 1)
        delta = D[i][..., -1]  # the bias's gradient is δ itself
        factors[i] = ones.T @ ones / len(x), torch.einsum("cnp,cnq->pq", delta, delta) / len(x)
    return factors, D


@pytest.mark.parametrize("correction", ["kfac", "ekfac"])
def test_first_step_is_the_dense_damped_one(correction):
    """Oracle: the Kronecker product of the loop's factors, damped and inverted densely in float64."""
    model, (x, y), damping = mlp(), data(), 0.03
    factors, _ = dense_factors(model, x)
    wanted = {}
    F.cross_entropy(model(x), y).backward()
    for i, (A, S) in factors.items():
        V = torch.cat([model[i].weight.grad, model[i].bias.grad[:, None]], 1)
        if correction == "kfac":
            pi = float((A.trace() / len(A) / (S.trace() / len(S))).sqrt())
            A = A + pi * damping**0.5 * torch.eye(len(A), dtype=F64)
            S = S + damping**0.5 / pi * torch.eye(len(S), dtype=F64)
        G = torch.kron(S, A) + (damping if correction == "ekfac" else 0) * torch.eye(V.numel(), dtype=F64)
        U = torch.linalg.solve(G, V.reshape(-1)).reshape(V.shape)
        wanted[i] = torch.cat([model[i].weight, model[i].bias[:, None]], 1).detach() - U
    one_step(model, KFAC(model, damping=damping, correction=correction, fisher="exact", **NEWTON), x, y)
    for i, W in wanted.items():
        found = torch.cat([model[i].weight, model[i].bias[:, None]], 1).detach()
        torch.testing.assert_close(found, W, rtol=1e-10, atol=1e-12)


def test_second_step_uses_measured_eigenvalues():
    """Oracle: Λ = half the factors' product, half the loop's E[(Q_Sᵀ D Q_A)²], in the basis of the first step."""
    model, (x, y), damping = mlp(), data(), 0.03
    optimizer = KFAC(model, damping=damping, fisher="exact", decay=0.9, **NEWTON)
    one_step(model, optimizer, x, y)
    first = copy.deepcopy({i: dict(optimizer.state[model[i].weight]) for i in (0, 2)})
    _, D = dense_factors(model, x)
    F.cross_entropy(model(x), y).backward()
    wanted = {}
    for i, state in first.items():
        K = torch.kron(state["left"], state["right"])
        measured = (D[i].reshape(-1, K.shape[0]) @ K).square().sum(0) / len(x)
        table = (torch.outer(state["values_left"], state["values_right"]).reshape(-1) + measured) / 2
        V = torch.cat([model[i].weight.grad, model[i].bias.grad[:, None]], 1)
        U = K @ ((K.T @ V.reshape(-1)) / (table + damping))
        wanted[i] = torch.cat([model[i].weight, model[i].bias[:, None]], 1).detach() - U.reshape(V.shape)
    one_step(model, optimizer, x, y)
    for i, W in wanted.items():
        found = torch.cat([model[i].weight, model[i].bias[:, None]], 1).detach()
        torch.testing.assert_close(found, W, rtol=1e-9, atol=1e-11)


# damping each factor by itself is not adding a multiple of the identity, hence no weight decay there
@pytest.mark.parametrize(("correction", "weight_decay"), [("kfac", 0.0), ("ekfac", 0.0), ("ekfac", 0.2)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_step_solves_a_linear_gaussian_model(correction, weight_decay, reduction):
    """Oracle: least squares, or ridge regression, in closed form; the Kronecker product is then exact."""
    x, y = torch.randn(20, 3, generator=seeded(), dtype=F64), torch.randn(20, 2, generator=seeded(1), dtype=F64)
    model, tiny = nn.Linear(3, 2).double(), 1e-9
    ones = torch.cat([x, torch.ones(20, 1, dtype=F64)], 1)
    scale = 20 if reduction == "mean" else 1
    wanted = torch.linalg.solve(ones.T @ ones / scale + weight_decay * torch.eye(4, dtype=F64), ones.T @ y / scale).T
    options = {"damping": tiny, "weight_decay": weight_decay, "correction": correction, "reduction": reduction}
    optimizer = KFAC(model, likelihood="gaussian", fisher="exact", **options, **NEWTON)
    loss = (model(x) - y).square().sum() / 2 / scale
    loss.backward()
    optimizer.step()
    found = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    rtol = 1e-3 if correction == "kfac" else 1e-6  # √damping, or damping
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("correction", ["kfac", "ekfac"])
def test_accumulated_passes_are_one_batch(fisher, correction):
    """Oracle: the same examples in one pass; three uneven micro-batches, each loss weighted by its share."""
    x, y = data(n=12)
    whole, parts = mlp(), mlp()
    optimizers = [KFAC(m, fisher=fisher, correction=correction, damping=0.1) for m in (whole, parts)]
    for _step in range(3):
        one_step(whole, optimizers[0], x, y)
        optimizers[1].zero_grad()
        for cut in (slice(0, 5), slice(5, 7), slice(7, 12)):
            (F.cross_entropy(parts(x[cut]), y[cut]) * len(y[cut]) / 12).backward()
        optimizers[1].step()
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_a_summed_loss_takes_the_step_of_the_mean(fisher):
    """Oracle: the loss's mean with damping λ; the sum has N times the curvature and takes N λ."""
    (x, y), mean, total = data(), mlp(), mlp()
    one_step(mean, KFAC(mean, fisher=fisher, damping=0.1, **NEWTON), x, y)
    optimizer = KFAC(total, fisher=fisher, damping=0.1 * len(x), reduction="sum", **NEWTON)
    F.cross_entropy(total(x), y, reduction="sum").backward()
    optimizer.step()
    torch.testing.assert_close(weights(mean), weights(total), rtol=1e-10, atol=1e-12)


def test_empirical_factors_are_those_of_the_data_s_labels():
    """Oracle: per-example gradients of the loss in a loop."""
    (x, y), model = data(), mlp()
    optimizer = KFAC(model, fisher="empirical", lr=0.0)
    one_step(model, optimizer, x, y)
    u = model(x).detach().softmax(-1) - F.one_hot(y, 4)
    D = layer_gradients(model, x, [u])
    for i in (0, 2):
        delta = D[i][0, :, :, -1]
        torch.testing.assert_close(optimizer.state[model[i].weight]["S"], delta.T @ delta / len(x))


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_sampled_labels_average_to_the_exact_fisher(likelihood):
    """Oracle: fisher="exact"; the mean of 400 draws lies within 4.5 of its standard errors in every entry."""
    (x, y), model = data(), mlp()
    exact = KFAC(model, fisher="exact", likelihood=likelihood, lr=0.0)
    one_step(model, exact, x, y)
    exact.remove_hooks()
    sampled = KFAC(model, fisher="sampled", likelihood=likelihood, lr=0.0, decay=0.0, eigen_every=1000)
    draws = []
    for _ in range(400):
        one_step(model, sampled, x, y)
        draws.append(torch.cat([sampled.state[model[i].weight]["S"].reshape(-1) for i in (0, 2)]))
    stack = torch.stack(draws)
    wanted = torch.cat([exact.state[model[i].weight]["S"].reshape(-1) for i in (0, 2)])
    z = (stack.mean(0) - wanted) / (stack.std(0) / 400**0.5)
    assert float(z.abs().max()) < 4.5
    assert float(stack.std(0).min()) > 0  # a new label every step


class Convolutions(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.first, self.again = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm, self.head = nn.GroupNorm(1, 3), nn.Linear(3, 4)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(2):  # one weight, called twice
            x = self.act(self.again(x))
        return self.head(self.norm(x).mean((2, 3)))


@pytest.mark.parametrize("inplace", [True, False])
def test_convolutions_and_shared_weights_match_the_frozen_pass(inplace):
    """Oracle: LayerStream over the same model with frozen weights, out of place."""
    torch.manual_seed(0)
    model = Convolutions(inplace=False).double()
    x, y = torch.randn(6, 2, 4, 4, dtype=F64, generator=seeded()), torch.randint(4, (6,), generator=seeded(1))
    inputs, outputs = {}, {}

    def consume(rows):
        name = rows.layer.name
        if name not in outputs:
            place = {"dtype": F64, "device": torch.device("cpu")}
            inputs[name] = InputFactor.zeros(rows.layer.columns, **place)
            outputs[name] = OutputFactor.zeros(rows.layer.out_features, **place)
            inputs[name].add_(rows)
        outputs[name].add_(rows)

    stream = LayerStream(select_layers(model, "all-linear"), consume)
    with dgrad_only(model), stream, stream.batch():
        z = model(x)
        for u in output_hessian_columns(z):
            stream.backward(z, u, keep=True)
    other = Convolutions(inplace=inplace).double()
    other.load_state_dict(model.state_dict())
    optimizer = KFAC(other, fisher="exact", damping=0.1)
    one_step(other, optimizer, x, y)
    assert set(inputs) == {"first", "again", "head"}
    for name, factor in inputs.items():
        state = optimizer.state[other.get_submodule(name).weight]
        torch.testing.assert_close(state["A"], mirror_(factor.total) / factor.count)
        torch.testing.assert_close(state["S"], mirror_(outputs[name].total) / 6)


def test_conv1d_of_transformers_is_a_linear_layer():
    """Oracle: the Linear layer with the transposed weight."""
    hf = pytest.importorskip("transformers.pytorch_utils")
    (x, y), plain = data(), nn.Linear(3, 4).double()
    turned = hf.Conv1D(4, 3).double()
    with torch.no_grad():
        turned.weight.copy_(plain.weight.T)
        turned.bias.copy_(plain.bias)
    for model in (plain, turned):
        optimizer = KFAC(model, fisher="exact", damping=0.1)
        for _ in range(3):
            one_step(model, optimizer, x, y)
    torch.testing.assert_close(turned.weight.T, plain.weight, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(turned.bias, plain.bias, rtol=1e-11, atol=1e-12)


def test_a_language_model_s_logits_are_found_and_its_head_is_left_out():
    """Oracle: outputs_fn given by hand; the list of layers with factors; the loss on the one batch falls."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0)
    torch.manual_seed(0)
    models = [transformers.GPT2LMHeadModel(config).eval()]
    models.append(copy.deepcopy(models[0]))
    tokens = torch.randint(17, (4, 8), generator=seeded())
    losses = []
    for model, options in zip(models, ({}, {"outputs_fn": lambda result: result.logits}), strict=True):
        optimizer = KFAC(model, **options)
        for _ in range(8):
            optimizer.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found = {name for name, p in model.named_parameters() if "A" in optimizer.state[p]}
        block = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        assert found == {f"transformer.h.0.{name}.weight" for name in block}
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert losses[7] < losses[0]


def test_positions_of_a_sequence_are_rows_of_the_loss():
    """Oracle: the same tokens as a batch of examples, for a model that treats positions alike."""
    x, y = data(n=12)
    flat, shaped = mlp(), mlp()
    for model, shape in ((flat, (12, 3)), (shaped, (3, 4, 3))):
        optimizer = KFAC(model, fisher="sampled", correction="kfac", damping=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x.reshape(shape)).reshape(12, 4), y).backward()
            optimizer.step()
    torch.testing.assert_close(weights(flat), weights(shaped), rtol=1e-11, atol=1e-12)


def with_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("inner", [False, True])
def test_other_parameters_take_plain_steps(inner):
    """Oracle: torch.optim.SGD, or the Adam passed in, fed with the gradients of the run."""
    model, (x, y) = with_norm(), data()
    adam = torch.optim.Adam(model[1].parameters(), lr=0.01) if inner else None
    optimizer = KFAC(model, 0.05, momentum=0.9, inner=adam, fisher="exact")
    twins = [p.detach().clone().requires_grad_() for p in model[1].parameters()]
    peer = torch.optim.Adam(twins, lr=0.01) if inner else torch.optim.SGD(twins, lr=0.05, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for twin, p in zip(twins, model[1].parameters(), strict=True):
            twin.grad = p.grad.clone()
        optimizer.step()
        peer.step()
    for twin, p in zip(twins, model[1].parameters(), strict=True):
        torch.testing.assert_close(twin.detach(), p.detach(), rtol=1e-12, atol=1e-14)


def test_the_step_is_bounded_in_the_metric():
    """Oracle: lr² uᵀ(G + λI)u = κ exactly where the bound holds, from the step made and the dense matrix."""
    model, (x, y), kappa = mlp(), data(), 1e-5
    factors, _ = dense_factors(model, x)
    before = {i: torch.cat([model[i].weight, model[i].bias[:, None]], 1).detach().clone() for i in (0, 2)}
    one_step(model, KFAC(model, 0.5, momentum=0.0, damping=0.03, fisher="exact", kl_clip=kappa), x, y)
    length = 0.0
    for i, (A, S) in factors.items():
        moved = before[i] - torch.cat([model[i].weight, model[i].bias[:, None]], 1).detach()
        length += float((moved * (S @ moved @ A + 0.03 * moved)).sum())
    assert length == pytest.approx(kappa, rel=1e-9)


def test_groups_have_their_own_settings():
    """Oracle: two runs, one a layer, the other layer frozen by lr = 0; the bias in a group of its own."""
    ends = []
    for moving in (0, 2):
        model, (x, y) = mlp(), data()
        groups = [{"params": model[0].parameters()}, {"params": [model[2].weight]}, {"params": [model[2].bias]}]
        for group in groups[:1] if moving == 2 else groups[1:]:
            group["lr"] = 0.0
        optimizer = KFAC(model, 0.1, params=groups, fisher="exact", kl_clip=None)
        before = weights(model)
        one_step(model, optimizer, x, y)
        ends.append(weights(model) - before)
    both, (x, y) = mlp(), data()
    before = weights(both)
    one_step(both, KFAC(both, 0.1, fisher="exact", kl_clip=None), x, y)
    torch.testing.assert_close(sum(ends), weights(both) - before)


def test_a_frozen_bias_leaves_the_weight_s_own_block():
    """Oracle: the same layer without a bias, the inputs' offset put into the targets' logits."""
    x, y = data()
    biased, bare = nn.Linear(3, 4).double(), nn.Linear(3, 4, bias=False).double()
    with torch.no_grad():
        bare.weight.copy_(biased.weight)
        biased.bias.zero_()
    biased.bias.requires_grad_(False)
    for model in (biased, bare):
        optimizer = KFAC(model, fisher="exact")
        for _ in range(3):
            one_step(model, optimizer, x, y)
    torch.testing.assert_close(biased.weight, bare.weight, rtol=1e-12, atol=1e-14)
    assert not bool(biased.bias.any())


class Holder(nn.Module):
    """A linear layer whose weight is a given tensor, if there is one, beside a layer that is never called."""

    def __init__(self, matrix):
        super().__init__()
        self.linear, self.idle = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        if matrix is not None:
            self.linear._parameters["weight"] = matrix  # a plain leaf, not to be copied into a Parameter

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("options", [{"correction": "ekfac"}, {"correction": "kfac", "momentum": 0.0}])
def test_the_optimiser_keeps_its_promises(options):
    """Oracle: the conformance suite; the problem's matrix is the weight of a layer that sees unit vectors."""
    models = {}

    def factory(params, **extra):
        params = list(params)
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        tensors = [p for group in groups for p in group["params"]]
        matrix = next((p for p in tensors if p.shape == (2, 2)), None)
        with torch.random.fork_rng():
            model = Holder(matrix)
        groups[-1] = {**groups[-1], "params": [*groups[-1]["params"], model.idle.weight]}
        settings = {"lr": 1e-3, "damping": 1e-2, "fisher": "exact", "likelihood": "gaussian", "kl_clip": None}
        optimizer = KFAC(model, params=groups, **(settings | options | extra))
        models[id(optimizer)] = optimizer, model
        return optimizer

    def drive(optimizer, problem):
        optimizer.zero_grad()
        matrix = models[id(optimizer)][1].linear.weight
        if any(matrix is p for p in problem.parameters):
            models[id(optimizer)][1](torch.eye(2, dtype=matrix.dtype))
        problem.loss().backward()
        optimizer.step()

    assert len(check_optimizer(factory, drive=drive)) == 13


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_state_survives_another_process_bit_by_bit(dtype, fisher, tmp_path):
    """Oracle: the run that was not interrupted; the state goes through a file that holds no code."""
    x, y = data(n=40, dtype=dtype)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)] * 3

    def build(model):
        inner = torch.optim.Adam([model[2].bias], lr=0.01)
        return KFAC(model, inner=inner, fisher=fisher, update_every=2, eigen_every=4, damping=0.1)

    model = mlp(dtype=dtype)
    optimizer = build(model)
    for batch in batches[:7]:
        one_step(model, optimizer, *batch)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "run.pt")
    saved_weights, state = torch.load(tmp_path / "run.pt", weights_only=True)
    again = mlp(seed=1, dtype=dtype)
    again.load_state_dict(saved_weights)
    restored = build(again)
    restored.load_state_dict(state)
    for batch in batches[7:]:
        one_step(model, optimizer, *batch)
        one_step(again, restored, *batch)
    assert torch.equal(weights(model), weights(again))
    assert optimizer.state[model[0].weight]["A"].dtype == (F64 if dtype == F64 else torch.float32)


def test_bfloat16_takes_the_step_of_float32_rounded():
    """Oracle: the float32 step from the rounded weights and gradients; the factors differ by bfloat16 activations."""
    x, y = data(dtype=torch.float32)
    narrow = mlp(dtype=torch.bfloat16)
    wide = copy.deepcopy(narrow).float()
    before = weights(wide)
    for model in (narrow, wide):
        one_step(model, KFAC(model, 1.0, momentum=0.0, fisher="exact"), x.to(model[0].weight.dtype), y)
    moved = weights(wide) - before
    torch.testing.assert_close(weights(narrow).float() - before, moved, rtol=0, atol=0.1 * float(moved.abs().max()))


def test_a_closure_is_called_once_and_its_pass_counts():
    """Oracle: the steps without a closure."""
    (x, y), plain, closed = data(), mlp(), mlp()
    optimizers = [KFAC(m, fisher="empirical") for m in (plain, closed)]
    seen = []

    def closure():
        optimizers[1].zero_grad()
        loss = F.cross_entropy(closed(x), y)
        loss.backward()
        seen.append(loss.detach())
        return loss

    for _ in range(3):
        one_step(plain, optimizers[0], x, y)
        with torch.no_grad():
            assert float(optimizers[1].step(closure)) == float(seen[-1])
    assert len(seen) == 3
    assert torch.equal(weights(plain), weights(closed))
    assert optimizers[0].step() is None


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_other_passes_leave_no_trace(fisher):
    """Oracle: the run without them: evaluation, a deep copy in training, a pass that no loss follows (empirical)."""
    (x, y), plain, busy = data(), mlp(), mlp()
    optimizers = [KFAC(m, fisher=fisher) for m in (plain, busy)]
    for _ in range(3):
        one_step(plain, optimizers[0], x, y)
        with torch.no_grad():
            busy(x * 2)
        F.cross_entropy(copy.deepcopy(busy)(x * 3), y).backward()
        optimizers[1].zero_grad()
        if fisher == "empirical":
            busy(x * 4)
        F.cross_entropy(busy(x), y).backward()
        optimizers[1].step()
    assert torch.equal(weights(plain), weights(busy))


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_zero_grad_may_stand_anywhere(fisher):
    """Oracle: the run with zero_grad first; between forward and backward, and after a backward pass thrown away."""
    (x, y), plain, odd = data(), mlp(), mlp()
    optimizers = [KFAC(m, fisher=fisher) for m in (plain, odd)]
    for step in range(3):
        one_step(plain, optimizers[0], x, y)
        if step and fisher == "empirical":
            F.cross_entropy(odd(x * 2), y).backward()
        loss = F.cross_entropy(odd(x), y)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    torch.testing.assert_close(weights(plain), weights(odd), rtol=1e-12, atol=1e-14)


def test_a_bias_may_join_later():
    """Oracle: a new optimiser over both, from the same weights."""
    (x, y), model = data(), nn.Linear(3, 4).double()
    late = KFAC(model, params=[model.weight], momentum=0.0, fisher="exact")
    for _ in range(2):
        one_step(model, late, x, y)
    fresh = copy.deepcopy(model)
    late.add_param_group({"params": [model.bias]})
    for m, optimizer in ((model, late), (fresh, KFAC(fresh, momentum=0.0, fisher="exact"))):
        one_step(m, optimizer, x, y)
    torch.testing.assert_close(weights(model), weights(fresh), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_activation_checkpointing_counts_a_layer_once(fisher):
    """Oracle: the same run without checkpointing."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    (x, y), plain, saving = data(), mlp(), Wrapped()
    optimizers = [KFAC(m, fisher=fisher) for m in (plain, saving)]
    for _ in range(3):
        one_step(plain, optimizers[0], x, y)
        one_step(saving, optimizers[1], x, y)
    torch.testing.assert_close(weights(plain), weights(saving), rtol=1e-12, atol=1e-14)


def test_updates_come_when_they_are_due():
    """Oracle: the counters; factors in steps 0, 3, 6, a basis in steps 0 and 4."""
    model, (x, y) = mlp(), data()
    optimizer = KFAC(model, update_every=3, eigen_every=4, fisher="exact")
    updates, bases = [], []
    for _ in range(7):
        one_step(model, optimizer, x, y)
        state = optimizer.state[model[0].weight]
        updates.append(state["num_updates"])
        bases.append(state["left"])
    assert updates == [1, 1, 1, 2, 2, 2, 3]
    assert [bases[i] is bases[i - 1] for i in range(1, 7)] == [True, True, True, False, True, True]


def test_hooks_go_with_the_optimiser():
    """Oracle: the model's own hook tables."""
    model, (x, y) = mlp(), data()
    one_step(model, KFAC(model), x, y)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model[0]._forward_hooks


def test_a_scalar_output_is_a_column():
    """Oracle: the same model with its output kept as (B, 1)."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 1).double()

        def forward(self, x):
            return self.body(x).squeeze(-1)

    torch.manual_seed(0)
    flat = Flat()
    column = copy.deepcopy(flat.body)
    x, y = torch.randn(9, 3, dtype=F64, generator=seeded()), torch.randn(9, dtype=F64, generator=seeded(1))
    for model, target in ((flat, y), (column, y[:, None])):
        optimizer = KFAC(model, likelihood="gaussian", fisher="sampled")
        for _ in range(3):
            optimizer.zero_grad()
            ((model(x) - target).square().mean() / 2).backward()
            optimizer.step()
    assert torch.equal(flat.body.weight, column.weight)


def test_bad_input_is_refused_and_nothing_moves():
    """Oracle: the error classes and the names in their messages."""
    model, (x, y) = mlp(), data()
    for options, name in (
        ({"lr": -1.0}, "lr"),
        ({"damping": 0.0}, "damping"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"decay": 1.0}, "decay"),
        ({"kl_clip": 0.0}, "kl_clip"),
        ({"update_every": 0}, "update_every"),
        ({"eigen_every": 2.5}, "eigen_every"),
        ({"correction": "shampoo"}, "correction"),
        ({"fisher": "true"}, "fisher"),
        ({"likelihood": "poisson"}, "likelihood"),
        ({"reduction": "none"}, "reduction"),
        ({"layers": "attention"}, "attention"),
        ({"params": [torch.ones(2, requires_grad=True)]}, "nothing to precondition"),
    ):
        with pytest.raises(ArgumentError, match=name):
            KFAC(model, **options)
    with pytest.raises(ArgumentTypeError, match="model"):
        KFAC(list(model.parameters()))
    with pytest.raises(ArgumentTypeError, match="complex"):
        KFAC(model, params=[*model.parameters(), torch.ones(1, dtype=torch.complex64, requires_grad=True)])
    start = weights(model)
    optimizer = KFAC(model)
    F.cross_entropy(model(x), y).backward()
    model[2].bias.grad[0] = math.nan
    with pytest.raises(NumericalError, match=r"2\.bias has NaN"):
        optimizer.step()
    model.zero_grad()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    with pytest.raises(ArgumentError, match=r"no gradient named '2\.bias'"):
        optimizer.step()
    model[2].bias.grad = torch.ones_like(model[2].bias)
    with pytest.raises(ArgumentError, match="used functionally"):
        optimizer.step()
    assert torch.equal(weights(model), start)
    sequences = mlp()
    exact = KFAC(sequences, fisher="exact")
    with pytest.raises(ShapeError, match="exact"):
        sequences(torch.ones(2, 5, 3, dtype=F64))
    other = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    wide = KFAC(other)
    one_step(other, wide, x, y)
    with pytest.raises(ShapeError, match="orders"):
        optimizer.load_state_dict(wide.state_dict())
    with pytest.raises(ArgumentError, match="inner"):
        KFAC(model, inner=torch.optim.SGD([model[2].bias], 0.1)).load_state_dict(optimizer.state_dict())
    twice = mlp()
    kept = KFAC(twice, fisher="empirical")
    loss = F.cross_entropy(twice(x), y)
    loss.backward(retain_graph=True)
    with pytest.raises(ArgumentError, match="inner holds 1 parameters"):
        KFAC(model, params=model.parameters(), inner=torch.optim.SGD([model[2].bias], 0.1))
    with pytest.raises(ArgumentError, match="two backward passes"):
        loss.backward()
    del kept, exact

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return {"scores": self.body(x)}

    odd = Odd()
    named = KFAC(odd)
    with pytest.raises(ArgumentTypeError, match="outputs_fn"):
        odd(x)
    del named
    found = KFAC(odd, outputs_fn=lambda result: result["scores"])
    F.cross_entropy(odd(x)["scores"], y).backward()
    found.step()
    assert not torch.equal(weights(odd), start)
