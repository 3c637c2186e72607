"""What every page looks like from afar: a screenshot of few grey cells beside one that a person has looked at.

Text becomes grey, so that another font changes little; a panel that moves, overlaps or is missing changes much.
``HESSE_WRITE_LAYOUTS=1`` writes new pictures to ``tests/web/layouts``: look at them before they are kept.
"""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from tests.web.browser import address, page, pytestmark

__all__ = ["address", "page", "pytestmark"]
Image = pytest.importorskip("PIL.Image")

KEPT = Path(__file__).parent / "layouts"
CELL = 20  # pixels of the page a cell
TOLERANCE = 0.2  # see `apart`
SIZES = {"desk": (1400, 900), "phone": (360, 740)}
VIEWS = {  # the key that leads there, and what it shows
    "query": ("2", ".line .tok"),
    "row": ("2", ".line .open"),
    "layers": ("3", ".layer-line"),
    "health": ("4", ".spectrum"),
    "runs": ("1", ".run"),
}


def seen(page):
    """Screenshot of the window, averaged over cells, as numbers from 0 to 1."""
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("L")
    small = picture.resize((picture.width // CELL, picture.height // CELL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def apart(one, other):
    """Ink that lies elsewhere, as a share of all ink: 0 for the same picture, 1 for pictures without common ink."""
    first, second = (np.abs(cells - np.median(cells)) for cells in (one, other))
    return float(np.abs(first - second).sum() / (first + second).sum())


def show(page, view):
    """Go to one of the views from whichever is open."""
    key, landmark = VIEWS[view]
    page.keyboard.press(key)
    page.wait_for_selector(landmark)
    if view == "row":
        page.click(".line .open >> nth=0")
        page.wait_for_selector(".detail .tok")
    page.wait_for_timeout(300)


@pytest.mark.parametrize("size", SIZES)
def test_pages_look_as_they_did(page, size):
    """Oracle: kept pictures; and that every two of them differ by more than what is tolerated."""
    page, _seen = page
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="light")
    found = {}
    for view in VIEWS:
        show(page, view)
        found[view] = seen(page)
    if os.environ.get("HESSE_WRITE_LAYOUTS"):
        KEPT.mkdir(exist_ok=True)
        for view, cells in found.items():
            Image.fromarray(np.rint(255 * cells).astype(np.uint8)).save(KEPT / f"{view}-{size}.png")
    kept = {view: np.asarray(Image.open(KEPT / f"{view}-{size}.png"), dtype=np.float64) / 255 for view in VIEWS}
    moved = {view: apart(found[view], kept[view]) for view in VIEWS}
    assert max(moved.values()) <= TOLERANCE, moved
    others = {(a, b): apart(kept[a], kept[b]) for a in VIEWS for b in VIEWS if a < b}
    assert min(others.values()) > TOLERANCE, others
