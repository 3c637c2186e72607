"""Runs of pytest, and what they said, for ``tools/reliability.py``."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["ROOT", "Counts", "OutOfTime", "environment", "files_with", "node_ids", "pytest", "read_junit"]

ROOT = Path(__file__).resolve().parent.parent


class OutOfTime(RuntimeError):
    """The programme's time was up before these tests were."""


@dataclass
class Counts:
    """What one call of pytest says."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    excused: int = 0  # expected failures
    skipped: int = 0

    def __str__(self) -> str:
        parts = [f"{self.passed} passed"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"{self.excused} known gaps"] if self.excused else []
        return ", ".join([*parts, *([f"{self.skipped} skipped"] if self.skipped else [])])


def environment(**more: str) -> dict[str, str]:
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"} | more


def read_junit(report: Path) -> Counts:
    """Counts of a JUnit report; an expected failure is a skip of its own kind there."""
    counts = Counts()
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  written by our own run
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            counts.failed.append(name)
        elif (skip := case.find("skipped")) is not None:
            excused = skip.get("type") == "pytest.xfail"
            counts.excused, counts.skipped = counts.excused + excused, counts.skipped + (not excused)
        else:
            counts.passed += 1
    return counts


def pytest(seconds: float, *arguments: str, **more: str) -> Counts:
    """Run some tests in a process of their own, within so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"--junitxml={report}", *arguments]
        try:
            child = subprocess.run(
                command,
                cwd=ROOT,
                env=environment(**more),
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        if not report.exists():
            return Counts(failed=[f"pytest said nothing: {child.stderr[-300:]}"])
        return read_junit(report)


def files_with(pattern: str, folder: str = "tests") -> list[str]:
    """Test files whose text matches."""
    files = sorted((ROOT / folder).rglob("test_*.py"))
    return [path.relative_to(ROOT).as_posix() for path in files if re.search(pattern, path.read_text("utf-8"))]


def node_ids(*arguments: str) -> list[str]:
    """Names of the tests that these arguments choose."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", *arguments]
    child = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    names = [line for line in child.stdout.splitlines() if "::" in line]
    if not names:
        raise LookupError(f"pytest found no test for {arguments}: {child.stdout[-200:]}")
    return names
