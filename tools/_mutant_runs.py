"""Runs the tests of one module against its mutants, for ``tools/mutation.py``.

A process that has torch loaded, and hesse not, forks one that collects the module's tests. A fork of that one runs them
unbroken and notes which lines of the module each runs. Then each mutant has a fork of its own, in which the code of the
functions that are there already is replaced and only tests that run the broken line are run, the quickest first: no
other can see the change. What is broken at import (constants, defaults, class bodies, compiled kernels) has a fork of
the first process instead, which imports everything anew.
"""

import ast
import functools
import gc
import importlib.machinery
import importlib.util
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType

__all__ = ["Broken", "Module", "try_module", "warm_up"]

SLOWEST = 60.0  # seconds for the unbroken tests of a module; those that have not begun by then are not used
GRACE = 8.0  # seconds that tests of a mutant may take on top of three times what they took unbroken
MEMORY = 16 << 30  # bytes of address space: a broken size must not take the machine along
OPTIONS = ("-q", "-m", "not slow and not nightly", "-p", "no:xdist", "-p", "no:cacheprovider")
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
FAILED, PASSED, UNSEEN, ENDLESS = "failed", "passed", "no test runs it", "timed out"
NOT_THERE = "no function has its code"
BROKE = 71  # exit status: this runner failed, and not the tests

Key = tuple[str, int]


@dataclass(frozen=True)
class Broken:
    """One mutant: its number, the line that it is on, and the tree of the whole module with it."""

    number: int
    line: int
    last_line: int
    tree: ast.Module


@dataclass(frozen=True)
class Module:
    """A module under test: its file, its name, and the files of its tests."""

    path: Path
    name: str
    tests: tuple[str, ...]


@dataclass
class Unbroken:
    """What the tests do without a mutant: seconds, and lines of the module, of each that passes."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def tests_at(self, first: int, last: int) -> list[str]:
        seen = [name for name, lines in self.lines.items() if any(first <= line <= last for line in lines)]
        return sorted(seen, key=self.seconds.__getitem__)


def warm_up() -> None:
    """Load what takes long and every fork needs; hesse must not be among it."""
    import pytest  # noqa: F401
    import scipy.sparse.linalg  # noqa: F401
    import torch

    torch.set_num_threads(1)
    if any(name.split(".")[0] == "hesse" for name in sys.modules):
        raise RuntimeError("mutation: hesse is loaded already, and no mutant of it would count")


def try_module(module: Module, chosen: list[Broken], folder: Path, ends: float) -> tuple[dict[int, str], str]:
    """Verdicts by a mutant's number, fewer of them if the time is up, and why the module is left out, or nothing."""
    report = folder / "report.json"
    pid = os.fork()
    if pid == 0:
        _in_child(functools.partial(_session, module, chosen, folder, ends))
    os.waitpid(pid, 0)
    if not report.exists():
        return {}, "its tests could not be collected"
    found = json.loads(report.read_text("utf-8"))
    verdicts = {int(number): verdict for number, verdict in found["verdicts"].items() if verdict != NOT_THERE}
    if not found["seconds"]:
        return {}, f"unbroken, none of its tests passes: {', '.join(found['failed'][:3]) or 'there is none'}"
    for broken in chosen:
        if broken.number in found["at_import"] and time.monotonic() < ends:
            limit = GRACE + 3 * (sum(found["seconds"].values()) + found["collected"])
            again = functools.partial(_imported_anew, module, broken, list(found["seconds"]), folder)
            verdicts[broken.number] = _verdict(again, limit)
            if verdicts[broken.number] == NOT_THERE:
                raise RuntimeError(f"mutation: mutant {broken.number} of {module.path} did not run")
    return verdicts, ""


def _session(module: Module, chosen: list[Broken], folder: Path, ends: float) -> int:
    import pytest

    _compile_in(module, folder / "unbroken")
    return int(pytest.main([*_options(folder), *module.tests], [_Plugin(module, chosen, folder, ends)]))


