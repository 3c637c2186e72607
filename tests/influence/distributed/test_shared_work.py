"""Fitting and scoring by two and three ranks, held against one."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.influence._reliability import TRACKED, memory_folder, tiny_model, tiny_sequences
from benchmarks.influence._two_processes import finish_ranks, ranks_started, relative_difference
from hesse.errors import ArgumentError, RankError, RunLockedError
from hesse.influence.distributed import ALONE, Team, is_sharded, whole_tensors
from hesse.influence.engine import Influence
from hesse.influence.run import open_folder
from hesse.influence.scores import open_scores
from hesse.influence.solvers import CG, PCG, LiSSA
from hesse.io import calls, hash_tensors, verify_run
from tests.influence._tiny import gpt2

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

F64 = torch.float64
STEPS = {"batch_tokens": 24, "unit_size": 4, "checkpoint_seconds": 0.0, "progress": False}


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: to wait for a disk at each sync takes long and shows nothing."""
    with memory_folder() as folder:
        yield folder


def work(team: Team, folder: Path, options=None, question=None, count: int = 22) -> None:
    influence, data = Influence(tiny_model(F64), modules=TRACKED, **(options or {})), tiny_sequences(count)
    influence.fit(data, folder, team=team, **STEPS)
    influence.score(tiny_sequences(3, 1, prompt=2), data, folder, team=team, **STEPS, **(question or {"rank": None}))


