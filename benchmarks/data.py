"""The small data sets the benchmarks share, none of them downloaded, and how they measure time and memory.

Times come from arms interleaved in one process, so that a busy machine slows every arm alike. Memory is the growth of
the resident set over its level just before the measured part, one fresh process an arm.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = [
    "Split",
    "Timing",
    "breast_cancer",
    "diabetes",
    "digit_pictures",
    "digits",
    "flip_labels",
    "interleave",
    "interleave_clocks",
    "peak_rss_growth",
    "pydoc_rows",
    "pydoc_topics",
]


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test part of a table, standardised by the training part.   Shapes: N rows, F features."""

    train_x: Tensor  # (N, F)
    train_y: Tensor  # (N,): int64 labels, or float targets
    test_x: Tensor
    test_y: Tensor


def digits(num_train: int = 1200, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Split:
    """8 x 8 pictures of the ten digits, 1797 in all; pixels divided by 16, not standardised (many are constant)."""
    pixels, labels = digit_pictures()
    return _split(pixels, labels, num_train, seed, dtype, standardise=False)


def digit_pictures() -> tuple[Any, Any]:
    """All of them in their own order, as NumPy arrays: pixels (1797, 64) in [0, 1] and labels."""
    from sklearn.datasets import load_digits

    table: Any = load_digits()
    return table.data / 16.0, table.target


def breast_cancer(num_train: int = 400, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Split:
    """30 measurements of 569 tumours and whether each was benign (1)."""
    from sklearn.datasets import load_breast_cancer

    table: Any = load_breast_cancer()
    return _split(table.data, table.target, num_train, seed, dtype)


def diabetes(num_train: int = 300, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Split:
    """10 measurements of 442 patients and the progression a year later; the target is standardised too."""
    from sklearn.datasets import load_diabetes

    table: Any = load_diabetes()
    return _split(table.data, table.target.astype(np.float64), num_train, seed, dtype)


def _split(x: Any, y: Any, num_train: int, seed: int, dtype: torch.dtype, *, standardise: bool = True) -> Split:
    if not 0 < num_train < len(x):
        raise ArgumentError(f"num_train: expected 1 to {len(x) - 1}, got {num_train}")
    order = np.random.default_rng(abs(seed)).permutation(len(x))
    head, tail = order[:num_train], order[num_train:]
    if standardise:
        x = (x - x[head].mean(0)) / x[head].std(0)
    if y.dtype.kind == "f":
        y = torch.as_tensor((y - y[head].mean()) / y[head].std()).to(dtype)
    else:
        y = torch.as_tensor(y).long()
    x = torch.as_tensor(x).to(dtype)
    return Split(x[head], y[head], x[tail], y[tail])


def flip_labels(labels: Tensor, fraction: float, num_classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Give a fraction of the rows another label, drawn evenly from the wrong ones; the labels and the mask of flips."""
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.zeros(len(labels), dtype=torch.bool)
    flipped[torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]] = True
    shift = torch.randint(1, num_classes, labels.shape, generator=generator)
    return torch.where(flipped, (labels + shift) % num_classes, labels), flipped


def pydoc_topics() -> str:
    """CPython's own help texts, joined: some 465 thousand characters of English and code, installed everywhere."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def pydoc_rows(length: int, num_rows: int, *, seed: int = 0) -> list[str]:
    """Disjoint stretches of the help texts, in a random order that the seed decides."""
    text = pydoc_topics()
    count = len(text) // length
    if not 0 < num_rows <= count:
        raise ArgumentError(f"num_rows: {length} characters a row leave 1 to {count} rows, got {num_rows}")
    starts = np.random.default_rng(abs(seed)).permutation(count)[:num_rows] * length
    return [text[start : start + length] for start in starts]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every repeat of one arm, on the wall and on this process's CPUs (all threads)."""

    wall: list[float]
    cpu: list[float]


def interleave_clocks(arms: dict[str, Callable[[], Any]], repeats: int, *, warmup: int = 1) -> dict[str, Timing]:
    """Time every arm in turn, ``repeats`` rounds, the order turned by one place each round.

    Parameters
    ----------
    arms : dict of callables
        Each does the whole of its work when called.
    repeats : int
        Rounds that count.
    warmup : int, default 1
        Rounds before them that do not: first calls pay for caches and thread pools.

    Returns
    -------
    dict of Timing
        One an arm, in the order given.
    """
    if repeats < 1 or not arms:
        raise ArgumentError(f"interleave: expected arms and repeats >= 1, got {len(arms)} arms, repeats={repeats}")
    timings = {name: Timing([], []) for name in arms}
    names = list(arms)
    for turn in range(-warmup, repeats):
        offset = turn % len(names)
        for name in names[offset:] + names[:offset]:
            wall, cpu = time.perf_counter(), time.process_time()
            arms[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                timings[name].wall.append(time.perf_counter() - wall)
                timings[name].cpu.append(time.process_time() - cpu)
    return timings


def interleave(
    arms: dict[str, Callable[[], Any]], repeats: int, *, warmup: int = 1, clock: Literal["wall", "cpu"] = "wall"
) -> dict[str, list[float]]:
    """Seconds by one clock; see ``interleave_clocks``. On a shared machine the CPU clock is the steadier one."""
    timings = interleave_clocks(arms, repeats, warmup=warmup)
    return {name: timing.wall if clock == "wall" else timing.cpu for name, timing in timings.items()}


def peak_rss_growth(
    measured: Callable[[Any], Any], prepare: Callable[..., Any], *args: Any, repeats: int = 1, threads: int = 1
) -> int:
    """Peak resident memory of ``measured(prepare(*args))`` over the level that ``prepare`` left, in bytes.

    Each repeat is a fresh process (spawned, so it inherits nothing); the median is returned. Linux only: the kernel's
    high-water mark is reset between the two calls.

    Parameters
    ----------
    measured : callable
        A function at the top level of a module, given what ``prepare`` returned.
    prepare : callable
        Likewise; builds model and data, which do not count.
    *args
        Handed to ``prepare``; they are pickled to the child.
    repeats : int, default 1
        Fresh processes.
    threads : int, default 1
        Torch's threads in the child.

    Returns
    -------
    int
        Bytes.
    """
    context = multiprocessing.get_context("spawn")
    samples = []
    for _ in range(repeats):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_measure_child, args=(send, measured, prepare, args, threads))
        child.start()
        send.close()
        try:
            samples.append(receive.recv())
        except EOFError as error:
            raise RuntimeError(
                f"peak_rss_growth: the child running {measured.__qualname__} died; see its error"
            ) from error
        finally:
            child.join()
    return round(statistics.median(samples))


def _measure_child(
    send: Any, measured: Callable[[Any], Any], prepare: Callable[..., Any], args: Any, threads: int
) -> None:
    torch.set_num_threads(threads)
    state = prepare(*args)
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # sets the high-water mark back to the present level
    outcome = measured(state)
    send.send(max(0, _status_bytes("VmHWM") - before))
    del outcome  # alive until here: what the call returns counts
    send.close()


def _status_bytes(key: str) -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text("ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: peak memory can be measured on Linux only")