def _compile_in(module: Module, folder: Path) -> None:
    """Keep compiled kernels in a folder of their own, as numba tells them apart by their bytecode alone.

    A broken constant, or a broken function that a kernel calls, is not in it: the unbroken kernel of the usual folder
    would be run in its place, or the broken one be left there for everybody. To compile anew counts in the seconds.
    """
    if is_compiled(module.path):
        os.environ["NUMBA_CACHE_DIR"] = str(folder)


def _options(folder: Path) -> list[str]:
    return [*OPTIONS, f"--basetemp={folder / 'tests'}", f"--timeout={SLOWEST:.0f}"]


class _Plugin:
    """Instead of running what pytest collected: once unbroken, then a fork a mutant."""

    def __init__(self, module: Module, chosen: list[Broken], folder: Path, ends: float) -> None:
        self.module, self.chosen, self.folder, self.ends = module, chosen, folder, ends
        self.begun = time.monotonic()

    def pytest_runtestloop(self, session: object) -> bool:
        items = {item.nodeid: item for item in session.items}  # pyright: ignore[reportAttributeAccessIssue]
        collected, notes = time.monotonic() - self.begun, self.folder / "unbroken.json"
        _verdict(lambda: _note_lines(self.module, items, notes), 3 * SLOWEST)
        unbroken = Unbroken(**json.loads(notes.read_text("utf-8"))) if notes.exists() else Unbroken()
        whole = compile(self.module.path.read_text("utf-8"), str(self.module.path), "exec", dont_inherit=True)
        verdicts: dict[int, str] = {}
        at_import: list[int] = []
        for broken in self.chosen if unbroken.seconds else []:
            changed = changed_functions(whole, compile(broken.tree, str(self.module.path), "exec", dont_inherit=True))
            tests = unbroken.tests_at(broken.line, broken.last_line)
            if changed is None or is_compiled(self.module.path):
                at_import.append(broken.number)
            elif not tests:
                verdicts[broken.number] = UNSEEN
            elif time.monotonic() < self.ends:
                limit = GRACE + 3 * sum(unbroken.seconds[name] for name in tests)
                run = functools.partial(_replaced, self.module, changed, [items[name] for name in tests])
                verdicts[broken.number] = _verdict(run, limit)
                if verdicts[broken.number] == NOT_THERE:
                    at_import.append(broken.number)
        found = {"verdicts": verdicts, "at_import": at_import, "seconds": unbroken.seconds, "failed": unbroken.failed}
        (self.folder / "report.json").write_text(json.dumps(found | {"collected": collected}), "utf-8")
        return True


def _note_lines(module: Module, items: dict[str, object], notes: Path) -> int:
    """Run every test unbroken; the file is rewritten after each, so that one which hangs costs no other."""
    unbroken, path, begun = Unbroken(), str(module.path), time.monotonic()
    lines: set[int] = set()

    def of_line(frame: FrameType, event: str, _argument: object) -> object:
        lines.add(frame.f_lineno)
        return of_line

    def of_call(frame: FrameType, _event: str, _argument: object) -> object:
        return of_line(frame, "call", None) if frame.f_code.co_filename == path else None

    for name, item in items.items():
        if time.monotonic() - begun > SLOWEST:
            break
        lines.clear()
        start = time.monotonic()
        threading.settrace(of_call)  # pyright: ignore[reportArgumentType]
        sys.settrace(of_call)  # pyright: ignore[reportArgumentType]
        good = _run_items([item])
        sys.settrace(None)
        threading.settrace(None)  # pyright: ignore[reportArgumentType]
        if good:
            unbroken.seconds[name], unbroken.lines[name] = time.monotonic() - start, sorted(lines)
        else:
            unbroken.failed.append(name)
        notes.write_text(json.dumps(vars(unbroken)), "utf-8")
    return 0


def _run_items(items: list) -> bool:
    """Whether they pass, up to the first that does not."""
    from _pytest.runner import runtestprotocol

    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                return False
    except (KeyboardInterrupt, SystemExit):  # pytest lets them pass
        return False
    return True


