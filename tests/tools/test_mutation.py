"""The mutator: what it changes, what it leaves alone, and that it can tell a good test from none."""

import ast

import pytest

from tools import mutation

SOURCE = '''"""Doc 1."""
__all__ = ["f", 3]
from dataclasses import dataclass

@dataclass(frozen=True)
class C:
    x: int = 1

def f(a: float = 2.0) -> int:
    """Doc 2."""
    if a < 0:
        raise ValueError(f"a is {a + 1}")
    return -1 if a == 2 and not False else a * 3
'''


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A root of its own with one module of a unit, and a place for its tests."""
    source, tests = tmp_path / "src" / "hesse" / "unit", tmp_path / "tests" / "unit"
    source.mkdir(parents=True)
    tests.mkdir(parents=True)
    (source / "module.py").write_text(SOURCE)
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    mutation.tests_of.cache_clear()
    yield tmp_path
    mutation.tests_of.cache_clear()


def test_every_place_and_no_other(house):
    """Oracle: the source above, read by eye."""
    changes = {m.change for m in mutation.mutants(house / "src/hesse/unit/module.py")}
    assert changes == {
        "1 -> 2",
        "2.0 -> 4.0",
        "if a < 0: -> if False:",
        "a < 0 -> a <= 0",
        "0 -> 1",
        "-1 -> +1",
        "a == 2 -> a != 2",
        "2 -> 3",
        "a == 2 and (not False) -> a == 2 or not False",
        "False -> True",
        "a * 3 -> a / 3",
        "3 -> 4",
    }


def test_a_mutant_differs_in_one_place(house):
    """Oracle: the syntax trees: each broken text parses, and no two are alike or like the whole one."""
    found = mutation.mutants(house / "src/hesse/unit/module.py")
    texts = {ast.dump(mutation.broken_tree(m)[0]) for m in found}
    assert len(texts) == len(found)
    assert ast.dump(ast.parse(SOURCE)) not in texts


def test_sample_is_drawn_by_its_seed(house):
    """Oracle: the definition: same seed, same sample; no mutant twice; units in turn."""
    other = house / "src" / "hesse" / "other"
    other.mkdir()
    (other / "thing.py").write_text(SOURCE)
    one = mutation.sample(("unit", "other"), 8, 3)
    assert one == mutation.sample(("unit", "other"), 8, 3) != mutation.sample(("unit", "other"), 8, 4)
    assert len(set(one)) == 8
    assert [m.path.split("/")[2] for m in one[:4]] == ["unit", "other", "unit", "other"]


def test_tests_are_the_modules_own(house):
    """Oracle: files made here: the one of the module's name, else those that speak of it."""
    path = "src/hesse/unit/module.py"
    assert mutation.tests_of(path) == ()
    mutation.tests_of.cache_clear()
    (house / "tests/unit/test_else.py").write_text("from hesse.unit import f\nf()\n")
    assert mutation.tests_of(path) == ("tests/unit/test_else.py",)
    mutation.tests_of.cache_clear()
    (house / "tests/unit/test_module.py").write_text("")
    assert mutation.tests_of(path) == ("tests/unit/test_module.py",)
