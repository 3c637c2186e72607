"""Claims about several processes and data without end, for `influence_scale`.

Oracle: the scores of one process that nobody interrupted. Ranks are forked after the imports and meet through gloo;
each ends by ``os._exit`` once its part is on disk.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from benchmarks._claims import Claim, Scale
from benchmarks.influence._reliability import (
    BLOCKING,
    TRACKED,
    memory_folder,
    stage_of,
    tiny_model,
    tiny_sequences,
)
from hesse.errors import RankError
from hesse.influence.distributed import ALONE, Team, join_team
from hesse.influence.engine import Influence
from hesse.influence.objective import CausalLMLoss
from hesse.influence.scores import open_scores
from hesse.io import verify_run

__all__ = [
    "a_dead_rank_is_named",
    "finish_ranks",
    "memory_of_ten_times_the_data",
    "ranks_started",
    "resumed_on_another_world_size",
    "two_processes_agree",
]

Task = Callable[[Team], object]
PATIENCE = 4.0  # seconds without a sign of life, in the tests and claims here


def in_rank(rank: int, size: int, store: Path, task: Task) -> int:
    """Fork one rank of a job; it ends with 0 only if the task does, and leaves the text of its error by the store."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        if size == 1:
            task(ALONE)
        else:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
            with join_team(patience=PATIENCE) as team:
                task(team)
        code = 0
    except BaseException as error:
        Path(f"{store}.error-{rank}").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)  # gloo sometimes aborts while the interpreter shuts down


@contextmanager
def ranks_started(size: int, task: Task) -> Iterator[tuple[list[int], Path]]:
    """Start a job; what is left of it at the end of the block is killed."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        pids = [in_rank(rank, size, store, task) for rank in range(size)]
        try:
            yield pids, store
        finally:
            for pid in pids:
                if _is_running(pid):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def finish_ranks(size: int, task: Task) -> None:
    """Run a job to its end.

    Raises
    ------
    RuntimeError
        With what the ranks said, if one of them failed.
    """
    with ranks_started(size, task) as (pids, store):
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(codes):
            raise RuntimeError("; ".join(_errors(store, size)) or f"exit codes {codes}")


def _is_running(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _errors(store: Path, size: int) -> list[str]:
    paths = [Path(f"{store}.error-{rank}") for rank in range(size)]
    return [f"rank {rank}: {path.read_text()}" for rank, path in enumerate(paths) if path.exists()]


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def language_model(width: int, dtype: torch.dtype, seed: int) -> nn.Module:
    """A GPT-2 of two blocks, its weights larger than at initialisation so that nothing is nearly linear."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=64, n_embd=width, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.to(dtype).eval()


def ragged(count: int, seed: int, longest: int = 24) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    return [
        {"id": f"s{i}", "input_ids": rng.integers(0, 64, rng.integers(6, longest + 1)).tolist()} for i in range(count)
    ]


def two_processes_agree(scale: Scale) -> Claim:
    """Two ranks fit and score the same model and data as one: every score is the same up to rounding."""
    count, width = scale(smoke=40, full=800), scale(smoke=16, full=64)
    data, queries = ragged(count, scale.seed), ragged(6, scale.seed + 1)
    cases: dict[str, tuple[torch.dtype, dict[str, Any], dict[str, Any]]] = {
        "ekfac, float32, full rank": (torch.float32, {}, {"rank": None}),
        "ekfac, float32, rank 8, refined": (torch.float32, {}, {"rank": 8, "refine_topk": 20}),
        "kfac, float32, full rank": (torch.float32, {"strategy": "kfac"}, {"rank": None}),
        "ekfac, 2 blocks, float32, full rank": (torch.float32, {"blocks": 2}, {"rank": None}),
        "ekfac, float64, full rank": (torch.float64, {}, {"rank": None}),
    }
    rows: dict[str, Any] = {}
    for name in scale(smoke=list(cases)[1:2], full=list(cases)):
        dtype, options, question = cases[name]
        with memory_folder() as parent:
            model = language_model(width, dtype, scale.seed)

            def work(team: Team, folder: Path, model=model, options=options, question=question) -> None:
                influence = Influence(model, **options)
                settings = {"unit_size": 32, "checkpoint_seconds": 0.2, "progress": False, "team": team}
                influence.fit(data, folder, **settings)
                influence.score(queries, data, folder, **question, **settings)

            for size in (1, 2):
                folder = parent / str(size)
                finish_ranks(size, lambda team, folder=folder, work=work: work(team, folder))
            one, two = (np.array(open_scores(parent / str(size)).values) for size in (1, 2))
            verified = verify_run(parent / "2") == []
            rows[name] = {"largest difference": relative_difference(two, one), "verified": verified}
    return Claim(
        "2 processes: same scores to 1e-5",
        max(row["largest difference"] for row in rows.values()),
        bar=1e-5,
        better="lower",
        rows=rows | {"sequences": count, "width": width},
        note="largest difference over the largest score; at a rank, close singular values enlarge rounding",
    )


