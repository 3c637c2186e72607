"""What is handed out: the wheel and the source archive hold what they should, nothing else, and the wheel works."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from tests.test_bare_core import ALLOWED, ROOT, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME = f"hesse-{PROJECT['version']}"
BUILD = "import sys, hatchling.build as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
LARGEST = {"wheel": 3_000_000, "sdist": 20_000_000}  # bytes


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both packages, built as a release is, from the files that are here; nothing is downloaded."""
    folder, paths = tmp_path_factory.mktemp("dist"), {}
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-c", BUILD, kind, str(folder)]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stderr
        paths[kind] = folder / child.stdout.split()[-1]
    return paths


def sources() -> set[str]:
    """Files of the package that lie in the source tree, but for what Python and numba leave there."""
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / "src").as_posix() for path in files if ".egg-info" not in str(path)}


def metadata(built: dict[str, Path]) -> Message:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        return message_from_string(wheel.read(f"{NAME}.dist-info/METADATA").decode())


def test_the_wheel_holds_the_package_alone(built):
    """Oracle: the files of the source tree; beside them only what a wheel must have."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
        for name in sources() & names:
            assert wheel.read(name) == (ROOT / "src" / name).read_bytes(), name
    notes = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == sources() | notes | {f"{NAME}.dist-info/licenses/LICENSE"}
    assert {"hesse/py.typed", "hesse/web/static/index.html", "hesse/influence/static/report.html"} <= names
    assert built["wheel"].name == f"{NAME}-py3-none-any.whl"
    assert built["wheel"].stat().st_size < LARGEST["wheel"]


def test_metadata_says_what_pyproject_says(built):
    """Oracle: pyproject.toml and the package's own version."""
    import hesse

    found = metadata(built)
    assert (found["Name"], found["Version"]) == ("hesse", PROJECT["version"])
    assert found["Version"] == hesse.__version__
    assert found["Requires-Python"] == PROJECT["requires-python"]
    assert found["License-Expression"] == PROJECT["license"]
    assert set(found.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    core = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(core) == sorted(PROJECT["dependencies"])
    assert found.get_payload() == (ROOT / PROJECT["readme"]).read_text("utf-8")
    with zipfile.ZipFile(built["wheel"]) as wheel:
        assert "hesse = hesse.cli.main:main" in wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()


def test_the_source_archive_holds_what_it_takes_to_build_and_test(built):
    """Oracle: the folders named in pyproject.toml; no environment, cache or result of a build is among the files."""
    with tarfile.open(built["sdist"]) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= names
    assert {"pyproject.toml", "PKG-INFO", "LICENSE", "README.md", "Makefile", "tests/test_packages.py"} <= names
    allowed = {"src", "tests", "benchmarks", "docs", "tools"}
    files = {"README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "PKG-INFO"}
    assert {name.split("/")[0] for name in names} <= allowed | files | {".gitignore"}
    assert [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".nbi", ".nbc"))] == []
    assert [name for name in names if name.startswith(("docs/_build", "docs/auto_", "docs/gallery_output"))] == []
    assert built["sdist"].stat().st_size < LARGEST["sdist"]


def test_every_module_of_the_wheel_imports_on_the_bare_core(built, tmp_path):
    """Oracle: an import system without the extras; what is imported comes out of the wheel and not from here."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(tmp_path)  # noqa: S202  built here
    child = run("print('from', hesse.__file__)", tmp_path)
    assert child.returncode == 0, child.stderr
    count, *others = child.stdout.splitlines()
    assert int(count) == sum(name.endswith(".py") and name != "hesse/__init__.py" for name in sources())
    assert others[-1] == f"from {tmp_path / 'hesse' / '__init__.py'}"
    assert [line for line in others[:-1] if line.split()[0] not in ALLOWED] == []
