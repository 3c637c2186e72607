"""Solvers behind `Influence`: dense oracles, ranks and refinement, restarts, and where the training set comes from."""

import numpy as np
import pytest
import torch

from benchmarks.influence._reliability import content, memory_folder, tiny_model, tiny_sequences
from hesse.errors import ArgumentError, MemoryLimitError
from hesse.influence import Influence, StreamExamples, keep_corpus
from hesse.influence.engine import Influence as Engine
from hesse.influence.objective import CausalLMLoss, ClassificationLoss
from hesse.influence.run import open_folder
from hesse.influence.settings import fitted_on
from hesse.influence.solvers import CG, PCG, LiSSA
from tests.influence._tiny import classifier, gpt2, loss_gradients, points, tokens
from tests.influence.solvers.test_system import as_columns, dense_system

F64 = torch.float64
EXACT = PCG(steps=400, rtol=1e-11)


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: numbers are tested here, not disks."""
    with memory_folder() as folder:
        yield folder


def close(found, wanted, tolerance):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("build", "solver"), [(classifier, EXACT), (classifier, CG(steps=400, rtol=1e-12)), (gpt2, EXACT)]
)
def test_converged_scores_are_those_of_the_dense_matrix(build, solver, tmp_path):
    """Oracle: (1/N) ∇L_qᵀ (G + λI)⁻¹ ∇L_n with the dense G of all tracked layers together, to 1e-8 in float64."""
    model = build()
    data, queries = (
        (points(8), points(3, seed=5)) if build is classifier else (tokens(3, high=4), tokens(2, seed=5, high=5))
    )
    loss = ClassificationLoss() if build is classifier else CausalLMLoss()
    influence = Influence(model, strategy=solver, loss=loss, damping=1.0)  # few steps converge
    factors = influence.fit(data, tmp_path / "run", progress=False)
    scores = influence.score(queries, data, tmp_path / "run", rank=None, progress=False)
    dense = dense_system(model, data, influence, factors)
    asked, train = (as_columns(loss_gradients(model, rows), influence.layers) for rows in (queries, data))
    close(scores.values, asked.T @ torch.linalg.solve(dense, train) / train.shape[1], 1e-8)
    assert len(scores.state["residual"]) == len(scores.query_ids)
    assert max(scores.state["residual"]) <= 1e-10
    own = influence.self_influence(data, tmp_path / "run", progress=False)
    close(own, (train * torch.linalg.solve(dense, train)).sum(0) / train.shape[1], 1e-8)
    gradients = dict(zip(*_named_gradient(model, queries, loss), strict=True))
    found = influence.ihvp(gradients, factors)
    solved = torch.linalg.solve(dense, asked[:, :1])
    named = {name: layer.matrix_from_grads(found)[None] for name, layer in influence.layers.items()}
    close(as_columns(named, influence.layers), solved, 1e-8)


def _named_gradient(model, queries, loss):
    from tests.influence._tiny import batches_of_one

    names, parameters = zip(*model.named_parameters(), strict=True)
    value = loss(model, batches_of_one(queries)[0]).per_token.sum()
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return names, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def test_measurements_have_the_sign_of_what_they_measure(tmp_path):
    """Oracle: the log-probability as a measurement gives the scores of the completion itself."""
    net, data = classifier(), points(8)
    influence = Influence(net, strategy=PCG(steps=5), loss=ClassificationLoss())
    influence.fit(data, tmp_path / "run", progress=False)

    def log_probability(model, batch):
        return model(batch["inputs"]).log_softmax(-1).gather(1, batch["labels"][:, None])[:, 0]

    plain = np.array(influence.score(data, data, tmp_path / "run", rank=None, progress=False).values)
    measured = influence.score(
        data, data, tmp_path / "run", rank=None, progress=False, measurement=log_probability, measurement_name="log p"
    )
    close(measured.values, plain, 1e-9)


def test_one_run_answers_with_and_without_a_solver(tmp_path):
    """Oracle: each question asked of a run of its own; 0 steps are the factors' answer."""
    net, data = classifier(), points(8)
    answers = {}
    for strategy in ("ekfac", PCG(steps=0), PCG(steps=6), "cg"):
        influence = Influence(net, strategy=strategy, loss=ClassificationLoss())
        influence.fit(data, tmp_path / "shared", progress=False)
        shared = influence.score(data, data, tmp_path / "shared", rank=None, progress=False).values
        own = tmp_path / str(len(answers))
        influence.fit(data, own, progress=False)
        answers[strategy] = np.array(influence.score(data, data, own, rank=None, progress=False).values)
        close(shared, answers[strategy], 1e-12)
    close(answers[PCG(steps=0)], answers["ekfac"], 1e-10)
    assert np.abs(answers[PCG(steps=6)] - answers["ekfac"]).max() > 1e-3 * np.abs(answers["ekfac"]).max()


