"""Mutation testing: break one operator, number, condition or ``raise`` at a time and see whether the tests notice.

    tools/mutation.py --count 300 --seed 1 --minutes 30 [--json FILE] [UNIT ...]

Units are subpackages of hesse; default: io, linalg, curvature. Each mutant is run against the tests of its own module
alone, in a fork of a process that has torch and pytest loaded already, so that a mutant costs seconds. The order is
drawn at random and goes round the units, so that a run that its time limit cuts short is still a fair sample.
"""

import argparse
import ast
import copy
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNITS = ("io", "linalg", "curvature")
SLOWEST = 45.0  # seconds that the unbroken tests of a module may take, or its mutants are left out
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: str  # below the root
    line: int
    change: str  # before -> after
    number: int  # of the place, in the order of the walk


@dataclass
class Outcome:
    """What the tests made of the mutants."""

    tried: int = 0
    killed: int = 0
    timed_out: int = 0  # among the killed: tests that ran for ever
    left_out: dict[str, str] | None = None  # modules without fit tests, and why
    survivors: list[Mutant] | None = None
    by_unit: dict[str, list[int]] | None = None  # killed, tried
    seconds: float = 0.0


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, object]]:
    """Where the code can be broken: (node, field, replacement), in a fixed order.

    Docstrings, annotations, decorators, texts and ``__all__`` are left alone: to break them changes no behaviour that
    a test should hold.
    """
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]
        elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "op", ast.UAdd()
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, "value", not node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield node, "value", 2 * node.value or 1.0
        elif isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):
            yield node, "test", ast.Constant(value=False)
        stack.extend(reversed(list(_children(node))))


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc") or isinstance(node, ast.JoinedStr):
            continue
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield item


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    found = []
    for number, (node, name, value) in enumerate(places(tree)):
        before = ast.unparse(node).split("\n")[0]
        after = _swapped(copy.deepcopy(node), name, copy.deepcopy(value)).split("\n")[0]
        where = path.relative_to(ROOT).as_posix()
        found.append(Mutant(where, getattr(node, "lineno", 0), f"{before[:70]} -> {after[:70]}", number))
    return found


def _swapped(node: ast.AST, name: str, value: object) -> str:
    setattr(node, name, value)
    return ast.unparse(ast.fix_missing_locations(node))


def broken_source(mutant: Mutant) -> str:
    """The file's text with the mutant's change in it."""
    tree = ast.parse((ROOT / mutant.path).read_text("utf-8"))
    node, name, value = next(p for number, p in enumerate(places(tree)) if number == mutant.number)
    setattr(node, name, value)
    return ast.unparse(ast.fix_missing_locations(tree))


def sample(units: tuple[str, ...], count: int, seed: int) -> list[Mutant]:
    """Draw the mutants to try: equally many of every unit where there are enough, the units in turn."""
    rng = random.Random(seed)  # noqa: S311  a sample, no secret
    piles = []
    for unit in units:
        files = sorted((ROOT / "src" / "hesse" / unit).rglob("*.py"))
        pile = list(chain.from_iterable(mutants(path) for path in files if path.name != "__init__.py"))
        rng.shuffle(pile)
        piles.append(pile)
    turns = (mutant for turn in zip_longest(*piles) for mutant in turn if mutant is not None)
    return [mutant for _, mutant in zip(range(count), turns, strict=False)]


