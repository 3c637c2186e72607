"""The numbers of fit and score: dense linear algebra, explicit loops, and what must not change them."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.influence._reliability import memory_folder
from hesse.curvature.capture import LayerStream, dgrad_only
from hesse.curvature.ekfac import Absolute, Relative, second_moment
from hesse.curvature.layers import select_layers
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError
from hesse.influence.engine import Influence
from hesse.influence.examples import ArrayExamples, TokenExamples, as_examples
from hesse.influence.gradients import stacked_gradients
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, LossOutput, RegressionLoss
from hesse.influence.passes import Pass
from hesse.influence.run import open_folder
from tests.influence._tiny import VOCAB, classifier, dense_block, gpt2, llama, loss_gradients, points, tokens

F64 = torch.float64
QUIET = {"progress": False}


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: numbers are tested here, not disks."""
    with memory_folder() as folder:
        yield folder


def influence_of(model, data, **options):
    if isinstance(data, tuple) and "loss" not in options:
        options["loss"] = ClassificationLoss()
    return Influence(model, **options)


def asked(data, run, *, queries=None, model=None, fit=None, score=None, **options):
    """(Influence, Factors, Scores) of one fit and one question at full rank."""
    influence = influence_of(model, data, **options)
    factors = influence.fit(data, run, **QUIET, **(fit or {}))
    scores = influence.score(data if queries is None else queries, data, run, **{"rank": None} | QUIET | (score or {}))
    return influence, factors, scores


def completions(count=3, seed=7):
    """Queries: tokens of which only the last two are supervised."""
    rows = tokens(count, seed=seed, low=5)
    for i, row in enumerate(rows):
        row["id"] = f"q{i}"
        row["labels"] = [-100] * (len(row["input_ids"]) - 2) + row["input_ids"][-2:]
    return rows


def explicit(factors, queries, train, total):
    """Σ over layers of <P(G_q), D_n> / N from whole gradients."""
    terms = [torch.einsum("qpm,npm->qn", factors.precondition(n, queries[n]), train[n]) for n in train]
    return sum(terms).numpy() / total


def close(found, wanted, tolerance=1e-10):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


# ------------------------------------------------------------------------------------ dense oracles


