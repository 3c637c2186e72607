"""Stored projected gradients: exact with all eigenvectors, resumable, and closed to other models."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArtifactError, NumericalError
from hesse.influence import Influence
from hesse.influence.prefilter import build_projected, open_projected, projected
from tests.influence import _tiny


def fit(tmp_path, dtype=torch.float64, **options):
    influence = Influence(_tiny.gpt2(dtype), fisher="empirical", **options)
    train = _tiny.tokens(30, seed=2)
    queries = [row | {"id": f"q{i}"} for i, row in enumerate(_tiny.tokens(3, seed=9))]
    influence.fit(train, tmp_path / "run", progress=False)
    return influence, train, queries, tmp_path / "run"


def error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal", "blocks"])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_with_all_eigenvectors_the_scores_are_those_at_full_rank(tmp_path, strategy, dtype, bar):
    """Oracle: `Influence.score` at full rank."""
    options = {"blocks": 2} if strategy == "blocks" else {"strategy": strategy}
    influence, train, queries, run = fit(tmp_path, dtype, **options)
    stored = "float32" if dtype == torch.float32 else "float64"
    influence.index(train, run, k_in=99, k_out=99, dtype=stored, part_size=7, progress=False)
    found = influence.ask(queries, run)
    full = influence.score(queries, train, run, rank=None, progress=False)
    assert found.train_ids == full.train_ids
    assert error(found.values, full.values) < bar


def test_fewer_eigenvectors_are_a_part_of_the_sum(tmp_path):
    """Oracle: dense gradients by a loop, rotated, cut to the leading rows and columns, in float64."""
    influence, train, queries, run = fit(tmp_path)
    index = influence.index(train, run, k_in=3, k_out=2, dtype="float64", progress=False)
    gradients = _tiny.loss_gradients(influence.model, train)
    asked = _tiny.loss_gradients(influence.model, queries)
    factors = influence.fit(train, run, progress=False)
    wanted = 0
    for name in influence.layers:
        factor = factors[name]
        rows = factor.table.sum(1).argsort(descending=True)[:2]
        columns = factor.table.sum(0).argsort(descending=True)[:3]
        scale = factor.damped()[rows][:, columns]
        cut = [(factor.left.T @ g[name] @ factor.right)[:, rows][:, :, columns] for g in (asked, gradients)]
        wanted = wanted + torch.einsum("qij,nij->qn", cut[0] / scale, cut[1]) / len(train)
    assert error(influence.ask(queries, run).values, wanted.numpy()) < 1e-10
    assert next(index.parts())[1].shape == (30, 6 * len(influence.layers))


@pytest.mark.parametrize(("dtype", "bar"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_rounds_only(tmp_path, dtype, bar):
    """Oracle: the same index in float64; bars a few times the rounding of the dtype."""
    influence, train, queries, run = fit(tmp_path)
    influence.index(train, run, dtype=dtype, progress=False)
    found = influence.ask(queries, run)
    full = influence.score(queries, train, run, rank=None, progress=False)
    assert error(found.values, full.values) < bar


def test_a_killed_index_goes_on(tmp_path, monkeypatch):
    """Oracle: the checksums of an index made in one go."""
    influence, train, _queries, run = fit(tmp_path)
    wanted = influence.index(train, run, part_size=8, progress=False)
    (run / "projected").rename(tmp_path / "whole")
    features = projected._features

    def dying(*arguments):
        if arguments[3].start == 16:
            raise KeyboardInterrupt
        return features(*arguments)

    monkeypatch.setattr(projected, "_features", dying)
    with pytest.raises(KeyboardInterrupt):
        influence.index(train, run, part_size=8, progress=False)
    with pytest.raises(ArtifactError, match="not finished"):
        open_projected(run / "projected")
    monkeypatch.setattr(projected, "_features", features)
    assert influence.index(train, run, part_size=8, progress=False).manifest.files == wanted.manifest.files


def test_what_is_foreign_or_damaged_is_refused(tmp_path):
    """Oracle: the error names what differs, or the file."""
    influence, train, queries, run = fit(tmp_path)
    influence.index(train, run, progress=False)
    with pytest.raises(ArtifactError, match="k_in"):
        influence.index(train, run, k_in=4, progress=False)
    assert influence.index(train, run, k_in=4, overwrite=True, progress=False).k_in == 4
    influence.index(train, run, overwrite=True, progress=False)
    with pytest.raises(ArtifactError, match="scored"):
        influence.index(train[:-1], run, progress=False)
    with pytest.raises(ArtifactError, match="another model"):
        open_projected(run / "projected", model="0")
    victim = run / "projected" / "part-000000000000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match=victim.name):
        influence.ask(queries, run)


def test_bad_arguments_are_named(tmp_path):
    """Oracle: the argument in the message."""
    influence, train, queries, run = fit(tmp_path)
    with pytest.raises(ArgumentError, match="k_in"):
        influence.index(train, run, k_in=0, progress=False)
    with pytest.raises(ArgumentError, match="dtype"):
        influence.index(train, run, dtype="int8", progress=False)
    with pytest.raises(ArgumentError, match="part_size"):
        influence.index(train, run, part_size=0, progress=False)
    with pytest.raises(ArtifactError, match="not a run"):
        influence.ask(queries, run)
    influence.index(train, run, progress=False)
    found = influence.ask(queries, run)
    best = found.topk("q1", 4)
    assert [score for _name, score in best] == sorted((s for _n, s in best), reverse=True)
    with pytest.raises(ArgumentError, match="query"):
        found.topk("q9", 4)
    with pytest.raises(ArgumentError, match="query: expected 0 to 2, got 3"):
        found.topk(3, 4)
    with pytest.raises(ArgumentError, match="topk"):
        found.topk(0, 0)


def test_what_half_precision_cannot_hold_is_refused(tmp_path, monkeypatch):
    """Oracle: the range of float16."""
    influence, train, _queries, run = fit(tmp_path)
    features = projected._features
    monkeypatch.setattr(projected, "_features", lambda *a: features(*a) * 1e9)
    with pytest.raises(NumericalError, match="float16"):
        influence.index(train, run, progress=False)


def test_an_index_of_other_factors_is_refused(tmp_path):
    """Oracle: factors of other labels have another eigenbasis; the index of the first must not be asked with them."""
    influence, train, queries, run = fit(tmp_path)
    influence.index(train, run, progress=False)
    other = Influence(influence.model, fisher="sampled")
    other.fit(train, run, overwrite=True, progress=False)
    with pytest.raises(ArtifactError, match="other factors"):
        other.ask(queries, run)
    with pytest.raises(ArtifactError, match="factors"):
        other.index(train, run, progress=False)
    other.index(train, run, overwrite=True, progress=False)
    assert other.ask(queries, run).values.shape == (3, 30)


def test_overwriting_spares_what_is_no_index(tmp_path):
    """Oracle: the run in that folder, which can still be opened."""
    influence, train, _queries, run = fit(tmp_path)
    factors = influence.fit(train, run, progress=False)
    with pytest.raises(ArtifactError, match="influence-run"):
        build_projected(influence._pass(), factors, influence._train, run, overwrite=True, show_progress=False)
    assert influence.fit(train, run, progress=False).num_sequences == 30


def test_a_damaged_index_is_overwritten_when_asked(tmp_path):
    """Oracle: the same index, made anew."""
    influence, train, _queries, run = fit(tmp_path)
    wanted = influence.index(train, run, progress=False).manifest.files
    (run / "projected" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        influence.index(train, run, progress=False)
    assert influence.index(train, run, overwrite=True, progress=False).manifest.files == wanted


def test_a_check_is_refused_before_any_work(tmp_path, monkeypatch):
    """Oracle: the argument in the message, and no gradient taken."""
    influence, train, queries, run = fit(tmp_path)
    influence.index(train, run, progress=False)
    monkeypatch.setattr(projected, "_features", None)
    with pytest.raises(ArgumentError, match="check: it is not the corpus"):
        influence.ask(queries, run, check=train[:-1])
    with pytest.raises(ArgumentError, match="sample"):
        influence.ask(queries, run, check=train, sample=2)