def test_ranks_terms_and_refinement(tmp_path):
    """Oracle: the full-rank scores; refined at rank 2 equal them; terms sum to the rest."""
    model, data, queries = tiny_model(F64), tiny_sequences(9), tiny_sequences(3, 1, prompt=2)
    influence = Influence(model, modules=r"^blocks\.", strategy=PCG(steps=4), damping=1.0)
    influence.fit(data, tmp_path / "run", progress=False)
    ask = {"progress": False, "batch_tokens": 24}
    full = np.array(influence.score(queries, data, tmp_path / "run", rank=None, **ask).values)
    refined = influence.score(queries, data, tmp_path / "run", rank=2, refine_topk=9, **ask)
    close(refined.values, full, 1e-9)
    parts = influence.score(queries, data, tmp_path / "run", rank=2, per_layer=True, per_token=True, **ask)
    close(np.asarray(parts.layers).sum(-1), parts.values, 1e-9)
    by_token = [[parts.tokens(q, name).sum() for name in parts.sequence_ids] for q in range(3)]
    close(by_token, parts.values, 1e-9)
    # 4 steps for a sum are not the sum of 4 steps for each of its terms: only solutions add up
    solved = Influence(model, modules=r"^blocks\.", strategy=CG(steps=300, rtol=1e-8), damping=1.0)
    whole = solved.score(queries, data, tmp_path / "run", rank=None, **ask)
    each = solved.score(queries, data, tmp_path / "run", rank=None, per_query_token=True, **ask)
    close(each.values, whole.values, 1e-6)


def test_a_killed_question_is_taken_up(tmp_path, monkeypatch):
    """Oracle: the files of a run that was not interrupted, byte by byte; no answer is solved twice."""
    import hesse.influence.solvers.stored as stored

    model, data, queries = tiny_model(), tiny_sequences(6), tiny_sequences(5, 1, prompt=2)
    monkeypatch.setattr(stored, "_MOST", 2)
    solved = []

    def work(folder, limit):
        def counted(system, gradients, solver):
            if len(solved) == limit:
                raise KeyboardInterrupt
            solved.append(len(next(iter(gradients.values()))))
            return original(system, gradients, solver)

        original = monkeypatch_solve
        monkeypatch.setattr(stored, "solve", counted)
        influence = Influence(model, modules=r"^blocks\.", strategy=PCG(steps=2))
        influence.fit(data, folder, progress=False)
        influence.score(queries, data, folder, rank=2, refine_topk=1, progress=False)

    monkeypatch_solve = stored.solve
    work(tmp_path / "whole", None)
    assert solved == [2, 2, 1]
    solved.clear()
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "cut", 2)
    work(tmp_path / "cut", None)
    assert solved == [2, 2, 1]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_where_the_training_set_comes_from(tmp_path):
    """Oracle: the same question asked where the training set is at hand; where it is not, a refusal that says so."""
    model, data = tiny_model(F64), tiny_sequences(6)
    others, queries = tiny_sequences(4, 3), tiny_sequences(2, 1, prompt=2)
    options = {"modules": r"^blocks\.", "strategy": PCG(steps=3)}
    first = Influence(model, **options)
    first.fit(data, tmp_path / "run", progress=False)
    wanted = np.array(first.score(queries, others, tmp_path / "run", rank=None, progress=False).values)
    fresh = Engine(model, **options)
    with pytest.raises(ArgumentError, match="strategy: a solver multiplies with the curvature of the training set"):
        fresh.score(queries, others, tmp_path / "run", rank=4, refine_topk=0, progress=False)
    with pytest.raises(ArgumentError, match="ihvp: a solver multiplies with the training set"):
        fresh.ihvp(dict(model.named_parameters()), first.fit(data, tmp_path / "run", progress=False))
    keep_corpus(tmp_path / "run", "train", data)
    found = fresh.score(queries, others, tmp_path / "run", rank=4, refine_topk=9, progress=False)
    close(found.values, wanted, 1e-9)


