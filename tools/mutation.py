"""Mutation testing: break one operator, number, condition or ``raise`` at a time and see whether the tests notice.

    python -m tools.mutation --count 300 --seed 1 --minutes 30 [--json FILE] [UNIT ...]

Units are subpackages of hesse; default: io, linalg, curvature. Each mutant is run against the tests of its own module
alone, and of these against those that run the broken line: ``tools/_mutant_runs.py``. The order is drawn at random and
goes round the units, so that a run that its time limit cuts short is still a fair sample of the modules.
"""

import argparse
import ast
import copy
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

from tools._mutant_runs import ENDLESS, PASSED, UNSEEN, Broken, Module, try_module, warm_up

ROOT = Path(__file__).resolve().parent.parent
UNITS = ("io", "linalg", "curvature")
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
    unseen: int = 0  # among the survivors: no test runs the line
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


def broken_tree(mutant: Mutant) -> tuple[ast.Module, ast.AST]:
    """The file's tree with the mutant's change in it, every line where it was, and the changed node."""
    tree = ast.parse((ROOT / mutant.path).read_text("utf-8"))
    node, name, value = next(p for number, p in enumerate(places(tree)) if number == mutant.number)
    if isinstance(value, ast.AST):
        value = ast.copy_location(value, getattr(node, name) if hasattr(getattr(node, name), "lineno") else node)
    setattr(node, name, value)
    return ast.fix_missing_locations(tree), node


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


def campaign(chosen: list[Mutant], seconds: float, workers: int = 2) -> Outcome:
    """Try the mutants, module by module and ``workers`` modules at a time, until all are tried or the time is up."""
    warm_up()
    begun = time.monotonic()
    outcome = Outcome(left_out={}, survivors=[], by_unit={})
    by_module: dict[str, list[Mutant]] = {}
    for mutant in chosen:
        by_module.setdefault(mutant.path, []).append(mutant)
    waiting, running = list(reversed(by_module.items())), {}
    with tempfile.TemporaryDirectory() as scratch:
        while running or (waiting and time.monotonic() - begun < seconds):
            if waiting and len(running) < workers and time.monotonic() - begun < seconds:
                path, group = waiting.pop()
                folder = Path(scratch, str(len(waiting)))
                running[_start(path, group, folder, begun + seconds)] = (path, group, folder / "verdicts.json")
                continue
            for pid in [pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]]:
                _count(outcome, *running.pop(pid))
            time.sleep(0.02)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _start(path: str, group: list[Mutant], folder: Path, ends: float) -> int:
    # a fork that tries all mutants of one module and writes what became of them
    folder.mkdir()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        tests, name = tests_of(path), ".".join(Path(path).relative_to("src").with_suffix("").parts)
        broken = []
        for mutant in group:
            tree, node = broken_tree(mutant)
            broken.append(Broken(mutant.number, mutant.line, getattr(node, "end_lineno", mutant.line), tree))
        found = try_module(Module(ROOT / path, name, tests), broken, folder, ends) if tests else ({}, "it has no tests")
        (folder / "verdicts.json").write_text(json.dumps(found), "utf-8")
        code = 0
    finally:
        os._exit(code)


def _count(outcome: Outcome, path: str, group: list[Mutant], report: Path) -> None:
    verdicts, reason = json.loads(report.read_text("utf-8")) if report.exists() else ({}, "the runner broke")
    if reason:
        outcome.left_out[path] = reason
    tally = outcome.by_unit.setdefault(Path(path).parts[2], [0, 0])
    for mutant in group:
        verdict = verdicts.get(str(mutant.number))
        if verdict is None:
            continue
        outcome.tried, tally[1] = outcome.tried + 1, tally[1] + 1
        if verdict in (PASSED, UNSEEN):
            outcome.survivors.append(mutant)
            outcome.unseen += verdict == UNSEEN
        else:
            outcome.killed, tally[0] = outcome.killed + 1, tally[0] + 1
            outcome.timed_out += verdict == ENDLESS


def main(arguments: list[str]) -> int:
    it = argparse.ArgumentParser("tools/mutation.py", description=__doc__.split("\n")[0])
    it.add_argument("units", nargs="*", default=list(UNITS))
    it.add_argument("--count", type=int, default=300)
    it.add_argument("--seed", type=int, default=1)
    it.add_argument("--minutes", type=float, default=30.0)
    it.add_argument("--workers", type=int, default=2, help="modules at a time")
    it.add_argument("--json", type=Path)
    options = it.parse_args(arguments)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    outcome = campaign(sample(tuple(options.units), options.count, options.seed), 60 * options.minutes, options.workers)
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome), indent=1, ensure_ascii=False), "utf-8")
    for mutant in outcome.survivors or []:
        print(f"survived: {mutant.path}:{mutant.line}: {mutant.change}")
    for path, reason in sorted((outcome.left_out or {}).items()):
        print(f"left out: {path}: {reason}")
    share = outcome.killed / max(1, outcome.tried)
    print(f"{outcome.killed} of {outcome.tried} killed, {share:.0%}, in {outcome.seconds:.0f} s; {outcome.by_unit}")
    print(f"{outcome.timed_out} of the killed ran for ever, {outcome.unseen} of the survivors no test runs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
