"""Freeze the files that this version writes, with the numbers they are read back to.

    PYTHONPATH=src:. python tests/formats/make.py

To be run once a release, before it, and again only for kinds that are new: what is there is never written anew, since
it is what users have on their disks.
"""

import importlib
import json
import shutil
import sys
import tempfile
import types
from pathlib import Path

import hesse

HERE = Path(__file__).resolve().parent
package = types.ModuleType("tests")  # a peer installs a package of that name
package.__path__ = [str(HERE.parent)]
sys.modules["tests"] = package
KINDS = importlib.import_module("tests.formats.kinds").KINDS


def main() -> None:
    version = HERE / hesse.__version__
    version.mkdir(exist_ok=True)
    for name, kind in KINDS.items():
        if (version / name).exists():
            sys.stdout.write(f"{name}: there already\n")
            continue
        (version / name).mkdir()
        kind.write(version / name)
        for path in (version / name).rglob(".*"):
            path.unlink()  # locks
        with tempfile.TemporaryDirectory() as scratch:
            copy = shutil.copytree(version / name, Path(scratch, name))
            (version / f"{name}.json").write_text(json.dumps(kind.read(copy), indent=1) + "\n", "utf-8")
        size = sum(path.stat().st_size for path in (version / name).rglob("*") if path.is_file())
        sys.stdout.write(f"{name}: {size:,} bytes\n")


if __name__ == "__main__":
    sys.exit(main())