def test_the_curvature_is_that_of_the_sequences_fitted_on(tmp_path):
    """Oracle: the dense matrix of the random subset, told by a factor fit on that subset alone."""
    net, (x, y) = classifier(), points(12)
    influence = Influence(net, strategy=EXACT, loss=ClassificationLoss(), fisher="exact")
    factors = influence.fit((x, y), tmp_path / "run", max_sequences=5, progress=False)
    part = fitted_on(12, 5, seed=0)
    alone = Influence(net, loss=ClassificationLoss(), fisher="exact")
    other = alone.fit((x[part], y[part]), tmp_path / "part", progress=False)
    for name in influence.layers:
        torch.testing.assert_close(factors.eigenvalues(name), other.eigenvalues(name))
    scores = influence.score((x, y), (x, y), tmp_path / "run", rank=None, progress=False)
    dense = dense_system(net, (x[part], y[part]), influence, factors)
    columns = as_columns(loss_gradients(net, (x, y)), influence.layers)
    close(scores.values, columns.T @ torch.linalg.solve(dense, columns) / 12, 1e-8)


def test_streams_are_solved_alike(tmp_path):
    """Oracle: the same sequences held in memory, by every method."""
    model, data, queries = tiny_model(F64), tiny_sequences(7), tiny_sequences(2, 1, prompt=2)
    answers = []
    for number, train in enumerate((data, StreamExamples(lambda: iter(data)))):
        for solver in (PCG(steps=3), LiSSA(steps=3, batch_size=3)):
            influence = Influence(model, modules=r"^blocks\.", strategy=solver)
            influence.fit(train, tmp_path / str(number), progress=False)
            scores = influence.score(queries, train, tmp_path / str(number), rank=None, progress=False)
            answers.append(np.array(scores.values))
    close(answers[:2], answers[2:], 1e-9)


def test_bfloat16_models_are_solved_in_float32(tmp_path):
    """Oracle: the float32 model with the same weights, to the rounding of bfloat16 gradients of candidates."""
    narrow = tiny_model().to(torch.bfloat16)
    wide = tiny_model()
    wide.load_state_dict({name: t.float() for name, t in narrow.state_dict().items()})
    data, queries, answers = tiny_sequences(8), tiny_sequences(2, 1, prompt=2), []
    for number, model in enumerate((narrow, wide)):
        influence = Influence(model, modules=r"^blocks\.", strategy=LiSSA(steps=20, seed=3))
        influence.fit(data, tmp_path / str(number), progress=False)
        scores = influence.score(queries, data, tmp_path / str(number), rank=None, progress=False)
        answers.append(np.array(scores.values).ravel())
    assert np.corrcoef(*answers)[0, 1] > 0.98


def test_a_question_too_large_is_refused_before_work(tmp_path):
    """Oracle: the message; nothing was added to the run."""
    net, data = classifier(), points(6)
    influence = Influence(net, strategy="pcg", loss=ClassificationLoss())
    influence.fit(data, tmp_path / "run", progress=False)
    with pytest.raises(MemoryLimitError, match="strategy: to solve one query takes"):
        influence.score(data, data, tmp_path / "run", rank=None, query_memory=5000, progress=False)
    assert not any(name.startswith("score") for name in open_folder(tmp_path / "run").manifest.stages)


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_shampoo_measures_the_block_in_its_own_basis(fisher, tmp_path):
    """Oracle: with all labels, the diagonal of the dense block in the fitted basis; the basis is orthonormal."""
    from tests.influence._tiny import dense_block

    model, data = gpt2(), tokens(3, high=6)
    influence = Influence(model, strategy="shampoo", fisher=fisher, modules="attention")
    factors = influence.fit(data, tmp_path / "run", progress=False)
    for name, layer in influence.layers.items():
        found = factors.eigenvalues(name)
        assert bool((found >= 0).all())
        eye = torch.eye(layer.columns, dtype=F64)
        torch.testing.assert_close(factors[name].right.T @ factors[name].right, eye, rtol=0, atol=1e-10)
        if fisher == "exact":
            basis = torch.kron(factors[name].left, factors[name].right)
            wanted = (basis.T @ dense_block(model, data, layer) @ basis).diagonal().view_as(found)
            close(found, wanted, 1e-8)


def test_strategies_that_are_neither_name_nor_options(tmp_path):
    """Oracle: the message names the argument and what it takes."""
    with pytest.raises(ArgumentError, match=r"strategy: expected one of ekfac, .*lissa, got 'bfgs'"):
        Influence(classifier(), strategy="bfgs", loss=ClassificationLoss())
    with pytest.raises(TypeError, match="strategy: expected text, PCG, CG, LiSSA or Source"):
        Influence(classifier(), strategy=3, loss=ClassificationLoss())