CASES = {
    "ekfac": ({}, {"rank": None, "per_layer": True, "per_token": True}),
    "refined": ({}, {"rank": 4, "refine_topk": 3}),
    "kfac": ({"strategy": "kfac"}, {"rank": None}),
    "blocks": ({"blocks": 2}, {"rank": None}),
    "exact": ({"fisher": "exact"}, {"rank": None}),
    "diagonal": ({"strategy": "diagonal"}, {"rank": None}),
    "shampoo": ({"strategy": "shampoo", "blocks": 2}, {"rank": None}),
    "best rows": ({}, {"rank": 4, "refine_topk": 3, "top_k": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_one_process(case, tmp_path):
    """Oracle: one process, to 1e-10 in float64; three ranks with six units, and a last one of two sequences."""
    options, question = CASES[case]
    work(ALONE, tmp_path / "one", options, question)
    size = 3 if case == "ekfac" else 2
    finish_ranks(size, lambda team: work(team, tmp_path / "many", options, question))
    assert verify_run(tmp_path / "many") == []
    one, many = open_scores(tmp_path / "one"), open_scores(tmp_path / "many")
    if case == "best rows":
        for query in range(3):
            for sign in (1, -1):
                a, b = one.topk(query, 4, sign), many.topk(query, 4, sign)
                assert [row.id for row in a] == [row.id for row in b]
                np.testing.assert_allclose([row.score for row in a], [row.score for row in b], rtol=1e-9)
        return
    assert relative_difference(np.array(many.values), np.array(one.values)) <= 1e-10
    assert one.run.manifest.stages["fit"]["counts"] == many.run.manifest.stages["fit"]["counts"]
    if case == "ekfac":
        assert relative_difference(many.layers, one.layers) <= 1e-10
        assert relative_difference(many.tokens(1, "s21"), one.tokens(1, "s21")) <= 1e-10


def dying(task, index: int) -> None:
    """Run the task, and die in the moment before that manifest."""
    real, seen = calls.rename, 0

    def rename(source, target):
        nonlocal seen
        if target.name == "manifest.json":
            if seen == index:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        return real(source, target)

    calls.rename = rename  # in the child only
    task()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_another_number_of_ranks_goes_on(before, after, tmp_path):
    """Oracle: one uninterrupted process, to 1e-10, wherever the first attempt died; nothing is done twice."""
    question = {"rank": 4, "refine_topk": 3}
    work(ALONE, tmp_path / "whole", question=question)
    wanted = np.array(open_scores(tmp_path / "whole").values)
    for index in (3, 8):  # in the covariances, and among the scores
        folder = tmp_path / f"run-{index}"
        task = partial(work, folder=folder, question=question)
        with ranks_started(before, lambda team, task=task, index=index: dying(partial(task, team), index)) as (pids, _):
            os.waitpid(pids[0], 0)  # rank 0 writes manifests; the others are killed at the end of the block
        begun = open_folder(folder).manifest.stages
        assert begun
        finish_ranks(after, task)
        assert verify_run(folder) == []
        assert relative_difference(np.array(open_scores(folder).values), wanted) <= 1e-10, index


def test_survivors_keep_strangers_out(tmp_path):
    """Oracle: the lock; while a rank of a broken job lives, nobody else writes, and the next job then resumes."""

    def task(team: Team) -> None:
        if team.rank == 0:
            dying(lambda: work(team, tmp_path / "run"), 3)
        try:
            work(team, tmp_path / "run")
        except RankError:
            os._exit(7)

    with ranks_started(2, task) as (pids, _):
        os.waitpid(pids[0], 0)
        with pytest.raises(RunLockedError, match="has ended, and its worker processes are ending"):
            work(ALONE, tmp_path / "run")
        assert os.waitstatus_to_exitcode(os.waitpid(pids[1], 0)[1]) == 7
    work(ALONE, tmp_path / "run")
    assert verify_run(tmp_path / "run") == []


def test_self_influence(tmp_path):
    """Oracle: one process; every rank gets all of it."""
    work(ALONE, tmp_path / "run")
    influence, data = Influence(tiny_model(F64), modules=TRACKED), tiny_sequences(22)
    wanted = influence.self_influence(data, tmp_path / "run")

    def task(team: Team) -> None:
        found = influence.self_influence(data, tmp_path / "run", team=team)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)

    finish_ranks(3, task)


def test_other_data_on_a_rank_is_refused(tmp_path):
    """Oracle: the name of what differs, on both ranks, and no run."""

    def task(team: Team) -> None:
        influence = Influence(tiny_model(F64), modules=TRACKED)
        with pytest.raises(ArgumentError, match="data: rank"):
            influence.fit(tiny_sequences(22, seed=team.rank), tmp_path / "run", team=team, **STEPS)

    finish_ranks(2, task)
    assert not (tmp_path / "run").exists()


SOLVED = {
    "pcg": (PCG(steps=4), {"rank": None, "per_query_token": True}),
    "pcg, refined": (PCG(steps=4), {"rank": 4, "refine_topk": 3}),
    "cg": (CG(steps=5), {"rank": 4, "top_k": 4}),
    "lissa": (LiSSA(steps=6, batch_size=5), {"rank": None}),
}


@pytest.mark.parametrize("case", SOLVED)
def test_solved_scores_are_those_of_one_process(case, tmp_path):
    """Oracle: one process, to 1e-10 in float64: scores, residuals, products; three queries dealt to two ranks."""
    strategy, question = SOLVED[case]
    options = {"strategy": strategy, "damping": 1.0}
    work(ALONE, tmp_path / "one", options, question, count=10)
    finish_ranks(2, lambda team: work(team, tmp_path / "two", options, question, count=10))
    assert verify_run(tmp_path / "two") == []
    one, two = open_scores(tmp_path / "one"), open_scores(tmp_path / "two")
    if case == "cg":
        for query in range(3):
            a, b = one.topk(query, 4), two.topk(query, 4)
            assert [row.id for row in a] == [row.id for row in b]
            np.testing.assert_allclose([row.score for row in a], [row.score for row in b], rtol=1e-9)
    else:
        assert relative_difference(np.array(two.values), np.array(one.values)) <= 1e-10
    np.testing.assert_allclose(two.state["residual"], one.state["residual"], rtol=1e-8)
    solved = [list(pair) for pair in two.state["solved"]]
    assert len(solved) > len(one.state["solved"]) == 1
    assert [pair[0] for pair in solved[1:]] == [pair[1] for pair in solved[:-1]]  # one after the other, all of them


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_solves_go_on_with_another_number_of_ranks(before, after, tmp_path):
    """Oracle: one uninterrupted process, to 1e-10; what was solved before the death is not solved again."""
    options, question = {"strategy": CG(steps=5), "damping": 1.0}, {"rank": None, "query_memory": 400_000}
    work(ALONE, tmp_path / "whole", options, question, count=10)
    whole = open_scores(tmp_path / "whole")
    assert len(whole.state["solved"]) == 3  # a query at a time: more would take more than query_memory
    folder = tmp_path / "run"
    work(ALONE, folder, options, {"rank": 2, "refine_topk": 0}, count=10)  # so that the fit is there
    task = partial(work, folder=folder, options=options, question=question, count=10)
    with ranks_started(before, lambda team: dying(partial(task, team), 1)) as (pids, _):
        os.waitpid(pids[0], 0)
    begun = [stage for name, stage in open_folder(folder).manifest.stages.items() if name.startswith("score:")]
    assert [len(stage["solved"]) for stage in begun if not stage["done"]] == [before]
    finish_ranks(after, task)
    assert verify_run(folder) == []
    found = open_scores(folder)
    assert relative_difference(np.array(found.values), np.array(whole.values)) <= 1e-10
    assert len(found.state["residual"]) == 3


@pytest.mark.parametrize("strategy", [PCG(steps=4), LiSSA(steps=6, batch_size=5)])
def test_solved_self_influence(strategy, tmp_path):
    """Oracle: one process, to 1e-10; every rank gets all of it. 22 sequences are two units."""
    options = {"strategy": strategy, "damping": 1.0}
    influence, data = Influence(tiny_model(F64), modules=TRACKED, **options), tiny_sequences(22)
    influence.fit(data, tmp_path / "run", **STEPS)
    wanted = influence.self_influence(data, tmp_path / "run", progress=False)

    def task(team: Team) -> None:
        found = influence.self_influence(data, tmp_path / "run", progress=False, team=team)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)

    finish_ranks(2, task)


def shard(model):
    from torch.distributed.fsdp import fully_shard

    for block in model.transformer.h:
        fully_shard(block)
    return fully_shard(model)


@pytest.mark.parametrize("count", [9, 3])
def test_a_model_in_shards(count, tmp_path):
    """Oracle: one process with the whole model, to 1e-10; three batches for two ranks, and one for two ranks."""
    rows = [{"id": s.id, "input_ids": (s.input_ids % 11).tolist()} for s in tiny_sequences(count)]
    queries = [{"id": "q0", "input_ids": [1, 2, 3, 4]}, {"id": "q1", "input_ids": [5, 3, 1]}]
    question = {"rank": 3, "refine_topk": 2}

    def shared(team: Team, folder: Path, sharded: bool) -> None:
        model = gpt2(layers=2)
        influence = Influence(shard(model) if sharded else model)
        influence.fit(rows, folder, team=team, **STEPS)
        influence.score(queries, rows, folder, team=team, **question, **STEPS)

    shared(ALONE, tmp_path / "one", False)

    def task(team: Team) -> None:
        shared(team, tmp_path / "two", True)
        model = shard(gpt2(layers=2))
        assert is_sharded(model)
        assert hash_tensors(whole_tensors(model)) == hash_tensors(whole_tensors(gpt2(layers=2)))
        with pytest.raises(ArgumentError, match=r"team: the model's parameters are in shards"):
            Influence(model).fit(rows, tmp_path / "none", **STEPS)
        with pytest.raises(ArgumentError, match=r"strategy: PCG differentiates .* in shards"):
            Influence(model, strategy="pcg").fit(rows, tmp_path / "none", team=team, **STEPS)

    finish_ranks(2, task)
    one, two = (np.array(open_scores(tmp_path / name).values) for name in ("one", "two"))
    assert relative_difference(two, one) <= 1e-10
    assert open_folder(tmp_path / "one").manifest.parents == open_folder(tmp_path / "two").manifest.parents
