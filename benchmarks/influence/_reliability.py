"""Claims about what a run of the influence engine survives, for `influence_ekfac`.

Oracles: the files of a run that nobody interrupted, byte by byte; and the manifest, for what is damaged.
"""

import os
import pickle
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, Scale
from hesse.errors import ArtifactError
from hesse.influence.corpus import keep_corpus, open_corpus
from hesse.influence.engine import Influence
from hesse.influence.factors import load_factors
from hesse.influence.run import open_folder
from hesse.influence.scores import open_scores
from hesse.influence.sequences import Sequence
from hesse.io import LOCK_NAME, MANIFEST_NAME, check_file, file_path, manifest_exists, read_manifest, verify_run

__all__ = [
    "CASES",
    "Case",
    "KillCount",
    "TinyLanguageModel",
    "content",
    "damage_is_refused",
    "damages",
    "finished_run",
    "in_child",
    "is_refused",
    "kill_until_done",
    "kills_resume_bit_identical",
    "memory_folder",
    "read_everything",
    "stage_of",
    "tiny_model",
    "tiny_sequences",
    "work",
]

VOCABULARY, WIDTH = 13, 16
TRACKED = r"^blocks\."
BLOCKING = {"batch_tokens": 24, "unit_size": 4, "checkpoint_seconds": 0.0, "progress": False}


class TinyLanguageModel(nn.Module):
    """Two residual blocks, each mixing positions by a causal mean: as small as a model with all stages can be."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        for block in self.blocks:
            x = x + block(x + x.cumsum(1) / steps)
        return self.head(x)


def tiny_model(dtype: torch.dtype = torch.float32) -> TinyLanguageModel:
    """Always the same weights, whatever the global generator has been used for."""
    model = TinyLanguageModel()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


def tiny_sequences(count: int, seed: int = 0, *, prompt: int = 0) -> list[Sequence]:
    """Random tokens, 4 to 9 a sequence, the first ``prompt`` of them not supervised."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        tokens = rng.integers(0, VOCABULARY, rng.integers(4, 10))
        labels = tokens.copy()
        labels[: max(1, prompt)] = -100
        name = f"{'q' if prompt else 's'}{number}"
        out.append(Sequence(name, name, tokens, labels))
    return out


