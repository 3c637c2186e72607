"""Where a benchmark ran, with which versions, and its record on disk."""

import csv
import io
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["keep", "machine", "versions"]

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "transformers",
    "scikit-learn",
    "kronfluence",
    "curvlinops-for-pytorch",
    "linear-operator",
)


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, torch's threads, memory and accelerator."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of Python, hesse (with its commit) and the packages a claim may lean on; None for one not installed."""
    import hesse

    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "hesse": hesse.__version__,
        "commit": _commit(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # a source archive has no commit
        return None
    return answer.stdout.strip()


def keep(record: dict[str, Any], path: Path) -> None:
    """Write the record, which is what ``--json`` prints, whole or not at all; a claim's "table" also as ``.csv``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for claim in record["claims"]:
        if isinstance(lines := claim["rows"].get("table"), list):
            _write(path.with_suffix(".csv"), _csv(lines))
    _write(path, json.dumps(record, indent=1) + "\n")


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