def _replaced(module: Module, changed: dict[Key, CodeType], items: list) -> int:
    """In a fork: put the mutant's code into the functions that are there, and run the tests."""
    if not replace_code(str(module.path), changed):
        return BROKE
    for thing in gc.get_objects():  # what was remembered while the tests were collected may hold unbroken results
        if type(thing) is functools._lru_cache_wrapper and str(thing.__module__).startswith("hesse"):
            thing.cache_clear()
    return 0 if _run_items(items) else 1


def replace_code(path: str, changed: dict[Key, CodeType]) -> int:
    """Give every function of that file its changed code, wherever it is held; return how many there were."""
    count = 0
    for thing in gc.get_objects():
        # type(), as isinstance asks the thing for its class, and some things answer with a warning
        if type(thing) is FunctionType and thing.__code__.co_filename == path:
            code = changed.get(_key(thing.__code__))
            if code is not None:
                thing.__code__, count = code, count + 1
    return count


def changed_functions(whole: CodeType, broken: CodeType) -> dict[Key, CodeType] | None:
    """Functions whose code, or that of a function inside, differs; None where that is not all that differs."""
    if _own(whole) != _own(broken):
        return None
    changed: dict[Key, CodeType] = {}
    keys = [_key(code) for code in _functions(whole)]
    for before, after in zip(_inside(whole), _inside(broken), strict=True):
        if before == after:
            continue
        if not before.co_flags & 1:  # CO_OPTIMIZED is what the body of a class lacks: look further inside
            found = changed_functions(before, after)
            if found is None:
                return None
            changed |= found
            continue
        if before.co_name in COMPREHENSIONS:
            return None
        pairs = [before, *_functions(before)], [after, *_functions(after)]
        if len(pairs[0]) != len(pairs[1]):  # what can never run, the compiler leaves out, and the functions in it
            return None
        for inner, mutated in zip(*pairs, strict=True):
            if keys.count(_key(inner)) > 1:  # two lambdas of one line cannot be told apart
                return None
            changed[_key(inner)] = mutated
    return changed


def is_compiled(path: Path) -> bool:
    """Whether functions of the file are compiled, so that to replace their code changes nothing."""
    return re.search(r"\b(numba|njit|torch\.compile|torch\.jit)\b", path.read_text("utf-8")) is not None


def _key(code: CodeType) -> Key:
    return code.co_qualname, code.co_firstlineno


def _inside(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _functions(code: CodeType) -> Iterator[CodeType]:
    for inner in _inside(code):
        yield inner
        yield from _functions(inner)


def _own(code: CodeType) -> tuple[object, ...]:
    # what a code object does itself, without the functions in it; repr tells 1 from True and 0.0 from -0.0
    return code.co_code, [repr(c) for c in code.co_consts if not isinstance(c, CodeType)], code.co_names


class _Loader(importlib.machinery.SourceFileLoader):
    """A source loader that has its tree already."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str) -> object:
        return compile(self.tree, self.path, "exec", dont_inherit=True)


@dataclass(frozen=True)
class _Finder:
    """Hands out one module broken."""

    module: Module
    tree: ast.Module

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.module.name:
            return None
        where = str(self.module.path)
        return importlib.util.spec_from_file_location(name, where, loader=_Loader(name, where, self.tree))


def _imported_anew(module: Module, broken: Broken, tests: list[str], folder: Path) -> int:
    import pytest

    _compile_in(module, folder / f"mutant-{broken.number}")
    sys.meta_path.insert(0, _Finder(module, broken.tree))  # pyright: ignore[reportArgumentType]
    return int(pytest.main(["-x", *_options(folder), *tests]))


def _verdict(task: Callable[[], int], limit: float) -> str:
    """Run the task in a fork with a process group of its own, which is killed when the time is up."""
    start, pid = time.monotonic(), os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _in_child(task)
    while time.monotonic() - start < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {0: PASSED, BROKE: NOT_THERE}.get(os.waitstatus_to_exitcode(status), FAILED)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return ENDLESS


def _in_child(task: Callable[[], int]) -> None:
    code = BROKE
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        code = task()
    finally:
        os._exit(code)
