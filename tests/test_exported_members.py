"""Names, files and documentation agree: what a subpackage exports is what its modules offer."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import hesse
from tools import docs_lint

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [module.name for module in pkgutil.iter_modules(hesse.__path__, "hesse.") if module.ispkg]
EXPORTING = [name for name in PACKAGES if name.rpartition(".")[2] not in docs_lint.LEFT_OUT]
MODULES = [module.name for module in pkgutil.walk_packages(hesse.__path__, "hesse.") if not module.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_and_declares_its_names(name):
    """Oracle: the import system. Every module states what it offers, and says in a sentence what it is."""
    module = importlib.import_module(name)
    assert module.__doc__
    assert isinstance(module.__all__, list)
    for member in module.__all__:
        assert hasattr(module, member), member


@pytest.mark.parametrize("name", EXPORTING)
def test_package_is_a_table_of_contents(name):
    """Oracle: the rule. No name twice, each there and offered by the module that defines it (ruff sorts them)."""
    package = importlib.import_module(name)
    names = list(package.__all__)
    assert len(names) == len(set(names))
    for member in names:
        value = getattr(package, member)
        if inspect.isclass(value) or inspect.isfunction(value):
            home = importlib.import_module(value.__module__)
            assert home.__name__.startswith(f"{name}."), f"{member} comes from {home.__name__}"
            assert member in home.__all__, f"{member} is not in {home.__name__}.__all__"


@pytest.mark.parametrize("name", EXPORTING)
def test_package_imports_nothing_it_does_not_export(name):
    """Oracle: the source of ``__init__.py``: every public name bound there stands in ``__all__``, modules apart."""
    package = importlib.import_module(name)
    bound = {
        member for member, value in vars(package).items() if not member.startswith("_") and not inspect.ismodule(value)
    }
    assert bound == {member for member in package.__all__ if not inspect.ismodule(getattr(package, member))}


def test_documentation_covers_every_export():
    """Oracle: the docs lint, which compares signatures with docstrings and exports with reference pages."""
    assert list(docs_lint.faults()) == []


def test_version_is_the_projects():
    """Oracle: pyproject.toml and CITATION.cff."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert hesse.__version__ == project["version"]
    assert f"version: {hesse.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_lint_sees_what_is_missing():
    """Oracle: three functions whose faults are known."""

    def bare(x: int) -> int:
        return x

    def summary_only(x: int) -> int:
        """Return x."""
        return x

    def complete(x: int) -> int:
        """Return x.

        Parameters
        ----------
        x : int
            Anything.

        Returns
        -------
        int
            The same.
        """
        return x

    assert list(docs_lint.docstring_faults("bare", bare)) == ["bare: no docstring"]
    assert [fault.split(",")[0] for fault in docs_lint.docstring_faults("f", summary_only)] == [
        "f: takes arguments",
        "f: returns something",
    ]
    assert list(docs_lint.docstring_faults("complete", complete)) == []
