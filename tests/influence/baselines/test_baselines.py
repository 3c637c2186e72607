"""Baselines against loops and dense matrices, and what they have in common."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from hesse.curvature.ekfac import Absolute, Relative
from hesse.errors import ArgumentError
from hesse.influence import Influence, TokenExamples, as_examples, bm25_scores
from hesse.influence import baselines as family
from hesse.influence.baselines import bm25, datainf, embedding_cosine, gradient_cosine, gradient_dot, tracin, trak
from hesse.influence.baselines.trak import _features
from hesse.influence.gradients import gradient_pass
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, RegressionLoss
from hesse.linalg.sketch import SparseSign
from tests.influence._tiny import F64, batches_of_one, classifier, gpt2, loss_gradients, points, tokens


def cases():
    yield classifier(), points(3, seed=5), points(8), ClassificationLoss()
    yield gpt2(), tokens(2, seed=5), tokens(6), CausalLMLoss()


@pytest.fixture(params=[0, 1], ids=["classifier", "gpt2"])
def case(request):
    """Model, queries, training set, loss."""
    return list(cases())[request.param]


def flat(grads):
    return torch.cat([stack.flatten(1) for stack in grads.values()], 1)


def test_gradient_dot_is_the_identity_strategy(case, tmp_path):
    """Oracle: gradients by a loop, multiplied; and `Influence` with strategy "identity"."""
    model, queries, data, loss = case
    found = gradient_dot(model, queries, data, loss=loss, batch_tokens=10)
    asked, train = flat(loss_gradients(model, queries)), flat(loss_gradients(model, data))
    torch.testing.assert_close(found, asked @ train.T / len(train))
    influence = Influence(model, strategy="identity", loss=loss)
    influence.fit(data, tmp_path / "run", progress=False)
    scores = influence.score(queries, data, tmp_path / "run", rank=None, progress=False)
    np.testing.assert_allclose(scores.values, found.numpy(), rtol=1e-9, atol=1e-12)


def test_gradient_cosine_is_the_cosine(case):
    """Oracle: cosine_similarity of gradients by a loop; a gradient of zero has the cosine 0."""
    model, queries, data, loss = case
    found = gradient_cosine(model, queries, data, loss=loss)
    asked, train = flat(loss_gradients(model, queries)), flat(loss_gradients(model, data))
    wanted = nn.functional.cosine_similarity(asked[:, None], train[None], dim=2)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        gradient_cosine(model, data, data, loss=loss).diagonal(), torch.ones(len(train), dtype=F64)
    )
    dead = [{"id": "q", "input_ids": [1, 2], "labels": [-100, -100]}]
    if isinstance(loss, CausalLMLoss):
        assert not bool(gradient_cosine(model, dead, data).any())


def test_tracin_sums_over_checkpoints(case):
    """Oracle: a loop over loaded states of rate times the dot product of gradients; the model is as it was."""
    model, queries, data, loss = case
    before = {name: t.clone() for name, t in model.state_dict().items()}
    states = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        noise = {name: 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for name, t in before.items()}
        states.append({name: before[name] + noise[name] for name in before})
    rates = [0.3, 0.05]
    found = tracin(model, queries, data, loss=loss, checkpoints=(state for state in states), learning_rates=rates)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    wanted = 0
    for rate, state in zip(rates, states, strict=True):
        model.load_state_dict(state)
        wanted = wanted + rate * flat(loss_gradients(model, queries)) @ flat(loss_gradients(model, data)).T
    torch.testing.assert_close(found, wanted)


def test_tracin_is_what_gradient_steps_bring():
    """Oracle: the loss of a query before and after one small step of plain gradient descent on each sequence alone."""
    net, (x, y), (qx, qy) = classifier(), points(4), points(2, seed=8)
    rate = 1e-5
    found = tracin(
        net, (qx, qy), (x, y), loss=ClassificationLoss(), checkpoints=[net.state_dict()], learning_rates=[rate]
    )
    before = nn.functional.cross_entropy(net(qx), qy, reduction="none")
    for n in range(4):
        step = classifier()
        nn.functional.cross_entropy(step(x[n : n + 1]), y[n : n + 1]).backward()
        with torch.no_grad():
            for p in step.parameters():
                p -= rate * p.grad
        gain = before - nn.functional.cross_entropy(step(qx), qy, reduction="none")
        torch.testing.assert_close(found[:, n], gain, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("damping", [Relative(0.1), Absolute(0.02), 0.3])
def test_datainf_is_the_mean_of_the_inverses(case, damping):
    """Oracle: (1/N) Σ_i (g_i g_iᵀ + λI)⁻¹ by dense inverses, layer by layer."""
    model, queries, data, loss = case
    found = datainf(model, queries, data, loss=loss, damping=damping)
    asked, train, wanted = loss_gradients(model, queries), loss_gradients(model, data), 0
    for name in train:
        v, g = asked[name].flatten(1), train[name].flatten(1)
        size = g.shape[1]
        rule = Relative(damping) if isinstance(damping, float) else damping
        value = float(rule.of(g.square().sum(1).mean().reshape(1) / size))
        eye = torch.eye(size, dtype=F64)
        inverse = torch.stack([torch.linalg.inv(torch.outer(row, row) + value * eye) for row in g]).mean(0)
        wanted = wanted + v @ inverse @ g.T / len(g)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_trak_is_the_regression_on_projected_margins(case):
    """Oracle: gradients of Σ log p/(1-p) by a loop, the projections as dense matrices, the damped normal equations."""
    model, queries, data, loss = case
    found = trak(model, queries, data, loss=loss, dimensions=4, damping=0.01, seed=3)
    run_pass, generator = gradient_pass(model, loss=loss), torch.Generator().manual_seed(3)
    sketches = {
        name: SparseSign(layer.out_features * layer.columns, 4, 4, generator=generator, dtype=F64)
        for name, layer in run_pass.layers.items()
    }
    names, parameters = zip(*model.named_parameters(), strict=True)

    def features(rows):
        out, doubts = [], []
        for batch in batches_of_one(rows):
            output = loss(model, batch)
            p = torch.exp(-output.per_token[output.valid])
            grads = torch.autograd.grad((p.log() - (1 - p).log()).sum(), parameters, allow_unused=True)
            named = dict(zip(names, grads, strict=True))
            matrices = {name: layer.matrix_from_grads(named) for name, layer in run_pass.layers.items()}
            out.append(sum(sketches[name].to_dense() @ matrix.flatten() for name, matrix in matrices.items()))
            doubts.append((1 - p).mean())
        return torch.stack(out), torch.stack(doubts).detach()

    asked, (train, doubt) = features(queries)[0], features(data)
    gram = train.T @ train
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(4, dtype=F64)
    torch.testing.assert_close(found, asked @ torch.linalg.solve(gram, train.T) * doubt, rtol=1e-7, atol=1e-9)
    ours, ours_doubt = _features(run_pass, as_examples(data), sketches, 4, 10, "dataset")
    torch.testing.assert_close(ours, train)
    torch.testing.assert_close(ours_doubt, doubt)


def test_trak_averages_over_models(case):
    """Oracle: each model alone, whose projection has its own seed; the doubts are averaged apart."""
    model, queries, data, loss = case
    states = [model.state_dict(), {name: 0.9 * t for name, t in model.state_dict().items()}]
    both = trak(model, queries, data, loss=loss, checkpoints=states, dimensions=4, seed=3)
    products, doubts = [], []
    for number, state in enumerate(states):
        model.load_state_dict(state)
        run_pass = gradient_pass(model, loss=loss)
        wide = {
            name: SparseSign(layer.out_features * layer.columns, 1, 1, dtype=F64)
            for name, layer in run_pass.layers.items()
        }
        doubts.append(_features(run_pass, as_examples(data), wide, 1, 50, "x")[1])
        products.append(trak(model, queries, data, loss=loss, dimensions=4, seed=3 + number) / doubts[-1])
    torch.testing.assert_close(both, (sum(products) / 2) * (sum(doubts) / 2), rtol=1e-8, atol=1e-10)


def test_bm25_reads_tokens_only():
    """Oracle: `bm25_scores` on the token ids, also of rows kept as one array."""
    queries, data = tokens(2, seed=5), tokens(6)
    wanted = bm25_scores(*([np.asarray(row["input_ids"]) for row in rows] for rows in (queries, data)))
    torch.testing.assert_close(bm25(None, queries, data), torch.from_numpy(wanted))
    square = np.arange(20).reshape(4, 5)
    wanted = bm25_scores([np.asarray(row["input_ids"]) for row in queries], list(square))
    torch.testing.assert_close(bm25(gpt2(), queries, square), torch.from_numpy(wanted))


@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_are_the_mean_hidden_states(side):
    """Oracle: the last hidden state of one unpadded sequence at a time, averaged and normalised."""
    model, queries, data = gpt2(), tokens(2, seed=5), tokens(6)

    def states(rows):
        found = [model(row["input_ids"], output_hidden_states=True).hidden_states[-1] for row in batches_of_one(rows)]
        return nn.functional.normalize(torch.stack([hidden[0].mean(0) for hidden in found]), dim=1)

    with torch.no_grad():
        wanted = states(queries) @ states(data).T
    padded = TokenExamples(as_examples(data).sequences, side=side)
    torch.testing.assert_close(embedding_cosine(model, queries, padded), wanted)


def test_embeddings_of_plain_modules():
    """Oracle: the input of the last linear layer, and of one that is named."""
    net, (x, _), (qx, _) = classifier(), points(6), points(2, seed=8)
    for layer, inner in ((None, net[:2]), ("0", nn.Identity())):
        found = embedding_cosine(net, points(2, seed=8), points(6), layer=layer, loss=ClassificationLoss())
        wanted = nn.functional.cosine_similarity(inner(qx)[:, None], inner(x)[None], dim=2)
        torch.testing.assert_close(found, wanted.detach())


def test_all_are_called_alike():
    """Oracle: the first three parameters, the shape, and the order: a permuted data set permutes the columns."""
    model, queries, data = gpt2(), tokens(2, seed=5), tokens(6)
    order = [3, 0, 5, 1, 4, 2]
    extra = {
        "tracin": {"checkpoints": [model.state_dict()], "learning_rates": [0.1]},
        "trak": {"dimensions": 3},
    }
    for name in family.__all__:
        function = getattr(family, name)
        assert list(inspect.signature(function).parameters)[:3] == ["model", "queries", "dataset"]
        found = function(model, queries, data, **extra.get(name, {}))
        assert found.shape == (2, 6)
        permuted = function(model, queries, [data[i] for i in order], **extra.get(name, {}))
        torch.testing.assert_close(permuted, found[:, order], rtol=1e-6, atol=1e-9)


def test_float32_and_long_data():
    """Oracle: float64; 300 sequences cross the window of 256."""
    data = points(300)
    narrow = tuple(t.float() if t.is_floating_point() else t for t in data)
    for function, options in ((gradient_dot, {}), (datainf, {}), (trak, {"dimensions": 8})):
        wide = function(classifier(), points(2, seed=8), data, loss=ClassificationLoss(), **options)
        found = function(
            classifier(torch.float32),
            points(2, seed=8, dtype=torch.float32),
            narrow,
            loss=ClassificationLoss(),
            **options,
        )
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wide, rtol=2e-3, atol=2e-3 * float(wide.abs().max()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, q, d: tracin(m, q, d, checkpoints=[], learning_rates=[]), "learning_rates: expected"),
        (
            lambda m, q, d: tracin(m, q, d, checkpoints=[m.state_dict()], learning_rates=[-1.0]),
            "learning_rates: expected",
        ),
        (
            lambda m, q, d: tracin(m, q, d, checkpoints=[m.state_dict()], learning_rates=[1.0, 1.0]),
            "expected 2, as many",
        ),
        (
            lambda m, q, d: tracin(m, q, d, checkpoints=[m.state_dict()] * 2, learning_rates=[1.0]),
            "expected 1, as many as learning rates",
        ),
        (
            lambda m, q, d: tracin(
                m, q, d, checkpoints=iter([m.state_dict()]), learning_rates=[1.0, 1.0], loss=ClassificationLoss()
            ),
            "expected 2, as many as learning rates, got 1",
        ),
        (lambda m, q, d: trak(m, q, d, checkpoints=[]), "expected at least one"),
        (lambda m, q, d: trak(m, q, d, checkpoints=[{"a": torch.ones(1)}]), "number 1 does not fit the model"),
        (lambda m, q, d: trak(m, q, d, dimensions=0), "dimensions: expected >= 1"),
        (lambda m, q, d: trak(m, q, d, damping=-1.0), "damping: expected"),
        (lambda m, q, d: trak(m, q, d, seed=-1), "seed: expected"),
        (lambda m, q, d: trak(m, q, d, loss=RegressionLoss()), "loss: TRAK's log-odds"),
        (
            lambda m, q, d: datainf(m, q, d, loss=ClassificationLoss(), damping=0.0),
            "damping: that of layer '0' is zero",
        ),
        (lambda m, q, d: embedding_cosine(m, q, d, layer="7"), "layer: the model has no module '7'"),
        (lambda m, q, d: embedding_cosine(nn.Tanh().eval(), q, d), "layer: the model has no output embedding"),
        (bm25, "queries: shared tokens"),
        (lambda m, q, d: gradient_dot(m.train(), q, d), r"call model.eval\(\) first"),
    ],
)
def test_bad_input_is_refused(call, message):
    """Oracle: the message names the argument."""
    with pytest.raises(ArgumentError, match=message):
        call(classifier(), points(2, seed=8), points(4))