@dataclass(frozen=True)
class Case:
    """One way to fit and to score."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    question: dict[str, Any] = field(default_factory=dict)
    sequences: int = 20


CASES = (
    Case("rank 4", question={"rank": 4, "refine_topk": 0}),
    Case("refined, by layer and token", question={"rank": 4, "refine_topk": 3, "per_layer": True, "per_token": True}),
    Case("full rank, two blocks, empirical", {"fisher": "empirical", "blocks": 2}, {"rank": None, "units": "raw"}),
)


def work(folder: Path, case: Case, **blocking: Any) -> None:
    """Fit and score; the same call again takes up whatever is there."""
    settings = BLOCKING | blocking
    influence = Influence(tiny_model(), modules=TRACKED, **case.options)
    data = tiny_sequences(case.sequences)
    influence.fit(data, folder, **settings)
    influence.score(tiny_sequences(3, 1, prompt=2), data, folder, **case.question, **settings)


def in_child(task: Callable[[], object]) -> int:
    """Fork, after the imports, a child that runs the task; it ends with 0 only if the task does."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # threads do not survive a fork
            task()
            code = 0
        finally:
            os._exit(code)
    return pid


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run by its name, the lock left out: a killed writer cannot remove it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: to wait for a disk at each sync takes long and shows nothing here."""
    memory = Path("/dev/shm")  # noqa: S108  a fresh folder of our own is made in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@dataclass
class KillCount:
    """What the kills met and what came out."""

    kills: int = 0
    completed: int = 0
    identical: int = 0
    verified: int = 0
    damaged_states: list[str] = field(default_factory=list)
    killed_in: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def fraction(self) -> float:
        """Completed runs that equal the uninterrupted one and in which every file is as the manifest says."""
        if self.damaged_states or self.completed == 0:
            return 0.0
        return min(self.identical, self.verified) / self.completed


def stage_of(folder: Path) -> str:
    if not manifest_exists(folder):
        return "before the first manifest"
    stages = read_manifest(folder).stages
    if not stages.get("fit", {}).get("done"):
        return f"fit: {stages.get('fit', {}).get('stage', 'start')}"
    questions = [state for name, state in stages.items() if name.startswith("score:")]
    if not questions:
        return "score: queries"
    if not questions[0]["done"]:
        return "score: parts"
    return "score: done"


def _check_state(folder: Path) -> list[str]:
    """Names of files that the manifest names and that are not as it says."""
    if not manifest_exists(folder):
        return []
    wrong = []
    for name, entry in read_manifest(folder).files.items():
        try:
            check_file(file_path(folder, name), entry)
        except ArtifactError as error:
            wrong.append(str(error))
    return wrong


def kill_until_done(case: Case, kills: int, seed: int, parent: Path) -> KillCount:
    """Run the case again and again, killing it at random moments, until that many kills have been made.

    Parameters
    ----------
    case : Case
        What to run.
    kills : int
        How many at least; the run in flight is then completed.
    seed : int
        Of the moments.
    parent : Path
        An empty folder.

    Returns
    -------
    KillCount
        With every completed run compared with one that was never interrupted.
    """
    rng = random.Random(seed)  # noqa: S311
    begun = time.monotonic()
    whole, duration = parent / "whole", 0.0
    for _repeat in range(2):  # the second is warm, and the one whose duration counts
        shutil.rmtree(whole, ignore_errors=True)
        start = time.monotonic()
        _, status = os.waitpid(in_child(lambda: work(whole, case)), 0)
        duration = time.monotonic() - start
        if status != 0:
            raise RuntimeError(f"{case.name}: the uninterrupted run failed")
    expected, count, runs = content(whole), KillCount(), 0
    while count.kills < kills:
        folder = parent / f"run-{runs}"
        while True:
            pid = in_child(lambda folder=folder: work(folder, case))
            time.sleep(rng.uniform(0, 0.7 * duration))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            count.damaged_states += _check_state(folder)
            if os.WIFEXITED(status):
                if os.WEXITSTATUS(status) != 0:
                    raise RuntimeError(f"{case.name}: a resumed run failed in {stage_of(folder)}")
                break
            count.kills += 1
            where = stage_of(folder)
            count.killed_in[where] = count.killed_in.get(where, 0) + 1
        runs += 1
        count.completed += 1
        count.identical += content(folder) == expected
        count.verified += verify_run(folder) == []
        shutil.rmtree(folder)
    count.seconds = time.monotonic() - begun
    return count


def kills_resume_bit_identical(scale: Scale) -> Claim:
    """After kill -9 at random moments the same call completes the run, and every file equals that of a whole run."""
    total = scale(smoke=20, full=300)
    rows: dict[str, Any] = {}
    fractions = []
    for number, case in enumerate(CASES):
        with memory_folder() as parent:
            count = kill_until_done(case, -(-total // len(CASES)), scale.seed + number, parent)
        fractions.append(count.fraction)
        rows[case.name] = {
            "kills": count.kills,
            "completed": count.completed,
            "identical": count.identical,
            "verified": count.verified,
            "damaged_states": len(count.damaged_states),
            "killed_in": count.killed_in,
            "seconds": round(count.seconds, 1),
        }
    rows["kills"] = sum(rows[case.name]["kills"] for case in CASES)
    rows["seconds"] = round(sum(rows[case.name]["seconds"] for case in CASES), 1)
    return Claim(
        name="kill -9 at a random moment: the resumed run is bit-identical",
        measured=min(fractions),
        bar=1.0,
        better="higher",
        rows=rows,
        note="SIGKILL leaves the page cache alive: the order of renames is proved, not that data reached the disk",
    )


def finished_run(folder: Path, *, seed: int = 0) -> None:
    """A run that holds every kind of artifact: factors, shards, scores, texts."""
    case = CASES[1]
    work(folder, Case(case.name, {"seed": seed}, case.question, case.sequences))
    keep_corpus(folder, "train", tiny_sequences(case.sequences))
    keep_corpus(folder, "queries", tiny_sequences(3, 1, prompt=2))


def read_everything(folder: Path) -> None:
    """Load whatever a finished run holds, as its users do.

    Raises
    ------
    ArtifactError
        If anything is not as the manifest says.
    """
    run = open_folder(folder)
    load_factors(folder, run.manifest)
    scores = open_scores(run)
    np.array(scores.values)
    if scores.layers is None:
        raise ArtifactError(f"{folder}: the run was meant to hold shares of layers")
    for name in scores.sequence_ids:
        scores.tokens(0, name)
    for name in run.stage("corpus"):
        open_corpus(folder, name).sequences()


Damage = tuple[str, str, Callable[[Path], None]]
"""What is done, to which file (by its name in the run), and the deed."""


def damages(folder: Path, other: Path, per_file: int, rng: random.Random) -> Iterator[Damage]:
    """Every kind of damage to every file of a run.

    Parameters
    ----------
    folder : Path
        A finished run, whole.
    other : Path
        Another one, of another seed.
    per_file : int
        Truncations, and flipped bits, a file.
    rng : random.Random
        Of the places.

    Yields
    ------
    Damage
        To be done to a copy, or undone.
    """
    files = content(folder)
    for name, data in sorted(files.items()):
        cuts = {0, len(data) // 2, len(data) - 1} | {rng.randrange(len(data)) for _ in range(per_file)}
        for cut in sorted(cuts):
            yield f"truncated to {cut}", name, lambda path, kept=data[:cut]: _put(path, kept)
        for _ in range(per_file):
            place, bit = rng.randrange(len(data)), rng.randrange(8)
            flipped = data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
            yield f"bit {bit} of byte {place} flipped", name, lambda path, flipped=flipped: _put(path, flipped)
        yield "missing", name, Path.unlink
        yield "a pickle instead", name, lambda path: _put(path, pickle.dumps({"total": [1.0]}))
        yield "zeros instead", name, lambda path, size=len(data): _put(path, bytes(size))
        yield "longer by a byte", name, lambda path, data=data: _put(path, data + b"\0")
        same_kind = [n for n in files if n != name and n.split("/")[0] == name.split("/")[0] and files[n] != data]
        if same_kind:
            swapped = files[rng.choice(same_kind)]
            yield "another file of its kind instead", name, lambda path, swapped=swapped: _put(path, swapped)
        theirs = other / name
        if theirs.is_file() and theirs.read_bytes() != data:
            foreign = theirs.read_bytes()
            yield "that of another run instead", name, lambda path, foreign=foreign: _put(path, foreign)


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def is_refused(folder: Path) -> bool:
    """Whether reading the run raises an ArtifactError, which the command line turns into exit code 3."""
    try:
        read_everything(folder)
    except ArtifactError as error:
        return error.exit_code == 3
    return False


def damage_is_refused(scale: Scale) -> Claim:
    """Truncated, flipped, swapped, foreign, pickled or missing: no damaged file is ever read as if it were whole."""
    rng = random.Random(scale.seed)  # noqa: S311
    refused: dict[str, int] = {}
    named: dict[str, int] = {}
    tried: dict[str, int] = {}
    missed: list[str] = []
    with memory_folder() as parent:
        folder = parent / "run"
        finished_run(folder)
        finished_run(parent / "other", seed=1)
        read_everything(folder)
        for what, name, harm in damages(folder, parent / "other", scale(smoke=2, full=30), rng):
            path = folder / name
            whole = path.read_bytes()
            harm(path)
            kind = name.split("/")[0]
            tried[kind] = tried.get(kind, 0) + 1
            good = is_refused(folder)
            refused[kind] = refused.get(kind, 0) + good
            problems = {problem.path for problem in verify_run(folder)}
            # a manifest that cannot be read, or is of another run, leaves the files without anything to be judged by
            said = name in problems or (name == MANIFEST_NAME and bool(problems))
            named[kind] = named.get(kind, 0) + said
            if not (good and said):
                missed.append(f"{name}: {what}")
            path.write_bytes(whole)
        if verify_run(folder):
            raise RuntimeError("the damage was not undone")
    total = sum(tried.values())
    return Claim(
        name="every damaged file of a run is refused and named",
        measured=min(sum(refused.values()), sum(named.values())) / total,
        bar=1.0,
        better="higher",
        rows={"tried": tried, "refused": refused, "named by verify": named, "missed": missed[:20], "total": total},
    )
