"""What README and docs tell a reader to type exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("decisions/*.md")),
]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "quickstart.md"], ids=lambda page: page.name)
def test_imports_in_code_blocks_work(page):
    """Oracle: the import system; the block also compiles."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, str(page), "exec")
        for module, names in re.findall(r"^from (hesse[\w.]*) import (.+)$", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{page.name}: {module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    """Oracle: the file system."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_in_prose_exist():
    """Oracle: the Makefile's own targets."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        for line in re.findall(
            r"(?:`|^)make ([a-z0-9][a-z0-9 -]*)(?:`|\s{2,}#|$)", page.read_text("utf-8"), re.MULTILINE
        ):
            assert set(line.split()) <= targets, f"{page.name}: make {line}"
