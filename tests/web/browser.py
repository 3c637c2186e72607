"""The viewer opened in a real browser, for the tests of this folder; without a browser they are skipped."""

import os
import shutil
import threading

import pytest

from hesse.web import serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium"),
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.enable_socket,
]


@pytest.fixture(scope="module")
def address(run_folder, tmp_path_factory):
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
    playwright = pytest.importorskip("playwright.sync_api")
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
