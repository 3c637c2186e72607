"""Hold the documentation to what the package exports: ``tools/docs_lint.py``, or ``--write`` to rewrite docs/reference.

Checked: every name in a subpackage's ``__all__`` has a docstring with the NumPy sections its signature calls for and
stands on its reference page; the changelog is not empty. Prints one line a fault and returns 1 if there is any.
"""

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
LEFT_OUT = ("cli", "web")  # commands and pages, no names to import


def packages() -> Iterator[ModuleType]:
    """Subpackages of hesse that export names; ``hesse.errors``, which everyone meets, joins them."""
    yield importlib.import_module("hesse.errors")
    for path in sorted((ROOT / "src" / "hesse").glob("*/__init__.py")):
        if path.parent.name not in LEFT_OUT:
            module = importlib.import_module(f"hesse.{path.parent.name}")
            if getattr(module, "__all__", None):
                yield module


def has_section(doc: str, *titles: str) -> bool:
    """Whether one of the titles stands there underlined."""
    return any(re.search(rf"^\s*{title}\n\s*-{{3,}}", doc, re.MULTILINE) for title in titles)


def docstring_faults(name: str, value: Any) -> Iterator[str]:
    """What is missing from the docstring of one public function or class."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    doc = inspect.cleandoc(value.__doc__ or "")
    if not doc:
        yield f"{name}: no docstring"
        return
    if inspect.isclass(value):
        # exceptions, protocols and dataclasses say it in their summary and fields; a hand-written constructor needs
        # its parameters
        told = dataclasses.is_dataclass(value) or issubclass(value, Exception) or getattr(value, "_is_protocol", False)
        written = "__init__" in vars(value) and not told
        if written and _parameters(value.__init__) and not has_section(doc, "Parameters"):
            yield f"{name}: the constructor takes arguments, but the docstring has no Parameters section"
        return
    if _parameters(value) and not has_section(doc, "Parameters"):
        yield f"{name}: takes arguments, but the docstring has no Parameters section"
    if _returns(value) and not has_section(doc, "Returns", "Yields"):
        yield f"{name}: returns something, but the docstring has no Returns section"


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def _returns(function: Any) -> bool:
    annotation = inspect.signature(function).return_annotation
    return annotation not in (inspect.Signature.empty, None, "None")


def reference_page(module: ModuleType) -> str:
    """The page of one subpackage, made from its ``__all__``."""
    title = module.__name__
    lines = [
        title,
        "=" * len(title),
        "",
        f".. currentmodule:: {title}",
        "",
        f".. automodule:: {title}",
        "   :no-members:",
        "",
    ]
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.isclass(value):
            lines += [f".. autoclass:: {name}", "   :members:", ""]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {name}", ""]
        else:
            lines += [f".. autodata:: {name}", ""]
    return "\n".join(lines)


def page_path(module: ModuleType) -> Path:
    return REFERENCE / f"{module.__name__.removeprefix('hesse.')}.rst"


def index_page(modules: list[ModuleType]) -> str:
    entries = "\n".join(f"   {page_path(module).stem}" for module in modules)
    head = "Reference\n=========\n\nEvery public name, one page a subpackage."
    return f"{head}\n\n.. toctree::\n   :maxdepth: 1\n\n{entries}\n"


def pages() -> dict[Path, str]:
    """Every file of docs/reference with the text it should hold."""
    modules = list(packages())
    return {page_path(module): reference_page(module) for module in modules} | {
        REFERENCE / "index.rst": index_page(modules)
    }


def faults() -> Iterator[str]:
    """Everything that is wrong, one line each."""
    for module in packages():
        for name in module.__all__:
            if not hasattr(module, name):
                yield f"{module.__name__}.{name}: in __all__, but not there"
                continue
            yield from docstring_faults(f"{module.__name__}.{name}", getattr(module, name))
    expected = pages()
    for path, text in expected.items():
        if not path.exists() or path.read_text("utf-8") != text:
            yield f"{path.relative_to(ROOT)}: not what the package exports; run tools/docs_lint.py --write"
    for path in sorted(set(REFERENCE.glob("*")) - set(expected)):
        yield f"{path.relative_to(ROOT)}: no subpackage of that name exports anything"
    if not re.search(r"^- \S", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        yield "CHANGELOG.md: no entry"


def main(arguments: list[str]) -> int:
    if "--write" in arguments:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        expected = pages()
        for path in set(REFERENCE.glob("*")) - set(expected):
            path.unlink()
        for path, text in expected.items():
            path.write_text(text, "utf-8")
    found = list(faults())
    for line in found:
        print(line)
    print(f"docs lint: {len(found) or 'no'} fault{'s' * (len(found) != 1)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
