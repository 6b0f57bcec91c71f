"""The machine's own Chromium, without its conversations with the world."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def browser():
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if not executable:
        pytest.skip("no Chromium here: apt-get install chromium fonts-noto-core fonts-noto-color-emoji")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page or a picture given as text. In no test may it run, log or load anything."""
    troubles, pages = [], []

    def visit(content, suffix=".html", width=900, **options):
        file = tmp_path / f"shown{len(pages)}{suffix}"
        file.write_text(content, encoding="utf-8", newline="")
        page = browser.new_page(viewport={"width": width, "height": 700}, **options)
        pages.append(page)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url == file.as_uri() or troubles.append(request.url))
        page.goto(file.as_uri())
        return page

    yield visit
    for page in pages:
        page.close()
    assert not troubles
