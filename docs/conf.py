"""Sphinx settings. Nothing here reaches a network: no intersphinx, no remote fonts, formulas in plain letters."""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other on a busy machine cost a page tenfold

from hesse import __version__  # after the path is set

project = "hesse"
author = "The hesse developers"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "gallery"]
suppress_warnings = [
    "config.cache",  # a function among the gallery's settings cannot be cached
    "ref.python",  # words in backticks that are attributes of several classes
]

myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings give types with shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # else an attribute that is a property as well is described twice

html_theme = "pydata_sphinx_theme"
html_title = "hesse"
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 4,
}
html_show_sourcelink = False


def _reset(_conf: dict, _page: str) -> None:
    # pages share one process: what one sets for itself must not reach the next
    import torch

    torch.set_default_dtype(torch.float32)


sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["auto_gallery"],
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", _reset),
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 0,
    "junit": "gallery.xml",  # tools/gallery_times.py reads it: no page may take more than 60 seconds
}

_PLAIN = re.compile(r"``.*?``|\||(?<=\()\*(?=\w)|(?<=, )\*(?=\w)")


def _keep_plain(line: str) -> str:
    # |x| is a norm here, not a substitution of reStructuredText, and (B, *shape) no emphasis
    if line.lstrip().startswith((">>>", "...", "|", "+-", ".. ")):
        return line
    return _PLAIN.sub(lambda found: found[0] if found[0].startswith("``") else f"\\{found[0]}", line)


def _docstring(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = [_keep_plain(line) for line in lines]


def _page(_app: Any, name: str, source: list[str]) -> None:
    if not name.startswith("auto_gallery"):
        return
    kept, inside = [], False
    for line in source[0].split("\n"):
        if line.startswith(".. code-block") or line.rstrip().endswith("::"):
            inside = True
        elif line.strip() and not line.startswith(" "):
            inside = False
        kept.append(line if inside else _keep_plain(line))
    source[0] = "\n".join(kept)


def setup(app: Any) -> None:
    """Register both."""
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("source-read", _page)