def resumed_on_another_world_size(scale: Scale) -> Claim:
    """All ranks killed at random moments, each attempt with another number of them: the scores of one whole run."""
    kills, rng = scale(smoke=3, full=60), random.Random(scale.seed)  # noqa: S311
    data, queries = tiny_sequences(40, scale.seed), tiny_sequences(3, scale.seed + 1, prompt=2)
    model = tiny_model(torch.float64)
    question = {"rank": 4, "refine_topk": 3}

    def work(team: Team, folder: Path) -> None:
        influence = Influence(model, modules=TRACKED)
        influence.fit(data, folder, **BLOCKING, team=team)
        influence.score(queries, data, folder, **question, **BLOCKING, team=team)

    killed_in: dict[str, int] = {}
    switches: dict[str, int] = {}
    worst, completed, done, verified = 0.0, 0, 0, 0
    with memory_folder() as parent:
        work(ALONE, parent / "whole")
        wanted = np.array(open_scores(parent / "whole").values)
        begun = time.monotonic()
        finish_ranks(2, lambda team: work(team, parent / "timed"))
        duration = time.monotonic() - begun
        while done < kills:
            folder, size, before = parent / f"run-{completed}", rng.choice([1, 2, 3]), 0
            while True:
                with ranks_started(size, lambda team, folder=folder: work(team, folder)) as (pids, store):
                    time.sleep(rng.uniform(0.1, 0.8) * duration)
                    alive = [pid for pid in pids if _is_running(pid)]
                    for pid in alive:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                    said = _errors(store, size)
                if said:
                    raise RuntimeError("; ".join(said))
                if before:
                    switches[f"{before} -> {size}"] = switches.get(f"{before} -> {size}", 0) + 1
                if not alive:
                    break
                done += 1
                where = stage_of(folder)
                killed_in[where] = killed_in.get(where, 0) + 1
                before, size = size, rng.choice([n for n in (1, 2, 3) if n != size])
            completed += 1
            worst = max(worst, relative_difference(np.array(open_scores(folder).values), wanted))
            verified += verify_run(folder) == []
    return Claim(
        "kill -9 and resume on another world size: same scores to 1e-10 in float64",
        worst if verified == completed else float("inf"),
        bar=1e-10,
        better="lower",
        rows={
            "kills": done,
            "completed": completed,
            "verified": verified,
            "killed_in": killed_in,
            "ranks before and after": switches,
        },
    )


