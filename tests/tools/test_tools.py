"""The small programs behind ``make``: what they say when something is missing."""

import os
import subprocess
from pathlib import Path

import pytest

from tools.docs_lint import has_section
from tools.gallery_times import main as gallery_times

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def commands(tmp_path):
    """A folder of commands that is the whole PATH, and a function that adds one to it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "head", "env"):
        (folder / name).symlink_to(Path("/bin") / name if (Path("/bin") / name).exists() else Path("/usr/bin") / name)

    def add(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    add.path = folder
    return add


def make_venv(commands, target):
    return subprocess.run(
        [str(ROOT / "tools" / "make_venv.sh"), str(target)],
        env={"PATH": str(commands.path), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_old_python_ends_with_one_line_that_says_what_to_do(commands, tmp_path):
    """Oracle: commands made to behave like an old Python and like a version manager's empty shim."""
    commands("python3", 'if [ "$1" = --version ]; then echo "Python 3.9.2"; else exit 1; fi')
    commands("python3.12", 'echo "command not found" >&2; exit 127')
    child = make_venv(commands, tmp_path / "venv")
    assert child.returncode == 1
    assert child.stdout == ""
    assert len(child.stderr.splitlines()) == 1
    assert "3.11 or newer" in child.stderr
    assert "Python 3.9.2" in child.stderr


def test_first_python_that_runs_is_taken(commands, tmp_path):
    """Oracle: two commands that write down how they were called; the shim before them is passed over."""
    target = tmp_path / "venv"
    commands("python3.13", "exit 127")
    commands(
        "python3.12",
        f'case "$1" in -c) exit 0;; --version) echo "Python 3.12.9";; *) echo "$@" > {tmp_path}/called;; esac',
    )
    commands("python3", "exit 1")
    child = make_venv(commands, target)
    assert child.returncode == 0, child.stderr
    assert (tmp_path / "called").read_text() == f"-m venv --clear {target}\n"


def test_gallery_limit(tmp_path, capsys):
    """Oracle: a report written by hand: one page within the limit, one above it."""
    report = tmp_path / "gallery.xml"
    assert gallery_times(str(report), "60") == 1
    report.write_text('<testsuite><testcase file="a.py" time="59.9"/><testcase file="b.py" time="60.1"/></testsuite>')
    capsys.readouterr()
    assert gallery_times(str(report), "60") == 1
    assert capsys.readouterr().out == "b.py: 60.1 s, at most 60 allowed\n"
    assert gallery_times(str(report), "61") == 0


def test_sections_are_found_by_their_underline():
    """Oracle: two docstrings; a word alone is no section."""
    assert has_section("X.\n\nReturns\n-------\nint", "Returns", "Yields")
    assert not has_section("X.\n\nReturns the Returns.\n", "Returns")