@cache
def tests_of(path: str) -> tuple[str, ...]:
    """The test files of a source file: the one of its name, else the three of its unit that name it most often."""
    source = ROOT / path
    parts = source.relative_to(ROOT / "src" / "hesse").parts
    folder = ROOT / "tests" / parts[0]
    mirrors = [p for p in folder.rglob(f"test_{source.stem.lstrip('_')}.py") if p.parent.name in (*parts, parts[0])]
    if mirrors:
        return tuple(sorted(p.relative_to(ROOT).as_posix() for p in mirrors))
    names = {
        node.name
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    word = re.compile(rf"\b({'|'.join(sorted(names | {source.stem}))})\b")
    counts = {p: len(word.findall(p.read_text("utf-8"))) for p in folder.rglob("test_*.py")}
    best = sorted((p for p in counts if counts[p]), key=lambda p: (-counts[p], p.name))[:3]
    return tuple(p.relative_to(ROOT).as_posix() for p in best)


class _Loader(importlib.machinery.SourceFileLoader):
    """A source loader that knows its text."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> object:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder:
    """Hands out one module from the broken text."""

    def __init__(self, mutant: Mutant) -> None:
        self.path = str(ROOT / mutant.path)
        self.name = ".".join(Path(mutant.path).relative_to("src").with_suffix("").parts)
        self.text = broken_source(mutant)

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=_Loader(name, self.path, self.text))


def run_tests(tests: tuple[str, ...], mutant: Mutant | None, limit: float) -> tuple[str, float]:
    """Fork, run the tests with the mutant in place, and say "passed", "failed" or "timed out", with the seconds."""
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(tests, mutant)
    while time.monotonic() - start < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return ("passed" if status == 0 else "failed"), time.monotonic() - start
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "timed out", time.monotonic() - start


def _child(tests: tuple[str, ...], mutant: Mutant | None) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # a broken size must not take the machine along
        import pytest
        import torch

        torch.set_num_threads(1)
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))  # pyright: ignore[reportArgumentType]
        code = int(pytest.main(["-q", "-x", "-m", "not slow and not nightly", "-p", "no:xdist", *tests]))
    finally:
        os._exit(code)


def warm_up() -> None:
    """Load what takes long and every child needs; plugins of pytest, and hesse itself, must not be among it."""
    import scipy.sparse.linalg  # noqa: F401
    import torch

    torch.set_num_threads(1)
    if any(name.split(".")[0] == "hesse" for name in sys.modules):
        raise RuntimeError("mutation: hesse is loaded already, and no mutant of it would count")


def campaign(chosen: list[Mutant], seconds: float) -> Outcome:
    """Try the mutants in turn until all are tried or the time is up."""
    warm_up()
    begun = time.monotonic()
    outcome = Outcome(left_out={}, survivors=[], by_unit={})
    baselines: dict[tuple[str, ...], float | str] = {}
    for mutant in chosen:
        if time.monotonic() - begun > seconds:
            break
        tests = tests_of(mutant.path)
        if tests not in baselines:
            verdict, took = run_tests(tests, None, SLOWEST) if tests else ("no tests", 0.0)
            baselines[tests] = took if verdict == "passed" else verdict
        baseline = baselines[tests]
        if isinstance(baseline, str):
            outcome.left_out[mutant.path] = f"unbroken, its tests: {baseline}"
            continue
        verdict, _ = run_tests(tests, mutant, 3 * baseline + 8)
        tally = outcome.by_unit.setdefault(Path(mutant.path).parts[2], [0, 0])
        outcome.tried, tally[1] = outcome.tried + 1, tally[1] + 1
        if verdict == "passed":
            outcome.survivors.append(mutant)
        else:
            outcome.killed, tally[0] = outcome.killed + 1, tally[0] + 1
            outcome.timed_out += verdict == "timed out"
        outcome.seconds = time.monotonic() - begun
    return outcome


def main(arguments: list[str]) -> int:
    it = argparse.ArgumentParser("tools/mutation.py", description=__doc__.split("\n")[0])
    it.add_argument("units", nargs="*", default=list(UNITS))
    it.add_argument("--count", type=int, default=300)
    it.add_argument("--seed", type=int, default=1)
    it.add_argument("--minutes", type=float, default=30.0)
    it.add_argument("--json", type=Path)
    options = it.parse_args(arguments)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    outcome = campaign(sample(tuple(options.units), options.count, options.seed), 60 * options.minutes)
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome), indent=1, ensure_ascii=False), "utf-8")
    for mutant in outcome.survivors or []:
        print(f"survived: {mutant.path}:{mutant.line}: {mutant.change}")
    for path, reason in sorted((outcome.left_out or {}).items()):
        print(f"left out: {path}: {reason}")
    share = outcome.killed / max(1, outcome.tried)
    print(f"{outcome.killed} of {outcome.tried} killed, {share:.0%}, in {outcome.seconds:.0f} s; {outcome.by_unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
