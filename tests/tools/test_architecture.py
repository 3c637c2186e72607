"""The picture of the house, against the imports."""

import pytest

from tools import architecture


def test_page_and_picture_are_up_to_date():
    """Oracle: the imports, read afresh (tools/architecture.py --write mends both)."""
    assert architecture.PICTURE.read_text("utf-8") == architecture.picture()
    page = architecture.PAGE.read_text("utf-8")
    assert architecture.with_table(page) == page


def test_every_unit_has_its_room():
    """Oracle: the folders and files of the package: the import contract, hence the picture, misses none."""
    found = {path.name for path in architecture.SOURCE.iterdir() if (path / "__init__.py").exists()}
    found |= {path.stem for path in architecture.SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert found == {unit for storey in architecture.storeys() for unit in storey}


def test_uses_are_those_of_the_source(tmp_path):
    """Oracle: a file with every form of import, one of them inside a function."""
    path = tmp_path / "file.py"
    path.write_text(
        "import torch\nimport hesse.io\nfrom hesse.linalg import cg\n"
        "def f():\n    from hesse.curvature.kfac import x, y\n    from os import path\n"
    )
    names = set(architecture.imported(path))
    assert names == {"hesse.io", "hesse.linalg.cg", "hesse.curvature.kfac.x", "hesse.curvature.kfac.y"}


def test_an_import_that_points_up_is_refused(monkeypatch):
    """Oracle: the storeys turned upside down."""
    upside_down = architecture.storeys()[::-1]
    monkeypatch.setattr(architecture, "storeys", lambda: upside_down)
    architecture.uses.cache_clear()
    with pytest.raises(ValueError, match="not below it"):
        architecture.uses()
    architecture.uses.cache_clear()