@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_layer_with_squared_loss_is_exact(bias, tmp_path):
    """Oracle: the dense (G + λI)⁻¹ with G = I ⊗ E[ã ãᵀ], λ = 0.1 x its mean eigenvalue, to 1e-8."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3, bias=bias)).to(F64).eval()
    x, _ = points(30, inputs=6)
    y = torch.randn(30, 3, dtype=F64)
    _, _, scores = asked((x, y), tmp_path / "run", model=net, fisher="exact", loss=RegressionLoss())
    rows = torch.cat([x, torch.ones(30, 1, dtype=F64)], 1) if bias else x
    gauss_newton = torch.kron(torch.eye(3, dtype=F64), rows.T @ rows / 30)
    damped = gauss_newton + 0.1 * gauss_newton.diagonal().mean() * torch.eye(len(gauss_newton), dtype=F64)
    grads = ((net(x) - y).detach()[:, :, None] * rows[:, None, :]).flatten(1)
    wanted = grads @ torch.linalg.solve(damped, grads.T) / 30
    close(scores.values, wanted, 1e-8)


@pytest.mark.parametrize("build", ["classifier", "gpt2", "llama"])
def test_eigenvalues_are_the_diagonal_of_the_rotated_block(build, tmp_path):
    """Oracle: diag of (Q_S ⊗ Q_A)ᵀ G (Q_S ⊗ Q_A), G dense by JᵀHJ with the softmax Hessian, to 1e-8."""
    model = {"classifier": classifier, "gpt2": gpt2, "llama": llama}[build]()
    data = points(8) if build == "classifier" else tokens(3, high=6)
    influence = influence_of(model, data, fisher="exact")
    factors = influence.fit(data, tmp_path / "run", **QUIET)
    for name, layer in influence.layers.items():
        found = factors.eigenvalues(name)
        basis = torch.kron(factors[name].left, factors[name].right)
        wanted = (basis.T @ dense_block(model, data, layer) @ basis).diagonal().view_as(found)
        close(found, wanted, 1e-8)


def test_sampled_eigenvalues_approach_the_exact_ones(tmp_path):
    """Oracle: the exact-Fisher table in the same basis. Means over 16 seeds err a quarter as much as single draws."""
    net, (x, y) = classifier(), points(6)
    exact = influence_of(net, (x, y), fisher="exact").fit((x, y), tmp_path / "run", **QUIET)
    layers, examples = select_layers(net), as_examples((x, y))
    tables = []
    for seed in range(256):
        sums = {name: torch.zeros_like(exact.eigenvalues(name)) for name in layers}

        def consume(rows, sums=sums):
            name = rows.layer.name
            second_moment(rows, exact[name].left, exact[name].right, sums[name], Scratch())

        with Pass(net, ClassificationLoss(), layers, seed).open(consume) as run:
            run.sampled(examples.batch(range(6)), examples.ids, 0)
        tables.append(torch.cat([sums[name].flatten() / 6 for name in layers]))
    errors = torch.stack(tables) - torch.cat([exact.eigenvalues(name).flatten() for name in layers])
    single = errors.square().sum(1).mean()
    grouped = errors.view(16, 16, -1).mean(1).square().sum(1)
    spread = grouped.std() / 4
    assert abs(grouped.mean() - single / 16) <= 4 * spread
    assert errors.mean(0).square().sum() <= 4 * single / 256


@pytest.mark.parametrize(
    ("build", "modules"),
    [(gpt2, "mlp"), (gpt2, "all-linear"), (llama, "mlp"), (llama, "attention"), (llama, "all-linear")],
)
@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal", "identity"])
def test_scores_of_transformers(build, modules, strategy, tmp_path):
    """Oracle: gradients by a loop over torch.autograd.grad, contracted in full with the factors as stored."""
    model, data, queries = build(), tokens(6), completions()
    _, factors, scores = asked(data, tmp_path / "run", model=model, queries=queries, modules=modules, strategy=strategy)
    grads = [loss_gradients(model, rows, modules=modules) for rows in (queries, data)]
    close(scores.values, explicit(factors, *grads, 6))
    if strategy == "identity":
        dot = sum(torch.einsum("qpm,npm->qn", grads[0][name], grads[1][name]) for name in grads[0])
        close(scores.values, dot / 6)


@pytest.mark.parametrize("loss", [ClassificationLoss(), RegressionLoss()])
@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal", "identity"])
def test_scores_of_plain_modules(loss, strategy, tmp_path):
    """Oracle: as above, for a classifier and a regression."""
    net, (x, y) = classifier(), points(9)
    y = y if isinstance(loss, ClassificationLoss) else torch.randn(9, 3, dtype=F64)
    _, factors, scores = asked((x, y), tmp_path / "run", model=net, loss=loss, strategy=strategy)
    grads = loss_gradients(net, (x, y), loss)
    close(scores.values, explicit(factors, grads, grads, 9))


def test_the_diagonal_strategy_divides_by_the_diagonal(tmp_path):
    """Oracle: the dense block's own diagonal plus the damping, entry by entry."""
    net, data = classifier(), points(7)
    influence, factors, scores = asked(
        data, tmp_path / "run", model=net, strategy="diagonal", fisher="exact", damping=Absolute(0.01)
    )
    grads, wanted = loss_gradients(net, data), 0
    for name, layer in influence.layers.items():
        diagonal = dense_block(net, data, layer).diagonal().view(layer.out_features, layer.columns)
        torch.testing.assert_close(factors.eigenvalues(name), diagonal, rtol=1e-9, atol=1e-12)
        wanted = wanted + torch.einsum("qpm,npm->qn", grads[name] / (diagonal + 0.01), grads[name])
    close(scores.values, wanted / 7, 1e-9)


# ------------------------------------------------------------------------------------ what changes nothing


