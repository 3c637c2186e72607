"""The libraries the claims compare with: imported here, or run in an environment of their own where their pins clash.

A peer that is missing raises ``PeerMissing``: the runner then says so in the row, and the claim does not hold.
"""

import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks._claims import PeerMissing

__all__ = ["PeerMissing", "PeerRun", "has_peer", "peer_python", "require_peer", "run_peer"]

ROOT = Path(__file__).resolve().parent.parent
HARNESS = Path(__file__).resolve().parent / "_peer_harness.py"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What a peer computed in its own environment, and what it cost there."""

    arrays: dict[str, np.ndarray]
    wall_seconds: float
    cpu_seconds: float
    rss_growth_bytes: int


def require_peer(module: str) -> ModuleType:
    """Import a peer of this environment, or raise PeerMissing with the way to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the peer is there, and misses a package of its own: that is a fault to see
        raise PeerMissing(f"{module} is not installed: run make peers") from error


def has_peer(module: str) -> bool:
    """Whether a peer of this environment can be imported (for a row, not for deciding a claim)."""
    try:
        require_peer(module)
    except PeerMissing:
        return False
    return True


def peer_python(name: str) -> Path:
    """The interpreter of ``.venv-<name>``, or PeerMissing."""
    python = ROOT / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        raise PeerMissing(f"{name} has no environment at {python.parent.parent}: run make peers")
    return python


def run_peer(
    name: str,
    script: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    timeout: float = 1800.0,
    python: Path | None = None,
) -> PeerRun:
    """Hand arrays to a script in the peer's environment and bring back what it computed.

    Parameters
    ----------
    name : str
        The peer, for its environment ``.venv-<name>`` and for messages.
    script : Path
        Defines ``measured(state) -> dict of arrays``, timed, and optionally ``prepare(arrays) -> state``, not timed.
    arrays : mapping of numpy arrays
        Inputs; they travel as one ``.npz`` without pickles.
    threads : int, default 1
        Threads of every numerical library there: give the same to our arm.
    timeout : float, default 1800
        Seconds until the child is stopped.
    python : Path, optional
        Another interpreter than the environment's.

    Returns
    -------
    PeerRun
        Arrays, wall and CPU seconds of ``measured``, growth of peak resident memory over it.

    Raises
    ------
    PeerMissing
        If the environment does not exist.
    RuntimeError
        If the peer fails or takes too long; the message ends with what it wrote last.
    """
    interpreter = peer_python(name) if python is None else python
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    environment.pop("PYTHONPATH", None)  # the peer must not see this checkout
    with tempfile.TemporaryDirectory(prefix=f"hesse-{name}-") as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, allow_pickle=False, **arrays)
        command = [str(interpreter), str(HARNESS), str(script), str(source), str(target), str(threads)]
        try:
            child = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{name}: not finished after {timeout:g} s") from error
        if child.returncode != 0:
            raise RuntimeError(f"{name}: exit code {child.returncode}\n{child.stderr[-2000:]}")
        with np.load(target, allow_pickle=False) as archive:
            results = {key: archive[key] for key in archive.files if key != "_figures"}
            figures = json.loads(str(archive["_figures"]))
    return PeerRun(results, figures["wall_seconds"], figures["cpu_seconds"], 1024 * figures["rss_growth_kib"])
