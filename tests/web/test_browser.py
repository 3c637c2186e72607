"""The viewer in a real browser: every page opened and used, hostile texts shown as texts, nothing fetched elsewhere."""

import itertools

import pytest

from tests.hostile import HOSTILE
from tests.web.browser import address, page, pytestmark

__all__ = ["address", "page", "pytestmark"]


def until(page, condition):
    """Wait for a condition in the page; Playwright's own way needs eval, which the policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(condition)


def test_every_page_by_keyboard(page):
    """Oracle: what each page is for is on it."""
    page, _seen = page
    assert "token" not in page.url
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector(".detail .tok")
    assert "row=" in page.url
    page.click("text=Which word moved which")
    page.wait_for_selector(".map")
    page.keyboard.press("3")
    page.wait_for_selector(".layer-line")
    page.keyboard.press("4")
    page.wait_for_selector(".spectrum")
    assert "empirical Fisher" in page.inner_text(".warnings")
    page.keyboard.press("1")
    page.wait_for_selector(".run")
    assert page.inner_text("h1") == "Runs"
    page.go_back()
    page.wait_for_selector(".spectrum")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") != theme
    page.keyboard.press("?")
    assert page.is_visible("#help")


def test_hostile_texts_are_texts(page):
    """Oracle: the texts in the page's own DOM, and the checks at the end of the fixture."""
    page, _seen = page
    page.keyboard.press("n")
    until(page, "document.querySelector('.eyebrow').textContent.includes('script')")
    assert HOSTILE[0] in page.inner_text(".question")
    texts = set()
    for end in ("p", "o"):
        page.keyboard.press(end)
        until(page, "document.querySelector('.rows').getAttribute('aria-busy') === 'false'")
        total = page.evaluate("document.querySelector('.line').getAttribute('aria-setsize')")
        for _ in range(int(total)):
            page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_selector(".detail .facts")
        texts |= set(page.eval_on_selector_all(".line", "nodes => nodes.map((node) => node.dataset.id)"))
    assert len(texts) > 10


def test_search_tags_words_and_links(page, address):
    """Oracle: the texts that were searched for; a link leads to the same view."""
    page, _seen = page
    until(page, "!document.querySelector('.explain').textContent.includes('not yet')")
    page.keyboard.press("/")
    page.keyboard.type("<script>")
    until(page, "document.querySelector('.explain').textContent.includes('row')")
    until(page, "[...document.querySelectorAll('.line')].every((n) => n.textContent.includes('script'))")
    page.fill('input[aria-label="Search the texts"]', "zzz")
    page.wait_for_selector("text=No row matches.")
    page.fill('input[aria-label="Search the texts"]', "")
    page.wait_for_selector(".line")
    page.select_option('select[aria-label="Only rows with a tag"]', "kind:odd")
    until(page, "location.hash.includes('kind')")
    page.click(".target >> nth=0")
    page.wait_for_selector("text=Ranked by the effect on one word.")
    link, shown = page.url, page.inner_text(".explain")
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("text=Ranked by the effect on one word.")
    until(page, f"document.querySelector('.explain').textContent === {shown!r}")


@pytest.mark.parametrize("width", [360, 3840])
def test_narrow_and_wide(page, width):
    """Oracle: the layout: nothing wider than the window, rows that do not overlap, the row's panel readable."""
    page, _seen = page
    page.set_viewport_size({"width": width, "height": 1600 if width > 1000 else 740})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = page.eval_on_selector_all(
        ".line", "nodes => nodes.map((n) => n.getBoundingClientRect()).map((b) => [b.top, b.bottom])"
    )
    boxes.sort()
    assert all(lower[0] >= upper[1] - 1 for upper, lower in itertools.pairwise(boxes))
    page.click(".line .open >> nth=0")
    page.wait_for_selector(".detail .tok")
    box = page.locator(".detail .panel").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["y"] < 400