@pytest.mark.parametrize(
    ("dtype", "fisher", "tolerance"),
    [(F64, "sampled", 1e-10), (F64, "exact", 1e-10), (torch.float32, "sampled", 1e-5)],
)
def test_padding_packing_batches_and_order(dtype, fisher, tolerance, tmp_path):
    """Oracle: one sequence a batch, unpadded. Labels are drawn alike, so sampled factors must agree too."""
    model, data, queries = gpt2(dtype), as_examples(tokens(8)), as_examples(completions())
    wanted = None
    ways = {
        "alone": ({}, {"batch_size": 1}, None),
        "right": ({}, {"batch_size": 3}, None),
        "left": ({"side": "left"}, {"batch_size": 8, "unit_size": 5}, None),
        "packed": ({"pack": True}, {"batch_tokens": 20}, None),
        "shuffled": ({}, {}, [5, 2, 7, 0, 1, 6, 4, 3]),
    }
    for way, (collation, batching, order) in ways.items():
        rows = data.sequences if order is None else [data.sequences[i] for i in order]
        train, ask = TokenExamples(rows, **collation), TokenExamples(queries.sequences, **collation)
        _, _, scores = asked(
            train, tmp_path / way, model=model, queries=ask, fisher=fisher, fit=batching, score=batching
        )
        columns = [scores.train_ids.index(f"s{i}") for i in range(8)]
        values = np.array(scores.values)[:, columns]
        wanted = values if wanted is None else wanted
        close(values, wanted, tolerance)


def test_gpt2_with_linear_layers_instead_of_conv1d(tmp_path):
    """Oracle: the same model, its Conv1D modules replaced by Linear ones with the transposed weight."""
    data, answers = tokens(6), []
    for replace in (False, True):
        model = gpt2()
        mlp = model.transformer.h[0].mlp
        for name in ("c_fc", "c_proj") if replace else ():
            conv = getattr(mlp, name)
            linear = nn.Linear(*conv.weight.shape).to(F64)
            with torch.no_grad():
                linear.weight.copy_(conv.weight.T)
                linear.bias.copy_(conv.bias)
            setattr(mlp, name, linear.eval())
        answers.append(asked(data, tmp_path / str(replace), model=model)[2].values)
    close(answers[1], answers[0])


class Fused(nn.Module):
    """One projection to six outputs, or two to three each."""

    def __init__(self, split):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)] if split else [nn.Linear(5, 6)])

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], -1)


def test_a_fused_projection_equals_its_parts(tmp_path):
    """Oracle: separate Linear layers; exact where the basis does not mix outputs."""
    data, fused, parts = points(9, classes=6), Fused(False).to(F64).eval(), Fused(True).to(F64).eval()
    with torch.no_grad():
        for i, part in enumerate(parts.parts):
            part.weight.copy_(fused.parts[0].weight[3 * i : 3 * i + 3])
            part.bias.copy_(fused.parts[0].bias[3 * i : 3 * i + 3])
    for strategy in ("diagonal", "identity"):
        options = {"strategy": strategy, "fisher": "exact", "damping": Absolute(0.02)}
        whole = asked(data, tmp_path / f"{strategy}-1", model=fused, **options)[2]
        split = asked(data, tmp_path / f"{strategy}-2", model=parts, **options)[2]
        close(split.values, whole.values)


def test_shared_inputs_are_kept_once(tmp_path):
    """Oracle: one file for gate and up, and the scores of a fit of either alone."""
    model, data = llama(), tokens(6)
    names = [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")]
    options = {"model": model, "fisher": "empirical", "score": {"per_layer": True}}
    _, _, both = asked(data, tmp_path / "both", modules=r"gate_proj|up_proj", **options)
    stage = open_folder(tmp_path / "both").stage("fit")
    assert stage["layers"][names[0]]["right"] == stage["layers"][names[1]]["right"]
    assert sum(file.name.endswith(".A.safetensors") for file in (tmp_path / "both" / "eig").iterdir()) == 1
    for i, part in enumerate(("gate", "up")):
        _, _, single = asked(data, tmp_path / part, modules=f"{part}_proj", **options)
        close(both.layers[..., i], single.values)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Pictures(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 3)
        )


class Signals(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(10, 3))


