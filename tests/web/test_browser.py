"""The viewer in a real browser: every page opened and used, hostile texts shown as texts, nothing fetched elsewhere."""

import itertools
import shutil
import threading

import pytest

from hesse.web import serve
from tests.hostile import HOSTILE

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium"),
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.enable_socket,
]


@pytest.fixture(scope="module")
def address(run_folder, tmp_path_factory):
    import os

    opened, told = threading.Event(), []
    before = os.environ.get("HESSE_CACHE")
    os.environ["HESSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))

    def started(url):
        told.append(url)
        opened.set()

    threading.Thread(target=serve, args=([run_folder],), kwargs={"started_fn": started}, daemon=True).start()
    assert opened.wait(30)
    yield told[0]
    if before is None:
        del os.environ["HESSE_CACHE"]
    else:
        os.environ["HESSE_CACHE"] = before


@pytest.fixture
def page(address):
    """A page that has opened the viewer; what it fetched, complained of, and asked."""
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        seen = {"requests": [], "errors": [], "dialogs": []}
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.on("pageerror", lambda error: seen["errors"].append(str(error)))
        page.on("console", lambda line: seen["errors"].append(line.text) if line.type == "error" else None)
        page.on("dialog", lambda dialog: (seen["dialogs"].append(dialog.message), dialog.dismiss()))
        page.goto(address)
        page.wait_for_selector(".line .tok")
        yield page, seen
        origin = address.partition("?")[0]
        assert all(url.startswith((origin, "data:,")) for url in seen["requests"])
        assert seen["errors"] == []
        assert seen["dialogs"] == []
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.scripts.length") == 1
        assert (
            page.evaluate("document.querySelectorAll('main :is(iframe, object, embed, img, style, form)').length") == 0
        )
        browser.close()


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
