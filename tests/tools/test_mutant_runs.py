"""The runner of mutants: verdicts on a module made here, whose tests see some of its breaks and miss others."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import _mutant_runs as runs
from tools import mutation

SOURCE = """\
import functools
import time

LIMIT = 3


def seen(a):
    return a + 1


def missed(a):
    return a * 1


def never_run(a):
    return a - 1


def waits(a):
    while a < 0:
        time.sleep(0.01)
    return a


class Holder:
    def inner(self, a):
        return [a * b for b in (1, 2)]


pair = lambda a: a + 1, lambda a: a + 2
"""
TESTS = """\
from hesse.unit import module as m

def test_seen():
    assert m.seen(1) == 2

def test_missed():
    assert m.missed(5) == 5
    assert m.waits(0) == 0

def test_limit():
    assert m.LIMIT == 3

def test_fails_unbroken():
    assert m.seen(1) == 99
"""
CAMPAIGN = """\
import json, os, sys
from pathlib import Path
from tools import _mutant_runs as runs, mutation
root, scratch = Path(sys.argv[1]), Path(sys.argv[2])
mutation.ROOT = root
os.chdir(root)
sys.path[:0] = [str(root / "src"), str(root)]
wanted = {(8, "a + 1 -> a - 1"), (12, "a * 1 -> a / 1"), (16, "a - 1 -> a + 1"), (4, "3 -> 4")}
chosen = [m for m in mutation.mutants(root / "src/hesse/unit/module.py") if (m.line, m.change) in wanted]
found = mutation.campaign(chosen, 60.0, workers=1)
print(json.dumps([found.killed, found.tried, found.timed_out, found.unseen, found.left_out,
                  sorted(m.change for m in found.survivors)]))
"""


def code(text):
    return compile(text, "module.py", "exec", dont_inherit=True)


def changed(before, after, source=SOURCE):
    assert before in source
    return runs.changed_functions(code(source), code(source.replace(before, after)))


def test_what_changed_is_found():
    """Oracle: the source above, read by eye: names and first lines; None where the import does something else."""
    assert set(changed("a + 1\n", "a - 1\n")) == {("seen", 7)}
    assert set(changed("a * b", "a / b")) == {("Holder.inner", 26), ("Holder.inner.<locals>.<listcomp>", 27)}
    assert changed("LIMIT = 3", "LIMIT = 4") is None
    assert changed("def inner(self, a)", "def inner(self, a=1)") is None
    assert changed("lambda a: a + 2", "lambda a: a - 2") is None  # two of one line cannot be told apart
    assert changed("a + 1\n", "a + 1\n") == {}


def test_a_function_that_the_compiler_drops():
    """Oracle: a condition that is never true takes its body along, with the functions in it: all is imported anew."""
    source = "def f(a):\n    if a:\n        raise ValueError(list(b for b in a))\n    return a\n"
    assert changed("if a:", "if False:", source) is None


@pytest.mark.parametrize(("before", "after"), [("1", "True"), ("0.0", "-0.0"), ("1", "1.0")])
def test_equal_constants_of_other_kinds_differ(before, after):
    """Oracle: 1 == True == 1.0 and 0.0 == -0.0 in Python; as mutants of a constant at import they are not the same."""
    assert changed(f"x = {before}", f"x = {after}", f"x = {before}\n") is None


def test_code_is_replaced_in_functions_that_are_there():
    """Oracle: the answers before and after, of a function that another name holds too; others stay."""
    names = {}
    exec(code(SOURCE), names)  # noqa: S102  our own text
    held = names["seen"]
    path = code(SOURCE).co_filename
    assert runs.replace_code(path, changed("a + 1\n", "a - 1\n")) == 1
    assert (held(1), names["missed"](5)) == (0, 5)
    assert runs.replace_code("another.py", changed("a + 1\n", "a - 1\n")) == 0
    del names, held
    gc.collect()


def test_tests_at_a_line_come_quickest_first():
    """Oracle: by hand."""
    unbroken = runs.Unbroken({"a": 2.0, "b": 1.0, "c": 0.5}, {"a": [3, 4], "b": [4], "c": [9]})
    assert unbroken.tests_at(4, 4) == ["b", "a"]
    assert unbroken.tests_at(3, 9) == ["c", "b", "a"]
    assert unbroken.tests_at(5, 8) == []


@pytest.mark.parametrize(
    ("task", "verdict"),
    [
        (lambda: 0, runs.PASSED),
        (lambda: 1, runs.FAILED),
        (lambda: runs.BROKE, runs.NOT_THERE),
        (lambda: 1 / 0, runs.NOT_THERE),
        (lambda: os.kill(os.getpid(), 9), runs.FAILED),
        (lambda: [0 for _ in iter(int, 1)], runs.ENDLESS),
    ],
)
def test_verdicts_of_a_fork(task, verdict):
    """Oracle: the meaning of the exit status; a task that never ends is killed."""
    assert runs._verdict(task, 0.5 if verdict == runs.ENDLESS else 30.0) == verdict


def test_compiled_modules_have_a_cache_of_their_own(tmp_path, monkeypatch):
    """Oracle: the environment: numba must neither find an unbroken kernel nor leave a broken one behind."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "before")
    plain, compiled = tmp_path / "plain.py", tmp_path / "compiled.py"
    plain.write_text("x = 1\n")
    compiled.write_text("from numba import njit\n")
    runs._compile_in(runs.Module(plain, "plain", ()), tmp_path / "cache")
    assert os.environ["NUMBA_CACHE_DIR"] == "before"
    runs._compile_in(runs.Module(compiled, "compiled", ()), tmp_path / "cache")
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "cache")


@pytest.mark.slow
def test_a_campaign(tmp_path):
    """Oracle: the module and its tests above, judged by eye; one test that fails unbroken is not used."""
    source, tests = tmp_path / "src" / "hesse" / "unit", tmp_path / "tests" / "unit"
    source.mkdir(parents=True)
    tests.mkdir(parents=True)
    for folder in (source.parent, source):
        (folder / "__init__.py").write_text("")
    (source / "module.py").write_text(SOURCE)
    (tests / "test_module.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: x\n    nightly: x\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys; sys.path.insert(0, os.getcwd())\n{CAMPAIGN}", tmp_path, tmp_path],
        cwd=Path(mutation.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    survivors = ["a * 1 -> a / 1", "a - 1 -> a + 1"]
    assert json.loads(done.stdout.splitlines()[-1]) == [2, 4, 0, 1, {}, survivors]