@pytest.mark.parametrize(("kind", "shape"), [(Twice, (5,)), (Pictures, (1, 5, 5)), (Signals, (1, 5))])
@pytest.mark.parametrize("rank", [None, 2])
def test_weight_sharing_over_calls_and_positions(kind, shape, rank, tmp_path):
    """Oracle: Λ and scores from whole autograd gradients in the stored basis; terms of tokens added up."""
    torch.manual_seed(0)
    net = kind().to(F64).eval()
    x = torch.randn(7, *shape, dtype=F64)
    data = (x, torch.randint(3, (7,)))
    _, factors, scores = asked(
        data, tmp_path / "run", model=net, fisher="empirical", score={"rank": rank, "per_token": True}
    )
    grads = loss_gradients(net, data)
    for name, rows in grads.items():
        rotated = factors[name].left.T @ rows @ factors[name].right
        close(factors.eigenvalues(name), rotated.square().mean(0))
    if rank is None:
        close(scores.values, explicit(factors, grads, grads, 7))
    for n in range(7):
        close(scores.tokens(0, str(n)).sum(), scores.values[0, n])


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize(
    ("dtype", "rank", "tolerance"), [(F64, None, 1e-12), (F64, 2, 1e-12), (torch.float32, 2, 1e-5)]
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_and_layers_add_up(build, dtype, rank, tolerance, side, tmp_path):
    """Oracle: the score of the sequence, asked for without its parts."""
    model, data = build(dtype, layers=2), TokenExamples(as_examples(tokens(6)).sequences, 0, side)
    queries = completions()
    influence, _, plain = asked(
        data, tmp_path / "run", model=model, queries=queries, score={"rank": rank, "refine_topk": 0}
    )
    scores = influence.score(queries, data, tmp_path / "run", rank=rank, per_layer=True, per_token=True, **QUIET)
    close(scores.values, plain.values, tolerance)
    close(scores.layers.sum(-1), plain.values, tolerance)
    found = np.array([[scores.tokens(q, f"s{n}").sum() for n in range(6)] for q in range(3)])
    close(found, plain.values, tolerance)
    assert [len(scores.tokens(0, f"s{n}")) for n in range(6)] == data.lengths


@pytest.mark.parametrize("rank", [8, 9, 1000])
def test_a_rank_as_large_as_the_matrix_is_full(rank, tmp_path):
    """Oracle: rank None; both matrices of the MLP have eight rows or columns, and one of them a bias column."""
    data = tokens(5)
    influence, _, full = asked(data, tmp_path / "run", model=gpt2())
    found = influence.score(data, data, tmp_path / "run", rank=rank, **QUIET)
    close(found.values, full.values, 1e-9)


def test_scores_do_not_depend_on_the_company_of_a_query(tmp_path):
    """Oracle: the query asked alone, at low rank and in float32 as well."""
    for dtype, tolerance in ((F64, 1e-9), (torch.float32, 2.0**-7)):
        data, queries = tokens(6), completions(4)
        folder = tmp_path / str(dtype)
        question = {"rank": 3, "refine_topk": 0}
        influence, _, together = asked(data, folder, model=gpt2(dtype), queries=queries, score=question)
        for q in range(4):
            single = influence.score(queries[q : q + 1], data, folder, **question, **QUIET)
            close(single.values[0], together.values[q], tolerance)


# ------------------------------------------------------------------------------------ options


def test_as_many_blocks_as_outputs_leave_the_diagonal_basis(tmp_path):
    """Oracle: strategy "diagonal" on square matrices, where both bases then are the identity."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 5, bias=False)).to(F64).eval()
    data = points(12, classes=5)
    options = {"model": net, "fisher": "exact"}
    split = asked(data, tmp_path / "split", blocks=5, **options)[2]
    diagonal = asked(data, tmp_path / "diagonal", strategy="diagonal", **options)[2]
    close(split.values, diagonal.values)
    one, default = (asked(data, tmp_path / str(i), **options, **o)[2] for i, o in enumerate(({"blocks": 1}, {})))
    assert np.array_equal(one.values, default.values)


def test_blocks_are_those_of_the_covariance(tmp_path):
    """Oracle: with c blocks a basis is block-diagonal, and equal to that of the diagonal blocks of the dense factor."""
    net, data = classifier(), points(12)
    factors = influence_of(net, data, blocks=2, fisher="exact").fit(data, tmp_path / "run", **QUIET)
    right = factors["0"].right.dense()
    rows = torch.cat([data[0], torch.ones(12, 1, dtype=F64)], 1)
    covariance = rows.T @ rows / 12
    assert torch.count_nonzero(right[:3, 3:]) == torch.count_nonzero(right[3:, :3]) == 0
    for part in (slice(0, 3), slice(3, 6)):
        rotated = right[part, part].T @ covariance[part, part] @ right[part, part]
        torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=1e-12)


class TokenRegression:
    """½ ‖y_t - f(x_t)‖² at every position: a user's own loss, for inputs (B, T, m) with a mask."""

    def __call__(self, model, batch, labels=None):
        outputs = model(batch["inputs"])
        valid = batch["attention_mask"].bool()
        given = batch["labels"] if labels is None else labels
        targets = given(outputs, valid) if callable(given) else given
        return LossOutput((outputs - targets).square().sum(-1) / 2 * valid, outputs, valid)

    def sample(self, logits, uniforms):
        return RegressionLoss().sample(logits, uniforms)

    def uniforms_per_position(self, logits):
        return logits.shape[-1]

    def cotangents(self, logits, valid):
        for t in range(logits.shape[1]):
            for c in range(logits.shape[2]):
                column = torch.zeros_like(logits)
                column[:, t, c] = valid[:, t].to(logits.dtype)
                yield column

    def positions(self, batch, valid):
        return valid, valid


class Ragged(ArrayExamples):
    """Examples of one to four positions."""

    def batch(self, indices):
        batch = super().batch(indices)
        counts = torch.tensor([1 + i % 4 for i in indices])
        return batch | {"attention_mask": (torch.arange(4) < counts[:, None]).long()}

    @property
    def lengths(self):
        return [4] * len(self.labels)


def test_kfac_agrees_with_ekfac_where_tokens_are_independent(tmp_path):
    """Oracle: EK-FAC's table. A deep linear net with squared loss: K-FAC's, with its factor T̄ = 2.5, is the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(F64).eval()
    data = Ragged(torch.randn(8, 4, 4, dtype=F64), torch.randn(8, 4, 2, dtype=F64), [str(i) for i in range(8)])
    tables = {}
    for strategy in ("ekfac", "kfac"):
        influence = Influence(net, loss=TokenRegression(), fisher="exact", strategy=strategy)
        factors = influence.fit(data, tmp_path / strategy, **QUIET)
        assert factors.mean_tokens == 2.5
        tables[strategy] = [factors.eigenvalues(name) for name in influence.layers]
    for kfac, ekfac in zip(tables["kfac"], tables["ekfac"], strict=True):
        close(kfac, ekfac, 1e-10)


def test_relative_and_absolute_damping(tmp_path):
    """Oracle: the absolute value that a relative one works out to, on a single layer; a float is relative."""
    data, net = points(8), nn.Sequential(nn.Linear(5, 3)).to(F64).eval()
    _, factors, relative = asked(data, tmp_path / "0", model=net, damping=Relative(0.3))
    value = 0.3 * float(factors.eigenvalues("0").mean())
    assert factors["0"].damping == pytest.approx(value)
    absolute = asked(data, tmp_path / "1", model=net, damping=Absolute(value))[2]
    number = asked(data, tmp_path / "2", model=net, damping=0.3)[2]
    close(absolute.values, relative.values)
    close(number.values, relative.values)


def test_a_query_that_is_a_training_loss_is_symmetric(tmp_path):
    """Oracle: score(q, n) = score(n, q), and the diagonal is self-influence, computed in the eigenbasis."""
    for strategy in ("ekfac", "kfac", "diagonal", "identity"):
        data, folder = tokens(6), tmp_path / strategy
        influence, _, scores = asked(data, folder, model=gpt2(), strategy=strategy)
        close(scores.values, np.array(scores.values).T)
        own = influence.self_influence(data, folder, **QUIET)
        assert bool((own > 0).all())
        close(own, np.diag(scores.values))


def test_a_measurement_has_the_sign_of_what_it_measures(tmp_path):
    """Oracle: the built-in log-probability; its negative gives the negative scores."""
    data, queries = tokens(6), completions()
    influence, _, builtin = asked(data, tmp_path / "run", model=gpt2(), queries=queries)

    def log_probability(model, batch):
        return -CausalLMLoss()(model, batch).per_token.sum(1)

    def surprise(model, batch):
        return -log_probability(model, batch)

    for sign, measurement in ((1, log_probability), (-1, surprise)):
        found = influence.score(
            queries,
            data,
            tmp_path / "run",
            rank=None,
            measurement=measurement,
            measurement_name=measurement.__name__,
            **QUIET,
        )
        close(found.values, sign * np.array(builtin.values))
    with pytest.raises(ArgumentError, match="measurement_name"):
        influence.score(queries, data, tmp_path / "run", measurement=surprise)


def test_positive_means_that_a_step_on_the_sequence_helps(tmp_path):
    """Oracle: finite differences: the log-probability after a small step along -∇L of one sequence, identity
    strategy."""
    model, data, queries = gpt2(), tokens(4), completions(2)
    _, _, scores = asked(
        data, tmp_path / "run", model=model, queries=queries, strategy="identity", modules="all-linear"
    )
    layers, rate = select_layers(model, "all-linear"), 1e-7
    grads = loss_gradients(model, data, modules="all-linear")
    examples = as_examples(queries)
    for n in range(4):
        changed = {}
        for sign in (1, -1):
            moved = gpt2()
            parameters = dict(moved.named_parameters())
            with torch.no_grad():
                for name, layer in layers.items():
                    for key, value in layer.grads_from_matrix(grads[name][n]).items():
                        parameters[key] -= sign * rate / 4 * value
                changed[sign] = -CausalLMLoss()(moved, examples.batch([0, 1])).per_token.sum(1)
        difference = (changed[1] - changed[-1]) / (2 * rate)
        np.testing.assert_allclose(scores.values[:, n], difference.numpy(), rtol=1e-4, atol=1e-4)


def test_n_is_that_of_the_whole_data_set(tmp_path):
    """Oracle: the explicit formula with N = 8 although the factors saw five; raw scores are N times as large."""
    data = tokens(8)
    model = gpt2()
    influence, factors, scores = asked(data, tmp_path / "run", model=model, fit={"max_sequences": 5})
    assert factors.num_sequences == 5
    grads = loss_gradients(model, data)
    close(scores.values, explicit(factors, grads, grads, 8))
    raw = influence.score(data, data, tmp_path / "run", rank=None, units="raw", **QUIET)
    close(raw.values, 8 * np.array(scores.values))
    other = influence.score(data, data[:3], tmp_path / "run", rank=None, **QUIET)
    close(other.values, scores.values[:, :3])
    again = influence.fit(data, tmp_path / "more", max_sequences=100, **QUIET)
    assert again.num_sequences == 8


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_refined_entries_are_those_of_full_rank(dtype, tmp_path):
    """Oracle: full rank in float32 or wider for the two strongest of either sign, rank 1 elsewhere."""
    model, data, queries = gpt2(dtype), tokens(10), completions()
    influence, _, rough = asked(
        data, tmp_path / "run", model=model, queries=queries, score={"rank": 1, "refine_topk": 0}
    )
    refined = influence.score(queries, data, tmp_path / "run", rank=1, refine_topk=2, **QUIET)
    wide = gpt2(dtype)
    factors = influence_of(model, data).fit(data, tmp_path / "run", **QUIET)
    if dtype == torch.bfloat16:
        wide = wide.float()
    exact = explicit(factors, loss_gradients(wide, queries), loss_gradients(wide, data), 10)
    for q in range(3):
        order = np.argsort(-np.array(rough.values[q]), kind="stable")
        ends, rest = [*order[:2], *order[-2:]], order[2:-2]
        close(refined.values[q][ends], exact[q][ends], 1e-9 if dtype == F64 else 1e-4)
        assert np.array_equal(refined.values[q][rest], rough.values[q][rest])


def test_tokens_the_model_does_not_know_are_named(tmp_path):
    """Oracle: the message; no run where there was none, and the run as it was."""
    influence = influence_of(gpt2(), tokens(3))
    for bad, message in [
        ([1, VOCAB], f"'x' holds token {VOCAB}, but the model knows 0 to {VOCAB - 1}"),
        ([1, -1], "'x' holds token -1"),
        ([1] * 33, "'x' has 33 tokens, more than the model's 32 positions"),
    ]:
        data = [*tokens(3), {"id": "x", "input_ids": bad}]
        with pytest.raises(ArgumentError, match=f"dataset: sequence {message}"):
            influence.fit(data, tmp_path / "run", **QUIET)
        assert not (tmp_path / "run").exists()
        influence.fit(tokens(3), tmp_path / "fitted", **QUIET)
        with pytest.raises(ArgumentError, match=f"queries: sequence {message}"):
            influence.score(data, tokens(3), tmp_path / "fitted", **QUIET)
        with pytest.raises(ArgumentError, match=f"dataset: sequence {message}"):
            influence.score(tokens(3), data, tmp_path / "fitted", **QUIET)
        with pytest.raises(ArgumentError, match=f"dataset: sequence {message}"):
            influence.self_influence(data, tmp_path / "fitted")


@pytest.mark.parametrize(
    ("dtype", "options", "wanted"),
    [
        (F64, {"rank": 1}, 500),
        (F64, {"rank": 1, "refine_topk": 0}, 0),
        (F64, {"rank": 1, "refine_topk": 3}, 3),
        (F64, {"rank": 1, "per_layer": True}, 0),
        (F64, {"rank": 1, "per_token": True}, 0),
        (F64, {"rank": 1, "per_token": True, "refine_topk": 3}, 3),
        (F64, {"rank": None}, 0),
        (F64, {"rank": None, "refine_topk": 3}, 0),
        (F64, {"rank": 9}, 0),  # the matrices are 12 x 9 and 8 x 13 with their biases
        (F64, {}, 0),
        (torch.bfloat16, {"rank": None}, 500),
    ],
)
def test_what_is_refined_by_default(dtype, options, wanted, tmp_path):
    """Oracle: the documented rule: 500 of either sign, none where terms are kept or full rank was there already."""
    influence, _, scores = asked(tokens(4), tmp_path / "run", model=gpt2(dtype), score={"rank": 32} | options)
    assert scores.state["refine_topk"] == wanted
    if wanted == 500:  # more than there are: all are at full rank
        full = np.array(influence.score(tokens(4), tokens(4), tmp_path / "run", rank=None, **QUIET).values)
        close(scores.values, full, 1e-9 if dtype == F64 else 1e-6)


def test_ihvp_is_what_the_scores_contract(tmp_path):
    """Oracle: the scores, from the gradients of whole parameters by autograd."""
    model, data = gpt2(), tokens(5)
    influence, factors, scores = asked(data, tmp_path / "run", model=model)
    parameters = dict(model.named_parameters())
    rows = []
    for row in data:
        batch = as_examples([row]).batch([0])
        value = CausalLMLoss()(model, batch).per_token.sum()
        rows.append(dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True)))
    for q in range(5):
        solved = influence.ihvp(rows[q], factors)
        assert all(solved[name].shape == parameters[name].shape for name in solved)
        found = [sum(float((solved[k] * row[k]).sum()) for k in solved) / 5 for row in rows]
        close(found, scores.values[q])


def test_the_operator_of_a_layer(tmp_path):
    """Oracle: the dense matrix (Q_S ⊗ Q_A) diag(Λ + λ) (Q_S ⊗ Q_A)ᵀ, whose inverse is what preconditions."""
    data = points(9)
    influence, factors, _ = asked(data, tmp_path / "run", model=classifier())
    for name, layer in influence.layers.items():
        basis = torch.kron(factors[name].left, factors[name].right)
        dense = basis * (factors.eigenvalues(name) + factors[name].damping).flatten() @ basis.T
        operator = factors.operator(name)
        torch.testing.assert_close(operator.to_dense(), dense)
        matrix = torch.randn(layer.out_features, layer.columns, dtype=F64)
        solved = operator.solve(matrix.flatten()).view_as(matrix)
        torch.testing.assert_close(factors.precondition(name, matrix), solved)


def test_bfloat16_models_run_and_agree(tmp_path):
    """Oracle: the float32 scores of the same weights: correlation at least 0.98, factors in float32."""
    data, queries, values = tokens(40, high=12), completions(8), {}
    for dtype in (torch.float32, torch.bfloat16):
        model = gpt2(torch.bfloat16, layers=2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.div_(3)  # as smooth as a trained model
        model = model.to(dtype)
        _, factors, scores = asked(
            data,
            tmp_path / str(dtype),
            model=model,
            queries=queries,
            fisher="empirical",
            score={"rank": 4, "refine_topk": 0},
        )
        assert factors.eigenvalues("transformer.h.0.mlp.c_fc").dtype == torch.float32
        assert scores.values.dtype == np.float32
        values[dtype] = np.array(scores.values)
    for q in range(8):
        assert np.corrcoef(values[torch.float32][q], values[torch.bfloat16][q])[0, 1] >= 0.98


def test_attended_positions_enter_the_input_factor(tmp_path):
    """Oracle: by hand, for a prompt-and-completion row: A over all positions, or over those that carry a gradient."""
    model = gpt2()
    row = {"id": "s0", "input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, 3, -100, -100, -100]}
    counts = {}
    for positions in ("gradient", "attended"):
        influence = Influence(model, positions=positions, fisher="empirical")
        influence.fit([row], tmp_path / positions, **QUIET)
        counts[positions] = open_folder(tmp_path / positions).stage("fit")["counts"]
    name = "transformer.h.0.mlp.c_fc"
    assert counts["gradient"][name] == {"A": 2, "S": 2}
    assert counts["attended"][name] == {"A": 6, "S": 6}


def test_the_same_call_again_computes_nothing(tmp_path):
    """Oracle: the same values, with a model that would now fail; a further question leaves the first in place."""
    data = tokens(5)
    influence, _, first = asked(data, tmp_path / "run", model=gpt2())
    handle = influence.model.register_forward_hook(lambda *_: pytest.fail("the model was run"))
    again = influence.score(data, data, tmp_path / "run", rank=None, **QUIET)
    influence.fit(data, tmp_path / "run", **QUIET)
    handle.remove()
    assert np.array_equal(first.values, again.values)
    influence.score(data, data, tmp_path / "run", rank=2, **QUIET)
    assert np.array_equal(first.values, again.values)


def test_the_model_is_left_as_it_was(tmp_path):
    """Oracle: weights, flags, hooks and gradients before and after."""
    model, data = gpt2(), tokens(4)
    model.transformer.wte.weight.requires_grad_(False)
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    asked(data, tmp_path / "run", model=model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_checkpointed_blocks_give_the_same_factors(tmp_path):
    """Oracle: the eager model; Λ of a net whose blocks are recomputed in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    class Blocks(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.reentrant = reentrant
            self.first = nn.Linear(5, 6)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(2))
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            h = self.first(x)
            for block in self.blocks:
                h = h + (block(h) if self.reentrant is None else checkpoint(block, h, use_reentrant=self.reentrant))
            return self.last(h)

    data, tables, weights = points(9), [], None
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        net = Blocks(reentrant).to(F64).eval()
        weights = net.state_dict() if weights is None else weights
        net.load_state_dict(weights)
        _, factors, scores = asked(data, tmp_path / str(reentrant), model=net)
        tables.append(([factors.eigenvalues(n) for n in factors.layers], np.array(scores.values)))
    for found, values in tables[1:]:
        close(values, tables[0][1])
        for table, wanted in zip(found, tables[0][0], strict=True):
            close(table, wanted)


def test_factors_do_not_need_a_run(tmp_path):
    """Oracle: sums over one backward pass by hand, for whoever builds factors from the stream alone."""
    net, data = classifier(), points(6)
    factors = influence_of(net, data, fisher="empirical").fit(data, tmp_path / "run", **QUIET)
    covariances = {}

    def consume(rows):
        covariances[rows.layer.name] = rows.grads.flatten(0, 1).T @ rows.grads.flatten(0, 1) / 6

    with dgrad_only(net), LayerStream(select_layers(net), consume) as stream, stream.batch():
        stream.backward(nn.functional.cross_entropy(net(data[0]), data[1], reduction="sum"))
    for name, covariance in covariances.items():
        rotated = factors[name].left.T @ covariance @ factors[name].left
        torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=1e-12)


