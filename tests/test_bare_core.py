"""The bare core: every module can be imported without any optional package; what is missing is named on use."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"scikit-learn": "sklearn", "torchao": "torchao"}  # as imported, where that differs from the package's name
CHILD = """
import importlib, pkgutil, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.split(".")[0] in {absent!r}
        return None if absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import hesse
names = [m.name for m in pkgutil.walk_packages(hesse.__path__, "hesse.")]
broken = {{}}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        broken[name] = repr(error)
print(len(names))
for name, error in broken.items():
    print(name, error)
{then}
"""
ALLOWED = {"hesse.linalg.sparse._kernels"}  # compiled by numba, reached through require() alone


def extras() -> set[str]:
    """What the extras of pyproject.toml bring, by the name it is imported under."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    lines = [line for group in groups.values() for line in group if not line.startswith("hesse")]
    packages = {line.split(">")[0].split("=")[0].split("[")[0].strip() for line in lines}
    return {NAMES.get(package, package) for package in packages}


def run(then: str = "", source: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    """Import every module of the hesse that lies there, without what the extras bring."""
    code = CHILD.format(absent=extras(), then=then)
    environment = os.environ | {"PYTHONPATH": str(source)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_every_module_imports_without_extras():
    """Oracle: an import system that knows none of the packages that extras bring."""
    child = run()
    assert child.returncode == 0, child.stderr
    count, *broken = child.stdout.splitlines()
    assert int(count) > 200
    assert [line for line in broken if line.split()[0] not in ALLOWED] == []


def test_a_missing_package_is_named():
    """Oracle: the documented error, with the command that installs what is missing."""
    child = run("from hesse._optional import require\nrequire('gymnasium', extra='rl')")
    assert child.returncode == 1
    assert "MissingDependencyError" in child.stderr
    assert "hesse[rl]" in child.stderr
