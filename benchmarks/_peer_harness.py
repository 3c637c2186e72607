"""Runs inside a peer's own environment, where hesse is not installed: arrays in, the peer's work timed, arrays out.

Called by ``benchmarks/peers.py`` as ``python _peer_harness.py SCRIPT IN.npz OUT.npz THREADS``. SCRIPT defines
``measured(state) -> dict of arrays`` and, if there is work that should not count, ``prepare(arrays) -> state``.
"""

import json
import os
import resource
import runpy
import sys
import time

import numpy as np


def main() -> None:
    """Load, prepare, measure, save; the figures travel in the archive under ``_figures``."""
    script, source, target, threads = sys.argv[1:]
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = runpy.run_path(script)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    state = names["prepare"](arrays) if "prepare" in names else arrays
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = names["measured"](state)
    figures = {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "rss_growth_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
    }
    part = target + ".part.npz"
    np.savez(part, _figures=np.array(json.dumps(figures)), **outcome)
    os.replace(part, target)  # noqa: PTH105 - the peer's Python may be any; plain os is enough here


main()