def test_factors_print_in_a_line(tmp_path):
    """Oracle: the counts that went in; no tensor is printed."""
    net, data = classifier(), points(6)
    factors = influence_of(net, data, fisher="empirical").fit(data, tmp_path / "run", **QUIET)
    assert repr(factors) == f"Factors(ekfac, {len(factors.layers)} layers, fitted on 6 sequences)"


@pytest.mark.parametrize("strategy", ["diagonal", "identity"])
def test_self_influence_of_half_precision_gradients(strategy, tmp_path):
    """Oracle: the same bfloat16 gradients, squared and summed in float64: rounding of squares would be 1e-3."""
    model, train = gpt2(torch.bfloat16, layers=2), tokens(6)
    influence = Influence(model, strategy=strategy)
    factors = influence.fit(train, tmp_path / "run", **QUIET)
    found = influence.self_influence(train, tmp_path / "run", **QUIET)
    run_pass = Pass(model, CausalLMLoss(), influence.layers)
    wanted = torch.zeros(6, dtype=F64)
    for name, stack in stacked_gradients(run_pass, as_examples(train), batch_tokens=4096).items():
        damped = factors[name].damped()
        squares = stack.double().square()
        wanted += (squares if damped is None else squares / damped.double()).sum((1, 2)) / 6
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=0)