def a_dead_rank_is_named(scale: Scale) -> Claim:
    """One of two ranks is killed, or stopped so that its sockets stay open: the other ends and says which."""
    rows: dict[str, Any] = {}
    data = tiny_sequences(400)
    model = tiny_model()

    def work(team: Team, folder: Path) -> None:
        Influence(model, modules=TRACKED).fit(data, folder, **(BLOCKING | {"batch_tokens": 8}), team=team)

    signals = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
    for how, victim in scale(smoke=[("killed", 1)], full=[(how, victim) for how in signals for victim in (0, 1)]):
        with memory_folder() as parent:
            folder = parent / "run"
            with ranks_started(2, lambda team, folder=folder: work(team, folder)) as (pids, store):
                limit = time.monotonic() + 30
                while not stage_of(folder).startswith("fit: cov") and time.monotonic() < limit:
                    time.sleep(0.01)
                begun = time.monotonic()
                os.kill(pids[victim], signals[how])
                os.waitpid(pids[1 - victim], 0)
                seconds = time.monotonic() - begun
                said = " ".join(_errors(store, 2))
                if how == "stopped":
                    os.kill(pids[victim], signal.SIGCONT)
        named = RankError.__name__ in said and f"rank {victim}" in said.split(":", 2)[-1]
        rows[f"rank {victim} {how}"] = {"seconds": round(seconds, 1), "named": named, "said": said[:200]}
    return Claim(
        "a dead rank is named by the survivor within 30 s",
        max(row["seconds"] if row["named"] else float("inf") for row in rows.values()),
        bar=30.0,
        better="lower",
        rows=rows | {"patience in seconds": PATIENCE, "scale": scale.name},
    )


def memory_of_ten_times_the_data(scale: Scale) -> Claim:
    """Fit and score ten times the sequences, streamed from a file, the best rows kept: peak memory of the process."""
    small = scale(smoke=100, full=8_000)
    rows: dict[str, Any] = {}
    for source in scale(smoke=("jsonl",), full=("npy", "jsonl")):
        peaks = []
        for count in (small, 10 * small):
            with tempfile.TemporaryDirectory() as folder:
                words = [source, str(count), str(scale.seed), folder]
                command = [sys.executable, "-W", "ignore", "-m", __name__, *words]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
        first, second = peaks
        rows[source] = {
            "sequences": [small, 10 * small],
            "peak MiB": [round(p["peak"] / 2**20, 1) for p in peaks],
            "growth over the start MiB": [round((p["peak"] - p["start"]) / 2**20, 1) for p in peaks],
            "ratio": second["peak"] / first["peak"],
        }
    return Claim(
        "10x the data within 1.1x the memory",
        max(row["ratio"] for row in rows.values()),
        bar=1.1,
        better="lower",
        rows=rows,
        full_only=True,
        note="peak resident memory of a fresh process that fits and scores with top_k=50, mapped pages included",
    )


def _arm(source: str, count: int, seed: int, folder: Path) -> None:
    # one fresh process of `memory_of_ten_times_the_data`
    from hesse.influence.streams import StreamExamples
    from hesse.io import open_array

    path = folder / f"data.{source}"
    rng, length = np.random.default_rng(seed), 16
    if source == "npy":
        held = np.lib.format.open_memmap(path, "w+", np.int32, (count, length))
        for first in range(0, count, 1000):
            held[first : first + 1000] = rng.integers(0, 13, held[first : first + 1000].shape)
        held.flush()
        del held
        data: Any = open_array(path)
    else:
        with path.open("w") as file:
            for i in range(count):
                tokens = rng.integers(0, 13, length).tolist()
                file.write(json.dumps({"id": f"s{i}", "input_ids": tokens}) + "\n")
        data = StreamExamples(path)
    influence = Influence(tiny_model(), modules=TRACKED, loss=CausalLMLoss())
    queries = tiny_sequences(8, seed, prompt=2)
    # one pass before, so that what torch allocates once is no part of the comparison
    settings = {"progress": False, "checkpoint_seconds": 5.0}
    influence.fit(tiny_sequences(64), folder / "warm", **settings)
    start = _resident("VmRSS")
    influence.fit(data, folder / "run", max_sequences=None, **settings)
    scores = influence.score(queries, data, folder / "run", rank=8, refine_topk=0, top_k=50, **settings)
    print(json.dumps({"start": start, "peak": _resident("VmHWM"), "kept": len(scores.topk(0, 50))}))


def _resident(which: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {which}")


CLAIMS = [two_processes_agree, resumed_on_another_world_size, a_dead_rank_is_named, memory_of_ten_times_the_data]

if __name__ == "__main__":
    _arm(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
